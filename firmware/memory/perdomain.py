"""The per-domain area: where the processor finds each vCPU's GDT and LDT.

64-bit guests: slot 260 of every root, supervisor only, 128 KiB a vCPU: 16 pages of GDT, 16 pages of LDT
(Xen's layout of PERDOMAIN_VIRT_START). 32-bit guests have the same in the last 64 MiB of their address space,
read-only because their kernel runs at supervisor privilege; Xen itself keeps it above 4 GiB there.
"""

from __future__ import annotations

from typing import Final

from firmware.memory.heap import FrameHeap
from firmware.memory.owner import MachineMemory, MemoryOwner
from firmware.memory.pte import ACCESSED, ADDRESS, DIRTY, PRESENT, RW

PERDOMAIN_START: Final = 0xFFFF_8200_0000_0000
PERDOMAIN_COMPAT_START: Final = 0xFC00_0000
VCPU_SHIFT: Final = 17
LDT_OFFSET: Final = 16 << 12
GDT_PAGES: Final = 14
"""Pages of the GDT that are the guest's (FIRST_RESERVED_GDT_PAGE); Xen's descriptors lie in the page after
them.
"""
DESCRIPTOR_PAGES: Final = 16
MAX_VCPUS: Final = 512

FLAT_DESCRIPTORS: Final[dict[int, int]] = {
    0xE023: 0x00CF_FB00_0000_FFFF,  # FLAT_RING3_CS32
    0xE02B: 0x00CF_F300_0000_FFFF,  # FLAT_RING3_DS, FLAT_RING3_SS
    0xE033: 0x00AF_FB00_0000_FFFF,  # FLAT_RING3_CS64
}
"""Selectors and descriptors of Xen's GDT page that guests load (arch-x86/xen-x86_64.h, xen-x86_32.h; x86
desc.c).
"""
COMPAT_DESCRIPTORS: Final[dict[int, int]] = {
    0xE019: 0x00CF_BB00_0000_FFFF,  # FLAT_RING1_CS
    0xE021: 0x00CF_B300_0000_FFFF,  # FLAT_RING1_DS
    0xE02B: 0x00CF_FB00_0000_FFFF,  # FLAT_RING3_CS
    0xE033: 0x00CF_F300_0000_FFFF,  # FLAT_RING3_DS
}
"""The same for 32-bit guests."""


class PerDomain:
    """One domain's tables below its per-domain slot, made of Xen's frames."""

    __slots__ = ("_l1", "_memory", "_pv32", "_reserved", "_zeros", "frames", "start")

    def __init__(self, memory: MachineMemory, heap: FrameHeap, owner: MemoryOwner) -> None:
        self._memory = memory
        self._pv32 = owner.pv32
        self.start = PERDOMAIN_COMPAT_START if owner.pv32 else PERDOMAIN_START
        tables = (owner.vcpus * 2 * DESCRIPTOR_PAGES + 511) // 512
        self.frames: list[int] = []
        self._l1 = [self._take(heap) for _ in range(tables)]
        self._reserved = self._take(heap)
        self._zeros = self._take(heap) >> 12
        for selector, value in (COMPAT_DESCRIPTORS if owner.pv32 else FLAT_DESCRIPTORS).items():
            memory.store64(self._reserved + (selector & 0xFF8), value)
        flags = PRESENT | RW | ACCESSED | DIRTY
        if owner.pv32:
            first = (PERDOMAIN_COMPAT_START >> 21) & 511
            owner.compat_entries = tuple((first + index, l1 | flags) for index, l1 in enumerate(self._l1))
        else:
            l3, l2 = self._take(heap), self._take(heap)
            memory.store64(l3, l2 | flags)
            for index, l1 in enumerate(self._l1):
                memory.store64(l2 + index * 8, l1 | flags)
            owner.perdomain_entry = l3 | flags
        for vcpu in range(owner.vcpus):
            for page in range(GDT_PAGES):
                self.set_gdt_page(vcpu, page, None)
            self._set(vcpu, GDT_PAGES, self._reserved >> 12)

    def gdt_address(self, vcpu: int) -> int:
        """Virtual address of the vCPU's GDT."""
        return self.start + (vcpu << VCPU_SHIFT)

    def ldt_address(self, vcpu: int) -> int:
        """Virtual address of the vCPU's LDT."""
        return self.gdt_address(vcpu) + LDT_OFFSET

    def set_gdt_page(self, vcpu: int, page: int, mfn: int | None) -> None:
        """Map frame `mfn` as one of the guest's GDT pages; None maps zeros, which are no descriptors."""
        if mfn is None:
            self._memory.store64(self._slot(vcpu, page), self._zeros << 12 | PRESENT | ACCESSED | DIRTY)
        else:
            self._set(vcpu, page, mfn)

    def set_ldt_page(self, vcpu: int, page: int, mfn: int | None) -> None:
        """Map frame `mfn` as one of the LDT's pages; None unmaps."""
        self._set(vcpu, DESCRIPTOR_PAGES + page, mfn)

    def ldt_page(self, vcpu: int, page: int) -> int | None:
        """The frame mapped as that page of the LDT, or None."""
        entry = self._memory.q[self._slot(vcpu, DESCRIPTOR_PAGES + page) >> 3]
        return (entry & ADDRESS) >> 12 if entry & PRESENT else None

    def release(self, heap: FrameHeap) -> None:
        """Give the tables back; no core may have one of the domain's roots loaded."""
        for mfn in self.frames:
            heap.release_xen(mfn)
        self.frames.clear()

    def _take(self, heap: FrameHeap) -> int:
        mfn = heap.xen_frame()
        self.frames.append(mfn)
        return mfn << 12

    def _slot(self, vcpu: int, page: int) -> int:
        index = vcpu * 2 * DESCRIPTOR_PAGES + page
        return self._l1[index >> 9] + (index & 511) * 8

    def _set(self, vcpu: int, page: int, mfn: int | None) -> None:
        flags = PRESENT | ACCESSED | DIRTY if self._pv32 else PRESENT | RW | ACCESSED | DIRTY
        self._memory.store64(self._slot(vcpu, page), 0 if mfn is None else mfn << 12 | flags)
