"""A run queue: vCPUs that wait, in the order of their keys, and who of them may run where.

vCPUs of the same affinity share a lane, so that finding the first one a logical CPU may run is no search
among those that it may not.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Final

from firmware.domain.vcpu import ANY_CPU, VCpu

SPARE_LANES: Final = 64
"""Empty lanes are kept, for the next vCPU of that affinity, until there are so many."""
SPARE_ENTRIES: Final = 16
"""A lane is cleaned when it holds more left entries than living ones and these."""

Entry = tuple[int, int, VCpu]
"""Key, order of arrival, who."""


class Lane:
    """The queue of those who share one hard and one soft affinity. Whoever leaves stays in the heap until
    it comes up.
    """

    __slots__ = ("hard", "heap", "living", "soft")

    def __init__(self, hard: int, soft: int) -> None:
        self.hard = hard
        self.soft = soft
        self.heap: list[Entry] = []
        self.living = 0


class RunQueue:
    """vCPUs by ascending key, and among equal ones in the order in which they came. Every operation costs
    the logarithm of the length, times the affinities there are among them.
    """

    __slots__ = ("_entries", "_lanes", "_order", "_queued")

    def __init__(self) -> None:
        self._entries: dict[VCpu, Entry] = {}
        self._lanes: dict[VCpu, Lane] = {}
        self._order: list[Lane] = []
        self._queued = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, vcpu: VCpu) -> bool:
        return vcpu in self._entries

    def members(self) -> list[VCpu]:
        """All who wait, in the order of the queue."""
        return [entry[2] for entry in sorted(self._entries.values())]

    def some(self, limit: int) -> list[VCpu]:
        """Up to so many of those who wait, in no particular order, but always the same."""
        return list(islice(self._entries, limit))

    def push(self, vcpu: VCpu, key: int, *, front: bool = False) -> None:
        """Queue a vCPU behind its equals, or (a turn cut short) before them. It is not queued yet."""
        self._queued += 1
        entry = self._entries[vcpu] = (key, -self._queued if front else self._queued, vcpu)
        lane = self._lanes[vcpu] = self._lane(vcpu.hard_affinity, vcpu.soft_affinity)
        lane.living += 1
        heappush(lane.heap, entry)

    def remove(self, vcpu: VCpu) -> bool:
        """Take a vCPU out; False when it was not there."""
        if self._entries.pop(vcpu, None) is None:
            return False
        lane = self._lanes.pop(vcpu)
        lane.living -= 1
        self._clean(lane)
        return True

    def rekey(self, key: Callable[[VCpu], int]) -> None:
        """Everybody has another key; among equals they keep their places by arrival."""
        entries = {vcpu: (key(vcpu), order, vcpu) for vcpu, (_, order, _) in self._entries.items()}
        self._entries = entries
        for lane in self._order:
            lane.heap = []
        lanes = self._lanes
        for vcpu, entry in entries.items():
            lanes[vcpu].heap.append(entry)
        for lane in self._order:
            heapify(lane.heap)

    def first(self, cpu: int, *, soft: bool = False) -> Entry | None:
        """Key, arrival and vCPU of the first that may run on a logical CPU; with `soft`, of those that had
        better run there too.
        """
        best: Entry | None = None
        for lane in self._order:
            if lane.living and (lane.hard & lane.soft if soft else lane.hard) >> cpu & 1:
                head = self._head(lane)
                if best is None or head < best:
                    best = head
        return best

    def pop(self, cpu: int) -> VCpu | None:
        """Take out the first that may run on a logical CPU."""
        best = self.first(cpu)
        if best is None:
            return None
        vcpu = best[2]
        del self._entries[vcpu]
        lane = self._lanes.pop(vcpu)
        lane.living -= 1
        heappop(lane.heap)
        return vcpu

    def _head(self, lane: Lane) -> Entry:
        heap, entries = lane.heap, self._entries
        while True:
            head = heap[0]
            if entries.get(head[2]) is head:
                return head
            heappop(heap)

    def _clean(self, lane: Lane) -> None:
        if len(lane.heap) > 2 * lane.living + SPARE_ENTRIES:
            entries = self._entries
            lane.heap = [entry for entry in lane.heap if entries.get(entry[2]) is entry]
            heapify(lane.heap)

    def _lane(self, hard: int, soft: int) -> Lane:
        for lane in self._order:
            if lane.hard == hard and lane.soft == soft:
                return lane
        if len(self._order) >= SPARE_LANES:
            self._order = [lane for lane in self._order if lane.living]
        lane = Lane(hard, soft)
        if hard == soft == ANY_CPU:
            self._order.insert(0, lane)
        else:
            self._order.append(lane)
        return lane
