"""Ousterhout's matrix (1982): rows are time slots, columns logical CPUs; a gang is in one row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from firmware.domain.vcpu import VCpu
from firmware.sched.ganging import Gang

Row = dict[int, VCpu]
"""Who runs in a slot, by logical CPU. A row is never changed, only replaced: one can be kept."""


class Matrix:
    """`rows`, in the order in which they were needed; `seats`: row and column of each vCPU.

    `columns`: logical CPUs in the order in which they are given away.
    """

    def __init__(self, columns: Iterable[int]) -> None:
        self.columns = list(columns)
        self.rows: list[Row] = []
        self.seats: dict[VCpu, tuple[int, int]] = {}
        self._row_of: dict[Gang, int] = {}
        self._members: dict[Gang, list[VCpu]] = {}

    def members(self, gang: Gang) -> list[VCpu]:
        """Those of a gang that have seats."""
        return list(self._members.get(gang, ()))

    def place(self, gang: Gang, members: Sequence[VCpu]) -> bool:
        """Give the members of a gang, as they are from now on, a seat each: in its row if it can be, else in
        the first that has the room, else in a new one. False: no row could hold it; nothing has changed.
        """
        mine = self._row_of.get(gang)
        old = set(self._members.get(gang, ()))
        for at in ([] if mine is None else [mine]) + [at for at in range(len(self.rows) + 1) if at != mine]:
            row = self.rows[at] if at < len(self.rows) else {}
            if len(self.columns) - len(row) + (len(old) if at == mine else 0) < len(members):
                continue
            free = [column for column in self.columns if column not in row or row[column] in old]
            places = match(members, free, row)
            if places is not None:
                self._clear(gang)
                self._members[gang] = list(members)
                self._sit(gang, at, places)
                if mine is not None:
                    self._close_up(mine)
                return True
        return False

    def remove(self, gang: Gang) -> None:
        """The gang goes; the others close up."""
        self._clear(gang)
        at = self._row_of.pop(gang)
        del self._members[gang]
        self._close_up(at)

    def _sit(self, gang: Gang, at: int, places: Row) -> None:
        if at == len(self.rows):
            self.rows.append({})
        self.rows[at] = {**self.rows[at], **places}
        self._row_of[gang] = at
        for column, vcpu in places.items():
            self.seats[vcpu] = at, column

    def _clear(self, gang: Gang) -> None:
        at = self._row_of.get(gang)
        if at is not None:
            members = set(self._members[gang])
            self.rows[at] = {column: vcpu for column, vcpu in self.rows[at].items() if vcpu not in members}
            for vcpu in members:
                del self.seats[vcpu]

    def _close_up(self, roomier: int) -> None:
        """A row has more room: move what the last rows hold into it where it fits, which makes room there in
        turn; drop empty rows.
        """
        pending = {roomier}
        while pending:
            into = min(pending)
            pending.remove(into)
            later = [(at, order, gang) for order, (gang, at) in enumerate(self._row_of.items()) if at > into]
            for at, _, gang in sorted(later, reverse=True) if self.rows[into] else ():
                members, row = self._members[gang], self.rows[into]
                if len(self.columns) - len(row) >= len(members):
                    places = match(members, [column for column in self.columns if column not in row],
                                   self.rows[at])
                    if places is not None:
                        self._clear(gang)
                        self._sit(gang, into, places)
                        pending.add(at)
        if not all(self.rows):
            kept = [at for at, row in enumerate(self.rows) if row]
            new = {at: number for number, at in enumerate(kept)}
            self.rows = [self.rows[at] for at in kept]
            self._row_of = {gang: new[at] for gang, at in self._row_of.items()}
            self.seats = {vcpu: (new[at], column) for vcpu, (at, column) in self.seats.items()}

    @property
    def fragmentation(self) -> float:
        """The part of all places that nobody has; 0 for an empty matrix."""
        places = len(self.rows) * len(self.columns)
        return 1 - sum(map(len, self.rows)) / places if places else 0.0


def match(members: Sequence[VCpu], columns: Sequence[int], now: Mapping[int, VCpu]) -> Row | None:
    """A column for each member that its hard affinity allows, the one it has `now` before others; None when
    there is none (bipartite matching by augmenting paths).
    """
    if len(members) > len(columns):
        return None
    choice: dict[VCpu, list[int]] = {}
    for vcpu in members:
        allowed = [column for column in columns if vcpu.hard_affinity >> column & 1]
        mine = [column for column in allowed if now.get(column) is vcpu]
        choice[vcpu] = mine + [column for column in allowed if column not in mine]
    taken: Row = {}

    def settle(vcpu: VCpu, tried: set[int]) -> bool:
        for column in choice[vcpu]:
            if column not in tried and column not in taken:
                taken[column] = vcpu
                return True
        for column in choice[vcpu]:
            if column not in tried:
                tried.add(column)
                if settle(taken[column], tried):
                    taken[column] = vcpu
                    return True
        return False

    return taken if all(settle(vcpu, set()) for vcpu in members) else None
