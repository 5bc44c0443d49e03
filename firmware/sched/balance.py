"""Balance: vCPUs take turns as each for itself, but siblings are kept on different logical CPUs (Sukwong and
Kim, EuroSys 2011): the honest baseline for gangs. Round robin on each logical CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from firmware.domain.vcpu import VCpu
from firmware.sched.ganging import SETTINGS, SHARES, Gang, gang_of
from firmware.sched.parameters import Value
from firmware.sched.percpu import PerCpu
from firmware.sched.policy import MILLISECOND, Pool

TICK: Final = 10 * MILLISECOND
"""So often at least a logical CPU looks whether who runs there is better off elsewhere."""


class Balance(PerCpu):
    """As long as a gang is no larger than the pool and affinity allows it, no two of its vCPUs that can run
    have the same home.
    """

    name = "gang"
    SETTINGS = SETTINGS
    SHARES = SHARES

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        self._gangs: dict[Gang, list[VCpu]] = {}
        self._gang: dict[VCpu, Gang] = {}
        self._until = dict.fromkeys(pool.cores, 0)
        """By logical CPU: when the turn there is over."""
        self._yielded: dict[VCpu, None] = {}
        super().__init__(pool, settings)

    def tuned(self, now: int) -> None:
        self._slot = self.number("slot_ms") * MILLISECOND

    # -- gangs

    def siblings(self, vcpu: VCpu) -> list[VCpu]:
        """The gang it is in, itself among them."""
        return self._gangs[self._gang[vcpu]]

    def _join(self, vcpu: VCpu) -> None:
        gang = self._gang[vcpu] = gang_of(vcpu, self.share_of(vcpu))
        self._gangs.setdefault(gang, []).append(vcpu)

    def _quit(self, vcpu: VCpu) -> None:
        gang = self._gang.pop(vcpu)
        self._gangs[gang].remove(vcpu)
        if not self._gangs[gang]:
            del self._gangs[gang]

    def room(self, vcpu: VCpu, cpus: int) -> int:
        home = self.home
        for other in self.siblings(vcpu):
            if other is not vcpu and not other.pause_flags and other in home:
                cpus &= ~(1 << home[other])
        return cpus

    def _best(self, vcpu: VCpu) -> int:
        """The best home, apart from all siblings if it can be, else from those that can run."""
        mask = self.pool.mask
        for other in self.siblings(vcpu):
            if other is not vcpu and other in self.home:
                mask &= ~(1 << self.home[other])
        for choice in (mask, self.room(vcpu, self.pool.mask), self.pool.mask):
            if choice & vcpu.hard_affinity:
                break
        return self.pool.placement.initial(vcpu, self.placed, choice)

    def insert(self, vcpu: VCpu, now: int) -> int:
        self._join(vcpu)
        super().insert(vcpu, now)
        self.move(vcpu, self._best(vcpu))
        return self.home[vcpu]

    def remove(self, vcpu: VCpu, now: int) -> None:
        super().remove(vcpu, now)
        self._quit(vcpu)
        self._yielded.pop(vcpu, None)

    def rehome(self, vcpu: VCpu) -> int:
        home = self._best(vcpu)
        self.move(vcpu, home)
        return home

    def share_changed(self, vcpus: Sequence[VCpu], now: int) -> None:
        for vcpu in vcpus:
            if vcpu in self._gang:
                self._quit(vcpu)
                self._join(vcpu)

    def gain(self, core: int, now: int) -> None:
        super().gain(core, now)
        self._until[core] = 0

    def lose(self, core: int, now: int) -> None:
        super().lose(core, now)
        del self._until[core]

    # -- queues

    def move(self, vcpu: VCpu, home: int) -> None:
        """A sibling that sleeps there changes places with it."""
        old = self.home[vcpu]
        super().move(vcpu, home)
        if old == home or old not in self.placed:
            return
        for other in self.siblings(vcpu):
            if other is not vcpu and self.home.get(other) == home and other.pause_flags:
                if other.hard_affinity >> old & 1:
                    super().move(other, old)
                return

    def may_migrate(self, vcpu: VCpu, thief: int) -> bool:
        return bool(self.room(vcpu, 1 << thief))

    def _stolen(self, victim: int, thief: int) -> VCpu | None:
        found = super()._stolen(victim, thief)
        if found is None and (len(self.queues[victim]) > 1 or self.pool.running(victim) is not None):
            for vcpu in self.queues[victim].members():
                if vcpu.hard_affinity >> thief & 1 and self.may_migrate(vcpu, thief):
                    self.unqueue(vcpu)
                    self.move(vcpu, thief)
                    return vcpu
        return found

    def contend(self, vcpu: VCpu, core: int, now: int) -> None:
        if self.pool.running(core) is None:
            self.pool.poke(core, now)

    # -- running

    def wake(self, vcpu: VCpu, now: int) -> None:
        home = self.home[vcpu]
        if not self.room(vcpu, 1 << home) and self.room(vcpu, self.pool.mask) & vcpu.hard_affinity:
            self.rehome(vcpu)
        self.enter(vcpu, now)

    def give_way(self, vcpu: VCpu, now: int) -> bool:
        if not self.waiting >> vcpu.core.index & 1:
            return False
        self._yielded[vcpu] = None
        return True

    def turn(self, vcpu: VCpu, now: int) -> int:
        """How long who has been chosen may run before it is looked at again."""
        return TICK

    def may_run(self, vcpu: VCpu, now: int) -> bool:
        """Whether a vCPU whose turn it is may run."""
        return True

    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        chosen = None if current is None else self._stay(core, now, current)
        if chosen is None:
            chosen = self.next_of(core, now)
            if chosen is None:
                return None
            self._until[core] = now + self._slot
        elif now >= self._until[core]:
            self._until[core] = now + self._slot
        return chosen, min(self._until[core] - now, self.turn(chosen, now))

    def next_of(self, core: int, now: int) -> VCpu | None:
        """The next of a logical CPU's own queue, or of another's."""
        return self.take(core) or self.steal(core)

    def _stay(self, core: int, now: int, current: VCpu) -> VCpu | None:
        """Who ran here, if it goes on; else it has been queued."""
        yielded = current in self._yielded
        if yielded:
            del self._yielded[current]
        if not current.hard_affinity >> core & 1:
            self.enter(current, now)
            return None
        if self.better_place(core, current, now):
            return None
        alone = not self.waiting >> core & 1
        if (alone or (now < self._until[core] and not yielded)) and self.may_run(current, now):
            return current
        self.push(current, self.key(current))
        return None
