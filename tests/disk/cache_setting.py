"""Domains that know the buffer cache and map its blocks, for tests."""

from __future__ import annotations

import random
from typing import Any, cast

from firmware.abi import block_cache as abi
from firmware.disk.client import Client
from firmware.domain.domain import Domain
from firmware.memory.heap import CACHE_TAG
from firmware.memory.pte import ADDRESS, PRESENT, RW
from tests.disk.cache_world import CacheWorld, Ram
from tests.memory.world import ARGUMENTS, PlainDomain, PlainVCpu

VDEV = 51712
SECTORS = 512
BLOCKS = SECTORS // 8
FREE_PFN = 0
"""The first of the pages whose entries the tests use."""
CALL = "block_cache_op"


def image(name: str | None = None) -> Ram:
    ram = Ram(SECTORS, name=name)
    ram.data[:] = random.Random(5).randbytes(len(ram.data))
    return ram


class Setting:
    """Domains that know the cache, each with the same disk, its blocks read."""

    def __init__(self, *media: Ram, pv32: bool = False, limit: int = 256, **options: Any) -> None:
        self.world = CacheWorld(limit=limit)
        self.media = media or (image(),)
        self.queues = [self.world.queue(medium, seed) for seed, medium in enumerate(self.media)]
        self.domains: list[PlainDomain] = []
        self.clients: list[Client] = []
        for number in (1, 2):
            domain = self.world.domain(number, 96, pv32=pv32)
            self.domains.append(domain)
            queue = self.queues[len(self.clients) % len(self.queues)]
            self.clients.append(self.world.attach(domain, queue, **options))
            self.world.ops.admit(cast(Domain, domain))
        for domain, core in zip(self.domains, self.world.cores, strict=True):
            self.world.schedule(domain.all[0], core)
        self.fill()

    def queue(self, index: int) -> Any:
        return self.queues[index % len(self.queues)]

    def fill(self, index: int = 0) -> None:
        """Have every block read."""
        frame = self.domains[index].frames[40]
        for sector in range(0, SECTORS, 64):
            self.world.read(self.queue(index), self.clients[index], sector, 64, frame)
            self.world.run()

    def vcpu(self, index: int = 0) -> PlainVCpu:
        return self.domains[index].all[0]

    def call(self, index: int, command: int, **fields: int) -> int:
        layouts = {
            abi.BLKCACHEOP_info: abi.blkcache_info, abi.BLKCACHEOP_query: abi.blkcache_query,
            abi.BLKCACHEOP_map: abi.blkcache_map, abi.BLKCACHEOP_unmap: abi.blkcache_unmap,
        }
        vcpu = self.vcpu(index)
        vcpu.space.write(ARGUMENTS, layouts[command].w64.pack(**fields))
        result = self.world.call(vcpu, CALL, command, ARGUMENTS)
        self.check()
        return result

    def check(self) -> None:
        self.world.check()
        self.world.check_mappings()

    def map(self, index: int, block: int, pfn: int = FREE_PFN, *, flags: int = 0, vdev: int = VDEV) -> int:
        address = self.entry_at(index, pfn) if flags & abi.BLKCACHE_contains_pte else self.va(index, pfn)
        return self.call(
            index, abi.BLKCACHEOP_map, vdev=vdev, flags=flags, block=block, host_addr=address)

    def unmap(self, index: int, pfn: int = FREE_PFN, *, flags: int = 0) -> int:
        address = self.entry_at(index, pfn) if flags else self.va(index, pfn)
        return self.call(index, abi.BLKCACHEOP_unmap, flags=flags, host_addr=address)

    def va(self, index: int, pfn: int) -> int:
        return self.domains[index].va(pfn)

    def entry_at(self, index: int, pfn: int) -> int:
        at = self.vcpu(index).space.entry_address(self.va(index, pfn))
        assert at
        return at

    def entry(self, index: int, pfn: int = FREE_PFN) -> int:
        return int(self.world.memory.q[self.entry_at(index, pfn) >> 3])

    def set(self, index: int, pfn: int, entry: int) -> int:
        result = self.world.call(
            self.vcpu(index), "update_va_mapping", *self._arguments(index, self.va(index, pfn), entry))
        self.check()
        return result

    def _arguments(self, index: int, va: int, entry: int) -> tuple[int, ...]:
        if self.domains[index].pv32:
            return va, entry & 0xFFFF_FFFF, entry >> 32, 0
        return va, entry, 0

    def shown(self, index: int, pfn: int = FREE_PFN) -> bytes:
        entry = self.entry(index, pfn)
        assert entry & (PRESENT | RW) == PRESENT
        mfn = (entry & ADDRESS) >> 12
        assert self.world.frames.owners[mfn] == CACHE_TAG
        return self.world.content(mfn)

    def block(self, number: int, medium: int = 0) -> bytes:
        return bytes(self.media[medium].data[number * 4096 : (number + 1) * 4096])

    def virqs(self, index: int) -> list[int]:
        domain: Any = self.domains[index]
        found: list[int] = domain.events.virqs
        return found

    def touch(self, index: int, pfn: int = FREE_PFN) -> None:
        """The processor looks, and remembers."""
        entry = self.entry(index, pfn)
        core = self.vcpu(index).core
        core.tlb[0, self.va(index, pfn) >> 12] = ((entry & ADDRESS) >> 12, bool(entry & RW))

    def write(self, index: int, block: int) -> None:
        frame = self.domains[index].frames[41]
        self.world.write(self.queue(index), self.clients[index], block * 8 + 2, 3, frame)
        self.check()
