"""The memory floor as one thing: the machine's frame table, heap, tables and types, put together once.

The floors above take from here what they need; nothing here is policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from firmware.abi import errno
from firmware.hypercalls import HypercallTable
from firmware.memory.descriptors import Descriptors
from firmware.memory.frames import L3_TABLE, L4_TABLE, WRITABLE, FrameTable
from firmware.memory.grants import Grants
from firmware.memory.heap import FrameHeap
from firmware.memory.m2p import MachineToPhys
from firmware.memory.mmu import Mmu
from firmware.memory.owner import Core, Domain, Domains, MachineMemory, VCpu
from firmware.memory.perdomain import COMPAT_DESCRIPTORS, FLAT_DESCRIPTORS, PerDomain
from firmware.memory.ptwr import Ptwr
from firmware.memory.reservation import Reservation
from firmware.memory.shootdown import Shootdown
from firmware.memory.types import PageTypes
from firmware.memory.xen_slots import XenSlots


class MemoryFloor:
    """Every subsystem of memory, for one machine."""

    def __init__(
        self, memory: MachineMemory, cores: Sequence[Core], first_free: int, domains: Domains
    ) -> None:
        self._memory = memory
        self.frames = FrameTable(memory.frames)
        self.shootdown = Shootdown(cores)
        self.heap = FrameHeap(memory, self.frames, self.shootdown, first_free)
        self.m2p = MachineToPhys(memory, self.heap, self.shootdown)
        self.heap.m2p = self.m2p
        self.slots = XenSlots(memory, self.heap, self.m2p)
        self.types = PageTypes(memory, self.frames, self.heap, self.shootdown, self.slots)
        self.descriptors = Descriptors(self.types)
        self.mmu = Mmu(self.types, self.m2p, self.descriptors, domains)

        self.reservation = Reservation(self.types, self.m2p, domains)
        self.grants = Grants(self.types, self.mmu.update, domains)
        self.ptwr = Ptwr(self.types, self.mmu.update)
        self.held: dict[int, list[int]] = {}
        """By domain: frames of its own that Xen or a backend writes by their machine address."""

    def register(self, table: HypercallTable) -> None:
        """Put every memory hypercall into the table."""
        for part in (self.mmu, self.descriptors, self.reservation, self.grants):
            part.register(table)

    # --- domains --------------------------------------------------------------------------------------------

    def add_domain(self, domain: Domain) -> None:
        """A new owner, with a per-domain area."""
        owner = domain.memory
        self.types.add_owner(owner)
        self.descriptors.add(domain.id, PerDomain(self._memory, self.heap, owner))

    def remove_domain(self, domain: Domain) -> None:
        """Take everything back from a domain none of whose vCPUs is on a core."""
        owner = domain.memory
        for vcpu in domain.vcpus:
            if vcpu is not None:
                self._drop_vcpu(vcpu)
        for mfn in self.held.pop(domain.id, ()):
            self.types.put_page_and_type(mfn)
        self.grants.release(owner)
        while self.types.release_all(owner):
            pass
        self.grants.free_table(owner)
        self.reservation.forget(domain.id)
        self.descriptors.remove(domain.id).release(self.heap)
        self.types.remove_owner(owner)

    def _drop_vcpu(self, vcpu: VCpu) -> None:
        self.descriptors.drop_ldt(vcpu)
        self.descriptors.drop_gdt(vcpu)
        for root in (vcpu.kernel_root, vcpu.user_root):
            if root:
                self.types.give_up(root)
        vcpu.kernel_root = vcpu.user_root = 0

    def name_frames(self, frames: Sequence[int] | np.ndarray[Any, Any]) -> None:
        """The machine-to-phys entries of a new domain: frame `frames[pfn]` is its pfn, in runs."""
        mfns = np.asarray(frames, dtype=np.int64)
        starts = np.flatnonzero(np.concatenate(([True], np.diff(mfns) != 1)))
        ends = np.append(starts[1:], len(mfns))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            self.m2p.set_range(int(mfns[start]), start, end - start)

    # --- what contexts need (firmware.domain.context.Roots) -------------------------------------------------

    def take_root(self, vcpu: VCpu, mfn: int, *, kernel: bool) -> int:
        """Reference and type of a vCPU's kernel or user root: 0, a negative errno, or -ERESTART, and the same
        call goes on. Only the right ones see the M2P.
        """
        owner = vcpu.domain.memory
        kind = L3_TABLE if owner.pv32 else L4_TABLE
        result = self.types.take_table(mfn, owner, kind, self.types.step)
        if not result and not owner.pv32:
            if kernel and not owner.m2p_strict:
                self.slots.show_m2p(mfn << 12)
            elif not kernel and owner.m2p_strict:
                self.slots.hide_m2p(mfn << 12)
        return result

    def give_root(self, mfn: int) -> None:
        """Give back what `take_root` took."""
        self.types.give_up(mfn)

    def set_gdt(self, vcpu: VCpu, frames: list[int], entries: int) -> int:
        """Use these frames as a vCPU's GDT: 0 or -EINVAL."""
        return self.descriptors.install_gdt(vcpu, frames, entries)

    def start_root(self, vcpu: VCpu, mfn: int) -> int:
        """The root a domain is built with: pinned, and loaded by vCPU 0. 0 or a negative errno (a builder's
        mistake).
        """
        owner = vcpu.domain.memory
        result = self.types.pin_root(mfn, owner) or self.take_root(vcpu, mfn, kernel=True)
        if not result:
            vcpu.kernel_root = mfn
            vcpu.space.root = mfn << 12
        return result

    # --- what vCPUs need (firmware.vcpus.InfoPages) ---------------------------------------------------------

    def take_info_frame(self, vcpu: VCpu, mfn: int) -> int:
        """A writable frame of the guest's for its vcpu_info: 0 or -EINVAL."""
        return self.hold(vcpu.domain, mfn)

    def hold(self, domain: Domain, mfn: int) -> int:
        """A frame of a domain's that is written by its machine address from now on: as long as the domain
        lives it keeps its owner and is no table. 0 or -EINVAL.
        """
        if self.types.get_page_and_type(mfn, domain.memory, WRITABLE):
            return -errno.EINVAL
        self.held.setdefault(domain.id, []).append(mfn)
        return 0

    # --- what segment loads need (firmware.traps.segments.Tables) -------------------------------------------

    def reserved(self, selector: int, pv32: bool) -> int | None:
        """Xen's own descriptor for a selector in its part of the GDT."""
        index = selector & ~7
        for known, descriptor in (COMPAT_DESCRIPTORS if pv32 else FLAT_DESCRIPTORS).items():
            if known & ~7 == index:
                return descriptor
        return None

    def ldt_frame(self, vcpu: VCpu, page: int) -> int | None:
        """The frame of one LDT page, mapped first if it is not yet."""
        area = self.descriptors.area(vcpu.domain.id)
        if area.ldt_page(vcpu.id, page) is None and not self.descriptors.map_ldt_page(vcpu, page << 12):
            return None
        return area.ldt_page(vcpu.id, page)
