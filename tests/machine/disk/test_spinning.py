"""Spinning: the model against what the drive's parameters say."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise

import pytest

from machine.disk import CHEETAH_9LP, SECTOR, DiskRequest, Operation, Spinning
from machine.disk.drives import Zone
from tests.machine.disk.rig import Rig

DRIVE = CHEETAH_9LP
TURN = DRIVE.revolution
MS = 1_000_000


def request(operation: Operation, sector: int, sectors: int = 1, submitted: int = 0) -> DiskRequest:
    made = DiskRequest(operation, sector, sectors, (), lambda _: None)
    made.submitted = submitted
    return made


def zone_start(zone: Zone) -> int:
    return DRIVE.surfaces * sum(
        (z.last_cylinder - z.first_cylinder + 1) * z.sectors_per_track
        for z in DRIVE.zones if z.first_cylinder < zone.first_cylinder)


def test_the_drive_is_the_one_it_says() -> None:
    assert TURN == 5_973_120
    assert DRIVE.sectors == 17_930_568, "the real one keeps 147,328 of them as spares: 17,783,240"
    assert [zone.last_cylinder < after.first_cylinder for zone, after in pairwise(DRIVE.zones)] == [True] * 10


@pytest.mark.parametrize("zone", DRIVE.zones, ids=lambda zone: f"{zone.sectors_per_track} sectors")
def test_sequential_reads_run_at_the_rate_of_the_zone(zone: Zone) -> None:
    # A cylinder passes in one turn a track, and the skews between them.
    turns = DRIVE.surfaces + (
        (DRIVE.surfaces - 1) * zone.track_skew + zone.cylinder_skew) / zone.sectors_per_track
    sectors = DRIVE.surfaces * zone.sectors_per_track
    model = Spinning(DRIVE.sectors)
    head, now = model.head(), 0
    begin = zone_start(zone)
    model.service(request(Operation.READ, begin), head, 0)
    for size in (8, 256, 1000):
        first_now = now = head.next_at
        sector = head.next_sector
        count = sectors * 20 // size
        for index in range(count):
            now += model.service(request(Operation.READ, sector + index * size, size, now), head, now)
        rate = count * size * SECTOR * 1e9 / (now - first_now)
        assert rate == pytest.approx(sectors * SECTOR * 1e9 / (turns * TURN), rel=0.05)


def test_outer_zones_are_faster() -> None:
    rates = [z.sectors_per_track / (DRIVE.surfaces + ((DRIVE.surfaces - 1) * z.track_skew + z.cylinder_skew)
                                    / z.sectors_per_track) for z in DRIVE.zones]
    assert rates == sorted(rates, reverse=True)


def test_a_track_is_read_in_one_turn() -> None:
    model = Spinning(DRIVE.sectors)
    head = model.head()
    track = DRIVE.zones[0].sectors_per_track
    took = model.service(request(Operation.READ, 0, track), head, 0)
    assert took == TURN + TURN, "the controller's work misses the first pass of sector 0"
    ready = TURN * 3 - DRIVE.read_overhead
    took = model.service(request(Operation.READ, 0, track, ready), model.head(), ready)
    assert took == DRIVE.read_overhead + TURN


def test_queued_neighbours_lose_no_turn() -> None:
    """Whoever keeps the queue filled writes at the media's rate: each begins where the last ended."""
    rig = Rig(medium=None)
    count = 200
    requests = [rig.submit(Operation.WRITE, index * 8, 8, ((0, 8 * SECTOR),)) for index in range(60)]
    index = len(requests)
    while (when := rig.clock.next()) is not None:
        rig.clock.advance(when)
        if index < count:
            rig.submit(Operation.WRITE, index * 8, 8, ((0, 8 * SECTOR),))
            index += 1
    tracks = count * 8 / 254
    zone = DRIVE.zones[0]
    expected = tracks * (TURN + TURN * zone.track_skew / zone.sectors_per_track)
    assert rig.clock.now == pytest.approx(expected, abs=2 * TURN)


def test_a_write_at_a_time_loses_a_turn_each() -> None:
    rig = Rig()
    ends = [rig.write(index * 8, bytes(4096)).finished for index in range(20)]
    assert all(after - before == pytest.approx(TURN, rel=0.06) for before, after in pairwise(ends))


