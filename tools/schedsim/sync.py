"""Locks and barriers among the vCPUs of a guest, by spinning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tools.schedsim.commands import Command, Spin

if TYPE_CHECKING:
    from tools.schedsim.core import SimCore
    from tools.schedsim.task import Task


class SpinLock:
    """Who has waited longest of those that look at it, because they run, has it next. With `tickets`: of all
    who wait, so that a waiter that does not run holds up everybody behind it. `acquired` counts.
    """

    def __init__(self, *, tickets: bool = False) -> None:
        self.tickets = tickets
        self.holder: Task | None = None
        self.acquired = 0
        self._waiters: list[Task] = []

    def acquire(self, task: Task) -> Iterator[Command]:
        """`yield from lock.acquire(me)`."""
        yield Ordered()
        waiters = self._waiters
        waiters.append(task)
        yield Spin(lambda: self.holder is None and self._next() is task)
        waiters.remove(task)
        self.holder = task
        self.acquired += 1

    def release(self, task: Task) -> Iterator[Command]:
        """`yield from lock.release(me)`. RuntimeError for somebody else's lock."""
        yield Ordered()
        if self.holder is not task:
            raise RuntimeError(f"{task} releases a lock of {self.holder}")
        self.holder = None

    def _next(self) -> Task:
        waiters = self._waiters
        if not self.tickets:
            for waiter in waiters:
                if waiter.vcpu.scheduled and not waiter.vcpu.pause_flags:
                    return waiter
        return waiters[0]


class Barrier:
    """All of a team arrive before any goes on. `rounds` counts."""

    def __init__(self, members: int) -> None:
        self.members = members
        self.arrived = self.rounds = 0

    def wait(self) -> Iterator[Command]:
        """`yield from barrier.wait()`."""
        yield Ordered()
        mine = self.rounds
        self.arrived += 1
        if self.arrived == self.members:
            self.arrived = 0
            self.rounds += 1
        else:
            yield Spin(lambda: self.rounds != mine)


class Ordered(Command):
    """Nothing, but not before everybody else has got that far."""

    __slots__ = ()
    ordered = True

    def begin(self, task: Task, core: SimCore) -> None:
        """Being in order is all."""
