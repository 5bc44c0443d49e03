"""Xen's own slots in every root: what a guest's L4 table holds in entries 256 to 271, and a PAE guest's last
L2.

Slot 256 is the read-only machine-to-phys table, slot 258 the root itself, closed to the guest: nobody uses
it, but a former root still has it, and cannot be another kind of table for that. Slot 260 is the per-domain
area. The other Xen slots are empty here: Xen's own memory is not mapped in this machine.
"""

from __future__ import annotations

from typing import Final

from firmware.memory.heap import FrameHeap
from firmware.memory.m2p import MachineToPhys
from firmware.memory.owner import MachineMemory, MemoryOwner
from firmware.memory.pte import ACCESSED, DIRTY, NO_EXECUTE, PRESENT, RW, USER

FIRST_XEN_SLOT: Final = 256
LAST_XEN_SLOT: Final = 271
"""ROOT_PAGETABLE_FIRST_XEN_SLOT and ROOT_PAGETABLE_LAST_XEN_SLOT (x86 config.h)."""
M2P_SLOT: Final = 256
LINEAR_SLOT: Final = 258
PERDOMAIN_SLOT: Final = 260
COMPAT_START: Final = 0xF580_0000
"""HYPERVISOR_COMPAT_VIRT_START: where Xen's part of a 32-bit guest's address space begins
(arch-x86/xen-x86_32.h).
"""
COMPAT_FIRST_XEN_SLOT: Final = (COMPAT_START >> 21) & 511
"""The first entry of a PAE_XEN_L2 table that is Xen's."""


class XenSlots:
    """The tables below Xen's slots that all domains share."""

    __slots__ = ("_memory", "compat_entries", "m2p_entry")

    def __init__(self, memory: MachineMemory, heap: FrameHeap, m2p: MachineToPhys) -> None:
        self._memory = memory
        l3 = heap.xen_frame() << 12
        flags = PRESENT | USER | ACCESSED
        for page, entry in enumerate(m2p.wide.directory):
            directory, slot = divmod(page, 512)
            if slot == 0:
                l2 = heap.xen_frame() << 12
                memory.store64(l3 + directory * 8, l2 | flags)
            memory.store64(l2 + slot * 8, entry)
        self.m2p_entry = l3 | flags | NO_EXECUTE
        # Ring 1 is supervisor mode: Xen leaves the user bit out, and a 32-bit guest's users see no table.
        self.compat_entries = tuple(entry & ~USER for entry in m2p.compat.directory)

    def fill_root(self, l4: int, owner: MemoryOwner, *, read_only_m2p: bool) -> None:
        """Write all of Xen's slots into the L4 table at machine address `l4` (init_xen_l4_slots)."""
        entries = bytearray((LAST_XEN_SLOT + 1 - FIRST_XEN_SLOT) * 8)
        if read_only_m2p:
            entries[0:8] = self.m2p_entry.to_bytes(8, "little")
        for slot, entry in (
            (LINEAR_SLOT, l4 | PRESENT | RW | ACCESSED | DIRTY | NO_EXECUTE),
            (PERDOMAIN_SLOT, owner.perdomain_entry),
        ):
            at = (slot - FIRST_XEN_SLOT) * 8
            entries[at : at + 8] = entry.to_bytes(8, "little")
        self._memory.write(l4 + FIRST_XEN_SLOT * 8, bytes(entries))

    def show_m2p(self, l4: int) -> None:
        """Let the root at machine address `l4` see the table (fill_ro_mpt)."""
        if not self._memory.q[(l4 >> 3) + M2P_SLOT]:
            self._memory.store64(l4 + M2P_SLOT * 8, self.m2p_entry)

    def hide_m2p(self, l4: int) -> None:
        """Take the table out of the root at machine address `l4` (zap_ro_mpt)."""
        self._memory.store64(l4 + M2P_SLOT * 8, 0)

    def fill_compat(self, l2: int, owner: MemoryOwner) -> None:
        """Write Xen's entries into a 32-bit guest's last L2 table at machine address `l2`
        (init_xen_pae_l2_slots).
        """
        entries = bytearray((512 - COMPAT_FIRST_XEN_SLOT) * 8)
        for index, entry in enumerate(self.compat_entries):
            entries[index * 8 : index * 8 + 8] = entry.to_bytes(8, "little")
        for slot, entry in owner.compat_entries:
            at = (slot - COMPAT_FIRST_XEN_SLOT) * 8
            entries[at : at + 8] = entry.to_bytes(8, "little")
        self._memory.write(l2 + COMPAT_FIRST_XEN_SLOT * 8, bytes(entries))
