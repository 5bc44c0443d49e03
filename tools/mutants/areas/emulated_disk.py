"""Emulated disks: bounds, who may open a file, what a flush promises, what abandoned requests touch."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

BITMAP: Final = "machine/disk/bitmap.py"
DISK: Final = "machine/disk/disk.py"
FILE: Final = "machine/disk/hostfile.py"
MEMORY: Final = "machine/memory.py"
NBD: Final = "machine/disk/nbd.py"
OVERLAY: Final = "machine/disk/overlay.py"
QCOW2: Final = "machine/disk/qcow2.py"
QUEUE: Final = "machine/disk/queue.py"
RAW: Final = "machine/disk/raw.py"
TESTS: Final = "tests/machine/disk/"

AREA: Final = Area(
    "emulated disk",
    tuple(f"{TESTS}test_{name}.py" for name in (
        "disk", "receive", "queue", "open", "overlay", "media", "faults", "qcow2", "kill")),
    (
        Mutant("a disk's end", DISK, "request.sector + request.sectors > self.sectors", "False"),
        Mutant("a disk's begin", DISK, "if request.sector < 0 or request.sectors", "if request.sectors"),
        Mutant("memory's end", DISK, "or address + part > size", ""),
        Mutant("memory's begin", DISK, "or address < 0 ", ""),
        Mutant("pieces as long as the sectors", DISK, "if length != (0 if", "if False and length != (0 if"),
        Mutant("the depth", DISK, ">= self.depth:", "> self.depth:"),
        Mutant("an abandoned request touches nothing", DISK,
               "if request.abandoned:\n            return errno.EIO\n", "pass\n"),
        Mutant("abandoned while it waits", DISK, "[*self._active, *self._queue]", "[*self._active]"),
        Mutant("abandoned while it works", DISK, "[*self._active, *self._queue]", "[*self._queue]"),
        Mutant("only that owner's", DISK, "if request.owner is owner:", "if True:"),
        Mutant("a read-only disk", DISK, "elif self.read_only:", "elif False:"),
        Mutant("closed: nothing comes any more", DISK, "event.cancel()", "pass"),
        Mutant("receiving drops code", MEMORY,
               "for paddr, length in pieces:\n                self._written(paddr, paddr + length)", "pass"),
        Mutant("receiving and memory's end", MEMORY,
               "or length < 0 or paddr + length > self.size:\n                raise IndexError(f\"{length}",
               "or length < 0:\n                raise IndexError(f\"{length}"),
        Mutant("requests for one sector keep their order", QUEUE, "and not self._follows(index)", ""),
        Mutant("nobody waits for ever", QUEUE, "or now - waiting[0].submitted >= PATIENCE", ""),
        Mutant("a file has one writer", FILE, "(fcntl.LOCK_EX if write else fcntl.LOCK_SH)", "fcntl.LOCK_SH"),
        Mutant("a new file is new", FILE, "| os.O_EXCL", ""),
        Mutant("no pipes", FILE,
               "if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):", "if stat.S_ISDIR(kind):"),
        Mutant("a flush waits for the host", FILE, "os.fdatasync(self.descriptor)", "pass"),
        Mutant("a host that lost data", FILE, "self._lost = True", "pass"),
        Mutant("a short transfer", FILE, "part = _after(part, moved)", "want = 0"),
        Mutant("a file that ends", FILE,
               "if not moved:\n                    raise",
               "if not moved:\n                    return\n                    raise"),
        Mutant("whole sectors", RAW, "or file.size % SECTOR", ""),
        Mutant("a raw flush", RAW, "if self._keeps and not self.read_only:", "if False:"),
        Mutant("a base is only read", OVERLAY, "if not base.read_only:", "if False:"),
        Mutant("data before its bits", OVERLAY, "self._file.flush()\n        if self._bitmap.dirty:",
               "if self._bitmap.dirty:"),
        Mutant("bits before the flush ends", OVERLAY,
               "[page])\n            self._file.flush()", "[page])"),
        Mutant("bits reach the file", OVERLAY, "self._file.write_from(_BITMAP + offset, [page])", "pass"),
        Mutant("an overlay's base", OVERLAY, "if header != _header(base):", "if False:"),
        Mutant("an overlay's header", OVERLAY, "magic != _MAGIC or ", ""),
        Mutant("an overlay's checksum", OVERLAY,
               "or _CRC.unpack_from(found, _HEADER.size)[0] != zlib.crc32(header)", ""),
        Mutant("an overlay's length", OVERLAY, "if file.size != _length(base.sectors):", "if False:"),
        Mutant("the page of the last bit", BITMAP, "(end - 1) // PAGE + 1", "(end - 1) // PAGE"),
        Mutant("no backing file", QCOW2, "if backing:", "if False:"),
        Mutant("no external data", QCOW2, "if features & _EXTERNAL_DATA:", "if False:"),
        Mutant("commas in a name", QCOW2, '.replace(",", ",,")', ""),
        Mutant("qcow2 is not written", "machine/disk/formats.py", "elif read_only or layered:", "elif True:"),
        Mutant("the answer to this question", NBD, "or cookie != self._cookie", ""),
        Mutant("an error of the server", NBD, "if error:\n", "if False:\n"),
        Mutant("the length of an answer", NBD, "or length > _MOST_OPTION", ""),
    ),
)
