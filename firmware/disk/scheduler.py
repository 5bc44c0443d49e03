"""The queue in front of an emulated disk: the mechanism. Whose request goes next is the policy's business."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from firmware.disk.client import Client
from firmware.disk.parts import Parts
from firmware.disk.policy import DiskPolicy, disk_policy_by_name
from firmware.sched.parameters import Value
from machine.clock import Clock
from machine.disk import SECTOR, Disk, DiskRequest

Done = Callable[[DiskRequest], None]

DEFAULT_POLICY = "fifo"


class DiskScheduler:
    """Keeps a disk busy with what its clients submit, in the order a policy chooses."""

    __slots__ = ("_clients", "_clock", "_feeding", "_flying", "disk", "policy")

    def __init__(self, disk: Disk, clock: Clock, policy: str = DEFAULT_POLICY,
                 settings: Mapping[str, Value] | None = None) -> None:
        self.disk = disk
        self.policy: DiskPolicy = disk_policy_by_name(policy)(disk, settings)
        self._clock = clock
        self._clients: list[Client] = []
        self._flying: dict[DiskRequest, tuple[Client, Done]] = {}
        self._feeding = False

    def add(self, client: Client) -> None:
        """A new client."""
        self._clients.append(client)

    def remove(self, client: Client) -> None:
        """A client is gone. What it submitted and is not done touches memory no more, and is not reported."""
        self._clients.remove(client)
        self.policy.withdraw(client)
        self.disk.abandon(client)
        if all(other.domain != client.domain for other in self._clients):
            self.policy.forget_domain(client.domain)

    def submit(self, client: Client, request: DiskRequest) -> None:
        """Queue a request, which must be within the disk and memory; its `done` is called when it is done."""
        now, chunk = self._clock.now, self.policy.chunk(client)
        request.owner = client
        if 0 < chunk * SECTOR < request.moved:
            for part in Parts(request, chunk).requests:
                self.policy.arrive(client, part, now)
        else:
            self.policy.arrive(client, request, now)
        self._feed()

    def set_policy(self, name: str, settings: Mapping[str, Value] | None = None) -> None:
        """Have another policy decide from now on; what waits is queued there. Shares of the same name go on
        to hold. ParameterError when there is no such policy or it cannot have these parameters.
        """
        now, old = self._clock.now, self.policy
        made = disk_policy_by_name(name)(self.disk, settings)
        for domain in sorted({client.domain for client in self._clients}):
            known = made.domain_share(domain)
            carried = {name: value for name, value in old.domain_share(domain).items() if name in known}
            made.set_share(domain, carried, now)
        self.policy = made
        for client, request in old.waiting():
            made.arrive(client, request, now)
        self._feed()

    def tune(self, values: Mapping[str, Value]) -> None:
        """Change parameters of the policy. Raises ParameterError."""
        self.policy.tune(values, self._clock.now)
        self._feed()

    def set_share(self, domain: int, values: Mapping[str, Value]) -> None:
        """Change what a domain gets of the disk. Raises ParameterError."""
        self.policy.set_share(domain, values, self._clock.now)
        self._feed()

    def _feed(self) -> None:
        if self._feeding:
            return
        disk, policy = self.disk, self.policy
        self._feeding = True
        try:
            while disk.in_flight < disk.depth:
                request = policy.choose(self._clock.now, disk.in_flight)
                if request is None:
                    return
                client = request.owner
                assert isinstance(client, Client)
                self._flying[request] = client, request.done
                request.done = self._finished
                disk.submit(request)
        finally:
            self._feeding = False

    def _finished(self, request: DiskRequest) -> None:
        client, done = self._flying.pop(request)
        client.requests += 1
        client.bytes += request.moved
        client.time += request.finished - request.started
        self.policy.finished(client, request, request.finished)
        request.done = done
        if client in self._clients:
            done(request)
        self._feed()
