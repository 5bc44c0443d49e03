"""Deadlines: which sets of real-time domains a disk can promise anything, and when each request is due.

A domain declares requests of at most so many bytes, at least a period apart, each due a deadline after it
came. Requests are not interrupted. With C the longest a request can take, D the deadline (at most the
period) and B the longest that a request of anybody else can hold the disk, earliest deadline first misses
none while the sum of C/D over the domains plus B/min(D) is at most 1: the density bound for sporadic tasks
(Liu, "Real-Time Systems", 2000, section 6.3) with the blocking term of tasks that cannot be preempted
(Jeffay, Stanat and Martel, RTSS 1991). What a domain asks for beyond its rate is due as if it had come at
that rate.

What remains of the bound is a server's of total bandwidth (Spuri and Buttazzo, 1996): a request without a
deadline that goes before real-time ones gets the deadline of a task with that utilisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from firmware.sched.parameters import ParameterError, Value
from machine.disk import SECTOR, Model, Operation

MILLISECOND: Final = 1_000_000
GRAIN: Final = MILLISECOND
"""Deadlines are rounded down to this, so that requests due together can go in scan order (SCAN-EDF)."""
KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a real-time domain has been promised; times in ns."""

    deadline: int
    period: int
    sectors: int
    cost: int
    """The longest a request of so many sectors can take."""

    @property
    def density(self) -> float:
        """The part of the disk that it can need."""
        return self.cost / (min(self.deadline, self.period) - GRAIN)

    def units(self, sectors: int) -> int:
        """How many declared requests one of this size is worth."""
        return max(1, -(-sectors // self.sectors))


def longest(model: Model, sectors: int) -> int:
    """The longest a request can take, in ns."""
    return max(model.worst(Operation.READ, sectors), model.worst(Operation.WRITE, sectors))


def reservation(model: Model, share: Mapping[str, Value]) -> Reservation:
    """What a share of class real-time reserves. ParameterError for a deadline that no disk could keep."""
    sectors = int(share["request_kib"]) * KIB // SECTOR
    deadline = int(share["deadline_ms"]) * MILLISECOND
    period = int(share["period_ms"]) * MILLISECOND or deadline
    cost = longest(model, sectors)
    if min(deadline, period) <= GRAIN + cost:
        raise ParameterError(
            f"a request of {share['request_kib']} KiB takes {model.name} up to {cost / MILLISECOND:.1f} ms: "
            f"deadline_ms and period_ms are longer than that and {GRAIN / MILLISECOND:.0f} ms"
        )
    return Reservation(deadline, period, sectors, cost)


def density(reservations: Mapping[int, Reservation], blocking: int) -> float:
    """The left side of the bound, for at least one reservation; `blocking`: the longest request of others."""
    blocking = max(blocking, *(each.cost for each in reservations.values()))
    shortest = min(min(each.deadline, each.period) for each in reservations.values()) - GRAIN
    return sum(each.density for each in reservations.values()) + blocking / shortest
