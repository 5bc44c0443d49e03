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
from firmware.memory.owner import DOMID_IO, MachineMemory, MemoryOwner
from firmware.memory.pte import ADDRESS, INVALID_FRAME, L1_DISALLOWED, PRESENT, RW
from firmware.memory.shootdown import Shootdown
from firmware.memory.validate import Validator
from firmware.memory.xen_slots import XenSlots

WRITABLE_VALIDATED: Final = WRITABLE | VALIDATED
IO_TAG: Final = DOMID_IO + 1
RELEASE_STEP: Final = 1 << 16
"""Frames of a dead domain handled in one step."""


class PageTypes:
    """References and type references to frames: get and put, promotion and demotion."""

    __slots__ = (
        "_by_tag",
        "counts",
        "frames",
        "heap",
        "memory",
        "owners",
        "shootdown",
        "slots",
        "stamps",
        "types",
        "validator",
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
        """Take a type reference; `kind` is a type, for an L2 table perhaps with PAE_XEN_L2. 0 or a negative
        errno.
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
        failure = self.validator.promote(mfn, kind)
        if failure:
            self.validator.abandon(mfn)
            return failure
        types[mfn] |= VALIDATED
        return 0

    def _resume(self, mfn: int, kind: int) -> int:
        """Go on checking a table where it once failed; the type reference left on it is the caller's now."""
        self.types[mfn] &= ~PARTIAL
        failure = self.validator.promote(mfn, kind)
        self.put_page(mfn)
        if failure:
            self.validator.abandon(mfn)
        else:
            self.types[mfn] |= VALIDATED
        return failure

    def put_type(self, mfn: int, parent: int = -1) -> None:
        """Drop a type reference; a page table that loses its last is taken apart.

        `parent` is the table whose entry held the reference, when it was one: linear page tables are counted.
        """
        word = self.types[mfn]
        linear = parent >= 0 and (word ^ self.types[parent]) & TYPE_MASK == 0
        if word < 2 * ONE:
            if L1_TABLE <= word & TYPE_MASK <= L4_TABLE and word & VALIDATED:
                self.types[mfn] = word & ~VALIDATED
                self.validator.demote(mfn, word)
                word = self.types[mfn]
            self.stamps[mfn] = self.shootdown.clock
            self.types[mfn] = (word - ONE) & ~PAE_XEN_L2
        else:
            self.types[mfn] = word - ONE
        if linear:
            self.validator.drop_linear(mfn, parent)

    def get_page_and_type(self, mfn: int, owner: MemoryOwner, kind: int) -> int:
        """A reference and a type reference, or neither. 0 or a negative errno."""
        if not self.get_page(mfn, owner):
            return -EINVAL
        failure = self.get_type(mfn, kind)
        if failure:
            self.put_page(mfn)
        return failure

    def put_page_and_type(self, mfn: int, parent: int = -1) -> None:
        """Drop both."""
        self.put_type(mfn, parent)
        self.put_page(mfn)

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
        """Drop what an L1 entry held (put_page_from_l1e)."""
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
        """Pin a table of any level: it keeps its type until unpinned. 0 or a negative errno."""
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
            self.put_page_and_type(mfn)
        else:
            failure = -EINVAL
        self.put_page(mfn)
        return failure

    def pin_root(self, mfn: int, owner: MemoryOwner) -> int:
        """Pin the root the builder made: an L4 table, or a PAE guest's L3 table. 0 or a negative errno."""
        return self.pin(mfn, owner, L4_TABLE - 1 if owner.pv32 else L4_TABLE)

    def release_all(self, owner: MemoryOwner) -> bool:
        """Take everything from a dead domain, whose vCPUs run nowhere and hold no root any more, a step at a
        time.

        Pins go first, then the domain's own references. True while there is more to do. What other domains
        still have mapped (grants) stays until they let go of it, and then returns to the heap by itself.
        """
        owner.dying = True
        frames = self.frames
        self.validator.find_lost(owner)
        mine = (frames.owner_array == owner.tag).nonzero()[0]
        pinned = mine[(frames.type_array[mine] & np.uint64(PINNED)) != 0].tolist()
        for mfn in pinned[:RELEASE_STEP]:
            self.types[mfn] &= ~PINNED
            self.put_page_and_type(mfn)
        if pinned:
            return True
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
