"""The machine-to-physical table: for each machine frame the guest frame its owner last named for it.

It lies in machine frames, 2 MiB aligned, because guests read it (slot 256 of every 64-bit root). 32-bit
guests read a second table of 4-byte entries at 0xF5800000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmware.memory.owner import MachineMemory

if TYPE_CHECKING:
    from firmware.memory.heap import FrameHeap

INVALID: Final = (1 << 64) - 1
"""INVALID_M2P_ENTRY: the frame is free (mm.h)."""
FREE: Final = 0xFF
"""Every byte of INVALID."""
NEVER: Final = 0x55
"""Every byte of an entry for what is not memory (Xen fills the table with it first)."""
SUPERPAGE: Final = 1 << 21
SUPERPAGE_FRAMES: Final = 512
COMPAT_LIMIT: Final = (0x1_0000_0000 - 0xF580_0000) // 4
"""Frames a 32-bit guest can look up."""


class MachineToPhys:
    """The table and its narrow copy."""

    __slots__ = ("_compat", "_compat_entries", "_memory", "_table", "frames", "superpages", "wide")

    def __init__(self, memory: MachineMemory, heap: FrameHeap, *, wide: bool = True) -> None:
        self._memory = memory
        self.frames = memory.frames
        self.superpages = (memory.frames * 8 + SUPERPAGE - 1) // SUPERPAGE
        self._table = heap.xen_frames(self.superpages * SUPERPAGE_FRAMES, align=SUPERPAGE_FRAMES) << 12
        self._compat_entries = min(memory.frames, COMPAT_LIMIT)
        size = (self._compat_entries * 4 + SUPERPAGE - 1) // SUPERPAGE
        self._compat = heap.xen_frames(size * SUPERPAGE_FRAMES, align=SUPERPAGE_FRAMES) << 12
        self.wide = wide
        memory.fill(self._table, heap.first_free * 8, NEVER)
        memory.fill(self._table + heap.first_free * 8, (memory.frames - heap.first_free) * 8, FREE)
        memory.fill(self._compat, self._compat_entries * 4, FREE)

    @property
    def base(self) -> int:
        """Machine address of the table."""
        return self._table

    @property
    def compat_base(self) -> int:
        """Machine address of the table of 4-byte entries."""
        return self._compat

    @property
    def compat_superpages(self) -> int:
        return (self._compat_entries * 4 + SUPERPAGE - 1) // SUPERPAGE

    def get(self, mfn: int) -> int:
        """The entry of frame `mfn`."""
        return int(self._memory.q[(self._table >> 3) + mfn])

    def set(self, mfn: int, pfn: int) -> None:
        """Set the entry of frame `mfn` in both tables."""
        self._memory.store64(self._table + mfn * 8, pfn)
        if mfn < self._compat_entries:
            self._memory.store32(self._compat + mfn * 4, pfn & 0xFFFF_FFFF)

    def set_range(self, mfn: int, pfn: int, count: int) -> None:
        """Name `count` frames from `mfn` on as guest frames from `pfn` on."""
        import numpy as np

        self._memory.write(self._table + mfn * 8, np.arange(pfn, pfn + count, dtype=np.uint64).tobytes())
        narrow = min(count, self._compat_entries - mfn)
        if narrow > 0:
            self._memory.write(
                self._compat + mfn * 4, np.arange(pfn, pfn + narrow, dtype=np.uint32).tobytes()
            )
