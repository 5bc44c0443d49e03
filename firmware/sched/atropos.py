"""Atropos (of the Nemesis system), as Xen had it in 2004: earliest deadline first with reservations.

A vCPU has `slice` of every `period`, by the end of the period; with `xtratime` it takes part in what is left
over, in turns of 5 ms. The first period after a long sleep is as short as `latency`, with a slice as much
smaller; each one after that is twice as long, up to the full one. So a vCPU that wakes is served soon without
ever having more than its part of the CPU.

What 2004 had not: reservations are admitted, and refused beyond capacity. Each is on one logical CPU, where
it runs before anything else; extra time is had anywhere, and a CPU that would idle takes over whoever waits.
Who wakes in the middle of a period goes on with it only if what is left of the slice is no more than its part
of what is left of the period (the rule of constant bandwidth servers, Abeni and Buttazzo 1998): otherwise
others would miss deadlines. A reservation whose CPU is taken away, and which fits nowhere else, is void until
there is room: the vCPU has extra time only, and nobody else's guarantee suffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from firmware.domain.vcpu import VCpu
from firmware.sched.parameters import Parameter, ParameterError, Value
from firmware.sched.percpu import PerCpu
from firmware.sched.policy import MICROSECOND, MILLISECOND, Pool, policy

if TYPE_CHECKING:
    from machine.clock import Event

EXTRA: Final = 1 << 62
"""The key of all who have extra time only: after every deadline."""
WHOLE: Final = 1_000_000_000
"""Reservations are parts of this of a logical CPU."""
PER_CENT: Final = WHOLE // 100
NOWHERE: Final = -1
TICK: Final = 10 * MILLISECOND
"""The longest turn."""
SECOND_US: Final = 1_000_000


class Account:
    """What is known of one vCPU; times in ns."""

    __slots__ = ("awake", "deadline", "depleted", "full_period", "full_slice", "gave_way", "latency",
                 "missed", "part", "period", "remain", "reserved", "since", "slice", "spared", "timer",
                 "xtra", "yielded")

    def __init__(self) -> None:
        self.full_period = self.full_slice = self.latency = 1
        self.xtra = False
        self.awake = False
        """It could run."""
        self.part = 0
        """What it reserves of `WHOLE`."""
        self.reserved = NOWHERE
        """The logical CPU on which it does."""
        self.period = self.slice = 1
        """Those of the present period."""
        self.deadline = 0
        self.remain = 0
        """Of its slice; what it has overrun, negative, counts against the next."""
        self.since = 0
        """When it began to run, or up to when what it has run has been told."""
        self.spared = 0
        """What of the run since then was extra time, before the present period."""
        self.depleted = True
        """It has had its slice of this period."""
        self.timer: Event | None = None
        """The next period's beginning, for who has had their slice and could run on."""
        self.missed = 0
        """Deadlines that passed before it had its slice though it could have run."""
        self.yielded = False
        self.gave_way = False
        """It has yielded in this period: its deadline is its own affair."""


