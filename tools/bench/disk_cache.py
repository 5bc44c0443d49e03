"""The buffer cache: what two readers of one image cause the disk to read, and what a hit costs the host."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Final, cast

from firmware.disk import policies  # noqa: F401  registers them
from firmware.disk.cache import BufferCache
from firmware.disk.cache_queue import CachedQueue
from firmware.disk.client import Client
from firmware.disk.scheduler import DiskScheduler
from firmware.memory.floor import MemoryFloor
from machine.clock import Clock
from machine.disk import SECTOR, Disk, DiskRequest, Flash, Medium, Operation
from machine.memory import MachineMemory
from tools.bench.report import MIB, Report
from tools.disksim.rig import Nothing

MEMORY: Final = 128 * MIB
IMAGE: Final = 32 * MIB
FIRST_FREE: Final = 16
BLOCK: Final = 4096
SECTORS_A_BLOCK: Final = 8
HITS: Final = 20_000
REQUEST_BLOCKS: Final = 11
"""Blocks of a full request without indirect segments."""
HIT_US: Final = 15.0
READS: Final = 1.05
"""Disk reads of two domains with one image, in parts of those of one."""
LATER: Final = 10_000_000_000


class Bench:
    """A disk behind the cache, and two clients."""

    def __init__(self, medium: Medium) -> None:
        self.clock = Clock()
        self.memory = MachineMemory(MEMORY)
        self.floor = MemoryFloor(self.memory, [], FIRST_FREE, cast(Any, self))
        self.cache = BufferCache(self.memory, self.clock, self.floor.types, IMAGE // BLOCK)
        self.disk = Disk(self.clock, self.memory, medium, Flash(), name="image")
        self.queue = CachedQueue(self.cache, DiskScheduler(self.disk, self.clock))
        self.clients = [Client(f"d{number}", number) for number in (1, 2)]
        for client in self.clients:
            self.queue.add(client)
        self.buffer = self.floor.heap.xen_frames(REQUEST_BLOCKS) << 12

    def read(self, client: Client, block: int, blocks: int) -> None:
        """Read blocks, and let the disk do it."""
        pieces = tuple((self.buffer + index * BLOCK, BLOCK) for index in range(blocks))
        self.queue.submit(client, DiskRequest(
            Operation.READ, block * SECTORS_A_BLOCK, blocks * SECTORS_A_BLOCK, pieces, _done))

    def settle(self) -> None:
        """Let the disk come to its end."""
        self.clock.advance(self.clock.now + LATER)

    def everything(self, clients: list[Client]) -> int:
        """Every client reads the whole image, in an order of its own; the sectors the disk read."""
        blocks = IMAGE // BLOCK
        orders = []
        for seed, _ in enumerate(clients):
            order = list(range(0, blocks - REQUEST_BLOCKS, REQUEST_BLOCKS))
            random.Random(seed).shuffle(order)
            orders.append(order)
        for places in zip(*orders, strict=True):
            for client, place in zip(clients, places, strict=True):
                self.read(client, place, REQUEST_BLOCKS)
            self.clock.advance(self.clock.now + LATER // 1000)
        self.settle()
        return self.disk.counters.sectors_read


def _done(request: DiskRequest) -> None:
    if request.error:
        raise OSError(request.error, "a disk that keeps nothing failed")


def measure(report: Report, rounds: int, say: Callable[[str], None]) -> None:
    """Ratios are of virtual time; the cost of a hit is the best of `rounds`."""
    say("buffer cache: two readers")
    one = Bench(Nothing(IMAGE // SECTOR))
    two = Bench(Nothing(IMAGE // SECTOR))
    alone, both = one.everything(one.clients[:1]), two.everything(two.clients)
    report.promise("disk reads of two domains with one image, in parts of one's", READS, both / alone)
    for blocks in (1, REQUEST_BLOCKS):
        say(f"buffer cache: hits of {blocks} blocks")
        cost = min(_hits(two, blocks) for _ in range(max(rounds, 1)))
        report.promise(f"host time of a cached block, {blocks} a request", HIT_US, cost, "us")


def _hits(bench: Bench, blocks: int) -> float:
    """Microseconds of processor time a cached block takes, its completion included."""
    chance = random.Random(7)
    last = IMAGE // BLOCK // REQUEST_BLOCKS - 1
    places = [chance.randrange(last) * REQUEST_BLOCKS for _ in range(HITS // blocks)]
    client = bench.clients[0]
    before = bench.cache.statistics.hits
    begun = time.process_time()
    for place in places:
        bench.read(client, place, blocks)
        bench.clock.advance(bench.clock.now + LATER // 1000)
    took = time.process_time() - begun
    return took / (bench.cache.statistics.hits - before) * 1e6
