"""Segment descriptors a guest may have in GDT or LDT (Xen: check_descriptor in pv/descriptor-tables.c)."""

from __future__ import annotations

from typing import Final

PRESENT: Final = 1 << 47
SEGMENT: Final = 1 << 44
"""Code or data, not a system descriptor."""
LONG: Final = 1 << 53
GRANULAR: Final = 1 << 55
DPL_SHIFT: Final = 45
DPL: Final = 3 << DPL_SHIFT
TYPE: Final = 0xF << 40
CALL_GATE: Final = 0xC << 40
SELECTOR: Final = 0xFFFF << 16
LIMIT_ALL: Final = 0xF << 48 | 0xFFFF
GATE_RESERVED: Final = 0xFF << 32
COMPAT_GATE_RESERVED: Final = 0xE0 << 32
FIRST_RESERVED_ENTRY: Final = 14 * 512
"""FIRST_RESERVED_GDT_ENTRY: Xen's own descriptors begin here (arch-x86/xen.h)."""
KERNEL_CS: Final = 0xE033
COMPAT_KERNEL_CS: Final = 0xE019
COMPAT_START: Final = 0xF580_0000


def checked(descriptor: int, pv32: bool) -> int | None:
    """The descriptor as Xen stores it, or None when a guest may not have it.

    The privilege level is raised to the guest kernel's; a call gate gets level 0, so that using it traps,
    and keeps its own in the selector's RPL.
    """
    if not descriptor & PRESENT:
        return descriptor
    lowest = 1 if pv32 else 3
    dpl = max((descriptor >> DPL_SHIFT) & 3, lowest)
    descriptor = descriptor & ~DPL | dpl << DPL_SHIFT
    if descriptor & SEGMENT:
        return _compat_segment(descriptor) if pv32 else descriptor
    if not descriptor & TYPE:
        return descriptor
    if descriptor & TYPE != CALL_GATE:
        return None
    selector = (descriptor >> 16) & 0xFFFF
    if not gate_selector_allowed(selector, pv32):
        return None
    descriptor &= ~(DPL | SELECTOR)
    descriptor |= (selector & ~3 | dpl) << 16
    if descriptor & (COMPAT_GATE_RESERVED if pv32 else GATE_RESERVED):
        return None
    return descriptor


def gate_selector_allowed(selector: int, pv32: bool) -> bool:
    """Whether a guest's gate may name this code segment (guest_gate_selector_okay)."""
    return (
        selector >> 3 < FIRST_RESERVED_ENTRY
        or selector == (COMPAT_KERNEL_CS if pv32 else KERNEL_CS)
        or bool(selector & 4)
    )


def _compat_segment(descriptor: int) -> int | None:
    """A 32-bit guest's code or data: never long; a flat one that reaches into Xen's part gets all 4 GiB."""
    if descriptor & LONG:
        return None
    base = (descriptor >> 16) & 0xFF_FFFF | (descriptor >> 56) << 24
    limit = ((descriptor >> 48) & 0xF) << 16 | descriptor & 0xFFFF
    limit += 1
    if descriptor & GRANULAR:
        limit <<= 12
    if base == 0 and limit > COMPAT_START:
        descriptor |= LIMIT_ALL
    return descriptor
