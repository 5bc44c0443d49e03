"""The buffer cache by itself: what reaches the disk, whose memory it is, and when it goes back."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from firmware.disk.cache_queue import BLOCK_NS, REQUEST_NS, CachedQueue
from firmware.disk.cache_store import Block, BlockStore
from firmware.disk.client import Client
from firmware.memory.heap import CACHE_TAG
from firmware.sched.parameters import Value
from machine.disk import SECTOR, DiskRequest, Operation, Overlay, RawFile
from tests.disk.cache_world import MEAN_NS, CacheWorld, Layer, Ram
from tests.memory.world import PlainDomain

SECTORS = 2048
MORE = 1.05
"""How many more sectors two readers may cause the disk to read than one."""


def image(*, name: str | None = None, sectors: int = SECTORS) -> Ram:
    ram = Ram(sectors, name=name)
    ram.data[:] = random.Random(5).randbytes(len(ram.data))
    return ram


class Machine:
    """Two domains with a client each, of one disk or of two."""

    def __init__(self, *media: Ram | Overlay, limit: int = 512) -> None:
        self.world = CacheWorld(limit=limit)
        self.queues = [self.world.queue(medium, seed) for seed, medium in enumerate(media)]
        self.domains: list[PlainDomain] = [self.world.domain(number, 96) for number in (1, 2)]
        self.clients = [
            self.world.attach(domain, self.queue(index)) for index, domain in enumerate(self.domains)
        ]

    def queue(self, index: int) -> CachedQueue:
        return self.queues[index % len(self.queues)]

    def begin(self, index: int, sector: int, sectors: int, frame: int = 0) -> DiskRequest:
        frames = self.domains[index].frames
        return self.world.read(self.queue(index), self.clients[index], sector, sectors, frames[frame])

    def read(self, index: int, sector: int, sectors: int) -> bytes:
        request = self.begin(index, sector, sectors)
        self.world.run()
        self.world.check()
        assert not request.error
        assert request.finished >= request.submitted > -1
        return self.world.memory.read(request.pieces[0][0], sectors * SECTOR)

    def write(self, index: int, sector: int, data: bytes) -> DiskRequest:
        frame = self.domains[index].frames[20]
        self.world.memory.write(frame << 12, data)
        return self.world.write(
            self.queue(index), self.clients[index], sector, len(data) // SECTOR, frame)


def places(seed: int) -> list[tuple[int, int]]:
    """Reads of a whole disk in parts, some of them odd."""
    chance = random.Random(seed)
    found, sector = [], 0
    while sector < SECTORS:
        count = min(chance.choice((1, 2, 7, 8, 16, 40)), SECTORS - sector)
        found.append((sector, count))
        sector += count
    return found


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_two_domains_that_read_one_image_cause_the_disk_reads_of_one(layers: int) -> None:
    ram = image(name="base")
    alone = Machine(ram)
    for sector, count in places(1):
        assert alone.read(0, sector, count) == ram.data[sector * SECTOR : (sector + count) * SECTOR]
    one, ram.sectors_read = ram.sectors_read, 0
    assert one == SECTORS
    shown: list[Ram] = [Layer(ram) for _ in range(layers)] or [ram]
    both = Machine(*shown)
    for sector, count in places(1):
        for index in (0, 1):
            assert both.read(index, sector, count) == ram.data[sector * SECTOR : (sector + count) * SECTOR]
    assert ram.sectors_read + sum(layer.sectors_read for layer in shown if layer is not ram) <= MORE * one
    counted = both.world.cache.statistics
    assert counted.misses == SECTORS // 8
    assert counted.hits >= SECTORS // 8


def test_overlays_of_one_file_share_its_blocks_until_they_differ(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(image().data)
    overlays = [Overlay.temporary(RawFile.open(path, True)) for _ in range(2)]
    machine = Machine(*overlays)
    first = machine.read(0, 0, 80)
    assert machine.read(1, 0, 80) == first == path.read_bytes()[: 80 * SECTOR]
    statistics = machine.world.cache.statistics
    assert (statistics.misses, statistics.hits) == (10, 10)
    changed = b"\xab" * SECTOR
    machine.write(0, 3, changed)
    machine.world.run()
    assert machine.read(0, 0, 8) == first[: 3 * SECTOR] + changed + first[4 * SECTOR : 8 * SECTOR]
    assert machine.read(1, 0, 8) == first[: 8 * SECTOR]
    assert machine.read(0, 8, 8) == first[8 * SECTOR : 16 * SECTOR]
    assert (statistics.misses, statistics.hits) == (11, 12)
    for overlay in overlays:
        overlay.close()


def test_images_are_told_from_each_other(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(4096))
    one, same = (RawFile.open(tmp_path / "a", True) for _ in range(2))
    other = RawFile.open(tmp_path / "b", True)
    assert one.image(0, 8) == same.image(0, 8) != other.image(0, 8)
    one.close()
    same.close()
    other.close()
    (tmp_path / "a").write_bytes(bytes(8192))
    again = RawFile.open(tmp_path / "a", True)
    assert again.image(0, 8) != one.image(0, 8)
    again.close()
    written = RawFile.open(tmp_path / "a")
    assert written.image(0, 8) is None
    written.close()


def test_readers_of_one_block_wait_for_the_first() -> None:
    ram = image()
    machine = Machine(ram)
    first = machine.begin(0, 0, 24)
    second = machine.begin(1, 8, 24)
    machine.world.run()
    assert not first.error
    assert not second.error
    assert ram.sectors_read == 32
    assert machine.world.memory.read(second.pieces[0][0], 24 * SECTOR) == ram.data[8 * SECTOR : 32 * SECTOR]
    counted = machine.world.cache.statistics
    assert (counted.misses, counted.merged, counted.hits) == (4, 2, 0)


@pytest.mark.parametrize(("share", "waits"), [
    ({}, True), ({"weight": 50}, True), ({"weight": 200}, False), ({"class": "interactive"}, False),
    ({"class": "realtime", "deadline_ms": 1000}, False),
])
def test_nobody_waits_for_a_read_with_a_worse_place_in_the_queue(
    share: dict[str, Value], waits: bool,
) -> None:
    ram = image()
    machine = Machine(ram)
    scheduler = machine.world.schedulers[machine.queue(0)]
    scheduler.set_policy("cello", {"flight": 1, "queue": 1})
    scheduler.set_share(2, share)
    own = [machine.begin(0, 8 * number, 8, number) for number in range(20)]
    other = machine.begin(1, 8 * 19, 8)
    machine.world.run(1000 * MEAN_NS)
    machine.world.check()
    assert other.finished > 0
    assert not other.error
    assert "class" not in share or other.finished < own[2].finished
    assert (ram.sectors_read == 8 * 20) is waits
    assert machine.world.memory.read(other.pieces[0][0], 4096) == ram.data[19 * 4096 : 20 * 4096]


def test_a_hit_takes_the_time_of_a_copy() -> None:
    machine = Machine(image())
    machine.read(0, 0, 24)
    request = machine.begin(1, 4, 12)
    machine.world.run()
    assert request.finished - request.submitted == REQUEST_NS + 2 * BLOCK_NS


def test_the_error_of_a_read_is_its_readers_own() -> None:
    ram = image(name="base")
    layers = Layer(ram), Layer(ram)
    machine = Machine(*layers)
    layers[0].fail = errno.EIO
    requests = machine.begin(0, 0, 16), machine.begin(1, 0, 16)
    machine.world.run()
    assert [request.error for request in requests] == [errno.EIO, 0]
    assert machine.world.cache.blocks.size == 0
    assert machine.world.memory.read(requests[1].pieces[0][0], 16 * SECTOR) == ram.data[: 16 * SECTOR]


def test_a_bad_sector_spoils_only_the_reads_that_want_it() -> None:
    ram = image()
    ram.bad = 21
    machine = Machine(ram)
    for sector, sectors, error in ((4, 16, 0), (22, 6, 0), (21, 1, errno.EIO), (8, 24, errno.EIO)):
        request = machine.begin(0, sector, sectors)
        machine.world.run()
        assert request.error == error
        if not error:
            data = machine.world.memory.read(request.pieces[0][0], sectors * SECTOR)
            assert data == ram.data[sector * SECTOR : (sector + sectors) * SECTOR]


def test_a_client_that_goes_leaves_its_reads_to_those_who_wait() -> None:
    ram = image()
    machine = Machine(ram)
    machine.begin(0, 0, 16).done = _never
    second = machine.begin(1, 8, 16)
    machine.world.cache.statistics.hits = 0
    machine.queue(0).remove(machine.clients[0])
    machine.world.check()
    assert machine.world.cache.filling == 1
    before = machine.world.memory.read(machine.domains[0].frames[0] << 12, 8192)
    machine.world.run()
    assert machine.world.memory.read(machine.domains[0].frames[0] << 12, 8192) == before
    assert machine.world.memory.read(second.pieces[0][0], 16 * SECTOR) == ram.data[8 * SECTOR : 24 * SECTOR]
    machine.world.check()


def test_a_client_that_goes_leaves_no_write_behind() -> None:
    machine = Machine(image())
    frame = machine.domains[0].frames[0] << 12
    machine.queue(0).submit(
        machine.clients[0], DiskRequest(Operation.WRITE, 8, 8, ((frame, 4096),), _never))
    machine.queue(0).remove(machine.clients[0])
    machine.world.run()
    machine.read(1, 0, 24)
    assert machine.world.cache.blocks.size == 3


def _never(request: DiskRequest) -> None:
    raise AssertionError(f"{request} is not to be done")


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.DISCARD])
def test_a_write_is_seen_by_all_when_it_is_done_and_by_nobody_after_as_what_was_before(
    operation: Operation
) -> None:
    ram = image()
    machine = Machine(ram)
    before = machine.read(0, 8, 8)
    data = b"\x55" * SECTOR if operation == Operation.WRITE else bytes(SECTOR)
    if operation == Operation.WRITE:
        machine.write(0, 9, data)
    else:
        machine.queue(0).submit(machine.clients[0], DiskRequest(operation, 9, 1, (), lambda request: None))
    assert machine.world.cache.blocks.size == 0
    assert machine.world.cache.statistics.invalidated == 1
    machine.begin(1, 8, 8)
    machine.world.run()
    assert machine.world.cache.blocks.size == 0, "a read beside the write is not kept"
    assert machine.read(1, 8, 8) == before[:SECTOR] + data + before[2 * SECTOR :]
    assert machine.world.cache.blocks.size == 1


@pytest.mark.parametrize("joins", ["before", "after"])
def test_a_read_that_a_write_overtakes_is_not_kept_nor_shown_to_other_disks(joins: str) -> None:
    ram = image(name="base")
    machine = Machine(Layer(ram), Layer(ram))
    written = b"\x77" * 8 * SECTOR
    orders = set()
    for sector in range(0, 400, 8):
        base = ram.data[sector * SECTOR : (sector + 8) * SECTOR]
        first = machine.begin(0, sector, 8)
        second = machine.begin(1, sector, 8) if joins == "before" else None
        write = machine.write(0, sector, written)
        second = second or machine.begin(1, sector, 8)
        machine.world.run()
        assert machine.world.memory.read(second.pieces[0][0], 8 * SECTOR) == base
        seen = machine.world.memory.read(first.pieces[0][0], 8 * SECTOR)
        assert seen == (base if first.finished < write.finished else written)
        orders.add(first.finished < write.finished)
        assert machine.read(1, sector, 8) == base
        assert machine.read(0, sector, 8) == written
    assert orders == {True, False}


def test_whoever_needs_all_memory_gets_it_all() -> None:
    machine = Machine(image())
    world, heap = machine.world, machine.world.heap
    free = heap.free
    for sector in range(0, SECTORS, 40):
        machine.read(0, sector, min(40, SECTORS - sector))
    assert heap.cached == world.cache.blocks.size == 256
    assert heap.free == free - 256
    assert heap.available == free
    owner = world.owner(9)
    taken = heap.allocate(owner, free)
    assert len(set(taken)) == free
    assert (heap.free, heap.cached) == (0, 0)
    assert world.cache.statistics.reclaimed == 256
    assert all(world.content(mfn) == bytes(4096) for mfn in taken)
    with pytest.raises(MemoryError):
        heap.allocate(owner, 1)
    assert machine.read(0, 0, 40) == machine.read(1, 0, 40), "without a frame to spare disks work as before"


@pytest.mark.parametrize(("count", "align"), [(1, 1), (2, 2), (16, 16), (5, 1), (3, 4)])
def test_runs_are_made_of_cached_frames(count: int, align: int) -> None:
    machine = Machine(image())
    world, heap = machine.world, machine.world.heap
    for sector in range(0, SECTORS, 40):
        machine.read(0, sector, min(40, SECTORS - sector))
    while heap.free:
        heap.run(1)
    cached = world.cache.blocks.size
    first = heap.run(count, align)
    assert first is not None
    assert first % align == 0
    assert world.cache.blocks.size == cached - count == heap.cached
    assert not any(world.frames.owners[mfn] == CACHE_TAG for mfn in range(first, first + count))


def test_a_run_below_a_limit_takes_no_more_than_it_needs() -> None:
    machine = Machine(image())
    machine.read(0, 0, 80)
    heap = machine.world.heap
    lowest = min(mfn for mfn in range(heap.total) if machine.world.frames.owners[mfn] == CACHE_TAG)
    while heap.free:
        heap.run(1)
    assert heap.run(1, 1, lowest) is None
    assert heap.cached == 10
    assert heap.run(1, 1, lowest + 1) == lowest
    assert heap.run(16, 16) is None
    assert heap.cached == 9


def test_the_limit_holds_and_may_change() -> None:
    ram = image()
    machine = Machine(ram, limit=64)
    for sector in range(0, SECTORS, 8):
        machine.read(0, sector, 8)
    assert machine.world.cache.blocks.size == 64
    assert machine.world.cache.statistics.evicted == 256 - 64
    assert machine.world.cache.find(ram, 255) is not None
    machine.world.cache.set_limit(10)
    assert machine.world.cache.blocks.size == machine.world.heap.cached == 10
    machine.world.cache.set_limit(0)
    machine.read(0, 0, 8)
    assert machine.world.heap.cached == 0
    with pytest.raises(ValueError, match="0 blocks or more"):
        machine.world.cache.set_limit(-1)


def test_what_is_read_again_outlives_what_is_read_once() -> None:
    store = BlockStore()

    def use(number: int) -> bool:
        block = store.of("image").get(number)
        if block is not None:
            store.used(block)
            return True
        if store.size == 16:
            victim = store.victim()
            assert victim is not None
            store.remove(victim)
        store.add(Block("image", number, number))
        return False

    for number in range(20, 80):
        use(number)
        use(number % 4)
    for number in range(100, 1000):
        use(number)
    assert all(use(number) for number in range(4)), "a scan drives out nothing that is used again"
    for number in (5, 6, 7, 8) * 20:
        use(number)
        use(number + 2000)
    assert all(use(number) for number in (5, 6, 7, 8)), "what is used now gets its place"


def test_the_part_behind_the_last_whole_block_is_read_and_not_kept() -> None:
    ram = image(sectors=SECTORS - 3)
    machine = Machine(ram)
    end = SECTORS - 3
    assert machine.read(0, end - 9, 9) == ram.data[(end - 9) * SECTOR :]
    assert machine.world.cache.blocks.size == 0
    assert machine.world.cache.statistics.bypassed == 1


def test_a_frame_never_shows_what_somebody_sent_with_the_read() -> None:
    """A guest that names one page twice in a read spoils its own page and nothing else."""
    ram = image()
    machine = Machine(ram)
    frame = machine.domains[0].frames[0] << 12
    machine.queue(0).submit(machine.clients[0], DiskRequest(
        Operation.READ, 0, 16, ((frame, 4096), (frame, 4096)), lambda request: None))
    machine.world.run()
    assert machine.read(1, 0, 16) == ram.data[: 16 * SECTOR]
    assert machine.world.cache.statistics.hits == 2


def test_a_client_of_another_disk_is_not_removed_with_it() -> None:
    machine = Machine(image(), image())
    stays = machine.begin(1, 0, 8)
    machine.queue(0).remove(machine.clients[0])
    machine.world.run()
    assert stays.finished
    assert isinstance(machine.clients[0], Client)
