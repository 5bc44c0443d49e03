"""A small world for the memory floor: plain machine memory, cores that only remember, domains with real
page tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from firmware.hypercalls import CONTINUE, HypercallTable
from firmware.memory.descriptors import Descriptors
from firmware.memory.frames import L4_TABLE, FrameTable
from firmware.memory.grants import Grants
from firmware.memory.guest import GuestSpace
from firmware.memory.heap import FrameHeap
from firmware.memory.m2p import MachineToPhys
from firmware.memory.mmu import Mmu
from firmware.memory.owner import MemoryOwner
from firmware.memory.perdomain import PerDomain
from firmware.memory.pte import ACCESSED, DIRTY, PRESENT, RW, USER
from firmware.memory.ptwr import Ptwr
from firmware.memory.reservation import Reservation
from firmware.memory.shootdown import Shootdown
from firmware.memory.types import PageTypes
from firmware.memory.xen_slots import XenSlots

TABLE = PRESENT | RW | USER | ACCESSED | DIRTY
FIRST_FREE = 0x110
BASE = 0xFFFF_8880_0000_0000
"""Where a 64-bit domain's direct map begins."""
BASE32 = 0xC000_0000


class PlainMemory:
    """Machine memory without a machine."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.size = frames << 12
        self._bytes = np.zeros(self.size, dtype=np.uint8)
        words = self._bytes.view(np.uint64)
        self._view = memoryview(self._bytes)  # type: ignore[arg-type]
        self._words = memoryview(words)  # type: ignore[arg-type]
        self._halves = memoryview(self._bytes.view(np.uint32))  # type: ignore[arg-type]
        self.words: Any = words.view()
        self.words.flags.writeable = False
        self.q = self._words.toreadonly()
        self.d = self._halves.toreadonly()
        self.b = self._view.toreadonly()

    def write(self, paddr: int, data: bytes | memoryview) -> None:
        self._view[paddr : paddr + len(data)] = data

    def store64(self, paddr: int, value: int) -> None:
        self._words[paddr >> 3] = value

    def store32(self, paddr: int, value: int) -> None:
        self._halves[paddr >> 2] = value

    def store8(self, paddr: int, value: int) -> None:
        self._view[paddr] = value

    def fill(self, paddr: int, length: int, byte: int = 0) -> None:
        self._bytes[paddr : paddr + length] = byte

    def copy_frame(self, dst_mfn: int, src_mfn: int) -> None:
        self._bytes[dst_mfn << 12 : (dst_mfn + 1) << 12] = self._bytes[src_mfn << 12 : (src_mfn + 1) << 12]

    def read(self, paddr: int, length: int) -> bytes:
        return self._view[paddr : paddr + length].tobytes()


class PlainCore:
    """A core with a TLB and nothing else: it counts what it is asked.

    The TLB maps (bank, page) to (frame, writable); bank 0 is the kernel's, 1 the user's. `code`: frames that
    may hold translated code, `dropped`: frames it was made to let go of one by one.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.tlb: dict[tuple[int, int], tuple[int, bool]] = {}
        self.flags = 0x202
        self.root = 0
        self.flushes = 0
        self.parked_flushes = 0
        self.pages: list[int] = []
        self.dropped: list[int] = []
        self.code: set[int] = set()
        self.entered: list[tuple[int, int, bool]] = []
        self.stepping = False
        self.state = b"state"
        self.loaded: list[bytes] = []

    def load_root(self, paddr: int) -> None:
        self.root = paddr
        self.flush()

    def flush_parked(self) -> None:
        self.parked_flushes += 1
        self.tlb = {key: entry for key, entry in self.tlb.items() if key[0] == 0}

    def flush(self) -> None:
        self.flushes += 1
        self.tlb.clear()

    def flush_page(self, va: int) -> None:
        self.pages.append(va)
        for bank in (0, 1):
            self.tlb.pop((bank, va >> 12), None)

    def flush_frame(self, mfn: int) -> bool:
        if mfn in self.code:
            return False
        self.dropped.append(mfn)
        self.tlb = {key: entry for key, entry in self.tlb.items() if entry[0] != mfn}
        return True

    def releases(self, mfn: int) -> int:
        """How often it was made to let go of a frame: of that frame, or of everything."""
        return self.flushes + self.dropped.count(mfn)

    def enter_mapping(self, va: int, paddr: int, writable: bool) -> None:
        self.entered.append((va, paddr, writable))
        self.tlb[0, va >> 12] = (paddr >> 12, writable)

    def eflags(self) -> int:
        return self.flags

    def single_step(self, on: bool) -> None:
        self.stepping = on

    def save(self) -> bytes:
        return self.state

    def load(self, state: bytes) -> None:
        self.loaded.append(state)