def test_random_requests_take_the_mean_seek_and_half_a_turn() -> None:
    model = Spinning(DRIVE.sectors)
    rng = random.Random(7)
    head, now = model.head(), 0
    seeks, waits = [], []
    for _ in range(4000):
        sector = rng.randrange(DRIVE.sectors - 8)
        read = request(Operation.READ, sector, 8, now)
        cylinder = model.locate(sector)[3]
        seek = model.seek(abs(cylinder - head.cylinder))
        reach = model.reach(read, head, now)
        seeks.append(seek)
        waits.append(reach - DRIVE.read_overhead - seek)
        now += model.service(read, head, now) + rng.randrange(20 * MS)
    assert statistics.mean(seeks) == pytest.approx(5.4 * MS, rel=0.05), "Seagate's manual: 5.4 ms on average"
    assert statistics.mean(waits) == pytest.approx(TURN / 2, rel=0.03), "Seagate's manual: 2.99 ms"
    assert min(waits) >= 0
    assert max(waits) < TURN + DRIVE.head_switch
    quarters = statistics.quantiles(waits, n=4)
    assert quarters == pytest.approx([TURN / 4, TURN / 2, TURN * 3 / 4], rel=0.06), "evenly spread"


def test_the_seek_curve_is_the_measured_one() -> None:
    model = Spinning(DRIVE.sectors)
    assert model.seek(0) == 0
    for cylinders, ns in DRIVE.seeks:
        assert model.seek(cylinders) == ns
    assert model.seek(4) == (1_089_000 + 1_268_000) // 2
    last = DRIVE.zones[-1].last_cylinder
    assert [model.seek(d) <= model.seek(d + 1) for d in range(last)] == [True] * last
    assert model.seek(last) == pytest.approx(10.7 * MS, rel=0.01)


def test_a_write_waits_for_the_head_to_settle() -> None:
    model = Spinning(DRIVE.sectors)
    far = zone_start(DRIVE.zones[5])
    cylinders = DRIVE.zones[5].first_cylinder
    for operation, overhead in (
        (Operation.READ, DRIVE.read_overhead), (Operation.WRITE, DRIVE.write_overhead + DRIVE.write_settling),
    ):
        reach = model.reach(request(operation, far), model.head(), 0)
        assert 0 <= reach - overhead - model.seek(cylinders) < TURN


def test_reach_is_what_service_does_before_the_first_byte() -> None:
    model = Spinning(DRIVE.sectors)
    rng = random.Random(3)
    head, now = model.head(), 0
    for _ in range(500):
        operation = rng.choice((Operation.READ, Operation.WRITE))
        asked = request(operation, rng.randrange(DRIVE.sectors - 1), 1, now)
        if asked.sector == head.next_sector:
            continue
        reach = model.reach(asked, head, now)
        took = model.service(asked, head, now)
        assert 0 < took - reach <= TURN // 167 + 1
        now += took


def test_reading_on_after_a_pause_costs_the_bus_only() -> None:
    model = Spinning(DRIVE.sectors)
    head = model.head()
    now = model.service(request(Operation.READ, 0, 8), head, 0) + 50 * MS
    took = model.service(request(Operation.READ, 8, 64, now), head, now)
    assert took == DRIVE.hit_overhead + 64 * SECTOR * 1_000_000_000 // DRIVE.bus_rate


def test_what_is_further_than_the_segment_was_not_read_ahead() -> None:
    model = Spinning(DRIVE.sectors)
    head = model.head()
    now = model.service(request(Operation.READ, 0, 8), head, 0) + 50 * MS
    took = model.service(request(Operation.READ, 8 + DRIVE.segment, 8, now), head, now)
    assert took > DRIVE.read_overhead


def test_a_long_read_continues_from_a_full_segment() -> None:
    model = Spinning(DRIVE.sectors)
    head = model.head()
    now = model.service(request(Operation.READ, 0, 8), head, 0) + 50 * MS
    rest = 2000 - DRIVE.segment
    took = model.service(request(Operation.READ, 8, 2000, now), head, now)
    assert took == pytest.approx(rest / 254 * TURN * (1 + 97 / 254), abs=1.5 * TURN)


