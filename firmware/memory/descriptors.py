"""Descriptor tables: set_gdt, update_descriptor, the LDT.

The frames of a GDT or LDT are typed SEGMENT_DESCRIPTORS while the processor uses them; their descriptors have
been checked and the guest cannot write them. An LDT page is mapped when the processor first needs it.
"""

from __future__ import annotations

from struct import unpack
from typing import Final

from firmware.abi.errno import EFAULT, EINVAL
from firmware.hypercalls import GuestFault, HypercallTable
from firmware.memory.frames import SEGMENT_DESCRIPTORS, TYPE_MASK, WRITABLE
from firmware.memory.owner import VCpu
from firmware.memory.perdomain import DESCRIPTOR_PAGES, PerDomain
from firmware.memory.pte import ADDRESS, PRESENT
from firmware.memory.segment import FIRST_RESERVED_ENTRY, checked
from firmware.memory.types import PageTypes

ENTRIES_PER_PAGE: Final = 512
LDT_LIMIT: Final = 8192
NO_LDT: Final = 0


class Descriptors:
    """The handlers, and the per-domain areas they map tables into."""

    __slots__ = ("_areas", "_memory", "_types")

    def __init__(self, types: PageTypes) -> None:
        self._types = types
        self._memory = types.memory
        self._areas: dict[int, PerDomain] = {}

    def register(self, table: HypercallTable) -> None:
        """Enter the handlers into the hypercall table."""
        table.register("set_gdt", self.set_gdt)
        table.register("update_descriptor", self.update_descriptor)

    def add(self, domid: int, area: PerDomain) -> None:
        """Make a domain's per-domain area known."""
        self._areas[domid] = area

    def remove(self, domid: int) -> PerDomain:
        """Forget it; the caller releases its frames."""
        return self._areas.pop(domid)

    def area(self, domid: int) -> PerDomain:
        """A domain's per-domain area."""
        return self._areas[domid]

    # GDT

    def set_gdt(self, vcpu: VCpu, frame_list: int, entries: int) -> int:
        """Hypercall: use these frames as the vCPU's GDT."""
        entries &= 0xFFFF_FFFF
        if entries > FIRST_RESERVED_ENTRY:
            return -EINVAL
        pages = (entries + ENTRIES_PER_PAGE - 1) // ENTRIES_PER_PAGE
        try:
            if vcpu.domain.pv32:
                frames = list(unpack(f"<{pages}I", vcpu.space.read(frame_list, pages * 4)))
            else:
                frames = list(unpack(f"<{pages}Q", vcpu.space.read(frame_list, pages * 8)))
        except GuestFault:
            return -EFAULT
        rc = self.install_gdt(vcpu, frames, entries)
        if not rc:
            self._types.shootdown.core(vcpu.core)
        return rc

    def install_gdt(self, vcpu: VCpu, frames: list[int], entries: int) -> int:
        """Type the frames and map them, in place of the old ones; 0 or -EINVAL (pv_set_gdt)."""
        if entries > FIRST_RESERVED_ENTRY:
            return -EINVAL
        owner = vcpu.domain.memory
        for position, mfn in enumerate(frames):
            if self._types.get_page_and_type(mfn, owner, SEGMENT_DESCRIPTORS):
                for taken in frames[:position]:
                    self._types.put_page_and_type(taken)
                return -EINVAL
        self.drop_gdt(vcpu)
        area = self._areas[vcpu.domain.id]
        for page, mfn in enumerate(frames):
            area.set_gdt_page(vcpu.id, page, mfn)
        vcpu.gdt_frames = list(frames)
        vcpu.gdt_entries = entries
        return 0

    def drop_gdt(self, vcpu: VCpu) -> None:
        """Unmap and release the vCPU's GDT (pv_destroy_gdt)."""
        area = self._areas[vcpu.domain.id]
        for page, mfn in enumerate(vcpu.gdt_frames):
            area.set_gdt_page(vcpu.id, page, None)
            self._types.put_page_and_type(mfn)
        vcpu.gdt_frames = []
        vcpu.gdt_entries = 0

    def update_descriptor(self, vcpu: VCpu, gaddr: int, desc: int, low: int = 0, high: int = 0) -> int:
        """Hypercall: write one descriptor at a machine address. A 32-bit guest passes both in two halves
        each.
        """
        if vcpu.domain.pv32:
            gaddr, desc = (
                gaddr & 0xFFFF_FFFF | (desc & 0xFFFF_FFFF) << 32,
                low & 0xFFFF_FFFF | (high & 0xFFFF_FFFF) << 32,
            )
        fixed = checked(desc, vcpu.domain.pv32)
        if gaddr & 7 or fixed is None:
            return -EINVAL
        mfn = gaddr >> 12
        types = self._types
        if not types.get_page(mfn, vcpu.domain.memory):
            return -EINVAL
        kind = SEGMENT_DESCRIPTORS if types.types[mfn] & TYPE_MASK == SEGMENT_DESCRIPTORS else WRITABLE
        rc = types.get_type(mfn, kind)
        if not rc:
            self._memory.store64(gaddr, fixed)
            types.put_type(mfn)
        types.put_page(mfn)
        return -EINVAL if rc else 0

    # LDT

    def set_ldt(self, vcpu: VCpu, base: int, entries: int) -> int:
        """MMUEXT_SET_LDT: the LDT lies at `base` in the guest's address space, `entries` descriptors long."""
        if not entries:
            base = NO_LDT
        if entries > LDT_LIMIT or base & 0xFFF or not (vcpu.domain.pv32 or vcpu.space.allowed(base)):
            return -EINVAL
        if vcpu.ldt_entries != entries or vcpu.ldt_base != base:
            if self.drop_ldt(vcpu):
                self._types.shootdown.core(vcpu.core)
            vcpu.ldt_base = base
            vcpu.ldt_entries = entries
            vcpu.load_ldt()
        return 0

    def drop_ldt(self, vcpu: VCpu) -> bool:
        """Unmap and release the LDT pages in use; whether there were any (pv_destroy_ldt). The caller
        flushes.
        """
        if not vcpu.ldt_entries:
            return False
        area = self._areas[vcpu.domain.id]
        dropped = False
        for page in range(DESCRIPTOR_PAGES):
            mfn = area.ldt_page(vcpu.id, page)
            if mfn is not None:
                area.set_ldt_page(vcpu.id, page, None)
                self._types.put_page_and_type(mfn)
                dropped = True
        return dropped

    def map_ldt_page(self, vcpu: VCpu, offset: int) -> bool:
        """The processor missed the LDT at byte `offset`: map the guest's page there; False when it cannot be.

        The caller has checked `offset` against the LDT's limit (pv_map_ldt_shadow_page).
        """
        if offset >> 3 >= vcpu.ldt_entries:
            return False
        va = vcpu.ldt_base + offset
        if vcpu.domain.pv32:
            va &= 0xFFFF_FFFF
        at = vcpu.space.entry_address(va)
        entry = self._memory.q[at >> 3] if at else 0
        if not entry & PRESENT:
            return False
        mfn = (entry & ADDRESS) >> 12
        if self._types.get_page_and_type(mfn, vcpu.domain.memory, SEGMENT_DESCRIPTORS):
            return False
        area = self._areas[vcpu.domain.id]
        if area.ldt_page(vcpu.id, offset >> 12) is not None:
            self._types.put_page_and_type(mfn)
            return False
        area.set_ldt_page(vcpu.id, offset >> 12, mfn)
        return True
