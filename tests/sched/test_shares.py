"""Proportional shares under credit and credit2: weights, caps, boosts, yields, changes on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.sched.caps import Caps
from firmware.sched.credit import BOOST, OVER, UNDER, Credit
from firmware.sched.credit2 import Credit2
from firmware.sched.parameters import ParameterError, Value
from firmware.sched.scheduler import SwitchCosts
from tests.sched.stealers import MS, SECOND, US
from tools.schedsim import FOREVER, Command, Run, Simulator, Sleep, Task
from tools.schedsim.workloads import hog, job, random_mix, sleeper, yielder

BOTH = pytest.mark.parametrize("policy", ["credit", "credit2"])
WEIGHTS = range(1, 9)


def late_hog(task: Task) -> Iterator[Command]:
    """Sleeps for two seconds, then computes for ever."""
    yield Sleep(2 * SECOND)
    yield Run(FOREVER)


def ran(simulator: Simulator, task: Task) -> int:
    return simulator.times(task)[0]


def shares(simulator: Simulator, tasks: list[Task], before: list[int] | None = None) -> list[float]:
    """Parts of what these have run (since `before`)."""
    before = before or [0] * len(tasks)
    times = [ran(simulator, task) - then for task, then in zip(tasks, before, strict=True)]
    return [time / sum(times) for time in times]


class TestWeights:
    @BOTH
    @pytest.mark.parametrize("topology", ["1x1x1", "1x2x1", "1x1x2", "1x3x1", "1x4x1", "2x2x1", "2x1x2"])
    @pytest.mark.parametrize("sleepers", [0, 8])
    def test_eight_weights_get_their_shares(self, policy: str, topology: str, sleepers: int) -> None:
        """Within 2 % of each share, not of the machine, over 2 s; also beside others that sleep."""
        simulator = Simulator(topology, policy)
        tasks = [simulator.domain([hog], {"weight": 100 * weight})[0] for weight in WEIGHTS]
        for _ in range(sleepers):
            simulator.domain([sleeper(100 * US, 10 * MS, 0.5)], {"weight": 100})
        simulator.run(2 * SECOND)
        for weight, share in zip(WEIGHTS, shares(simulator, tasks), strict=True):
            assert share == pytest.approx(weight / 36, rel=0.02)

    @pytest.mark.parametrize("runqueue", ["cpu", "core", "socket", "node", "all"])
    def test_run_queues_are_balanced_by_weight(self, runqueue: str) -> None:
        """36 weights on 4 logical CPUs: 9 each, if those who wait are exchanged until that is so."""
        simulator = Simulator("2x1x2", "credit2", {"runqueue": runqueue})
        tasks = [simulator.domain([hog], {"weight": 100 * weight})[0] for weight in WEIGHTS]
        simulator.run(1 * SECOND)
        before = [ran(simulator, task) for task in tasks]
        simulator.run(2 * SECOND)
        for weight, share in zip(WEIGHTS, shares(simulator, tasks, before), strict=True):
            assert share == pytest.approx(weight / 36, rel=0.02)

    @BOTH
    def test_a_weight_that_no_cpu_can_hold_leaves_the_rest_to_the_others(self, policy: str) -> None:
        """Of two CPUs one vCPU can have one; the others share the second as their weights are."""
        simulator = Simulator("1x2x1", policy)
        tasks = [simulator.domain([hog], {"weight": weight})[0] for weight in (10_000, 100, 200, 300)]
        simulator.run(3 * SECOND)
        assert ran(simulator, tasks[0]) > 2.9 * SECOND
        for weight, share in zip((100, 200, 300), shares(simulator, tasks[1:]), strict=True):
            assert share == pytest.approx(weight / 600, rel=0.04)

    @BOTH
    @given(weights=st.lists(st.integers(64, 1024), min_size=2, max_size=6), seed=st.integers(0, 99))
    @settings(max_examples=12)
    def test_hogs_share_what_sleepers_leave(self, policy: str, weights: list[int], seed: int) -> None:
        simulator = Simulator("1x1x1", policy, seed=seed)
        tasks = [simulator.domain([hog], {"weight": weight})[0] for weight in weights]
        for _ in range(3):
            simulator.domain([random_mix(2 * MS, 30 * MS)])
        simulator.run(3 * SECOND)
        for weight, share in zip(weights, shares(simulator, tasks), strict=True):
            assert share == pytest.approx(weight / sum(weights), rel=0.05, abs=0.006)

    @BOTH
    def test_who_sleeps_often_but_wants_more_gets_a_share_too(self, policy: str) -> None:
        """Both want 3/4 of the CPU, one with three times the weight: it gets what it wants, the other the
        rest.
        """
        simulator = Simulator("1x1x1", policy)
        light, heavy = (simulator.domain([sleeper(3 * MS, 1 * MS)], {"weight": weight})[0]
                        for weight in (100, 400))
        simulator.run(2 * SECOND)
        assert ran(simulator, heavy) > 1.2 * SECOND
        assert ran(simulator, light) > 0.35 * SECOND
        assert ran(simulator, heavy) + ran(simulator, light) > 1.8 * SECOND

    @BOTH
    def test_a_new_weight_holds_at_once(self, policy: str) -> None:
        simulator = Simulator("1x1x1", policy)
        tasks = [simulator.domain([hog])[0] for _ in range(2)]
        simulator.run(1 * SECOND)
        assert shares(simulator, tasks) == pytest.approx([0.5, 0.5], rel=0.02)
        simulator.policy.set_share(tasks[0].vcpu.domain, {"weight": 768}, simulator.clock.now)
        before = [ran(simulator, task) for task in tasks]
        simulator.run(2 * SECOND)
        assert shares(simulator, tasks, before) == pytest.approx([0.75, 0.25], rel=0.02)

    @BOTH
    def test_vcpus_of_one_domain_each_have_its_weight(self, policy: str) -> None:
        simulator = Simulator("1x2x1", policy)
        tasks = simulator.domain([hog] * 3)
        tasks += simulator.domain([hog])
        simulator.run(2 * SECOND)
        assert shares(simulator, tasks) == pytest.approx([0.25] * 4, rel=0.03)

    @BOTH
    def test_nobody_starves(self, policy: str) -> None:
        """The lightest waits no longer than a slice of everybody else's takes, weighed."""
        for seed in range(3):
            simulator = Simulator("1x2x1", policy, seed=seed, log=True)
            weights = (64, 256, 256, 512, 512, 1024)
            for weight in weights:
                simulator.domain([hog if weight % 3 else random_mix(5 * MS, 5 * MS)], {"weight": weight})
            simulator.run(2 * SECOND)
            assert simulator.log is not None
            slice_ns = 30 * MS if policy == "credit" else 10 * MS
            for wait in simulator.log.waits:
                weight = int(simulator.policy.share_of(wait.vcpu)["weight"])
                assert wait.end - wait.start <= slice_ns * sum(weights) // weight // 2


