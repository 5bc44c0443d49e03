"""XENMEM_exchange: frames of one extent size for as many of another (memory_exchange in common/memory.c)."""

from __future__ import annotations

from typing import Any, Final

from firmware.abi import memory as abi
from firmware.abi.errno import EFAULT, EINVAL, ENOMEM, EPERM, ESRCH
from firmware.abi.xen import DOMID_SELF
from firmware.hypercalls import CONTINUE, GuestFault
from firmware.memory.m2p import MachineToPhys
from firmware.memory.owner import Domain, Domains, VCpu
from firmware.memory.types import PageTypes

MAX_ORDER: Final = 9
"""CONFIG_DOMU_MAX_ORDER: the largest extent an unprivileged domain may ask for."""
SLICE_FRAMES: Final = 2048
"""Frames handled before the call is restarted."""
NO_NODE: Final = 0xFF
WORD: Final = (1 << 64) - 1


def frame_limit(size: int, mem_flags: int) -> int | None:
    """Frames must lie below this number, at most `size`; None when the request cannot be met."""
    if mem_flags & abi.XENMEMF_exact_node_request and abi.XENMEMF_get_node(mem_flags) != NO_NODE:
        return None
    bits = abi.XENMEMF_get_address_bits(mem_flags)
    if bits == 0 or bits >= (size - 1).bit_length() + 12:
        return size
    return None if bits <= 12 else 1 << bits - 12


class Exchange:
    """The command."""

    __slots__ = ("_domains", "_heap", "_m2p", "_size", "_types")

    def __init__(self, types: PageTypes, m2p: MachineToPhys, domains: Domains) -> None:
        self._types = types
        self._heap = types.heap
        self._size = types.frames.size
        self._m2p = m2p
        self._domains = domains

    def exchange(self, vcpu: VCpu, arg: int, done: int) -> int:
        """XENMEM_exchange: frames of one extent size for as many of another."""
        if done:
            return -EINVAL
        variant = abi.xen_memory_exchange.of(not vcpu.domain.pv32)
        request = vcpu.space.unpack(arg, variant)
        source, target, exchanged = request.in_, request.out, request.nr_exchanged
        rc = self._exchange_check(vcpu, source, target, exchanged)
        if rc is None:
            if exchanged == source.nr_extents:
                return 0
            rc, exchanged = self._exchange_chunks(vcpu, source, target, exchanged)
            if rc > 0:
                self._store_exchanged(vcpu, variant, arg, exchanged)
                vcpu.restart(abi.XENMEM_exchange, arg)
                return CONTINUE
        self._store_exchanged(vcpu, variant, arg, exchanged)
        return rc

    @staticmethod
    def _store_exchanged(vcpu: VCpu, variant: Any, arg: int, exchanged: int) -> None:
        vcpu.space.write(
            arg + variant.offset["nr_exchanged"], exchanged.to_bytes(variant.sizes["nr_exchanged"], "little")
        )

    def _exchange_check(self, vcpu: VCpu, source: Any, target: Any, exchanged: int) -> int | None:
        if max(source.extent_order, target.extent_order) > MAX_ORDER:
            return -EPERM
        if (
            exchanged > source.nr_extents
            or source.domid != target.domid
            or WORD >> source.extent_order < source.nr_extents
            or WORD >> target.extent_order < target.nr_extents
            or source.nr_extents << source.extent_order != target.nr_extents << target.extent_order
        ):
            return -EINVAL
        if exchanged == source.nr_extents:
            return None
        width = 4 if vcpu.domain.pv32 else 8
        if not vcpu.space.allowed(source.extent_start, source.nr_extents * width) or not vcpu.space.allowed(
            target.extent_start, target.nr_extents * width
        ):
            return -EFAULT
        if frame_limit(self._size, target.mem_flags & ~0xFF) is None:
            return -EINVAL
        domain = self._any_domain(vcpu, source.domid)
        if domain is None:
            return -ESRCH
        return None if domain is vcpu.domain else -EPERM

    def _exchange_chunks(self, vcpu: VCpu, source: Any, target: Any, exchanged: int) -> tuple[int, int]:
        """The chunks from `exchanged` on: (0 or a negative errno, extents exchanged); 1 when there is more
        to do.
        """
        in_chunk = max(target.extent_order - source.extent_order, 0)
        out_chunk = max(source.extent_order - target.extent_order, 0)
        bits = abi.XENMEMF_get_address_bits(target.mem_flags)
        below = self._size if bits == 0 else min(self._size, 1 << max(bits - 12, 0))
        budget = max(SLICE_FRAMES >> source.extent_order + in_chunk, 1)
        for chunk in range(exchanged >> in_chunk, source.nr_extents >> in_chunk):
            if not budget:
                return 1, chunk << in_chunk
            budget -= 1
            rc = self._exchange_chunk(vcpu, source, target, chunk, (in_chunk, out_chunk), below)
            if rc:
                return rc, chunk << in_chunk
        return 0, source.nr_extents

    def _exchange_chunk(
        self, vcpu: VCpu, source: Any, target: Any, chunk: int, orders: tuple[int, int], below: int
    ) -> int:
        owner, space, types, heap = vcpu.domain.memory, vcpu.space, self._types, self._heap
        width = 4 if vcpu.domain.pv32 else 8
        in_chunk, out_chunk = orders
        stolen: list[int] = []
        taken: list[int] = []
        rc = 0
        try:
            for extent in range(1 << in_chunk):
                at = source.extent_start + ((chunk << in_chunk) + extent) * width
                first = int.from_bytes(space.read(at, width), "little")
                for page in range(1 << source.extent_order):
                    rc = types.steal(first + page, owner)
                    if rc:
                        break
                    stolen.append(first + page)
                if rc:
                    break
        except GuestFault:
            rc = -EFAULT
        count = 1 << target.extent_order
        while not rc and len(taken) < 1 << out_chunk:
            run = heap.run(count, count, below)
            if run is None:
                rc = -ENOMEM
            else:
                taken.append(run)
        if rc:
            for mfn in stolen:
                heap.restore(owner, mfn)
            for run in taken:
                heap.give_back(run, count)
            return rc
        for mfn in stolen:
            heap.release(mfn)
        for extent, run in enumerate(taken):
            heap.assign(owner, run, count)
            at = target.extent_start + ((chunk << out_chunk) + extent) * width
            try:
                pfn = int.from_bytes(space.read(at, width), "little")
                for page in range(count):
                    self._m2p.set(run + page, pfn + page & WORD)
                space.write(at, run.to_bytes(width, "little"))
            except GuestFault:
                rc = -EFAULT
        return rc

    def _any_domain(self, vcpu: VCpu, domid: int) -> Domain | None:
        return vcpu.domain if domid == DOMID_SELF else self._domains.by_id(domid)
