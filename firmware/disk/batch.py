"""Batch round robin, as the original had it (2004): domains with work take turns at putting a batch of
requests in flight. No weights and no classes.

Its list held block devices' owners with work; a turn took up to 16 requests, until 64 were in flight, and it
began again when fewer than 32 were.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from firmware.disk.client import Client
from firmware.disk.policy import DiskPolicy, disk_policy
from firmware.sched.parameters import Parameter, ParameterError, Value
from machine.disk import Disk, DiskRequest


@disk_policy
class BatchRoundRobin(DiskPolicy):
    """A queue for each domain, and the list of those with work."""

    name = "batch"
    SETTINGS = (
        Parameter("batch", 16, "requests a domain puts in flight in one turn", lowest=1, highest=1 << 16),
        Parameter("most", 64, "requests in flight at which turns stop", lowest=1, highest=1 << 16),
        Parameter("again", 32, "turns go on when fewer are in flight", lowest=1, highest=1 << 16),
    )

    def __init__(self, disk: Disk, settings: Mapping[str, Value] | None = None) -> None:
        super().__init__(disk, settings)
        self.admit_settings(self.settings)
        self._queues: dict[int, deque[tuple[Client, DiskRequest]]] = {}
        self._turns: deque[int] = deque()
        """Domains with work, the next one's turn first."""
        self._taken = 0
        """How many the domain whose turn it is has had in it."""
        self._full = False
        """As many are in flight as may be, and not few enough since."""

    def admit_settings(self, values: Mapping[str, Value]) -> None:
        if int(values["again"]) > int(values["most"]):
            raise ParameterError(f"scheduler {self.name!r}: again ({values['again']}) is at most most "
                                 f"({values['most']})")

    def arrive(self, client: Client, request: DiskRequest, now: int) -> None:
        queue = self._queues.setdefault(client.domain, deque())
        queue.append((client, request))
        if len(queue) == 1:
            self._turns.append(client.domain)

    def choose(self, now: int, in_flight: int) -> DiskRequest | None:
        most = min(self.number("most"), self.disk.depth)
        if in_flight >= most:
            self._full = True
        elif in_flight < min(self.number("again"), most):
            self._full = False
        if self._full or not self._turns:
            return None
        domain = self._turns[0]
        queue = self._queues[domain]
        request = queue.popleft()[1]
        self._taken += 1
        self._full = in_flight + 1 >= most
        if not queue:
            del self._queues[domain]
            self._turns.popleft()
            self._taken = 0
        elif self._taken >= self.number("batch"):
            self._turns.rotate(-1)
            self._taken = 0
        return request

    def withdraw(self, client: Client) -> list[DiskRequest]:
        queue = self._queues.get(client.domain)
        if not queue:
            return []
        gone = [request for owner, request in queue if owner is client]
        left = deque(entry for entry in queue if entry[0] is not client)
        self._queues[client.domain] = left
        if not left:
            del self._queues[client.domain]
            if self._turns[0] == client.domain:
                self._taken = 0
            self._turns.remove(client.domain)
        return gone

    def waiting(self) -> list[tuple[Client, DiskRequest]]:
        return [entry for domain in self._turns for entry in self._queues[domain]]
