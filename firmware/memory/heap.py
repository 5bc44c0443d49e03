"""Free frames, and who gets them.

Free runs are kept sorted and merged, so that an aligned run of any order is found whenever one exists. A
frame that comes back is cleared before it is given out again, and no core keeps an old owner's translation of
it.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from firmware.memory.frames import (
    ALLOCATED,
    DIRTY,
    NO_OWNER,
    NONE,
    ONE,
    VALIDATED,
    WRITABLE,
    XEN_HEAP,
    FrameTable,
)
from firmware.memory.m2p import INVALID
from firmware.memory.owner import DOMID_COW, DOMID_IO, DOMID_XEN, MachineMemory, MemoryOwner

if TYPE_CHECKING:
    from firmware.memory.m2p import MachineToPhys
    from firmware.memory.shootdown import Shootdown

LOW_FRAMES = 0x100
"""The first MiB of a PC is not memory to Xen: device space, owned by DOMID_IO."""
CACHE_TAG: Final = DOMID_COW + 1
"""Owner tag of the frames that cached blocks lie in: nobody's memory, lent until somebody needs it."""


class Keeper(Protocol):
    """Who keeps the frames of CACHE_TAG, and gives them back with `FrameHeap.release` when asked."""

    def shrink(self, count: int) -> None:
        """Give back so many frames, or all there are."""

    def surrender(self, frames: list[int]) -> None:
        """Give back these frames."""


