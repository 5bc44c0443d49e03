"""What a disk scheduling policy is: it decides whose request goes to the disk next, and nothing else.

The mechanism (`scheduler.py`) counts what is in flight, hands requests to the disk and their ends back to
who submitted them. Times are virtual ns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Final

from firmware.disk.client import Client
from firmware.sched.parameters import Value, checked
from firmware.sched.tunable import Registry, Tunable
from machine.disk import Disk, DiskRequest


class DiskPolicy(Tunable, ABC):
    """One policy in front of one disk."""

    name: ClassVar[str]

    def __init__(self, disk: Disk, settings: Mapping[str, Value] | None = None) -> None:
        super().__init__(settings)
        self.disk = disk

    def set_share(self, domain: int, values: Mapping[str, Value], now: int) -> None:
        """Change what a domain gets of the disk, while it runs. ParameterError says what is wrong, and
        nothing has changed then.
        """
        new = {**self.domain_share(domain), **checked(self.name, self.SHARES, values)}
        self.admit_share(domain, new)
        self.shares[domain, None] = new
        self.share_changed(domain, now)

    def admit_share(self, domain: int, values: Mapping[str, Value]) -> None:
        """Raise ParameterError when the domain cannot have this share (deadlines beyond the disk)."""

    def share_changed(self, domain: int, now: int) -> None:
        """The share of this domain has changed."""

    def chunk(self, client: Client) -> int:
        """Larger transfers of a client, in sectors, are to come in parts of this size; 0: as they are."""
        return 0

    def may_wait(self, client: Client, other: Client) -> bool:
        """Whether a read of one client may wait for a read of the same that another has queued here, or
        would get to the disk sooner with a request of its own.
        """
        return True

    @abstractmethod
    def arrive(self, client: Client, request: DiskRequest, now: int) -> None:
        """A request waits from now on."""

    @abstractmethod
    def choose(self, now: int, in_flight: int) -> DiskRequest | None:
        """The request that goes to the disk now; None to leave it with what it has. Called again until it
        says None or the disk is full, and whenever a request arrives or finishes.
        """

    @abstractmethod
    def withdraw(self, client: Client) -> list[DiskRequest]:
        """Forget what a client waits for, which never reached the disk: those requests, in their order."""

    @abstractmethod
    def waiting(self) -> list[tuple[Client, DiskRequest]]:
        """Every request that has not been chosen, in the order in which a client's came."""

    def finished(self, client: Client, request: DiskRequest, now: int) -> None:
        """A chosen request is done; `request.started` and `finished` say how long it took."""


DISK_POLICIES: Final[Registry[DiskPolicy]] = Registry("disk scheduler")
disk_policy = DISK_POLICIES.enter
disk_policy_by_name = DISK_POLICIES.find
