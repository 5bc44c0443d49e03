"""Credit2: fair shares with short turns and shared run queues (sched/credit2.c of Xen 4.17, in our own way).

Everybody burns credit as they run, the heavier the slower; who has most credit runs next. When the first of
a queue has none left, everyone in that queue gets some more, up to a limit. Queues belong to groups of
logical CPUs; now and then a group with more load per logical CPU than another sends a vCPU there, and a
logical CPU that would idle takes one from any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from firmware.domain.vcpu import VCpu
from firmware.sched.caps import Caps
from firmware.sched.groups import KINDS, Group, Unit, group_key
from firmware.sched.parameters import Parameter, Value
from firmware.sched.policy import MICROSECOND, MILLISECOND, Policy, Pool, policy

CREDIT_INIT: Final = 10 * MILLISECOND
"""What a reset gives: CSCHED2_CREDIT_INIT."""
MOST_TURN: Final = CREDIT_INIT
LEAST_TURN: Final = 500 * MICROSECOND
"""CSCHED2_MAX_TIMER and CSCHED2_MIN_TIMER."""
MOST_CREDIT: Final = CREDIT_INIT + LEAST_TURN
"""What nobody has more of: with CSCHED2_CARRYOVER_MAX."""
BALANCE_PERIOD: Final = 10 * MILLISECOND
"""How often a group compares its load with the others'."""
LOOKED_AT: Final = 16
"""How many of those that wait are thought of for another group."""


