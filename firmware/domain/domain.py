"""One domain: its identity, memory account, vCPUs and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

from firmware.domain.crash import CrashInfo
from firmware.domain.vcpu import VCpu

if TYPE_CHECKING:
    from firmware.domain.image import KernelImage
    from firmware.memory.owner import MemoryOwner


class DomainState(Enum):
    """Where a domain is in its life; the ends carry SHUTDOWN_* of sched.h."""

    BUILDING = "building"
    RUNNING = "running"
    POWEROFF = "poweroff"
    REBOOT = "reboot"
    SUSPEND = "suspend"
    CRASH = "crashed"
    WATCHDOG = "watchdog"
    SOFT_RESET = "soft reset"
    DYING = "dying"

    @property
    def ended(self) -> bool:
        """It will not run again by itself."""
        return self not in (DomainState.BUILDING, DomainState.RUNNING)


SHUTDOWN_STATES: tuple[DomainState, ...] = (
    DomainState.POWEROFF,
    DomainState.REBOOT,
    DomainState.SUSPEND,
    DomainState.CRASH,
    DomainState.WATCHDOG,
    DomainState.SOFT_RESET,
)
"""By reason code, SHUTDOWN_poweroff (0) to SHUTDOWN_soft_reset (5) of sched.h."""


class Domain:
    """A paravirtual domain."""

    __slots__ = (
        "id",
        "name",
        "pv32",
        "vcpus",
        "memory",
        "vm_assist",
        "state",
        "shutdown_code",
        "crash",
        "shared_info",
        "events",
        "console",
        "image",
        "handle",
        "on_end",
    )

    def __init__(self, number: int, name: str, *, pv32: bool, handle: bytes, image: KernelImage) -> None:
        self.id = number
        self.name = name
        self.pv32 = pv32
        self.handle = handle
        self.image = image
        self.vcpus: list[VCpu] = []
        self.memory: MemoryOwner
        self.events: Any
        """Its event channels (`firmware.events.EventChannels`, a floor above)."""
        self.console: Any
        """Its PV console (`firmware.console.DomainConsole`, a floor above)."""
        self.vm_assist = 0
        self.state = DomainState.BUILDING
        self.shutdown_code: int | None = None
        self.crash: CrashInfo | None = None
        self.shared_info = 0
        """Machine address of the shared_info page."""
        self.on_end: Callable[[Domain], None] | None = None

    def __repr__(self) -> str:
        return f"<Domain {self.id} {self.name} {self.state.value}>"
