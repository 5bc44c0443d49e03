"""Random reads, writes, discards and invalidations against a plain model: nothing stale is ever read."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from firmware.disk.cache_queue import CachedQueue
from firmware.disk.client import Client
from machine.disk import SECTOR, DiskRequest, Operation
from tests.disk.cache_world import CacheWorld, Layer, Ram

SECTORS = 1024 + 5
"""128 blocks and a part of one."""
MOST = 40
"""Sectors of a request."""
SLOTS = 5
"""Requests a client has at a time."""
PAGES = MOST // 8 + 1
TEST, SOAK = 100_000, 1_000_000


def pattern(stamp: int) -> bytes:
    """A sector."""
    return (stamp | stamp << 32).to_bytes(8, "little") * 64


def _unset(request: DiskRequest) -> None:
    raise AssertionError(f"{request} was never begun")


class Outstanding:
    """A request on its way, and what each of its sectors may hold when it is done."""

    def __init__(self, user: User, slot: int, request: DiskRequest, stamp: int = 0) -> None:
        self.user = user
        self.slot = slot
        self.request = request
        self.stamp = stamp
        self.also: dict[int, set[int]] = {}
        truth = user.disk.truth
        self.before = truth[request.sector : request.sector + request.sectors]


class Shown:
    """A disk as all its users see it: the stamp of every sector, updated when a write is done."""

    def __init__(self, world: CacheWorld, medium: Ram, truth: list[int], seed: int) -> None:
        self.medium = medium
        self.queue: CachedQueue = world.queue(medium, seed)
        self.truth = truth
        self.reads: dict[Outstanding, None] = {}


class User:
    """A client of a disk with buffers of its own."""

    def __init__(self, world: CacheWorld, number: int, disk: Shown, frames: list[int]) -> None:
        self.number = number
        self.disk = disk
        self.free = list(range(SLOTS))
        self.frames = frames
        self.client = Client(f"user {number}", number)
        disk.queue.add(self.client)
        self.busy: dict[Outstanding, None] = {}


class Storm:
    """The world, its users, and the operations."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = CacheWorld(limit=64)
        base = Ram(SECTORS, name="base")
        stamps = list(range(1, SECTORS + 1))
        for sector, stamp in enumerate(stamps):
            base.data[sector * SECTOR : (sector + 1) * SECTOR] = pattern(stamp)
        disks = [
            Shown(self.world, Layer(base), stamps.copy(), 1),
            Shown(self.world, Layer(base), stamps.copy(), 2),
            Shown(self.world, base, stamps.copy(), 3),
            Shown(self.world, Ram(SECTORS), [0] * SECTORS, 4),
        ]
        self.world.domain(1, 6 * SLOTS * PAGES + 64)
        frames = self.world.domains[1].frames
        self.users = [
            User(self.world, number, disks[disk], frames[number * SLOTS * PAGES :])
            for number, disk in enumerate((0, 1, 2, 3, 3, 0))
        ]
        self.hog = self.world.owner(99)
        self.stamp = SECTORS + 1
        self.done = 0
        self.actions: list[tuple[int, Any]] = [
            (60, self.read), (14, self.write), (2, self.discard), (30, self.wait), (1, self.squeeze),
            (1, self.trouble), (1, self.resize), (1, self.remove),
        ]

    def go(self, count: int) -> None:
        actions = [action for _, action in self.actions]
        weights = [weight for weight, _ in self.actions]
        check = self.world.check
        while self.done < count:
            for action in self.random.choices(actions, weights, k=256):
                action()
                check()
        for user in self.users:
            user.disk.medium.fail = 0
        self.world.run(1 << 40)
        assert not any(user.busy for user in self.users)
        assert not self.world.cache.filling

    # Operations

    def place(self) -> tuple[int, int]:
        count = self.random.choice((1, 3, 8, 8, 8, 16, MOST))
        sector = self.random.randrange(0, SECTORS - count)
        if self.random.random() < 0.7:
            sector &= ~7
        if self.random.random() < 0.5:
            sector %= 128
        return sector, count

    def begin(self, operation: Operation) -> None:
        user = self.random.choice(self.users)
        if operation != Operation.READ and user.disk.medium.read_only:
            return
        if not user.free:
            self.wait()
            return
        slot = user.free.pop()
        sector, count = self.place()
        address = user.frames[slot * PAGES] << 12
        pieces = []
        left = count
        while operation != Operation.DISCARD and left:
            part = min(left, self.random.choice((8, 8, 8, 3)))
            pieces.append((address, part * SECTOR))
            address += part * SECTOR
            left -= part
        request = DiskRequest(operation, sector, count, tuple(pieces), _unset)
        if operation == Operation.WRITE:
            self.stamp += 1
            self.world.memory.write(pieces[0][0], pattern(self.stamp) * count)
        stamp = self.stamp if operation == Operation.WRITE else 0
        out = Outstanding(user, slot, request, stamp)
        user.busy[out] = None
        if operation == Operation.READ:
            user.disk.reads[out] = None
        request.done = lambda request: self.finished(out)
        user.disk.queue.submit(user.client, request)
        self.done += 1

    def read(self) -> None:
        self.begin(Operation.READ)

    def write(self) -> None:
        self.begin(Operation.WRITE)

    def discard(self) -> None:
        self.begin(Operation.DISCARD)

    def wait(self) -> None:
        self.world.run(self.random.randrange(60_000))

    def squeeze(self) -> None:
        """Somebody takes most or all memory, or gives it back."""
        world, hog = self.world, self.hog
        if hog.pages:
            for mfn in world.frames.owned_by(99):
                world.types.drop_own_reference(mfn)
            return
        count = self.random.choice((world.heap.available, world.heap.free + 5, world.heap.free))
        before = world.heap.available
        world.heap.allocate(hog, min(count, before))
        assert world.heap.available == before - min(count, before)

    def trouble(self) -> None:
        """A disk that fails, for some time."""
        medium = self.random.choice(self.users).disk.medium
        medium.fail = 0 if medium.fail else errno.EIO

    def resize(self) -> None:
        self.world.cache.set_limit(self.random.choice((0, 8, 64, 64, 200)))

    def remove(self) -> None:
        """A user goes with all it has under way, and another comes."""
        user = self.random.choice(self.users)
        user.disk.queue.remove(user.client)
        for out in user.busy:
            user.disk.reads.pop(out, None)
        user.busy.clear()
        user.free = list(range(SLOTS))
        user.client = Client(f"user {user.number}", user.number)
        user.disk.queue.add(user.client)

    # The model

    def finished(self, out: Outstanding) -> None:
        user, request = out.user, out.request
        assert out in user.busy, "a request is done twice, or after its client was gone"
        del user.busy[out]
        user.free.append(out.slot)
        if request.operation == Operation.READ:
            del user.disk.reads[out]
            if request.error:
                assert request.error == errno.EIO
            else:
                self.compare(out)
        elif not request.error:
            self.landed(user.disk, out)

    def landed(self, disk: Shown, out: Outstanding) -> None:
        first, count = out.request.sector, out.request.sectors
        disk.truth[first : first + count] = [out.stamp] * count
        for other in disk.reads:
            low = max(first, other.request.sector)
            for sector in range(low, min(first + count, other.request.sector + other.request.sectors)):
                other.also.setdefault(sector, set()).add(out.stamp)

    def compare(self, out: Outstanding) -> None:
        """A sector holds what it held when the read began, or what was written since."""
        q, request = self.world.memory.q, out.request
        at = request.pieces[0][0] >> 3
        for index, stamp in enumerate(out.before):
            word = q[at + index * 64]
            assert word == q[at + index * 64 + 63]
            if word != stamp | stamp << 32:
                found = word & 0xFFFF_FFFF
                assert found in out.also.get(request.sector + index, ()), (
                    f"sector {request.sector + index}: {found} instead of {stamp}"
                )


@pytest.mark.parametrize(("seed", "count"), [
    *((seed, TEST // 4) for seed in range(4)),
    pytest.param(99, SOAK, marks=pytest.mark.soak),
])
def test_nothing_stale_is_read(seed: int, count: int) -> None:
    storm = Storm(seed)
    storm.go(count)
    counted = storm.world.cache.statistics
    assert min(counted.hits, counted.misses, counted.merged, counted.bypassed) > count // 100
    assert min(counted.invalidated, counted.evicted, counted.reclaimed) > count // 200
