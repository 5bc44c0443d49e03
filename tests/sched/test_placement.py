"""Placement and stealing, whatever the policy: nobody idles beside work, siblings first, pins hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.domain.vcpu import ANY_CPU, VCpu
from firmware.sched.control import SchedulerControl
from firmware.sched.parameters import Value
from firmware.sched.placement import MACHINE, SAME, SIBLING, SOCKET, Placement, following
from machine.topology import Topology
from tests.sched.stealers import MS, NAMES, POLICIES, US
from tools.schedsim import Simulator, neglect
from tools.schedsim.crowd import crowd
from tools.schedsim.watching import Decisions, books_balance
from tools.schedsim.workloads import hog, sleeper

TICK = 10 * MS
TOPOLOGIES = ("1x1x1", "1x2x1", "1x1x2", "1x2x2", "1x4x2", "2x2x2", "2x4x2", "4x8x2")
EVERY_POLICY = pytest.mark.parametrize(("name", "settings"), POLICIES, ids=NAMES)
UNRESERVED = pytest.mark.parametrize(("name", "settings"), POLICIES[:-1], ids=NAMES[:-1])
SOAK = bool(os.environ.get("XENPY_SOAK"))


def somebody(hard: int = ANY_CPU, soft: int = ANY_CPU) -> VCpu:
    return cast(VCpu, SimpleNamespace(hard_affinity=hard, soft_affinity=soft))


topologies = st.builds(Topology, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


class TestPlacement:
    def test_distances(self) -> None:
        placement = Placement(Topology(2, 2, 2))
        assert [placement.distance(2, cpu) for cpu in range(8)] == [
            SOCKET, SOCKET, SAME, SIBLING, MACHINE, MACHINE, MACHINE, MACHINE]

    @given(topology=topologies, data=st.data())
    def test_an_idle_cpu_is_found_where_it_is_best(self, topology: Topology, data: st.DataObject) -> None:
        placement = Placement(topology)
        masks = st.integers(0, placement.all)
        idle, hard, soft = data.draw(masks), data.draw(masks), data.draw(masks)
        last = data.draw(st.integers(0, placement.cpus - 1))
        found = placement.idle_for(somebody(hard, soft), last, idle)
        allowed = [cpu for cpu in range(placement.cpus) if (idle & hard) >> cpu & 1]

        def grade(cpu: int) -> tuple[bool, bool, int]:
            whole = placement.sibling_mask[cpu] & idle == placement.sibling_mask[cpu]
            return not soft >> cpu & 1, not whole, placement.distance(last, cpu)

        if found is None:
            assert not allowed
        else:
            assert found in allowed
            assert grade(found) == min(map(grade, allowed))

    @given(topology=topologies, data=st.data())
    def test_a_better_place_is_better(self, topology: Topology, data: st.DataObject) -> None:
        placement = Placement(topology)
        core = data.draw(st.integers(0, placement.cpus - 1))
        masks = st.integers(0, placement.all)
        idle, soft = data.draw(masks) & ~(1 << core), data.draw(masks)
        hard = data.draw(masks) | 1 << core
        found = placement.better(somebody(hard, soft), core, idle)

        def alone(cpu: int) -> bool:
            others = placement.sibling_mask[cpu] & ~(1 << cpu)
            return others & idle == others

        def gains(cpu: int) -> bool:
            if not (idle & hard) >> cpu & 1:
                return False
            liked, here = bool(soft >> cpu & 1), bool(soft >> core & 1)
            return liked > here or (liked == here and alone(cpu) > alone(core))

        gaining = [cpu for cpu in range(placement.cpus) if gains(cpu)]
        if found is None:
            assert not gaining
        else:
            assert found in gaining

    @given(topology=topologies, data=st.data())
    def test_the_first_place_is_the_least_loaded_core(self, topology: Topology, data: st.DataObject) -> None:
        placement = Placement(topology)
        load = {cpu: data.draw(st.integers(0, 3)) for cpu in range(placement.cpus)}
        hard = data.draw(st.integers(1, placement.all))
        found = placement.initial(somebody(hard), load, placement.all)
        assert hard >> found & 1

        def grade(cpu: int) -> tuple[int, int]:
            return load[cpu], sum(load[other] for other in load if placement.sibling_mask[cpu] >> other & 1)

        assert grade(found) == min(grade(cpu) for cpu in load if hard >> cpu & 1)

    @given(topology=topologies, data=st.data())
    def test_work_is_looked_for_near_before_far(self, topology: Topology, data: st.DataObject) -> None:
        placement = Placement(topology)
        thief = data.draw(st.integers(0, placement.cpus - 1))
        masks = st.integers(0, placement.all)
        waiting, willing, suited = data.draw(masks) & ~(1 << thief), data.draw(masks), data.draw(masks)
        asked: list[int] = []

        def take(victim: int, by: int) -> Any:
            assert by == thief
            asked.append(victim)
            return somebody() if willing >> victim & 1 else None

        found = placement.steal(thief, waiting, take, lambda victim, by: bool(suited >> victim & 1))
        there = [cpu for cpu in range(placement.cpus) if (waiting & willing) >> cpu & 1]
        assert (found is None) == (not there)
        if there:
            def grade(cpu: int) -> tuple[int, bool]:
                return placement.distance(thief, cpu), not suited >> cpu & 1

            assert grade(asked[-1]) == min(map(grade, there))

    def test_following_goes_round(self) -> None:
        assert [following(cpu, 0b1010) for cpu in range(5)] == [1, 3, 3, 1, 1]


@EVERY_POLICY
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_nobody_idles_longer_than_a_tick_beside_work(name: str, settings: Mapping[str, Value],
                                                      topology: str) -> None:
    """Over random loads: whoever could have run there ran within a tick; in fact, a tenth of one."""
    for seed in range(60 if SOAK else 2):
        random = Random(f"{topology} {seed}")
        simulator = Simulator(topology, name, settings, seed=seed, log=True)
        crowd(simulator, random.randrange(1, 2 * simulator.topology.cpus + 3), random)
        watched = Decisions(simulator)
        simulator.run(60 * MS if simulator.topology.cpus > 16 else 150 * MS)
        assert simulator.log is not None
        if name == "rtds":  # who has used up the budget and wants no extra time may not run
            domains = [vcpu for vcpu in simulator.tasks if simulator.policy.share_of(vcpu)["extratime"]]
            simulator.log.waits = [wait for wait in simulator.log.waits if wait.vcpu in domains]
        assert neglect(simulator.log) <= TICK // 10
        assert not watched.far
        assert not watched.astray
        assert books_balance(simulator)


@pytest.mark.parametrize(("name", "settings"), [("rrobin", {}), ("credit", {}),
                                                ("credit2", {"runqueue": "cpu"})])
def test_siblings_work_comes_first(name: str, settings: Mapping[str, Value]) -> None:
    """Two vCPUs wait, one on the sibling's queue and one on another core's: the sibling's is taken."""
    for busy in range(4):
        simulator = Simulator("2x2x2", name, settings, bare=True, smt_factor=1.0)
        sibling, thief = 2 * busy + 1, 2 * busy
        tasks = {}
        for cpu in range(8):
            work = [sleeper(4_500 * US, 100 * MS)] if cpu == thief else [hog, hog]
            tasks[cpu] = simulator.domain(work, hard=1 << cpu)
        simulator.run(4 * MS)
        waiting = {}
        for cpu, pair in tasks.items():
            for task in pair:
                if not task.vcpu.scheduled:
                    waiting[task.vcpu] = cpu
                    task.vcpu.hard_affinity = ANY_CPU
                    simulator.policy.affinity_changed(task.vcpu, simulator.clock.now)
        assert len(waiting) == 7
        simulator.run(900 * US)
        current = simulator.scheduler.running(thief)
        assert current is not None
        assert waiting[current] == sibling


