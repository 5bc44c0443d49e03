"""The drive's own queue: in order, or as a drive with native command queueing reorders.

Reordering takes the request whose first byte can move soonest. Two requests that share a sector, one of
them a write or discard, keep their order, and one that has waited for PATIENCE goes first. A flush promises
nothing about requests that have not finished, so it may go at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from .model import Head, Model
from .request import DiskRequest, Operation

PATIENCE: Final = 1_000_000_000
"""Virtual ns. Our choice: several times what a queue of random requests takes, so that it seldom decides."""


class DriveQueue:
    """Requests that the drive has and does not work on yet."""

    __slots__ = ("_model", "_waiting", "reorder")

    def __init__(self, model: Model, reorder: bool) -> None:
        self._model = model
        self.reorder = reorder
        self._waiting: deque[DiskRequest] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[DiskRequest]:
        return iter(self._waiting)

    def clear(self) -> None:
        """Forget them."""
        self._waiting.clear()

    def add(self, request: DiskRequest) -> None:
        """At the end."""
        self._waiting.append(request)

    def take(self, head: Head, now: int) -> DiskRequest:
        """The next one to work on; there is one."""
        waiting = self._waiting
        if not self.reorder or len(waiting) == 1 or now - waiting[0].submitted >= PATIENCE:
            return waiting.popleft()
        reach = self._model.reach
        best, best_ns = 0, -1
        for index, request in enumerate(waiting):
            ns = reach(request, head, now)
            if (best_ns < 0 or ns < best_ns) and not self._follows(index):
                best, best_ns = index, ns
        chosen = waiting[best]
        del waiting[best]
        return chosen

    def _follows(self, index: int) -> bool:
        """Whether an earlier request has to go before this one."""
        request = self._waiting[index]
        begin, end = request.sector, request.sector + request.sectors
        reads = request.operation == Operation.READ
        for earlier in range(index):
            other = self._waiting[earlier]
            if reads and other.operation == Operation.READ:
                continue
            if other.sector < end and begin < other.sector + other.sectors:
                return True
        return False
