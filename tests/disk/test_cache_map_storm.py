"""Random calls on mappings of cached blocks."""

from __future__ import annotations

import random
from typing import Any

import pytest

from firmware.abi import block_cache as abi
from firmware.abi.errno import (
    EAGAIN,
    ENOENT,
    ENOMEM,
    ENOSPC,
)
from firmware.memory.heap import CACHE_TAG
from firmware.memory.pte import ADDRESS, DIRTY, PRESENT, RW, USER
from tests.disk.cache_setting import Setting, image
from tests.disk.cache_world import Layer


class MapStorm(Setting):
    """Random calls on page tables, disks and memory; every translation a core has stays allowed."""

    def __init__(self, seed: int, pv32: bool) -> None:
        self.random = random.Random(seed)
        base = image("base")
        super().__init__(Layer(base), Layer(base), pv32=pv32, limit=24)
        self.world.cache.quota = 12
        self.seen: dict[tuple[int, int, int], Any] = {}
        self.hog = self.world.owner(9)

    def go(self, count: int) -> None:
        steps = (
            (10, self.maps), (4, self.unmaps), (4, self.sets), (6, self.touches), (3, self.writes),
            (6, self.reads), (1, self.squeezes), (1, self.lets_go), (4, self.waits),
        )
        weights = [weight for weight, _ in steps]
        for _, step in self.random.choices(steps, weights, k=count):
            step(self.random.randrange(2))
            self.check()
            self.check_tlbs()

    def pfn(self) -> int:
        return self.random.randrange(20)

    def maps(self, index: int) -> None:
        flags = self.random.choice((0, abi.BLKCACHE_contains_pte, abi.BLKCACHE_application_map))
        wanted = (0, -ENOENT, -EAGAIN, -ENOSPC, -ENOMEM)
        assert self.map(index, self.random.randrange(24), self.pfn(), flags=flags) in wanted

    def unmaps(self, index: int) -> None:
        assert self.unmap(index, self.pfn()) in (0, -ENOENT)

    def sets(self, index: int) -> None:
        pfn = self.pfn()
        entry = self.random.choice((
            0, self.domains[index].frames[self.pfn()] << 12 | PRESENT | RW,
            self.entry(index, self.pfn()) ^ self.random.choice((0, RW, DIRTY, USER)),
        ))
        self.set(index, pfn, entry)

    def touches(self, index: int) -> None:
        pfn = self.pfn()
        entry = self.entry(index, pfn)
        if entry & PRESENT:
            self.touch(index, pfn)
            mfn = (entry & ADDRESS) >> 12
            if self.world.frames.owners[mfn] == CACHE_TAG:
                key = self.vcpu(index).core.index, self.va(index, pfn) >> 12, mfn
                self.seen[key] = self.world.cache.blocks.at(mfn)

    def check_tlbs(self) -> None:
        """A translation to a block's frame leads to that block, to nothing, or is not there any more."""
        for (core, page, mfn), block in list(self.seen.items()):
            if self.world.cores[core].tlb.get((0, page), (-1, False))[0] != mfn:
                del self.seen[core, page, mfn]
            elif self.world.frames.owners[mfn] == CACHE_TAG:
                assert self.world.cache.blocks.at(mfn) is block
            else:
                assert not self.world.frames.owners[mfn]

    def writes(self, index: int) -> None:
        self.write(index, self.random.randrange(24))

    def reads(self, index: int) -> None:
        frame = self.domains[index].frames[42]
        self.world.read(self.queue(index), self.clients[index], self.random.randrange(180), 8, frame)

    def squeezes(self, index: int) -> None:
        heap = self.world.heap
        heap.allocate(self.hog, self.random.choice((heap.available, heap.free)))

    def lets_go(self, index: int) -> None:
        for mfn in self.world.frames.owned_by(9):
            self.world.types.drop_own_reference(mfn)

    def waits(self, index: int) -> None:
        self.world.run(self.random.randrange(300_000))


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(4, 40))])
def test_random_calls_leave_every_block_read_only_and_counted(seed: int) -> None:
    storm = MapStorm(seed, pv32=bool(seed & 1))
    storm.go(1500)
    assert storm.world.cache.mappings.revoked > 5
    assert storm.virqs(0)
