"""One entry of a validated page table gets a new value (mod_l1_entry to mod_l4_entry).

The new value's references are taken before it is stored, the old value's dropped after. Functions return 0 or
a negative errno and change nothing on failure; those for tables above L1 also INTERRUPTED, when nothing is
stored yet. After these `PageTypes.end` is called.
"""

from __future__ import annotations

from typing import Final

from firmware.abi.errno import EINVAL, EPERM
from firmware.memory.frames import L2_TABLE, L3_TABLE, L4_TABLE, PAE_XEN_L2
from firmware.memory.owner import MemoryOwner
from firmware.memory.pte import (
    ACCESSED_DIRTY,
    COMPAT_L3_DISALLOWED,
    GLOBAL,
    GUEST_KERNEL,
    PRESENT,
    REVALIDATE,
    TABLE_DISALLOWED,
    USER,
    adjust_l2,
    adjust_l3,
    adjust_l4,
)
from firmware.memory.types import PageTypes
from firmware.memory.xen_slots import COMPAT_FIRST_XEN_SLOT, FIRST_XEN_SLOT, LAST_XEN_SLOT

KERNEL_USER: Final = GUEST_KERNEL | USER


class EntryUpdate:
    """Updates of single entries, by the level of the table that holds them."""

    __slots__ = ("_memory", "_q", "_types", "_validator")

    def __init__(self, types: PageTypes) -> None:
        self._types = types
        self._memory = types.memory
        self._q = types.memory.q
        self._validator = types.validator

    def l1(
        self, at: int, new: int, tables: MemoryOwner, pages: MemoryOwner | None, preserve: bool = False
    ) -> int:
        """Set the L1 entry at machine address `at`, in a table of `tables`, to map a frame of `pages`."""
        old = self._q[at >> 3]
        if new & PRESENT:
            if not tables.pv32:
                if not new & USER:
                    new |= KERNEL_USER
                elif not new & GUEST_KERNEL:
                    new |= GLOBAL
            if not (old ^ new) & REVALIDATE:
                self._memory.store64(at, new | old & ACCESSED_DIRTY if preserve else new)
                return 0
            failure = self._types.get_page_from_l1(new, tables, pages)
            if failure:
                return failure
        self._memory.store64(at, new | old & ACCESSED_DIRTY if preserve else new)
        self._types.put_page_from_l1(old)
        return 0

    def l2(self, at: int, new: int, owner: MemoryOwner, preserve: bool = False) -> int:
        """Set an L2 entry."""
        mfn = at >> 12
        if owner.pv32 and self._types.types[mfn] & PAE_XEN_L2 and (at >> 3 & 511) >= COMPAT_FIRST_XEN_SLOT:
            return -EPERM
        if new & PRESENT:
            if new & TABLE_DISALLOWED:
                return -EINVAL
            new = adjust_l2(new, owner.pv32)
        return self._table(at, new, owner, L2_TABLE, preserve)

    def l3(self, at: int, new: int, owner: MemoryOwner, preserve: bool = False) -> int:
        """Set an L3 entry; of a PAE root only slots 0 to 2."""
        if owner.pv32 and (at >> 3 & 511) >= 3:
            return -EINVAL
        if new & PRESENT:
            if new & (COMPAT_L3_DISALLOWED if owner.pv32 else TABLE_DISALLOWED):
                return -EINVAL
            new = adjust_l3(new, owner.pv32)
        return self._table(at, new, owner, L3_TABLE, preserve)

    def l4(self, at: int, new: int, owner: MemoryOwner, preserve: bool = False) -> int:
        """Set an L4 entry outside Xen's slots."""
        if FIRST_XEN_SLOT <= at >> 3 & 511 <= LAST_XEN_SLOT:
            return -EINVAL
        if new & PRESENT:
            if new & TABLE_DISALLOWED:
                return -EINVAL
            new = adjust_l4(new, owner.pv32)
        return self._table(at, new, owner, L4_TABLE, preserve)

    def _table(self, at: int, new: int, owner: MemoryOwner, level: int, preserve: bool) -> int:
        mfn = at >> 12
        old = self._q[at >> 3]
        owner.generation += 1
        if new & PRESENT:
            if not (old ^ new) & REVALIDATE:
                self._memory.store64(at, new | old & ACCESSED_DIRTY if preserve else new)
                return 0
            failure = self._validator.get_table(new, mfn, owner, level)
            if failure:
                return failure
        self._memory.store64(at, new | old & ACCESSED_DIRTY if preserve else new)
        self._validator.replace_table(old, mfn)
        return 0
