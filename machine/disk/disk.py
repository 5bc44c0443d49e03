"""Disk: an emulated disk. Requests take the time of its model and move data of its medium, in virtual
time.
"""

from __future__ import annotations

import errno
from typing import Final

from machine.clock import Clock, Event
from machine.faults import (
    DISK_FLUSH,
    DISK_POWER,
    DISK_READ,
    DISK_SLOW,
    DISK_TORN,
    DISK_WRITE,
    Faults,
    Injection,
    PowerCut,
)
from machine.memory import MachineMemory

from .medium import Medium
from .model import Model
from .queue import DriveQueue
from .request import SECTOR, DiskRequest, Operation
from .views import cut

_GUEST_ERRORS: Final = frozenset({errno.ENOSPC, errno.EROFS, errno.EINVAL})
"""What a request may end with besides EIO."""
_FAILURES: Final = {
    Operation.READ: DISK_READ, Operation.WRITE: DISK_WRITE, Operation.FLUSH: DISK_FLUSH,
    Operation.DISCARD: DISK_WRITE,
}


class DiskCounters:
    """Of finished requests, by operation; `seeks` are moves of the arm, `errors` requests that ended with
    one.
    """

    __slots__ = (
        "abandoned", "discards", "errors", "flushes", "reads", "sectors_discarded", "sectors_read",
        "sectors_written", "writes",
    )

    def __init__(self) -> None:
        self.reads = self.writes = self.flushes = self.discards = 0
        self.sectors_read = self.sectors_written = self.sectors_discarded = 0
        self.errors = self.abandoned = 0


