"""Relaxed gangs (VMware ESX 3 and later): vCPUs take turns as each for itself, on different logical CPUs, but
one that leads the slowest of its gang by more than a threshold stops until that has caught up.

Progress is time spent running or asleep: what holds a gang up is a vCPU that waits. Who wakes is level with
the slowest, so that sleep is neither punished nor rewarded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from firmware.domain.vcpu import VCpu
from firmware.sched.balance import TICK, Balance
from firmware.sched.parameters import Value
from firmware.sched.policy import MICROSECOND, MILLISECOND, Pool

if TYPE_CHECKING:
    from machine.clock import Event

LOOK: Final = 1 * MILLISECOND
"""The shortest turn, and how often a logical CPU that only has leaders looks at them again."""


class Progress:
    """How long a vCPU has waited up to `since`, or up to now when it does not wait (`since` is None)."""

    __slots__ = ("since", "threshold", "waited")

    def __init__(self) -> None:
        self.waited = 0
        self.since: int | None = None
        self.threshold = 0

    def at(self, now: int) -> int:
        """All it has waited."""
        since = self.since
        return self.waited if since is None or since > now else self.waited + now - since


class Relaxed(Balance):
    """`stops`: how often a leader was stopped."""

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        self._progress: dict[VCpu, Progress] = {}
        self._stopped: dict[int, dict[VCpu, None]] = {core: {} for core in pool.cores}
        """By logical CPU: leaders whose turn it would be."""
        self._looking: dict[int, Event] = {}
        """Logical CPUs that idle, and when they look again."""
        self.stops = 0
        super().__init__(pool, settings)

    def insert(self, vcpu: VCpu, now: int) -> int:
        home = super().insert(vcpu, now)
        progress = self._progress[vcpu] = Progress()
        progress.waited = self._most(vcpu, now)
        progress.threshold = self._threshold(vcpu)
        return home

    def _threshold(self, vcpu: VCpu) -> int:
        return int(self.share_of(vcpu)["skew_us"]) * MICROSECOND

    def share_changed(self, vcpus: Sequence[VCpu], now: int) -> None:
        super().share_changed(vcpus, now)
        for vcpu in vcpus:
            if vcpu in self._progress:
                self._progress[vcpu].threshold = self._threshold(vcpu)

    def remove(self, vcpu: VCpu, now: int) -> None:
        super().remove(vcpu, now)
        del self._progress[vcpu]

    def gain(self, core: int, now: int) -> None:
        super().gain(core, now)
        self._stopped[core] = {}

    def lose(self, core: int, now: int) -> None:
        self._restart(core, now, everybody=True)
        super().lose(core, now)
        del self._stopped[core]

    def close(self) -> None:
        for event in self._looking.values():
            event.cancel()

    # -- progress

    def _most(self, vcpu: VCpu, now: int) -> int:
        """What the slowest of its gang has waited."""
        progress = self._progress
        return max([progress[other].at(now) for other in self.siblings(vcpu) if other in progress], default=0)

    def lead(self, vcpu: VCpu, now: int) -> int:
        """By how many ns of progress a vCPU leads the slowest of its gang."""
        return self._most(vcpu, now) - self._progress[vcpu].at(now)

    def _starts_to_wait(self, vcpu: VCpu, now: int) -> None:
        progress = self._progress[vcpu]
        if progress.since is None:
            progress.since = now

    def _waits_no_more(self, vcpu: VCpu, now: int) -> None:
        progress = self._progress[vcpu]
        progress.waited = progress.at(now)
        progress.since = None

    def may_run(self, vcpu: VCpu, now: int) -> bool:
        return len(self.siblings(vcpu)) == 1 or self.lead(vcpu, now) < self._progress[vcpu].threshold

    def may_migrate(self, vcpu: VCpu, thief: int) -> bool:
        return super().may_migrate(vcpu, thief) and self.may_run(vcpu, self.pool.now())

    def turn(self, vcpu: VCpu, now: int) -> int:
        if len(self.siblings(vcpu)) == 1:
            return TICK
        return min(TICK, max(LOOK, self._progress[vcpu].threshold - self.lead(vcpu, now)))

    # -- queues

    def push(self, vcpu: VCpu, key: int, *, front: bool = False) -> None:
        super().push(vcpu, key, front=front)
        self._starts_to_wait(vcpu, self.pool.now())

    def unqueue(self, vcpu: VCpu) -> bool:
        if vcpu in self._stopped.get(self.home[vcpu], ()):
            del self._stopped[self.home[vcpu]][vcpu]
            return True
        return super().unqueue(vcpu)

    def wake(self, vcpu: VCpu, now: int) -> None:
        progress = self._progress[vcpu]
        progress.waited = max(progress.waited, self._most(vcpu, now))
        super().wake(vcpu, now)

    def sleep(self, vcpu: VCpu, now: int) -> None:
        super().sleep(vcpu, now)
        self._waits_no_more(vcpu, now)

    # -- running

    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        if self._stopped[core]:
            self._restart(core, now)
        found = super().pick(core, now, current)
        if found is not None:
            self._waits_no_more(found[0], now)
        elif self._stopped[core] and core not in self._looking:
            self._looking[core] = self.pool.at(now + LOOK, self._look, core)
        return found

    def _look(self, core: int) -> None:
        del self._looking[core]
        if self._stopped.get(core) and self.pool.running(core) is None:
            self.pool.poke(core, self.pool.now())

    def next_of(self, core: int, now: int) -> VCpu | None:
        while True:
            chosen = super().next_of(core, now)
            if chosen is None or self.may_run(chosen, now):
                return chosen
            self.stops += 1
            self._stopped[core][chosen] = None

    def _restart(self, core: int, now: int, *, everybody: bool = False) -> None:
        """Queue again whom the slowest have caught up with."""
        stopped = self._stopped[core]
        for vcpu in list(stopped):
            if everybody or self.may_run(vcpu, now):
                del stopped[vcpu]
                super().push(vcpu, self.key(vcpu))
