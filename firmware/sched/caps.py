"""Caps: how much of a logical CPU a domain may use at most, as a budget of each period.

A vCPU reserves a part of its domain's budget before it runs, so that any number of them together keep to it.
What one overruns is owed by the next period; what a period leaves unused is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from firmware.domain.vcpu import VCpu
from firmware.sched.policy import MILLISECOND, Pool

if TYPE_CHECKING:
    from machine.clock import Event

PER_CENT: Final = 100
LEAST_QUOTA: Final = 100_000
"""What a vCPU reserves at least, if there is so much left; in ns."""
NOTHING: Final = 20_000
"""So little left, in ns, is kept for the next period: it is not worth a switch."""
NOTHING_OF: Final = 64
"""Nor is this part of a small budget."""


class Budget:
    """One domain's: ns of each period, what is left of this one, when the next begins, who waits for it."""

    __slots__ = ("left", "next", "nothing", "parked", "timer", "total", "vcpus")

    def __init__(self) -> None:
        self.total = self.left = self.next = self.nothing = 0
        self.vcpus = 1
        self.parked: dict[VCpu, None] = {}
        self.timer: Event | None = None

    def resize(self, total: int) -> None:
        """Another budget for each period."""
        self.total = total
        self.nothing = min(NOTHING, total // NOTHING_OF)
        self.left = min(self.left, total)


class Caps:
    """The budgets of a policy's capped domains. `unpark` is told of each vCPU that may run again."""

    def __init__(self, pool: Pool, unpark: Callable[[VCpu, int], None]) -> None:
        self._pool = pool
        self._period = MILLISECOND
        self._unpark = unpark
        self._budgets: dict[int, Budget] = {}
        self._reserved: dict[VCpu, int] = {}

    def set(self, domain: int, percent: int, vcpus: int, now: int) -> None:
        """A domain's cap in parts of one logical CPU (100: all of one); 0 takes it away."""
        budget = self._budgets.get(domain)
        if percent:
            if budget is None:
                budget = self._budgets[domain] = Budget()
            budget.resize(percent * self._period // PER_CENT)
            budget.vcpus = max(vcpus, 1)
        elif budget is not None:
            del self._budgets[domain]
            for vcpu in [vcpu for vcpu in self._reserved if vcpu.domain.id == domain]:
                del self._reserved[vcpu]
            self._release(budget, now)

    def set_period(self, period: int, now: int) -> None:
        """Another length of every period, from now on."""
        for budget in self._budgets.values():
            budget.resize(budget.total * period // self._period)
            budget.next = min(budget.next, now + period)
            if budget.timer is not None:
                budget.timer.cancel()
                budget.timer = self._pool.at(budget.next, self._replenished, budget)
        self._period = period

    def close(self) -> None:
        """No more timers."""
        for budget in self._budgets.values():
            if budget.timer is not None:
                budget.timer.cancel()

    def __bool__(self) -> bool:
        return bool(self._budgets)

    def reserve(self, vcpu: VCpu, now: int) -> int | None:
        """For how many ns a vCPU may run now: None without a cap, 0 when its domain has used it up."""
        budget = self._budget_of(vcpu, now)
        if budget is None:
            return None
        left = budget.left
        if left <= budget.nothing:
            return 0
        quota = min(left, max(budget.total // budget.vcpus, LEAST_QUOTA))
        budget.left = left - quota
        self._reserved[vcpu] = quota
        return quota

    def ran(self, vcpu: VCpu, ns: int) -> None:
        """A vCPU has run; what it reserved and did not use is its domain's again. What it ran before there
        was a cap does not count.
        """
        reserved = self._reserved.pop(vcpu, None)
        budget = self._budgets.get(vcpu.domain.id)
        if reserved is not None and budget is not None:
            budget.left += reserved - ns
            if budget.parked and budget.left > budget.nothing:
                self._release(budget, self._pool.now())

    def park(self, vcpu: VCpu, now: int) -> bool:
        """Have a vCPU wait if its domain's budget is used up; `unpark` ends that."""
        budget = self._budget_of(vcpu, now)
        if budget is None or budget.left > budget.nothing:
            return False
        budget.parked[vcpu] = None
        if budget.timer is None:
            budget.timer = self._pool.at(budget.next, self._replenished, budget)
        return True

    def forget(self, vcpu: VCpu) -> None:
        """A vCPU sleeps or leaves: it waits for nothing."""
        budget = self._budgets.get(vcpu.domain.id)
        reserved = self._reserved.pop(vcpu, 0)
        if budget is not None:
            budget.left += reserved
            budget.parked.pop(vcpu, None)
            if not budget.parked and budget.timer is not None:
                budget.timer.cancel()
                budget.timer = None

    def _budget_of(self, vcpu: VCpu, now: int) -> Budget | None:
        """Its domain's budget in this period. What the vCPU reserved for a turn that did not come to be is in
        it again.
        """
        budget = self._budgets.get(vcpu.domain.id)
        if budget is not None:
            budget.left += self._reserved.pop(vcpu, 0)
            if now >= budget.next:
                self._replenish(budget, now)
        return budget

    def _replenish(self, budget: Budget, now: int) -> None:
        if not budget.next:
            budget.next = now
        periods = (now - budget.next) // self._period + 1
        budget.left = min(budget.left + periods * budget.total, budget.total + budget.nothing)
        budget.next += periods * self._period

    def _replenished(self, budget: Budget) -> None:
        budget.timer = None
        now = self._pool.now()
        if now >= budget.next:
            self._replenish(budget, now)
        if budget.left > budget.nothing:
            self._release(budget, now)
        elif budget.parked:
            budget.timer = self._pool.at(budget.next, self._replenished, budget)

    def _release(self, budget: Budget, now: int) -> None:
        if budget.timer is not None:
            budget.timer.cancel()
            budget.timer = None
        parked = list(budget.parked)
        budget.parked.clear()
        for vcpu in parked:
            self._unpark(vcpu, now)
