"""The credit scheduler: Xen's first proportional-share one (sched/credit.c of Xen 4.17, in our own way).

A domain's weight says how much of the machine each of its vCPUs gets when there is not enough, its cap how
much of a logical CPU it may use even when there is. Time is paid for in credit. Who has some is UNDER and
goes before who is OVER; who wakes with some is in front of both for a tick (BOOST). A logical CPU takes a
vCPU with credit off another's queue before it runs one without.

A turn ends with the credit, but not before the rate limit has passed; where nobody has credit it is a slice
at most. So `ratelimit_us` says how short turns get when many share a CPU.

Credit is counted in ns, not in tenths of a ms. Every 30 ms as much is dealt out, by weight, as has been
used, so weights hold however many sleep; who could not use more has theirs given to the others. There is
no global tick: a logical CPU that runs somebody decides again after a tick at the latest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from firmware.domain.vcpu import VCpu
from firmware.sched.caps import Caps
from firmware.sched.parameters import Parameter, ParameterError, Value
from firmware.sched.percpu import LAST, PerCpu
from firmware.sched.policy import MICROSECOND, MILLISECOND, Pool, policy

if TYPE_CHECKING:
    from machine.clock import Event

BOOST, UNDER, OVER = range(3)
"""Priorities, the highest first: CSCHED_PRI_TS_*."""
LEVEL: Final = 48
HALF: Final = 1 << LEVEL - 1
"""Keys of queues: the priority from bit LEVEL up, then HALF less the credit; so of equals who has most comes
first. Debt counts in proportion to the weight.
"""
DEFAULT_WEIGHT: Final = 256
"""CSCHED_DEFAULT_WEIGHT."""
NO_CREDIT: Final = OVER << LEVEL
"""The first key of those who are OVER."""
MOST_DEBT: Final = 10
"""Nobody owes more than a slice, or so many times what they are dealt if that is more: who is light does not
wait for ever.
"""
TICKS_PER_TSLICE: Final = 3
"""CSCHED_TICKS_PER_TSLICE."""
LEAST_TURN: Final = 500 * MICROSECOND
"""The shortest turn that is granted without a rate limit."""
START_CREDIT: Final = 1 * MICROSECOND
"""What a new vCPU has, so that it comes before those that have run."""


class Account:
    """What the policy keeps of a vCPU; credit and the time it has run since it was boosted in ns."""

    __slots__ = ("active", "boosted", "credit", "priority", "ran_at", "slept", "weight",
                 "yields")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.credit = START_CREDIT
        self.priority = UNDER
        self.boosted = 0
        self.active = False
        self.yields = False
        self.slept = False
        self.ran_at = 0


@policy
class Credit(PerCpu):
    """Weights, caps and boosts."""

    name = "credit"
    SETTINGS = (
        Parameter("tslice_ms", 30, "a vCPU's turn, and how often credit is dealt", "ms", 1, 1000),
        Parameter("ratelimit_us", 1000, "the least a vCPU runs; 0 for no limit", "us", 0, 500_000),
        Parameter("vcpu_migration_delay_us", 0, "so long after it ran it is not stolen", "us", 0, 100_000),
    )
    SHARES = (
        Parameter("weight", DEFAULT_WEIGHT, "share of the machine, relative to others", "", 1, 65_535),
        Parameter("cap", 0, "the most it may use; 100 is one CPU, 0 no limit", "%", 0, 65_535),
    )

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        self._accounts: dict[VCpu, Account] = {}
        self._active: dict[VCpu, Account] = {}
        """Those that take part in the next deal."""
        self._dealt = self._next = 0
        """When credit was dealt out last, and when it will be next, if it lasts so long."""
        self._timer: Event | None = None
        self._runnable = 0
        self._turn: dict[int, tuple[VCpu, int, int]] = {}
        """By logical CPU: whose turn it is, since when, and until when."""
        self._caps = Caps(pool, self._unparked)
        super().__init__(pool, settings)
        self.admit_settings(self.settings)

    # -- parameters

    def admit_settings(self, values: Mapping[str, Value]) -> None:
        if int(values["ratelimit_us"]) > int(values["tslice_ms"]) * (MILLISECOND // MICROSECOND):
            raise ParameterError("scheduler 'credit': ratelimit_us is at most tslice_ms")

    def tuned(self, now: int) -> None:
        self._tslice = int(self.settings["tslice_ms"]) * MILLISECOND
        self._tick = self._tslice // TICKS_PER_TSLICE
        self._limit_ns = int(self.settings["ratelimit_us"]) * MICROSECOND
        self._least = self._limit_ns or min(LEAST_TURN, self._tick)
        self._hot = int(self.settings["vcpu_migration_delay_us"]) * MICROSECOND
        if self._timer is not None:
            self._deal_at(now + self._tslice)
        self._caps.set_period(self._tslice, now)

    def share_changed(self, vcpus: Sequence[VCpu], now: int) -> None:
        for vcpu in vcpus:
            account = self._accounts.get(vcpu)
            if account is not None:
                account.weight = int(self.share_of(vcpu)["weight"])
        if vcpus:
            domain = vcpus[0].domain
            self._caps.set(domain.id, int(self.domain_share(domain.id)["cap"]), len(domain.vcpus), now)
            for vcpu in domain.vcpus:
                if vcpu.scheduled and vcpu in self._accounts:
                    self.pool.poke(vcpu.core.index, now)

    def forget_domain(self, domain: int) -> None:
        super().forget_domain(domain)
        self._caps.set(domain, 0, 0, 0)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._caps.close()

    # -- vCPUs and logical CPUs

    def insert(self, vcpu: VCpu, now: int) -> int:
        self._accounts[vcpu] = Account(int(self.share_of(vcpu)["weight"]))
        home = super().insert(vcpu, now)
        self.share_changed([vcpu], now)
        return home

    def remove(self, vcpu: VCpu, now: int) -> None:
        super().remove(vcpu, now)
        del self._accounts[vcpu]
        self._active.pop(vcpu, None)

    def lose(self, core: int, now: int) -> None:
        self._turn.pop(core, None)
        super().lose(core, now)

    # -- credit

    def key(self, vcpu: VCpu) -> int:
        account = self._accounts[vcpu]
        credit = account.credit
        if credit < 0:
            credit = credit * DEFAULT_WEIGHT // account.weight
        return (account.priority << LEVEL) + HALF - credit

    def ran(self, vcpu: VCpu, ns: int, now: int) -> None:
        account = self._accounts[vcpu]
        account.credit -= ns
        account.ran_at = now
        if account.credit <= 0:
            account.priority = OVER
        elif account.priority == BOOST:
            account.boosted += ns
            if account.boosted >= self._tick:
                account.priority = UNDER
        if self._caps:
            self._caps.ran(vcpu, ns)

    def _deal_at(self, when: int) -> None:
        """Have credit dealt out then, or earlier if that has been asked for."""
        if self._timer is None or when < self._timer.when:
            if self._timer is not None:
                self._timer.cancel()
            self._next = when
            self._timer = self.pool.at(when, self._deal_now)

    def _deal_now(self, _: object) -> None:
        now = self.pool.now()
        self._timer, self._dealt = None, now
        if self._runnable:
            self._deal_at(now + self._tslice)
            self._deal(now)

    def _deal(self, now: int) -> None:
        """Deal out credit by weight, so that those who want more than they get have, together, a slice for
        each logical CPU. Who sleeps and still has credit wants no more: what they have does not count, and
        what would be too much for them is dealt to the others.
        """
        tslice = self._tslice
        left = list(self._active.items())
        short = [account.credit for _, account in left if account.credit <= 0 or not account.slept]
        rest = max(0, tslice * min(len(self.pool.cores), len(short)) - sum(short))
        weights = sum([account.weight for _, account in left])
        least = self._least // 2
        while left:
            others = []
            dealt, shared = rest, weights
            for vcpu, account in left:
                room = tslice * (2 - account.slept) - account.credit
                if dealt * account.weight >= room * shared:
                    rest -= room
                    weights -= account.weight
                    self._filled(vcpu, account, account.credit + room, now)
                else:
                    others.append((vcpu, account))
            if len(others) == len(left):
                break
            left = others
        for vcpu, account in left:
            part = rest * account.weight // weights
            credit = account.credit + part
            debt = -max(tslice, MOST_DEBT * part)
            account.credit = credit = credit if credit > debt else debt
            account.slept = bool(vcpu.pause_flags)
            if credit <= least:
                account.priority = OVER
            elif account.priority == OVER:
                account.priority = UNDER
        for queue in self.queues.values():
            if queue:
                queue.rekey(self.key)
        self._look_again(now)

    def _filled(self, vcpu: VCpu, account: Account, credit: int, now: int) -> None:
        """There is no more room in an account. Who has not run since the last time takes no part from now on,
        and keeps half.
        """
        account.credit = credit
        account.slept = bool(vcpu.pause_flags)
        if account.slept and now - account.ran_at >= self._tslice:
            account.credit //= 2
            account.active = False
            del self._active[vcpu]
        if account.priority == OVER:
            account.priority = UNDER

    def _look_again(self, now: int) -> None:
        """Credit is new: who runs where others wait may have to go, or may stay for longer."""
        if self.waiting:
            pool = self.pool
            for core in pool.cores:
                if pool.running(core) is not None:
                    pool.poke(core, now)

    # -- running

    def wake(self, vcpu: VCpu, now: int) -> None:
        self._runnable += 1
        if self._timer is None:
            self._deal_at(now + self._tick)
        account = self._accounts[vcpu]
        account.yields = False
        if not account.active:
            account.active = True
            self._active[vcpu] = account
        if self._caps and self._caps.park(vcpu, now):
            return
        if account.credit > 0:
            account.priority = BOOST
            account.boosted = 0
        else:
            account.priority = OVER
        self.enter(vcpu, now)

    def _unparked(self, vcpu: VCpu, now: int) -> None:
        account = self._accounts[vcpu]
        account.priority = UNDER if account.credit > 0 else OVER
        self.enter(vcpu, now)

    def contend(self, vcpu: VCpu, core: int, now: int) -> None:
        current = self.pool.running(core)
        if current is not None and self._accounts[vcpu].priority < self._accounts[current].priority:
            turn = self._turn.get(core)
            self.pool.poke(core, now if turn is None else max(now, turn[1] + self._limit_ns))

    def sleep(self, vcpu: VCpu, now: int) -> None:
        self._runnable -= 1
        self._accounts[vcpu].slept = True
        self._caps.forget(vcpu)
        self.unqueue(vcpu)

    def give_way(self, vcpu: VCpu, now: int) -> bool:
        if not self.waiting >> vcpu.core.index & 1:
            return False
        self._accounts[vcpu].yields = True
        return True

    def may_migrate(self, vcpu: VCpu, thief: int) -> bool:
        return not self._hot or self.pool.now() - self._accounts[vcpu].ran_at >= self._hot

    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        if current is None:
            self._turn.pop(core, None)
        chosen = self.take(core) if current is None else self._after(core, now, current)
        while True:
            if chosen is None or (self._accounts[chosen].priority == OVER and self.waiting):
                chosen = self._look_around(core, now, chosen)
                if chosen is None:
                    return None
            granted = self._granted(core, now, chosen)
            if granted:
                return chosen, granted
            chosen = self.take(core)

    def _look_around(self, core: int, now: int, chosen: VCpu | None) -> VCpu | None:
        """Rather than idle, take work from elsewhere; rather than someone without credit, run someone with
        credit from elsewhere. When there is no credit anywhere, it is time to deal.
        """
        stolen = self.steal(core, LAST if chosen is None else NO_CREDIT)
        if chosen is None:
            return stolen
        if stolen is None:
            if now - self._dealt >= self._tick:
                self._deal_at(now)
            return chosen
        self.push(chosen, self.key(chosen))
        return stolen

    def _after(self, core: int, now: int, current: VCpu) -> VCpu | None:
        """Who comes after the one that ran, which is queued or waits for its cap then; or it stays."""
        account = self._accounts[current]
        yields, account.yields = account.yields, False
        if self._caps and self._caps.park(current, now):
            return self.take(core)
        if not current.hard_affinity >> core & 1:
            self.enter(current, now)
            return self.take(core)
        _, since, until = self._turn[core]
        if not yields and now - since < self._limit_ns:
            return current
        if self.better_place(core, current, now):
            return self.take(core)
        head = self.queues[core].first(core) if self.waiting >> core & 1 else None
        if head is None or (not yields and head[0] >> LEVEL >= account.priority + (now >= until)):
            return current
        chosen = self.take(core)
        self.push(current, self.key(current))
        return chosen

    def _granted(self, core: int, now: int, chosen: VCpu) -> int:
        """For how long it may run; 0 when its cap is used up, and it waits for the next period then."""
        account = self._accounts[chosen]
        vcpu, since, until = self._turn.get(core, (None, now, now))
        if vcpu is not chosen or now >= until:
            if vcpu is not chosen:
                since = now
            until = now + self._tslice
            self._turn[core] = chosen, since, until
        granted = min(until - now, self._tick)
        if self.waiting:
            enough = account.credit if account.credit > 0 else self._next - now
            granted = min(granted, max(enough, self._least))
            if since < now < since + self._limit_ns:
                granted = min(granted, since + self._limit_ns - now)
        if self._caps:
            quota = self._caps.reserve(chosen, now)
            if quota is not None:
                if not quota:
                    self._caps.park(chosen, now)
                    self._turn.pop(core, None)
                    return 0
                granted = min(granted, quota)
        return granted
