"""Loading a segment register for a guest, as the CPU would: from its GDT or LDT, with the CPU's checks.

Sources: Intel SDM volume 3, 3.4.5 (descriptors), 5.5 (privilege checks); arch-x86/xen-x86_64.h and
xen-x86_32.h for the selectors Xen keeps in page 14 of every GDT.
"""

from __future__ import annotations

from typing import Final, Protocol

from firmware.domain.vcpu import VCpu
from machine.core import Core
from machine.memory import MachineMemory
from machine.registers import (
    CS,
    CS_FLAGS,
    CS_SELECTOR,
    DS,
    ES,
    FS,
    GS,
    SEG_FLAGS,
    SS,
    SS_SELECTOR,
)

DESCRIPTOR_ACCESSED: Final = 1 << 40
DESCRIPTOR_WRITABLE: Final = 1 << 41
"""Of a data segment; of a code segment: readable."""
DESCRIPTOR_CONFORMING: Final = 1 << 42
DESCRIPTOR_CODE: Final = 1 << 43
DESCRIPTOR_SEGMENT: Final = 1 << 44
DESCRIPTOR_PRESENT: Final = 1 << 47
DESCRIPTOR_LONG: Final = 1 << 53
DESCRIPTOR_BIG: Final = 1 << 54
DESCRIPTOR_GRANULAR: Final = 1 << 55
CACHE_FLAGS: Final = 0x00F0_FF00
"""The bits of a descriptor's upper word that a segment cache keeps."""

CACHED_DPL_SHIFT: Final = 13
CACHED_PRESENT: Final = 1 << 15
CACHED_CONFORMING: Final = 3 << 10
"""A cache's bits: privilege level, present, and code that is conforming."""

NO_SEGMENT, STACK_ERROR, PROTECTION = 11, 12, 13
"""Vectors (Intel SDM volume 3, table 6-1)."""

FLAT_CODE64: Final = 0x00AF_FB00_0000_FFFF
FLAT_DATA: Final = 0x00CF_F300_0000_FFFF
"""A flat 64-bit code and a flat data descriptor of DPL 3, as Xen's own and Linux's are, accessed."""
FIRST_PAGE_END: Final = 4096
"""Selectors below are in the first page of the table."""

TABLE_LDT: Final = 4
FRAME_SHIFT: Final = 12
ENTRIES_A_FRAME_SHIFT: Final = 9


class Tables(Protocol):
    """Who knows the frames behind a vCPU's descriptor tables."""

    def reserved(self, selector: int, pv32: bool) -> int | None:
        """Xen's own descriptor for a selector in its part of the GDT."""

    def ldt_frame(self, vcpu: VCpu, page: int) -> int | None:
        """The frame of one page of the LDT, made a descriptor page if it is not one yet."""


