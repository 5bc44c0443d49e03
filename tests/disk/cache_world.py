"""Domains with page tables, disks in memory behind the buffer cache, and what must always hold of it."""

from __future__ import annotations

import errno
import random
from collections.abc import Hashable
from typing import Any, cast

import numpy as np

from firmware.disk import policies  # noqa: F401  registers them
from firmware.disk.cache import BufferCache
from firmware.disk.cache_ops import CacheOps
from firmware.disk.cache_queue import CachedQueue
from firmware.disk.client import Client
from firmware.disk.scheduler import DiskScheduler
from firmware.disk.vbd import VirtualDisk
from firmware.domain.domain import DomainState
from firmware.memory.frames import ALLOCATED, COUNT_SHIFT, L1_TABLE, ONE, SHARED, VALID_MASK, VALIDATED
from firmware.memory.heap import CACHE_TAG
from firmware.memory.owner import MemoryOwner
from firmware.memory.pte import ADDRESS, PRESENT, RW
from machine.clock import Clock
from machine.disk import SECTOR, Disk, DiskRequest, Head, Medium, Operation
from tests.memory.world import PlainDomain, PlainMemory, World

KEPT = ONE | ALLOCATED
SHARED_ONCE = ONE | VALIDATED | SHARED
MEAN_NS = 100_000


class Ram(Medium):
    """A medium in memory. `name`: of the image it is, when it is only read; `fail`: errno of transfers;
    `bad`: a sector that cannot be read.
    """

    def __init__(self, sectors: int, *, name: str | None = None) -> None:
        self.data = bytearray(sectors * SECTOR)
        self.sectors = sectors
        self.read_only = name is not None
        self.name = name
        self.fail = 0
        self.bad = -1
        self.sectors_read = 0

    def read_into(self, sector: int, views: Any) -> None:
        self.check()
        if sector <= self.bad < sector + sum(view.nbytes for view in views) // SECTOR:
            raise OSError(errno.EIO, "injected")
        at = sector * SECTOR
        for view in views:
            view[:] = self.data[at : at + view.nbytes]
            at += view.nbytes
        self.sectors_read += at // SECTOR - sector

    def write_from(self, sector: int, views: Any) -> None:
        self.check()
        data = b"".join(views)
        self.data[sector * SECTOR : sector * SECTOR + len(data)] = data

    def discard(self, sector: int, sectors: int) -> None:
        self.check()
        self.data[sector * SECTOR : (sector + sectors) * SECTOR] = bytes(sectors * SECTOR)

    def image(self, sector: int, sectors: int) -> Hashable | None:
        return self.name

    def check(self) -> None:
        if self.fail:
            raise OSError(self.fail, "injected")

    def flush(self) -> None:
        self.check()

    def close(self) -> None:
        pass