class Disk:
    """`depth`: requests it holds at most, those it works on included (the model's own when not given).

    `reorder`: the drive may choose among those it holds (see `machine.disk.queue`); by default they go in
    order, so that whoever submits decides. Data moves between memory and medium when a request finishes.
    `faults` are asked by the disk's `name`.
    """

    __slots__ = (
        "_active", "_busy_ns", "_busy_since", "_clock", "_faults", "_medium", "_memory", "_model", "_queue",
        "counters", "depth", "head", "name", "read_only", "sectors",
    )

    def __init__(
        self,
        clock: Clock,
        memory: MachineMemory,
        medium: Medium,
        model: Model,
        faults: Faults | None = None,
        name: str = "",
        *,
        depth: int | None = None,
        reorder: bool = False,
    ) -> None:
        self.depth = model.depth if depth is None else depth
        if not 1 <= self.depth <= model.depth:
            raise ValueError(f"{model.name} queues 1 to {model.depth} requests, not {depth}")
        self._clock = clock
        self._memory = memory
        self._medium = medium
        self._model = model
        self._faults = faults
        self.name = name
        self.sectors = medium.sectors
        self.read_only = medium.read_only
        self.head = model.head()
        self.counters = DiskCounters()
        self._queue = DriveQueue(model, reorder)
        self._active: dict[DiskRequest, Event] = {}
        self._busy_ns = 0
        self._busy_since = 0

    @property
    def model(self) -> Model:
        """How long things take."""
        return self._model

    @property
    def medium(self) -> Medium:
        """What holds its data."""
        return self._medium

    @property
    def in_flight(self) -> int:
        """Requests submitted and not finished."""
        return len(self._active) + len(self._queue)

    @property
    def busy_ns(self) -> int:
        """Virtual ns with at least one request in flight."""
        return self._busy_ns + (self._clock.now - self._busy_since if self._active else 0)

    @property
    def seeks(self) -> int:
        """Moves of the arm from cylinder to cylinder."""
        return self.head.seeks

    def submit(self, request: DiskRequest) -> None:
        """Begin, or queue. ValueError: more than `depth`, beyond the disk or memory, pieces that do not
        fit.
        """
        if len(self._active) + len(self._queue) >= self.depth:
            raise ValueError(f"disk {self.name!r} has its {self.depth} requests")
        self._check(request)
        now = self._clock.now
        request.submitted = now
        request.error = 0
        request.abandoned = False
        self._queue.add(request)
        self._start(now)

    def abandon(self, owner: object) -> None:
        """The requests of this owner touch memory no more: they take their time and end with EIO."""
        for request in [*self._active, *self._queue]:
            if request.owner is owner:
                request.abandoned = True

    def close(self) -> None:
        """Flush and close the medium. Requests in flight are lost and never done."""
        for event in self._active.values():
            event.cancel()
        self._active.clear()
        self._queue.clear()
        self._medium.close()

    def _check(self, request: DiskRequest) -> None:
        if request.operation == Operation.FLUSH:
            if request.sectors or request.sector or request.pieces:
                raise ValueError(f"{request!r} moves nothing")
            return
        if request.sector < 0 or request.sectors < 1 or request.sector + request.sectors > self.sectors:
            raise ValueError(f"{request!r} is beyond the {self.sectors} sectors of disk {self.name!r}")
        length, size = 0, self._memory.size
        for address, part in request.pieces:
            if part < 1 or address < 0 or address + part > size:
                raise ValueError(f"{request!r} is beyond memory")
            length += part
        if length != (0 if request.operation == Operation.DISCARD else request.sectors * SECTOR):
            raise ValueError(f"{request!r} comes with {length} bytes")

    def _start(self, now: int) -> None:
        active, queue, model = self._active, self._queue, self._model
        while queue and len(active) < model.concurrent:
            request = queue.take(self.head, now)
            request.started = now
            if not active:
                self._busy_since = now
            took = model.service(request, self.head, now)
            if self._faults is not None:
                slow = self._faults.at(DISK_SLOW, self.name, request.sector, request.sectors)
                took += slow.fault.delay_ns if slow is not None else 0
            active[request] = self._clock.at(now + took, self._finish, request)

    def _finish(self, request: DiskRequest) -> None:
        now = self._clock.now
        del self._active[request]
        if not self._active:
            self._busy_ns += now - self._busy_since
        request.finished = now
        request.error = self._carry_out(request)
        self._count(request)
        self._start(now)
        request.done(request)

    def _carry_out(self, request: DiskRequest) -> int:
        """Move the data; 0 or an errno."""
        if request.abandoned:
            return errno.EIO
        operation, medium = request.operation, self._medium
        try:
            if self._faults is not None and self._goes_wrong(request, self._faults):
                return errno.EIO
            if operation == Operation.READ:
                sector = request.sector
                self._memory.receive(request.pieces, lambda views: medium.read_into(sector, views))
            elif operation == Operation.FLUSH:
                medium.flush()
            elif self.read_only:
                return errno.EROFS
            elif operation == Operation.WRITE:
                medium.write_from(request.sector, self._memory.views(request.pieces))
            else:
                medium.discard(request.sector, request.sectors)
        except OSError as error:
            return error.errno if error.errno in _GUEST_ERRORS else errno.EIO
        return 0

    def _goes_wrong(self, request: DiskRequest, faults: Faults) -> bool:
        """Whether the request fails now; what of a write lands all the same has landed."""
        where = self.name, request.sector, request.sectors
        power = faults.at(DISK_POWER, *where)
        if power is not None:
            self._tear(request, power)
            self._medium.power_cut(power.random)
            raise PowerCut(f"The power failed in {request!r} of disk {self.name!r}.")
        if faults.at(_FAILURES[request.operation], *where) is not None:
            return True
        if request.operation != Operation.WRITE:
            return False
        torn = faults.at(DISK_TORN, *where)
        if torn is not None:
            self._tear(request, torn)
        return torn is not None

    def _tear(self, request: DiskRequest, why: Injection) -> None:
        """Fewer than all sectors of a write land, from the first on."""
        if request.operation == Operation.WRITE and not self.read_only:
            landed = why.below(request.sectors)
            if landed:
                self._medium.write_from(
                    request.sector, cut(self._memory.views(request.pieces), 0, landed * SECTOR))

    def _count(self, request: DiskRequest) -> None:
        counters, operation, sectors = self.counters, request.operation, request.sectors
        if operation == Operation.READ:
            counters.reads += 1
            counters.sectors_read += sectors
        elif operation == Operation.WRITE:
            counters.writes += 1
            counters.sectors_written += sectors
        elif operation == Operation.FLUSH:
            counters.flushes += 1
        else:
            counters.discards += 1
            counters.sectors_discarded += sectors
        if request.error:
            counters.errors += 1
            counters.abandoned += request.abandoned
