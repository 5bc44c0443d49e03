"""FIFO: first come, first served, whoever it is. What everything else is measured against."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from firmware.disk.client import Client
from firmware.disk.policy import DiskPolicy, disk_policy
from firmware.sched.parameters import Value
from machine.disk import Disk, DiskRequest


@disk_policy
class Fifo(DiskPolicy):
    """One queue."""

    name = "fifo"

    def __init__(self, disk: Disk, settings: Mapping[str, Value] | None = None) -> None:
        super().__init__(disk, settings)
        self._queue: deque[tuple[Client, DiskRequest]] = deque()

    def arrive(self, client: Client, request: DiskRequest, now: int) -> None:
        self._queue.append((client, request))

    def choose(self, now: int, in_flight: int) -> DiskRequest | None:
        return self._queue.popleft()[1] if self._queue else None

    def withdraw(self, client: Client) -> list[DiskRequest]:
        gone = [request for owner, request in self._queue if owner is client]
        self._queue = deque(entry for entry in self._queue if entry[0] is not client)
        return gone

    def waiting(self) -> list[tuple[Client, DiskRequest]]:
        return list(self._queue)