@UNRESERVED
@pytest.mark.parametrize("topology", ["1x2x2", "1x4x2", "2x4x2", "1x2x4", "4x8x2"])
def test_hogs_end_on_different_cores(name: str, settings: Mapping[str, Value], topology: str) -> None:
    """As many hogs as cores: at once when they come one by one; within a rebalance when they start on half
    of the cores, two threads of each.
    """
    simulator = Simulator(topology, name, settings)
    cores, threads = simulator.topology.cpus // simulator.topology.threads, simulator.topology.threads

    def used(simulator: Simulator) -> int:
        running = [cpu for cpu in range(cores * threads) if simulator.scheduler.running(cpu) is not None]
        return len({cpu // threads for cpu in running})

    for _ in range(cores):
        simulator.domain([hog])
    simulator.run(1 * MS)
    assert used(simulator) == cores

    simulator = Simulator(topology, name, settings)
    tasks = [simulator.domain([hog], hard=1 << cpu)[0] for cpu in range(cores)]
    simulator.run(25 * MS)
    assert used(simulator) == -(-cores // threads)
    control = SchedulerControl(simulator.scheduler)
    for task in tasks:
        control.set_anywhere(task.vcpu)
    simulator.run(TICK + 1 * MS)
    assert used(simulator) == cores


@UNRESERVED
def test_a_soft_affinity_is_kept_while_there_is_room(name: str, settings: Mapping[str, Value]) -> None:
    simulator = Simulator("2x2x1", name, settings, log=True)
    task = simulator.domain([sleeper(1 * MS, 1 * MS)], soft=0b1100)[0]
    simulator.domain([sleeper(3 * MS, 1 * MS)])
    simulator.run(200 * MS)
    assert simulator.log is not None
    assert {run.core for run in simulator.log.runs if run.vcpu is task.vcpu} <= {2, 3}
    for _ in range(2):
        simulator.domain([hog], hard=0b1100)
    before = task.work
    simulator.run(200 * MS)
    assert task.work - before > 80 * MS, "elsewhere rather than not at all"
    assert {run.core for run in simulator.log.runs if run.vcpu is task.vcpu} & {0, 1}


@UNRESERVED
def test_who_runs_elsewhere_goes_back_to_a_soft_affinity(name: str, settings: Mapping[str, Value]) -> None:
    simulator = Simulator("1x4x1", name, settings)
    task = simulator.domain([hog], hard=1)[0]
    simulator.run(5 * MS)
    control = SchedulerControl(simulator.scheduler)
    control.set_affinity(task.vcpu, hard=range(4), soft=[3])
    simulator.run(TICK)
    assert simulator.scheduler.running(3) is task.vcpu


@UNRESERVED
def test_somebody_who_can_leaves_to_somebody_who_cannot(name: str, settings: Mapping[str, Value]) -> None:
    """Two pinned to CPU 0 and one that is not, which came there first: both CPUs end up busy."""
    simulator = Simulator("1x2x1", name, settings)
    free = simulator.domain([hog], hard=1)[0]
    simulator.run(1 * MS)
    pinned = simulator.domain([hog], hard=1)[0]
    free.vcpu.hard_affinity = ANY_CPU
    simulator.policy.affinity_changed(free.vcpu, simulator.clock.now)
    simulator.run(50 * MS)
    assert free.work + pinned.work > 85 * MS


@EVERY_POLICY
def test_pins_hold_over_many_decisions(name: str, settings: Mapping[str, Value]) -> None:
    wanted = (1_000_000 if SOAK else 100_000) // len(POLICIES)
    count = 0
    for seed in range(1_000):
        simulator = Simulator("2x2x2", name, settings, seed=seed, bare=True)
        random = Random(seed)
        tasks = crowd(simulator, 12, random, pinned=0.8)
        watched = Decisions(simulator)
        control = SchedulerControl(simulator.scheduler)
        for _ in range(40):
            simulator.run(20 * MS)
            if name != "rtds":
                cpus = random.sample(range(8), random.randrange(1, 4))
                control.set_affinity(random.choice(tasks).vcpu, cpus)
        assert not watched.astray
        count += watched.count
        if count >= wanted:
            return
    raise AssertionError(count)


@pytest.mark.parametrize("topology", ["1x1x1", "1x2x2"])
def test_round_robin_without_stealing_stays_put(topology: str) -> None:
    simulator = Simulator(topology, "rrobin", {"steal": False, "slice_ms": 5})
    tasks = [simulator.domain([hog])[0] for _ in range(5)]
    simulator.run(200 * MS)
    assert simulator.scheduler.migrations == 0
    for task in tasks:
        assert task.work > 200 * MS // (5 if topology == "1x1x1" else 4) - 10 * MS - 300 * US
