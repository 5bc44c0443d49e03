"""DiskRequest: one transfer between machine memory and an emulated disk."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final

SECTOR: Final = 512
"""Bytes."""


class Operation(IntEnum):
    """What a request asks for."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    """Every write that finished before this was submitted survives, from when this finishes."""
    DISCARD = 3
    """The sectors read as zeros from now on; their space goes back to the host where it can."""


Pieces = tuple[tuple[int, int], ...]
"""(machine address, length in bytes), in order."""


class DiskRequest:
    """`sectors` sectors from `sector` of the emulated disk; 0, 0 for FLUSH. The lengths of `pieces` sum to
    `sectors * SECTOR`; there are none for FLUSH and DISCARD.

    `done(request)` is called once, in virtual time, when `error` (0 or a positive errno: EIO, EROFS,
    EINVAL, ENOSPC) and the times (virtual ns) are set. `owner` is never looked at here, only compared by
    `Disk.abandon`.
    """

    __slots__ = (
        "abandoned", "done", "error", "finished", "operation", "owner", "pieces", "sector", "sectors",
        "started", "submitted",
    )

    def __init__(
        self,
        operation: Operation,
        sector: int,
        sectors: int,
        pieces: Pieces,
        done: Callable[[DiskRequest], None],
        owner: object = None,
    ) -> None:
        self.operation = operation
        self.sector = sector
        self.sectors = sectors
        self.pieces = pieces
        self.done = done
        self.owner = owner
        self.error = 0
        self.abandoned = False
        self.submitted = self.started = self.finished = 0

    @property
    def moved(self) -> int:
        """Bytes between memory and disk. None for FLUSH and DISCARD, however many sectors one names."""
        return self.sectors * SECTOR if self.operation <= Operation.WRITE else 0

    def __repr__(self) -> str:
        return f"<{Operation(self.operation).name} of {self.sectors} sectors at {self.sector}>"
