"""Medium: what holds a disk's bytes on the host."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

from .request import SECTOR

Views = Sequence[memoryview]
"""Memory in order, each a whole number of bytes; together whole sectors."""


class MediumError(Exception):
    """A medium that cannot be opened, created or closed, in one sentence for the user."""


class Medium(ABC):
    """`sectors` sectors. A host error in a transfer is raised as OSError; callers keep within the medium.

    What `write_from` and `discard` changed survives the death of the process and of the host once `flush` has
    returned. Before that it may be lost, whole or in part, but no other sector is.
    """

    __slots__ = ("read_only", "sectors")

    sectors: int
    read_only: bool

    @abstractmethod
    def read_into(self, sector: int, views: Views) -> None:
        """Fill the views from `sector` on."""

    @abstractmethod
    def write_from(self, sector: int, views: Views) -> None:
        """Write the views' bytes from `sector` on."""

    @abstractmethod
    def flush(self) -> None:
        """What has been written survives."""

    @abstractmethod
    def discard(self, sector: int, sectors: int) -> None:
        """The sectors read as zeros."""

    @abstractmethod
    def close(self) -> None:
        """Flush and let go. Harmless when done before; MediumError when the host could not keep the data."""

    def image(self, sector: int, sectors: int) -> Hashable | None:
        """Names an image that never changes and has all of these sectors, at the same place: two media that
        give the same name for a sector have the same bytes there. None where no such image has them all.
        """
        return None

    def power_cut(self, chance: random.Random) -> None:
        """The emulated drive has lost its power: what was not flushed may be lost, as `chance` has it."""

    def read(self, sector: int, sectors: int) -> bytes:
        """A copy of these sectors."""
        data = bytearray(sectors * SECTOR)
        self.read_into(sector, [memoryview(data)])
        return bytes(data)

    def write(self, sector: int, data: bytes | bytearray | memoryview) -> None:
        """Write whole sectors."""
        self.write_from(sector, [memoryview(data)])
