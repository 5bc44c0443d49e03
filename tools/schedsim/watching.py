"""Proofs over a simulation: of every decision and every theft while it runs, and of its accounts."""

from __future__ import annotations

from typing import Any

from firmware.domain.vcpu import VCpu
from firmware.sched.placement import Placement
from tools.schedsim.simulator import Simulator


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
    """Looks at every decision of a simulator's policy: how many (`count`), which broke an affinity (`astray`:
    logical CPU and vCPU); and at every theft: how many (`thefts`), which passed nearer work by (`far`: thief
    and vCPU). Only the policy that pool 0 has now is looked at.
    """

    def __init__(self, simulator: Simulator) -> None:
        self.count = self.thefts = 0
        self.astray: list[tuple[int, VCpu]] = []
        self.far: list[tuple[int, VCpu]] = []
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
        """What the placement does, with a look at whose queues it asked: all that are nearer than the one
        that had work must be among them.
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
            if any(waiting >> victim & 1 and self._placement.distance(thief, victim) < distance
                   for victim in range(self._placement.cpus) if victim not in asked):
                self.far.append((thief, found))
        return found
