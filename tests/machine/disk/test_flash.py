"""Flash: the model against the timing of its part."""

from __future__ import annotations

import random
from typing import Any

import pytest

from machine.disk import SECTOR, SLC_2008, DiskRequest, Flash, Operation
from tests.machine.disk.rig import Rig

PART = SLC_2008
PAGE = PART.page // SECTOR
READ = PART.command + PART.sense + PART.move


def link(sectors: int) -> int:
    return sectors * SECTOR * 1_000_000_000 // PART.link_rate


def request(operation: Operation, sector: int, sectors: int) -> DiskRequest:
    return DiskRequest(operation, sector, sectors, (), lambda _: None)


def rig(**options: Any) -> Rig:
    return Rig(model=Flash(), **options)


def test_one_page() -> None:
    model = Flash()
    assert model.service(request(Operation.READ, 0, PAGE), model.head(), 0) == READ
    took = model.service(request(Operation.WRITE, 0, PAGE), model.head(), 0)
    assert took == PART.command + link(PAGE) + PART.move + PART.program


def test_pages_on_different_channels_move_at_once() -> None:
    model = Flash()
    assert model.service(request(Operation.READ, 0, PAGE * PART.channels), model.head(), 0) == READ


def test_pages_on_one_channel_share_its_bus_but_not_the_dies() -> None:
    model = Flash()
    head = model.head()
    assert model.service(request(Operation.READ, 0, PAGE), head, 0) == READ
    other_die = PAGE * PART.channels
    assert model.service(request(Operation.READ, other_die, PAGE), head, 0) == READ + PART.move
    same_die = PAGE * PART.channels * PART.dies
    assert model.service(request(Operation.READ, same_die, PAGE), head, 0) == READ + 2 * PART.move
    head = model.head()
    model.service(request(Operation.READ, 0, PAGE), head, 0)
    assert model.service(request(Operation.READ, same_die, PAGE), head, 0) == READ + PART.sense + PART.move


def test_part_of_a_page_is_read_before_it_is_written() -> None:
    model = Flash()
    took = model.service(request(Operation.WRITE, 1, 1), model.head(), 0)
    assert took == PART.command + link(1) + PART.sense + 2 * PART.move + PART.program


def test_a_die_erases_after_a_block_of_pages() -> None:
    model = Flash()
    head, now = model.head(), 0
    took = []
    for _ in range(PART.pages_per_block + 1):
        took.append(model.service(request(Operation.WRITE, 0, PAGE), head, now))
        now += took[-1]
    assert set(took[:-1]) == {took[0]}
    assert took[-1] == PART.erase + PART.move + PART.program, "what came over the link meanwhile waited"


def test_sequential_reads_reach_the_rate_of_the_link_or_the_channels() -> None:
    disk = rig()
    count, size = 256, 256
    index = 0
    while index < count or disk.disk.in_flight:
        while index < count and disk.disk.in_flight < PART.depth:
            disk.submit(Operation.READ, index * size, size, ((0, size * SECTOR),))
            index += 1
        disk.clock.advance(disk.clock.next() or 0)
    rate = count * size * SECTOR * 1e9 / disk.clock.now
    channels = PART.channels * PART.page * 1e9 / PART.move
    assert rate == pytest.approx(min(channels, PART.link_rate), rel=0.06)


def test_depth_buys_parallel_reads() -> None:
    rng = random.Random(5)
    sectors = [rng.randrange(Rig.SECTORS // PAGE) * PAGE for _ in range(512)]

    def time_with(depth: int) -> int:
        disk = rig(depth=depth)
        left = list(sectors)
        while left or disk.disk.in_flight:
            while left and disk.disk.in_flight < depth:
                disk.submit(Operation.READ, left.pop(), PAGE, ((0, PART.page),))
            disk.clock.advance(disk.clock.next() or 0)
        return disk.clock.now

    alone = time_with(1)
    assert alone == len(sectors) * READ
    assert alone / time_with(8) > 3
    assert alone / time_with(32) > 5


def test_requests_overtake_one_another() -> None:
    disk = rig()
    slow = disk.submit(Operation.WRITE, 0, PAGE, ((0, PART.page),))
    quick = disk.submit(Operation.READ, PAGE, PAGE, ((0x2000, PART.page),))
    disk.run()
    assert disk.done == [quick, slow]
    assert slow.started == quick.started == 0
    assert disk.disk.busy_ns == slow.finished


def test_a_flush_does_not_wait() -> None:
    disk = rig()
    write = disk.submit(Operation.WRITE, 0, PAGE, ((0, PART.page),))
    flush = disk.submit(Operation.FLUSH, 0, 0, ())
    disk.run()
    assert disk.done == [flush, write]
    assert flush.finished == PART.command


def test_reach_is_the_wait_for_the_die() -> None:
    model = Flash()
    head = model.head()
    assert model.reach(request(Operation.READ, 0, 1), head, 0) == 0
    model.service(request(Operation.READ, 0, PAGE), head, 0)
    assert model.reach(request(Operation.READ, 0, 1), head, 1000) == READ - 1000
    assert model.reach(request(Operation.READ, PAGE, 1), head, 0) == 0


@pytest.mark.parametrize("sectors", [1, 8, 256, 2048])
def test_nothing_alone_takes_longer_than_the_worst(sectors: int) -> None:
    rng = random.Random(sectors)
    model = Flash()
    head, now = model.head(), 0
    longest = 0
    for _ in range(3000):
        operation = rng.choice((Operation.READ, Operation.WRITE, Operation.WRITE))
        took = model.service(request(operation, rng.randrange(4096), sectors), head, now)
        assert took <= model.worst(operation, sectors)
        longest = max(longest, took)
        now += took
    assert longest > model.worst(Operation.WRITE, sectors) * 0.3
    assert model.service(request(Operation.FLUSH, 0, 0), head, now) == model.worst(Operation.FLUSH, 0)
