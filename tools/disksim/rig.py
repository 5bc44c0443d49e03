"""Rig: an emulated disk on a stepped clock with a scheduler in front of it, and the domains that use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from firmware.disk import policies  # noqa: F401  registers them
from firmware.disk.client import Client
from firmware.disk.scheduler import DiskScheduler
from firmware.sched.parameters import Value
from machine.clock import Clock
from machine.disk import Disk, DiskRequest, Medium, Model, Operation, Spinning
from machine.disk.medium import Views
from machine.memory import MachineMemory

BUFFER_FRAMES = 512
SECTORS = 8_000_000
"""An image of 4 GB."""


class Nothing(Medium):
    """A medium that keeps nothing: only the time matters here."""

    def __init__(self, sectors: int) -> None:
        self.sectors = sectors
        self.read_only = False

    def read_into(self, sector: int, views: Views) -> None:
        """Leave the buffers as they are."""

    def write_from(self, sector: int, views: Views) -> None:
        """Forget the data."""

    def flush(self) -> None:
        """There is nothing."""

    def discard(self, sector: int, sectors: int) -> None:
        """There is nothing."""

    def close(self) -> None:
        """There is nothing."""


class Rig:
    """`disk`, `scheduler`, `clock`; `read` and `write` submit for a client."""

    def __init__(self, policy: str, settings: Mapping[str, Value] | None = None, *,
                 model: Model | None = None, sectors: int = SECTORS) -> None:
        self.clock = Clock()
        self.memory = MachineMemory(4 << 20)
        self.disk = Disk(self.clock, self.memory, Nothing(sectors), model or Spinning(sectors), name="sim")
        self.scheduler = DiskScheduler(self.disk, self.clock, policy, settings)
        self.clients: list[Client] = []

    def client(self, share: Mapping[str, Value] | None = None, domain: int | None = None) -> Client:
        """A new domain's disk, with that share."""
        number = len(self.clients) + 1 if domain is None else domain
        made = Client(f"d{number}", number)
        self.clients.append(made)
        self.scheduler.add(made)
        if share:
            self.scheduler.set_share(number, share)
        return made

    def submit(self, client: Client, operation: Operation, sector: int, sectors: int,
               done: Callable[[DiskRequest], None]) -> DiskRequest:
        """Queue one request of a client; `done` is called when it is done."""
        pieces = ((0, sectors * 512),) if operation <= Operation.WRITE else ()
        request = DiskRequest(operation, sector, sectors, pieces, done)
        self.scheduler.submit(client, request)
        return request

    def run(self, ns: int) -> None:
        """Let so much virtual time pass."""
        end = self.clock.now + ns
        while (due := self.clock.next()) is not None and due <= end:
            self.clock.advance(due)
        self.clock.advance(end)
