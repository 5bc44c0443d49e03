"""Policies replace each other on a running machine: everybody goes on at once, and keeps what has a meaning
under the new one.
"""

from __future__ import annotations

from itertools import product

import pytest

from firmware.domain.vcpu import PAUSE_CONTROL
from firmware.sched.control import SchedulerControl
from firmware.sched.parameters import ParameterError, Value
from firmware.sched.policy import POLICIES as REGISTRY
from tests.sched.stealers import MS, SECOND, US
from tools.schedsim import Simulator
from tools.schedsim.watching import Decisions, books_balance
from tools.schedsim.workloads import hog, random_mix

KINDS: dict[str, tuple[str, dict[str, Value]]] = {
    "rrobin": ("rrobin", {}), "bvt": ("bvt", {}), "atropos": ("atropos", {}), "credit": ("credit", {}),
    "credit2": ("credit2", {}), "rtds": ("rtds", {}), "strict": ("gang", {"form": "strict"}),
    "relaxed": ("gang", {"form": "relaxed"}), "balance": ("gang", {"form": "balance"}),
}
AT_ONCE = 1 * MS


def test_every_policy_is_tried() -> None:
    assert {name for name, _ in KINDS.values()} == set(REGISTRY)


@pytest.mark.parametrize("kind", KINDS)
def test_each_takes_over_from_each(kind: str) -> None:
    simulator = Simulator("1x2x2", *KINDS[kind])
    control = SchedulerControl(simulator.scheduler)
    tasks = [simulator.domain([hog])[0] for _ in range(4)]
    tasks += simulator.domain([random_mix(1 * MS, 1 * MS)] * 2)
    for other in (*KINDS, kind):
        simulator.run(20 * MS)
        control.set_policy(*KINDS[other])
        watched = Decisions(simulator)
        before = [simulator.times(task)[0] for task in tasks]
        simulator.run(100 * MS)
        assert watched.count
        assert all(simulator.times(task)[0] > then for task, then in zip(tasks, before, strict=True)), other
        assert books_balance(simulator)


@pytest.mark.parametrize(("kind", "other"), list(product(KINDS, KINDS)))
def test_nobody_waits_for_the_new_one_to_begin(kind: str, other: str) -> None:
    """Two domains of two on four CPUs: all run again at once."""
    simulator = Simulator("1x2x2", *KINDS[kind])
    tasks = [task for _ in range(2) for task in simulator.domain([hog] * 2)]
    simulator.run(5 * MS)
    SchedulerControl(simulator.scheduler).set_policy(*KINDS[other])
    simulator.run(AT_ONCE)
    assert all(task.vcpu.scheduled for task in tasks)


@pytest.mark.parametrize("form", ["relaxed", "balance"])
def test_a_strict_gang_begins_at_once_where_others_were(form: str) -> None:
    simulator = Simulator("1x4x1", "gang", {"form": form})
    gang = simulator.domain([hog] * 4)
    simulator.run(5 * MS)
    SchedulerControl(simulator.scheduler).tune({"form": "strict"})
    simulator.run(AT_ONCE)
    assert all(task.vcpu.scheduled for task in gang)


def test_an_old_policy_leaves_no_timers() -> None:
    """When everybody sleeps nothing is left that could happen."""
    for kind, other in product(KINDS, KINDS):
        simulator = Simulator("1x2x1", *KINDS[kind])
        control = SchedulerControl(simulator.scheduler)
        tasks = simulator.domain([hog] * 2) + simulator.domain([hog] * 2)
        simulator.run(25 * MS)
        for task in tasks:
            simulator.scheduler.hold(task.vcpu, PAUSE_CONTROL)
        control.set_policy(*KINDS[other])
        simulator.run(0)
        assert simulator.clock.next() is None, (kind, other)


def test_a_stopped_leader_is_not_looked_at_any_more() -> None:
    simulator = Simulator("1x2x1", "gang", {"form": "relaxed"})
    control = SchedulerControl(simulator.scheduler)
    gang = simulator.domain([hog] * 2)
    rivals = [simulator.domain([hog], hard=2)[0] for _ in range(3)]
    for cpu, task in enumerate(gang):
        control.set_affinity(task.vcpu, hard=[cpu])
    simulator.run(5 * MS)
    assert simulator.run(SECOND, until=lambda: simulator.scheduler.running(0) is None)
    assert simulator.clock.now < SECOND
    assert gang[0].vcpu.runnable, "it leads, and waits for its sibling"
    control.set_policy("rrobin")
    for task in (*gang, *rivals):
        simulator.scheduler.hold(task.vcpu, PAUSE_CONTROL)
    before = simulator.clock.fired
    simulator.run(SECOND)
    assert simulator.clock.fired == before


class TestShares:
    def test_weights_and_caps_go_on_to_hold(self) -> None:
        simulator = Simulator("1x2x1", "credit")
        control = SchedulerControl(simulator.scheduler)
        domain = simulator.domain([hog], {"weight": 512, "cap": 40})[0].vcpu.domain
        control.set_policy("credit2")
        assert control.share(domain) == {"weight": 512, "cap": 40}
        control.create_pool("other", [1], "credit")
        control.move_domain(domain, "other")
        assert control.share(domain) == {"weight": 512, "cap": 40}

    def test_a_period_alone_does_not(self) -> None:
        """10 ms is a budget's period under one, and too short for the other's slices."""
        simulator = Simulator("1x1x1", "rtds")
        control = SchedulerControl(simulator.scheduler)
        domain = simulator.domain([hog], {"period_us": 5_000, "budget_us": 1_000})[0].vcpu.domain
        control.set_policy("atropos")
        assert control.share(domain)["period_us"] == 10_000_000

    def test_single_vcpus_keep_theirs_under_the_same_policy(self) -> None:
        simulator = Simulator("1x2x1", "rtds")
        control = SchedulerControl(simulator.scheduler)
        share: dict[str, Value] = {"period_us": 10_000, "budget_us": 1_000}
        tasks = simulator.domain([hog] * 2, share)
        domain, vcpu = tasks[0].vcpu.domain, tasks[1].vcpu
        control.set_share(domain, {"budget_us": 3_000}, vcpu)
        control.set_policy("rtds", {"overhead_us": 100})
        control.create_pool("other", [1], "rtds")
        control.move_domain(domain, "other")
        assert control.share(domain)["budget_us"] == 1_000
        assert control.share(domain, vcpu)["budget_us"] == 3_000
        simulator.run(50 * MS)
        assert simulator.times(tasks[1])[0] > 15 * MS - 2 * US

    def test_a_move_that_is_refused_leaves_nothing(self) -> None:
        simulator = Simulator("1x2x1", "rtds", {"overhead_us": 0})
        control = SchedulerControl(simulator.scheduler)
        domain = simulator.domain([hog], {"period_us": 10_000, "budget_us": 9_500})[0].vcpu.domain
        pool = control.create_pool("other", [1], "rtds", {"overhead_us": 1_000})
        with pytest.raises(ParameterError, match="overhead_us"):
            control.move_domain(domain, "other")
        assert not [key for key in pool.policy.shares if key[0] == domain.id]
        assert control.share(domain)["budget_us"] == 9_500