class TestCaps:
    @BOTH
    @pytest.mark.parametrize("cap", [1, 5, 10, 25, 50, 75, 99])
    @pytest.mark.parametrize("others", [0, 1])
    def test_a_cap_holds(self, policy: str, cap: int, others: int) -> None:
        """Within 2 %, whether or not anybody else wants the CPU."""
        simulator = Simulator("1x1x1", policy)
        task = simulator.domain([hog], {"cap": cap, "weight": 2_560})[0]
        for _ in range(others):
            simulator.domain([hog], {"weight": 2})
        simulator.run(3 * SECOND)
        assert ran(simulator, task) / (3 * SECOND) == pytest.approx(cap / 100, rel=0.02)

    @BOTH
    @pytest.mark.parametrize(("cap", "vcpus"), [(150, 4), (40, 3), (200, 2), (330, 4), (10, 8)])
    def test_a_domain_has_one_cap(self, policy: str, cap: int, vcpus: int) -> None:
        simulator = Simulator("1x4x1", policy)
        tasks = simulator.domain([hog] * vcpus, {"cap": cap})
        simulator.run(2 * SECOND)
        used = sum(ran(simulator, task) for task in tasks)
        assert used / (2 * SECOND) == pytest.approx(cap / 100, rel=0.02)

    @BOTH
    def test_a_cap_is_not_lost_on_vcpus_that_sleep(self, policy: str) -> None:
        simulator = Simulator("1x4x1", policy)
        tasks = simulator.domain([hog, sleeper(1 * MS, 99 * MS), sleeper(100 * US, 9 * MS)], {"cap": 60})
        simulator.run(2 * SECOND)
        assert sum(ran(simulator, task) for task in tasks) / (2 * SECOND) == pytest.approx(0.6, rel=0.02)

    @BOTH
    def test_vcpus_of_a_capped_domain_share_its_cap(self, policy: str) -> None:
        """One of them slept while the others saved up credit that their cap does not let them use."""
        simulator = Simulator("1x1x1", policy)
        simulator.domain([hog])
        tasks = simulator.domain([hog, hog, late_hog], {"cap": 30})
        simulator.run(2 * SECOND)
        assert ran(simulator, tasks[2]) < 1 * MS
        simulator.run(1 * SECOND)
        early = ran(simulator, tasks[2])
        assert early > 0.06 * SECOND
        simulator.run(1 * SECOND)
        assert (ran(simulator, tasks[2]) - early) / SECOND == pytest.approx(0.1, rel=0.1)

    @BOTH
    def test_what_is_not_used_is_gone(self, policy: str) -> None:
        simulator = Simulator("1x1x1", policy)
        task = simulator.domain([late_hog], {"cap": 20})[0]
        simulator.run(2 * SECOND)
        before = ran(simulator, task)
        simulator.run(300 * MS)
        assert ran(simulator, task) - before <= 0.2 * 330 * MS

    def test_what_is_overrun_is_owed(self) -> None:
        simulator = Simulator("1x1x1", "credit")
        vcpu = simulator.domain([hog])[0].vcpu
        caps = Caps(simulator.scheduler.pools[0], lambda vcpu, now: None)
        caps.set_period(10 * MS, 0)
        caps.set(vcpu.domain.id, 50, 1, 0)
        assert caps.reserve(vcpu, 1 * MS) == 5 * MS
        caps.ran(vcpu, 8 * MS)
        assert caps.reserve(vcpu, 10 * MS) == 0
        assert caps.reserve(vcpu, 11 * MS) == 2 * MS

    def test_two_decisions_at_one_instant_reserve_once(self) -> None:
        simulator = Simulator("1x1x1", "credit")
        vcpu = simulator.domain([hog])[0].vcpu
        caps = Caps(simulator.scheduler.pools[0], lambda vcpu, now: None)
        caps.set_period(10 * MS, 0)
        caps.set(vcpu.domain.id, 50, 1, 0)
        assert [caps.reserve(vcpu, 1 * MS) for _ in range(3)] == [5 * MS] * 3
        assert not caps.park(vcpu, 1 * MS)
        caps.set(vcpu.domain.id, 0, 1, 0)
        caps.set(vcpu.domain.id, 50, 1, 0)
        assert caps.reserve(vcpu, 2 * MS) == 5 * MS

    @BOTH
    def test_caps_change_on_the_way(self, policy: str) -> None:
        simulator = Simulator("1x1x1", policy)
        task = simulator.domain([hog], {"cap": 20})[0]
        simulator.run(1 * SECOND)
        for cap, part in ((70, 0.7), (0, 1.0), (5, 0.05)):
            simulator.policy.set_share(task.vcpu.domain, {"cap": cap}, simulator.clock.now)
            before = ran(simulator, task)
            simulator.run(2 * SECOND)
            assert (ran(simulator, task) - before) / (2 * SECOND) == pytest.approx(part, rel=0.03)

    @BOTH
    def test_a_capped_vcpu_is_not_stolen(self, policy: str) -> None:
        simulator = Simulator("1x4x1", policy)
        task = simulator.domain([hog], {"cap": 10})[0]
        simulator.run(1 * SECOND)
        assert ran(simulator, task) / SECOND == pytest.approx(0.1, rel=0.02)

    @BOTH
    def test_a_machine_where_all_sleep_stands_still(self, policy: str) -> None:
        simulator = Simulator("1x2x1", policy)
        simulator.domain([job(30 * MS), job(70 * MS)], {"cap": 50})
        assert not simulator.run(10 * SECOND), "nothing can happen any more"
        assert simulator.clock.now < SECOND


