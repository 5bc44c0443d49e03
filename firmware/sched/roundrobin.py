"""Round robin as in 2004: a vCPU is placed on a logical CPU when it is made and stays there; each runs for a
10 ms slice.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from firmware.domain.vcpu import VCpu
from firmware.sched.policy import policy

SLICE_NS: Final = 10_000_000


@policy("rrobin")
class RoundRobin:
    """One queue a logical CPU; the vCPU at its head runs until its slice is over, it sleeps or it yields."""

    name = "rrobin"

    def __init__(self, cores: int) -> None:
        self._queues: list[deque[VCpu]] = [deque() for _ in range(cores)]
        self._placed = [0] * cores
        self._until: list[int] = [0] * cores
        self._head: list[VCpu | None] = [None] * cores

    def add(self, vcpu: VCpu) -> int:
        """The logical CPU with the fewest vCPUs, the lowest number first."""
        home = min(range(len(self._placed)), key=self._placed.__getitem__)
        self._placed[home] += 1
        return home

    def remove(self, vcpu: VCpu) -> None:
        self.sleep(vcpu, 0)
        self._placed[vcpu.home] -= 1
        if self._head[vcpu.home] is vcpu:
            self._head[vcpu.home] = None

    def wake(self, vcpu: VCpu, now: int) -> int:
        queue = self._queues[vcpu.home]
        if vcpu not in queue:
            queue.append(vcpu)
        return vcpu.home

    def sleep(self, vcpu: VCpu, now: int) -> None:
        queue = self._queues[vcpu.home]
        if vcpu in queue:
            queue.remove(vcpu)

    def give_way(self, vcpu: VCpu, now: int) -> bool:
        queue = self._queues[vcpu.home]
        if len(queue) < 2:
            return False
        queue.rotate(-1)
        return True

    def pick(self, core: int, now: int) -> tuple[VCpu, int] | None:
        queue = self._queues[core]
        if not queue:
            self._head[core] = None
            return None
        if queue[0] is self._head[core]:
            if now < self._until[core]:
                return queue[0], self._until[core] - now
            queue.rotate(-1)
        self._head[core] = queue[0]
        self._until[core] = now + SLICE_NS
        return queue[0], SLICE_NS
