"""CPU pools: sets of logical CPUs, each with a scheduling policy of its own and domains that run there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from firmware.domain.vcpu import VCpu
from firmware.sched.parameters import ParameterError, Value
from firmware.sched.policy import Policy, policy_by_name

if TYPE_CHECKING:
    from firmware.sched.scheduler import Scheduler
    from machine.clock import Event


class CpuPool:
    """One pool: what its policy sees (`firmware.sched.policy.Pool`), and the policy."""

    def __init__(self, number: int, name: str, scheduler: Scheduler) -> None:
        self.id = number
        self.name = name
        self.cores: list[int] = []
        self.mask = 0
        self.vcpus: list[VCpu] = []
        self.placement = scheduler.placement
        self.now = scheduler.now
        self.running = scheduler.running
        self.poke = scheduler.poke
        self._at = scheduler.at
        self._scheduler = scheduler
        self.policy: Policy

    @property
    def idle(self) -> int:
        """The pool's logical CPUs on which nobody runs."""
        return self._scheduler.idle & self.mask

    def at(self, when: int, callback: Callable[[Any], None], argument: Any = None) -> Event:
        """A timer of the policy."""
        return self._at(when, callback, argument)

    def start(self, name: str, settings: Mapping[str, Value]) -> None:
        """Give the pool its first policy."""
        self.policy = policy_by_name(name)(self, settings)

    def add_core(self, core: int, now: int) -> None:
        """The pool has one more logical CPU, idle."""
        self.cores.append(core)
        self.cores.sort()
        self.mask |= 1 << core
        self.policy.gain(core, now)

    def remove_core(self, core: int, now: int) -> None:
        """It has one less; nobody runs there."""
        self.cores.remove(core)
        self.mask &= ~(1 << core)
        self.policy.lose(core, now)

    def add(self, vcpu: VCpu, now: int) -> int:
        """A vCPU that is not runnable yet; where it is placed. ParameterError when there is no place."""
        if not vcpu.hard_affinity & self.mask:
            raise ParameterError(f"{vcpu!r} may run on none of the CPUs of pool {self.name!r}")
        home = self.policy.insert(vcpu, now)
        self.vcpus.append(vcpu)
        return home

    def remove(self, vcpu: VCpu, now: int) -> None:
        """A vCPU that neither runs nor waits leaves."""
        self.vcpus.remove(vcpu)
        self.policy.remove(vcpu, now)
