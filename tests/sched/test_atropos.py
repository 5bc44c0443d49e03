"""Atropos: nobody admitted misses a deadline, nobody beyond capacity is admitted, sleepers wait little."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.sched.atropos import Atropos
from firmware.sched.parameters import ParameterError
from tools.schedsim import Command, Ran, Run, Simulator, Sleep, Task
from tools.schedsim.workloads import hog, periodic, random_mix, sleeper

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000


def reservation(slice_us: int, period_us: int, latency_us: int = 0, *, extra: bool = False) -> dict[str, int]:
    return {"slice_us": slice_us, "period_us": period_us, "latency_us": latency_us or period_us,
            "xtratime": extra}


def atropos(simulator: Simulator) -> Atropos:
    return cast(Atropos, simulator.policy)


def runs_of(simulator: Simulator, task: Task) -> list[Ran]:
    assert simulator.log is not None
    return [run for run in simulator.log.runs if run.vcpu is task.vcpu]


def had(runs: list[Ran], start: int, end: int) -> int:
    """CPU time in a window."""
    return sum(max(0, min(run.end, end) - max(run.start, start)) for run in runs)


def worst_deficit(runs: list[Ran], slice_ns: int, period_ns: int, until: int) -> int:
    """By how much the slice was missed in the worst of the periods that are over."""
    starts = range(0, until - period_ns, period_ns)
    return max(slice_ns - had(runs, start, start + period_ns) for start in starts)


periods = st.sampled_from((2_000, 3_000, 5_000, 8_000, 10_000, 20_000, 50_000))


@st.composite
def reservations(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Slices and periods in us, of any number of vCPUs."""
    return [(max(1, period * draw(st.integers(1, 60)) // 100), period)
            for period in draw(st.lists(periods, min_size=1, max_size=10))]


def admitted(simulator: Simulator, wanted: list[tuple[int, int]], extra: bool) -> list[tuple[Task, int, int]]:
    tasks = []
    for slice_us, period_us in wanted:
        try:
            task, = simulator.domain([hog], reservation(slice_us, period_us, extra=extra))
        except ParameterError:
            assert max(atropos(simulator).load(core) for core in range(simulator.topology.cpus)) > 0.4
        else:
            tasks.append((task, slice_us * US, period_us * US))
    return tasks


@given(wanted=reservations(), topology=st.sampled_from(("1x1x1", "1x2x1", "1x2x2")), extra=st.booleans())
@settings(max_examples=40, deadline=None)
def test_nobody_admitted_misses_a_deadline(wanted: list[tuple[int, int]], topology: str, extra: bool) -> None:
    """Hogs that use up all they get: each has its slice of each of its periods, best-effort hogs or not."""
    simulator = Simulator(topology, "atropos", log=True, bare=True)
    tasks = admitted(simulator, wanted, extra)
    assert tasks
    try:
        simulator.domain([hog], reservation(1, 100_000, extra=True))
    except ParameterError:
        assert max(atropos(simulator).load(core) for core in range(simulator.topology.cpus)) > 0.9
    simulator.run(200 * MS)
    assert atropos(simulator).missed == 0
    for task, slice_ns, period_ns in tasks:
        assert worst_deficit(runs_of(simulator, task), slice_ns, period_ns, 200 * MS) <= 0
        if not extra:
            assert task.work <= slice_ns * -(-200 * MS // period_ns)


@given(wanted=reservations(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_sleepers_never_make_others_miss(wanted: list[tuple[int, int]], seed: int) -> None:
    """Half are hogs, the others run and sleep as they like, and wake with short latencies."""
    simulator = Simulator("1x1x1", "atropos", seed=seed, log=True, bare=True)
    tasks = []
    for number, (slice_us, period_us) in enumerate(wanted):
        latency = max(-(-period_us // slice_us), period_us // 10) if number % 2 else 0
        share = reservation(slice_us, period_us, latency)
        try:
            work = random_mix(2 * slice_us * US, period_us * US) if number % 2 else hog
            tasks.append((simulator.domain([work], share)[0], number % 2, slice_us * US, period_us * US))
        except ParameterError:
            continue
    simulator.run(300 * MS)
    assert atropos(simulator).missed == 0
    for task, sleeps, slice_ns, period_ns in tasks:
        if not sleeps:
            assert worst_deficit(runs_of(simulator, task), slice_ns, period_ns, 300 * MS) <= 0


@given(wanted=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 20)), min_size=1, max_size=12),
       cpus=st.integers(1, 3), capacity=st.sampled_from((50, 90, 100)))
def test_admission_is_exact(wanted: list[tuple[int, int]], cpus: int, capacity: int) -> None:
    """Never more than capacity on any CPU; refused only when no CPU had the room."""
    simulator = Simulator(f"1x{cpus}x1", "atropos", {"capacity": capacity})
    loads = [0.0] * cpus
    for percent, period_ms in wanted:
        asked = percent * period_ms * 10
        try:
            task, = simulator.domain([hog], reservation(asked, period_ms * 1000))
        except ParameterError:
            assert min(loads) * 100 + percent > capacity - 1e-6
        else:
            loads[task.vcpu.home] += percent / 100
        for core, load in enumerate(loads):
            assert atropos(simulator).load(core) == pytest.approx(load)
            assert load * 100 <= capacity + 1e-6


def test_with_costs_of_switching_the_usual_periods_hold() -> None:
    simulator = Simulator("1x2x1", "atropos", {"capacity": 95}, log=True)
    missed: list[int] = []
    tasks = [simulator.domain([periodic(int(part * 1.8) * MS // 2, 20 * MS, missed)],
                              reservation(part * 1000, 20_000, extra=True))[0] for part in (14, 9, 9, 4)]
    simulator.domain([hog] * 2, reservation(10, 1_000_000, extra=True))
    simulator.run(2 * SECOND)
    assert not missed
    assert atropos(simulator).missed == 0
    assert all(task.work > 0 for task in tasks)


def test_a_sleeper_is_served_within_its_latency() -> None:
    """The slice of the first period, by its end; without latency it may have to wait for a long one."""
    def waits(latency_us: int) -> list[int]:
        simulator = Simulator("1x1x1", "atropos", log=True, bare=True)
        simulator.domain([hog], reservation(50_000, 100_000))
        simulator.domain([hog], reservation(18_000, 60_000))
        task, = simulator.domain([sleeper(500 * US, 150 * MS, 0.2)], reservation(20_000, 100_000, latency_us))
        simulator.run(5 * SECOND)
        assert atropos(simulator).missed == 0
        return task.latencies

    assert max(waits(5_000)) <= 5 * MS
    assert max(waits(0)) > 20 * MS


def test_who_wakes_late_in_a_period_does_not_claim_its_whole_slice_of_it() -> None:
    def late(task: Task) -> Iterator[Command]:
        yield Run(US)
        yield Sleep(6 * MS)
        yield Run(SECOND)

    simulator = Simulator("1x1x1", "atropos", log=True, bare=True)
    steady, = simulator.domain([hog], reservation(2_000, 4_000))
    simulator.domain([late], reservation(5_000, 10_000))
    simulator.run(60 * MS)
    assert worst_deficit(runs_of(simulator, steady), 2 * MS, 4 * MS, 60 * MS) <= 0


def test_extra_time_goes_round_in_turns_of_five_ms() -> None:
    simulator = Simulator("1x1x1", "atropos", bare=True, log=True)
    tasks = [simulator.domain([hog], reservation(1, 1_000_000, extra=True))[0] for _ in range(4)]
    capped, = simulator.domain([hog], reservation(10_000, 100_000))
    simulator.run(2 * SECOND)
    assert capped.work == 200 * MS
    for task in tasks:
        assert task.work == pytest.approx(450 * MS, abs=6 * MS)
    assert max(run.end - run.start for run in runs_of(simulator, tasks[0])) <= 5 * MS


def test_a_reservation_is_a_cap_without_extra_time_on_an_idle_machine_too() -> None:
    simulator = Simulator("1x2x1", "atropos", bare=True)
    task, = simulator.domain([hog], reservation(3_000, 10_000))
    simulator.run(SECOND)
    assert task.work == 300 * MS


def test_a_cpu_that_would_idle_takes_over() -> None:
    simulator = Simulator("1x4x1", "atropos", log=True)
    tasks = simulator.domain([hog] * 3, reservation(30_000, 100_000, extra=True), hard=0b1111)
    simulator.run(SECOND)
    assert min(task.work for task in tasks) > 0.99 * SECOND


def test_shares_change_on_the_way_and_are_admitted_again() -> None:
    simulator = Simulator("1x1x1", "atropos", bare=True)
    one, = simulator.domain([hog], reservation(3_000, 10_000))
    other, = simulator.domain([hog], reservation(3_000, 10_000))
    simulator.run(100 * MS)
    with pytest.raises(ParameterError, match="8000 of every 10000 us left"):
        simulator.policy.set_share(one.vcpu.domain, reservation(8_000, 10_000), simulator.clock.now)
    simulator.policy.set_share(one.vcpu.domain, reservation(7_000, 10_000), simulator.clock.now)
    before = one.work, other.work
    simulator.run(SECOND)
    assert one.work - before[0] == 700 * MS
    assert other.work - before[1] == 300 * MS
    with pytest.raises(ParameterError, match="100 % of CPU 0 are reserved"):
        simulator.policy.tune({"capacity": 80}, simulator.clock.now)


def test_a_cpu_taken_away_voids_what_fits_nowhere_else() -> None:
    simulator = Simulator("1x2x1", "atropos", bare=True)
    one, = simulator.domain([hog], reservation(6_000, 10_000))
    other, = simulator.domain([hog], reservation(6_000, 10_000))
    small, = simulator.domain([hog], reservation(3_000, 10_000))
    simulator.run(50 * MS)
    pool = simulator.scheduler.pools[0]
    away = other.vcpu.home
    now = simulator.clock.now
    current = simulator.scheduler.running(away)
    if current is not None:
        simulator.scheduler.withdraw(current, now)
    simulator.scheduler.assign(away, None)
    pool.remove_core(away, now)
    if current is not None:
        pool.policy.wake(current, now)
    assert atropos(simulator).void == [other.vcpu]
    before = one.work, other.work, small.work
    simulator.run(SECOND)
    assert one.work - before[0] == pytest.approx(600 * MS, abs=6 * MS)
    assert small.work - before[2] == pytest.approx(300 * MS, abs=3 * MS)
    assert other.work - before[1] == pytest.approx(100 * MS, abs=9 * MS)
    pool.add_core(away, simulator.clock.now)
    simulator.scheduler.assign(away, pool)
    assert not atropos(simulator).void
    before = one.work, other.work, small.work
    simulator.run(SECOND)
    assert other.work - before[1] == pytest.approx(600 * MS, abs=6 * MS)


@pytest.mark.parametrize("share", [
    reservation(0, 1000), reservation(-1, 1000), reservation(2000, 1000), reservation(10, 0),
    reservation(500, 1000, 2000), reservation(1, 1_000_000, 10), {"weight": 3}, {"xtratime": 7},
])
def test_bad_shares_are_refused(share: dict[str, int]) -> None:
    simulator = Simulator(policy="atropos")
    with pytest.raises(ParameterError, match=r"^scheduler 'atropos'.* "):
        simulator.domain([hog], share)
    assert not simulator.scheduler.pools[0].vcpus


@pytest.mark.parametrize("setting", [{"quantum_us": 0}, {"capacity": 0}, {"capacity": 101}, {"capacity": -3}])
def test_bad_settings_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ParameterError, match=r"^scheduler 'atropos'.* "):
        Simulator(policy="atropos", settings=setting)


def test_a_domain_that_does_not_fit_leaves_nothing_behind() -> None:
    simulator = Simulator("1x2x1", "atropos")
    with pytest.raises(ParameterError, match="600000 of every 1000000 us"):
        simulator.domain([hog] * 3, reservation(600_000, 1_000_000))
    assert not simulator.scheduler.pools[0].vcpus
    assert atropos(simulator).load(0) == atropos(simulator).load(1) == 0
    simulator.domain([hog] * 2, reservation(600_000, 1_000_000))
