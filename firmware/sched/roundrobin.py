"""Round robin as in 2004: a vCPU is placed on a logical CPU and each runs for a fixed slice in turn.
What 2004 had not: a logical CPU that would idle takes over a vCPU that waits elsewhere, and whoever runs
beside a busy sibling goes to an idle core at the end of its slice.
"""

from __future__ import annotations

from collections.abc import Mapping

from firmware.domain.vcpu import VCpu
from firmware.sched.parameters import Parameter, Value
from firmware.sched.percpu import PerCpu
from firmware.sched.policy import MILLISECOND, Pool, policy


@policy
class RoundRobin(PerCpu):
    """One queue a logical CPU, in the order in which the vCPUs came."""

    name = "rrobin"
    SETTINGS = (
        Parameter("slice_ms", 10, "how long each runs in turn", "ms", 1, 1000),
        Parameter("steal", True, "idle CPUs take over vCPUs that wait on others"),
    )

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        self._turn: dict[int, tuple[VCpu, int]] = {}
        """By logical CPU: whose turn it is, and until when."""
        super().__init__(pool, settings)

    def tuned(self, now: int) -> None:
        self._slice = int(self.settings["slice_ms"]) * MILLISECOND
        self._steals = bool(self.settings["steal"])

    def lose(self, core: int, now: int) -> None:
        self._turn.pop(core, None)
        super().lose(core, now)

    def enter(self, vcpu: VCpu, now: int) -> None:
        if self._steals:
            super().enter(vcpu, now)
            return
        if not vcpu.hard_affinity >> self.home[vcpu] & 1:
            self.rehome(vcpu)
        self.push(vcpu, 0)
        home = self.home[vcpu]
        if self.pool.idle >> home & 1:
            self.pool.poke(home, now)

    def wake(self, vcpu: VCpu, now: int) -> None:
        self.enter(vcpu, now)

    def give_way(self, vcpu: VCpu, now: int) -> bool:
        core = vcpu.core.index
        if not self.waiting >> core & 1:
            return False
        self._turn.pop(core, None)
        return True

    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        if current is not None:
            vcpu, until = self._turn.get(core, (None, 0))
            if not current.hard_affinity >> core & 1:
                self.enter(current, now)
            elif vcpu is current and now < until:
                return current, until - now
            elif not self._steals or not self.better_place(core, current, now):
                self.push(current, 0)
        chosen = self.take(core)
        if chosen is None and self._steals:
            chosen = self.steal(core)
        if chosen is None:
            return None
        self._turn[core] = chosen, now + self._slice
        return chosen, self._slice
