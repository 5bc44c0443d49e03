"""What the tests of scheduling policies have in common: loads, and proofs over every decision."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from firmware.domain.vcpu import ANY_CPU, VCpu
from firmware.sched.parameters import Value
from firmware.sched.placement import Placement
from tools.schedsim import Simulator, Task
from tools.schedsim.workloads import hog, random_mix, sleeper, yielder

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000

POLICIES: tuple[tuple[str, Mapping[str, Value]], ...] = (
    ("rrobin", {}), ("credit", {}),
    ("credit2", {}), ("credit2", {"runqueue": "core"}), ("credit2", {"runqueue": "cpu"}),
    ("rtds", {"overhead_us": 0}),
)
"""Those that steal, with their settings."""
NAMES = [" ".join((name, *map(str, settings.values()))) for name, settings in POLICIES]


def crowd(simulator: Simulator, count: int, random: Random, pinned: float = 0.3) -> list[Task]:
    """So many domains of one vCPU each, with loads and affinities at random."""
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


def books_balance(simulator: Simulator) -> bool:
    """Every vCPU's times in the run states sum to the time since it came: up to where we are or, on a CPU
    that is ahead of the others, to when its state began.
    """
    for task in simulator.tasks.values():
        _, since, times = simulator.scheduler.runstate_info(task.vcpu)
        if sum(times) != max(simulator.clock.now, since):
            return False
    return True


class Decisions:
    """Looks at every decision of a simulator's policy: `count`, those that break an affinity (`astray`), and
    at every theft: how many (`thefts`), which passed nearer work by (`far`).
    """

    def __init__(self, simulator: Simulator) -> None:
        self.count = self.thefts = 0
        self.astray: list[tuple[int, VCpu]] = []
        self.far: list[tuple[int, VCpu, VCpu]] = []
        self._pick = simulator.policy.pick
        self._placement: Placement = simulator.scheduler.placement
        self._steal = self._placement.steal
        self._simulator = simulator
        policy: Any = simulator.policy
        policy.pick = self.pick
        placement: Any = self._placement
        placement.steal = self.steal

    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        chosen = self._pick(core, now, current)
        self.count += 1
        if chosen is not None and not chosen[0].hard_affinity >> core & 1:
            self.astray.append((core, chosen[0]))
        return chosen

    def steal(self, thief: int, waiting: int, take: Any, suits: Any = None) -> VCpu | None:
        """Try each victim for itself, nearest first, then what the placement does: they must agree on how
        far the work is from the thief.
        """
        asked: list[int] = []

        def noting(victim: int, thief: int) -> VCpu | None:
            asked.append(victim)
            found: VCpu | None = take(victim, thief)
            return found

        found = self._steal(thief, waiting, noting, suits)
        if found is not None:
            self.thefts += 1
            distance = self._placement.distance(thief, asked[-1])
            for victim in range(self._placement.cpus):
                near = waiting >> victim & 1 and self._placement.distance(thief, victim) < distance
                if near and victim not in asked:
                    self.far.append((thief, found, found))
        return found
