"""Run queues shared by several logical CPUs: a core's, a socket's, a node's or the whole machine's.

A group counts the credit it has given out as one number that only grows; what a vCPU has is its own number
against that. So giving credit to all who wait is one addition, and nobody's place in the queue changes.
"""

from __future__ import annotations

from typing import Final

from firmware.domain.vcpu import VCpu
from firmware.sched.placement import Placement
from firmware.sched.runqueue import RunQueue

KINDS: Final = ("cpu", "core", "socket", "node", "all")
"""What a group is made of, as `credit2_runqueue` on Xen's command line. A socket is a node here."""


class Unit:
    """What credit2 keeps of a vCPU.

    `spent`: its credit is what its group has given, less this. `core`: where it runs or ran last, `placed`
    where it was put when it came, `meant` the idle logical CPU that has been poked to run it, or None.
    """

    __slots__ = ("core", "group", "meant", "placed", "runnable", "spent", "vcpu", "weight", "yields")

    def __init__(self, vcpu: VCpu, weight: int, group: Group, core: int) -> None:
        self.vcpu = vcpu
        self.weight = weight
        self.group = group
        self.core = self.placed = core
        self.meant: int | None = None
        self.spent = group.given
        self.runnable = self.yields = False


class Group:
    """Logical CPUs that share a queue, which is ordered by what its vCPUs have spent."""

    __slots__ = ("_seen", "balanced", "cores", "given", "heaviest", "load", "mask", "queue", "runnable",
                 "total", "units", "weights")

    def __init__(self) -> None:
        self.cores: list[int] = []
        self.mask = 0
        self.queue = RunQueue()
        self.given = 0
        """Credit given to each of its vCPUs since it began, in ns of the heaviest one."""
        self.heaviest = 1
        """The greatest weight among its vCPUs, whose credit is real time."""
        self.weights: dict[int, int] = {}
        """How many of its vCPUs have each weight."""
        self.units: dict[Unit, None] = {}
        self.total = self.runnable = 0
        """The weights of all its vCPUs together, and of those that run or wait."""
        self.load = 0
        """The latter, averaged."""
        self.balanced = 0
        """When its load is compared with others' next."""
        self._seen = 0

    def add_core(self, core: int) -> None:
        """One logical CPU more."""
        self.cores.append(core)
        self.cores.sort()
        self.mask |= 1 << core

    def remove_core(self, core: int) -> None:
        """One less."""
        self.cores.remove(core)
        self.mask &= ~(1 << core)

    def join(self, unit: Unit) -> None:
        """A vCPU is this group's from now on."""
        unit.group = self
        self.units[unit] = None
        self.weights[unit.weight] = self.weights.get(unit.weight, 0) + 1
        self.heaviest = max(self.weights)
        self.total += unit.weight
        if unit.runnable:
            self.runnable += unit.weight

    def part(self, unit: Unit) -> None:
        """It is not any more."""
        del self.units[unit]
        self.total -= unit.weight
        left = self.weights[unit.weight] - 1
        if left:
            self.weights[unit.weight] = left
        else:
            del self.weights[unit.weight]
            self.heaviest = max(self.weights, default=1)
        if unit.runnable:
            self.runnable -= unit.weight

    def average(self, now: int, window: int) -> int:
        """The load up to now: the weights of those that run or wait, with a memory of `window` ns."""
        passed = now - self._seen
        if passed > 0:
            self._seen = now
            if passed >= window:
                self.load = self.runnable
            else:
                self.load += (self.runnable - self.load) * passed // window
        return self.load


def group_key(placement: Placement, kind: str, core: int) -> int:
    """The logical CPUs that can be in one group with this one."""
    match kind:
        case "cpu":
            return 1 << core
        case "core":
            return placement.sibling_mask[core]
        case "all":
            return placement.all
        case _:
            return placement.socket_mask[core]
