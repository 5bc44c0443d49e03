"""Gangs in their three forms: strict ones run together or not at all, relaxed ones stay together, siblings
keep apart; and the matrix of the strict form.
"""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.domain.vcpu import VCpu
from firmware.sched.balance import Balance
from firmware.sched.control import SchedulerControl
from firmware.sched.gang import GangScheduling
from firmware.sched.matrix import Matrix
from firmware.sched.parameters import ParameterError, Value
from firmware.sched.relaxed import Relaxed
from firmware.sched.strict import Strict
from machine.machine import DEFAULT_QUANTUM_NS
from tools.schedsim import Log, Simulator, Task, co_run, neglect
from tools.schedsim.result import worst_skew
from tools.schedsim.workloads import barrier_team, hog, job, lock_team, random_mix, sleeper

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000
FORMS = ("strict", "relaxed", "balance")


def simulate(topology: str, form: str, *, slot: int = 10, alternate: bool = False, bare: bool = False,
             seed: int = 0, quantum: int = DEFAULT_QUANTUM_NS) -> Simulator:
    setting: dict[str, Value] = {"form": form, "slot_ms": slot, "alternate": alternate}
    return Simulator(topology, "gang", setting, log=True, bare=bare, seed=seed, quantum_ns=quantum)


def form_of(simulator: Simulator) -> object:
    return cast(GangScheduling, simulator.policy).form


def log_of(simulator: Simulator) -> Log:
    assert simulator.log is not None
    return simulator.log


def apart(log: Log, team: list[Task]) -> int:
    """Ns for which one of a team waited while another ran, summed over all pairs."""
    members = {task.vcpu for task in team}
    runs = [run for run in log.runs if run.vcpu in members]
    waits = [wait for wait in log.waits if wait.vcpu in members]
    return sum(max(0, min(run.end, wait.end) - max(run.start, wait.start))
               for wait in waits for run in runs if run.start < wait.end and wait.start < run.end)


# -- strict


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), slot=st.sampled_from((1, 5, 10)),
       quantum=st.sampled_from((20_000, 77_777, 200_000)),
       topology=st.sampled_from(("1x4x1", "1x2x2", "2x2x1")),
       noise=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_strict_gangs_run_together_whatever_the_skew(
    sizes: list[int], slot: int, quantum: int, topology: str, noise: bool, seed: int
) -> None:
    simulator = simulate(topology, "strict", slot=slot, quantum=quantum, bare=True, seed=seed)
    if noise:
        simulator.domain([random_mix(4 * MS, 9 * MS)] * 2)
    teams = [simulator.domain([hog] * size) for size in sizes]
    simulator.run(200 * MS)
    for team in teams:
        assert co_run(log_of(simulator).runs, [task.vcpu for task in team]) == 1.0
        assert min(task.work for task in team) > 0


@given(seed=st.integers(0, 999), slot=st.sampled_from((2, 10)))
@settings(max_examples=15, deadline=None)
def test_who_of_a_strict_gang_can_run_runs_when_the_others_do(seed: int, slot: int) -> None:
    simulator = simulate("1x4x1", "strict", slot=slot, bare=True, seed=seed)
    teams = [simulator.domain([random_mix(6 * MS, 6 * MS, 0.0)] * size) for size in (4, 3, 2, 2)]
    simulator.run(500 * MS)
    for team in teams:
        wakes = sum(task.wakes for task in team)
        assert apart(log_of(simulator), team) <= simulator.machine.quantum * wakes
        assert max(max(task.latencies) for task in team) <= 6 * slot * MS
    ran = sum(run.end - run.start for run in log_of(simulator).runs)
    assert apart(log_of(simulator), teams[0]) <= ran // 100


def test_with_the_costs_of_switching_strict_gangs_still_run_together() -> None:
    simulator = simulate("2x2x2", "strict")
    teams = [simulator.domain([hog] * 8) for _ in range(3)]
    simulator.run(SECOND)
    for team in teams:
        assert co_run(log_of(simulator).runs, [task.vcpu for task in team]) > 0.999


def test_slots_go_round_and_nobody_is_left_out() -> None:
    simulator = simulate("1x4x1", "strict", bare=True)
    teams = [simulator.domain([hog] * size) for size in (4, 4, 3, 2)]
    simulator.domain([sleeper(MS, 7 * MS, 0.5)])
    simulator.run(4 * SECOND)
    shares = [team[0].work / (4 * SECOND) for team in teams]
    assert min(shares) > 0.95 / 5
    assert max(shares) < 1.05 / 4 + 0.02


