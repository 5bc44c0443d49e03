"""Reads on their way through the cache: a frontend's, in parts, and the cache's own from a disk."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from firmware.disk.cache_store import BLOCK, BLOCK_SHIFT, SECTORS_SHIFT
from firmware.disk.client import Client
from machine.disk import SECTOR, DiskRequest, Medium
from machine.memory import MachineMemory

NOWHERE = -1
"""In the place of a frame: this block is not here."""


class Reading:
    """A frontend's read. `left` parts have yet to arrive; then `finish` is called, unless it is `over`: its
    client is gone.
    """

    __slots__ = ("client", "error", "finish", "left", "medium", "over", "request", "reread")

    def __init__(
        self,
        request: DiskRequest,
        client: Client,
        medium: Medium,
        finish: Callable[[Reading], None],
        reread: Callable[[Reading, int, int], None],
    ) -> None:
        self.request = request
        self.client = client
        self.medium = medium
        self.finish = finish
        self.reread = reread
        """Has the disk read some blocks of it without the cache, in the place of a part."""
        self.left = 1
        self.error = 0
        self.over = False

    def arrived(self, error: int = 0) -> None:
        """A part is there, or failed."""
        self.left -= 1
        self.error = self.error or error
        if not self.left and not self.over:
            self.finish(self)

    def copied(self, _: object) -> None:
        """What was cached is there."""
        self.arrived()

    def landed(self, request: DiskRequest) -> None:
        """A part that the disk read straight to its place is there."""
        self.arrived(request.error)


class Fill:
    """The cache reads blocks from `first` on, named `images`, into `frames`, for `client`.

    `waiters` are (reading, first block, block behind the last); the first of them is the one it is made for.
    A `stale` one holds what it held, but a write overtook it: nobody may find it in the cache.
    """

    __slots__ = ("_filled", "client", "first", "frames", "images", "medium", "stale", "waiters")

    def __init__(
        self,
        medium: Medium,
        client: Client,
        first: int,
        images: Sequence[Hashable],
        frames: list[int],
        filled: Callable[[Fill, int], None],
    ) -> None:
        self.medium = medium
        self.client = client
        self.first = first
        self.images = images
        self.frames = frames
        self.stale = False
        self.waiters: list[tuple[Reading, int, int]] = []
        self._filled = filled

    @property
    def end(self) -> int:
        """The block behind the last."""
        return self.first + len(self.frames)

    @property
    def names(self) -> list[tuple[Hashable, int]]:
        """What it reads, by image and number."""
        return [(image, self.first + index) for index, image in enumerate(self.images)]

    def landed(self, request: DiskRequest) -> None:
        """The disk has done it, or failed."""
        self._filled(self, request.error)


def deliver(memory: MachineMemory, request: DiskRequest, first: int, frames: Sequence[int]) -> None:
    """Copy blocks from `first` on, which are in these frames, to where the request wants its sectors."""
    position = request.sector * SECTOR - (first << BLOCK_SHIFT)
    end = len(frames) << BLOCK_SHIFT
    data, write = memory.b, memory.write
    for address, length in request.pieces:
        while length:
            offset = position & BLOCK - 1
            part = length if length <= BLOCK - offset else BLOCK - offset
            if 0 <= position < end:
                mfn = frames[position >> BLOCK_SHIFT]
                if mfn != NOWHERE:
                    source = (mfn << BLOCK_SHIFT) + offset
                    write(address, data[source : source + part])
            address += part
            position += part
            length -= part


def within(request: DiskRequest, first: int, end: int) -> tuple[int, int]:
    """The sectors of a request that are in blocks from `first` to below `end`: (first, how many)."""
    begin = max(request.sector, first << SECTORS_SHIFT)
    return begin, min(request.sector + request.sectors, end << SECTORS_SHIFT) - begin
