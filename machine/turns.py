"""Turns: which core is furthest behind, found without looking at all of them."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush, heapreplace

from .core import Core


class Turns:
    """Cores that wait for a slice, by time and then by index; the one that runs is not among them.

    A core's time only grows, also while it waits (the cost of work done for it), so an entry may be too early
    but never too late: it is put right when it comes to the top.
    """

    __slots__ = ("_cores", "_heap")

    def __init__(self, cores: Sequence[Core]) -> None:
        self._cores = cores
        self._heap: list[tuple[int, int]] = []

    def restart(self) -> None:
        """All cores that are not idle wait."""
        self._heap[:] = [(core.now(), core.index) for core in self._cores if not core.idle]
        heapify(self._heap)

    def add(self, core: Core) -> None:
        """A core that does not wait yet."""
        heappush(self._heap, (core.now(), core.index))

    def first(self) -> tuple[int, int] | None:
        """Time and index of the core that is furthest behind, and of several the first."""
        heap = self._heap
        while heap:
            entry = heap[0]
            now = self._cores[entry[1]].now()
            if now == entry[0]:
                return entry
            heapreplace(heap, (now, entry[1]))
        return None

    def take(self) -> None:
        """What `first` has just returned waits no more."""
        heappop(self._heap)