class FrameHeap:
    """The frames nobody owns."""

    __slots__ = (
        "_ends",
        "_frames",
        "_memory",
        "_shootdown",
        "_starts",
        "cached",
        "first_free",
        "free",
        "keeper",
        "m2p",
        "total",
        "xen",
    )

    def __init__(
        self, memory: MachineMemory, frames: FrameTable, shootdown: Shootdown, first_free: int
    ) -> None:
        self._memory = memory
        self._frames = frames
        self._shootdown = shootdown
        self._starts = [first_free]
        self._ends = [frames.size]
        self.free = frames.size - first_free
        self.total = frames.size
        self.first_free = first_free
        self.xen = 0
        self.cached = 0
        """Frames that cached blocks lie in; they are given back when they are needed."""
        self.keeper: Keeper | None = None
        self.m2p: MachineToPhys | None = None
        low = min(LOW_FRAMES, first_free)
        frames.owner_array[:low] = DOMID_IO + 1
        frames.count_array[:low] = ONE | ALLOCATED
        frames.owner_array[low:first_free] = DOMID_XEN + 1
        frames.count_array[low:first_free] = ONE | ALLOCATED | XEN_HEAP
        self.xen = first_free

    @property
    def available(self) -> int:
        """Frames that domains can have: free ones and cached ones."""
        return self.free + self.cached

    def run(self, count: int, align: int = 1, below: int | None = None) -> int | None:
        """Take `count` neighbouring free frames below frame `below`, the first a multiple of `align`.

        None when there is no such run, and none with cached frames given back.
        """
        limit = self._frames.size if below is None else below
        first = self._find(count, align, limit)
        if first is None and self.cached and self._make_room(count, align, limit):
            first = self._find(count, align, limit)
        return first

    def _find(self, count: int, align: int, limit: int) -> int | None:
        starts, ends = self._starts, self._ends
        for index in range(len(starts)):
            start = starts[index]
            first = (start + align - 1) // align * align
            end = min(ends[index], limit)
            if first + count <= end:
                self._cut(index, first, first + count)
                return first
        return None

    def allocate(self, owner: MemoryOwner, count: int) -> list[int]:
        """Give `owner` `count` cleared frames, neighbours where possible; MemoryError when there are not so
        many.

        The owner's allowance is not looked at here: see `assign`.
        """
        if count > self.free and self.keeper is not None:
            self.keeper.shrink(count - self.free)
        if count > self.free:
            raise MemoryError(f"{count} frames wanted, {self.free} are free")
        taken: list[int] = []
        while len(taken) < count:
            index = self._largest(count - len(taken))
            start = self._starts[index]
            end = min(self._ends[index], start + count - len(taken))
            self._cut(index, start, end)
            self.assign(owner, start, end - start)
            taken.extend(range(start, end))
        return taken

    def assign(self, owner: MemoryOwner, first: int, count: int) -> None:
        """Make `count` frames taken with `run` the owner's, cleared, one reference each (its own)."""
        self._clean(first, count)
        frames = self._frames
        if count == 1:
            frames.types[first] = NONE
            frames.owners[first] = owner.tag
            frames.counts[first] = ONE | ALLOCATED
        else:
            frames.type_array[first : first + count] = NONE
            frames.owner_array[first : first + count] = owner.tag
            frames.count_array[first : first + count] = ONE | ALLOCATED
        owner.pages += count

    def xen_frame(self) -> int:
        """One cleared frame for Xen itself; MemoryError when there is none."""
        return self.xen_frames(1)

    def xen_frames(self, count: int, align: int = 1) -> int:
        """Neighbouring cleared frames for Xen itself; the first one's number. MemoryError when there is no
        such run.
        """
        first = self.run(count, align)
        if first is None:
            raise MemoryError(f"no {count} neighbouring free frames")
        self._clean(first, count)
        frames = self._frames
        frames.type_array[first : first + count] = NONE
        frames.owner_array[first : first + count] = DOMID_XEN + 1
        frames.count_array[first : first + count] = ONE | ALLOCATED | XEN_HEAP
        self.xen += count
        return first

    def cache_frame(self) -> int | None:
        """Take a free frame for a cached block, the last there is, so that the runs stay whole; None when
        none is free. No core has a translation of it, but it may still hold somebody's data: it is for a
        disk to fill.
        """
        if not self._ends:
            return None
        mfn = self._ends[-1] - 1
        frames = self._frames
        if frames.counts[mfn] & DIRTY:
            self._shootdown.everyone(frames.stamps[mfn], mfn)
        self._cut(len(self._ends) - 1, mfn, mfn + 1)
        return mfn

    def share_with(self, mfn: int, owner: MemoryOwner, *, writable: bool = True) -> None:
        """Let `owner` map Xen's frame `mfn`: it counts as the owner's, and its type never changes."""
        frames = self._frames
        frames.owners[mfn] = owner.tag
        frames.counts[mfn] = ONE | ALLOCATED | XEN_HEAP
        frames.types[mfn] = (ONE | VALIDATED | WRITABLE) if writable else (ONE | VALIDATED | NONE)
        owner.xen_pages += 1

    def mapped(self, mfn: int) -> bool:
        """Whether a shared frame has references beyond the one that keeps it shared."""
        count = self._frames.counts[mfn]
        return count >= (2 * ONE if count & ALLOCATED else ONE)

    def keep_shared(self, mfn: int) -> None:
        """A mapped frame that its domain had given up is the domain's again."""
        count = self._frames.counts[mfn]
        if not count & ALLOCATED:
            self._frames.counts[mfn] = count + ONE | ALLOCATED

    def unshare(self, mfn: int, owner: MemoryOwner) -> None:
        """Give back a frame that was shared with `owner` and is not mapped."""
        if self._frames.owners[mfn] == owner.tag:
            owner.xen_pages -= 1
        self.release_xen(mfn)

    def release_xen(self, mfn: int) -> None:
        """Give back a frame of `xen_frame`; nothing may refer to it any more."""
        self._frames.stamps[mfn] = self._shootdown.clock
        self.xen -= 1
        self._put_back(mfn, 1)

    def release(self, mfn: int) -> None:
        """Frame `mfn` lost its last reference: back to the heap, or, for a shared frame of Xen's, back to
        Xen.
        """
        frames = self._frames
        if frames.counts[mfn] & XEN_HEAP:
            frames.owners[mfn] = DOMID_XEN + 1
            frames.counts[mfn] = ONE | ALLOCATED | XEN_HEAP
            frames.types[mfn] = NONE
            return
        frames.stamps[mfn] = self._shootdown.clock
        if frames.owners[mfn] == CACHE_TAG:
            self.cached -= 1
        elif self.m2p is not None:
            self.m2p.set(mfn, INVALID)
        self._put_back(mfn, 1)

    def restore(self, owner: MemoryOwner, mfn: int) -> None:
        """Give a frame taken with `PageTypes.steal` back to its owner, contents and all."""
        frames = self._frames
        frames.owners[mfn] = owner.tag
        frames.counts[mfn] = ONE | ALLOCATED
        owner.pages += 1

    def give_back(self, first: int, count: int) -> None:
        """Return frames taken with `run` that were never assigned."""
        self._put_back(first, count, touched=False)

    def runs(self) -> list[tuple[int, int]]:
        """The free runs, as (first, past the last)."""
        return list(zip(self._starts, self._ends, strict=True))

    def _make_room(self, count: int, align: int, limit: int) -> bool:
        """Have cached frames given back so that there is such a run; False when there cannot be one."""
        keeper = self.keeper
        if keeper is None:
            return False
        if count == align == 1 and limit >= self._frames.size:
            keeper.shrink(1)
            return True
        usable = self._frames.owner_array[:limit] == CACHE_TAG
        for start, end in zip(self._starts, self._ends, strict=True):
            usable[start:end] = True
        before = np.concatenate(([0], np.cumsum(usable)))
        firsts = np.arange(0, max(limit - count + 1, 0), align)
        found = firsts[before[firsts + count] - before[firsts] == count]
        if not len(found):
            return False
        window = slice(int(found[0]), int(found[0]) + count)
        cached = np.flatnonzero(self._frames.owner_array[window] == CACHE_TAG) + window.start
        keeper.surrender(cached.tolist())
        return True

    def _clean(self, first: int, count: int) -> None:
        frames = self._frames
        if count == 1:
            if frames.counts[first] & DIRTY:
                self._shootdown.everyone(frames.stamps[first], first)
                self._memory.fill(first << 12, 4096)
            return
        dirty = np.flatnonzero(frames.count_array[first : first + count] & np.uint64(DIRTY))
        if len(dirty):
            self._shootdown.everyone(int(frames.stamp_array[first : first + count].max()))
            for offset in dirty.tolist():
                self._memory.fill((first + offset) << 12, 4096)

    def _put_back(self, mfn: int, count: int, *, touched: bool = True) -> None:
        frames = self._frames
        if touched:
            frames.types[mfn] = NONE
            frames.owners[mfn] = NO_OWNER
            frames.counts[mfn] = DIRTY
        starts, ends = self._starts, self._ends
        index = bisect_right(starts, mfn)
        end = mfn + count
        joins_left = index > 0 and ends[index - 1] == mfn
        joins_right = index < len(starts) and starts[index] == end
        if joins_left and joins_right:
            ends[index - 1] = ends[index]
            del starts[index], ends[index]
        elif joins_left:
            ends[index - 1] = end
        elif joins_right:
            starts[index] = mfn
        else:
            starts.insert(index, mfn)
            ends.insert(index, end)
        self.free += count

    def _cut(self, index: int, first: int, end: int) -> None:
        starts, ends = self._starts, self._ends
        start, stop = starts[index], ends[index]
        if start == first and stop == end:
            del starts[index], ends[index]
        elif start == first:
            starts[index] = end
        elif stop == end:
            ends[index] = first
        else:
            ends[index] = first
            starts.insert(index + 1, end)
            ends.insert(index + 1, stop)
        self.free -= end - first

    def _largest(self, count: int) -> int:
        starts, ends = self._starts, self._ends
        best, size = 0, -1
        for index in range(len(starts)):
            length = ends[index] - starts[index]
            if length >= count:
                return index
            if length > size:
                best, size = index, length
        return best
