"""Who pays for switches: who yields pays for the one that it causes; others cost time that is nobody's."""

from __future__ import annotations

import pytest

from firmware.domain.vcpu import PAUSE_CONTROL, RUNNING
from firmware.sched.policy import POLICIES
from firmware.sched.scheduler import SwitchCosts
from tools.schedsim import Simulator
from tools.schedsim.workloads import hog, yielder

US, MS = 1_000, 1_000_000
COSTS = SwitchCosts(20 * US, (0, 0, 0, 0))
HEED = sorted(set(POLICIES) - {"rtds", "gang"})
"""Policies under which a yield hands the CPU over: reservations and slots belong to their owners."""


def lost(simulator: Simulator) -> int:
    """Ns in which the one CPU was nobody's."""
    return simulator.clock.now - sum(task.vcpu.runstate_times[RUNNING] for task in simulator.tasks.values())


def stop(simulator: Simulator) -> None:
    """Have everybody's time accounted for."""
    for task in simulator.tasks.values():
        simulator.scheduler.hold(task.vcpu, PAUSE_CONTROL)
    simulator.run(1)


@pytest.mark.parametrize("policy", HEED)
def test_who_yields_pays_for_the_switch(policy: str) -> None:
    simulator = Simulator("1x1x1", policy, costs=COSTS)
    for _ in range(2):
        simulator.domain([yielder(100 * US)])
    simulator.run(50 * MS)
    stop(simulator)
    assert simulator.scheduler.switches > 100
    spent = simulator.scheduler.switches * COSTS.switch
    assert lost(simulator) < spent // 10
    assert simulator.clock.now - sum(task.work for task in simulator.tasks.values()) >= spent


def test_a_turn_that_ends_costs_nobody_in_particular() -> None:
    simulator = Simulator("1x1x1", "rrobin", {"slice_ms": 1}, costs=COSTS)
    for _ in range(2):
        simulator.domain([hog])
    simulator.run(50 * MS)
    stop(simulator)
    switches = simulator.scheduler.switches
    assert switches > 40
    assert lost(simulator) == pytest.approx(switches * COSTS.switch, abs=COSTS.switch)
