"""What policies with a run queue for each logical CPU have in common: homes, queues, stealing.

A vCPU has a home, the logical CPU on whose queue it waits. Whoever finds an idle logical CPU makes it its
home; whoever is stolen has the thief as its home from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from firmware.domain.vcpu import ANY_CPU, VCpu
from firmware.sched.parameters import Value
from firmware.sched.policy import Policy, Pool
from firmware.sched.runqueue import RunQueue

LAST: Final = 1 << 127
"""A key after every other."""


class PerCpu(Policy):
    """A run queue for each logical CPU, in the order of keys that the policy gives."""

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        super().__init__(pool, settings)
        self.queues: dict[int, RunQueue] = {core: RunQueue() for core in pool.cores}
        self.waiting = 0
        """Logical CPUs on whose queues somebody waits: a bit mask."""
        self.placed = dict.fromkeys(pool.cores, 0)
        """By logical CPU: whose home it is, a number."""
        self.home: dict[VCpu, int] = {}
        self._soft: dict[VCpu, None] = {}
        """Who has a soft affinity."""
        self.tuned(0)

    # -- for the policy to say

    def key(self, vcpu: VCpu) -> int:
        """Where in the queue a vCPU belongs: the lowest key first."""
        return 0

    def contend(self, vcpu: VCpu, core: int, now: int) -> None:
        """The vCPU has come into the queue of a logical CPU that is not idle: poke it where it is to run."""

    def room(self, vcpu: VCpu, cpus: int) -> int:
        """Those of a set of logical CPUs that may become the home of a vCPU, its affinity aside."""
        return cpus

    def may_migrate(self, vcpu: VCpu, thief: int) -> bool:
        """Whether a vCPU that waits may be stolen (its affinity allows it)."""
        return True

    # -- vCPUs and logical CPUs

    def insert(self, vcpu: VCpu, now: int) -> int:
        home = self.pool.placement.initial(vcpu, self.placed, self.pool.mask)
        self.placed[home] += 1
        self.home[vcpu] = home
        self._note_soft(vcpu)
        return home

    def remove(self, vcpu: VCpu, now: int) -> None:
        home = self.home.pop(vcpu)
        self._soft.pop(vcpu, None)
        if home in self.placed:
            self.placed[home] -= 1

    def _note_soft(self, vcpu: VCpu) -> None:
        if vcpu.soft_affinity == ANY_CPU:
            self._soft.pop(vcpu, None)
        else:
            self._soft[vcpu] = None

    def gain(self, core: int, now: int) -> None:
        self.queues[core] = RunQueue()
        self.placed[core] = 0

    def lose(self, core: int, now: int) -> None:
        stranded = self.queues[core].members()
        for vcpu in stranded:
            self.unqueue(vcpu)
        del self.queues[core], self.placed[core]
        for vcpu, home in self.home.items():
            if home == core:
                self.rehome(vcpu)
        for vcpu in stranded:
            self.enter(vcpu, now)

    def move(self, vcpu: VCpu, home: int) -> None:
        """Give a vCPU that is in no queue another home."""
        old = self.home[vcpu]
        if old in self.placed:
            self.placed[old] -= 1
        self.placed[home] += 1
        self.home[vcpu] = home

    def rehome(self, vcpu: VCpu) -> int:
        """Give a vCPU whose home is gone or forbidden the best of the others."""
        home = self.pool.placement.initial(vcpu, self.placed, self.pool.mask)
        self.move(vcpu, home)
        return home

    # -- queues

    def push(self, vcpu: VCpu, key: int, *, front: bool = False) -> None:
        """Into the queue of its home."""
        home = self.home[vcpu]
        self.queues[home].push(vcpu, key, front=front)
        self.waiting |= 1 << home

    def unqueue(self, vcpu: VCpu) -> bool:
        """Out of the queue of its home; False when it was in none."""
        home = self.home[vcpu]
        queue = self.queues.get(home)
        if queue is None or not queue.remove(vcpu):
            return False
        if not queue:
            self.waiting &= ~(1 << home)
        return True

    def take(self, core: int) -> VCpu | None:
        """The first of a logical CPU's own queue, off it."""
        if not self.waiting >> core & 1:
            return None
        queue = self.queues[core]
        vcpu = queue.pop(core)
        if not queue:
            self.waiting &= ~(1 << core)
        return vcpu

    def enter(self, vcpu: VCpu, now: int) -> None:
        """Queue a vCPU where it is best off: on an idle logical CPU, else at home."""
        pool = self.pool
        home = self.home[vcpu]
        idle = self.room(vcpu, pool.idle)
        if idle:
            target = pool.placement.idle_for(vcpu, home, idle)
            if target is not None:
                if target != home:
                    self.move(vcpu, target)
                self.push(vcpu, self.key(vcpu))
                pool.poke(target, now)
                return
        if not vcpu.hard_affinity >> home & 1:
            home = self.rehome(vcpu)
        self.push(vcpu, self.key(vcpu))
        self.contend(vcpu, home, now)

    def sleep(self, vcpu: VCpu, now: int) -> None:
        self.unqueue(vcpu)

    def affinity_changed(self, vcpu: VCpu, now: int) -> None:
        self._note_soft(vcpu)
        if self.unqueue(vcpu):
            self.enter(vcpu, now)

    # -- stealing and moving

    def steal(self, thief: int, limit: int = LAST) -> VCpu | None:
        """Somebody off another logical CPU's queue, with a key below `limit`."""
        others = self.waiting & ~(1 << thief)
        if not others:
            return None
        self._limit = limit
        suits = self._suits if self._soft else None
        return self.pool.placement.steal(thief, others, self._stolen, suits)

    def _suits(self, victim: int, thief: int) -> bool:
        return self.queues[victim].first(thief, soft=True) is not None

    def _stolen(self, victim: int, thief: int) -> VCpu | None:
        queue = self.queues[victim]
        if len(queue) == 1 and self.pool.running(victim) is None:
            return None  # it has been poked, and is about to run the only one there
        found = queue.first(thief, soft=True) if self._soft else None
        if found is None or found[0] >= self._limit:
            found = queue.first(thief)
        if found is None or found[0] >= self._limit or not self.may_migrate(found[2], thief):
            return None
        vcpu = found[2]
        queue.remove(vcpu)
        if not queue:
            self.waiting &= ~(1 << victim)
        self.move(vcpu, thief)
        return vcpu

    def better_place(self, core: int, current: VCpu, now: int) -> bool:
        """Whether whoever runs on a logical CPU has gone to a better one that was idle: to a whole core from
        beside a busy sibling, to where its soft affinity lies, or out of the way of others who cannot leave.
        """
        pool = self.pool
        idle = self.room(current, pool.idle & ~(1 << core))
        if not idle:
            return False
        target = pool.placement.better(current, core, idle)
        if target is None and self.waiting >> core & 1:
            target = pool.placement.idle_for(current, core, idle)
        if target is None:
            return False
        self.move(current, target)
        self.push(current, self.key(current))
        pool.poke(target, now)
        return True
