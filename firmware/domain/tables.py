"""The bootstrap page tables of a PV domain: which a mapping needs, and what is written into them.

As Xen's tools make them: four levels for 64-bit guests; three for 32-bit PAE ones, whose last L2 table
always exists because Xen's own mappings go there. Entries are plain; Xen adjusts them when it validates the
tables.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from firmware.memory.pte import ACCESSED, DIRTY, PRESENT, RW, USER

PAGE_SHIFT: Final = 12
ENTRIES: Final = 512
INDEX_BITS: Final = 9
L1_FLAGS: Final = PRESENT | RW | ACCESSED
TABLE_FLAGS: Final = PRESENT | RW | ACCESSED | DIRTY | USER
LEVELS: Final = {64: 4, 32: 3}
LAST_L2: Final = 3
"""The PAE slot whose L2 table holds Xen's mappings."""

Frames = npt.NDArray[np.uint64]
Table = tuple[int, int]
"""Level (0 is L1) and index: the table's addresses all have this value above the bits it resolves."""


@dataclass(frozen=True)
class Mapping:
    """Addresses from `start` to `end` (exclusive) map pseudo-physical frames from `first_pfn` on."""

    start: int
    end: int
    first_pfn: int


class Tables:
    """The tables of one domain: where each is, by pseudo-physical frame."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.levels = LEVELS[width]
        self.pfns: dict[Table, int] = {}

    def index(self, level: int, va: int) -> int:
        """Which table of a level resolves an address; the root resolves all."""
        return 0 if level == self.levels - 1 else va >> PAGE_SHIFT + INDEX_BITS * (level + 1)

    def missing(self, start: int, end: int) -> list[Table]:
        """The tables addresses from `start` to `end` (exclusive) lack: from the root down, by address."""
        wanted = [
            (level, index)
            for level in reversed(range(self.levels))
            for index in range(self.index(level, start), self.index(level, end - 1) + 1)
        ]
        if self.width == 32 and (1, LAST_L2) not in wanted:
            wanted.insert(sum(level >= 1 for level, _ in wanted), (1, LAST_L2))
        return [table for table in wanted if table not in self.pfns]

    def place(self, tables: list[Table], first_pfn: int) -> None:
        """Put tables into consecutive frames."""
        for offset, table in enumerate(tables):
            self.pfns[table] = first_pfn + offset

    @property
    def root_pfn(self) -> int:
        """The frame of the root table."""
        return self.pfns[self.levels - 1, 0]

    def contents(self, frames: Frames, mappings: list[Mapping]) -> dict[int, bytes]:
        """Every table's bytes, by pseudo-physical frame. Tables are mapped read-only, all else writable."""
        tables = {table: np.zeros(ENTRIES, np.uint64) for table in self.pfns}
        own = np.zeros(len(frames), bool)
        own[list(self.pfns.values())] = True
        for mapping in mappings:
            for index in range(self.index(0, mapping.start), self.index(0, mapping.end - 1) + 1):
                self._fill_l1(tables[0, index], index, mapping, frames, own)
        for (level, index), pfn in self.pfns.items():
            if level < self.levels - 1:
                parent = level + 1, self.index(level + 1, index << PAGE_SHIFT + INDEX_BITS * (level + 1))
                flags = PRESENT if parent[0] == 2 and self.width == 32 else TABLE_FLAGS
                tables[parent][index % ENTRIES] = int(frames[pfn]) << PAGE_SHIFT | flags
        return {self.pfns[table]: entries.tobytes() for table, entries in tables.items()}

    @staticmethod
    def _fill_l1(
        entries: Frames, index: int, mapping: Mapping, frames: Frames, own: npt.NDArray[np.bool_]
    ) -> None:
        first_page = index << INDEX_BITS
        low = max(first_page, mapping.start >> PAGE_SHIFT)
        high = min(first_page + ENTRIES, -(-mapping.end >> PAGE_SHIFT))
        pfn = mapping.first_pfn + low - (mapping.start >> PAGE_SHIFT)
        count = high - low
        values = frames[pfn : pfn + count] << np.uint64(PAGE_SHIFT) | np.uint64(L1_FLAGS)
        values[own[pfn : pfn + count]] &= np.uint64(~RW & (1 << 64) - 1)
        entries[low - first_page : high - first_page] = values
