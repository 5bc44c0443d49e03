"""What a guest can do to its memory, as single calls: the operations of the stateful test and of the unit
tests.
"""

from __future__ import annotations

from struct import pack

from firmware.abi import grant_table as gnt
from firmware.abi import memory as mem
from firmware.abi import xen
from firmware.hypercalls import GuestFault
from firmware.memory.frames import L3_TABLE, L4_TABLE, PINNED
from firmware.memory.pte import ADDRESS, PRESENT, RW
from tests.memory.reference import Ledger
from tests.memory.world import ARGUMENTS, PlainVCpu, World

SELF = 0x7FF0
PIN_LEVEL = {
    xen.MMUEXT_PIN_L1_TABLE: 1,
    xen.MMUEXT_PIN_L2_TABLE: 2,
    xen.MMUEXT_PIN_L3_TABLE: 3,
    xen.MMUEXT_PIN_L4_TABLE: 4,
}


def map_l1(vcpu: PlainVCpu, world: World, va: int) -> tuple[int, bool] | None:
    """What the processor finds for `va` from the root of the mode the vCPU is in: (frame, writable)."""
    pv32 = vcpu.domain.pv32
    at = vcpu.kernel_root << 12
    writable = True
    for shift in (30, 21, 12) if pv32 else (39, 30, 21, 12):
        entry = world.memory.q[(at >> 3) + (va >> shift & 511)]
        if not entry & PRESENT:
            return None
        writable = writable and bool(entry & RW)
        at = entry & ADDRESS
    return at >> 12, writable


