"""A logical CPU without a processor: what the scheduling mechanism touches of `machine.core.Core`."""

from __future__ import annotations


class SimCore:
    """Time that passes when a workload takes it; registers and TLBs are nobody's business here."""

    __slots__ = ("busy", "current", "deadline", "idle", "idle_ns", "index", "ran", "ran_since", "siblings",
                 "spinning", "time")

    def __init__(self, index: int) -> None:
        self.index = index
        self.time = 0
        self.idle_ns = 0
        self.deadline = 0
        self.current: object = None
        self.idle = self.busy = False
        self.spinning = False
        """Whoever runs here waits for somebody else's progress without going to sleep."""
        self.siblings: tuple[SimCore, ...] = ()
        """The other threads of its core."""
        self.ran: object = None
        self.ran_since = 0
        """Who runs here, and since when: for the record of runs."""

    def now(self) -> int:
        """Virtual ns."""
        return self.time

    def charge(self, ns: int) -> None:
        """The cost of modelled work."""
        self.time += ns

    def advance(self, to_ns: int) -> None:
        """An idle core's time passes."""
        if to_ns > self.time:
            self.idle_ns += to_ns - self.time
            self.time = to_ns

    def limit(self, deadline_ns: int) -> None:
        """The running slice ends by this time."""
        if deadline_ns < self.deadline:
            self.deadline = deadline_ns

    def stop(self) -> None:
        """The running slice ends now."""
        self.deadline = 0

    def save(self) -> bytes:
        """There are no registers."""
        return b""

    def load(self, state: bytes) -> None:
        """Nor here."""

    def switch_bank(self, paddr: int, bank: int) -> None:
        """There is no TLB."""

    def open_ports(self, on: bool) -> None:
        """There are no ports."""

    def flush(self) -> None:
        """There is no TLB."""
