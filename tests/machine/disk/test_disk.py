"""Disk: the queue, the order, the data and the errors of requests."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest

from machine.disk import SECTOR, DiskRequest, Operation
from tests.machine.disk.rig import Rig


def test_what_is_written_is_read_back_in_virtual_time() -> None:
    rig = Rig()
    rig.memory.write(0x1000, b"a" * 512 + b"b" * 512)
    write = rig.submit(Operation.WRITE, 77, 2, ((0x1000, 1024),))
    assert (write.finished, rig.medium.read(77, 2)) == (0, bytes(1024)), "data moves when a request finishes"
    rig.run()
    assert write.error == 0
    assert write.submitted == write.started == 0 < write.finished == rig.clock.now
    read = rig.submit(Operation.READ, 77, 2, ((0x5000, 512), (0x9000, 512)))
    rig.run()
    assert read.error == 0
    assert (rig.memory.read(0x5000, 512), rig.memory.read(0x9000, 512)) == (b"a" * 512, b"b" * 512)
    assert rig.done == [write, read]


def test_requests_go_in_order_and_one_at_a_time() -> None:
    rig = Rig()
    sectors = (9000, 10, 7000, 8)
    requests = [rig.submit(Operation.READ, sector, 8, ((0x1000, 8 * SECTOR),)) for sector in sectors]
    assert rig.disk.in_flight == 4
    rig.run()
    assert rig.done == requests
    for before, after in pairwise(requests):
        assert after.started == before.finished
    assert rig.disk.in_flight == 0


def test_more_than_the_depth_is_refused() -> None:
    rig = Rig(depth=2)
    for _ in range(2):
        rig.submit(Operation.READ, 0, 1, ((0, 512),))
    with pytest.raises(ValueError, match="has its 2 requests"):
        rig.submit(Operation.READ, 0, 1, ((0, 512),))
    rig.run()
    assert len(rig.done) == 2


@pytest.mark.parametrize(("operation", "sector", "sectors", "pieces"), [
    (Operation.READ, -1, 1, ((0, 512),)),
    (Operation.READ, Rig.SECTORS, 1, ((0, 512),)),
    (Operation.READ, Rig.SECTORS - 1, 2, ((0, 1024),)),
    (Operation.READ, 0, 0, ()),
    (Operation.READ, 0, 2, ((0, 512),)),
    (Operation.READ, 0, 1, ((0, 513),)),
    (Operation.READ, 0, 1, ((-512, 512),)),
    (Operation.READ, 0, 1, ((Rig.MEMORY - 511, 512),)),
    (Operation.WRITE, 0, 1, ((0, 0), (0, 512))),
    (Operation.FLUSH, 1, 0, ()),
    (Operation.FLUSH, 0, 0, ((0, 512),)),
    (Operation.DISCARD, 0, 1, ((0, 512),)),
])
def test_what_the_firmware_should_have_checked(
    operation: Operation, sector: int, sectors: int, pieces: tuple[tuple[int, int], ...],
) -> None:
    rig = Rig()
    with pytest.raises(ValueError, match=operation.name):
        rig.submit(operation, sector, sectors, pieces)
    assert rig.disk.in_flight == 0


def test_a_read_only_disk_answers_so() -> None:
    rig = Rig(read_only=True)
    write = rig.submit(Operation.WRITE, 0, 1, ((0, 512),))
    discard = rig.submit(Operation.DISCARD, 0, 1, ())
    flush = rig.submit(Operation.FLUSH, 0, 0, ())
    rig.run()
    assert (write.error, discard.error, flush.error) == (errno.EROFS, errno.EROFS, 0)
    assert rig.disk.counters.errors == 2


def test_an_abandoned_request_takes_its_time_and_touches_nothing() -> None:
    alone = Rig()
    first = alone.submit(Operation.READ, 5000, 8, ((0, 4096),), owner="gone")
    alone.run()
    rig = Rig()
    rig.medium.write(5000, b"x" * 4096)
    rig.memory.write(0x8000, b"y" * 512)
    read = rig.submit(Operation.READ, 5000, 8, ((0, 4096),), owner="gone")
    write = rig.submit(Operation.WRITE, 9, 1, ((0x8000, 512),), owner="gone")
    other = rig.submit(Operation.READ, 5000, 1, ((0x2000, 512),), owner="here")
    rig.disk.abandon("gone")
    rig.run()
    assert (read.error, write.error, other.error) == (errno.EIO, errno.EIO, 0)
    assert read.finished == first.finished
    assert rig.memory.read(0, 4096) == bytes(4096)
    assert rig.memory.read(0x2000, 512) == b"x" * 512
    assert rig.medium.read(9, 1) == bytes(512)
    assert rig.disk.counters.abandoned == 2


def test_counters_and_busy_time() -> None:
    rig = Rig()
    rig.clock.advance(1_000)
    requests = [
        rig.submit(Operation.READ, 0, 3, ((0, 3 * SECTOR),)),
        rig.submit(Operation.WRITE, 100, 5, ((0, 5 * SECTOR),)),
        rig.submit(Operation.FLUSH, 0, 0, ()),
        rig.submit(Operation.DISCARD, 9, 7, ()),
    ]
    rig.run()
    busy = rig.clock.now - 1_000
    rig.clock.advance(rig.clock.now + 5_000)
    counters = rig.disk.counters
    assert (counters.reads, counters.writes, counters.flushes, counters.discards) == (1, 1, 1, 1)
    assert (counters.sectors_read, counters.sectors_written, counters.sectors_discarded) == (3, 5, 7)
    assert counters.errors == 0
    assert rig.disk.busy_ns == busy == sum(request.finished - request.started for request in requests)


def test_busy_time_counts_the_request_that_is_running() -> None:
    rig = Rig()
    rig.submit(Operation.READ, 0, 1, ((0, 512),))
    rig.clock.advance(100_000)
    assert rig.disk.busy_ns == 100_000


def test_done_may_submit_the_next() -> None:
    rig = Rig(depth=1)
    again: list[DiskRequest] = []

    def done(request: DiskRequest) -> None:
        again.append(request)
        if len(again) < 3:
            rig.disk.submit(DiskRequest(Operation.READ, len(again), 1, ((0, 512),), done))

    rig.disk.submit(DiskRequest(Operation.READ, 0, 1, ((0, 512),), done))
    rig.run()
    assert [request.sector for request in again] == [0, 1, 2]


def test_closing_drops_what_is_in_flight() -> None:
    rig = Rig()
    rig.submit(Operation.READ, 0, 1, ((0, 512),))
    rig.submit(Operation.READ, 0, 1, ((0, 512),))
    rig.disk.close()
    rig.run()
    assert rig.done == []
    assert rig.disk.in_flight == 0