ARGUMENTS = 0x10_0000
ARGUMENTS_SIZE = 0x1_0000


class ScratchSpace(GuestSpace):
    """A guest's memory, and beside it a place for hypercall arguments that no page table can take away."""

    __slots__ = ("scratch",)

    def __init__(self, memory: PlainMemory, owner: MemoryOwner, root: int) -> None:
        super().__init__(memory, owner, root)
        self.scratch = bytearray(ARGUMENTS_SIZE)

    def read(self, va: int, length: int) -> bytes:
        at = va - ARGUMENTS
        if at >= 0 and at + length <= ARGUMENTS_SIZE:
            return bytes(self.scratch[at : at + length])
        return super().read(va, length)

    def write(self, va: int, data: bytes) -> None:
        at = va - ARGUMENTS
        if at >= 0 and at + len(data) <= ARGUMENTS_SIZE:
            self.scratch[at : at + len(data)] = data
        else:
            super().write(va, data)

    def write64(self, va: int, value: int) -> None:
        if 0 <= va - ARGUMENTS < ARGUMENTS_SIZE:
            self.write(va, value.to_bytes(8, "little"))
        else:
            super().write64(va, value)

    def read64(self, va: int) -> int:
        at = va - ARGUMENTS
        if at >= 0 and at + 8 <= ARGUMENTS_SIZE:
            return int.from_bytes(self.scratch[at : at + 8], "little")
        return super().read64(va)


class PlainVCpu:
    def __init__(self, number: int, domain: PlainDomain, core: PlainCore, space: ScratchSpace) -> None:
        self.id = number
        self._domain, self._core, self._space = domain, core, space
        self.in_kernel = True
        self.kernel_root = 0
        self.user_root = 0
        self.gdt_frames: list[int] = []
        self.gdt_entries = 0
        self.ldt_base = 0
        self.ldt_entries = 0
        self.restarted: tuple[int, ...] | None = None

    @property
    def domain(self) -> PlainDomain:
        return self._domain

    @property
    def core(self) -> PlainCore:
        return self._core

    @core.setter
    def core(self, core: PlainCore) -> None:
        self._core = core

    @property
    def space(self) -> ScratchSpace:
        return self._space

    def load_ldt(self) -> None:
        return

    def restart(self, *arguments: int) -> None:
        self.restarted = arguments


class PlainDomain:
    def __init__(self, number: int, memory: MemoryOwner) -> None:
        self.id = number
        self.pv32 = memory.pv32
        self.vm_assist = 0
        self.shared_info = 0
        self._memory = memory
        self.all: list[PlainVCpu] = []
        self.frames: list[int] = []
        self.tables: list[int] = []
        self.root = 0
        self.base = BASE32 if memory.pv32 else BASE

    @property
    def memory(self) -> MemoryOwner:
        return self._memory

    @property
    def vcpus(self) -> Sequence[PlainVCpu]:
        return self.all

    def va(self, pfn: int) -> int:
        """Where the direct map shows guest frame `pfn`."""
        return self.base + (pfn << 12)


