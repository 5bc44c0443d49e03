"""What an operator may do to scheduling while the machine runs: pools, affinity, parameters, another policy.

Whatever cannot be is refused with a ParameterError, and nothing has changed then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from firmware.domain.domain import Domain
from firmware.domain.vcpu import ANY_CPU, VCpu
from firmware.sched import events
from firmware.sched.parameters import ParameterError, Value
from firmware.sched.policy import Policy, policy_by_name
from firmware.sched.pool import CpuPool
from firmware.sched.scheduler import Scheduler

CARRIED: Final = ("weight", "cap")
"""Shares that mean the same under every policy that has them."""
DEFAULT_POOL: Final = 0
"""The pool every machine has; new domains go there."""


@dataclass(frozen=True)
class Scheduling:
    """How a new domain is to be scheduled: its share in its policy's own parameters (weight, cap, period,
    ...), its CPU pool, and the logical CPUs where it may (hard) and had better (soft) run; None is anywhere.
    """

    share: Mapping[str, Value] = field(default_factory=dict)
    pool: str | int = DEFAULT_POOL
    hard: Sequence[int] | None = None
    soft: Sequence[int] | None = None


ANYWHERE: Final = Scheduling()
"""As every domain is for which nothing else is said."""


class SchedulerControl:
    """The operator's hand on a scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._next_pool = 1

    def admit(self, domain: Domain, wanted: Scheduling) -> None:
        """Put the vCPUs of a new domain where they are to be."""
        pool, now = self.pool(wanted.pool), self._scheduler.now()
        hard = ANY_CPU if wanted.hard is None else self._mask(wanted.hard)
        soft = ANY_CPU if wanted.soft is None else self._mask(wanted.soft)
        added: list[VCpu] = []
        try:
            pool.policy.set_share(domain, wanted.share, now)
            for vcpu in domain.vcpus:
                vcpu.hard_affinity, vcpu.soft_affinity = hard, soft
                self._scheduler.add(vcpu, pool.id)
                added.append(vcpu)
        except ParameterError:
            for vcpu in added:
                self._scheduler.remove(vcpu)
            pool.policy.forget_domain(domain.id)
            raise

    # -- pools

    @property
    def pools(self) -> list[CpuPool]:
        """The pools, by number."""
        return [pool for _, pool in sorted(self._scheduler.pools.items())]

    def pool(self, name: str | int) -> CpuPool:
        """A pool by its name or number."""
        for pool in self.pools:
            if name in (pool.name, pool.id):
                return pool
        there = ", ".join(pool.name for pool in self.pools)
        raise ParameterError(f"there is no CPU pool {name!r}: there are {there}")

    def create_pool(self, name: str, cores: Iterable[int], policy: str,
                    settings: Mapping[str, Value] | None = None) -> CpuPool:
        """A new pool of these logical CPUs, taken out of the pools that have them."""
        wanted = self._mask(cores)
        if not name or any(name == pool.name for pool in self.pools):
            raise ParameterError(f"a CPU pool needs a name of its own, and {name!r} is none")
        made = CpuPool(self._next_pool, name, self._scheduler)
        made.start(policy, settings or {})
        for pool in self.pools:
            self._may_lose(pool, wanted)
        self._next_pool += 1
        self._scheduler.pools[made.id] = made
        for core in members(wanted):
            self._move(core, made)
        return made

    def remove_pool(self, name: str | int) -> None:
        """An empty pool goes; its logical CPUs are the first pool's again."""
        pool = self.pool(name)
        if pool.id == DEFAULT_POOL:
            raise ParameterError(f"CPU pool {pool.name!r} is the one that stays")
        if pool.vcpus:
            raise ParameterError(f"CPU pool {pool.name!r} has domains: move them to another pool first")
        for core in list(pool.cores):
            self._move(core, self._scheduler.pools[DEFAULT_POOL])
        pool.policy.close()
        del self._scheduler.pools[pool.id]

    def move_core(self, core: int, name: str | int) -> None:
        """Give a logical CPU to a pool."""
        pool, mask = self.pool(name), self._mask([core])
        if core not in pool.cores:
            for other in self.pools:
                self._may_lose(other, mask)
            self._move(core, pool)

    def move_domain(self, domain: Domain, name: str | int) -> None:
        """Have a domain run in another pool. Its weight and cap go on to hold, and all of its share if
        that pool has the same policy.
        """
        pool = self.pool(name)
        now = self._scheduler.now()
        moving = [vcpu for vcpu in domain.vcpus if vcpu.pool != pool.id]
        if not moving:
            return
        old = self._scheduler.pools[moving[0].pool]
        joined: list[VCpu] = []
        try:
            _carry_share(old.policy, pool.policy, domain, now)
            for vcpu in moving:
                pool.add(vcpu, now)
                joined.append(vcpu)
        except ParameterError:
            for vcpu in joined:
                pool.remove(vcpu, now)
            pool.policy.forget_domain(domain.id)
            raise
        for vcpu in moving:
            self._scheduler.withdraw(vcpu, now)
            old.remove(vcpu, now)
            vcpu.pool = pool.id
            if vcpu.runnable:
                pool.policy.wake(vcpu, now)
        old.policy.forget_domain(domain.id)

    # -- policies and their parameters

    def set_policy(self, name: str, settings: Mapping[str, Value] | None = None,
                   pool: str | int = DEFAULT_POOL) -> None:
        """Have another policy, or the same from its beginnings, decide in a pool. Weights and caps
        go on to hold; under the same policy, all shares do.
        """
        target = self.pool(pool)
        now = self._scheduler.now()
        old, made = target.policy, policy_by_name(name)(target, settings)
        domains = {vcpu.domain.id: vcpu.domain for vcpu in target.vcpus}
        try:
            for domain in domains.values():
                _carry_share(old, made, domain, now)
            for vcpu in target.vcpus:
                made.insert(vcpu, now)
        except ParameterError:
            made.close()
            raise
        for vcpu in target.vcpus:
            self._scheduler.withdraw(vcpu, now)
        old.close()
        target.policy = made
        for vcpu in target.vcpus:
            if vcpu.runnable:
                made.wake(vcpu, now)

    def tune(self, values: Mapping[str, Value], pool: str | int = DEFAULT_POOL) -> None:
        """Change parameters of a pool's policy."""
        self.pool(pool).policy.tune(values, self._scheduler.now())

    def set_share(self, domain: Domain, values: Mapping[str, Value], vcpu: VCpu | None = None) -> None:
        """Change what a domain, or one of its vCPUs, gets (weight, cap, period, ...)."""
        now = self._scheduler.now()
        self._policy_of(domain).set_share(domain, values, now, vcpu)
        if self._scheduler.trace.on:
            self._scheduler.trace.record(events.ADJDOM, 0, now, domain.id)

    def share(self, domain: Domain, vcpu: VCpu | None = None) -> dict[str, Value]:
        """What a domain, or one of its vCPUs, gets."""
        policy = self._policy_of(domain)
        return dict(policy.domain_share(domain.id) if vcpu is None else policy.share_of(vcpu))

    def _policy_of(self, domain: Domain) -> Policy:
        return self._scheduler.pools[domain.vcpus[0].pool].policy

    # -- affinity

    def set_affinity(self, vcpu: VCpu, hard: Iterable[int] | None = None,
                     soft: Iterable[int] | None = None) -> None:
        """Where a vCPU may run (hard) and had better run (soft); None leaves that as it is."""
        pool = self._scheduler.pools[vcpu.pool]
        new_hard = vcpu.hard_affinity if hard is None else self._mask(hard)
        new_soft = vcpu.soft_affinity if soft is None else self._mask(soft)
        if not new_hard & pool.mask:
            raise ParameterError(f"{vcpu!r} could run on none of the CPUs of its pool {pool.name!r}, "
                                 f"{text(pool.cores)}")
        pool.policy.admit_affinity(vcpu, new_hard)
        now = self._scheduler.now()
        vcpu.hard_affinity, vcpu.soft_affinity = new_hard, new_soft
        pool.policy.affinity_changed(vcpu, now)
        if vcpu.scheduled and not new_hard >> vcpu.core.index & 1:
            self._scheduler.poke(vcpu.core.index, now)

    def set_anywhere(self, vcpu: VCpu) -> None:
        """Take every limit of where a vCPU may run away."""
        vcpu.hard_affinity = vcpu.soft_affinity = ANY_CPU
        self._scheduler.pools[vcpu.pool].policy.affinity_changed(vcpu, self._scheduler.now())

    # -- the work

    def _mask(self, cores: Iterable[int]) -> int:
        mask = 0
        for core in cores:
            if not 0 <= core < self._scheduler.placement.cpus:
                raise ParameterError(f"there is no CPU {core}: the machine has CPUs 0 to "
                                     f"{self._scheduler.placement.cpus - 1}")
            mask |= 1 << core
        if not mask:
            raise ParameterError("an empty set of CPUs is no place to run")
        return mask

    @staticmethod
    def _may_lose(pool: CpuPool, going: int) -> None:
        left = pool.mask & ~going
        if left == pool.mask:
            return
        for vcpu in pool.vcpus:
            if not vcpu.hard_affinity & left:
                raise ParameterError(
                    f"CPU pool {pool.name!r} cannot give these CPUs away: {vcpu!r} could run nowhere"
                )
        pool.policy.admit_loss(going)

    def _move(self, core: int, pool: CpuPool) -> None:
        scheduler = self._scheduler
        now = scheduler.now()
        old, current = scheduler.pool_of(core), scheduler.running(core)
        if current is not None:
            scheduler.withdraw(current, now)
        scheduler.assign(core, None)
        if old is not None:
            old.remove_core(core, now)
            if current is not None and current.runnable:
                old.policy.wake(current, now)
        pool.add_core(core, now)
        scheduler.assign(core, pool)