@pytest.mark.parametrize("tickets", [False, True])
def test_a_strict_lock_team_loses_nothing_to_others(tickets: bool) -> None:
    """Two teams as large as the machine, and something that comes and goes."""
    def ends(form: str) -> int:
        simulator = simulate("1x8x1", form, seed=1)
        simulator.domain([random_mix(4 * MS, 20 * MS)] * 2)
        teams = [simulator.domain(lock_team(8, 600, 50_000, 5_000, tickets=tickets)) for _ in range(2)]
        everybody = [task for team in teams for task in team]
        simulator.run(20 * SECOND, until=lambda: all(task.finished for task in everybody))
        return max(task.finished or 1 << 62 for task in everybody)

    gang, alone = ends("strict"), ends("balance")
    assert gang < 100 * MS
    assert gang < (alone / 2 if tickets else alone * 1.05)


def test_a_barrier_team_is_at_least_twice_as_fast_in_a_gang() -> None:
    def ends(form: str) -> int:
        simulator = simulate("1x8x1", form, seed=2)
        simulator.domain([random_mix(4 * MS, 20 * MS)] * 2)
        teams = [simulator.domain(barrier_team(8, 150, 300_000)) for _ in range(2)]
        everybody = [task for team in teams for task in team]
        simulator.run(20 * SECOND, until=lambda: all(task.finished for task in everybody))
        return max(task.finished or 1 << 62 for task in everybody)

    strict, relaxed, balance = (ends(form) for form in FORMS)
    assert 2 * strict < balance
    assert relaxed < balance


def test_independent_work_loses_little_in_a_gang() -> None:
    def ends(form: str) -> int:
        simulator = simulate("1x4x1", form)
        teams = [simulator.domain([job(300 * MS)] * 4) for _ in range(2)]
        everybody = [task for team in teams for task in team]
        simulator.run(5 * SECOND, until=lambda: all(task.finished for task in everybody))
        return max(task.finished or 1 << 62 for task in everybody)

    strict, relaxed, balance = (ends(form) for form in FORMS)
    assert strict < 1.05 * balance
    assert relaxed < 1.05 * balance


def test_rows_that_come_and_go_all_the_time_put_nobody_off() -> None:
    """More single vCPUs than slots between two changes: each still has its turns."""
    simulator = simulate("1x1x1", "strict", alternate=True, bare=True, seed=5)
    tasks = [simulator.domain([random_mix(3 * MS, 4 * MS)])[0] for _ in range(7)]
    simulator.run(3 * SECOND)
    assert {wait.vcpu for wait in log_of(simulator).waits} == {task.vcpu for task in tasks}
    assert max(wait.end - wait.start for wait in log_of(simulator).waits) < 200 * MS


def test_fragmentation_is_counted_and_alternates_use_it() -> None:
    used = []
    for alternate in (False, True):
        simulator = simulate("1x4x1", "strict", alternate=alternate, bare=True)
        simulator.domain([hog] * 3)
        simulator.domain([hog] * 3)
        simulator.run(SECOND)
        strict = cast(Strict, form_of(simulator))
        assert strict.matrix.fragmentation == 0.25
        idle = sum(span.end - span.start for span in log_of(simulator).idles)
        used.append((idle, strict.fragmented_ns, sum(task.work for task in simulator.tasks.values())))
    (idle, counted, work), (idle_alternate, _, work_alternate) = used
    assert idle == pytest.approx(SECOND, rel=0.02)
    assert counted == pytest.approx(SECOND, rel=0.05)
    assert work == pytest.approx(3 * SECOND, rel=0.01)
    assert work_alternate >= work
    assert idle_alternate <= idle

    simulator = simulate("1x4x1", "strict", alternate=True, bare=True)
    simulator.domain([hog] * 2)
    simulator.domain([hog] * 3)
    simulator.domain([hog] * 4)
    simulator.run(SECOND)
    assert neglect(log_of(simulator)) <= 300 * US


def test_a_whole_machine_never_idles_out_a_slot() -> None:
    simulator = simulate("1x2x1", "strict", bare=True)
    simulator.domain([sleeper(MS, 20 * MS)] * 2)
    team = simulator.domain([hog] * 2)
    simulator.run(SECOND)
    assert team[0].work > 0.9 * SECOND


