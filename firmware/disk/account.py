"""Account: what one domain may have of a disk, has had of it, and waits for, under Cello."""

from __future__ import annotations

from collections import deque
from typing import Final

from firmware.disk.client import Client
from machine.disk import DiskRequest

FIRST_ESTIMATE_NS: Final = 8_000_000
"""What a request is taken to cost before any has finished: a seek and half a turn."""
NEVER: Final = -1 << 62
WEIGHT_OF_LAST: Final = 4
"""The last request counts for a quarter in the estimate of the next."""


class Account:
    """`left`: what remains of its allocation in this interval, ns or bytes; below 0 when it had more.

    `waiting` holds what no queue further on has taken. `released`: the earliest time from which its next
    real-time request counts, by the rate it was admitted with.
    """

    __slots__ = (
        "active", "allocation", "domain", "estimate", "left", "missed", "outstanding",
        "released", "served", "used", "waiting",
    )

    def __init__(self, domain: int) -> None:
        self.domain = domain
        self.allocation = 1
        self.left = 0
        self.active = NEVER
        """When a request of its last came or was done."""
        self.outstanding = 0
        """Requests of its that wait or are on their way."""
        self.used = 0
        """Everything it was ever charged: ns or bytes, as the policy shares."""
        self.estimate = FIRST_ESTIMATE_NS
        self.waiting: deque[tuple[Client, DiskRequest, int]] = deque()
        """With the time from which each counts."""
        self.released = 0
        self.served = self.missed = 0
        """Requests with a deadline that were done in time, and that were not."""

    @property
    def fraction(self) -> float:
        """How much of its allocation is left: who has the most goes first."""
        return self.left / self.allocation

    def learn(self, ns: int) -> None:
        """A request took that long."""
        self.estimate += (ns - self.estimate) // WEIGHT_OF_LAST
