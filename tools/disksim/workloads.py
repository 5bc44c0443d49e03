"""What domains do with a disk: streams, backlogs of random requests, transactions that think, deadlines."""

from __future__ import annotations

import random
from collections.abc import Callable

from firmware.disk.client import Client
from machine.disk import DiskRequest, Operation
from tools.disksim.rig import Rig

MILLISECOND = 1_000_000


class Workload:
    """One client's behaviour. `latencies`: of each request done, in ns, from when it was wanted."""

    def __init__(self, rig: Rig, client: Client, seed: int) -> None:
        self.rig = rig
        self.client = client
        self.random = random.Random(seed)
        self.latencies: list[int] = []
        self.going = True

    def ask(self, sector: int, sectors: int, then: Callable[[], None],
            operation: Operation = Operation.READ) -> None:
        """One request; `then` goes on when it is done."""
        wanted = self.rig.clock.now

        def done(request: DiskRequest) -> None:
            self.latencies.append(request.finished - wanted)
            if self.going:
                then()

        self.rig.submit(self.client, operation, sector, sectors, done)


class Stream(Workload):
    """A hog: reads on, `depth` requests of `sectors` outstanding, from `first` on, `span` sectors long."""

    def __init__(self, rig: Rig, client: Client, seed: int = 0, *, depth: int = 8, sectors: int = 256,
                 first: int = 0, span: int = 2_000_000) -> None:
        super().__init__(rig, client, seed)
        self._sectors, self._first, self._span = sectors, first, span // sectors * sectors
        self._next = 0
        for _ in range(depth):
            self._more()

    def _more(self) -> None:
        sector = self._first + self._next
        self._next = (self._next + self._sectors) % self._span
        self.ask(sector, self._sectors, self._more)


class Backlog(Workload):
    """Random requests, `depth` outstanding, over its part of the disk."""

    def __init__(self, rig: Rig, client: Client, seed: int, *, depth: int = 8,
                 sectors: tuple[int, ...] = (16,), writes: float = 0.0) -> None:
        super().__init__(rig, client, seed)
        self._sizes, self._writes = sectors, writes
        for _ in range(depth):
            self._more()

    def _more(self) -> None:
        size = self.random.choice(self._sizes)
        operation = Operation.WRITE if self.random.random() < self._writes else Operation.READ
        self.ask(self.random.randrange(self.rig.disk.sectors - size), size, self._more, operation)


class Transactions(Workload):
    """OLTP: one small random request at a time, then thought, exponentially long, `think` ns in the mean."""

    def __init__(self, rig: Rig, client: Client, seed: int, *, think: int = 4 * MILLISECOND,
                 sectors: int = 8, writes: float = 0.3) -> None:
        super().__init__(rig, client, seed)
        self._think, self._sectors, self._writes = think, sectors, writes
        self._later()

    def _later(self) -> None:
        pause = int(self.random.expovariate(1 / self._think)) if self._think else 0
        self.rig.clock.at(self.rig.clock.now + pause, self._one)

    def _one(self, _: object) -> None:
        operation = Operation.WRITE if self.random.random() < self._writes else Operation.READ
        sector = self.random.randrange(self.rig.disk.sectors - self._sectors)
        self.ask(sector, self._sectors, self._later, operation)


class Periodic(Workload):
    """Real-time: a random request each period, with up to `jitter` ns more between two; each has a deadline.

    `missed` counts those done too late.
    """

    def __init__(self, rig: Rig, client: Client, seed: int, *, period: int, deadline: int, sectors: int,
                 jitter: int = 0, writes: float = 0.0) -> None:
        super().__init__(rig, client, seed)
        self._period, self._deadline, self._sectors = period, deadline, sectors
        self._jitter, self._writes = jitter, writes
        self._at = self.random.randrange(period)
        rig.clock.at(self._at, self._one)

    @property
    def missed(self) -> int:
        """How many requests were done after their deadline."""
        return sum(latency > self._deadline for latency in self.latencies)

    def _one(self, _: object) -> None:
        if not self.going:
            return
        size = self.random.randrange(1, self._sectors + 1)
        operation = Operation.WRITE if self.random.random() < self._writes else Operation.READ
        self.ask(self.random.randrange(self.rig.disk.sectors - size), size, lambda: None, operation)
        self._at += self._period + (self.random.randrange(self._jitter + 1) if self._jitter else 0)
        self.rig.clock.at(self._at, self._one)