def _carry_share(old: Policy, new: Policy, domain: Domain, now: int) -> None:
    share, own = old.domain_share(domain.id), new.domain_share(domain.id)
    alike = old.name == new.name
    new.set_share(domain, {name: value for name, value in share.items()
                           if alike or (name in CARRIED and name in own)}, now)
    for vcpu in domain.vcpus if alike else ():
        single = old.shares.get((domain.id, vcpu.id))
        if single is not None:
            new.set_share(domain, single, now, vcpu)


def members(mask: int) -> list[int]:
    """The logical CPUs in a bit mask, ascending."""
    return [cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1]


def text(cores: Sequence[int]) -> str:
    """Logical CPUs as people write them: 0-3,6."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def cpu_list(written: str, cpus: int) -> list[int]:
    """Logical CPUs from `0-3,6`, `all`, with `^2` for "not 2", as xl takes them; ParameterError otherwise."""
    chosen: set[int] = set()
    for part in written.split(","):
        part = part.strip()
        away = part.startswith("^")
        first, dash, last = part.removeprefix("^").partition("-")
        if part == "all":
            chosen.update(range(cpus))
            continue
        if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
            raise ParameterError(f"CPUs are written like 0-3,6 or all, not {written!r}")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high >= cpus:
            raise ParameterError(f"there are no CPUs {part.lstrip('^')}: the machine has 0 to {cpus - 1}")
        (chosen.difference_update if away else chosen.update)(range(low, high + 1))
    return sorted(chosen)
