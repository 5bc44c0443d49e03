"""A virtual disk as ranges of the real one, in order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Extent(NamedTuple):
    """So many sectors of the real disk from one on."""

    sector: int
    sectors: int


class ExtentMap:
    """The sectors of a virtual disk on a real disk of `capacity` sectors.

    ValueError, in one sentence, for extents that are empty, reach beyond the disk or overlap.
    """

    __slots__ = ("_starts", "extents", "sectors")

    def __init__(self, extents: Sequence[Extent], capacity: int) -> None:
        if not extents:
            raise ValueError("a virtual disk needs at least one extent")
        self.extents = tuple(extents)
        self._starts: list[int] = []
        self.sectors = 0
        for extent in self.extents:
            first, length = extent
            if first < 0 or length <= 0 or first + length > capacity:
                raise ValueError(
                    f"an extent of {length} sectors at sector {first} is not inside the disk's {capacity}"
                )
            self._starts.append(self.sectors)
            self.sectors += length
        ordered = sorted(self.extents)
        for before, after in pairwise(ordered):
            if before.sector + before.sectors > after.sector:
                raise ValueError(f"the extents at sectors {before.sector} and {after.sector} overlap")

    def resolve(self, sector: int, sectors: int) -> list[Extent]:
        """Where `sectors` sectors from `sector` on lie, in order; they must be inside the virtual disk."""
        index = bisect_right(self._starts, sector) - 1
        offset = sector - self._starts[index]
        found = []
        while sectors > 0:
            first, length = self.extents[index]
            part = min(sectors, length - offset)
            found.append(Extent(first + offset, part))
            sectors -= part
            offset = 0
            index += 1
        return found

    def overlaps(self, other: ExtentMap) -> bool:
        """Whether they share a sector of the disk."""
        return any(
            mine.sector < theirs.sector + theirs.sectors and theirs.sector < mine.sector + mine.sectors
            for mine in self.extents
            for theirs in other.extents
        )
