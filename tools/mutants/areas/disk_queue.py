"""The way to a disk: what one request of a guest may cost, and whose an error is."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

BATCH: Final = "firmware/disk/batch.py"
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
        Mutant("nobody waits in a neighbour's place", CACHED,
               "if fill is not None and self._may_wait(reading.client, fill):", "if fill is not None:"),
        Mutant("a lighter one does not hold up a heavier one", CELLO,
               ' and int(mine["weight"]) <= int(theirs["weight"])', ""),
        Mutant("a promise starts when it is made", CELLO, "if self._reserved.get(domain) != before:",
               "if False:"),
        Mutant("intervals are passed over at once", CELLO,
               "count = self._needed() if until_used else 1", "count = 1"),
        Mutant("a batch disk is full at its depth", BATCH, "self._full = in_flight + 1 >= most",
               "self._full = False"),
        Mutant("the bits before whole bytes", BITMAP, "self.set(first, begin * 8 - first)", "pass"),
        Mutant("the bits behind whole bytes", BITMAP,
               "self.set(end * 8, first + count - end * 8)", "pass"),
        Mutant("whole bytes reach the file", BITMAP,
               "self._changed(begin, end)\n            self.set(first", "self.set(first"),
    ),
)
