"""Borrowed virtual time (Duda and Cheriton, SOSP 1999), as Xen had it in 2004.

A vCPU's actual virtual time (AVT) advances by `mcu_advance` for each minimum charging unit (MCU) it runs;
its effective virtual time (EVT) is that less its warp; the lowest EVT runs. Who runs may go on until it is
past the next one's by the context switch allowance. A scheduler's virtual time (SVT), the lowest AVT of those
who can run, is the least with which anybody wakes: sleeping saves nothing up.

Warp is limited in real time: who has run warped for `warpl` does without for `warpu`. What 2004 had not:
time not spent running warped gives the limit back bit by bit, so that neither does an instant of sleep renew
it, nor does moderate use ever exhaust it; units are charged for all that a vCPU runs and not for each turn;
each logical CPU has a queue and an SVT of its own, and who moves keeps its lead on the SVT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from firmware.domain.vcpu import VCpu
from firmware.sched.parameters import Parameter, Value
from firmware.sched.percpu import PerCpu
from firmware.sched.policy import MICROSECOND, MILLISECOND, Pool, policy
from firmware.sched.runqueue import RunQueue

if TYPE_CHECKING:
    from machine.clock import Event

HIGHEST_VIRTUAL: Final = (1 << 31) - 1
TICK: Final = 10 * MILLISECOND
"""The longest turn: so often at least a logical CPU looks whether who runs there is better off elsewhere."""


class Account:
    """What is known of one vCPU. Virtual times are in units of `mcu_advance`, the others in ns."""

    __slots__ = ("advance", "avt", "budget", "left", "limit", "paid", "rewarp", "unwarp", "warp", "warped",
                 "yielded")

    def __init__(self) -> None:
        self.avt = 0
        self.paid = 0
        """Of the last unit charged, how much it has not run yet."""
        self.advance = 1
        self.warp = 0
        """Its warp, while it has one."""
        self.warped = False
        """It runs warped: it has a warp, and the limit has not been reached."""
        self.limit = self.unwarp = 0
        """How long it may run warped, 0 without a limit, and for how long it does without then."""
        self.budget = 0
        """How long it may still run warped."""
        self.left = 0
        """When it last stopped running."""
        self.rewarp: Event | None = None
        """The end of doing without."""
        self.yielded = False

    @property
    def evt(self) -> int:
        """Effective virtual time."""
        return self.avt - self.warp if self.warped else self.avt


@policy
class BorrowedVirtualTime(PerCpu):
    """BVT. A domain's weight is the inverse of its `mcu_advance`."""

    name = "bvt"
    SETTINGS = (
        Parameter("mcu_us", 100, "the minimum charging unit", "us", 1, 10_000),
        Parameter("ctx_allow_us", 5_000, "how long one may run on after another is due", "us", 1, 1_000_000),
    )
    SHARES = (
        Parameter("mcu_advance", 10, "virtual time a charging unit costs: the inverse of the weight", "", 1,
                  1_000_000),
        Parameter("warpback", False, "whether the domain warps"),
        Parameter("warpvalue", 0, "by how much virtual time it warps", "", 0, HIGHEST_VIRTUAL),
        Parameter("warpl_ms", 2_000, "the longest run warped; 0: no limit", "ms", 0, 1_000_000),
        Parameter("warpu_ms", 1_000, "how long without warp after that", "ms", 0, 1_000_000),
    )

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        self._accounts: dict[VCpu, Account] = {}
        self._svt = dict.fromkeys(pool.cores, 0)
        self._actual: dict[int, RunQueue] = {core: RunQueue() for core in pool.cores}
        """The same vCPUs as in the queues, by AVT; empty while nobody has a warp and the orders are one."""
        self._warps = 0
        """How many have a warp."""
        self._since = dict.fromkeys(pool.cores, 0)
        """By logical CPU: up to when who runs there has been charged."""
        self._until = dict.fromkeys(pool.cores, 0)
        """By logical CPU: when the turn there is over."""
        self._waking = False
        """Whoever comes into a queue has just woken, and need not wait for the allowance."""
        self._probe = dict.fromkeys(pool.cores, 0)
        """By logical CPU: at whose queue it looks next."""
        super().__init__(pool, settings)

    def tuned(self, now: int) -> None:
        self._mcu = self.number("mcu_us") * MICROSECOND
        self._allowance = self.number("ctx_allow_us") * MICROSECOND

    def share_changed(self, vcpus: Sequence[VCpu], now: int) -> None:
        for vcpu in vcpus:
            if vcpu in self._accounts:
                queued = self.unqueue(vcpu)
                self._read_share(vcpu)
                home = self.home[vcpu]
                if queued:
                    self.push(vcpu, self.key(vcpu))
                if self.pool.running(home) is not None:
                    self._until[home] = now
                    self.pool.poke(home, now)

    def _read_share(self, vcpu: VCpu) -> None:
        account, share = self._accounts[vcpu], self.share_of(vcpu)
        account.advance = int(share["mcu_advance"])
        had, account.warp = account.warp > 0, int(share["warpvalue"]) if share["warpback"] else 0
        self._count_warp((account.warp > 0) - had)
        account.limit = account.budget = int(share["warpl_ms"]) * MILLISECOND
        account.unwarp = int(share["warpu_ms"]) * MILLISECOND
        if account.rewarp is not None:
            account.rewarp.cancel()
            account.rewarp = None
        account.warped = account.warp > 0

    def _count_warp(self, change: int) -> None:
        """So many more have a warp."""
        before, self._warps = self._warps, self._warps + change
        if (before > 0) == (self._warps > 0):
            return
        for core, queue in self.queues.items():
            actual = self._actual[core] = RunQueue()
            if self._warps:
                for vcpu in queue.members():
                    actual.push(vcpu, self._accounts[vcpu].avt)

    # -- vCPUs and logical CPUs that come and go

    def insert(self, vcpu: VCpu, now: int) -> int:
        home = super().insert(vcpu, now)
        account = self._accounts[vcpu] = Account()
        account.avt = self._svt[home]
        self._read_share(vcpu)
        return home

    def remove(self, vcpu: VCpu, now: int) -> None:
        super().remove(vcpu, now)
        account = self._accounts.pop(vcpu)
        self._count_warp(-(account.warp > 0))
        if account.rewarp is not None:
            account.rewarp.cancel()

    def gain(self, core: int, now: int) -> None:
        super().gain(core, now)
        self._svt[core] = self._since[core] = self._until[core] = self._probe[core] = 0
        self._actual[core] = RunQueue()

    def lose(self, core: int, now: int) -> None:
        super().lose(core, now)
        del self._svt[core], self._since[core], self._until[core], self._probe[core], self._actual[core]

    def close(self) -> None:
        for account in self._accounts.values():
            if account.rewarp is not None:
                account.rewarp.cancel()

    # -- queues

    def key(self, vcpu: VCpu) -> int:
        return self._accounts[vcpu].evt

    def move(self, vcpu: VCpu, home: int) -> None:
        """Who moves keeps its lead on the SVT."""
        old = self.home[vcpu]
        if self._warps:
            self._actual[old].remove(vcpu)
        super().move(vcpu, home)
        account = self._accounts[vcpu]
        account.avt = self._svt[home] + max(0, account.avt - self._svt[old])

    def push(self, vcpu: VCpu, key: int, *, front: bool = False) -> None:
        super().push(vcpu, key, front=front)
        if self._warps:
            self._actual[self.home[vcpu]].push(vcpu, self._accounts[vcpu].avt)

    def unqueue(self, vcpu: VCpu) -> bool:
        if self._warps:
            self._actual[self.home[vcpu]].remove(vcpu)
        return super().unqueue(vcpu)

    def take(self, core: int) -> VCpu | None:
        vcpu = super().take(core)
        if vcpu is not None and self._warps:
            self._actual[core].remove(vcpu)
        return vcpu

    def _even_out(self, core: int) -> None:
        """Look at one other queue: take one over if it is longer by two."""
        cores = self.pool.cores
        at = self._probe[core] + 1
        if at >= len(cores):
            at = 0
        self._probe[core] = at
        other = self.queues[cores[at]]
        if len(other) > len(self.queues[core]) + 1:
            found = other.first(core)
            if found is not None:
                self.unqueue(found[2])
                self.move(found[2], core)
                self.push(found[2], self.key(found[2]))

    # -- virtual time

    def _units(self, account: Account, ns: int) -> int:
        """The virtual time that running on for `ns` costs."""
        owed = ns - account.paid
        return -(-owed // self._mcu) * account.advance if owed > 0 else 0

    def _raise_svt(self, core: int, avt: int) -> None:
        """`avt` is that of who runs there."""
        head = (self._actual if self._warps else self.queues)[core].first(core)
        if head is not None and head[0] < avt:
            avt = head[0]
        if avt > self._svt[core]:
            self._svt[core] = avt

    def ran(self, vcpu: VCpu, ns: int, now: int) -> None:
        account = self._accounts[vcpu]
        owed = ns - account.paid
        if owed > 0:
            units = -(-owed // self._mcu)
            account.avt += units * account.advance
            owed -= units * self._mcu
        account.paid = -owed
        account.left = now
        core = vcpu.core.index
        if core in self._since:
            self._since[core] = now
            self._raise_svt(core, account.avt)
        if account.warped and account.limit:
            account.budget -= ns
            if account.budget <= 0:
                self._end_warp(vcpu, account, now)

    def _end_warp(self, vcpu: VCpu, account: Account, now: int) -> None:
        account.budget = account.limit
        if account.unwarp:
            account.warped = False
            account.rewarp = self.pool.at(now + account.unwarp, self._warp_again, vcpu)

    def _warp_again(self, vcpu: VCpu) -> None:
        account = self._accounts[vcpu]
        account.rewarp = None
        account.warped = True
        if self.unqueue(vcpu):
            self._waking = True
            self.push(vcpu, self.key(vcpu))
            self.contend(vcpu, self.home[vcpu], self.pool.now())
            self._waking = False

    # -- running

    def wake(self, vcpu: VCpu, now: int) -> None:
        account, home = self._accounts[vcpu], self.home[vcpu]
        running = self.pool.running(home)
        if running is not None:
            beside = self._accounts[running]
            self._raise_svt(home, beside.avt + self._units(beside, now - self._since[home]))
        if account.avt < self._svt[home]:
            account.avt = self._svt[home]
        self._waking = True
        self.enter(vcpu, now)
        self._waking = False

    def contend(self, vcpu: VCpu, core: int, now: int) -> None:
        running = self.pool.running(core)
        if running is None:
            self.pool.poke(core, now)
            return
        account = self._accounts[running]
        ahead = self._accounts[vcpu].evt - account.evt - self._units(account, now - self._since[core])
        end = now + ahead // account.advance * self._mcu + self._allowance
        if ahead < 0 and (self._waking or end < now):
            end = now
        if end < self._until[core]:
            self._until[core] = end
            self.pool.poke(core, end)

    def give_way(self, vcpu: VCpu, now: int) -> bool:
        core = vcpu.core.index
        if not self.waiting >> core & 1:
            return False
        self._accounts[vcpu].yielded = True
        self._until[core] = now
        return True

    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        chosen = self._stay(core, now, current)
        if chosen is None:
            chosen = self.take(core) or self.steal(core)
            if chosen is None:
                return None
        account = self._accounts[chosen]
        self._since[core] = now
        if chosen is current and now < self._until[core]:
            return chosen, min(self._until[core] - now, TICK)
        self._raise_svt(core, account.avt)
        turn = TICK
        head = self.queues[core].first(core)
        if head is not None:
            turn = max(0, head[0] - account.evt) // account.advance * self._mcu + self._allowance
        if account.warped and account.limit:
            if account.unwarp:
                spared = max(0, now - account.left) * account.limit // account.unwarp
                account.budget = min(account.limit, account.budget + spared)
            turn = min(turn, account.budget)
        self._until[core] = now + turn
        return chosen, min(turn, TICK)

    def _stay(self, core: int, now: int, current: VCpu | None) -> VCpu | None:
        """Who ran here, or who takes its place by right; None if they have left."""
        if current is None:
            return None
        if not current.hard_affinity >> core & 1:
            self.enter(current, now)
            return None
        if self.better_place(core, current, now):
            return None
        if now < self._until[core]:
            return current
        self._even_out(core)
        account = self._accounts[current]
        yielded, account.yielded = account.yielded, False
        head = self.queues[core].first(core)
        if head is None or (head[0] > account.evt and not yielded):
            return current
        chosen = self.take(core)
        self.enter(current, now)
        return chosen
