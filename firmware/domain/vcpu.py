"""One virtual CPU: what Xen keeps about it while, and while not, it runs on a logical CPU.

Its registers live in the core's register file while it is loaded and in `saved` otherwise. Fields follow
`struct vcpu` and `struct pv_vcpu` of Xen 4.17; the layout of what the guest sees is in `firmware.abi`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from firmware.memory.native import INFO
from firmware.memory.perdomain import LDT_OFFSET, PERDOMAIN_COMPAT_START, PERDOMAIN_START, VCPU_SHIFT
from machine.registers import LDT

if TYPE_CHECKING:
    from firmware.domain.context import Entry
    from firmware.domain.domain import Domain
    from firmware.memory.guest import GuestSpace
    from machine.clock import Event
    from machine.core import Core

VECTORS: Final = 256
"""Entries of a virtual interrupt descriptor table."""

DESCRIPTOR_SIZE: Final = 8
LDT_SELECTOR: Final = 0xE048
"""Any selector that is not null: the core's LDT cache is loaded without it."""
LDT_FLAGS: Final = 0x8200
"""Second word of a present LDT descriptor."""

PAUSE_BLOCKED: Final = 1
"""In SCHEDOP_block: any event makes it runnable."""
PAUSE_DOWN: Final = 2
"""Not brought up yet, or taken down by VCPUOP_down."""
PAUSE_POLLING: Final = 4
"""In SCHEDOP_poll: one of its ports, or its time-out, makes it runnable."""
PAUSE_CONTROL: Final = 8
"""Paused by the operator, or its domain has ended."""

RUNNING: Final = 0
RUNNABLE: Final = 1
BLOCKED: Final = 2
OFFLINE: Final = 3
"""Run states, numbered as RUNSTATE_* in vcpu.h."""

ANY_CPU: Final = -1
"""The affinity of a vCPU that may run anywhere."""

NO_POLL: Final[tuple[int, ...]] = ()

DEFAULT_PERIOD: Final = 10_000_000
"""A PV vCPU has a 100 Hz periodic timer until it stops it; in ns."""

DR6_DEFAULT: Final = 0xFFFF_0FF0
DR7_DEFAULT: Final = 0x400
"""Debug registers after reset (Intel SDM volume 3, 10.1)."""


class Trap:
    """One entry of a virtual IDT: where the guest handles a vector (`trap_info` in arch-x86/xen.h)."""

    __slots__ = ("address", "cs", "masks_events", "dpl")

    def __init__(self, address: int, cs: int, masks_events: bool, dpl: int) -> None:
        self.address = address
        self.cs = cs
        self.masks_events = masks_events
        self.dpl = dpl


NO_TRAP: Final = Trap(0, 0, False, 0)


