"""What a workload can do: a generator yields these, one after another, as a guest would compute and call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from firmware.domain.vcpu import PAUSE_BLOCKED
from firmware.sched.ops import DECISION_NS

if TYPE_CHECKING:
    from tools.schedsim.core import SimCore
    from tools.schedsim.task import Task

CALL_NS = 500
"""What a call that blocks or wakes takes."""
FOREVER = 1 << 62


class Command(ABC):
    """One step of a workload."""

    __slots__ = ()
    ordered: ClassVar[bool] = False
    """Whether it waits until no other core is behind: others see it exactly when it happens."""

    @abstractmethod
    def begin(self, task: Task, core: SimCore) -> None:
        """The task does this now, on this core."""


class Run(Command):
    """Compute: that many ns of work at full speed."""

    __slots__ = ("ns",)

    def __init__(self, ns: int) -> None:
        self.ns = ns

    def begin(self, task: Task, core: SimCore) -> None:
        task.left = self.ns


class Sleep(Command):
    """Set a timer and block until it fires (or somebody wakes us)."""

    __slots__ = ("ns",)

    def __init__(self, ns: int) -> None:
        self.ns = ns

    def begin(self, task: Task, core: SimCore) -> None:
        core.charge(CALL_NS)
        task.timer = task.simulator.clock.at(core.time + self.ns, task.timer_fired)
        task.block()


class Block(Command):
    """Block until woken; not at all when somebody has woken us since the last time."""

    __slots__ = ()

    def begin(self, task: Task, core: SimCore) -> None:
        core.charge(CALL_NS)
        task.block()


class Wake(Command):
    """Wake another vCPU, as an event does."""

    __slots__ = ("task",)

    def __init__(self, task: Task) -> None:
        self.task = task

    def begin(self, task: Task, core: SimCore) -> None:
        core.charge(CALL_NS)
        self.task.wake()


class Yield(Command):
    """Give way to others."""

    __slots__ = ()

    def begin(self, task: Task, core: SimCore) -> None:
        core.charge(DECISION_NS)
        task.yields += 1
        task.simulator.scheduler.give_way(task.vcpu)


class Spin(Command):
    """Wait without going to sleep until a condition holds: it uses up the CPU."""

    __slots__ = ("condition",)
    ordered = True

    def __init__(self, condition: Callable[[], bool]) -> None:
        self.condition = condition

    def begin(self, task: Task, core: SimCore) -> None:
        task.spin = self.condition


class Done(Command):
    """The workload is over: block for good. What a generator's end amounts to."""

    __slots__ = ()

    def begin(self, task: Task, core: SimCore) -> None:
        task.finished = core.time
        task.simulator.scheduler.hold(task.vcpu, PAUSE_BLOCKED)
