"""Model: how long a drive takes. Head: what a drive remembers from one request to the next."""

from __future__ import annotations

from typing import Protocol

from .request import DiskRequest, Operation


class Head:
    """The state of a drive, as plain data that only its model gives a meaning.

    `cylinder`, `surface`: where the heads are. `next_sector`, `next_at`: reading goes on by itself with
    this sector from this time (virtual ns); `next_sector` is -1 when it does not. `seeks`: moves between
    cylinders. `lanes`: when each part that works by itself is free again (virtual ns). `worn`: pages
    written since each part last erased a block.
    """

    __slots__ = ("cylinder", "lanes", "next_at", "next_sector", "seeks", "surface", "worn")

    def __init__(self, lanes: int = 0, worn: int = 0) -> None:
        self.cylinder = 0
        self.surface = 0
        self.next_sector = -1
        self.next_at = 0
        self.seeks = 0
        self.lanes = [0] * lanes
        self.worn = [0] * worn


class Model(Protocol):
    """Timing of a drive. Everything it answers depends on the request, the head and the virtual time
    alone.
    """

    @property
    def name(self) -> str:
        """The real drive or part whose parameters these are."""

    @property
    def depth(self) -> int:
        """Requests that the drive holds, those it works on included."""

    @property
    def concurrent(self) -> int:
        """Requests that it works on at once."""

    def head(self) -> Head:
        """The state of a drive at virtual time 0."""

    def service(self, request: DiskRequest, head: Head, now: int) -> int:
        """Nanoseconds from `now`, when work on the request starts, until it is finished. Moves the head."""

    def worst(self, operation: Operation, sectors: int) -> int:
        """Nanoseconds that `service` never exceeds for a request of that size, wherever it lies, when it is
        the only one that the drive works on.
        """

    def reach(self, request: DiskRequest, head: Head, now: int) -> int:
        """Nanoseconds from `now` until the first byte could move. Does not move the head."""
