"""RTDS: no admitted set misses a deadline, whatever sleeps and wakes; what does not fit is refused."""

from __future__ import annotations

import os
from random import Random
from typing import cast

import pytest

from firmware.domain.vcpu import ANY_CPU, PAUSE_CONTROL, VCpu
from firmware.sched.control import SchedulerControl
from firmware.sched.parameters import ParameterError, Value
from firmware.sched.reservations import WHOLE, Reservations, density
from firmware.sched.rtds import Rtds
from tests.sched.stealers import MS, SECOND, US
from tests.sched.test_runqueue import Listed
from tools.schedsim import Simulator, Task
from tools.schedsim.watching import books_balance
from tools.schedsim.workloads import hog, periodic, random_mix, sleeper, yielder

TOPOLOGIES = ("1x1x1", "1x2x1", "1x2x2", "2x2x1", "2x2x2")
SETS = 150 if os.environ.get("XENPY_SOAK") else 12
OVERHEAD_US = 200


def share(period_us: int, budget_us: int, extratime: bool = False) -> dict[str, Value]:
    return {"period_us": period_us, "budget_us": budget_us, "extratime": extratime}


def rtds(simulator: Simulator) -> Rtds:
    policy = simulator.policy
    assert isinstance(policy, Rtds)
    return policy


def missed(simulator: Simulator) -> int:
    return sum(server.missed for server in rtds(simulator).servers.values())


def filled(simulator: Simulator, random: Random, hogs_only: bool = False) -> list[Task]:
    """Domains at random, until three have been refused in a row."""
    tasks: list[Task] = []
    refused = 0
    while refused < 3:
        period = random.choice((2_000, 5_000, 10_000, 20_000, 33_000))
        budget = max(100, int(period * random.uniform(0.05, 0.8)))
        work = hog if hogs_only else random.choice((
            hog, hog, random_mix(period * US, period * US), sleeper(budget * 700, period * 500, 0.5),
            yielder(budget * 100)))
        hard = 1 << random.randrange(simulator.topology.cpus) if random.random() < 0.3 else ANY_CPU
        try:
            tasks += simulator.domain([work], share(period, budget, random.random() < 0.5), hard=hard)
        except ParameterError:
            refused += 1
        else:
            refused = 0
    return tasks


@pytest.mark.parametrize("seed", range(SETS))
def test_no_admitted_set_misses_a_deadline(seed: int) -> None:
    """A deadline is missed when a vCPU that was runnable since its period began, or since it woke within it,
    has not had its budget by the end. With the costs of switches and migrations.
    """
    random = Random(seed)
    simulator = Simulator(TOPOLOGIES[seed % len(TOPOLOGIES)], "rtds", seed=seed)
    filled(simulator, random)
    simulator.run(400 * MS)
    assert missed(simulator) == 0
    assert books_balance(simulator)


