"""Parts: a large transfer that goes to the disk in pieces and comes back as one."""

from __future__ import annotations

from machine.disk import SECTOR, DiskRequest
from machine.disk.request import Pieces


class Parts:
    """`requests` of at most `chunk` sectors each, in order. The whole is done with the last of them: its
    error is that of the first part that had one.
    """

    __slots__ = ("_left", "_whole", "requests")

    def __init__(self, whole: DiskRequest, chunk: int) -> None:
        self._whole = whole
        self.requests: list[DiskRequest] = []
        for at in range(0, whole.sectors, chunk):
            count = min(chunk, whole.sectors - at)
            pieces = cut(whole.pieces, at * SECTOR, count * SECTOR)
            self.requests.append(
                DiskRequest(whole.operation, whole.sector + at, count, pieces, self._done, whole.owner)
            )
        self._left = len(self.requests)

    def _done(self, part: DiskRequest) -> None:
        whole = self._whole
        if self._left == len(self.requests):
            whole.submitted, whole.started, whole.error = part.submitted, part.started, 0
        self._left -= 1
        whole.error = whole.error or part.error
        whole.abandoned = whole.abandoned or part.abandoned
        if not self._left:
            whole.finished = part.finished
            whole.done(whole)


def cut(pieces: Pieces, start: int, length: int) -> Pieces:
    """`length` bytes of some pieces of memory, from `start` on."""
    found = []
    for address, size in pieces:
        if start >= size:
            start -= size
            continue
        taken = min(size - start, length)
        if not taken:
            break
        found.append((address + start, taken))
        length -= taken
        start = 0
    return tuple(found)
