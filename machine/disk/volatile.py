"""WriteCache: a drive's volatile write cache. What was not flushed when the power fails may be gone.

The host's page cache outlives this process, so a killed process loses less than a real power failure does.
This medium shows what the promise of a flush is worth: sectors stay in memory until a flush, and a power cut
lets an arbitrary part of them reach the medium below.
"""

from __future__ import annotations

import random

from .medium import Medium, Views
from .request import SECTOR

MOST_SECTORS = 1 << 16
"""32 MiB; a cache that is full is written back."""


class WriteCache(Medium):
    """Over another medium, which it closes. After `power_cut` it is closed."""

    __slots__ = ("_below", "_cached")

    def __init__(self, below: Medium) -> None:
        self._below = below
        self._cached: dict[int, bytes] = {}
        self.sectors = below.sectors
        self.read_only = below.read_only

    def read_into(self, sector: int, views: Views) -> None:
        count = sum(view.nbytes for view in views) // SECTOR
        data = bytearray(self._below.read(sector, count))
        for index in range(count):
            cached = self._cached.get(sector + index)
            if cached is not None:
                data[index * SECTOR : (index + 1) * SECTOR] = cached
        at = 0
        for view in views:
            view[:] = data[at : at + view.nbytes]
            at += view.nbytes

    def write_from(self, sector: int, views: Views) -> None:
        data = b"".join(views)
        for index in range(len(data) // SECTOR):
            self._cached[sector + index] = data[index * SECTOR : (index + 1) * SECTOR]
        if len(self._cached) > MOST_SECTORS:
            self._write_back()

    def discard(self, sector: int, sectors: int) -> None:
        for index in [index for index in self._cached if sector <= index < sector + sectors]:
            del self._cached[index]
        self._below.discard(sector, sectors)

    def flush(self) -> None:
        self._write_back()
        self._below.flush()

    def close(self) -> None:
        self._write_back()
        self._below.close()

    def power_cut(self, chance: random.Random) -> None:
        for sector, data in self._cached.items():
            if chance.random() < 0.5:
                self._below.write(sector, data)
        self._cached.clear()
        self._below.power_cut(chance)

    def _write_back(self) -> None:
        for sector, data in self._cached.items():
            self._below.write(sector, data)
        self._cached.clear()