class Guest:
    """One vCPU's calls. A ledger of pins is kept beside."""

    def __init__(self, world: World, vcpu: PlainVCpu, ledger: Ledger) -> None:
        self.world = world
        self.vcpu = vcpu
        self.ledger = ledger

    @property
    def pv32(self) -> bool:
        return self.vcpu.domain.pv32

    def pass_bytes(self, data: bytes, at: int = 0) -> int:
        """Put an argument where the hypercall finds it."""
        self.vcpu.space.write(ARGUMENTS + at, data)
        return ARGUMENTS + at

    def mmu_update(self, *requests: tuple[int, int], foreign: int = SELF, done: int = 0) -> int:
        at = self.pass_bytes(b"".join(pack("<QQ", ptr, value) for ptr, value in requests))
        return self.world.call(self.vcpu, "mmu_update", at, len(requests), done, foreign)

    def extended(self, command: int, first: int = 0, second: int = 0, foreign: int = SELF) -> int:
        form = "<III" if self.pv32 else "<IxxxxQQ"
        word = 0xFFFF_FFFF if self.pv32 else (1 << 64) - 1
        at = self.pass_bytes(pack(form, command, first & word, second & word))
        result = self.world.call(self.vcpu, "mmuext_op", at, 1, 0, foreign)
        if result == 0 and command in PIN_LEVEL and not (self.pv32 and PIN_LEVEL[command] == 4):
            self.ledger.pins[first] = PIN_LEVEL[command]
        if result == 0 and command == xen.MMUEXT_UNPIN_TABLE and not self.world.types.types[first] & PINNED:
            self.ledger.pins.pop(first)
        return result

    def update_va_mapping(self, va: int, value: int, flags: int) -> int:
        if self.pv32:
            return self.world.mmu.update_va_mapping(self.vcpu, va, value & 0xFFFF_FFFF, value >> 32, flags)
        return self.world.call(self.vcpu, "update_va_mapping", va, value, flags)

    def set_gdt(self, frames: list[int], entries: int) -> int:
        form = f"<{len(frames)}{'I' if self.pv32 else 'Q'}"
        word = 0xFFFF_FFFF if self.pv32 else (1 << 64) - 1
        return self.world.call(
            self.vcpu, "set_gdt", self.pass_bytes(pack(form, *(mfn & word for mfn in frames))), entries
        )

    def reservation(self, command: int, frames: list[int], order: int = 0, domid: int = SELF) -> int:
        variant = mem.xen_memory_reservation.w32 if self.pv32 else mem.xen_memory_reservation.w64
        extents = self.pass_bytes(pack(f"<{len(frames)}{'I' if self.pv32 else 'Q'}", *frames), 0x100)
        at = self.pass_bytes(
            variant.pack(extent_start=extents, nr_extents=len(frames), extent_order=order, domid=domid)
        )
        return self.world.call(self.vcpu, "memory_op", command, at)

    def extent(self, index: int) -> int:
        width = 4 if self.pv32 else 8
        return int.from_bytes(self.vcpu.space.read(ARGUMENTS + 0x100 + index * width, width), "little")

    def exchange(self, frames: list[int], pfns: list[int], in_order: int = 0, out_order: int = 0) -> int:
        wide = not self.pv32
        variant = mem.xen_memory_exchange.of(wide)
        form = "Q" if wide else "I"
        source = self.pass_bytes(pack(f"<{len(frames)}{form}", *frames), 0x100)
        target = self.pass_bytes(pack(f"<{len(pfns)}{form}", *pfns), 0x800)
        at = self.pass_bytes(
            variant.pack(
                in_={
                    "extent_start": source,
                    "nr_extents": len(frames),
                    "extent_order": in_order,
                    "domid": SELF,
                },
                out={
                    "extent_start": target,
                    "nr_extents": len(pfns),
                    "extent_order": out_order,
                    "domid": SELF,
                },
            )
        )
        return self.world.call(self.vcpu, "memory_op", mem.XENMEM_exchange, at)

    def grant(self, ref: int, domid: int, mfn: int, flags: int) -> None:
        """Write an entry of the domain's own grant table, as its kernel does."""
        table = self.world.grants.table(self.vcpu.domain.memory)
        if ref < table.entries:
            table.store_entry(ref, flags | domid << 16, mfn)

    def grant_op(self, command: int, layout: object, **fields: object) -> dict[str, int]:
        """One grant operation; its structure afterwards, with the call's own result as "result"."""
        variant = layout.of(not self.pv32)  # type: ignore[attr-defined]
        at = self.pass_bytes(variant.pack(**fields))
        result = self.world.call(self.vcpu, "grant_table_op", command, at, 1)
        answer: dict[str, int] = variant.unpack(self.vcpu.space.read(at, variant.size))._asdict()
        return {**answer, "result": result}

    def map_grant(self, domid: int, ref: int, flags: int, address: int) -> tuple[int, int]:
        answer = self.grant_op(
            gnt.GNTTABOP_map_grant_ref,
            gnt.gnttab_map_grant_ref,
            host_addr=address,
            flags=flags,
            ref=ref,
            dom=domid,
        )
        return answer["status"], answer["handle"]

    def unmap_grant(self, handle: int, address: int, bus: int = 0) -> int:
        return self.grant_op(
            gnt.GNTTABOP_unmap_grant_ref,
            gnt.gnttab_unmap_grant_ref,
            host_addr=address,
            dev_bus_addr=bus,
            handle=handle,
        )["status"]

    def touch(self, va: int, write: bool) -> bool:
        """Access memory as the processor does: walk, fill the TLB."""
        core = self.vcpu.core
        known = core.tlb.get((0, va >> 12))
        if known is not None and (known[1] or not write):
            return True
        found = map_l1(self.vcpu, self.world, va)
        if found is None or (write and not found[1]):
            return False
        core.tlb[0, va >> 12] = found
        return True

    def scribble(self, va: int, word: int) -> bool:
        """Store a word into memory the guest may write, through the TLB as it is."""
        if va & 7 or not self.touch(va, True):
            return False
        mfn, writable = self.vcpu.core.tlb[0, va >> 12]
        assert writable
        self.world.memory.store64(mfn << 12 | va & 0xFFF, word)
        return True

    def store_to_table(self, va: int, word: int, size: int = 8) -> bool | None:
        """A store to a read-only table, as the page-fault path runs it; None when it is not one it
        emulates.
        """
        ptwr, core = self.world.ptwr, self.vcpu.core
        if not ptwr.begin(self.vcpu, va, 3):
            return None
        mfn, writable = core.tlb[0, va >> 12]
        assert writable
        assert core.stepping
        self.world.memory.write(mfn << 12 | va & 0xFFF, word.to_bytes(8, "little")[:size])
        return ptwr.finish(self.vcpu)

    def root_level(self) -> int:
        return L3_TABLE if self.pv32 else L4_TABLE

    def reads(self, va: int) -> bool:
        """Whether the guest's own tables let the hypervisor read `va`."""
        try:
            self.vcpu.space.read(va, 1)
        except GuestFault:
            return False
        return True
