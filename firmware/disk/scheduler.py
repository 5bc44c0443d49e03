"""The queue in front of an emulated disk: first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from machine.disk import Disk, DiskRequest

Done = Callable[[DiskRequest], None]


class Client:
    """One user of a disk: a virtual disk of a domain."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<Client {self.name}>"


class DiskScheduler:
    """Keeps a disk busy with what its clients submit."""

    __slots__ = ("_clients", "_done", "_waiting", "disk")

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self._clients: list[Client] = []
        self._waiting: deque[DiskRequest] = deque()
        self._done: dict[DiskRequest, Done] = {}

    def add(self, client: Client) -> None:
        """A new client."""
        self._clients.append(client)

    def remove(self, client: Client) -> None:
        """A client is gone. What it submitted and is not done touches memory no more, and is not reported."""
        self._clients.remove(client)
        self._waiting = deque(request for request in self._waiting if request.owner is not client)
        self.disk.abandon(client)
        for request in [request for request in self._done if request.owner is client]:
            del self._done[request]

    def submit(self, client: Client, request: DiskRequest) -> None:
        """Queue a request, which must be within the disk and memory; its `done` is called when it is done."""
        request.owner = client
        self._done[request] = request.done
        request.done = self._finished
        self._waiting.append(request)
        self._feed()

    def _feed(self) -> None:
        disk, waiting = self.disk, self._waiting
        while waiting and disk.in_flight < disk.depth:
            disk.submit(waiting.popleft())

    def _finished(self, request: DiskRequest) -> None:
        done = self._done.pop(request, None)
        self._feed()
        if done is not None:
            done(request)
