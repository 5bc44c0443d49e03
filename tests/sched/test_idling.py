"""BVT, Atropos and balanced siblings share out the machine: no CPU idles beside work, a sibling's work comes
first, hogs take whole cores, pins hold.
"""

from __future__ import annotations

from random import Random

import pytest

from firmware.domain.vcpu import ANY_CPU
from firmware.sched.control import SchedulerControl
from firmware.sched.parameters import Value
from tests.sched.stealers import MS, US
from tools.schedsim import Simulator, neglect
from tools.schedsim.crowd import crowd
from tools.schedsim.watching import Decisions, books_balance
from tools.schedsim.workloads import hog, sleeper

TICK = 10 * MS
KINDS: dict[str, tuple[str, dict[str, Value]]] = {
    "bvt": ("bvt", {}), "atropos": ("atropos", {}), "balance": ("gang", {"form": "balance"}),
}


@pytest.mark.parametrize("topology", ["1x1x1", "1x4x1", "1x1x2", "1x2x2", "2x2x2", "2x4x2", "4x8x2"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_cpu_idles_beside_work(kind: str, topology: str) -> None:
    for seed in range(3):
        random = Random(f"{topology} {seed}")
        simulator = Simulator(topology, *KINDS[kind], seed=seed, log=True)
        crowd(simulator, random.randrange(1, 2 * simulator.topology.cpus + 3), random)
        watched = Decisions(simulator)
        simulator.run(60 * MS if simulator.topology.cpus > 16 else 150 * MS)
        assert simulator.log is not None
        assert neglect(simulator.log) <= TICK // 10
        assert not watched.far
        assert not watched.astray
        assert books_balance(simulator)


@pytest.mark.parametrize("kind", KINDS)
def test_a_siblings_work_comes_first(kind: str) -> None:
    """One waits on every other queue; the sibling's is taken."""
    for thief in range(0, 8, 2):
        simulator = Simulator("2x2x2", *KINDS[kind], bare=True, smt_factor=1.0)
        waiting = {}
        for cpu in range(8):
            work = [sleeper(4_500 * US, 100 * MS)] if cpu == thief else [hog, hog]
            for task in simulator.domain(work, {"gang": False} if kind == "balance" else None, hard=1 << cpu):
                waiting[task.vcpu] = cpu
        simulator.run(4 * MS)
        waiting = {vcpu: cpu for vcpu, cpu in waiting.items() if not vcpu.scheduled}
        for vcpu in waiting:
            vcpu.hard_affinity = ANY_CPU
            simulator.policy.affinity_changed(vcpu, simulator.clock.now)
        assert len(waiting) == 7
        simulator.run(900 * US)
        current = simulator.scheduler.running(thief)
        assert current is not None
        assert waiting[current] == thief + 1


@pytest.mark.parametrize("topology", ["1x2x2", "1x4x2", "2x4x2", "1x2x4"])
@pytest.mark.parametrize("kind", KINDS)
def test_hogs_take_whole_cores(kind: str, topology: str) -> None:
    """At once when they come one by one; within a tick when they were crowded together before."""
    threads = Simulator(topology).topology.threads
    cores = Simulator(topology).topology.cpus // threads
    for hard in (ANY_CPU, (1 << cores) - 1):
        simulator = Simulator(topology, *KINDS[kind])
        tasks = [simulator.domain([hog], hard=hard)[0] for _ in range(cores)]
        simulator.run(25 * MS)
        for task in tasks:
            SchedulerControl(simulator.scheduler).set_anywhere(task.vcpu)
        simulator.run(TICK + MS)
        running = [cpu for cpu in range(cores * threads) if simulator.scheduler.running(cpu) is not None]
        assert len({cpu // threads for cpu in running}) == cores


@pytest.mark.parametrize("kind", [*KINDS, "relaxed", "strict"])
def test_pins_hold(kind: str) -> None:
    """6,000 decisions with affinities that change every 5 ms."""
    count = seed = 0
    while count < 6_000:
        seed += 1
        name, settings = KINDS.get(kind, ("gang", {"form": kind}))
        simulator = Simulator("2x2x2", name, settings, seed=seed, bare=True)
        random = Random(seed)
        tasks = crowd(simulator, 12, random, pinned=0.8)
        watched = Decisions(simulator)
        for _ in range(100):
            simulator.run(5 * MS)
            cpus = random.sample(range(8), random.randrange(1, 4))
            SchedulerControl(simulator.scheduler).set_affinity(random.choice(tasks).vcpu, cpus)
        assert not watched.astray
        count += watched.count