@policy
class Atropos(PerCpu):
    """Reservations in time, with admission control."""

    name = "atropos"
    SETTINGS = (
        Parameter("quantum_us", 5_000, "a turn of extra time", "us", 100, 1_000_000),
        Parameter("capacity", 100, "how much of each logical CPU can be reserved", "%", 1, 100),
    )
    SHARES = (
        Parameter("period_us", 10_000_000, "the period", "us", 100, 1000 * SECOND_US),
        Parameter("slice_us", 10_000, "what each vCPU has in every period", "us", 1, 1000 * SECOND_US),
        Parameter("latency_us", 10_000_000, "the first period after a long sleep", "us", 1, 1000 * SECOND_US),
        Parameter("xtratime", True, "whether the domain takes part in time nobody else needs"),
    )

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        self._accounts: dict[VCpu, Account] = {}
        self._load = dict.fromkeys(pool.cores, 0)
        """By logical CPU: what is reserved of `WHOLE`."""
        self._until = dict.fromkeys(pool.cores, 0)
        """By logical CPU: when the turn of extra time there is over."""
        super().__init__(pool, settings)

    @property
    def missed(self) -> int:
        """Deadlines that have passed before a vCPU that could run had had its slice."""
        return sum(account.missed for account in self._accounts.values())

    @property
    def void(self) -> list[VCpu]:
        """Those whose reservation holds nowhere at the moment."""
        return [vcpu for vcpu, account in self._accounts.items() if account.reserved == NOWHERE]

    def load(self, core: int) -> float:
        """The reserved part of a logical CPU."""
        return self._load[core] / WHOLE

    # -- parameters and admission

    def tuned(self, now: int) -> None:
        self._quantum = self.number("quantum_us") * MICROSECOND
        self._capacity = self.number("capacity") * PER_CENT

    def admit_settings(self, values: Mapping[str, Value]) -> None:
        capacity = int(values["capacity"])
        for core, load in self._load.items():
            if load > capacity * PER_CENT:
                taken = -(-load // PER_CENT)
                raise ParameterError(f"scheduler 'atropos': {taken} % of CPU {core} are reserved, so "
                                     f"capacity cannot be {capacity} %")

    def admit_share(self, vcpus: Sequence[VCpu], values: Mapping[str, Value]) -> None:
        period, asked, latency = (int(values[name]) for name in ("period_us", "slice_us", "latency_us"))
        if asked > period:
            raise ParameterError(f"scheduler 'atropos': a slice of {asked} us does not fit a period of "
                                 f"{period} us")
        if latency > period:
            raise ParameterError(f"scheduler 'atropos': a latency of {latency} us is longer than the period "
                                 f"of {period} us")
        if asked * latency < period:
            raise ParameterError(f"scheduler 'atropos': with a latency of {latency} us the slice after a "
                                 f"sleep would be less than 1 us")
        self._assign(vcpus, part_of(values), values)

    def _assign(self, vcpus: Sequence[VCpu], part: int, values: Mapping[str, Value]) -> dict[VCpu, int]:
        """Where these vCPUs, as far as they are here, would reserve this: where they do now if they can."""
        here = [vcpu for vcpu in vcpus if vcpu in self._accounts]
        load = dict(self._load)
        for vcpu in here:
            account = self._accounts[vcpu]
            if account.reserved != NOWHERE:
                load[account.reserved] -= account.part
        found: dict[VCpu, int] = {}
        for vcpu in here:
            core = self._accounts[vcpu].reserved
            if core == NOWHERE or load[core] + part > self._capacity or not vcpu.hard_affinity >> core & 1:
                core = self._room(vcpu, load, part)
            if core == NOWHERE:
                raise self._refusal(vcpu, values)
            load[core] += part
            found[vcpu] = core
        return found

    def _room(self, vcpu: VCpu, load: Mapping[int, int], part: int) -> int:
        """The logical CPU that can best take a reservation, or NOWHERE."""
        mask = 0
        for core, taken in load.items():
            if taken + part <= self._capacity:
                mask |= 1 << core
        if not mask & vcpu.hard_affinity:
            return NOWHERE
        return self.pool.placement.initial(vcpu, load, mask)

    @staticmethod
    def _refusal(vcpu: VCpu, values: Mapping[str, Value]) -> ParameterError:
        return ParameterError(
            f"scheduler 'atropos': no CPU where {vcpu!r} may run has {values['slice_us']} of every "
            f"{values['period_us']} us left"
        )

    def share_changed(self, vcpus: Sequence[VCpu], now: int) -> None:
        here = [vcpu for vcpu in vcpus if vcpu in self._accounts]
        if not here:
            return
        values = self.share_of(here[0])
        for vcpu, core in self._assign(here, part_of(values), values).items():
            queued = self.unqueue(vcpu)
            self._reserve(vcpu, NOWHERE)
            self._read_share(vcpu)
            self._reserve(vcpu, core)
            account = self._accounts[vcpu]
            if not account.awake:
                account.deadline = 0
            else:
                self._fresh(account, now)
                if queued or not vcpu.scheduled:
                    self.enter(vcpu, now)
                else:
                    self.pool.poke(vcpu.core.index, now)
        self._revive(now)

    def _read_share(self, vcpu: VCpu) -> None:
        account, share = self._accounts[vcpu], self.share_of(vcpu)
        account.full_period = int(share["period_us"]) * MICROSECOND
        account.full_slice = int(share["slice_us"]) * MICROSECOND
        account.latency = int(share["latency_us"]) * MICROSECOND
        account.xtra = bool(share["xtratime"])
        account.part = part_of(share)

    def _reserve(self, vcpu: VCpu, core: int) -> None:
        account = self._accounts[vcpu]
        if account.reserved in self._load:
            self._load[account.reserved] -= account.part
        account.reserved = core
        if core != NOWHERE:
            self._load[core] += account.part
        else:
            self._stop_timer(account)

    def _revive(self, now: int) -> None:
        """There is more room: void reservations may hold again."""
        for vcpu in self.void:
            account = self._accounts[vcpu]
            core = self._room(vcpu, self._load, account.part)
            if core != NOWHERE:
                queued = self.unqueue(vcpu)
                self._reserve(vcpu, core)
                self._fresh(account, now)
                if queued:
                    self.enter(vcpu, now)

    # -- vCPUs and logical CPUs that come and go

    def insert(self, vcpu: VCpu, now: int) -> int:
        share = self.share_of(vcpu)
        core = self._room(vcpu, self._load, part_of(share))
        if core == NOWHERE:
            raise self._refusal(vcpu, share)
        self._accounts[vcpu] = Account()
        super().insert(vcpu, now)
        self._read_share(vcpu)
        self._reserve(vcpu, core)
        self.move(vcpu, core)
        return core

    def remove(self, vcpu: VCpu, now: int) -> None:
        super().remove(vcpu, now)
        self._reserve(vcpu, NOWHERE)
        del self._accounts[vcpu]
        self._revive(now)

    def gain(self, core: int, now: int) -> None:
        super().gain(core, now)
        self._load[core] = self._until[core] = 0
        self._revive(now)

    def lose(self, core: int, now: int) -> None:
        del self._load[core]
        for vcpu, account in self._accounts.items():
            if account.reserved == core:
                self._again(vcpu, now)
        super().lose(core, now)
        del self._until[core]

    def _again(self, vcpu: VCpu, now: int) -> None:
        """A reservation must go elsewhere, and is void if it fits nowhere. Depletion goes with it."""
        account = self._accounts[vcpu]
        queued = self.unqueue(vcpu)
        parked = account.awake and account.depleted and not account.xtra and not vcpu.scheduled
        self._reserve(vcpu, NOWHERE)
        core = self._room(vcpu, self._load, account.part)
        if core != NOWHERE:
            self._reserve(vcpu, core)
            if account.depleted and account.awake:
                self._await_period(vcpu, account)
        if queued or (parked and core == NOWHERE):
            self.enter(vcpu, now)

    def affinity_changed(self, vcpu: VCpu, now: int) -> None:
        account = self._accounts[vcpu]
        if account.reserved == NOWHERE:
            self._revive(now)
        elif not vcpu.hard_affinity >> account.reserved & 1:
            self._again(vcpu, now)
        super().affinity_changed(vcpu, now)

    def close(self) -> None:
        for account in self._accounts.values():
            self._stop_timer(account)

    # -- periods

    @staticmethod
    def _stop_timer(account: Account) -> None:
        if account.timer is not None:
            account.timer.cancel()
            account.timer = None

    def _await_period(self, vcpu: VCpu, account: Account) -> None:
        self._stop_timer(account)
        account.timer = self.pool.at(account.deadline, self._next_period, vcpu)

    def _fresh(self, account: Account, now: int) -> None:
        """A first period, as short as `latency`."""
        self._stop_timer(account)
        account.period = account.latency
        account.slice = account.full_slice * account.latency // account.full_period
        account.deadline = now + account.period
        account.remain = account.slice
        account.depleted = account.gave_way = False

    def _renew(self, vcpu: VCpu, account: Account, now: int) -> None:
        """The next period, twice as long as the last up to the full one."""
        if account.period < account.full_period:
            account.period = min(2 * account.period, account.full_period)
            account.slice = account.full_slice * account.period // account.full_period
        account.deadline = max(account.deadline, now) + account.period
        account.remain = min(account.remain, 0) + account.slice
        account.depleted = account.remain <= 0
        account.gave_way = False
        if account.depleted:
            self._await_period(vcpu, account)

    def _next_period(self, vcpu: VCpu) -> None:
        account, now = self._accounts[vcpu], self.pool.now()
        account.timer = None
        if vcpu.scheduled:
            account.spared = max(0, now - account.since)
            self._renew(vcpu, account, now)
            self.pool.poke(vcpu.core.index, now)
        else:
            self.unqueue(vcpu)
            self._begin_period(vcpu, account, now)

    def _begin_period(self, vcpu: VCpu, account: Account, now: int) -> None:
        """The next period of a vCPU that is in no queue and does not run."""
        self._renew(vcpu, account, now)
        if self._eligible(account):
            self.enter(vcpu, now)

    def ran(self, vcpu: VCpu, ns: int, now: int) -> None:
        account = self._accounts[vcpu]
        account.since = now
        ns -= account.spared
        account.spared = 0
        if account.depleted or account.reserved == NOWHERE:
            return
        account.remain -= ns
        if account.remain <= 0:
            account.depleted = True
            self._await_period(vcpu, account)

    # -- queues

    def _guaranteed(self, account: Account) -> bool:
        return not account.depleted and account.reserved != NOWHERE

    def _eligible(self, account: Account) -> bool:
        return not account.depleted or account.xtra or account.reserved == NOWHERE

    def _rank(self, account: Account, core: int) -> int:
        """The key of who runs on a logical CPU: a guarantee holds where it was given."""
        return account.deadline if not account.depleted and account.reserved == core else EXTRA

    def key(self, vcpu: VCpu) -> int:
        account = self._accounts[vcpu]
        return self._rank(account, self.home[vcpu])

    def enter(self, vcpu: VCpu, now: int) -> None:
        """Who has a guarantee waits where it holds; an idle CPU may take them over from there."""
        account = self._accounts[vcpu]
        if not self._guaranteed(account):
            super().enter(vcpu, now)
            return
        home = account.reserved
        if self.home[vcpu] != home:
            self.move(vcpu, home)
        self.push(vcpu, account.deadline)
        pool = self.pool
        idle = pool.idle
        if idle >> home & 1 or self._beats(vcpu, home):
            pool.poke(home, now)
        elif idle:
            thief = pool.placement.idle_for(vcpu, home, idle)
            if thief is not None:
                pool.poke(thief, now)

    def contend(self, vcpu: VCpu, core: int, now: int) -> None:
        if self._beats(vcpu, core):
            self.pool.poke(core, now)

    def _beats(self, vcpu: VCpu, core: int) -> bool:
        running = self.pool.running(core)
        if running is None:
            return True
        return self._rank(self._accounts[vcpu], core) < self._rank(self._accounts[running], core)

    # -- running

    def wake(self, vcpu: VCpu, now: int) -> None:
        account = self._accounts[vcpu]
        account.awake = True
        left = account.deadline - now
        if account.reserved != NOWHERE:
            if left <= 0:
                self._fresh(account, now)
            elif account.depleted:
                self._await_period(vcpu, account)
            elif account.remain * account.full_period > left * account.full_slice:
                self._fresh(account, now)
        if self._eligible(account):
            self.enter(vcpu, now)

    def sleep(self, vcpu: VCpu, now: int) -> None:
        super().sleep(vcpu, now)
        account = self._accounts[vcpu]
        account.awake = False
        self._stop_timer(account)

    def give_way(self, vcpu: VCpu, now: int) -> bool:
        if not self.waiting >> vcpu.core.index & 1:
            return False
        account = self._accounts[vcpu]
        account.yielded = account.gave_way = True
        return True

    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        chosen = self._stay(core, now, current)
        while True:
            if chosen is None:
                chosen = self.take(core) or self.steal(core)
                if chosen is None:
                    return None
            account = self._accounts[chosen]
            if account.depleted or now < account.deadline or account.reserved == NOWHERE:
                break
            account.missed += not account.gave_way
            self._begin_period(chosen, account, now)
            chosen = None
        account.since = now
        guaranteed = self._guaranteed(account)
        if guaranteed and account.reserved == core:
            self._until[core] = now
            return chosen, min(account.remain, TICK)
        if chosen is not current or now >= self._until[core]:
            self._until[core] = now + self._quantum
        turn = min(self._until[core] - now, TICK)
        return chosen, min(turn, account.remain) if guaranteed else turn

    def _stay(self, core: int, now: int, current: VCpu | None) -> VCpu | None:
        """Who ran here and goes on; None if somebody else is to run, and current is queued if it can be."""
        if current is None:
            return None
        account = self._accounts[current]
        yielded, account.yielded = account.yielded, False
        if not self._eligible(account):
            return None
        head = self.queues[core].first(core)
        if current.hard_affinity >> core & 1:
            rank = self._rank(account, core)
            if rank == EXTRA and not self._guaranteed(account) and self.better_place(core, current, now):
                return None
            if head is None:
                return current
            goes_on = rank == head[0] and (rank != EXTRA or now < self._until[core])
            if not yielded and (rank < head[0] or goes_on):
                return current
        chosen = self.take(core)
        self.enter(current, now)
        return chosen


def part_of(share: Mapping[str, Value]) -> int:
    """What a share reserves, in parts of `WHOLE`, rounded up."""
    return -(-int(share["slice_us"]) * WHOLE // int(share["period_us"]))
