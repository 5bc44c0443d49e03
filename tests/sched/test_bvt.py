"""Borrowed virtual time: shares, warp and its limits, and the schedule against a slow and obvious one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.sched.control import SchedulerControl
from firmware.sched.parameters import ParameterError
from tools.schedsim import Simulator, Task
from tools.schedsim.workloads import hog, job, random_mix, sleeper, yielder

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000
MCU, ALLOWANCE = 100 * US, 5 * MS
COMMON = 840
"""Divisible by 1 to 8: the advance of weight w is this over w."""


def advance(weight: int) -> dict[str, int]:
    return {"mcu_advance": COMMON // weight}


def test_eight_weights_get_their_shares() -> None:
    for allowance, relative in ((5_000, 0.09), (1_000, 0.02)):
        simulator = Simulator(policy="bvt", settings={"ctx_allow_us": allowance})
        tasks = [simulator.domain([hog], advance(weight))[0] for weight in range(1, 9)]
        simulator.run(2 * SECOND)
        total = sum(task.work for task in tasks)
        assert total > 1.998 * SECOND
        for weight, task in enumerate(tasks, 1):
            assert task.work / total == pytest.approx(weight / 36, rel=relative)
            assert abs(task.work - total * weight / 36) <= allowance * US + MCU


@given(weights=st.lists(st.integers(1, 8), min_size=2, max_size=8), seconds=st.integers(1, 12))
@settings(max_examples=25)
def test_nobody_is_ahead_by_more_than_the_allowance_and_a_unit(weights: list[int], seconds: int) -> None:
    """The bound of the paper, at every moment: who can always run is ahead of anybody else like it by no more
    than what the allowance and one unit are worth.
    """
    simulator = Simulator(policy="bvt", bare=True)
    tasks = [simulator.domain([hog], advance(weight))[0] for weight in weights]
    for _ in range(seconds * 10):
        simulator.run(37 * MS)
        least = min(task.work * COMMON // weight for task, weight in zip(tasks, weights, strict=True))
        for task, weight in zip(tasks, weights, strict=True):
            assert task.work - least * weight // COMMON <= ALLOWANCE + MCU + 1


@given(weights=st.lists(st.integers(1, 8), min_size=2, max_size=6), mcu=st.sampled_from((50, 100, 500)),
       allowance=st.sampled_from((500, 1_000, 5_000)))
@settings(max_examples=25)
def test_the_schedule_of_hogs_is_that_of_the_paper(weights: list[int], mcu: int, allowance: int) -> None:
    """Turn by turn: the lowest effective virtual time runs until it is past the next by the allowance."""
    simulator = Simulator("1x1x1", "bvt", {"mcu_us": mcu, "ctx_allow_us": allowance}, bare=True, log=True)
    tasks = [simulator.domain([hog], advance(weight))[0] for weight in weights]
    simulator.run(300 * MS)
    assert simulator.log is not None
    avt = [0] * len(weights)
    waiting_since = list(range(len(weights)))
    now = turn = 0
    expected: list[tuple[int, int]] = []
    while now < 300 * MS:
        turn += 1
        runs = min(range(len(weights)), key=lambda who: (avt[who], waiting_since[who]))
        next_avt = min(avt[who] for who in range(len(weights)) if who != runs)
        cost = COMMON // weights[runs]
        units = (next_avt - avt[runs]) // cost
        length = units * mcu * US + allowance * US
        avt[runs] += -(-length // (mcu * US)) * cost
        waiting_since[runs] = len(weights) + turn
        length = min(length, 300 * MS - now)
        if expected and expected[-1][0] == runs:
            expected[-1] = runs, expected[-1][1] + length
        else:
            expected.append((runs, length))
        now += length
    ids = {task.vcpu: index for index, task in enumerate(tasks)}
    assert [(ids[run.vcpu], run.end - run.start) for run in simulator.log.runs] == expected


def loaded(share: dict[str, int | bool], hogs: int = 4, work: int = 500 * US) -> tuple[Simulator, Task]:
    simulator = Simulator(policy="bvt", seed=3)
    for _ in range(hogs):
        simulator.domain([hog])
    task, = simulator.domain([sleeper(work, 20 * MS, 0.3)], share)
    return simulator, task


def test_a_warped_sleeper_wakes_at_once_and_an_unwarped_one_waits() -> None:
    simulator, plain = loaded({})
    simulator.run(5 * SECOND)
    simulator, warped = loaded({"warpback": True, "warpvalue": 10_000})
    simulator.run(5 * SECOND)
    assert len(warped.latencies) > 200
    assert max(warped.latencies) < MS
    assert sum(warped.latencies) / len(warped.latencies) < sum(plain.latencies) / len(plain.latencies)
    assert max(warped.latencies) < max(plain.latencies)


def test_who_abuses_warp_is_capped() -> None:
    """Warped, a hog has everything for its limit; then it has to catch up on nothing, and gets its share only
    for as long as it must do without.
    """
    share = {"warpback": True, "warpvalue": 1 << 30, "warpl_ms": 200, "warpu_ms": 300}
    simulator = Simulator(policy="bvt", bare=True)
    others = [simulator.domain([hog])[0] for _ in range(3)]
    abuser, = simulator.domain([hog], share)
    simulator.run(200 * MS)
    assert abuser.work == 200 * MS
    simulator.run(300 * MS)
    assert abuser.work <= 200 * MS + ALLOWANCE  # far ahead of everybody, it does not run at all
    simulator.run(4_500 * MS)
    assert abuser.work / (5 * SECOND) == pytest.approx(0.4, abs=0.01)
    assert min(task.work for task in others) > 5 * SECOND * 0.19


def test_an_instant_of_sleep_does_not_renew_the_limit() -> None:
    share = {"warpback": True, "warpvalue": 1 << 30, "warpl_ms": 200, "warpu_ms": 300}
    simulator = Simulator(policy="bvt", bare=True)
    for _ in range(3):
        simulator.domain([hog])
    abuser, = simulator.domain([sleeper(20 * MS, 10 * US)], share)
    simulator.run(5 * SECOND)
    assert abuser.work / (5 * SECOND) <= 0.42


def test_moderate_use_of_warp_never_reaches_the_limit() -> None:
    share = {"warpback": True, "warpvalue": 1 << 30, "warpl_ms": 50, "warpu_ms": 100}
    simulator = Simulator(policy="bvt", bare=True)
    simulator.domain([hog])
    modest, = simulator.domain([sleeper(5 * MS, 15 * MS)], share)
    simulator.run(10 * SECOND)
    assert max(modest.latencies) < 100 * US


def test_without_a_limit_warp_lasts() -> None:
    simulator = Simulator(policy="bvt", bare=True)
    other, = simulator.domain([hog])
    simulator.domain([hog], {"warpback": True, "warpvalue": 1 << 30, "warpl_ms": 0})
    simulator.run(5 * SECOND)
    assert other.work == 0


def test_sleep_saves_nothing_up() -> None:
    simulator = Simulator(policy="bvt", bare=True)
    steady, = simulator.domain([hog])
    late, = simulator.domain([hog], start=False)
    simulator.run(2 * SECOND)
    simulator.start(late)
    simulator.run(SECOND)
    assert late.work == pytest.approx(SECOND / 2, abs=ALLOWANCE + MCU)
    assert steady.work == pytest.approx(2.5 * SECOND, abs=ALLOWANCE + MCU)


def test_a_share_changes_on_the_way() -> None:
    simulator = Simulator(policy="bvt", bare=True)
    one, = simulator.domain([hog], advance(1))
    other, = simulator.domain([hog], advance(1))
    simulator.run(SECOND)
    simulator.policy.set_share(other.vcpu.domain, advance(3), simulator.clock.now)
    before = one.work, other.work
    simulator.run(2 * SECOND)
    assert one.work - before[0] == pytest.approx(0.5 * SECOND, rel=0.03)
    assert other.work - before[1] == pytest.approx(1.5 * SECOND, rel=0.03)


def test_yielding_lets_others_go_first() -> None:
    simulator = Simulator(policy="bvt", bare=True)
    polite, = simulator.domain([yielder(100 * US)])
    other, = simulator.domain([hog])
    simulator.run(SECOND)
    assert other.work > 0.45 * SECOND
    assert polite.yields > 100
    assert polite.work > 0


def test_a_cpu_that_would_idle_takes_over_and_queues_even_out() -> None:
    simulator = Simulator("1x4x1", "bvt")
    tasks = simulator.domain([job(100 * MS)] * 4 + [hog] * 8)
    simulator.run(3 * SECOND)
    assert all(task.finished for task in tasks[:4])
    rates = [task.work for task in tasks[4:]]
    assert min(rates) > 0.9 * 3 * SECOND * 4 / 8 * 0.9
    assert sum(rates) + 400 * MS == pytest.approx(12 * SECOND, rel=0.01)


def test_who_moves_takes_no_more_than_its_lead_along() -> None:
    """From a CPU of its own, where virtual time went fast, to one that it shares with three others."""
    simulator = Simulator("1x2x1", "bvt", bare=True)
    simulator.domain([hog] * 3, hard=1)
    mover, = simulator.domain([hog], hard=2)
    simulator.run(2 * SECOND)
    SchedulerControl(simulator.scheduler).set_affinity(mover.vcpu, [0])
    before = mover.work
    simulator.run(SECOND)
    assert mover.work - before == pytest.approx(SECOND / 4, abs=2 * (ALLOWANCE + MCU))


def test_hogs_spread_over_cores_before_threads() -> None:
    simulator = Simulator("1x4x2", "bvt")
    tasks = simulator.domain([hog] * 4)
    simulator.run(200 * MS)
    assert sorted(task.vcpu.home // 2 for task in tasks) == [0, 1, 2, 3]


def test_a_hog_leaves_a_busy_sibling_for_a_core_that_falls_idle() -> None:
    simulator = Simulator("1x2x2", "bvt")
    pinned = simulator.domain([hog], hard=1)
    simulator.domain([job(50 * MS)], hard=4)
    free, = simulator.domain([hog], hard=0b1110)
    simulator.run(200 * MS)
    assert pinned[0].vcpu.home == 0
    assert free.vcpu.home in (2, 3)
    simulator.run(SECOND)
    assert free.work > 1.1 * SECOND


@pytest.mark.parametrize("share", [
    {"mcu_advance": 0}, {"mcu_advance": -1}, {"warpvalue": -1}, {"warpl_ms": -5}, {"warpu_ms": -1},
    {"warpback": 2}, {"weight": 256}, {"mcu_advance": "fast"},
])
def test_bad_shares_are_refused(share: dict[str, int | str]) -> None:
    simulator = Simulator(policy="bvt")
    with pytest.raises(ParameterError, match=r"^scheduler 'bvt'.* "):
        simulator.domain([hog], share)
    assert not simulator.scheduler.pools[0].vcpus


@pytest.mark.parametrize("setting", [{"mcu_us": 0}, {"ctx_allow_us": 0}, {"ctx_allow_us": -1}, {"slice": 10}])
def test_bad_settings_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ParameterError, match=r"^scheduler 'bvt'.* "):
        Simulator(policy="bvt", settings=setting)


@given(seed=st.integers(0, 1000), topology=st.sampled_from(("1x1x1", "1x2x2", "2x2x1")))
@settings(max_examples=10)
def test_nobody_starves_who_mixes_with_random_others(seed: int, topology: str) -> None:
    simulator = Simulator(topology, "bvt", seed=seed)
    mix = random_mix(3 * MS, 3 * MS)
    crowd = [simulator.domain([mix], advance(1 + number % 8))[0] for number in range(9)]
    simulator.run(SECOND)
    assert min(task.work for task in crowd) > 0
    assert max(max(task.latencies, default=0) for task in crowd) < SECOND / 4
