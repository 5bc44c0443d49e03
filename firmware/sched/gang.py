"""Gang scheduling: the vCPUs of a domain run at the same time. `form` says how much that means.

strict   all of a gang run, or none (Ousterhout's matrix)
relaxed  who leads the slowest of its gang too far stops until that has caught up
balance  siblings are kept on different logical CPUs, and that is all
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from firmware.domain.vcpu import VCpu
from firmware.sched.balance import Balance
from firmware.sched.ganging import BALANCE, RELAXED, SETTINGS, SHARES, STRICT
from firmware.sched.parameters import Value
from firmware.sched.policy import Policy, Pool, policy
from firmware.sched.relaxed import Relaxed
from firmware.sched.strict import Strict

FORMS: Final[dict[str, type[Policy]]] = {STRICT: Strict, RELAXED: Relaxed, BALANCE: Balance}


@policy
class GangScheduling(Policy):
    """`form`: the policy that does the work. Another form can take over while the machine runs."""

    name = "gang"
    SETTINGS = SETTINGS
    SHARES = SHARES

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        super().__init__(pool, settings)
        self._made: Policy | None = None
        self.form = self._make(self.settings)

    def _make(self, settings: Mapping[str, Value]) -> Policy:
        made = FORMS[str(settings["form"])](self.pool, settings)
        made.shares = self.shares
        return made

    def admit_settings(self, values: Mapping[str, Value]) -> None:
        """Another form must have room for everybody."""
        self._made = None
        if values["form"] != self.settings["form"]:
            made = self._make(values)
            for vcpu in self.pool.vcpus:
                made.insert(vcpu, self.pool.now())
            self._made = made

    def tuned(self, now: int) -> None:
        made, self._made = self._made, None
        if made is None:
            self.form.settings = self.settings
            self.form.tuned(now)
            return
        old, self.form = self.form, made
        old.close()
        for vcpu in self.pool.vcpus:
            if vcpu.runnable and not vcpu.scheduled:
                made.wake(vcpu, now)
        made.tuned(now)  # it may not have heard yet of those that run
        for core in self.pool.cores:
            if self.pool.running(core) is not None:
                self.pool.poke(core, now)

    def admit_share(self, vcpus: Sequence[VCpu], values: Mapping[str, Value]) -> None:
        self.form.admit_share(vcpus, values)

    def share_changed(self, vcpus: Sequence[VCpu], now: int) -> None:
        self.form.share_changed(vcpus, now)

    def insert(self, vcpu: VCpu, now: int) -> int:
        return self.form.insert(vcpu, now)

    def remove(self, vcpu: VCpu, now: int) -> None:
        self.form.remove(vcpu, now)

    def gain(self, core: int, now: int) -> None:
        self.form.gain(core, now)

    def lose(self, core: int, now: int) -> None:
        self.form.lose(core, now)

    def close(self) -> None:
        self.form.close()

    def wake(self, vcpu: VCpu, now: int) -> None:
        self.form.wake(vcpu, now)

    def sleep(self, vcpu: VCpu, now: int) -> None:
        self.form.sleep(vcpu, now)

    def give_way(self, vcpu: VCpu, now: int) -> bool:
        return self.form.give_way(vcpu, now)

    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        return self.form.pick(core, now, current)

    def ran(self, vcpu: VCpu, ns: int, now: int) -> None:
        self.form.ran(vcpu, ns, now)

    def affinity_changed(self, vcpu: VCpu, now: int) -> None:
        self.form.affinity_changed(vcpu, now)