class Segments:
    """Reads descriptors and loads segment registers."""

    __slots__ = ("_memory", "_tables")

    def __init__(self, memory: MachineMemory, tables: Tables) -> None:
        self._memory = memory
        self._tables = tables

    def descriptor(self, vcpu: VCpu, selector: int) -> int | None:
        """The 8 bytes a selector names, or None when they are beyond its table."""
        index = selector >> 3
        page = index >> ENTRIES_A_FRAME_SHIFT
        if selector & TABLE_LDT:
            if index >= vcpu.ldt_entries:
                return None
            frame = self._tables.ldt_frame(vcpu, page)
            if frame is None:
                return None
        elif page < len(vcpu.gdt_frames) and index < vcpu.gdt_entries:
            frame = vcpu.gdt_frames[page]
        else:
            return self._tables.reserved(selector, vcpu.domain.pv32)
        return self._memory.q[(frame << FRAME_SHIFT >> 3) + (index & (1 << ENTRIES_A_FRAME_SHIFT) - 1)]

    def load_user(self, vcpu: VCpu, core: Core, cs: int, ss: int) -> bool:
        """CS and SS of a 64-bit guest that returns to a flat user half, the usual case; False: nothing was
        done.

        The guest's own descriptors are looked at, but a cache that already holds what they say is not loaded
        again.
        """
        frames = vcpu.gdt_frames
        if not frames or (cs | ss) & TABLE_LDT or cs >= FIRST_PAGE_END or ss >= FIRST_PAGE_END:
            return False
        q = self._memory.q
        table = frames[0] << ENTRIES_A_FRAME_SHIFT
        if (q[table + (cs >> 3)] | DESCRIPTOR_ACCESSED) != FLAT_CODE64 or (
            q[table + (ss >> 3)] | DESCRIPTOR_ACCESSED
        ) != FLAT_DATA:
            return False
        d = core.d
        if d[CS_FLAGS] != FLAT_CODE64 >> 32 & CACHE_FLAGS:
            return False
        d[CS_SELECTOR] = cs
        d[SS_SELECTOR] = ss
        return True

    def load(self, vcpu: VCpu, core: Core, register: int, selector: int) -> bool:
        """Load one segment register at the guest's privilege; False when the CPU would refuse (nothing is
        changed).
        """
        selector &= 0xFFFF
        long_mode = not vcpu.domain.pv32
        if selector < 4:
            if register in (CS, SS):
                return False
            core.set_segment(register, selector, 0, 0, 0)
            return True
        descriptor = self.descriptor(vcpu, selector)
        if (
            descriptor is None
            or not descriptor & DESCRIPTOR_PRESENT
            or not self._allowed(descriptor, register, selector, long_mode)
        ):
            return False
        base = descriptor >> 16 & 0xFF_FFFF | descriptor >> 32 & 0xFF00_0000
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000
        if descriptor & DESCRIPTOR_GRANULAR:
            limit = limit << 12 | 0xFFF
        flags = descriptor >> 32 & CACHE_FLAGS | DESCRIPTOR_ACCESSED >> 32
        if register == CS:
            core.set_cs(selector, base, limit, flags)
        else:
            core.set_segment(register, selector, base, limit, flags)
        return True

    def shed(self, vcpu: VCpu, core: Core, ring: int) -> None:
        """Null the data segments that `ring` may not have, as IRET to an outer ring does (SDM volume 2)."""
        for register in (DS, ES, FS, GS):
            flags = core.d[SEG_FLAGS[register]]
            loaded = flags & CACHED_PRESENT and flags & CACHED_CONFORMING != CACHED_CONFORMING
            if loaded and flags >> CACHED_DPL_SHIFT & 3 < ring:
                core.set_segment(register, 0, 0, 0, 0)

    def fault(self, vcpu: VCpu, register: int, selector: int) -> tuple[int, int]:
        """Vector and error code of the fault that a refused load raises (SDM volume 2, MOV and IRET)."""
        selector &= 0xFFFF
        if selector < 4:
            return PROTECTION, 0
        descriptor = self.descriptor(vcpu, selector)
        if descriptor is not None and self._allowed(descriptor, register, selector, not vcpu.domain.pv32):
            return STACK_ERROR if register == SS else NO_SEGMENT, selector & ~3
        return PROTECTION, selector & ~3

    @staticmethod
    def _allowed(descriptor: int, register: int, selector: int, long_mode: bool) -> bool:
        """The checks that a descriptor must pass, present or not."""
        if not descriptor & DESCRIPTOR_SEGMENT:
            return False
        ring = selector & 3
        privilege = descriptor >> 45 & 3
        if register == CS:
            if not descriptor & DESCRIPTOR_CODE or (
                descriptor & DESCRIPTOR_LONG and (descriptor & DESCRIPTOR_BIG or not long_mode)
            ):
                return False
            return privilege <= ring if descriptor & DESCRIPTOR_CONFORMING else privilege == ring
        if register == SS:
            return (
                not descriptor & DESCRIPTOR_CODE
                and bool(descriptor & DESCRIPTOR_WRITABLE)
                and privilege == ring
            )
        if descriptor & DESCRIPTOR_CODE:
            if not descriptor & DESCRIPTOR_WRITABLE:
                return False
            if descriptor & DESCRIPTOR_CONFORMING:
                return True
        return privilege >= ring