def test_timers_end_when_nobody_can_run() -> None:
    for form in FORMS:
        simulator = simulate("1x2x1", form)
        simulator.domain([job(30 * MS)] * 2)
        simulator.domain([job(30 * MS)] * 2)
        assert not simulator.run(10 * SECOND)
        assert all(task.finished for task in simulator.tasks.values())


# -- relaxed


@given(threshold=st.sampled_from((2_000, 3_000, 8_000)), crowd=st.integers(0, 7), size=st.integers(2, 4),
       seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_nobody_of_a_relaxed_gang_leads_by_more_than_the_threshold(
    threshold: int, crowd: int, size: int, seed: int
) -> None:
    simulator = simulate("1x4x1", "relaxed", bare=True, seed=seed)
    simulator.domain([random_mix(15 * MS, 5 * MS)] * crowd, {"gang": False})
    team = simulator.domain([hog] * size, {"skew_us": threshold})
    simulator.run(300 * MS)
    tick = MS + simulator.machine.quantum
    assert worst_skew(log_of(simulator), [task.vcpu for task in team]) <= threshold * US + tick
    assert min(task.work for task in team) > 0


def test_one_pinned_in_a_crowd_holds_the_others_back_only_as_gangs_are_relaxed() -> None:
    work = {}
    for form in ("relaxed", "balance"):
        simulator = simulate("1x2x1", form, bare=True)
        simulator.domain([hog] * 3, {"gang": False}, hard=1)
        team = simulator.domain([hog, hog])
        simulator.run(SECOND)
        work[form] = [task.work for task in team]
    assert max(work["relaxed"]) - min(work["relaxed"]) <= 4 * MS + 200 * US
    assert max(work["balance"]) - min(work["balance"]) > 100 * MS


def test_sleep_counts_as_progress() -> None:
    """A gang of one that always runs and one that mostly sleeps: nobody is ever stopped."""
    simulator = simulate("1x2x1", "relaxed", bare=True)
    busy, _ = simulator.domain([hog, sleeper(MS, 50 * MS)])
    simulator.run(2 * SECOND)
    assert cast(Relaxed, form_of(simulator)).stops == 0
    assert busy.work == 2 * SECOND


def test_who_wakes_is_level_with_the_slowest() -> None:
    """Its sibling waits most of the time; that must not be held against who slept meanwhile."""
    simulator = simulate("1x2x1", "relaxed", bare=True)
    simulator.domain([hog] * 3, {"gang": False}, hard=1)
    slow, sleepy = simulator.domain([hog, sleeper(MS, 50 * MS)], start=False)
    for task, cpu in ((slow, 0), (sleepy, 1)):
        SchedulerControl(simulator.scheduler).set_affinity(task.vcpu, [cpu])
        simulator.start(task)
    simulator.run(SECOND)
    assert len(sleepy.latencies) >= 15
    assert max(sleepy.latencies) < MS


# -- balance


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 99),
       topology=st.sampled_from(("1x4x1", "1x2x2")), form=st.sampled_from(("balance", "relaxed")))
@settings(max_examples=20, deadline=None)
def test_siblings_that_can_run_are_never_at_home_together(
    sizes: list[int], seed: int, topology: str, form: str
) -> None:
    simulator = simulate(topology, form, seed=seed)
    teams = [simulator.domain([random_mix(5 * MS, 5 * MS)] * size) for size in sizes]
    balance = cast(Balance, form_of(simulator))

    def look() -> bool:
        for team in teams:
            homes = [balance.home[task.vcpu] for task in team if not task.vcpu.pause_flags]
            assert len(set(homes)) == len(homes)
        return False

    simulator.run(200 * MS, look)
    assert min(task.work for team in teams for task in team) > 0


def test_balance_lets_no_cpu_idle_beside_work_it_may_have() -> None:
    simulator = simulate("1x4x1", "balance")
    simulator.domain([random_mix(4 * MS, 2 * MS)] * 4)
    for _ in range(3):
        simulator.domain([random_mix(4 * MS, 2 * MS)])
    simulator.run(SECOND)
    assert neglect(log_of(simulator)) <= simulator.machine.quantum + 10 * MS


# -- parameters, and changes on the way


