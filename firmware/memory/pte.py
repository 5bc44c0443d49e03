"""Page-table entries: the bits, what a guest may set in them, and what Xen sets for it (Xen: x86 page.h,
pv/mm.h).
"""

from __future__ import annotations

from typing import Final

PRESENT: Final = 1 << 0
RW: Final = 1 << 1
USER: Final = 1 << 2
PWT: Final = 1 << 3
PCD: Final = 1 << 4
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
SUPERPAGE: Final = 1 << 7
"""_PAGE_PSE in an L2 or L3 entry; in an L1 entry the same bit is _PAGE_PAT."""
GLOBAL: Final = 1 << 8
AVAILABLE: Final = 7 << 9
AVAILABLE_HIGH: Final = 0x7FF << 52
GUEST_KERNEL: Final = 1 << 52
"""_PAGE_GUEST_KERNEL: set by Xen in entries the guest made without USER; 64-bit guests only."""
NO_EXECUTE: Final = 1 << 63
ADDRESS: Final = ((1 << 52) - 1) & ~0xFFF
"""The frame's address in an entry, whatever the level."""
ACCESSED_DIRTY: Final = ACCESSED | DIRTY
CACHE_BITS: Final = PWT | PCD | SUPERPAGE
"""PAGE_CACHE_ATTRS in an L1 entry."""

L1_DISALLOWED: Final = CACHE_BITS
"""l1_disallow_mask() for a guest without devices: cache attributes. GLOBAL is allowed; there is no
_PAGE_GNTTAB in a release build.
"""
TABLE_DISALLOWED: Final = CACHE_BITS | GLOBAL
"""L2_DISALLOW_MASK, L3_DISALLOW_MASK, L4_DISALLOW_MASK: no superpages, no cache attributes, no GLOBAL."""
COMPAT_L3_DISALLOWED: Final = 0xFFF << 52 | TABLE_DISALLOWED
"""COMPAT_L3_DISALLOW_MASK: a PAE root entry has no high flags either."""

FAST_FLAGS: Final = NO_EXECUTE | AVAILABLE_HIGH | AVAILABLE | GLOBAL | DIRTY | ACCESSED | USER
"""FASTPATH_FLAG_WHITELIST: what a guest may change without the entry being validated again."""
REVALIDATE: Final = ((1 << 64) - 1) & ~FAST_FLAGS
"""The bits whose change makes an entry a new one."""

INVALID_FRAME: Final = ADDRESS >> 12
"""The frame number Xen takes for INVALID_MFN in an entry."""


def adjust_l1(entry: int, pv32: bool) -> int:
    """The present L1 entry as Xen stores it (adjust_guest_l1e)."""
    if pv32:
        return entry
    if not entry & USER:
        entry |= GUEST_KERNEL | USER
    if not entry & GUEST_KERNEL:
        entry |= GLOBAL
    return entry


def adjust_l2(entry: int, pv32: bool) -> int:
    """The present L2 entry as Xen stores it (adjust_guest_l2e)."""
    return entry if pv32 else entry | USER


def adjust_l3(entry: int, pv32: bool) -> int:
    """The present L3 entry as Xen stores it (adjust_guest_l3e)."""
    return entry | USER | RW if pv32 else entry | USER


def adjust_l4(entry: int, pv32: bool) -> int:
    """The present L4 entry as Xen stores it (adjust_guest_l4e)."""
    return entry | ACCESSED if pv32 else entry | ACCESSED | USER
