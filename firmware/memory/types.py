"""Page types: what a frame may be used for, and how often it is used so.

A frame has one type at a time and changes it only while nobody uses it (type count 0). Becoming a page table
or a descriptor table means being checked entry by entry. A change of type follows one order: take the
reference, flush every core that may hold an old translation, then look at the contents (the reverse was
XSA-401).

Functions that can fail return 0 or a negative errno, as Xen's in `mm.c` do.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from firmware.abi.errno import EBUSY, EINVAL, EPERM
from firmware.memory.frames import (
    ALLOCATED,
    COUNT_LIMIT,
    COUNT_SHIFT,
    FOREIGN,
    KIND_MASK,
    L1_TABLE,
    L4_TABLE,
    NONE,
    ONE,
    PAE_XEN_L2,
    PARTIAL,
    PINNED,
    SHARED,
    TYPE_MASK,
    VALID_MASK,
    VALIDATED,
    WRITABLE,
    XEN_HEAP,
    FrameTable,
)
from firmware.memory.heap import FrameHeap
from firmware.memory.owner import DOMID_IO, MachineMemory, MemoryOwner, VCpu
from firmware.memory.pte import ADDRESS, INVALID_FRAME, L1_DISALLOWED, PRESENT, RW
from firmware.memory.shootdown import Shootdown
from firmware.memory.validate import INTERRUPTED, Validator
from firmware.memory.xen_slots import XenSlots

WRITABLE_VALIDATED: Final = WRITABLE | VALIDATED
IO_TAG: Final = DOMID_IO + 1
RELEASE_STEP: Final = 1 << 16
"""Frames of a dead domain handled in one step."""
STEP: Final = 1 << 14
"""Work of one call before it is restarted: entries looked at. An L1 table is never divided (as in Xen)."""
UNLIMITED: Final = 1 << 62


class PageTypes:
    """References and type references to frames: get and put, promotion and demotion."""

    __slots__ = (
        "_by_tag",
        "counts",
        "frames",
        "heap",
        "memory",
        "old",
        "owners",
        "shootdown",
        "slots",
        "stamps",
        "step",
        "types",
        "unfinished",
        "validator",
        "work",
    )

    def __init__(
        self,
        memory: MachineMemory,
        frames: FrameTable,
        heap: FrameHeap,
        shootdown: Shootdown,
        slots: XenSlots,
    ) -> None:
        self.memory = memory
        self.frames = frames
        self.heap = heap
        self.shootdown = shootdown
        self.slots = slots
        self.owners = frames.owners
        self.counts = frames.counts
        self.types = frames.types
        self.stamps = frames.stamps
        self._by_tag: dict[int, MemoryOwner] = {}
        self.step = STEP
        self.work = UNLIMITED
        """What the running call may still do; below 1, checks and destructions stop."""
        self.old = 0
        """A table of the running call that is to be taken apart: one reference, and PARTIAL (Xen's
        old_guest_table).
        """
        self.unfinished: dict[tuple[int, int], int] = {}
        """The same of vCPUs whose call was interrupted, by (domain, vCPU)."""
        self.validator = Validator(self)

    # Owners

    def add_owner(self, owner: MemoryOwner) -> None:
        """Make `owner` known: its frames can be typed from now on. ValueError when its id is taken."""
        if owner.tag in self._by_tag:
            raise ValueError(f"domain {owner.id} owns memory already")
        self._by_tag[owner.tag] = owner

    def remove_owner(self, owner: MemoryOwner) -> None:
        """Forget a dead owner; frames others still have mapped keep it known until the last of them goes."""
        owner.dying = True
        if not owner.pages:
            self._by_tag.pop(owner.tag, None)

    def owner_of(self, mfn: int) -> MemoryOwner | None:
        """The domain that owns frame `mfn`, when it is a domain."""
        return self._by_tag.get(self.owners[mfn])

    # References

    def get_page(self, mfn: int, owner: MemoryOwner) -> bool:
        """Take a reference to frame `mfn` if `owner` owns it (get_page_from_mfn)."""
        if mfn >= self.frames.size or self.owners[mfn] != owner.tag:
            return False
        count = self.counts[mfn]
        if count < ONE or count >= COUNT_LIMIT:
            return False
        self.counts[mfn] = count + ONE
        return True

    def put_page(self, mfn: int) -> None:
        """Drop a reference; the last one frees the frame."""
        count = self.counts[mfn]
        if count < 2 * ONE:
            self._free(mfn, count)
        else:
            self.counts[mfn] = count - ONE

    def drop_own_reference(self, mfn: int) -> None:
        """Drop the reference the owner itself holds, if it still does (put_page_alloc_ref)."""
        if self.counts[mfn] & ALLOCATED:
            self.counts[mfn] &= ~ALLOCATED
            self.put_page(mfn)

    def steal(self, mfn: int, owner: MemoryOwner) -> int:
        """Take frame `mfn` from `owner`, who must hold its only reference; 0 or -EINVAL (steal_page).

        The frame then has no owner and no reference: assign it anew or put it back.
        """
        if mfn >= self.frames.size or self.owners[mfn] != owner.tag:
            return -EINVAL
        if self.counts[mfn] != ONE | ALLOCATED:
            return -EINVAL
        self.counts[mfn] = 0
        if self.types[mfn] & TYPE_MASK != NONE:
            self.stamps[mfn] = self.shootdown.clock
        self.types[mfn] = NONE
        self.owners[mfn] = 0
        owner.pages -= 1
        return 0

    def _free(self, mfn: int, count: int) -> None:
        owner = self._by_tag.get(self.owners[mfn])
        if owner is not None:
            if count & XEN_HEAP:
                owner.xen_pages -= 1
            else:
                owner.pages -= 1
                if owner.dying and not owner.pages:
                    self._by_tag.pop(owner.tag, None)
        self.heap.release(mfn)

    # Type references

    def get_type(self, mfn: int, kind: int) -> int:
        """Take a type reference; `kind` is a type, for an L2 table perhaps with PAE_XEN_L2. 0, a negative
        errno, or INTERRUPTED: the frame has then become PARTIAL, and the same call goes on with it.
        """
        word = self.types[mfn]
        if word < ONE:
            return self._first(mfn, word, kind)
        if word & KIND_MASK != kind or not word & VALIDATED or word >= COUNT_LIMIT:
            return self._resume(mfn, kind) if word & (KIND_MASK | PARTIAL) == kind | PARTIAL else -EINVAL
        self.types[mfn] = word + ONE
        return 0

    def _first(self, mfn: int, word: int, kind: int) -> int:
        """Type count 0 to 1: perhaps a change of type, then a flush, then validation."""
        types = self.types
        changed = word & TYPE_MASK != kind
        foreign = word & FOREIGN
        if changed:
            word &= ~(TYPE_MASK | VALIDATED | FOREIGN)
            word |= kind
        types[mfn] = word + ONE
        if changed and foreign:
            self.shootdown.everyone(self.stamps[mfn], mfn)
        elif changed:
            owner = self._by_tag.get(self.owners[mfn])
            if owner is not None:
                self.shootdown.older(owner, self.stamps[mfn], mfn)
        if word & VALIDATED:
            return 0
        if kind in (WRITABLE, SHARED):
            types[mfn] |= VALIDATED
            return 0
        return self._check(mfn, kind)

    def _check(self, mfn: int, kind: int) -> int:
        """Look at the contents (validate_page). What stops half way keeps the type, a type reference and a
        reference; what fails and is not for `end` to take apart loses the type.
        """
        failure = self.validator.promote(mfn, kind)
        if not failure:
            self.types[mfn] |= VALIDATED
        elif failure == INTERRUPTED or self.old == mfn:
            self.types[mfn] |= PARTIAL
            self.counts[mfn] += ONE
        else:
            self.types[mfn] = NONE
            self.stamps[mfn] = self.shootdown.clock
        return failure

    def _resume(self, mfn: int, kind: int) -> int:
        """Go on checking a PARTIAL table; the type reference left on it is the caller's now."""
        self.types[mfn] &= ~PARTIAL
        failure = self._check(mfn, kind)
        self.put_page(mfn)
        return failure

    def put_type(self, mfn: int, parent: int = -1) -> int:
        """Drop a type reference; a page table that loses its last is taken apart. 0, or INTERRUPTED: it is
        PARTIAL, and `put_partial` goes on with it.

        `parent` is the table whose entry held the reference, when it was one: linear page tables are counted.
        """
        word = self.types[mfn]
        linear = parent >= 0 and (word ^ self.types[parent]) & TYPE_MASK == 0
        interrupted = 0
        if word >= 2 * ONE:
            self.types[mfn] = word - ONE
        elif L1_TABLE <= word & TYPE_MASK <= L4_TABLE and word & VALIDATED:
            self.types[mfn] = word & ~VALIDATED
            interrupted = self._take_apart(mfn, word)
        else:
            self._untype(mfn, word)
        if linear:
            self.validator.drop_linear(mfn, parent)
        return interrupted

    def put_partial(self, mfn: int) -> int:
        """Go on taking table `mfn` apart if it still is PARTIAL: 0 or INTERRUPTED, as `put_type`."""
        word = self.types[mfn]
        if not word & PARTIAL:
            return 0
        self.types[mfn] = word & ~PARTIAL
        interrupted = self._take_apart(mfn, word)
        self.put_page(mfn)
        return interrupted

    def _take_apart(self, mfn: int, word: int) -> int:
        """Let go of what a table's entries hold, then of the type reference (_put_final_page_type)."""
        interrupted = self.validator.demote(mfn, word)
        if interrupted:
            self.types[mfn] |= PARTIAL
            self.counts[mfn] += ONE
        else:
            self._untype(mfn, self.types[mfn])
        return interrupted

    def _untype(self, mfn: int, word: int) -> None:
        self.stamps[mfn] = self.shootdown.clock
        self.types[mfn] = (word - ONE) & ~PAE_XEN_L2

    def get_page_and_type(self, mfn: int, owner: MemoryOwner, kind: int) -> int:
        """A reference and a type reference, or neither. 0, a negative errno or INTERRUPTED."""
        if not self.get_page(mfn, owner):
            return -EINVAL
        failure = self.get_type(mfn, kind)
        if failure and self.old != mfn:
            self.put_page(mfn)
        return failure

    def put_page_and_type(self, mfn: int, parent: int = -1) -> int:
        """Drop both: 0, or INTERRUPTED, and the reference stays (see `put_type`)."""
        if self.put_type(mfn, parent):
            return INTERRUPTED
        self.put_page(mfn)
        return 0

    # Work that was interrupted

    def begin(self, vcpu: VCpu) -> bool:
        """A call that may be interrupted begins: what the vCPU's calls before it left is finished first.
        False when that took all the time there is.
        """
        self.work = self.step
        if not self.unfinished:
            return True
        self.old = self.unfinished.pop((vcpu.domain.id, vcpu.id), 0)
        return not self.old or self.end(vcpu)

    def end(self, vcpu: VCpu) -> bool:
        """The call's own tables are done with: take apart the one it replaced or could not check, if any.
        False when that is not done yet, and another call of the vCPU must go on with it.
        """
        mfn = self.old
        if not mfn:
            return True
        self.old = 0
        if self.put_partial(mfn):
            self.unfinished[vcpu.domain.id, vcpu.id] = mfn
            return False
        self.put_page(mfn)
        return True

    def replaced(self, mfn: int, parent: int = -1) -> None:
        """Drop both references to a table that was in use until now, as far as it goes: `end` does the rest
        (PTF_defer, old_guest_table).
        """
        if self.put_page_and_type(mfn, parent):
            self.old = mfn

    def take_table(self, mfn: int, owner: MemoryOwner, kind: int, work: int = UNLIMITED) -> int:
        """`get_page_and_type` for callers that are no page-table calls: what fails is taken apart at once. 0,
        a negative errno, or, when `work` did not suffice, INTERRUPTED.
        """
        self.work = work
        failure = self.get_page_and_type(mfn, owner, kind)
        self.work = UNLIMITED
        old, self.old = self.old, 0
        if old:
            self.put_partial(old)
            self.put_page(old)
        return failure

    def give_up(self, mfn: int) -> None:
        """`put_page_and_type` without interruption."""
        self.work = UNLIMITED
        self.put_page_and_type(mfn)

    # L1 entries

    def get_page_from_l1(self, entry: int, owner: MemoryOwner, pages: MemoryOwner | None) -> int:
        """Take what the present L1 entry of a table of `owner` refers to; 0 or a negative errno
        (get_page_from_l1e).

        `pages` is whose frames may be mapped; None stands for DOMID_IO, device memory.
        """
        if entry & L1_DISALLOWED:
            return -EINVAL
        mfn = (entry & ADDRESS) >> 12
        if mfn >= self.frames.size:
            return -EINVAL if mfn == INVALID_FRAME else -EPERM
        tag = self.owners[mfn]
        if tag == IO_TAG:
            return -EPERM
        if pages is None or tag != pages.tag:
            return -EBUSY
        count = self.counts[mfn]
        if count < ONE or count >= COUNT_LIMIT:
            return -EBUSY
        self.counts[mfn] = count + ONE
        if entry & RW:
            word = self.types[mfn]
            if word & VALID_MASK == WRITABLE_VALIDATED and ONE <= word < COUNT_LIMIT:
                self.types[mfn] = word + ONE
            elif self.get_type(mfn, WRITABLE):
                self.put_page(mfn)
                return -EBUSY
        return 0

    def put_page_from_l1(self, entry: int) -> None:
        """Drop what an L1 entry held (put_page_from_l1e). An LDT page that nothing shows any more stays: real
        Xen 4.17 was seen to keep it, as it is not built to page LDTs out (CONFIG_PV_LDT_PAGING).
        """
        if entry & PRESENT:
            mfn = (entry & ADDRESS) >> 12
            if entry & RW:
                word = self.types[mfn]
                if word >= 2 * ONE:
                    self.types[mfn] = word - ONE
                else:
                    self.put_type(mfn)
            count = self.counts[mfn]
            if count >= 2 * ONE:
                self.counts[mfn] = count - ONE
            else:
                self.put_page(mfn)

    # Pins and the end of a domain

    def pin(self, mfn: int, owner: MemoryOwner, kind: int) -> int:
        """Pin a table of any level: it keeps its type until unpinned. 0, a negative errno or INTERRUPTED."""
        failure = self.get_page_and_type(mfn, owner, kind)
        if failure:
            return failure
        if self.types[mfn] & PINNED:
            self.put_page_and_type(mfn)
            return -EINVAL
        self.types[mfn] |= PINNED
        return 0

    def unpin(self, mfn: int, owner: MemoryOwner) -> int:
        """Take a pin away. 0 or -EINVAL."""
        if not self.get_page(mfn, owner):
            return -EINVAL
        failure = 0
        if self.types[mfn] & PINNED:
            self.types[mfn] &= ~PINNED
            self.replaced(mfn)
        else:
            failure = -EINVAL
        self.put_page(mfn)
        return failure

    def pin_root(self, mfn: int, owner: MemoryOwner) -> int:
        """Pin the root the builder made: an L4 table, or a PAE guest's L3 table. 0 or a negative errno."""
        failure = self.take_table(mfn, owner, L4_TABLE - 1 if owner.pv32 else L4_TABLE)
        if not failure:
            self.types[mfn] |= PINNED
        return failure

    def release_all(self, owner: MemoryOwner) -> bool:
        """Take everything from a dead domain, whose vCPUs run nowhere and hold no root any more, a step at a
        time.

        Pins go first, then tables half checked or half taken apart, then the domain's own references. True
        while there is more to do. What other domains still have mapped (grants) stays until they let go of
        it, and then returns to the heap by itself.
        """
        owner.dying = True
        frames = self.frames
        self.work = RELEASE_STEP
        mine = (frames.owner_array == owner.tag).nonzero()[0]
        pinned = mine[(frames.type_array[mine] & np.uint64(PINNED)) != 0].tolist()
        for mfn in pinned:
            self.types[mfn] &= ~PINNED
            if self.put_page_and_type(mfn):
                self.put_page(mfn)
            if self.work <= 0:
                return True
        for key in [key for key in self.unfinished if key[0] == owner.id]:
            self.put_page(self.unfinished.pop(key))
        for mfn in mine[(frames.type_array[mine] & np.uint64(PARTIAL)) != 0].tolist():
            if self.put_partial(mfn):
                return True
        for mfn in [mfn for mfn in frames.lost if self.owners[mfn] == owner.tag]:
            for _ in range(frames.lost.pop(mfn)):
                self.put_page(mfn)
        held = mine[(frames.count_array[mine] & np.uint64(ALLOCATED)) != 0].tolist()
        for mfn in held[:RELEASE_STEP]:
            self.drop_own_reference(mfn)
        return len(held) > RELEASE_STEP

    def describe(self, mfn: int) -> str:
        """One frame's state, for reports."""
        word, count = self.types[mfn], self.counts[mfn]
        return (
            f"frame {mfn:#x}: owner {self.frames.owner_of(mfn)}, references {count >> COUNT_SHIFT}, "
            f"type {word & TYPE_MASK} x {word >> COUNT_SHIFT}, flags {word & 0xF8:#x}"
        )