def test_a_gang_larger_than_the_pool_is_refused_by_the_strict_form_only() -> None:
    with pytest.raises(ParameterError, match="no 3 CPUs on which 3 vCPUs could run side by side"):
        simulate("1x2x1", "strict").domain([hog] * 3)
    with pytest.raises(ParameterError, match="no 2 CPUs"):
        simulate("1x2x1", "strict").domain([hog] * 2, hard=1)
    simulator = simulate("1x2x1", "strict")
    simulator.domain([hog] * 3, {"gang": False})
    simulator.run(100 * MS)
    assert min(task.work for task in simulator.tasks.values()) > 20 * MS
    with pytest.raises(ParameterError, match="side by side"):
        simulator.policy.set_share(simulator.domains[1], {"gang": True}, simulator.clock.now)
    for form in ("relaxed", "balance"):
        simulator = simulate("1x2x1", form)
        team = simulator.domain([hog] * 3)
        simulator.run(200 * MS)
        assert min(task.work for task in team) > 50 * MS
        with pytest.raises(ParameterError, match="side by side"):
            simulator.policy.tune({"form": "strict"}, simulator.clock.now)
        assert simulator.policy.settings["form"] == form


def test_another_form_takes_over_on_the_way() -> None:
    simulator = simulate("1x4x1", "balance", bare=True)
    simulator.domain([random_mix(3 * MS, 3 * MS)] * 2)
    teams = [simulator.domain([hog] * size) for size in (4, 3)]
    for form in (*FORMS, "strict", "balance", "strict"):
        before = [task.work for team in teams for task in team]
        simulator.policy.tune({"form": form}, simulator.clock.now)
        simulator.run(200 * MS)
        after = [task.work for team in teams for task in team]
        assert min(new - old for new, old in zip(after, before, strict=True)) > 20 * MS
    start = simulator.clock.now - 170 * MS
    late = [run for run in log_of(simulator).runs if run.start >= start]
    for team in teams:
        assert co_run(late, [task.vcpu for task in team]) > 0.999


@pytest.mark.parametrize(("setting", "share"), [
    ({"form": "loose"}, {}), ({"slot_ms": 0}, {}), ({"slot_ms": -1}, {}), ({"alternate": 3}, {}),
    ({}, {"skew_us": 0}), ({}, {"skew_us": -5}), ({}, {"gang": "yes"}), ({}, {"weight": 1}),
])
def test_bad_parameters_are_refused(setting: dict[str, int | str], share: dict[str, int | str]) -> None:
    with pytest.raises(ParameterError, match=r"^scheduler 'gang'.* "):
        Simulator(policy="gang", settings=setting).domain([hog], share or {"no": 1})


# -- the matrix


class Somebody:
    """What the matrix asks of a vCPU."""

    def __init__(self, hard: int) -> None:
        self.hard_affinity = hard


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.booleans()), max_size=25),
       st.integers(1, 5))
def test_the_matrix_seats_everybody_once_and_closes_up(steps: list[tuple[int, int, bool]], cpus: int) -> None:
    matrix = Matrix(range(cpus))
    gangs: dict[int, list[Somebody]] = {}
    for number, (size, pin, leaves) in enumerate(steps):
        if leaves and gangs:
            first = next(iter(gangs))
            del gangs[first]
            matrix.remove((first, None))
        else:
            members = [Somebody(-1) for _ in range(size)]
            members[0].hard_affinity = 1 << pin
            placed = matrix.place((number, None), cast(list[VCpu], members))
            assert placed == (size <= cpus and pin < cpus)
            if placed:
                gangs[number] = members
        seated = {id(vcpu): (at, column)
                  for at, row in enumerate(matrix.rows) for column, vcpu in row.items()}
        assert len(seated) == sum(map(len, gangs.values())) == sum(map(len, matrix.rows))
        assert all(matrix.rows)
        for members in gangs.values():
            places = [seated[id(member)] for member in members]
            assert len({row for row, _ in places}) == 1
            assert all(member.hard_affinity >> column & 1
                       for member, (_, column) in zip(members, places, strict=True))
            at = places[0][0]
            for row in matrix.rows[:at]:
                free = [column for column in range(cpus) if column not in row]
                pinned = members[0].hard_affinity
                assert len(free) < len(members) or not any(pinned >> column & 1 for column in free)
        cells = len(matrix.rows) * cpus
        assert matrix.fragmentation == pytest.approx(1 - len(seated) / cells if cells else 0)