@pytest.mark.parametrize("seed", range(SETS // 2))
def test_every_budget_is_had_in_every_period(seed: int) -> None:
    """Measured from outside: hogs, and the time each has run at the end of each of its periods."""
    random = Random(seed)
    simulator = Simulator(TOPOLOGIES[seed % len(TOPOLOGIES)], "rtds", seed=seed, log=True)
    tasks = filled(simulator, random, hogs_only=True)
    simulator.run(400 * MS)
    assert simulator.log is not None
    for task in tasks:
        server = rtds(simulator).servers[task.vcpu]
        runs = [run for run in simulator.log.runs if run.vcpu is task.vcpu]
        for end in range(server.period, 400 * MS + 1, server.period):
            begin = end - server.period
            had = sum(min(run.end, end) - max(run.start, begin) for run in runs
                      if run.end > begin and run.start < end)
            assert had >= server.budget
            if not server.extra:
                assert had <= server.budget


def test_beyond_what_is_admitted_deadlines_are_missed() -> None:
    """The count of missed deadlines counts: without the overhead in the reservations they are missed."""
    simulator = Simulator("1x1x1", "rtds", {"overhead_us": 0})
    for _ in range(4):
        simulator.domain([hog], share(1_000, 250))
    simulator.run(100 * MS)
    assert missed(simulator) > 10


def test_each_reservation_has_the_overhead() -> None:
    simulator = Simulator("1x1x1", "rtds")
    for _ in range(2):
        simulator.domain([hog], share(1_000, 250))
    with pytest.raises(ParameterError, match="are not left"):
        simulator.domain([hog], share(1_000, 250))


def test_what_runs_over_the_deadline_is_the_next_periods() -> None:
    """A CPU can be told a little late: each part is charged to its own period."""
    simulator = Simulator("1x1x1", "rtds", bare=True)
    task = simulator.domain([hog], share(10_000, 4_000))[0]
    policy, server = rtds(simulator), rtds(simulator).servers[task.vcpu]
    assert (server.deadline, server.left) == (10 * MS, 4 * MS)
    policy.ran(task.vcpu, 5 * MS, 11 * MS)
    assert (server.deadline, server.left, server.missed) == (20 * MS, 3 * MS, 0)
    policy.ran(task.vcpu, 2 * MS, 21 * MS)
    assert (server.deadline, server.left, server.missed) == (30 * MS, 3 * MS, 1)


@pytest.mark.parametrize(("topology", "count"), [("1x1x1", 2), ("1x2x1", 4), ("2x2x2", 16)])
def test_defaults_are_admitted_twice_a_cpu_and_refused_beyond(topology: str, count: int) -> None:
    simulator = Simulator(topology, "rtds")
    tasks = [simulator.domain([hog])[0] for _ in range(count)]
    with pytest.raises(ParameterError, match="4000 us in each 10000 us, with 200 us of overhead"):
        simulator.domain([hog])
    assert len(rtds(simulator).servers) == count
    simulator.run(1 * SECOND)
    assert missed(simulator) == 0
    for task in tasks:
        assert simulator.times(task)[0] > 0.48 * SECOND, "with extra time"


@pytest.mark.parametrize(("values", "why"), [
    (share(10_000, 10_001), "a budget of 10001 us does not fit in a period of 10000 us"),
    (share(10_000, 9_900), "leaves less than overhead_us, 200 us, of its period"),
    (share(10_000, 0), "budget_us is 10 to"),
    (share(0, 10), "period_us is 10 to"),
    (share(10_000, -4), "not -4"),
    ({"weight": 3}, "no parameter 'weight'"),
    ({"extratime": 2}, r"on \(1\) or off \(0\)"),
])
def test_impossible_shares_are_refused(values: dict[str, Value], why: str) -> None:
    simulator = Simulator("1x1x1", "rtds")
    with pytest.raises(ParameterError, match=why):
        simulator.domain([hog], values)
    task = simulator.domain([hog])[0]
    before = dict(simulator.policy.share_of(task.vcpu))
    with pytest.raises(ParameterError, match=why):
        simulator.policy.set_share(task.vcpu.domain, values, 0)
    assert simulator.policy.share_of(task.vcpu) == before
    simulator.run(50 * MS)
    assert missed(simulator) == 0


def test_a_set_that_fits_only_when_packed_anew_is_admitted() -> None:
    """Spread first: 3 x 0.4 on three CPUs leave no room for 0.8 until two of them share one."""
    simulator = Simulator("1x3x1", "rtds", {"overhead_us": 10})
    small = [simulator.domain([hog], share(10_000, 4_000))[0] for _ in range(3)]
    homes = {rtds(simulator).home[task.vcpu] for task in small}
    assert len(homes) == 3
    simulator.run(25 * MS)
    big = simulator.domain([hog], share(10_000, 8_000))[0]
    before = simulator.times(big)[0]
    simulator.run(1 * SECOND)
    assert simulator.times(big)[0] - before >= 0.79 * SECOND
    for task in small:
        assert simulator.times(task)[0] >= 0.39 * SECOND
    with pytest.raises(ParameterError):
        simulator.domain([hog], share(10_000, 8_000))


def test_pinned_reservations_stay_where_they_must() -> None:
    simulator = Simulator("1x2x1", "rtds", {"overhead_us": 10}, log=True)
    pinned = [simulator.domain([hog], share(10_000, 4_500), hard=1)[0] for _ in range(2)]
    with pytest.raises(ParameterError):
        simulator.domain([hog], share(10_000, 1_500), hard=1)
    simulator.domain([hog], share(10_000, 9_500))
    simulator.run(300 * MS)
    assert missed(simulator) == 0
    assert simulator.log is not None
    assert {run.core for run in simulator.log.runs if run.vcpu in [task.vcpu for task in pinned]} == {0}


def test_affinities_and_pools_do_not_break_reservations() -> None:
    simulator = Simulator("1x2x1", "rtds")
    control = SchedulerControl(simulator.scheduler)
    tasks = [simulator.domain([hog], share(10_000, 6_000))[0] for _ in range(2)]
    simulator.run(20 * MS)
    moving = tasks[0].vcpu
    elsewhere = 1 - rtds(simulator).home[moving]
    for task in tasks:
        control.set_affinity(task.vcpu, hard=[rtds(simulator).home[task.vcpu]])
    with pytest.raises(ParameterError, match="the time of d1v0 is not free on these CPUs"):
        control.set_affinity(moving, hard=[elsewhere])
    assert moving.hard_affinity == 1 << 1 - elsewhere
    for task in tasks:
        control.set_anywhere(task.vcpu)
    with pytest.raises(ParameterError, match="the reservations do not fit without these CPUs"):
        control.create_pool("other", [1], "credit")
    simulator.run(100 * MS)
    assert missed(simulator) == 0
    control.set_share(tasks[0].vcpu.domain, share(10_000, 1_000))
    control.create_pool("other", [1], "credit")
    simulator.run(100 * MS)
    assert simulator.scheduler.running(1) is None
    assert sum(simulator.times(task)[0] for task in tasks) > 0.13 * SECOND


def test_vcpus_can_have_shares_of_their_own() -> None:
    simulator = Simulator("1x1x1", "rtds")
    tasks = simulator.domain([hog, hog], share(10_000, 3_000))
    simulator.policy.set_share(tasks[1].vcpu.domain, {"budget_us": 5_000}, 0, tasks[1].vcpu)
    simulator.run(1 * SECOND)
    assert [round(simulator.times(task)[0] / SECOND, 2) for task in tasks] == [0.3, 0.5]
    with pytest.raises(ParameterError):
        simulator.policy.set_share(tasks[0].vcpu.domain, {"budget_us": 8_000}, simulator.clock.now)
    simulator.policy.set_share(tasks[0].vcpu.domain, {"budget_us": 2_000}, simulator.clock.now)
    before = [simulator.times(task)[0] for task in tasks]
    simulator.run(1 * SECOND)
    assert [round((simulator.times(task)[0] - then) / SECOND, 2)
            for task, then in zip(tasks, before, strict=True)] == [0.2, 0.2]


def test_extra_time_costs_nobody_anything() -> None:
    simulator = Simulator("1x1x1", "rtds")
    greedy = simulator.domain([hog], share(10_000, 1_000, extratime=True))[0]
    late: list[int] = []
    simulator.domain([periodic(3_900 * US, 10 * MS, late)], share(10_000, 4_000))
    plain = simulator.domain([hog], share(10_000, 2_000))[0]
    simulator.run(1 * SECOND)
    assert not late
    assert missed(simulator) == 0
    assert simulator.times(plain)[0] / SECOND == pytest.approx(0.2, rel=0.02)
    assert simulator.times(greedy)[0] / SECOND > 0.38


def test_whoever_sleeps_and_wakes_late_keeps_nobody_from_theirs() -> None:
    """A vCPU that saves its budget up for the end of its period must not have it there and at once again."""
    simulator = Simulator("1x1x1", "rtds", {"overhead_us": 30})
    simulator.domain([sleeper(4_900 * US, 5_050 * US)], share(10_000, 4_900))
    steady = simulator.domain([hog], share(15_000, 7_300))[0]
    simulator.run(3 * SECOND)
    assert missed(simulator) == 0
    assert simulator.times(steady)[0] >= 3 * SECOND * 7_300 // 15_000 - 15 * MS


def test_a_machine_where_all_sleep_stands_still() -> None:
    simulator = Simulator("1x2x1", "rtds")
    simulator.domain([random_mix(1 * MS, 5 * MS)])
    task = simulator.domain([hog])[0]
    simulator.run(20 * MS)
    for each in simulator.tasks.values():
        simulator.scheduler.hold(each.vcpu, PAUSE_CONTROL)
    assert not simulator.run(10 * SECOND)
    assert simulator.times(task)[0] < 1 * SECOND


def test_packing_finds_what_spreading_does_not() -> None:
    """Nine reservations that fill three CPUs to the last part but for the rounding."""
    cores = Reservations(range(3))
    sizes = (3, 3, 3, 5, 5, 5, 2, 2, 2)
    wanted = {cast(VCpu, Listed(ANY_CPU, ANY_CPU)): size * (WHOLE // 10) for size in sizes}
    places = cores.packed(wanted)
    assert places is not None
    for core in range(3):
        assert sum(wanted[vcpu] for vcpu, place in places.items() if place == core) <= WHOLE
    one_more = cast(VCpu, Listed(ANY_CPU, ANY_CPU))
    assert cores.packed({**wanted, one_more: WHOLE // 10}) is None
    assert density(1, 3) * 3 >= WHOLE