class World:
    """Machine memory, the frame table and all that stands on it, and domains by number."""

    def __init__(self, frames: int = 2048, cores: int = 2) -> None:
        self.memory = PlainMemory(frames)
        self.cores = [PlainCore(index) for index in range(cores)]
        self.frames = FrameTable(frames)
        self.shootdown = Shootdown(self.cores)
        self.heap = FrameHeap(self.memory, self.frames, self.shootdown, FIRST_FREE)
        self.m2p = MachineToPhys(self.memory, self.heap, self.shootdown)
        self.heap.m2p = self.m2p
        self.slots = XenSlots(self.memory, self.heap, self.m2p)
        self.types = PageTypes(self.memory, self.frames, self.heap, self.shootdown, self.slots)
        self.descriptors = Descriptors(self.types)
        self.domains: dict[int, PlainDomain] = {}
        self.mmu = Mmu(self.types, self.m2p, self.descriptors, self)
        self.reservation = Reservation(self.types, self.m2p, self)
        self.grants = Grants(self.types, self.mmu.update, self)
        self.ptwr = Ptwr(self.types, self.mmu.update)
        self.log: list[str] = []
        self.restarts = 0
        self.between: Callable[[PlainVCpu], None] | None = None
        """Called whenever a call is about to be restarted: other vCPUs may act."""
        self.table = HypercallTable(self.log.append)
        self.mmu.register(self.table)
        self.descriptors.register(self.table)
        self.reservation.register(self.table)
        self.grants.register(self.table)

    def by_id(self, domid: int) -> PlainDomain | None:
        return self.domains.get(domid)

    def domain(
        self, number: int, pages: int = 128, vcpus: int = 1, *, pv32: bool = False, maximum: int | None = None
    ) -> PlainDomain:
        """A domain of `pages` frames whose direct map shows all of them, its tables read-only; the root is
        pinned.
        """
        owner = MemoryOwner(number, pv32=pv32, maximum=pages if maximum is None else maximum, vcpus=vcpus)
        self.types.add_owner(owner)
        domain = PlainDomain(number, owner)
        area = PerDomain(self.memory, self.heap, owner)
        self.descriptors.add(number, area)
        frames = domain.frames = self.heap.allocate(owner, pages)
        for pfn, mfn in enumerate(frames):
            self.m2p.set(mfn, pfn)
        root = (self._build32 if pv32 else self._build64)(domain)
        domain.root = root
        assert self.types.pin_root(root, owner) == 0
        self.domains[number] = domain
        self.grants.table(owner)
        for index in range(vcpus):
            core = self.cores[index % len(self.cores)]
            vcpu = PlainVCpu(index, domain, core, ScratchSpace(self.memory, owner, root << 12))
            domain.all.append(vcpu)
            assert self.types.get_page_and_type(root, owner, 3 if pv32 else L4_TABLE) == 0
            vcpu.kernel_root = root
            self.shootdown.enter(core, owner)
            self.shootdown.load_root(core, root << 12)
        return domain

    def _build64(self, domain: PlainDomain) -> int:
        frames = domain.frames
        count = (len(frames) + 511) // 512
        l4, l3, l2, *l1 = frames[-3 - count :]
        domain.tables = [l4, l3, l2, *l1]
        store = self.memory.store64
        store((l4 << 12) + (BASE >> 39 & 511) * 8, l3 << 12 | TABLE)
        store(l3 << 12, l2 << 12 | TABLE)
        self._fill(domain, l2, 0, l1)
        return l4

    def _build32(self, domain: PlainDomain) -> int:
        frames = domain.frames
        count = (len(frames) + 511) // 512
        (
            l3,
            *l2,
        ) = frames[-5 - count : -count]
        l1 = frames[-count:]
        domain.tables = [l3, *l2, *l1]
        for slot, mfn in enumerate(l2):
            self.memory.store64((l3 << 12) + slot * 8, mfn << 12 | PRESENT)
        self._fill(domain, l2[3], 0, l1)
        return l3

    def _fill(self, domain: PlainDomain, l2: int, slot: int, l1: list[int]) -> None:
        store = self.memory.store64
        for index, table in enumerate(l1):
            store((l2 << 12) + (slot + index) * 8, table << 12 | TABLE)
            for entry, mfn in enumerate(domain.frames[index * 512 : (index + 1) * 512]):
                flags = TABLE & ~(RW | DIRTY) if mfn in domain.tables else TABLE
                store((table << 12) + entry * 8, mfn << 12 | flags & ~USER)

    def schedule(self, vcpu: PlainVCpu, core: PlainCore) -> None:
        """Let `vcpu` run on `core`, as the scheduler does: everything there is flushed."""
        vcpu.core = core
        self.shootdown.leave(core)
        self.shootdown.enter(core, vcpu.domain.memory)
        self.shootdown.load_root(core, vcpu.kernel_root << 12)

    def destroy(self, domain: PlainDomain) -> None:
        """The end of a domain: no vCPU runs, roots and descriptor tables go, then everything it owns."""
        owner = domain.memory
        for vcpu in domain.all:
            self.descriptors.drop_ldt(vcpu)
            self.descriptors.drop_gdt(vcpu)
            for root in (vcpu.kernel_root, vcpu.user_root):
                if root:
                    self.types.give_up(root)
            vcpu.kernel_root = vcpu.user_root = 0
        for core in self.cores:
            if core in owner.cores:
                core.flush()
                self.shootdown.leave(core)
        self.grants.release(owner)
        while self.types.release_all(owner):
            pass
        self.descriptors.remove(domain.id).release(self.heap)
        self.types.remove_owner(owner)
        del self.domains[domain.id]

    def call(self, vcpu: PlainVCpu, name: str, *arguments: int) -> int:
        """Make a hypercall by name, following restarts."""
        number = next(row.number for row in self.table.rows if row is not None and row.name == name)
        row = self.table.rows[number]
        assert row is not None
        handler = self.table.handlers[number]
        assert handler is not None, name
        while True:
            result = self.table.call(vcpu, number, arguments)
            if result != CONTINUE:
                return result
            assert vcpu.restarted is not None
            arguments, vcpu.restarted = vcpu.restarted, None
            self.restarts += 1
            if self.between is not None:
                self.between(vcpu)

    def entry(self, table: int, slot: int) -> int:
        return int(self.memory.q[(table << 9) + slot])
