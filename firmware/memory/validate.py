"""Promotion and demotion of whole tables: every entry checked and its references taken, or dropped.

The usual L1 table is done in bulk with numpy; whenever anything in it is out of the ordinary, the entries are
gone through one by one in order, so that errors and what was changed before them are Xen's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from firmware.abi.errno import EINVAL, ERESTART
from firmware.memory.frames import (
    COUNT_LIMIT,
    KIND_MASK,
    L1_TABLE,
    L2_TABLE,
    L3_TABLE,
    L4_TABLE,
    ONE,
    PAE_XEN_L2,
    SEGMENT_DESCRIPTORS,
    TYPE_MASK,
    VALID_MASK,
    VALIDATED,
    WRITABLE,
)
from firmware.memory.owner import MemoryOwner
from firmware.memory.pte import (
    ACCESSED,
    ADDRESS,
    COMPAT_L3_DISALLOWED,
    GLOBAL,
    GUEST_KERNEL,
    L1_DISALLOWED,
    PRESENT,
    RW,
    TABLE_DISALLOWED,
    USER,
    adjust_l1,
    adjust_l2,
    adjust_l3,
    adjust_l4,
)
from firmware.memory.segment import checked
from firmware.memory.xen_slots import COMPAT_FIRST_XEN_SLOT, FIRST_XEN_SLOT, LAST_XEN_SLOT

if TYPE_CHECKING:
    from firmware.memory.types import PageTypes

ENTRIES: Final = 512
BULK: Final = 24
"""With fewer present entries than this a loop beats numpy."""
TABLE_WORK: Final = 8
"""What going through a table costs besides its entries, in units of `PageTypes.work`."""
INTERRUPTED: Final = -ERESTART
"""What a check or a destruction answers that used up the work it was given."""
LINEAR_LIMIT: Final = 32767
"""The largest count of linear_pt_count, a signed short."""

_ZERO: Final = np.uint64(0)
_PRESENT: Final = np.uint64(PRESENT)
_RW: Final = np.uint64(RW)
_USER: Final = np.uint64(USER)
_GLOBAL: Final = np.uint64(GLOBAL)
_GUEST_KERNEL: Final = np.uint64(GUEST_KERNEL)
_KERNEL_USER: Final = np.uint64(GUEST_KERNEL | USER)
_ADDRESS: Final = np.uint64(ADDRESS)
_PAGE_SHIFT: Final = np.uint64(12)
_ONE: Final = np.uint64(ONE)
KIND_OR_VALID: Final = KIND_MASK | VALIDATED
_VALID: Final = np.uint64(VALID_MASK)
_WRITABLE_VALIDATED: Final = np.uint64(WRITABLE | VALIDATED)
_NOT_TYPE: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF & ~(TYPE_MASK | VALIDATED))


class Validator:
    """Checks tables on behalf of `PageTypes`."""

    __slots__ = (
        "_demoters",
        "_frames",
        "_memory",
        "_promoters",
        "_q",
        "_types",
        "_words",
    )

    def __init__(self, types: PageTypes) -> None:
        self._types = types
        self._memory = types.memory
        self._frames = types.frames
        self._q = types.memory.q
        self._words = types.memory.words
        self._promoters = {
            L1_TABLE: self._promote_l1,
            L2_TABLE: self._promote_l2,
            L3_TABLE: self._promote_l3,
            L4_TABLE: self._promote_l4,
            SEGMENT_DESCRIPTORS: self._promote_descriptors,
        }
        self._demoters = {
            L1_TABLE: self._demote_l1,
            L2_TABLE: self._demote_l2,
            L3_TABLE: self._demote_l3,
            L4_TABLE: self._demote_l4,
        }

    def promote(self, mfn: int, kind: int) -> int:
        """Check frame `mfn` for its new type and take all its references; 0, a negative errno or INTERRUPTED.

        After a failure `PageTypes.old` names the table that is to be taken apart, unless nothing was taken.
        """
        owner = self._types.owner_of(mfn)
        if owner is None:
            return -EINVAL
        return self._promoters[kind & TYPE_MASK](mfn, owner, kind)

    def demote(self, mfn: int, word: int) -> int:
        """Drop all references of a table of the type in its former type word `word`, or, of a PARTIAL one,
        those there are. 0 or INTERRUPTED.
        """
        owner = self._types.owner_of(mfn)
        return 0 if owner is None else self._demoters[word & TYPE_MASK](mfn, owner, word)

    def _stop(self, mfn: int, slot: int, held: bool, target: int) -> None:
        """Checking table `mfn` failed at `slot`, whose entry names `target`, or names none (-1).

        Xen takes such tables apart later, and knows one by name (old_guest_table) and those below it by the
        entry that failed. A table that failed in its first slot is not remembered, and with it what failed
        below: that stays half checked for good.
        """
        types = self._types
        if not slot:
            if held and types.old != target:
                types.put_page(target)
            return
        if types.old and types.old != target:
            self._frames.lost[types.old] = self._frames.lost.get(types.old, 0) + 1
        self._frames.partial[mfn] = slot, held or (types.old != 0 and types.old == target)
        types.old = mfn

    def _checked_slots(self, mfn: int, end: int, level: int) -> list[int]:
        slots = self._present(mfn, end)
        if level != L4_TABLE:
            return slots
        return [slot for slot in slots if not FIRST_XEN_SLOT <= slot <= LAST_XEN_SLOT]

    # L1

    def _promote_l1(self, mfn: int, owner: MemoryOwner, kind: int) -> int:
        start = mfn << 9
        table = self._words[start : start + ENTRIES]
        slots = (table & _PRESENT).nonzero()[0]
        self._types.work -= TABLE_WORK + len(slots)
        if len(slots) > BULK and self._bulk_l1(mfn, owner, table, slots):
            return 0
        return self._promote_l1_each(mfn, owner, slots.tolist())

    def _bulk_l1(self, mfn: int, owner: MemoryOwner, table: np.ndarray, slots: np.ndarray) -> bool:
        """Take all references of an ordinary table at once; False, and nothing done, when it is not
        ordinary.
        """
        frames = self._frames
        entries = table[slots]
        if int(np.bitwise_or.reduce(entries)) & L1_DISALLOWED:
            return False
        targets = ((entries & _ADDRESS) >> _PAGE_SHIFT).view(np.int64)
        if int(targets.max()) >= frames.size:
            return False
        if (frames.owner_array[targets] != owner.tag).any():
            return False
        written = targets[(entries & _RW) != _ZERO]
        types = frames.type_array
        if len(written):
            words = types[written]
            other = (words & _VALID) != _WRITABLE_VALIDATED
            if other.any():
                if (words[other] >= _ONE).any():
                    return False
                self._bulk_retype(owner, written[other])
            np.add.at(types, written, _ONE)
        np.add.at(frames.count_array, targets, _ONE)
        if not owner.pv32:
            kernel = (entries & _USER) == _ZERO
            adjusted = np.where(kernel, entries | _KERNEL_USER, entries)
            adjusted = np.where((adjusted & _GUEST_KERNEL) == _ZERO, adjusted | _GLOBAL, adjusted)
            if (adjusted != entries).any():
                copy = table.copy()
                copy[slots] = adjusted
                self._memory.write(mfn << 12, copy.tobytes())
        return True

    def _bulk_retype(self, owner: MemoryOwner, targets: np.ndarray) -> None:
        """Unused frames become writable ones, after one flush for all of them. None of them is FOREIGN: only
        writable ones are.
        """
        frames = self._frames
        words = frames.type_array[targets]
        stamp = int(frames.stamp_array[targets].max())
        self._types.shootdown.older(owner, stamp, *targets.tolist())
        frames.type_array[targets] = (words & _NOT_TYPE) | _WRITABLE_VALIDATED

    def _promote_l1_each(self, mfn: int, owner: MemoryOwner, slots: list[int]) -> int:
        q = self._q
        start = mfn << 9
        store = self._memory.store64
        take = self._types.get_page_from_l1
        pv32 = owner.pv32
        for position, slot in enumerate(slots):
            entry = q[start + slot]
            failure = take(entry, owner, owner)
            if failure:
                put = self._types.put_page_from_l1
                for done in reversed(slots[:position]):
                    put(q[start + done])
                return failure
            adjusted = adjust_l1(entry, pv32)
            if adjusted != entry:
                store((start + slot) << 3, adjusted)
        return 0

    def _demote_l1(self, mfn: int, owner: MemoryOwner, word: int) -> int:
        start = mfn << 9
        table = self._words[start : start + ENTRIES]
        slots = (table & _PRESENT).nonzero()[0]
        self._types.work -= TABLE_WORK + len(slots)
        entries = table[slots]
        if len(slots) > BULK and self._bulk_drop(entries):
            return 0
        put = self._types.put_page_from_l1
        for entry in entries.tolist():
            put(entry)
        return 0

    def _bulk_drop(self, entries: np.ndarray) -> bool:
        """Drop the references of L1 entries at once; False and nothing done when that would free a frame."""
        frames = self._frames
        counts, types = frames.count_array, frames.type_array
        targets = ((entries & _ADDRESS) >> _PAGE_SHIFT).view(np.int64)
        np.subtract.at(counts, targets, _ONE)
        if (counts[targets] < _ONE).any():
            np.add.at(counts, targets, _ONE)
            return False
        written = targets[(entries & _RW) != _ZERO]
        np.subtract.at(types, written, _ONE)
        idle = written[types[written] < _ONE]
        if len(idle):
            frames.stamp_array[idle] = self._types.shootdown.clock
        return True

    # L2, L3, L4

    def get_table(self, entry: int, mfn: int, owner: MemoryOwner, level: int, held: bool = False) -> int:
        """Take the table below the present entry of a level `level` table `mfn`; 0, a negative errno or
        INTERRUPTED. With `held` the entry has its reference already, and keeps it.

        An entry that names a table of its own level is a linear page table: read-only, one level deep.
        """
        types = self._types
        target = (entry & ADDRESS) >> 12
        if target >= self._frames.size:
            return -EINVAL
        failure = -EINVAL
        if held or types.get_page(target, owner):
            failure = types.get_type(target, level - 1)
            if not failure:
                return 0
            if not held and types.old != target:
                types.put_page(target)
        if (
            failure == -EINVAL
            and not (level == L3_TABLE and owner.pv32)
            and self._get_linear(entry, target, mfn, owner, level)
        ):
            if held:
                types.put_page(target)
            return 0
        return failure

    def put_table(self, entry: int, mfn: int) -> int:
        """Drop what an L2, L3 or L4 entry of table `mfn` held; a table's entry for itself held nothing.
        0, or INTERRUPTED, and the entry keeps its reference.
        """
        target = (entry & ADDRESS) >> 12
        if entry & PRESENT and target != mfn:
            return self._types.put_page_and_type(target, mfn)
        return 0

    def replace_table(self, entry: int, mfn: int) -> None:
        """The same for an entry that is no more: what is left to do is the call's (`PageTypes.end`)."""
        if self.put_table(entry, mfn):
            self._types.old = (entry & ADDRESS) >> 12

    def _get_linear(self, entry: int, target: int, mfn: int, owner: MemoryOwner, level: int) -> bool:
        if entry & RW:
            return False
        if target == mfn:
            return True
        types = self._types
        if types.owners[mfn] != owner.tag or not types.get_page(target, owner):
            return False
        linear = self._frames.linear
        entries, uses = linear.get(mfn, 0), linear.get(target, 0)
        if (
            not 0 <= entries < LINEAR_LIMIT
            or not -LINEAR_LIMIT < uses <= 0
            or types.types[target] & VALID_MASK != level | VALIDATED
        ):
            types.put_page(target)
            return False
        linear[mfn] = entries + 1
        linear[target] = uses - 1
        types.types[target] += ONE
        return True

    def drop_linear(self, target: int, parent: int) -> None:
        """An entry of `parent` no longer names `target`, a table of its own level."""
        linear = self._frames.linear
        for mfn, step in ((target, 1), (parent, -1)):
            left = linear.get(mfn, 0) + step
            if left:
                linear[mfn] = left
            else:
                linear.pop(mfn, None)

    def _promote_l2(self, mfn: int, owner: MemoryOwner, kind: int) -> int:
        limit = COMPAT_FIRST_XEN_SLOT if owner.pv32 and kind & PAE_XEN_L2 else ENTRIES
        failure = self._promote_entries(mfn, owner, L2_TABLE, self._present(mfn, limit))
        if not failure and kind & PAE_XEN_L2:
            self._types.slots.fill_compat(mfn << 12, owner)
        return failure

    def _promote_l3(self, mfn: int, owner: MemoryOwner, kind: int) -> int:
        if not owner.pv32:
            return self._promote_entries(mfn, owner, L3_TABLE, self._present(mfn, ENTRIES))
        self._memory.fill((mfn << 12) + 32, 4096 - 32)
        slots = [slot for slot in range(4) if slot == 3 or self._q[(mfn << 9) + slot] & PRESENT]
        failure = self._promote_entries(mfn, owner, L3_TABLE, slots)
        if not failure and self._shares_last_l2(mfn):
            failure = -EINVAL
            self._stop(mfn, ENTRIES, False, -1)
        if failure and failure != INTERRUPTED:
            end = self._frames.partial[mfn][0] if self._types.old == mfn else 0
            self._restore_compat_l3(mfn, [slot for slot in slots if slot < end])
        return failure

    def _get_last_l2(self, entry: int, owner: MemoryOwner, held: bool) -> int:
        """A PAE root's slot 3: an L2 table with Xen's entries."""
        if not entry & PRESENT:
            return -EINVAL
        types, target = self._types, (entry & ADDRESS) >> 12
        if not held:
            return types.get_page_and_type(target, owner, L2_TABLE | PAE_XEN_L2)
        return types.get_type(target, L2_TABLE | PAE_XEN_L2)

    def _shares_last_l2(self, mfn: int) -> bool:
        """Whether another root uses the L2 table in slot 3 as well (pae_xen_mappings_check)."""
        return bool(self._types.types[(self._q[(mfn << 9) + 3] & ADDRESS) >> 12] >= 2 * ONE)

    def _promote_l4(self, mfn: int, owner: MemoryOwner, kind: int) -> int:
        if owner.pv32:
            return -EINVAL
        slots = self._checked_slots(mfn, ENTRIES, L4_TABLE)
        failure = self._promote_entries(mfn, owner, L4_TABLE, slots)
        if not failure:
            self._types.slots.fill_root(mfn << 12, owner, read_only_m2p=owner.m2p_strict)
        return failure

    def _promote_entries(self, mfn: int, owner: MemoryOwner, level: int, slots: list[int]) -> int:
        q = self._q
        types = self._types
        start = mfn << 9
        store = self._memory.store64
        pv32 = owner.pv32
        compat_l3 = pv32 and level == L3_TABLE
        disallowed = COMPAT_L3_DISALLOWED if compat_l3 else TABLE_DISALLOWED
        adjust = _ADJUST[level]
        first, held = self._frames.partial.pop(mfn, (0, False))
        types.work -= TABLE_WORK
        moved = False
        owners, counts, words = types.owners, types.counts, types.types
        size, tag, valid = self._frames.size, owner.tag, level - 1 | VALIDATED
        for slot in slots:
            if slot < first:
                continue
            if slot > first:
                held = False
            if types.work <= 0 and moved:
                self._frames.partial[mfn] = slot, False
                return INTERRUPTED
            moved = True
            entry = q[start + slot]
            target = (entry & ADDRESS) >> 12
            if entry & disallowed:
                failure = -EINVAL
            elif (  # what most entries of a root name: a table in use
                not held and not compat_l3 and target < size and owners[target] == tag
                and words[target] & KIND_OR_VALID == valid
                and words[target] < COUNT_LIMIT and counts[target] < COUNT_LIMIT
            ):  # fmt: skip
                words[target] += ONE
                counts[target] += ONE
                failure = 0
            elif compat_l3 and slot == 3:
                failure = self._get_last_l2(entry, owner, held)
            else:
                failure = self.get_table(entry, mfn, owner, level, held)
            if failure == INTERRUPTED:
                self._frames.partial[mfn] = slot, True
                if not held:
                    counts[target] += ONE
                return failure
            if failure:
                self._stop(mfn, slot, held, target)
                return failure
            types.work -= 1
            adjusted = adjust(entry, pv32)
            if adjusted != entry:
                store((start + slot) << 3, adjusted)
        return 0

    def _drop_entries(self, mfn: int, owner: MemoryOwner, level: int, limit: int) -> int:
        """Drop what the entries below slot `limit` hold, the last first; 0 or INTERRUPTED."""
        q, types, partial = self._q, self._types, self._frames.partial
        start = mfn << 9
        end, held = partial.pop(mfn, (ENTRIES, False))
        types.work -= TABLE_WORK
        compat_l3 = owner.pv32 and level == L3_TABLE
        moved = False
        counts, words = types.counts, types.types
        for slot in reversed(self._checked_slots(mfn, min(limit, end + held), level)):
            if types.work <= 0 and moved:
                partial[mfn] = slot + 1, False
                return INTERRUPTED
            moved = True
            entry = q[start + slot]
            target = (entry & ADDRESS) >> 12
            if held and slot == end:
                interrupted = types.put_partial(target)
                if not interrupted:
                    types.put_page(target)
            elif min(words[target], counts[target]) >= 2 * ONE and words[target] & TYPE_MASK != level:
                words[target] -= ONE
                counts[target] -= ONE
                interrupted = 0
            else:
                interrupted = self.put_table(entry, mfn)
            if interrupted:
                partial[mfn] = slot, True
                return interrupted
            types.work -= 1
            if compat_l3:
                self._restore_compat_l3(mfn, [slot])
        return 0

    def _restore_compat_l3(self, mfn: int, slots: list[int]) -> None:
        """Take back the flags Xen set in a PAE root (unadjust_guest_l3e)."""
        for slot in slots:
            at = (mfn << 12) + slot * 8
            entry = self._q[at >> 3]
            if entry & PRESENT:
                self._memory.store64(at, entry & ~(USER | RW | ACCESSED))

    def _demote_l2(self, mfn: int, owner: MemoryOwner, word: int) -> int:
        limit = COMPAT_FIRST_XEN_SLOT if owner.pv32 and word & PAE_XEN_L2 else ENTRIES
        return self._drop_entries(mfn, owner, L2_TABLE, limit)

    def _demote_l3(self, mfn: int, owner: MemoryOwner, word: int) -> int:
        return self._drop_entries(mfn, owner, L3_TABLE, 4 if owner.pv32 else ENTRIES)

    def _demote_l4(self, mfn: int, owner: MemoryOwner, word: int) -> int:
        return self._drop_entries(mfn, owner, L4_TABLE, ENTRIES)

    def _present(self, mfn: int, limit: int) -> list[int]:
        start = mfn << 9
        slots: list[int] = (self._words[start : start + limit] & _PRESENT).nonzero()[0].tolist()
        return slots

    # Descriptor tables

    def _promote_descriptors(self, mfn: int, owner: MemoryOwner, kind: int) -> int:
        """Check all 512 descriptors, fixing them up as `update_descriptor` would (validate_segdesc_page)."""
        start = mfn << 9
        table = self._words[start : start + ENTRIES]
        for slot in table.nonzero()[0].tolist():
            value = self._q[start + slot]
            fixed = checked(value, owner.pv32)
            if fixed is None:
                return -EINVAL
            if fixed != value:
                self._memory.store64((start + slot) << 3, fixed)
        return 0


_ADJUST: Final = {L2_TABLE: adjust_l2, L3_TABLE: adjust_l3, L4_TABLE: adjust_l4}