@pytest.mark.parametrize("other", [Operation.WRITE, Operation.FLUSH, Operation.DISCARD])
def test_anything_else_ends_the_reading_ahead(other: Operation) -> None:
    model = Spinning(DRIVE.sectors)
    head = model.head()
    now = model.service(request(Operation.READ, 0, 8), head, 0)
    now += model.service(request(other, 0, 8, now), head, now) + 50 * MS
    assert model.service(request(Operation.READ, 8, 8, now), head, now) > DRIVE.read_overhead


def test_a_flush_costs_the_controller_only() -> None:
    model = Spinning(DRIVE.sectors)
    head = model.head()
    assert model.service(request(Operation.FLUSH, 0, 0), head, 0) == DRIVE.write_overhead
    assert head.cylinder == 0
    assert head.seeks == 0


def test_an_image_larger_than_the_drive_is_denser() -> None:
    large = Spinning(DRIVE.sectors * 3 + 1)
    assert large.density == 4
    last = large.locate(DRIVE.sectors * 4 - 1)
    assert last[0] == 167 * 4
    assert last[3:] == (DRIVE.zones[-1].last_cylinder, DRIVE.surfaces - 1)
    assert Spinning(DRIVE.sectors).density == Spinning(1).density == 1


def test_every_sector_of_a_cylinder_passes_in_its_own_slot() -> None:
    model = Spinning(DRIVE.sectors)
    for track in range(DRIVE.surfaces * 2):
        slots = [model.locate(track * 254 + index)[2] for index in range(254)]
        assert sorted(slots) == list(range(254))


def test_seeks_are_counted() -> None:
    rig = Rig()
    rig.read(0, 1)
    assert rig.disk.seeks == 0
    rig.read(1 << 19, 1)
    rig.read((1 << 19) + 1, 1)
    assert rig.disk.seeks == 1
    rig.write(0, bytes(512))
    assert rig.disk.seeks == 2


def test_the_same_requests_take_the_same_time_again() -> None:
    def once() -> list[int]:
        rig = Rig()
        rng = random.Random(11)
        for _ in range(300):
            operation = rng.choice((Operation.READ, Operation.WRITE))
            sectors = rng.randrange(1, 300)
            rig.submit(operation, rng.randrange(rig.SECTORS - sectors), sectors, ((0, sectors * SECTOR),))
            if rig.disk.in_flight == rig.disk.depth:
                rig.run()
        rig.run()
        return [done.finished for done in rig.done]

    assert once() == once()


def test_skipping_what_has_not_passed_yet_is_done_by_the_arm() -> None:
    model = Spinning(DRIVE.sectors)
    head = model.head()
    now = model.service(request(Operation.READ, 0, 8), head, 0)
    skip = request(Operation.READ, 8 + 500, 8, now)
    reach = model.reach(skip, head, now)
    took = model.service(skip, head, now)
    assert took < DRIVE.read_overhead + TURN + DRIVE.head_switch + TURN // 20
    assert took - reach == pytest.approx(8 * TURN / 254, rel=0.01)


@pytest.mark.parametrize("sectors", [1, 8, 256, 700, 2048])
def test_nothing_takes_longer_than_the_worst(sectors: int) -> None:
    rng = random.Random(sectors)
    starts = [zone_start(zone) for zone in DRIVE.zones[1:]]
    for density in (1, 3):
        model = Spinning(DRIVE.sectors * density)
        head, now, last = model.head(), 0, 0
        longest = 0
        worst = max(model.worst(operation, sectors) for operation in (Operation.READ, Operation.WRITE))
        for _ in range(3000):
            operation = rng.choice((Operation.READ, Operation.READ, Operation.WRITE))
            sector = rng.choice((
                rng.randrange(DRIVE.sectors * density - sectors), 0, DRIVE.sectors * density - sectors,
                rng.choice(starts) * density - rng.randrange(sectors),
                min(last + rng.randrange(600), DRIVE.sectors * density - sectors), last,
            ))
            took = model.service(request(operation, sector, sectors, now), head, now)
            assert took <= model.worst(operation, sectors)
            longest = max(longest, took)
            now += took + rng.choice((0, 0, rng.randrange(30 * MS)))
            last = sector + sectors
            last = min(last, DRIVE.sectors * density - sectors)
        assert longest > worst * 0.6, "and it is no idle bound"
    assert model.worst(Operation.FLUSH, 0) == DRIVE.write_overhead
