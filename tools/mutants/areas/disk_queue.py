"""The way to a disk: what one request of a guest may cost, and whose an error is."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

BITMAP: Final = "machine/disk/bitmap.py"
CACHED: Final = "firmware/disk/cache_queue.py"
CELLO: Final = "firmware/disk/cello.py"
REQUEST: Final = "machine/disk/request.py"
SCHEDULER: Final = "firmware/disk/scheduler.py"

AREA: Final = Area(
    "disk queue",
    ("tests/disk/test_schedulers.py", "tests/disk/test_cache.py", "tests/machine/disk/test_bitmap.py"),
    (
        Mutant("a discard goes whole", SCHEDULER, "0 < chunk * SECTOR < request.moved",
               "0 < chunk < request.sectors"),
        Mutant("a discard moves nothing", REQUEST,
               "self.sectors * SECTOR if self.operation <= Operation.WRITE else 0", "self.sectors * SECTOR"),
        Mutant("a discard is not what the disk can do", CELLO, "moved = request.moved",
               "moved = request.sectors * SECTOR"),
        Mutant("a bad sector is its reader's", CACHED,
               "if within(reading.request, first, end)[1] == len(fill.frames) << SECTORS_SHIFT:", "if True:"),
        Mutant("the bits before whole bytes", BITMAP, "self.set(first, begin * 8 - first)", "pass"),
        Mutant("the bits behind whole bytes", BITMAP,
               "self.set(end * 8, first + count - end * 8)", "pass"),
        Mutant("whole bytes reach the file", BITMAP,
               "self._changed(begin, end)\n            self.set(first", "self.set(first"),
    ),
)