class TestCredit:
    def test_whoever_wakes_with_credit_runs_at_once(self) -> None:
        simulator = Simulator("1x1x1", "credit")
        for _ in range(4):
            simulator.domain([hog])
        task = simulator.domain([sleeper(200 * US, 20 * MS, 0.3)])[0]
        simulator.run(2 * SECOND)
        late = sorted(task.latencies)
        assert late[len(late) // 2] <= 1 * MS + 10 * US, "the rate limit"
        assert late[-1] <= 2 * MS

    def test_a_rate_limit_is_kept(self) -> None:
        for limit in (0, 1_000, 5_000):
            simulator = Simulator("1x1x1", "credit", {"ratelimit_us": limit}, log=True, bare=True)
            simulator.domain([hog])
            simulator.domain([sleeper(100 * US, 700 * US, 0.5)])
            simulator.run(500 * MS)
            assert simulator.log is not None
            turns = [run.end - run.start for run in simulator.log.runs
                     if run.vcpu.domain.id == 1 and run.end < 490 * MS]
            assert min(turns) >= limit * US
            assert min(turns) <= limit * US + 1_000 * US

    def test_one_that_is_mostly_idle_among_many_that_are_busy(self) -> None:
        """The longer the turns of 128 others, the longer it waits, and the less is lost in switches."""
        waited, lost = [], []
        for turn in (1_000, 5_000, 20_000):
            simulator = Simulator("1x1x1", "credit", {"ratelimit_us": turn},
                                  costs=SwitchCosts(20 * US, (0, 0, 0, 0)))
            tasks = [simulator.domain([hog])[0] for _ in range(128)]
            idler = simulator.domain([sleeper(100 * US, 100 * MS, 0.5)])[0]
            simulator.run(4 * SECOND)
            waited.append(sum(idler.latencies) / len(idler.latencies))
            lost.append(4 * SECOND - sum(task.work for task in [*tasks, idler]))
            ordered = sorted(idler.latencies)
            assert ordered[len(ordered) * 9 // 10] <= turn * US + 2 * MS
        assert waited[0] < waited[1] < waited[2]
        assert lost[0] > 3 * lost[1] > 6 * lost[2]

    def test_a_boost_ends_with_the_credit(self) -> None:
        simulator = Simulator("1x1x1", "credit")
        policy = simulator.policy
        assert isinstance(policy, Credit)
        tasks = [simulator.domain([hog])[0] for _ in range(2)]
        simulator.run(100 * MS)
        assert all(policy._accounts[task.vcpu].priority != BOOST for task in tasks)
        spent = [policy._accounts[task.vcpu] for task in tasks]
        assert all(account.credit > 0 or account.priority == OVER for account in spent)

    def test_a_boost_ends_after_a_tick_though_there_is_credit_left(self) -> None:
        simulator = Simulator("1x1x1", "credit")
        policy = simulator.policy
        assert isinstance(policy, Credit)
        simulator.domain([hog])
        account = policy._accounts[simulator.domain([late_hog])[0].vcpu]
        simulator.run(2 * SECOND + 5 * MS)
        assert account.priority == BOOST
        simulator.run(8 * MS)
        assert account.priority == UNDER
        assert account.credit > 2 * MS

    def test_who_dodges_every_tick_pays_all_the_same(self) -> None:
        """Running just less than a tick and sleeping for a moment does not steal from the others."""
        simulator = Simulator("1x1x1", "credit")
        thief = simulator.domain([sleeper(9_500 * US, 500 * US)])[0]
        honest = simulator.domain([hog])[0]
        simulator.run(2 * SECOND)
        assert shares(simulator, [thief, honest])[0] < 0.53

    @pytest.mark.parametrize(("topology", "hogs"), [("1x2x1", 4), ("1x4x1", 8)])
    def test_nobody_is_stolen_without_need(self, topology: str, hogs: int) -> None:
        """Equals, as many on each CPU: nobody with no credit is worth a theft."""
        simulator = Simulator(topology, "credit")
        for _ in range(hogs):
            simulator.domain([hog])
        simulator.run(1 * SECOND)
        assert simulator.scheduler.migrations == 0

    def test_a_hot_vcpu_is_left_where_it_is(self) -> None:
        moved = []
        for delay in (0, 50_000):
            simulator = Simulator("1x2x1", "credit", {"vcpu_migration_delay_us": delay})
            for _ in range(3):
                simulator.domain([hog])
            simulator.run(1 * SECOND)
            moved.append(simulator.scheduler.migrations)
        assert moved[1] < moved[0] / 3


class TestCredit2:
    def test_credit_is_taken_along_to_another_run_queue(self) -> None:
        simulator = Simulator("1x2x1", "credit2", {"runqueue": "cpu"})
        for _ in range(4):
            simulator.domain([hog])
        simulator.run(105 * MS)
        policy = simulator.policy
        assert isinstance(policy, Credit2)
        unit = next(unit for unit in policy._units.values() if not unit.vcpu.scheduled)
        other = next(group for group in policy._groups.values() if group is not unit.group)
        policy._unqueue(unit)
        credit = unit.group.given - unit.spent
        policy._move(unit, other)
        assert other.given - unit.spent == credit < 10 * MS

    def test_turns_end_where_the_next_has_as_much_credit(self) -> None:
        """Alone a vCPU runs for ten ms; beside an equal one they take turns of the rate limit."""
        for hogs, turn in ((1, 10 * MS), (2, 1 * MS)):
            simulator = Simulator("1x1x1", "credit2", bare=True)
            for _ in range(hogs):
                simulator.domain([hog])
            simulator.run(100 * MS)
            assert simulator.scheduler.decisions == pytest.approx(100 * MS // turn, abs=2)

    def test_interactive_ones_wait_no_longer_than_the_rate_limit(self) -> None:
        simulator = Simulator("1x1x1", "credit2")
        for _ in range(4):
            simulator.domain([hog])
        task = simulator.domain([sleeper(200 * US, 20 * MS, 0.3)])[0]
        simulator.run(2 * SECOND)
        assert max(task.latencies) <= 1 * MS + 10 * US

    def test_run_queues_can_be_changed_while_it_runs(self) -> None:
        simulator = Simulator("2x2x2", "credit2")
        tasks = [simulator.domain([hog])[0] for _ in range(16)]
        for runqueue in ("all", "cpu", "core", "node", "socket"):
            simulator.run(300 * MS)
            simulator.policy.tune({"runqueue": runqueue}, simulator.clock.now)
        simulator.run(500 * MS)
        for task in tasks:
            assert ran(simulator, task) > 0.9 * simulator.clock.now / 2

    def test_moves_must_be_worth_the_resistance(self) -> None:
        moved = []
        for resist in (0, 20_000):
            simulator = Simulator("1x4x1", "credit2", {"migrate_resist_us": resist}, seed=1)
            for _ in range(7):
                simulator.domain([random_mix(3 * MS, 1 * MS)])
            simulator.run(500 * MS)
            moved.append(simulator.scheduler.migrations)
        assert moved[1] < 0.8 * moved[0]


def test_a_yield_lets_others_run() -> None:
    """Whatever credit they have; under credit2 a yield is worth so much credit and no more."""
    parts = {}
    for policy, values in (("credit", {}), ("credit2", {"yield_bias_us": 0}),
                           ("credit2", {"yield_bias_us": 30_000})):
        simulator = Simulator("1x1x1", policy, values, bare=True)
        storm = simulator.domain([yielder(10 * US)])[0]
        busy = simulator.domain([hog])[0]
        simulator.run(300 * MS)
        assert storm.yields > 10
        parts[policy, *values.values()] = ran(simulator, storm) / ran(simulator, busy)
    assert parts["credit",] < 0.05
    assert parts["credit2", 0] > 0.9
    assert parts["credit2", 30_000] < 0.05


BAD_SHARES: list[tuple[str, dict[str, Value], str]] = [
    ("credit", {"weight": 0}, "weight is 1 to 65535, not 0"),
    ("credit", {"weight": -5}, "not -5"),
    ("credit2", {"weight": 65_536}, "not 65536"),
    ("credit2", {"cap": -1}, "cap is 0 to 65535 %, not -1"),
    ("credit", {"cap": "much"}, "whole number"),
    ("credit", {"period_us": 1}, "no parameter 'period_us'"),
]
BAD_SETTINGS: list[tuple[str, dict[str, Value], str]] = [
    ("credit", {"tslice_ms": 0}, "tslice_ms is 1 to 1000 ms, not 0"),
    ("credit", {"ratelimit_us": -1}, "not -1"),
    ("credit", {"ratelimit_us": 40_000}, "at most tslice_ms"),
    ("credit", {"vcpu_migration_delay_us": 100_001}, "not 100001"),
    ("credit2", {"runqueue": "rack"}, "one of cpu, core, socket, node, all"),
    ("credit2", {"migrate_resist_us": -1}, "not -1"),
    ("credit2", {"cap_period_ms": 0}, "not 0"),
    ("credit2", {"load_window_ms": 0}, "not 0"),
    ("rrobin", {"slice_ms": 0}, "not 0"),
    ("rrobin", {"slice_ms": True}, "whole number"),
]


@pytest.mark.parametrize(("policy", "share", "why"), BAD_SHARES)
def test_impossible_shares_are_refused(policy: str, share: Mapping[str, Value], why: str) -> None:
    simulator = Simulator("1x1x1", policy)
    task = simulator.domain([hog])[0]
    before = dict(simulator.policy.share_of(task.vcpu))
    with pytest.raises(ParameterError, match=why):
        simulator.policy.set_share(task.vcpu.domain, share, 0)
    with pytest.raises(ParameterError, match=why):
        simulator.domain([hog], share)
    assert simulator.policy.share_of(task.vcpu) == before


@pytest.mark.parametrize(("policy", "values", "why"), BAD_SETTINGS)
def test_impossible_settings_are_refused(policy: str, values: Mapping[str, Value], why: str) -> None:
    with pytest.raises(ParameterError, match=why):
        Simulator("1x1x1", policy, values)
    simulator = Simulator("1x1x1", policy)
    before = dict(simulator.policy.settings)
    with pytest.raises(ParameterError, match=why):
        simulator.policy.tune(values, 0)
    assert simulator.policy.settings == before
