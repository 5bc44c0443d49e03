"""A crowd: domains of one vCPU each with loads, affinities and shares at random."""

from __future__ import annotations

from random import Random
from typing import Final

from firmware.domain.vcpu import ANY_CPU
from firmware.sched.parameters import Value
from tools.schedsim.simulator import Simulator
from tools.schedsim.task import Task
from tools.schedsim.workloads import hog, random_mix, sleeper, yielder

US: Final = 1_000
MS: Final = 1_000_000


def crowd(simulator: Simulator, count: int, random: Random, pinned: float = 0.3) -> list[Task]:
    """So many domains. The part `pinned` of them may not run everywhere, half of those on one CPU only."""
    cpus = simulator.topology.cpus
    tasks = []
    for _ in range(count):
        work = random.choice((hog, random_mix(5 * MS, 20 * MS), random_mix(30 * MS, 5 * MS),
                              sleeper(200 * US, 3 * MS, 0.5), yielder(100 * US)))
        hard = soft = ANY_CPU
        kind = random.random()
        if kind < pinned / 2:
            hard = 1 << random.randrange(cpus)
        elif kind < pinned:
            hard = random.getrandbits(cpus) | 1 << random.randrange(cpus)
        elif kind < pinned + 0.1:
            soft = random.getrandbits(cpus) | 1
        share: dict[str, Value] | None = None
        if simulator.policy.name.startswith("credit"):
            share = {"weight": random.choice((64, 256, 512))}
        elif simulator.policy.name == "rtds":
            share = {"period_us": 10_000, "budget_us": 2_000}
            if random.random() < 0.3:
                share["extratime"] = False
        tasks += simulator.domain([work], share, hard=hard, soft=soft)
    return tasks
