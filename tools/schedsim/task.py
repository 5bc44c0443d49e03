"""A task: one vCPU and the workload that stands for its guest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING, Any

from firmware.domain.vcpu import PAUSE_BLOCKED, VCpu

if TYPE_CHECKING:
    from machine.clock import Event
    from tools.schedsim.commands import Command
    from tools.schedsim.simulator import Simulator

Workload = Callable[["Task"], "Iterator[Command]"]
"""A generator function of the task that runs it."""


class Task:
    """One vCPU at work.

    `work`: ns of work done at full speed; `spun`: CPU ns spent waiting for others; `latencies`: ns from each
    wake to the first work after it; `finished`: when the workload ended.
    """

    __slots__ = ("ahead", "finished", "latencies", "left", "pending", "random", "simulator", "spin", "spun",
                 "steps", "timer", "vcpu", "waiting", "wakes", "woken", "work", "yields")

    def __init__(self, simulator: Simulator, vcpu: VCpu, workload: Workload) -> None:
        self.simulator = simulator
        self.vcpu = vcpu
        self.random = Random(f"{simulator.seed} {vcpu}")
        self.work = self.spun = self.left = self.yields = self.wakes = 0
        self.spin: Callable[[], bool] | None = None
        self.timer: Event | None = None
        self.ahead: Command | None = None
        """A command that waits for the others to get as far as we are."""
        self.pending = False
        self.woken: int | None = None
        self.waiting: int | None = None
        """Since when it has been runnable without running."""
        self.latencies: list[int] = []
        self.finished: int | None = None
        self.steps = workload(self)

    @property
    def team(self) -> list[Task]:
        """The tasks of its domain, by vCPU."""
        return [self.simulator.tasks[vcpu] for vcpu in self.vcpu.domain.vcpus]

    def __repr__(self) -> str:
        return repr(self.vcpu)

    @property
    def now(self) -> int:
        """Virtual ns where we are."""
        return self.simulator.scheduler.now()

    def block(self) -> None:
        """Go to sleep, unless there has been a wake since the last time."""
        if self.pending:
            self.pending = False
            self._forget_timer()
        else:
            self.simulator.scheduler.hold(self.vcpu, PAUSE_BLOCKED)

    def wake(self) -> None:
        """An event for this vCPU."""
        if self.vcpu.pause_flags & PAUSE_BLOCKED and self.finished is None:
            self._forget_timer()
            self.wakes += 1
            self.woken = self.waiting = self.simulator.scheduler.now()
            self.simulator.scheduler.unblock(self.vcpu)
        else:
            self.pending = True

    def timer_fired(self, _: Any) -> None:
        """The timer it set."""
        self.timer = None
        self.wake()

    def _forget_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
