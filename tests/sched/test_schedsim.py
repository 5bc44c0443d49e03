"""The simulator itself: time, contention, waking, spinning and what it writes down."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from firmware.domain.vcpu import BLOCKED, RUNNABLE, RUNNING
from tools.schedsim import Block, Command, Run, Simulator, Sleep, Task, Wake, Yield, co_run, neglect
from tools.schedsim.commands import CALL_NS
from tools.schedsim.workloads import barrier_team, echo, hog, job, lock_team, random_mix, sleeper, yielder

MS = 1_000_000


def test_a_hog_alone_works_all_the_time() -> None:
    simulator = Simulator(bare=True)
    task, = simulator.domain([hog])
    simulator.run(50 * MS)
    assert task.work == 50 * MS
    assert simulator.times(task) == [50 * MS, 0, 0, 0]


def test_two_hogs_take_turns() -> None:
    simulator = Simulator(bare=True, log=True)
    one, other = simulator.domain([hog, hog])
    simulator.run(100 * MS)
    assert one.work == other.work == 50 * MS
    assert simulator.log is not None
    runs = [(run.vcpu.id, run.end - run.start) for run in simulator.log.runs]
    assert runs == [(0, 10 * MS), (1, 10 * MS)] * 5


def test_costs_of_switching_are_nobodys_work() -> None:
    simulator = Simulator()
    tasks = simulator.domain([hog, hog])
    simulator.run(100 * MS)
    assert sum(task.work for task in tasks) == 100 * MS - simulator.scheduler.switches * 1_000


def test_a_thread_beside_a_busy_one_is_slower() -> None:
    simulator = Simulator("1x1x2", bare=True, smt_factor=0.6)
    one, other = simulator.domain([hog, job(6 * MS)])
    simulator.run(100 * MS)
    assert other.finished == pytest.approx(10 * MS, abs=simulator.machine.quantum)
    assert one.work == pytest.approx(96 * MS, abs=simulator.machine.quantum)


def test_cores_are_never_further_apart_than_a_quantum() -> None:
    simulator = Simulator("1x4x1", quantum_ns=50_000)
    simulator.domain([random_mix(3 * MS, MS)] * 9)
    far = 0

    def look() -> bool:
        nonlocal far
        now = [core.time for core in simulator.machine.cores if not core.idle]
        far = max(far, max(now, default=0) - min(now, default=0))
        return False

    simulator.run(50 * MS, look)
    assert 0 < far <= 50_000 + 60_000  # a switch and a migration may be charged on top


def test_sleep_block_and_wake() -> None:
    seen: list[tuple[str, int]] = []

    def first(task: Task) -> Iterator[Command]:
        yield Block()
        seen.append(("woken", task.now))
        yield Run(MS)

    def second(task: Task) -> Iterator[Command]:
        yield Sleep(5 * MS)
        seen.append(("slept", task.now))
        yield Wake(task.team[0])

    simulator = Simulator(bare=True)
    one, other = simulator.domain([first, second])
    assert not simulator.run(100 * MS)  # nothing can happen any more
    assert [what for what, _ in seen] == ["slept", "woken"]
    assert seen[0][1] == 2 * CALL_NS + 5 * MS
    assert one.finished is not None
    assert other.finished is not None
    assert one.latencies == [0]
    assert simulator.times(one)[RUNNING] == MS + CALL_NS


def test_a_wake_before_the_block_is_not_lost() -> None:
    def first(task: Task) -> Iterator[Command]:
        yield Run(5 * MS)
        yield Block()
        yield Run(MS)

    def second(task: Task) -> Iterator[Command]:
        yield Wake(task.team[0])

    simulator = Simulator("1x2x1")
    one, _ = simulator.domain([first, second])
    simulator.run(100 * MS)
    assert one.finished is not None
    assert one.work == 6 * MS


@pytest.mark.parametrize("topology", ["1x1x1", "1x2x1", "2x2x2"])
def test_run_states_sum_to_elapsed_time(topology: str) -> None:
    simulator = Simulator(topology, log=True)
    tasks = simulator.domain([random_mix(4 * MS, 4 * MS)] * 5 + [hog, yielder(10_000)])
    simulator.run(200 * MS)
    log = simulator.log
    assert log is not None
    for task in tasks:
        times = simulator.times(task)
        assert sum(times) == pytest.approx(simulator.clock.now, abs=simulator.machine.quantum)
        assert times[RUNNABLE] + times[BLOCKED] > 0
        ran = sum(run.end - run.start for run in log.runs if run.vcpu is task.vcpu)
        assert ran == pytest.approx(times[RUNNING], abs=simulator.machine.quantum)
    for core in simulator.machine.cores:
        mine = sorted([(run.start, run.end) for run in log.runs if run.core == core.index]
                      + [(idle.start, idle.end) for idle in log.idles if idle.core == core.index])
        assert all(end <= start for (_, end), (start, _) in pairwise(mine))
    assert neglect(log) <= simulator.machine.quantum + 60_000


def test_the_same_seed_gives_the_same_schedule() -> None:
    def run(seed: int) -> int:
        simulator = Simulator("1x2x2", seed=seed)
        simulator.domain([random_mix(2 * MS, 2 * MS)] * 9)
        simulator.run(200 * MS)
        return simulator.hash

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_spinner_uses_up_its_cpu_until_the_holder_has_gone_on() -> None:
    together = Simulator("1x2x1", bare=True)
    tasks = together.domain(lock_team(2, 10, outside_ns=0, inside_ns=MS))
    together.run(100 * MS)
    ends = sorted(task.finished or 0 for task in tasks)
    assert ends[1] == 20 * MS
    assert sum(task.spun for task in tasks) + sum(task.work for task in tasks) == sum(ends)
    assert sum(task.work for task in tasks) == 20 * MS


def test_a_barrier_holds_everybody_back() -> None:
    simulator = Simulator("1x4x1", bare=True)
    tasks = simulator.domain(barrier_team(4, 20, MS))
    simulator.run(100 * MS)
    assert [task.finished for task in tasks] == [20 * MS] * 4
    assert not sum(task.spun for task in tasks)


def test_a_barrier_team_beside_a_hog_wastes_time_spinning() -> None:
    simulator = Simulator("1x2x1", bare=True, log=True)
    team = simulator.domain(barrier_team(2, 20, MS))
    simulator.domain([hog])
    simulator.run(200 * MS)
    assert all(task.finished for task in team)
    assert sum(task.spun for task in team) > 5 * MS
    assert simulator.log is not None
    assert co_run(simulator.log.runs, [task.vcpu for task in team]) < 0.8


def test_an_echo_answers() -> None:
    simulator = Simulator("1x2x1")
    client, server = simulator.domain(echo(1, MS))
    simulator.run(100 * MS)
    assert client.wakes > 150
    assert server.work == pytest.approx(client.wakes // 2 * 20_000, rel=0.02)
    assert max(server.latencies) < 60_000


def test_yields_let_others_run() -> None:
    def polite(task: Task) -> Iterator[Command]:
        while True:
            yield Run(1_000)
            yield Yield()

    simulator = Simulator(bare=True)
    one, other = simulator.domain([polite, sleeper(100_000, 100_000)])
    simulator.run(20 * MS)
    assert one.yields > 1_000
    assert max(other.latencies) <= 2_000


@pytest.mark.parametrize(("quantum", "factor"), [(0, 0.6), (-1, 0.6), (1, 0.0), (1, 1.5)])
def test_bad_machines_are_refused(quantum: int, factor: float) -> None:
    with pytest.raises(ValueError, match=r"quantum|SMT factor"):
        Simulator(quantum_ns=quantum, smt_factor=factor)
