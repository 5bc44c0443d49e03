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
        old = self._members.get(gang, ())
        for at in ([] if mine is None else [mine]) + [at for at in range(len(self.rows) + 1) if at != mine]:
            row = self.rows[at] if at < len(self.rows) else {}
            free = [column for column in self.columns if column not in row or row[column] in old]
            places = match(members, free, row)
            if places is not None:
                self._clear(gang)
                if at == len(self.rows):
                    self.rows.append({})
                self.rows[at] = {**self.rows[at], **places}
                self._row_of[gang] = at
                self._members[gang] = list(members)
                self._close_up()
                return True
        return False

    def remove(self, gang: Gang) -> None:
        """The gang goes; the others close up."""
        self._clear(gang)
        del self._row_of[gang], self._members[gang]
        self._close_up()

    def _clear(self, gang: Gang) -> None:
        at = self._row_of.get(gang)
        if at is not None:
            members = self._members[gang]
            self.rows[at] = {column: vcpu for column, vcpu in self.rows[at].items() if vcpu not in members}

    def _close_up(self) -> None:
        """Move what the last rows hold into earlier ones where it fits; drop empty rows."""
        for gang, at in sorted(self._row_of.items(), key=lambda item: -item[1]):
            for earlier in range(at):
                row = self.rows[earlier]
                free = [column for column in self.columns if column not in row]
                places = match(self._members[gang], free, self.rows[at])
                if places is not None:
                    self._clear(gang)
                    self.rows[earlier] = {**row, **places}
                    self._row_of[gang] = earlier
                    break
        kept = [at for at, row in enumerate(self.rows) if row]
        if len(kept) < len(self.rows):
            new = {at: number for number, at in enumerate(kept)}
            self.rows = [self.rows[at] for at in kept]
            self._row_of = {gang: new[at] for gang, at in self._row_of.items()}
        self.seats = {vcpu: (at, column) for at, row in enumerate(self.rows) for column, vcpu in row.items()}

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
