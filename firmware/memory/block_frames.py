"""Frames that hold cached blocks of disks: memory that no domain owns and every domain may only read.

While the disk fills a frame it is Xen's own. Then it belongs to DOMID_COW, in Xen the owner of shared pages,
and has the type PGT_shared_page with one type reference that stays as long as the frame is here. So no check
of the frame table ever lets it be mapped for writing, typed as a table, granted, pinned or given away: they
all ask for a frame of the caller's own, and a type that nobody else uses. The one way to a mapping is
`enter`.

A mapping is one L1 entry and one reference to the frame. The guest may take the entry away as it likes; it
cannot move it.
"""

from __future__ import annotations

from typing import Final

from firmware.memory.frames import (
    ALLOCATED,
    L1_TABLE,
    ONE,
    SHARED,
    VALID_MASK,
    VALIDATED,
    WRITABLE,
    XEN_HEAP,
)
from firmware.memory.heap import CACHE_TAG
from firmware.memory.owner import DOMID_XEN, MemoryOwner, VCpu
from firmware.memory.pte import ACCESSED, ADDRESS, NO_EXECUTE, PRESENT, USER, adjust_l1
from firmware.memory.types import PageTypes

KEPT: Final = ONE | ALLOCATED
"""The count word of a frame that nobody maps."""


class BlockFrames:
    """Takes frames from the heap and gives them back, and enters them into page tables."""

    __slots__ = ("_heap", "_memory", "_q", "_types")

    def __init__(self, types: PageTypes) -> None:
        self._types = types
        self._heap = types.heap
        self._memory = types.memory
        self._q = types.memory.q

    # Frames

    def take(self) -> int | None:
        """A free frame, Xen's own from now on, to be filled by a disk; None when none is free. Never takes
        what is cached.
        """
        mfn = self._heap.cache_frame()
        if mfn is not None:
            self._fill(mfn)
        return mfn

    def _fill(self, mfn: int) -> None:
        frames = self._types.frames
        frames.owners[mfn] = DOMID_XEN + 1
        frames.counts[mfn] = KEPT | XEN_HEAP
        frames.types[mfn] = ONE | VALIDATED | WRITABLE
        self._heap.xen += 1

    def publish(self, mfn: int) -> None:
        """It is filled: nobody writes it any more."""
        frames = self._types.frames
        frames.types[mfn] = ONE | VALIDATED | SHARED
        frames.owners[mfn] = CACHE_TAG
        frames.counts[mfn] = KEPT
        self._heap.xen -= 1
        self._heap.cached += 1

    def refill(self, mfn: int) -> None:
        """A published frame that was never mapped is to hold another block."""
        self._heap.cached -= 1
        self._fill(mfn)

    def abandon(self, mfn: int) -> None:
        """A frame that was to be filled goes back."""
        self._heap.release_xen(mfn)

    def give_back(self, mfn: int) -> None:
        """A published frame without mappings goes back to the heap."""
        self._types.drop_own_reference(mfn)

    def mapped(self, mfn: int) -> bool:
        """Whether some page table still names a published frame."""
        return bool(self._types.counts[mfn] != KEPT)

    # Mappings

    def slot(self, vcpu: VCpu, address: int, *, is_entry: bool) -> int:
        """Machine address of the caller's own L1 entry that maps the virtual address `address`, or lies at
        the machine address `address`; 0 when that is none.
        """
        at = address if is_entry else vcpu.space.entry_address(address)
        types = self._types
        if at & 7 or not 0 < at >> 12 < types.frames.size:
            return 0
        return at if self._is_table(at >> 12, vcpu.domain.memory) else 0

    def enter(self, at: int, mfn: int, owner: MemoryOwner, *, user: bool) -> None:
        """Have `owner`'s L1 entry at machine address `at` map a published frame, read-only and not for
        execution; what was there is dropped.
        """
        entry = mfn << 12 | PRESENT | ACCESSED | NO_EXECUTE | (USER if user else 0)
        old = self._q[at >> 3]
        self._types.counts[mfn] += ONE
        self._memory.store64(at, adjust_l1(entry, owner.pv32))
        self._types.put_page_from_l1(old)

    def holds(self, at: int, mfn: int, owner: MemoryOwner) -> bool:
        """Whether `owner`'s L1 entry at `at` still maps the frame."""
        return (
            self._is_table(at >> 12, owner)
            and self._q[at >> 3] & (ADDRESS | PRESENT) == mfn << 12 | PRESENT
        )

    def zap(self, at: int, mfn: int, owner: MemoryOwner) -> bool:
        """Make the entry not present, everywhere, and let go of the frame. False, and nothing done, when the
        entry maps something else by now.
        """
        if not self.holds(at, mfn, owner):
            return False
        types = self._types
        self._memory.store64(at, 0)
        types.shootdown.older(owner, types.shootdown.clock, mfn)
        types.put_page(mfn)
        return True

    def _is_table(self, mfn: int, owner: MemoryOwner) -> bool:
        types = self._types
        word = types.types[mfn]
        return types.owners[mfn] == owner.tag and word & VALID_MASK == L1_TABLE | VALIDATED and word >= ONE