class VCpu:
    """A virtual CPU of a PV guest."""

    __slots__ = (
        "id",
        "domain",
        "pv32",
        "core",
        "home",
        "pool",
        "scheduled",
        "hard_affinity",
        "soft_affinity",
        "migrations",
        "saved",
        "loaded",
        "initialised",
        "space",
        "in_kernel",
        "kernel_root",
        "user_root",
        "gdt_frames",
        "gdt_entries",
        "ldt_base",
        "ldt_entries",
        "kernel_sp",
        "kernel_ss",
        "gs_shadow",
        "event_address",
        "event_cs",
        "failsafe_address",
        "failsafe_cs",
        "failsafe_masks",
        "syscall_address",
        "syscall_masks",
        "syscall32_address",
        "syscall32_cs",
        "syscall32_masks",
        "sysenter_address",
        "sysenter_cs",
        "sysenter_masks",
        "traps",
        "info",
        "native",
        "cr0_ts",
        "cr4",
        "debugreg",
        "dr7_emul",
        "iopl",
        "nmi_pending",
        "nmi_masked",
        "pause_flags",
        "poll_ports",
        "virqs",
        "runstate",
        "runstate_since",
        "runstate_times",
        "runstate_area",
        "time_area",
        "single_shot",
        "periodic",
        "period_ns",
        "next_period",
        "poll_timer",
        "last_time",
        "recent_calls",
        "recent_at",
        "restarted",
        "failsafe_pending",
        "storing",
        "entry",
    )

    def __init__(self, domain: Domain, number: int) -> None:
        self.id = number
        self.domain = domain
        self.pv32 = domain.pv32
        """Whether its domain is a 32-bit one."""
        self.core: Core
        """The logical CPU it runs on, or ran on last."""
        self.home = 0
        """Index of the logical CPU the scheduler placed it on, or ran it on last."""
        self.pool = 0
        """Number of its CPU pool."""
        self.scheduled = False
        """A logical CPU is its own at the moment: it runs, or would if nothing had paused it since."""
        self.hard_affinity = ANY_CPU
        self.soft_affinity = ANY_CPU
        """Logical CPUs it may run on, and those it had better run on: bit masks."""
        self.migrations = 0
        """How often it has gone on on another logical CPU than before."""
        self.saved: bytes = b""
        self.loaded = False
        self.initialised = False
        self.entry: Entry | None = None
        """Its first registers, until it has been on a core."""
        self.space: GuestSpace
        """Its kernel's address space; what a guest hands to Xen lies there."""
        self.in_kernel = True
        self.kernel_root = 0
        self.user_root = 0
        self.gdt_frames: list[int] = []
        self.gdt_entries = 0
        self.ldt_base = 0
        self.ldt_entries = 0
        self.kernel_sp = 0
        self.kernel_ss = 0
        self.gs_shadow = 0
        """GS base of the mode (kernel or user) it is not in."""
        self.event_address = 0
        self.event_cs = 0
        self.failsafe_address = 0
        self.failsafe_cs = 0
        self.failsafe_masks = False
        self.syscall_address = 0
        self.syscall_masks = False
        self.syscall32_address = 0
        self.syscall32_cs = 0
        self.syscall32_masks = False
        self.sysenter_address = 0
        self.sysenter_cs = 0
        self.sysenter_masks = False
        self.traps: list[Trap] = [NO_TRAP] * VECTORS
        self.info = 0
        """Machine address of its vcpu_info; 0 when it has none yet. `place_info` moves it."""
        self.native: Any = None
        """What native code is told of it (`firmware.memory.native`), once it has been on a core."""
        self.cr0_ts = False
        self.cr4 = 0
        self.debugreg = [0, 0, 0, 0, 0, 0, DR6_DEFAULT, DR7_DEFAULT]
        self.dr7_emul = 0
        self.iopl = 0
        self.nmi_pending = False
        self.nmi_masked = False
        """In its NMI handler: another waits for the iret hypercall."""
        self.storing = False
        """In the middle of an emulated store to a page table: nothing is delivered, nobody else runs."""
        self.failsafe_pending = False
        """A data segment could not be loaded when it was switched to: it enters its failsafe callback first.
        """
        self.pause_flags = PAUSE_DOWN
        self.poll_ports: tuple[int, ...] = NO_POLL
        self.virqs: dict[int, int] = {}
        self.runstate = OFFLINE
        self.runstate_since = 0
        self.runstate_times = [0, 0, 0, 0]
        self.runstate_area = 0
        self.time_area = 0
        self.single_shot: Event | None = None
        self.periodic: Event | None = None
        self.period_ns = DEFAULT_PERIOD
        """Period of its periodic timer; 0 when it has none."""
        self.next_period = 0
        self.poll_timer: Event | None = None
        self.last_time = 0
        self.recent_calls: list[tuple[int, int, int, int] | None] = [None] * RECENT_CALLS
        self.recent_at = 0
        self.restarted: tuple[int, ...] | None = None
        """Arguments with which the hypercall in progress is to run again."""

    def __repr__(self) -> str:
        return f"d{self.domain.id}v{self.id}"

    @property
    def runnable(self) -> bool:
        """Nothing keeps it from running."""
        return not self.pause_flags

    def restart(self, *arguments: int) -> None:
        """The hypercall in progress did not finish: it is to run again with these arguments (Xen's
        continuation).
        """
        self.restarted = arguments

    def place_info(self, at: int) -> None:
        """Its vcpu_info is at this machine address from now on."""
        self.info = at
        if self.native is not None:
            self.native[INFO] = at

    def load_ldt(self) -> None:
        """Make the core's LDTR name this vCPU's LDT at its place in the per-domain area, or none."""
        if self.loaded:
            start = (
                (PERDOMAIN_COMPAT_START if self.domain.pv32 else PERDOMAIN_START)
                + (self.id << VCPU_SHIFT)
                + LDT_OFFSET
            )
            if self.ldt_entries:
                self.core.set_segment(
                    LDT, LDT_SELECTOR, start, self.ldt_entries * DESCRIPTOR_SIZE - 1, LDT_FLAGS
                )
            else:
                self.core.set_segment(LDT, 0, 0, 0, 0)

    def close_ports(self) -> None:
        """Its right to use ports may have changed: the next access traps, and is looked at again."""
        if self.loaded:
            self.core.open_ports(False)

    def read_here(self, address: int, length: int) -> bytes:
        """Bytes at an address of the mode it is in (kernel or user tables); GuestFault as `space` raises."""
        if self.in_kernel or not self.user_root:
            return self.space.read(address, length)
        return self.space.read_at(self.user_root << 12, address, length)

    @property
    def root(self) -> int:
        """The machine frame of the page-table root of the mode it is in."""
        return self.kernel_root if self.in_kernel or not self.user_root else self.user_root


RECENT_CALLS: Final = 16
"""How many hypercalls a crash report can show."""
