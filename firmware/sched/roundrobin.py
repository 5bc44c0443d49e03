"""Round robin as in 2004: a vCPU is placed on a logical CPU and each runs for a fixed slice in turn.
What 2004 had not: a logical CPU that would idle takes over a vCPU that waits elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from firmware.domain.vcpu import VCpu
from firmware.sched.parameters import Parameter, Value
from firmware.sched.policy import MILLISECOND, Policy, Pool, policy


@policy
class RoundRobin(Policy):
    """One queue a logical CPU, in the order in which the vCPUs came."""

    name = "rrobin"
    SETTINGS = (
        Parameter("slice_ms", 10, "how long each runs in turn", "ms", 1, 1000),
        Parameter("steal", True, "a CPU that would idle takes over vCPUs that wait on others"),
    )

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        super().__init__(pool, settings)
        self._queues: dict[int, deque[VCpu]] = {core: deque() for core in pool.cores}
        self._waiting = 0
        """Logical CPUs with somebody in the queue: a bit mask."""
        self._placed = dict.fromkeys(pool.cores, 0)
        self._home: dict[VCpu, int] = {}
        self._turn: dict[int, tuple[VCpu, int]] = {}
        """By logical CPU: whose turn it is, and until when."""
        self.tuned(0)

    def tuned(self, now: int) -> None:
        self._slice = int(self.settings["slice_ms"]) * MILLISECOND
        self._steals = bool(self.settings["steal"])

    def insert(self, vcpu: VCpu, now: int) -> int:
        """On the logical CPU with the fewest vCPUs, the lowest number first."""
        home = min((core for core in self.pool.cores if vcpu.hard_affinity >> core & 1),
                   key=self._placed.__getitem__)
        self._placed[home] += 1
        self._home[vcpu] = home
        return home

    def remove(self, vcpu: VCpu, now: int) -> None:
        home = self._home.pop(vcpu)
        if home in self._placed:
            self._placed[home] -= 1

    def gain(self, core: int, now: int) -> None:
        self._queues[core] = deque()
        self._placed[core] = 0

    def lose(self, core: int, now: int) -> None:
        self._waiting &= ~(1 << core)
        del self._placed[core]
        stranded = self._queues.pop(core)
        for vcpu in [vcpu for vcpu, home in self._home.items() if home == core]:
            self._rehome(vcpu)
        for vcpu in stranded:
            self._enqueue(vcpu, now)

    def _rehome(self, vcpu: VCpu) -> None:
        home = self._home.pop(vcpu)
        if home in self._placed:
            self._placed[home] -= 1
        self.insert(vcpu, 0)

    def _enqueue(self, vcpu: VCpu, now: int) -> None:
        home = self._home[vcpu]
        self._queues[home].append(vcpu)
        self._waiting |= 1 << home
        idle = self.pool.idle
        if self._steals and idle and not idle >> home & 1:
            thief = self.pool.placement.idle_for(vcpu, home, idle)
            if thief is not None:
                self.pool.poke(thief, now)
                return
        if idle >> home & 1:
            self.pool.poke(home, now)

    def wake(self, vcpu: VCpu, now: int) -> None:
        if not vcpu.hard_affinity >> self._home[vcpu] & 1:
            self._rehome(vcpu)
        self._enqueue(vcpu, now)

    def sleep(self, vcpu: VCpu, now: int) -> None:
        home = self._home[vcpu]
        queue = self._queues[home]
        if vcpu in queue:
            queue.remove(vcpu)
            if not queue:
                self._waiting &= ~(1 << home)

    def give_way(self, vcpu: VCpu, now: int) -> bool:
        home = vcpu.core.index
        self._turn.pop(home, None)
        return bool(self._queues.get(home))

    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        if current is not None:
            vcpu, until = self._turn.get(core, (None, 0))
            if not current.hard_affinity >> core & 1:
                self._rehome(current)
                self._enqueue(current, now)
            elif vcpu is current and now < until:
                return current, until - now
            else:
                self._home[current] = core
                self._queues[core].append(current)
        chosen = self._take(core)
        if chosen is None and self._steals:
            chosen = self.pool.placement.steal(core, self._waiting, self._stolen)
        if chosen is None:
            return None
        self._turn[core] = chosen, now + self._slice
        return chosen, self._slice

    def _take(self, core: int) -> VCpu | None:
        queue = self._queues[core]
        if not queue:
            return None
        vcpu = queue.popleft()
        if not queue:
            self._waiting &= ~(1 << core)
        else:
            self._waiting |= 1 << core
        return vcpu

    def _stolen(self, victim: int, thief: int) -> VCpu | None:
        queue = self._queues[victim]
        for vcpu in queue:
            if vcpu.hard_affinity >> thief & 1:
                queue.remove(vcpu)
                if not queue:
                    self._waiting &= ~(1 << victim)
                self._placed[victim] -= 1
                self._placed[thief] += 1
                self._home[vcpu] = thief
                return vcpu
        return None

    def affinity_changed(self, vcpu: VCpu, now: int) -> None:
        home = self._home[vcpu]
        if not vcpu.hard_affinity >> home & 1:
            queued = vcpu in self._queues[home]
            if queued:
                self.sleep(vcpu, now)
            self._rehome(vcpu)
            if queued:
                self._enqueue(vcpu, now)


