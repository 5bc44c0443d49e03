"""The drive's own queue, when it may choose."""

from __future__ import annotations

import random
from typing import Any

import pytest

from machine.disk import CHEETAH_9LP, SECTOR, DiskRequest, Operation, RawFile
from machine.disk.queue import PATIENCE
from tests.machine.disk.rig import Rig


def whole_drive(**options: Any) -> Rig:
    return Rig(medium=RawFile.temporary(CHEETAH_9LP.sectors), **options)


def submit_read(rig: Rig, sector: int, sectors: int = 8) -> DiskRequest:
    return rig.submit(Operation.READ, sector, sectors, ((0, sectors * SECTOR),))


def test_the_nearest_goes_first() -> None:
    rig = whole_drive(reorder=True)
    working = submit_read(rig, 0)
    far = submit_read(rig, 17_000_000)
    near = submit_read(rig, 300_000)
    rig.run()
    assert rig.done == [working, near, far]


def test_in_order_unless_asked() -> None:
    rig = whole_drive()
    requests = [submit_read(rig, sector) for sector in (0, 17_000_000, 300_000)]
    rig.run()
    assert rig.done == requests


def test_random_reads_are_faster_the_more_it_holds() -> None:
    rng = random.Random(2)
    sectors = [rng.randrange(CHEETAH_9LP.sectors - 8) for _ in range(300)]

    def time_with(depth: int) -> int:
        rig = whole_drive(reorder=True, depth=depth)
        left = list(sectors)
        while left or rig.disk.in_flight:
            while left and rig.disk.in_flight < depth:
                submit_read(rig, left.pop())
            rig.clock.advance(rig.clock.next() or 0)
        return rig.clock.now

    one, four, sixteen = time_with(1), time_with(4), time_with(16)
    assert one > four * 1.2 > sixteen * 1.2 * 1.2


def test_nobody_waits_for_ever() -> None:
    rig = whole_drive(reorder=True, depth=8)
    submit_read(rig, 0)
    far = submit_read(rig, 17_000_000)
    index = 0
    for _ in range(2000):
        if far in rig.done:
            break
        while rig.disk.in_flight < 8:
            index += 128
            submit_read(rig, index, 128)
        rig.clock.advance(rig.clock.next() or 0)
    assert PATIENCE <= far.started < PATIENCE + 30_000_000


@pytest.mark.parametrize(("first", "second"), [
    (Operation.WRITE, Operation.READ), (Operation.READ, Operation.WRITE), (Operation.WRITE, Operation.WRITE),
    (Operation.DISCARD, Operation.READ),
])
def test_requests_for_one_sector_keep_their_order(first: Operation, second: Operation) -> None:
    rig = whole_drive(reorder=True)
    working = submit_read(rig, 0)
    far = 17_000_000
    pieces = ((0, 8 * SECTOR),)
    before = rig.submit(first, far - 7, 8, () if first == Operation.DISCARD else pieces)
    after = rig.submit(second, far, 8, pieces)
    beside = rig.submit(second, far + 8, 8, pieces)
    rig.run()
    assert rig.done[0] is working
    assert rig.done.index(before) < rig.done.index(after)
    assert rig.done.index(beside) > 0


def test_reads_of_one_sector_may_go_in_any_order() -> None:
    """The second continues where the head is; it need not wait for the one before it."""
    rig = whole_drive(reorder=True)
    submit_read(rig, 1000, 8)
    slow = rig.submit(Operation.READ, 900, 200, ((0, 200 * SECTOR),))
    quick = submit_read(rig, 1008)
    rig.run()
    assert rig.done.index(quick) < rig.done.index(slow)


def test_what_the_memory_says_last_is_what_the_disk_has() -> None:
    """Overlapping writes in any mixture leave what a drive without a queue would leave."""
    for seed in range(10):
        rng = random.Random(seed)
        rigs = Rig(), Rig(reorder=True)
        plan = [(rng.randrange(40), rng.randrange(1, 9), rng.randrange(100)) for _ in range(60)]
        for rig in rigs:
            for page in range(100):
                rig.memory.fill(page * 4096, 4096, page + 1)
            for sector, sectors, page in plan:
                rig.submit(Operation.WRITE, sector, sectors, ((page * 4096, sectors * SECTOR),))
            rig.run()
        assert rigs[0].medium.read(0, 64) == rigs[1].medium.read(0, 64)
