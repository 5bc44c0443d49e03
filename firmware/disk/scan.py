"""ScanQueue: requests in the order in which the arm passes them, one way round (C-SCAN)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from machine.disk import DiskRequest


class ScanQueue:
    """Sorted by first sector; equal ones in the order in which they came. What moves nothing goes at once."""

    __slots__ = ("_rows", "_sequence", "position")

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, DiskRequest]] = []
        self._sequence = 0
        self.position = 0
        """The sector after the last request that was taken."""

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[DiskRequest]:
        return (row[2] for row in self._rows)

    def add(self, request: DiskRequest) -> None:
        """Queue a request."""
        self._sequence += 1
        sector = request.sector if request.sectors else self.position
        insort(self._rows, (sector, self._sequence, request))

    def take(self) -> DiskRequest:
        """The next request on the way up, or, beyond the last, the first. There is one."""
        rows = self._rows
        at = bisect_left(rows, (self.position, 0))
        request = rows.pop(at if at < len(rows) else 0)[2]
        self.passed(request)
        return request

    def passed(self, request: DiskRequest) -> None:
        """The arm goes where this request ends, though it was not taken from here."""
        if request.sectors:
            self.position = request.sector + request.sectors

    def withdraw(self, request: DiskRequest) -> None:
        """Forget one."""
        self._rows = [row for row in self._rows if row[2] is not request]