@policy
class Credit2(Policy):
    """Weights and caps; queues of a core, a socket or everything."""

    name = "credit2"
    SETTINGS = (
        Parameter("ratelimit_us", 1000, "the least a vCPU runs; 0 for no limit", "us", 0, 500_000),
        Parameter("runqueue", "socket", "which logical CPUs share a run queue", choices=KINDS),
        Parameter("migrate_resist_us", 500, "credit that a move within a run queue must be worth", "us", 0,
                  30_000),
        Parameter("yield_bias_us", 1000, "credit that a yield is worth", "us", 0, 30_000),
        Parameter("cap_period_ms", 10, "how often budgets of caps are renewed", "ms", 1, 1000),
        Parameter("load_window_ms", 1000, "over how long a run queue's load is averaged", "ms", 1, 10_000),
    )
    SHARES = (
        Parameter("weight", 256, "share of the machine, relative to others", "", 1, 65_535),
        Parameter("cap", 0, "the most it may use; 100 is one CPU, 0 no limit", "%", 0, 65_535),
    )

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        super().__init__(pool, settings)
        self._units: dict[VCpu, Unit] = {}
        self._groups: dict[int, Group] = {}
        self._group_of: dict[int, Group] = {}
        self._waiting = 0
        """Logical CPUs of groups in whose queue somebody waits: a bit mask."""
        self._meant: dict[int, Unit] = {}
        """By logical CPU that was idle and has been poked: who is to run there, and is in no queue."""
        self._placed = dict.fromkeys(pool.cores, 0)
        """By logical CPU: how many vCPUs were placed there when they came."""
        self._turn: dict[int, tuple[Unit, int]] = {}
        """By logical CPU: who runs, and since when."""
        self._told = dict.fromkeys(range(pool.placement.cpus), 0)
        """By logical CPU: up to when burning has been counted."""
        self._caps = Caps(pool, self._unparked)
        self._kind = ""
        self.tuned(0)

    # -- parameters

    def tuned(self, now: int) -> None:
        get = self.settings
        self._limit = int(get["ratelimit_us"]) * MICROSECOND
        self._least = max(self._limit, LEAST_TURN)
        self._resist = int(get["migrate_resist_us"]) * MICROSECOND
        self._bias = int(get["yield_bias_us"]) * MICROSECOND
        self._window = int(get["load_window_ms"]) * MILLISECOND
        self._caps.set_period(int(get["cap_period_ms"]) * MILLISECOND, now)
        if self._kind != get["runqueue"]:
            self._kind = str(get["runqueue"])
            self._regroup(now)

    def share_changed(self, vcpus: Sequence[VCpu], now: int) -> None:
        for vcpu in vcpus:
            unit = self._units.get(vcpu)
            if unit is not None:
                group = unit.group
                group.part(unit)
                unit.weight = int(self.share_of(vcpu)["weight"])
                group.join(unit)
        if vcpus:
            domain = vcpus[0].domain
            self._caps.set(domain.id, int(self.domain_share(domain.id)["cap"]), len(domain.vcpus), now)
            for vcpu in domain.vcpus:
                if vcpu.scheduled and vcpu in self._units:
                    self.pool.poke(vcpu.core.index, now)

    def forget_domain(self, domain: int) -> None:
        super().forget_domain(domain)
        self._caps.set(domain, 0, 0, 0)

    def close(self) -> None:
        self._caps.close()

    # -- vCPUs and logical CPUs

    def insert(self, vcpu: VCpu, now: int) -> int:
        core = self._lightest(vcpu)
        unit = self._units[vcpu] = Unit(vcpu, int(self.share_of(vcpu)["weight"]), self._group_of[core], core)
        unit.group.join(unit)
        self._placed[core] += 1
        self.share_changed([vcpu], now)
        return core

    def _lightest(self, vcpu: VCpu) -> int:
        """A logical CPU of the group with the least weight for each of its logical CPUs, there the one where
        fewest have been placed.
        """
        load = {core: (group.total // len(group.cores) << 32) + self._placed[core]
                for core, group in self._group_of.items()}
        return self.pool.placement.initial(vcpu, load, self.pool.mask)

    def remove(self, vcpu: VCpu, now: int) -> None:
        unit = self._units.pop(vcpu)
        unit.group.part(unit)
        if unit.placed in self._placed:
            self._placed[unit.placed] -= 1

    def gain(self, core: int, now: int) -> None:
        self._placed[core] = 0
        self._join(core)

    def _join(self, core: int) -> None:
        key = group_key(self.pool.placement, self._kind, core)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group()
        group.add_core(core)
        self._group_of[core] = group
        if group.queue:
            self._waiting |= group.mask

    def lose(self, core: int, now: int) -> None:
        group, meant = self._group_of.pop(core), self._meant.get(core)
        group.remove_core(core)
        del self._placed[core]
        self._turn.pop(core, None)
        self._waiting &= ~(1 << core)
        if not group.cores:
            del self._groups[group_key(self.pool.placement, self._kind, core)]
        if meant is not None:
            self._unqueue(meant)
        for unit in list(group.units):
            if not unit.vcpu.hard_affinity & group.mask:
                queued = self._unqueue(unit)
                self._move(unit, self._group_of[self._lightest(unit.vcpu)])
                if queued:
                    self._place(unit, now)
        if meant is not None:
            self._place(meant, now)

    def _regroup(self, now: int) -> None:
        """Logical CPUs share queues in another way from now on."""
        queued = [unit for unit in self._units.values() if self._unqueue(unit)]
        self._groups, self._group_of = {}, {}
        for core in self.pool.cores:
            self._join(core)
        for unit in self._units.values():
            core = unit.core if unit.core in self._group_of else self._lightest(unit.vcpu)
            self._move(unit, self._group_of[core])
        for unit in queued:
            self._place(unit, now)

    def _move(self, unit: Unit, group: Group) -> None:
        """Into another group; it is in no queue. It takes its credit along."""
        old = unit.group
        credit = min(old.given - unit.spent, MOST_CREDIT)
        old.part(unit)
        group.join(unit)
        unit.spent = group.given - credit

    # -- queues

    def _push(self, unit: Unit) -> None:
        group = unit.group
        group.queue.push(unit.vcpu, unit.spent)
        self._waiting |= group.mask

    def _unqueue(self, unit: Unit) -> bool:
        group = unit.group
        if unit.meant is not None:
            del self._meant[unit.meant]
            unit.meant = None
            return True
        if not group.queue.remove(unit.vcpu):
            return False
        if not group.queue:
            self._waiting &= ~group.mask
        return True

    def _take(self, group: Group, core: int) -> Unit | None:
        vcpu = group.queue.pop(core)
        if not group.queue:
            self._waiting &= ~group.mask
        return None if vcpu is None else self._units[vcpu]

    def _place(self, unit: Unit, now: int) -> None:
        """Queue a vCPU where it is best off: for an idle logical CPU, else in its group."""
        pool, vcpu = self.pool, unit.vcpu
        idle = pool.idle
        if idle:
            target = pool.placement.idle_for(vcpu, unit.core, idle)
            if target is not None:
                self._send(unit, target, now)
                return
        if not vcpu.hard_affinity & unit.group.mask:
            self._move(unit, self._group_of[self._lightest(vcpu)])
        self._push(unit)
        self._tickle(unit, now)

    def _send(self, unit: Unit, target: int, now: int) -> None:
        group = self._group_of[target]
        if group is not unit.group:
            self._move(unit, group)
        if target in self._meant:
            self._push(unit)
        else:
            self._meant[target] = unit
            unit.meant = target
        self.pool.poke(target, now)

    def _tickle(self, unit: Unit, now: int) -> None:
        """Poke the logical CPU of the group whose vCPU has least credit, if that is less than this one's."""
        group, allowed = unit.group, unit.vcpu.hard_affinity
        most, found = unit.spent, -1
        for core in group.cores:
            if not allowed >> core & 1:
                continue
            running = self.pool.running(core)
            if running is None:
                if core in self._meant:
                    continue
                return
            other = self._units[running]
            spent = other.spent + (now - self._told[core]) * group.heaviest // other.weight
            if core != unit.core:
                spent -= self._resist
            if spent > most:
                most, found = spent, core
        if found >= 0:
            turn = self._turn.get(found)
            self.pool.poke(found, now if turn is None else max(now, turn[1] + self._limit))

    def affinity_changed(self, vcpu: VCpu, now: int) -> None:
        unit = self._units[vcpu]
        if self._unqueue(unit):
            self._place(unit, now)

    # -- running

    def wake(self, vcpu: VCpu, now: int) -> None:
        unit = self._units[vcpu]
        group = unit.group
        group.average(now, self._window)
        group.runnable += unit.weight
        unit.runnable, unit.yields = True, False
        unit.spent = max(unit.spent, group.given - MOST_CREDIT)
        if not self._caps or not self._caps.park(vcpu, now):
            self._place(unit, now)

    def _unparked(self, vcpu: VCpu, now: int) -> None:
        self._place(self._units[vcpu], now)

    def sleep(self, vcpu: VCpu, now: int) -> None:
        unit = self._units[vcpu]
        group = unit.group
        group.average(now, self._window)
        group.runnable -= unit.weight
        unit.runnable = False
        self._caps.forget(vcpu)
        self._unqueue(unit)

    def give_way(self, vcpu: VCpu, now: int) -> bool:
        unit = self._units[vcpu]
        if unit.group.queue.first(unit.core) is None:
            return False
        unit.yields = True
        return True

    def ran(self, vcpu: VCpu, ns: int, now: int) -> None:
        unit = self._units[vcpu]
        group = unit.group
        self._told[unit.core] = now
        unit.spent = max(unit.spent + ns * group.heaviest // unit.weight, group.given - MOST_CREDIT)
        if self._caps:
            self._caps.ran(vcpu, ns)

    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        group = self._group_of[core]
        if now >= group.balanced:
            group.balanced = now + BALANCE_PERIOD
            if len(self._groups) > 1:
                self._balance(group, now)
        chosen = self._meant.pop(core, None)
        if chosen is not None:
            chosen.meant = None
        if current is None:
            self._turn.pop(core, None)
        else:
            chosen = self._after(core, now, self._units[current])
        while True:
            if chosen is None and group.queue:
                chosen = self._take(group, core)
            if chosen is None:
                chosen = self._steal(core)
                if chosen is None:
                    return None
            granted = self._granted(core, now, group, chosen)
            if granted:
                return chosen.vcpu, granted
            chosen = None

    def _after(self, core: int, now: int, unit: Unit) -> Unit | None:
        """Who comes after the one that ran, which is queued or waits for its cap then; or it stays. None:
        the first of the queue, if there is one.
        """
        vcpu, group = unit.vcpu, unit.group
        yields, unit.yields = unit.yields, False
        if self._caps and self._caps.park(vcpu, now):
            return None
        if not vcpu.hard_affinity >> core & 1:
            self._place(unit, now)
            return None
        if not yields and now - self._turn[core][1] < self._limit:
            return unit
        idle = self.pool.idle & ~(1 << core)
        if idle:
            target = self.pool.placement.better(vcpu, core, idle)
            if target is None and group.queue:
                target = self.pool.placement.idle_for(vcpu, core, idle)
            if target is not None:
                self._send(unit, target, now)
                return None
        head = group.queue.first(core) if group.queue else None
        if head is None:
            return unit
        mine = unit.spent + self._bias if yields else unit.spent
        theirs = head[0] if self._units[head[2]].core == core else head[0] + self._resist
        if theirs >= mine:
            return unit
        chosen = self._take(group, core)
        self._push(unit)
        return chosen

    def _granted(self, core: int, now: int, group: Group, unit: Unit) -> int:
        """For how long it may run; 0 when its cap is used up, and it waits for the next period then."""
        credit = group.given - unit.spent
        if credit <= 0:
            resets = -credit // CREDIT_INIT + 1
            group.given += resets * CREDIT_INIT
            credit += resets * CREDIT_INIT
        head = group.queue.first(core) if group.queue else None
        if head is not None:
            credit = min(credit, head[0] - unit.spent)
        granted = min(max(credit * unit.weight // group.heaviest, self._least), MOST_TURN)
        if self._caps:
            quota = self._caps.reserve(unit.vcpu, now)
            if quota is not None:
                if not quota:
                    self._caps.park(unit.vcpu, now)
                    return 0
                granted = min(granted, quota)
        unit.core = core
        self._told[core] = now
        turn = self._turn.get(core)
        if turn is None or turn[0] is not unit:
            self._turn[core] = unit, now
        elif head is not None and now < turn[1] + self._limit:
            return min(granted, turn[1] + self._limit - now)
        return granted

    # -- other groups

    def _steal(self, core: int) -> Unit | None:
        others = self._waiting & ~self._group_of[core].mask
        if not others:
            return None
        vcpu = self.pool.placement.steal(core, others, self._stolen, self._suits)
        return None if vcpu is None else self._units[vcpu]

    def _suits(self, victim: int, thief: int) -> bool:
        return self._group_of[victim].queue.first(thief, soft=True) is not None

    def _stolen(self, victim: int, thief: int) -> VCpu | None:
        group = self._group_of[victim]
        queue = group.queue
        found = queue.first(thief, soft=True) or queue.first(thief)
        if found is None:
            return None
        unit = self._units[found[2]]
        self._unqueue(unit)
        self._move(unit, self._group_of[thief])
        return unit.vcpu

    def _who_may_go(self, group: Group, other: Group) -> list[Unit]:
        return [self._units[vcpu] for vcpu in group.queue.some(LOOKED_AT) if vcpu.hard_affinity & other.mask]

    def _balance(self, group: Group, now: int) -> None:
        """Send somebody who waits to, or swap with, the group whose load differs most, if that brings the
        loads for each logical CPU nearer to each other, as they are on average and now.
        """
        window, mine = self._window, len(group.cores)
        load = group.average(now, window)
        other = max((each for each in self._groups.values() if each is not group),
                    key=lambda each: abs(each.average(now, window) * mine - load * len(each.cores)))
        theirs = len(other.cores)
        difference = load * theirs - other.load * mine
        if difference < 0:
            group, other, mine, theirs, difference = other, group, theirs, mine, -difference
        present = group.runnable * theirs - other.runnable * mine
        if present <= 0:
            return
        going, coming = self._who_may_go(group, other), self._who_may_go(other, group)
        best, exchange = present, None
        for out in going:
            for back in (None, *coming):
                weight = out.weight - (back.weight if back else 0)
                left = abs(present - weight * (mine + theirs))
                if left < best:
                    best, exchange = left, (out, back)
        if exchange is not None:
            out, back = exchange
            self._unqueue(out)
            self._move(out, other)
            if back is not None:
                self._unqueue(back)
                self._move(back, group)
                self._place(back, now)
            self._place(out, now)