class Layer(Ram):
    """What differs from a base, sector by sector."""

    def __init__(self, base: Ram) -> None:
        super().__init__(base.sectors)
        self.base = base
        self.here: set[int] = set()

    def read_into(self, sector: int, views: Any) -> None:
        self.check()
        count = sum(view.nbytes for view in views) // SECTOR
        for each in set(range(sector, sector + count)) - self.here:
            at = each * SECTOR
            self.data[at : at + SECTOR] = self.base.data[at : at + SECTOR]
        super().read_into(sector, views)

    def write_from(self, sector: int, views: Any) -> None:
        super().write_from(sector, views)
        self.here.update(range(sector, sector + sum(view.nbytes for view in views) // SECTOR))

    def discard(self, sector: int, sectors: int) -> None:
        super().discard(sector, sectors)
        self.here.update(range(sector, sector + sectors))

    def image(self, sector: int, sectors: int) -> Hashable | None:
        changed = any(each in self.here for each in range(sector, sector + sectors))
        return None if changed else self.base.name


class Jitter:
    """Times at random, several requests at once: they overtake each other."""

    name = "jitter"
    depth = 8
    concurrent = 4

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def head(self) -> Head:
        return Head()

    def service(self, request: DiskRequest, head: Head, now: int) -> int:
        return self._random.randrange(1, 2 * MEAN_NS)

    def reach(self, request: DiskRequest, head: Head, now: int) -> int:
        return 0

    def worst(self, operation: Operation, sectors: int) -> int:
        return 2 * MEAN_NS


class DiskMemory:
    """The world's memory as a disk uses it; what a disk fills must be held for writing, by somebody."""

    def __init__(self, memory: PlainMemory, world: World) -> None:
        self._memory = memory
        self._world = world
        self.size = memory.size

    def receive(self, pieces: Any, fill: Any) -> None:
        frames = self._world.frames
        for paddr, _ in pieces:
            assert frames.owners[paddr >> 12], "the disk fills a free frame"
            assert frames.owners[paddr >> 12] != CACHE_TAG, "the disk fills a frame that others read"
        parts = [bytearray(length) for _, length in pieces]
        fill([memoryview(part) for part in parts])
        for (paddr, _), part in zip(pieces, parts, strict=True):
            self._memory.write(paddr, bytes(part))

    def views(self, pieces: Any) -> list[memoryview]:
        return [self._memory.b[paddr : paddr + length] for paddr, length in pieces]


class Events:
    """The events of a domain: which VIRQs came."""

    def __init__(self) -> None:
        self.virqs: list[int] = []

    def send_virq(self, vcpu: Any, virq: int) -> None:
        self.virqs.append(virq)


class CacheWorld(World):
    """The world of the memory tests, with a clock, disks and the cache."""

    def __init__(self, frames: int = 2048, limit: int = 512) -> None:
        super().__init__(frames)
        self.clock = Clock()
        self.cache = BufferCache(cast(Any, self.memory), self.clock, self.types, limit)
        self.virtual: dict[tuple[int, int], VirtualDisk] = {}
        self.disks: dict[CachedQueue, Disk] = {}
        self.schedulers: dict[CachedQueue, DiskScheduler] = {}
        self.ops = CacheOps(self.cache, self)
        self.ops.register(self.table)

    def disk(self, domain: Any, number: int) -> VirtualDisk | None:
        return self.virtual.get((domain.id, number))

    def domain(self, number: int, *arguments: Any, **options: Any) -> PlainDomain:
        domain: Any = super().domain(number, *arguments, **options)
        domain.events = Events()
        domain.state = DomainState.RUNNING
        return cast(PlainDomain, domain)

    def owner(self, number: int) -> MemoryOwner:
        """Somebody who only owns memory."""
        owner = MemoryOwner(number, maximum=1 << 30)
        self.types.add_owner(owner)
        self.domains[number] = PlainDomain(number, owner)
        return owner

    def queue(self, medium: Medium, seed: int = 1) -> CachedQueue:
        """A disk of this medium, with the cache in front."""
        disk = Disk(self.clock, cast(Any, DiskMemory(self.memory, self)), medium, Jitter(seed))
        scheduler = DiskScheduler(disk, self.clock)
        queue = CachedQueue(self.cache, scheduler)
        self.disks[queue], self.schedulers[queue] = disk, scheduler
        return queue

    def attach(self, domain: PlainDomain, queue: CachedQueue, **options: Any) -> Client:
        """A client of the queue for a domain, and its virtual disk xvda."""
        client = Client(f"client of {domain.id}", domain.id)
        queue.add(client)
        made = VirtualDisk("xvda", self.disks[queue], **options)
        self.virtual[domain.id, made.number] = made
        return client

    def read(self, queue: CachedQueue, client: Client, sector: int, sectors: int, frame: int) -> DiskRequest:
        """Begin to read sectors into memory from a frame on."""
        request = DiskRequest(
            Operation.READ, sector, sectors, ((frame << 12, sectors * SECTOR),), lambda request: None)
        queue.submit(client, request)
        return request

    def write(self, queue: CachedQueue, client: Client, sector: int, sectors: int, frame: int) -> DiskRequest:
        """Begin to write sectors from memory from a frame on."""
        request = DiskRequest(
            Operation.WRITE, sector, sectors, ((frame << 12, sectors * SECTOR),), lambda request: None)
        queue.submit(client, request)
        return request

    def run(self, ns: int = 100 * MEAN_NS) -> None:
        self.clock.advance(self.clock.now + ns)

    def check(self) -> None:
        """The frame table has what the cache has, every frame is somebody's, nobody may write a block."""
        frames, heap, cache = self.frames, self.heap, self.cache
        cached = np.flatnonzero(frames.owner_array == CACHE_TAG)
        assert len(cached) == heap.cached == cache.blocks.size
        assert (frames.type_array[cached] == SHARED_ONCE).all()
        assert (frames.count_array[cached] & np.uint64(ALLOCATED)).all()
        owned = sum(domain.memory.pages for domain in self.domains.values())
        assert heap.free + heap.xen + heap.cached + owned == heap.total
        assert heap.cached <= cache.limit

    def check_mappings(self) -> None:
        """No page table shows a block for writing, and each block is held as often as it is shown."""
        frames = self.frames
        tables = np.flatnonzero(
            (frames.type_array & np.uint64(VALID_MASK)) == np.uint64(L1_TABLE | VALIDATED)
        )
        entries = self.memory.words.reshape(-1, 512)[tables].ravel()
        entries = entries[(entries & np.uint64(PRESENT)) != 0]
        targets = ((entries & np.uint64(ADDRESS)) >> np.uint64(12)).astype(np.int64)
        shown = frames.owner_array[targets] == CACHE_TAG
        assert not (entries[shown] & np.uint64(RW)).any()
        counts = np.bincount(targets[shown], minlength=frames.size)
        cached = np.flatnonzero(frames.owner_array == CACHE_TAG)
        held = (frames.count_array[cached] >> np.uint64(COUNT_SHIFT)).astype(np.int64) - 1
        assert (held == counts[cached]).all()
        assert counts.sum() == counts[cached].sum()
        for mapping in self.cache.mappings.all():
            assert self.cache.blocks.at(mapping.block.mfn) is mapping.block

    def content(self, mfn: int) -> bytes:
        """What a frame holds."""
        return self.memory.read(mfn << 12, 4096)
