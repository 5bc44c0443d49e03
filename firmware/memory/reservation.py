"""memory_op: a domain's reservation, as an unprivileged PV guest sees it (Xen 4.17 common/memory.c,
x86/mm.c).

Increase, decrease, populate and exchange report how many extents they did rather than an error. Long requests
are restarted with the number done in the upper bits of the command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from firmware.abi import memory as abi
from firmware.abi import xen
from firmware.abi.errno import EINVAL, ENOSYS, EPERM, ESRCH
from firmware.abi.xen import DOMID_SELF
from firmware.hypercalls import CONTINUE, GuestFault, HypercallError, HypercallTable
from firmware.memory.exchange import MAX_ORDER, SLICE_FRAMES, WORD, Exchange, frame_limit
from firmware.memory.foreign import ForeignOps
from firmware.memory.m2p import SUPERPAGE_FRAMES, MachineToPhys, SparseTable
from firmware.memory.owner import Domain, Domains, MemoryOwner, VCpu
from firmware.memory.types import PageTypes

COMMAND_BITS: Final = 6
"""MEMOP_EXTENT_SHIFT: the bits above hold how many extents an interrupted call has done."""
COMMAND_MASK: Final = (1 << COMMAND_BITS) - 1
EXTENTS_LIMIT: Final = 0xFFFF_FFFF >> COMMAND_BITS
MAP_LIMIT: Final = 1024
"""E820MAX."""
M2P_START: Final = 0xFFFF_8000_0000_0000
M2P_END: Final = 0xFFFF_8040_0000_0000
COMPAT_M2P_START: Final = 0xF580_0000
COMPAT_M2P_END: Final = 0xFFE0_0000


class _Extents:
    """One request: a list of extents of the same order in a guest's memory."""

    __slots__ = ("below", "count", "domain", "done", "order", "start", "width")

    def __init__(
        self, domain: Domain, start: int, count: int, order: int, done: int, below: int, width: int
    ) -> None:
        self.domain = domain
        self.start = start
        self.count = count
        self.order = order
        self.done = done
        self.below = below
        self.width = width

    def address(self, index: int) -> int:
        return self.start + index * self.width


