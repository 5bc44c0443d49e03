"""Checked access to a guest's memory by its own virtual addresses.

Addresses go through the guest's own page tables, with the rights its kernel has: read-only pages are not
written, Xen's part of the address space is not touched at all, accessed and dirty bits are set as the
processor would. The L1 table of each 2 MiB of address space is remembered until a table above an L1 of the
domain changes.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from firmware.hypercalls import GuestFault
from firmware.memory.owner import MachineMemory, MemoryOwner
from firmware.memory.pte import ACCESSED, ADDRESS, DIRTY, PRESENT, RW

LOW_END: Final = 1 << 47
HYPERVISOR_END: Final = 0xFFFF_8800_0000_0000
"""A 64-bit guest's addresses are those below LOW_END and from HYPERVISOR_VIRT_END on (x86_64 __addr_ok)."""
TOP: Final = 1 << 64
COMPAT_END: Final = 0xF580_0000
"""A 32-bit guest's addresses end here."""
READABLE: Final = PRESENT | ACCESSED
WRITABLE: Final = PRESENT | ACCESSED | RW | DIRTY
SAME_TABLE: Final = ADDRESS | PRESENT | RW
"""What two root entries must agree in to lead to the same place with the same rights."""


class GuestSpace:
    """One vCPU's kernel address space. Every method raises GuestFault for an address the guest may not use
    so.
    """

    __slots__ = (
        "_b",
        "_generation",
        "_memory",
        "_owner",
        "_q",
        "_read_tables",
        "_root",
        "_slots",
        "_store64",
        "_write",
        "_write_tables",
    )

    def __init__(self, memory: MachineMemory, owner: MemoryOwner, root: int = 0) -> None:
        self._memory = memory
        self._owner = owner
        self._q = memory.q
        self._b = memory.b
        self._write = memory.write
        self._store64 = memory.store64
        self._root = root
        self._generation = -1
        self._slots: list[int] = []
        self._read_tables: dict[int, int] = {}
        self._write_tables: dict[int, int] = {}

    @property
    def root(self) -> int:
        """Machine address of the root: the L4 table, or a PAE guest's L3 table."""
        return self._root

    @root.setter
    def root(self, paddr: int) -> None:
        """What is remembered stays where the new root names the same tables, as a kernel's half of all its
        roots does.
        """
        q, old, new = self._q, self._root >> 3, paddr >> 3
        for slot in self._slots:
            if (q[old + slot] ^ q[new + slot]) & SAME_TABLE:
                self._generation = -1
                break
        self._root = paddr

    def read(self, va: int, length: int) -> bytes:
        """`length` bytes from `va` on."""
        table = self._read_tables.get(va >> 21)
        if table is not None and self._generation == self._owner.generation:
            entry = self._q[table + (va >> 12 & 511)]
            offset = va & 4095
            if entry & READABLE == READABLE and offset + length <= 4096:
                start = (entry & ADDRESS) + offset
                return self._b[start : start + length].tobytes()
        return self._read_slowly(va, length)

    def write(self, va: int, data: bytes) -> None:
        """Write `data` to `va` on."""
        table = self._write_tables.get(va >> 21)
        if table is not None and self._generation == self._owner.generation:
            entry = self._q[table + (va >> 12 & 511)]
            offset = va & 4095
            if entry & WRITABLE == WRITABLE and offset + len(data) <= 4096:
                self._write((entry & ADDRESS) + offset, data)
                return
        self._write_slowly(va, data)

    def read64(self, va: int) -> int:
        """The 64-bit word at `va`, aligned or not."""
        table = self._read_tables.get(va >> 21)
        if table is not None and not va & 7 and self._generation == self._owner.generation:
            entry = self._q[table + (va >> 12 & 511)]
            if entry & READABLE == READABLE:
                word: int = self._q[(entry & ADDRESS | va & 4095) >> 3]
                return word
        return int.from_bytes(self._read_slowly(va, 8), "little")

    def read32(self, va: int) -> int:
        """The 32-bit word at `va`."""
        return int.from_bytes(self.read(va, 4), "little")

    def write32(self, va: int, value: int) -> None:
        """Write a 32-bit word."""
        self.write(va, value.to_bytes(4, "little"))

    def write64(self, va: int, value: int) -> None:
        """Write a 64-bit word."""
        table = self._write_tables.get(va >> 21)
        if table is not None and not va & 7 and self._generation == self._owner.generation:
            entry = self._q[table + (va >> 12 & 511)]
            if entry & WRITABLE == WRITABLE:
                self._store64(entry & ADDRESS | va & 4095, value)
                return
        self.write(va, value.to_bytes(8, "little"))

    def unpack_words(self, va: int, codec: Struct) -> tuple[int, ...]:
        """What `codec` finds at `va`."""
        table = self._read_tables.get(va >> 21)
        if table is not None and self._generation == self._owner.generation:
            entry = self._q[table + (va >> 12 & 511)]
            offset = va & 4095
            if entry & READABLE == READABLE and offset + codec.size <= 4096:
                return codec.unpack_from(self._b, (entry & ADDRESS) + offset)
        return codec.unpack(self.read(va, codec.size))

    def unpack(self, va: int, variant: Any) -> Any:
        """The structure at `va`, as the variant's named tuple."""
        return variant.unpack(self.read(va, variant.size))

    def translate(self, va: int, write: bool) -> int:
        """The machine address behind `va`, for reading or for writing."""
        tables = self._write_tables if write else self._read_tables
        table = tables.get(va >> 21)
        if table is not None and self._generation == self._owner.generation:
            entry = self._q[table + (va >> 12 & 511)]
            need = WRITABLE if write else READABLE
            if entry & need == need:
                return int(entry & ADDRESS | va & 4095)
        return self._walk(va, write)

    def entry_address(self, va: int) -> int:
        """Machine address of the L1 entry that maps `va`; 0 when there is no L1 table there
        (map_guest_l1e).
        """
        table = self._read_tables.get(va >> 21)
        if table is not None and self._generation == self._owner.generation:
            return (table + (va >> 12 & 511)) << 3
        try:
            table = self._descend(va, False)
        except GuestFault:
            return 0
        return (table + (va >> 12 & 511)) << 3

    def allowed(self, va: int, length: int = 1) -> bool:
        """Whether the guest may name these addresses at all (access_ok), mapped or not. Of a 64-bit guest's
        only the first is looked at: what lies behind is judged when it is used.
        """
        if self._owner.pv32:
            return va + length <= COMPAT_END
        return va < LOW_END or HYPERVISOR_END <= va < TOP

    def read_at(self, root: int, va: int, length: int) -> bytes:
        """As `read`, through another root of the same guest (its user tables)."""
        saved, self.root = self._root, root
        try:
            return self.read(va, length)
        finally:
            self.root = saved

    def _read_slowly(self, va: int, length: int) -> bytes:
        parts = []
        while length > 0:
            here = min(length, 4096 - (va & 4095))
            start = self._walk(va, False)
            parts.append(self._b[start : start + here].tobytes())
            va += here
            length -= here
        return b"".join(parts)

    def _write_slowly(self, va: int, data: bytes) -> None:
        at, length = 0, len(data)
        while at < length:
            here = min(length - at, 4096 - (va & 4095))
            start = self._walk(va, True)
            self._write(start, data[at : at + here])
            va += here
            at += here

    def _walk(self, va: int, write: bool) -> int:
        """Walk the tables for one access: sets accessed and dirty bits, remembers the L1 table."""
        index = self._descend(va, write) + (va >> 12 & 511)
        entry = self._q[index]
        if not entry & PRESENT or (write and not entry & RW):
            raise GuestFault(va)
        marked = entry | (ACCESSED | DIRTY if write else ACCESSED)
        if marked != entry:
            self._memory.store64(index << 3, marked)
        return int(entry & ADDRESS | va & 4095)

    def _descend(self, va: int, write: bool) -> int:
        """The word index of the L1 table for `va`. A guest has no superpages."""
        if not self.allowed(va):
            raise GuestFault(va)
        if self._generation != self._owner.generation:
            self._read_tables.clear()
            self._write_tables.clear()
            self._slots.clear()
            self._generation = self._owner.generation
        q = self._q
        pv32 = self._owner.pv32
        at = self._root
        rights = RW
        for shift in (30, 21) if pv32 else (39, 30, 21):
            index = (at >> 3) + (va >> shift & 511)
            entry = q[index]
            at = entry & ADDRESS
            if pv32 and shift == 30 and entry & PRESENT:
                continue  # a PAE L3 entry has neither rights nor an accessed bit (Intel SDM volume 3, 4.4.1)
            if not entry & PRESENT or (write and not entry & RW):
                raise GuestFault(va)
            if not entry & ACCESSED:
                self._memory.store64(index << 3, entry | ACCESSED)
            rights &= entry
        slot = va >> 30 & 3 if pv32 else va >> 39 & 511
        if slot not in self._slots:
            self._slots.append(slot)
        table = at >> 3
        self._read_tables[va >> 21] = table
        if rights:
            self._write_tables[va >> 21] = table
        return table
