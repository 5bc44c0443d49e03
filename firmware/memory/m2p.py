"""The machine-to-physical table: for each machine frame the guest frame its owner last named for it.

Guests read it (slot 256 of every 64-bit root); 32-bit guests read a second table of 4-byte entries at
0xF5800000. Both lie in machine frames, 2 MiB aligned. A page of them is made when the first of its entries is
set: until then guests see one page, shared by all, in which every frame is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from firmware.memory.owner import MachineMemory
from firmware.memory.pte import ACCESSED, DIRTY, PRESENT, USER

if TYPE_CHECKING:
    from firmware.memory.heap import FrameHeap
    from firmware.memory.shootdown import Shootdown

INVALID: Final = (1 << 64) - 1
"""INVALID_M2P_ENTRY: the frame is free (mm.h)."""
FREE: Final = 0xFF
"""Every byte of INVALID."""
NEVER: Final = 0x55
"""Every byte of an entry for what is not memory (Xen fills the table with it first)."""
PAGE: Final = 1 << 12
SUPERPAGE: Final = 1 << 21
SUPERPAGE_FRAMES: Final = 512
COMPAT_LIMIT: Final = (0x1_0000_0000 - 0xF580_0000) // 4
"""Frames a 32-bit guest can look up."""
READ_ONLY: Final = PRESENT | USER | ACCESSED | DIRTY


class SparseTable:
    """A table of `width`-byte entries for the first `entries` frames, and the page tables that show it."""

    __slots__ = (
        "_memory",
        "_present",
        "_shift",
        "_shootdown",
        "base",
        "directory",
        "entries",
        "superpages",
        "width",
    )

    def __init__(
        self,
        memory: MachineMemory,
        heap: FrameHeap,
        shootdown: Shootdown,
        entries: int,
        width: int,
        empty: int,
    ) -> None:
        self._memory = memory
        self._shootdown = shootdown
        self.entries = entries
        self.width = width
        self._shift = (PAGE // width).bit_length() - 1
        self.superpages = (entries * width + SUPERPAGE - 1) // SUPERPAGE
        self._present = bytearray(self.superpages * SUPERPAGE_FRAMES)
        self.base = heap.xen_frames(self.superpages * SUPERPAGE_FRAMES, align=SUPERPAGE_FRAMES) << 12
        tables = heap.xen_frames(self.superpages) << 12
        self.directory = tuple(tables + at * PAGE | READ_ONLY & ~DIRTY for at in range(self.superpages))
        """What an L2 table needs to show each 2 MiB of it."""
        shared = (empty << 12 | READ_ONLY).to_bytes(8, "little")
        memory.write(tables, shared * (self.superpages * SUPERPAGE_FRAMES))

    def make(self, mfn: int) -> None:
        """Make the page with the entry of frame `mfn` unless it is there; nobody goes on seeing the shared
        one.
        """
        page = mfn >> self._shift
        if self._present[page]:
            return
        self._present[page] = 1
        at = self.base + page * PAGE
        self._memory.fill(at, PAGE, FREE)
        self._memory.store64((self.directory[0] & -PAGE) + page * 8, at | READ_ONLY)
        self._shootdown.everyone(self._shootdown.clock)

    def there(self, mfn: int) -> bool:
        """Whether the page with the entry of frame `mfn` has been made."""
        return self._present[mfn >> self._shift] != 0

    def put(self, mfn: int, values: np.ndarray) -> None:
        """Set the entries from frame `mfn` on, those that the table has."""
        values = values[: max(self.entries - mfn, 0)]
        if len(values):
            for first in range(mfn >> self._shift, (mfn + len(values) - 1 >> self._shift) + 1):
                self.make(first << self._shift)
            self._memory.write(self.base + mfn * self.width, values.tobytes())


class MachineToPhys:
    """The table and its narrow copy."""

    __slots__ = ("_memory", "compat", "frames", "wide")

    def __init__(self, memory: MachineMemory, heap: FrameHeap, shootdown: Shootdown) -> None:
        self._memory = memory
        self.frames = memory.frames
        empty = heap.xen_frame()
        memory.fill(empty << 12, PAGE, FREE)
        self.wide = SparseTable(memory, heap, shootdown, memory.frames, 8, empty)
        self.compat = SparseTable(memory, heap, shootdown, min(memory.frames, COMPAT_LIMIT), 4, empty)
        self.wide.put(0, np.frombuffer(bytes((NEVER,)) * (heap.first_free * 8), dtype=np.uint64))

    def get(self, mfn: int) -> int:
        """The entry of frame `mfn`."""
        return int(self._memory.q[(self.wide.base >> 3) + mfn]) if self.wide.there(mfn) else INVALID

    def set(self, mfn: int, pfn: int) -> None:
        """Set the entry of frame `mfn` in both tables."""
        wide, compat = self.wide, self.compat
        wide.make(mfn)
        self._memory.store64(wide.base + mfn * 8, pfn)
        if mfn < compat.entries:
            compat.make(mfn)
            self._memory.store32(compat.base + mfn * 4, pfn & 0xFFFF_FFFF)

    def set_range(self, mfn: int, pfn: int, count: int) -> None:
        """Name `count` frames from `mfn` on as guest frames from `pfn` on."""
        self.wide.put(mfn, np.arange(pfn, pfn + count, dtype=np.uint64))
        self.compat.put(mfn, np.arange(pfn, pfn + count, dtype=np.uint32))