class Reservation:
    """The handler. A domain's memory map is `set_memory_map`'s, or all its memory from 0 on."""

    __slots__ = ("_commands", "_domains", "_heap", "_m2p", "_maps", "_size", "_types")

    def __init__(self, types: PageTypes, m2p: MachineToPhys, domains: Domains) -> None:
        self._types = types
        self._heap = types.heap
        self._size = types.frames.size
        self._m2p = m2p
        self._domains = domains
        self._maps: dict[int, tuple[tuple[int, int, int], ...]] = {}
        self._commands: dict[int, Callable[[VCpu, int, int], int]] = {
            abi.XENMEM_increase_reservation: self._adjust(self._increase),
            abi.XENMEM_decrease_reservation: self._adjust(self._decrease),
            abi.XENMEM_populate_physmap: self._adjust(self._populate),
            abi.XENMEM_exchange: Exchange(types, m2p, domains).exchange,
            abi.XENMEM_maximum_ram_page: self._maximum_ram_page,
            abi.XENMEM_current_reservation: self._statistic(lambda domain: domain.memory.pages),
            abi.XENMEM_maximum_reservation: self._statistic(lambda domain: domain.memory.maximum),
            abi.XENMEM_maximum_gpfn: self._statistic(self._maximum_gpfn),
            abi.XENMEM_machphys_mapping: self._machphys_mapping,
            abi.XENMEM_machphys_mfn_list: self._machphys_list,
            abi.XENMEM_machphys_compat_mfn_list: self._machphys_compat_list,
            abi.XENMEM_memory_map: self._memory_map,
            abi.XENMEM_set_memory_map: self._set_memory_map,
            **ForeignOps(domains).commands,
        }

    def register(self, table: HypercallTable) -> None:
        """Enter the handler into the hypercall table."""
        table.register("memory_op", self.memory_op)

    def set_memory_map(self, domid: int, entries: tuple[tuple[int, int, int], ...]) -> None:
        """Give a domain its memory map: (address, bytes, E820 type) each."""
        self._maps[domid] = entries

    def forget(self, domid: int) -> None:
        """A domain is gone."""
        self._maps.pop(domid, None)

    def memory_op(self, vcpu: VCpu, cmd: int, arg: int) -> int:
        """Hypercall: run one command on its argument structure."""
        cmd &= WORD if not vcpu.domain.pv32 else 0xFFFF_FFFF
        command = self._commands.get(cmd & COMMAND_MASK)
        return -ENOSYS if command is None else command(vcpu, arg, cmd >> COMMAND_BITS)

    # Helpers

    @staticmethod
    def _variant(vcpu: VCpu, layout: Any) -> Any:
        return layout.w32 if vcpu.domain.pv32 else layout.w64

    def _read(self, vcpu: VCpu, layout: Any, at: int) -> Any:
        return vcpu.space.unpack(at, self._variant(vcpu, layout))

    def _any_domain(self, vcpu: VCpu, domid: int) -> Domain | None:
        """rcu_lock_domain_by_any_id."""
        return vcpu.domain if domid == DOMID_SELF else self._domains.by_id(domid)

    def _target(self, vcpu: VCpu, domid: int) -> Domain:
        """The caller itself; HypercallError ESRCH for an unknown domain, EPERM for another."""
        domain = self._any_domain(vcpu, domid)
        if domain is None:
            raise HypercallError(ESRCH)
        if domain is not vcpu.domain:
            raise HypercallError(EPERM)
        return domain

    # Increase, decrease, populate

    def _adjust(self, work: Callable[[VCpu, _Extents], bool]) -> Callable[[VCpu, int, int], int]:
        """The common frame of the three: check, work, restart when `work` says there is more to do."""

        def handler(vcpu: VCpu, arg: int, done: int) -> int:
            try:
                request = self._read(vcpu, abi.xen_memory_reservation, arg)
            except GuestFault:
                return done
            if request.nr_extents > EXTENTS_LIMIT or done >= request.nr_extents:
                return done
            if self._any_domain(vcpu, request.domid) is not vcpu.domain:
                return done
            flags = request.mem_flags
            if flags & abi.XENMEMF_vnode:  # of which no domain has any: the number is not looked at
                flags &= ~abi.XENMEMF_exact_node_request
            below = frame_limit(self._size, flags)
            on_demand = flags & abi.XENMEMF_populate_on_demand and work == self._populate
            if below is None or on_demand or request.extent_order > MAX_ORDER:
                return done
            width = 4 if vcpu.domain.pv32 else 8
            extents = _Extents(
                vcpu.domain,
                request.extent_start,
                request.nr_extents,
                request.extent_order,
                done,
                below,
                width,
            )
            if request.extent_start and not vcpu.space.allowed(
                extents.address(done), (extents.count - done) * width
            ):
                return done
            more = work(vcpu, extents)
            if more:
                command = next(number for number, known in self._commands.items() if known is handler)
                vcpu.restart(extents.done << COMMAND_BITS | command, arg)
                return CONTINUE
            return extents.done

        return handler

    def _take(self, owner: MemoryOwner, order: int, below: int) -> int | None:
        count = 1 << order
        if owner.pages + count > owner.maximum:
            return None
        first = self._heap.run(count, count, below)
        if first is not None:
            self._heap.assign(owner, first, count)
        return first

    def _increase(self, vcpu: VCpu, extents: _Extents) -> bool:
        owner = extents.domain.memory
        budget = SLICE_FRAMES >> extents.order
        while extents.done < extents.count:
            if not budget:
                return True
            budget -= 1
            mfn = self._take(owner, extents.order, extents.below)
            if mfn is None:
                break
            if extents.start:
                try:
                    vcpu.space.write(extents.address(extents.done), mfn.to_bytes(extents.width, "little"))
                except GuestFault:
                    break
            extents.done += 1
        return False

    def _populate(self, vcpu: VCpu, extents: _Extents) -> bool:
        owner = extents.domain.memory
        budget = SLICE_FRAMES >> extents.order
        space = vcpu.space
        try:
            while extents.done < extents.count:
                if not budget:
                    return True
                budget -= 1
                at = extents.address(extents.done)
                pfn = int.from_bytes(space.read(at, extents.width), "little")
                mfn = self._take(owner, extents.order, extents.below)
                if mfn is None:
                    break
                for page in range(1 << extents.order):
                    self._m2p.set(mfn + page, pfn + page & WORD)
                space.write(at, mfn.to_bytes(extents.width, "little"))
                extents.done += 1
        except GuestFault:
            return False
        return False

    def _decrease(self, vcpu: VCpu, extents: _Extents) -> bool:
        owner = extents.domain.memory
        budget = SLICE_FRAMES >> extents.order
        try:
            while extents.done < extents.count:
                if not budget:
                    return True
                budget -= 1
                mfn = int.from_bytes(vcpu.space.read(extents.address(extents.done), extents.width), "little")
                for page in range(1 << extents.order):
                    if not self._remove(owner, mfn + page):
                        return False
                extents.done += 1
        except GuestFault:
            return False
        return False

    def _remove(self, owner: MemoryOwner, mfn: int) -> bool:
        """Give up the domain's own reference to a frame (guest_remove_page)."""
        if not self._types.get_page(mfn, owner):
            return False
        self._types.drop_own_reference(mfn)
        self._types.put_page(mfn)
        return True

    # Numbers

    def _maximum_ram_page(self, vcpu: VCpu, arg: int, done: int) -> int:
        return -EINVAL if done else self._size

    def _maximum_gpfn(self, domain: Domain) -> int:
        """What the guest itself says in its shared_info (domain_get_maximum_gpfn)."""
        width = 4 if domain.pv32 else 8
        at = domain.shared_info + (xen.shared_info.w32 if domain.pv32 else xen.shared_info.w64).offset["arch"]
        return max(int.from_bytes(self._types.memory.read(at, width), "little"), 1) - 1

    def _statistic(self, value: Callable[[Domain], int]) -> Callable[[VCpu, int, int], int]:
        def handler(vcpu: VCpu, arg: int, done: int) -> int:
            if done:
                return -EINVAL
            domid = self._read(vcpu, abi.xen_memory_domain, arg).domid
            return value(self._target(vcpu, domid))

        return handler

    # The machine-to-phys table

    def _machphys_mapping(self, vcpu: VCpu, arg: int, done: int) -> int:
        variant = self._variant(vcpu, abi.xen_machphys_mapping)
        if vcpu.domain.pv32:
            fields = {
                "v_start": COMPAT_M2P_START,
                "v_end": COMPAT_M2P_END,
                "max_mfn": (COMPAT_M2P_END - COMPAT_M2P_START) // 4 - 1,
            }
        else:
            fields = {"v_start": M2P_START, "v_end": M2P_END, "max_mfn": (M2P_END - M2P_START) // 8 - 1}
        vcpu.space.write(arg, variant.pack(**fields))
        return 0

    def _machphys_list(self, vcpu: VCpu, arg: int, done: int) -> int:
        if done:
            return -ENOSYS
        if vcpu.domain.pv32:
            return self._machphys_compat_list(vcpu, arg, done)
        return self._frames_of(vcpu, arg, self._m2p.wide)

    def _machphys_compat_list(self, vcpu: VCpu, arg: int, done: int) -> int:
        if done:
            return -ENOSYS
        return self._frames_of(vcpu, arg, self._m2p.compat)

    def _frames_of(self, vcpu: VCpu, arg: int, table: SparseTable) -> int:
        variant = self._variant(vcpu, abi.xen_machphys_mfn_list)
        request = vcpu.space.unpack(arg, variant)
        count = min(request.max_extents, table.superpages)
        width = 4 if vcpu.domain.pv32 else 8
        for index in range(count):
            mfn = (table.base >> 12) + index * SUPERPAGE_FRAMES
            vcpu.space.write(request.extent_start + index * width, mfn.to_bytes(width, "little"))
        vcpu.space.write(arg + variant.offset["nr_extents"], count.to_bytes(4, "little"))
        return 0

    # The memory map

    def _map_of(self, domain: Domain) -> tuple[tuple[int, int, int], ...]:
        return self._maps.get(domain.id, ((0, domain.memory.maximum << 12, abi.E820_RAM),))

    def _memory_map(self, vcpu: VCpu, arg: int, done: int) -> int:
        variant = self._variant(vcpu, abi.xen_memory_map)
        request = vcpu.space.unpack(arg, variant)
        entry = self._variant(vcpu, abi.e820entry)
        entries = self._map_of(vcpu.domain)[: request.nr_entries]
        data = b"".join(entry.pack(addr=addr, size=size, type=kind) for addr, size, kind in entries)
        vcpu.space.write(request.buffer, data)
        vcpu.space.write(arg + variant.offset["nr_entries"], len(entries).to_bytes(4, "little"))
        return 0

    def _set_memory_map(self, vcpu: VCpu, arg: int, done: int) -> int:
        request = self._read(vcpu, abi.xen_foreign_memory_map, arg)
        if request.map.nr_entries > MAP_LIMIT:
            return -EINVAL
        domain = self._target(vcpu, request.domid)
        entry = self._variant(vcpu, abi.e820entry)
        data = vcpu.space.read(request.map.buffer, request.map.nr_entries * entry.size)
        self._maps[domain.id] = tuple((item.addr, item.size, item.type) for item in entry.unpack_all(data))
        return 0
