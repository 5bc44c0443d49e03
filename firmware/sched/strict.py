"""Strict gangs: all of a gang run at the same time, or none. Which row of the matrix has its slot is a
function of virtual time alone, so that every logical CPU comes to the same one whatever its own clock says.

A change (of who is in the matrix, or of which rows have anybody who can run) holds from a slot on that no
logical CPU has begun yet, and the rows go on in their order then. Where nobody runs it holds at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from firmware.domain.vcpu import VCpu
from firmware.sched.ganging import Form, Gang, gang_of
from firmware.sched.matrix import Matrix, Row
from firmware.sched.parameters import ParameterError, Value
from firmware.sched.policy import MICROSECOND, MILLISECOND, Pool

if TYPE_CHECKING:
    from machine.clock import Event

LEAD: Final = 250 * MICROSECOND
"""More than one logical CPU may be ahead of another: what is decided now holds after that at the earliest."""
EMPTY: Final[Row] = {}


class Plan:
    """From `start` on, a slot of `length` ns for each of `rows` in turn."""

    __slots__ = ("length", "rows", "start")

    def __init__(self, start: int, length: int, rows: list[Row]) -> None:
        self.start = start
        self.length = length
        self.rows = rows

    def row(self, now: int) -> Row:
        """Who has the slot."""
        return self.rows[(now - self.start) // self.length % len(self.rows)] if self.rows else EMPTY

    def end(self, now: int) -> int:
        """When the slot ends."""
        return now + self.length - (now - self.start) % self.length


class Strict(Form):
    """`matrix`; `fragmented_ns`: time for which CPUs idled in one gang's slots while others waited."""

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        super().__init__(pool, settings)
        self.matrix = Matrix(self._columns())
        self.fragmented_ns = 0
        self._gang: dict[VCpu, Gang] = {}
        self._plans: list[Plan] = []
        """The present one, the one before that for who is behind, and the next."""
        self._timer: Event | None = None
        self._length = self.number("slot_ms") * MILLISECOND
        self._alternate = bool(self.settings["alternate"])

    def _columns(self) -> list[int]:
        topology = self.pool.placement.topology
        return sorted(self.pool.cores, key=lambda core: (topology.position(core)[2], core))

    def tuned(self, now: int) -> None:
        self._length = self.number("slot_ms") * MILLISECOND
        self._alternate = bool(self.settings["alternate"])
        self._plan_anew(now)

    # -- seats

    def _put_in(self, vcpu: VCpu, gang: Gang) -> bool:
        if not self.matrix.place(gang, [*self.matrix.members(gang), vcpu]):
            return False
        self._gang[vcpu] = gang
        return True

    def _take_out(self, vcpu: VCpu) -> None:
        gang = self._gang.pop(vcpu)
        rest = [member for member in self.matrix.members(gang) if member is not vcpu]
        if rest:
            self.matrix.place(gang, rest)
        else:
            self.matrix.remove(gang)

    def _seat(self, vcpus: Sequence[VCpu], now: int) -> None:
        """Seats for those that have none. Who cannot have one beside its siblings is a gang of its own."""
        for vcpu in vcpus:
            if not self._put_in(vcpu, gang_of(vcpu, self.share_of(vcpu))):
                self._put_in(vcpu, (vcpu.domain.id, vcpu.id))
        self._plan_anew(now)

    def insert(self, vcpu: VCpu, now: int) -> int:
        if not self._put_in(vcpu, gang_of(vcpu, self.share_of(vcpu))):
            raise self._refusal(len(self.matrix.members((vcpu.domain.id, None))) + 1)
        return self.matrix.seats[vcpu][1]

    def _refusal(self, vcpus: int) -> ParameterError:
        return ParameterError(f"scheduler 'gang': there are no {vcpus} CPUs on which {vcpus} vCPUs could run "
                              f"side by side among the pool's {len(self.pool.cores)}")

    def remove(self, vcpu: VCpu, now: int) -> None:
        self._take_out(vcpu)
        self._plan_anew(now)

    def gain(self, core: int, now: int) -> None:
        self._seat_all(now)

    def lose(self, core: int, now: int) -> None:
        self._seat_all(now)

    def _seat_all(self, now: int) -> None:
        vcpus = list(self._gang)
        self._gang.clear()
        self.matrix = Matrix(self._columns())
        self._seat(vcpus, now)

    def affinity_changed(self, vcpu: VCpu, now: int) -> None:
        self._seat_anew(vcpu.domain.vcpus, now)

    def _seat_anew(self, vcpus: Sequence[VCpu], now: int) -> None:
        here = [vcpu for vcpu in vcpus if vcpu in self._gang]
        for vcpu in here:
            self._take_out(vcpu)
        self._seat(here, now)

    def admit_share(self, vcpus: Sequence[VCpu], values: Mapping[str, Value]) -> None:
        here = [vcpu for vcpu in vcpus if vcpu in self._gang]
        if values["gang"] and len(here) > len(self.pool.cores) and not self.share_of(here[0])["gang"]:
            raise self._refusal(len(here))

    def share_changed(self, vcpus: Sequence[VCpu], now: int) -> None:
        self._seat_anew(vcpus, now)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # -- slots

    def _plan_at(self, now: int) -> Plan | None:
        for plan in reversed(self._plans):
            if plan.start <= now:
                return plan
        return None

    def _plan_anew(self, now: int) -> None:
        """The rows, or who in them can run, may have changed."""
        rows = self._rows_that_can_run()
        plans = self._plans
        if plans and plans[-1].length == self._length and same(plans[-1].rows, rows):
            return
        if not any(plan.rows for plan in plans) or self._all_idle():
            self._start_over(rows, now)
        else:
            start = 0
            if len(plans) > 1 and plans[-1].start > now + LEAD:
                start = plans.pop().start  # what is to come comes when it was to: change must not put it off
            last = plans[-1]
            if not start:
                start = last.end(max(now, last.start)) + last.length
            plans.append(Plan(start, self._length, self._in_turn(rows, last, start)))
            while len(plans) > 2 and plans[1].start + LEAD < now:
                del plans[0]
        self._set_timer(now)

    def _all_idle(self) -> bool:
        """Nobody runs: on CPUs that are idle, nor on those that are about to decide."""
        pool = self.pool
        return pool.idle == pool.mask or all(pool.running(core) is None for core in pool.cores)

    def _rows_that_can_run(self) -> list[Row]:
        return [row for row in self.matrix.rows if any(not vcpu.pause_flags for vcpu in row.values())]

    def _start_over(self, rows: list[Row], now: int) -> None:
        """Nobody runs: the next row need not wait for its slot."""
        begun = [plan for plan in self._plans if plan.start <= now]
        soon = [plan.start for plan in self._plans if now < plan.start <= now + LEAD]
        start = soon[0] if soon else now + LEAD
        if begun:
            last = begun[-1]
            rows = self._in_turn(rows, last, last.end(now))
        self._plans = [Plan(start, self._length, rows)]

    def _in_turn(self, rows: list[Row], last: Plan, start: int) -> list[Row]:
        """The rows, beginning with the one after that which had the last slot."""
        seats = self.matrix.seats
        before = max((seats[vcpu][0] for vcpu in last.row(start - 1).values() if vcpu in seats), default=-1)
        place = {id(row): at for at, row in enumerate(self.matrix.rows)}
        later = [row for row in rows if place[id(row)] > before]
        return later + rows[:len(rows) - len(later)]

    def _set_timer(self, now: int) -> None:
        """At the beginning of each slot everybody looks; when nobody can run there are none."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        plan = self._plan_at(now)
        later = [other.start for other in self._plans if other.start > now]
        if plan is not None and plan.rows:
            later.append(plan.end(now))
        if later and any(plan.rows for plan in self._plans):
            self._timer = self.pool.at(min(later), self._slot_begins)

    def _slot_begins(self, _: Any) -> None:
        pool, now = self.pool, self.pool.now()
        self._timer = None
        plan = self._plan_at(now)
        row = EMPTY if plan is None else plan.row(now)
        for core in pool.cores:
            if pool.running(core) is not None or core in row or self._alternate:
                pool.poke(core, now)
            elif plan is not None and len(plan.rows) > 1:
                self.fragmented_ns += plan.length
        self._set_timer(now)

    def _row(self, now: int) -> Row:
        plan = self._plan_at(now)
        return EMPTY if plan is None else plan.row(now)

    # -- running

    def wake(self, vcpu: VCpu, now: int) -> None:
        at, column = self.matrix.seats[vcpu]
        seated = self.matrix.rows[at]
        if not self._plans or not any(seated is row for row in self._plans[-1].rows):
            self._plan_anew(now)
        elif self._timer is None:
            self._set_timer(now)
        row = self._row(now)
        if row.get(column) is vcpu or (row and self._alternate and self.pool.idle >> column & 1):
            self.pool.poke(column, now)

    def sleep(self, vcpu: VCpu, now: int) -> None:
        at, _ = self.matrix.seats[vcpu]
        if all(member.pause_flags or member is vcpu for member in self.matrix.rows[at].values()):
            self._plan_anew(now)

    def give_way(self, vcpu: VCpu, now: int) -> bool:
        return False

    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        plan = self._plan_at(now)
        row = EMPTY if plan is None else plan.row(now)
        chosen = row.get(core)
        if chosen is not None and not self._ready(chosen, core, current):
            chosen = None
        if chosen is None and self._alternate and plan is not None:
            chosen = self._other(plan, core, now, current)
        if current is not None and current is not chosen:
            self._let_go(current, core, row, now)
        if plan is None:
            return None
        left = plan.end(now) - now
        if chosen is None:
            if self.pool.idle | 1 << core == self.pool.mask:
                self._nobody_runs(now)
            elif len(plan.rows) > 1:
                self.fragmented_ns += left
            return None
        return chosen, left

    def _other(self, plan: Plan, core: int, now: int, current: VCpu | None) -> VCpu | None:
        """Alternate selection: who sits in this column in the rows to come."""
        count = len(plan.rows)
        at = (now - plan.start) // plan.length
        for step in range(1, count):
            vcpu = plan.rows[(at + step) % count].get(core)
            if vcpu is not None and self._ready(vcpu, core, current):
                return vcpu
        return None

    def _ready(self, vcpu: VCpu, core: int, current: VCpu | None) -> bool:
        """Whether who has a seat can take it: they may have left, or be late from their last one."""
        return (not vcpu.pause_flags and (vcpu is current or not vcpu.scheduled) and vcpu in self._gang
                and bool(vcpu.hard_affinity >> core & 1))

    def _nobody_runs(self, now: int) -> None:
        rows = self._rows_that_can_run()
        if rows and self._plan_at(now + LEAD) is self._plan_at(now):
            self._start_over(rows, now)
            self._set_timer(now)

    def _let_go(self, vcpu: VCpu, core: int, row: Row, now: int) -> None:
        """If its seat is elsewhere since the last slot, that logical CPU has waited for it."""
        seat = self.matrix.seats.get(vcpu)
        if seat is not None and seat[1] != core and row.get(seat[1]) is vcpu:
            self.pool.poke(seat[1], now)


def same(one: list[Row], other: list[Row]) -> bool:
    """Whether the same rows have slots, in whatever order."""
    return len(one) == len(other) and {id(row) for row in one} == {id(row) for row in other}
