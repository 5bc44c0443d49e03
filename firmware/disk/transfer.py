"""One request of a frontend on its way through the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from firmware.disk.extents import Extent
from firmware.disk.held import Held
from machine.disk import DiskRequest

SECTOR_SHIFT: Final = 9

Piece = tuple[int, int]
Pieces = tuple[Piece, ...]


class Transfer:
    """Stages of disk requests: those of a stage go together, the next stage when all of them are done. After
    an error no further stage begins. `finished` is called once, unless it is cancelled before.
    """

    __slots__ = (
        "_finished", "_next", "_outstanding", "_stages", "_submit", "cancelled", "error", "held", "ident",
        "operation",
    )

    def __init__(
        self,
        ident: int,
        operation: int,
        held: list[Held],
        submit: Callable[[DiskRequest], None],
        finished: Callable[[Transfer], None],
    ) -> None:
        self.ident = ident
        self.operation = operation
        self.held = held
        """The grants whose frames the disk reads or writes."""
        self.error = 0
        """The first errno the disk gave."""
        self.cancelled = False
        self._stages: list[tuple[DiskRequest, ...]] = []
        self._next = 0
        self._outstanding = 0
        self._submit = submit
        self._finished = finished

    def stage(self, *requests: DiskRequest) -> None:
        """Add a stage; the requests' `done` is this transfer's."""
        self._stages.append(requests)

    @property
    def started(self) -> bool:
        """Whether the first stage has begun."""
        return self._next > 0

    def start(self) -> None:
        """Begin the next stage."""
        requests = self._stages[self._next]
        self._next += 1
        self._outstanding = len(requests)
        for request in requests:
            self._submit(request)

    def cancel(self) -> None:
        """Nothing of it matters any more."""
        self.cancelled = True

    def done(self, request: DiskRequest) -> None:
        """One of its disk requests is done."""
        if self.cancelled:
            return
        self._outstanding -= 1
        if request.error and not self.error:
            self.error = request.error
        if self._outstanding:
            return
        if self.error or self._next == len(self._stages):
            self._finished(self)
        else:
            self.start()


def split(pieces: Pieces, extents: Sequence[Extent]) -> Iterator[tuple[Extent, Pieces]]:
    """The pieces of memory that belong to each extent of the disk."""
    if len(extents) == 1:
        yield extents[0], pieces
        return
    rest = iter(pieces)
    address, length = 0, 0
    for extent in extents:
        wanted = extent.sectors << SECTOR_SHIFT
        mine: list[Piece] = []
        while wanted:
            if not length:
                address, length = next(rest)
            part = min(wanted, length)
            mine.append((address, part))
            address += part
            length -= part
            wanted -= part
        yield extent, tuple(mine)
