"""block_cache_op: a domain that knows the cache maps blocks of its disks in the place of reading them.

Only domains that were made for it have the hypercall; for the others it is as absent as in Xen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from firmware.abi import block_cache as abi
from firmware.abi.errno import EINVAL, ENODEV, ENOENT, ENOSYS, EOPNOTSUPP, ERANGE
from firmware.disk.cache import BufferCache
from firmware.disk.cache_store import BLOCK, SECTORS, SECTORS_SHIFT
from firmware.disk.vbd import VirtualDisk
from firmware.domain.domain import Domain
from firmware.domain.vcpu import VCpu
from firmware.hypercalls import HypercallError, HypercallTable
from machine.disk import Medium

NAME: Final = "block_cache_op"
NUMBER: Final = abi.__HYPERVISOR_block_cache_op
FLAGS: Final = abi.BLKCACHE_application_map | abi.BLKCACHE_contains_pte
COMMAND_MASK: Final = 0xFFFF_FFFF


class VirtualDisks(Protocol):
    """Who knows a domain's disks."""

    def disk(self, domain: Domain, number: int) -> VirtualDisk | None:
        """A domain's disk by its device number."""


class CacheOps:
    """The handler."""

    __slots__ = ("_absent", "_cache", "_commands", "_disks", "_domains")

    def __init__(self, cache: BufferCache, disks: VirtualDisks) -> None:
        self._cache = cache
        self._disks = disks
        self._domains: dict[int, None] = {}
        self._absent: Callable[[int], int]
        self._commands: dict[int, Callable[[VCpu, int], int]] = {
            abi.BLKCACHEOP_info: self._info,
            abi.BLKCACHEOP_query: self._query,
            abi.BLKCACHEOP_map: self._map,
            abi.BLKCACHEOP_unmap: self._unmap,
        }

    def register(self, table: HypercallTable) -> None:
        """Enter the handler into the hypercall table."""
        self._absent = table.absent
        table.register(NAME, self.block_cache_op)

    def admit(self, domain: Domain) -> None:
        """Let a domain use the hypercall."""
        self._domains[domain.id] = None

    def forget(self, domain: Domain) -> None:
        """A domain is about to be destroyed: none of its tables shows a block any more."""
        self._domains.pop(domain.id, None)
        mappings = self._cache.mappings
        mappings.revoke(mappings.of_domain(domain.id))

    def block_cache_op(self, vcpu: VCpu, cmd: int, arg: int) -> int:
        """Hypercall: one operation on its argument structure."""
        if vcpu.domain.id not in self._domains:
            return self._absent(NUMBER)
        command = self._commands.get(cmd & COMMAND_MASK)
        return -ENOSYS if command is None else command(vcpu, arg)

    def _info(self, vcpu: VCpu, arg: int) -> int:
        cache = self._cache
        vcpu.space.write(arg, abi.blkcache_info.w64.pack(
            block_size=BLOCK, virq=abi.VIRQ_BLKCACHE, quota=cache.quota,
            mapped=cache.mappings.count(vcpu.domain),
        ))
        return 0

    def _query(self, vcpu: VCpu, arg: int) -> int:
        variant = abi.blkcache_query.w64
        request = vcpu.space.unpack(arg, variant)
        medium, number = self._block(vcpu, request.vdev, request.block)
        state = self._cache.state(medium, number)
        vcpu.space.write(arg + variant.offset["state"], state.to_bytes(4, "little"))
        return 0

    def _map(self, vcpu: VCpu, arg: int) -> int:
        request = vcpu.space.unpack(arg, abi.blkcache_map.w64)
        flags = request.flags
        if flags & ~FLAGS:
            return -EINVAL
        medium, number = self._block(vcpu, request.vdev, request.block)
        at = self._slot(vcpu, request.host_addr, flags)
        if not at:
            return -EINVAL
        return self._cache.map(
            vcpu.domain, medium, number, at, user=bool(flags & abi.BLKCACHE_application_map)
        )

    def _unmap(self, vcpu: VCpu, arg: int) -> int:
        request = vcpu.space.unpack(arg, abi.blkcache_unmap.w64)
        if request.flags & ~abi.BLKCACHE_contains_pte or request.pad:
            return -EINVAL
        at = self._slot(vcpu, request.host_addr, request.flags)
        if not at:
            return -EINVAL
        mappings = self._cache.mappings
        mapping = mappings.at(at)
        if mapping is None:
            return -ENOENT
        mappings.drop(mapping)
        return 0

    def _slot(self, vcpu: VCpu, address: int, flags: int) -> int:
        return self._cache.frames.slot(vcpu, address, is_entry=bool(flags & abi.BLKCACHE_contains_pte))

    def _block(self, vcpu: VCpu, vdev: int, block: int) -> tuple[Medium, int]:
        """The block of the real disk behind a block of the caller's. HypercallError: ENODEV, ERANGE beyond
        the disk, EOPNOTSUPP where it is not one whole block of the real one.
        """
        disk = self._disks.disk(vcpu.domain, vdev)
        if disk is None:
            raise HypercallError(ENODEV)
        if block >= disk.sectors >> SECTORS_SHIFT:
            raise HypercallError(ERANGE)
        extent, *more = disk.extents.resolve(block << SECTORS_SHIFT, SECTORS)
        if more or extent.sector % SECTORS:
            raise HypercallError(EOPNOTSUPP)
        return disk.disk.medium, extent.sector >> SECTORS_SHIFT
