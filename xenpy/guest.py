"""One guest of a system: its console, its state, and what can be looked at from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from firmware.abi import io_xenbus as xenbus
from firmware.disk.attach import DiskError
from firmware.memory import frames
from firmware.sched.parameters import ParameterError
from firmware.store.path import home
from xenpy.console import Console
from xenpy.crash import render
from xenpy.errors import BadInputError

if TYPE_CHECKING:
    from firmware.disk.backend import BlockBackend
    from firmware.disk.queue import Statistics
    from firmware.domain.crash import CrashInfo
    from firmware.domain.domain import Domain, DomainState
    from firmware.domain.vcpu import VCpu
    from firmware.sched.parameters import Value
    from xenpy.disks import DiskLike
    from xenpy.system import System

FRAMES_A_MIB: Final = 256
KIB_A_MIB: Final = 1024
RUNSTATES: Final = ("running", "runnable", "blocked", "offline")
"""The run states, in the order of RUNSTATE_* in vcpu.h."""

TYPE_NAMES: Final = {
    frames.NONE: "none", frames.L1_TABLE: "l1", frames.L2_TABLE: "l2", frames.L3_TABLE: "l3",
    frames.L4_TABLE: "l4", frames.SEGMENT_DESCRIPTORS: "descriptors", frames.SHARED: "shared",
    frames.WRITABLE: "writable",
}


STATES: Final = {
    xenbus.XenbusStateInitialising: "initialising", xenbus.XenbusStateInitWait: "waiting for the guest",
    xenbus.XenbusStateConnected: "connected", xenbus.XenbusStateClosing: "closing",
    xenbus.XenbusStateClosed: "closed",
}
"""What the back end of a disk is in, by XenbusState* in io/xenbus.h."""


class GuestDisk:
    """One virtual disk of a guest, as the machine serves it."""

    __slots__ = ("_backend",)

    def __init__(self, backend: BlockBackend) -> None:
        self._backend = backend

    def __repr__(self) -> str:
        return f"<GuestDisk {self.vdev} {self.state}>"

    @property
    def vdev(self) -> str:
        """The guest's name for it: xvda."""
        return self._backend.disk.name

    @property
    def sectors(self) -> int:
        """Its size in sectors of 512 bytes."""
        return self._backend.disk.sectors

    @property
    def read_only(self) -> bool:
        """The guest may only read it."""
        return self._backend.disk.read_only

    @property
    def state(self) -> str:
        """Where it is between being offered and being closed."""
        return STATES[self._backend.phases.state]

    @property
    def halted(self) -> str:
        """What the guest's driver did wrong so that it is no longer served; "" while all is well."""
        return self._backend.halted

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered."""
        return self._backend.in_flight

    @property
    def statistics(self) -> Statistics:
        """Requests and sectors since it was attached."""
        return self._backend.statistics


class Frame(NamedTuple):
    """A machine frame as the hypervisor keeps it: number, owner's id (None: nobody), type, counts, marks."""

    mfn: int
    owner: int | None
    type: str
    type_count: int
    references: int
    validated: bool
    pinned: bool


def frame_of(table: frames.FrameTable, mfn: int) -> Frame:
    """The row of the frame table for one machine frame."""
    flags = table.types[mfn]
    return Frame(mfn, table.owner_of(mfn), TYPE_NAMES[table.type_of(mfn)], table.type_count(mfn),
                 table.references(mfn), bool(flags & frames.VALIDATED), bool(flags & frames.PINNED))


class Guest:
    """A paravirtual guest."""

    __slots__ = ("_domain", "_system", "console")

    def __init__(self, domain: Domain, system: System) -> None:
        self._domain = domain
        self._system = system
        self.console = Console(domain.console, f"guest {domain.name!r}", system.run)

    def __repr__(self) -> str:
        return f"<Guest {self.id} {self.name} {self.state.value}>"

    @property
    def id(self) -> int:
        """Its domain id."""
        return self._domain.id

    @property
    def name(self) -> str:
        """Its name."""
        return self._domain.name

    @property
    def state(self) -> DomainState:
        """Where it is in its life: running, or how it ended."""
        return self._domain.state

    @property
    def ended(self) -> bool:
        """It has powered off, rebooted, suspended or crashed."""
        return self._domain.state.ended

    @property
    def blocked(self) -> bool:
        """None of its vCPUs has anything to run."""
        return not any(vcpu.runnable for vcpu in self._domain.vcpus)

    @property
    def crash(self) -> CrashInfo | None:
        """What is known of its crash; None when it has not crashed."""
        return self._domain.crash

    @property
    def crash_report(self) -> str:
        """The crash as a report for people; empty when it has not crashed."""
        crash = self._domain.crash
        return "" if crash is None else render(crash, self.name, self._domain.image.symbol)

    @property
    def share(self) -> dict[str, Value]:
        """What its scheduler gives it, in that scheduler's parameters: weight, cap, period, ..."""
        return self._system.scheduling.share(self._domain)

    def set_share(self, *, vcpu: int | None = None, **values: Value) -> None:
        """Change its share, or that of one vCPU, while it runs: `set_share(weight=512)`.

        Raises ParameterError when that scheduler has no such parameter, or not that value.
        """
        self._system.scheduling.set_share(self._domain, values, None if vcpu is None else self._vcpu(vcpu))

    def pin(self, cpus: Iterable[int], *, vcpu: int | None = None, soft: bool = False) -> None:
        """Have it, or one vCPU, run on these logical CPUs only; with `soft`, rather than on others. Raises
        ParameterError when it cannot run there.
        """
        wanted = list(cpus)
        for each in self._domain.vcpus if vcpu is None else [self._vcpu(vcpu)]:
            self._system.scheduling.set_affinity(each, *((None, wanted) if soft else (wanted, None)))

    def _vcpu(self, number: int) -> VCpu:
        if not 0 <= number < len(self._domain.vcpus):
            raise ParameterError(f"guest {self.name!r} has vCPUs 0 to {len(self._domain.vcpus) - 1}, "
                                 f"and no {number}")
        return self._domain.vcpus[number]

    def move(self, pool: str | int) -> None:
        """Have it run in another CPU pool. Raises ParameterError."""
        self._system.scheduling.move_domain(self._domain, pool)

    def runstates(self, vcpu: int = 0) -> dict[str, int]:
        """Virtual ns one of its vCPUs has spent running, runnable, blocked and offline."""
        times = self._system.hypervisor.scheduler.runstate_info(self._domain.vcpus[vcpu])[2]
        return dict(zip(RUNSTATES, times, strict=True))

    @property
    def frames(self) -> list[Frame]:
        """Every machine frame it owns, ascending."""
        table = self._system.hypervisor.memory.frames
        return [frame_of(table, mfn) for mfn in table.owned_by(self.id)]

    @property
    def frame_types(self) -> Counter[str]:
        """How many of its frames have each type."""
        return Counter(frame.type for frame in self.frames)

    @property
    def disks(self) -> list[GuestDisk]:
        """Its virtual disks, in the order in which they were attached."""
        return [GuestDisk(backend) for backend in self._system.hypervisor.disks.of(self._domain)]

    def attach_disk(self, disk: DiskLike) -> GuestDisk:
        """Give it one more disk, as in `System.add_domain`, while it runs. Raises BadInputError."""
        try:
            with self._system.disks_for([disk]) as (made,):
                return GuestDisk(self._system.hypervisor.disks.attach(self._domain, made))
        except DiskError as error:
            raise BadInputError(str(error)) from error

    def detach_disk(self, vdev: str, *, force: bool = False) -> bool:
        """Take a disk away. Whether it is gone already: a guest that runs lets go of it first, unless forced.
        BadInputError when it has no such disk.
        """
        try:
            return self._system.hypervisor.detach_disk(self._domain, vdev, force=force)
        except DiskError as error:
            raise BadInputError(str(error)) from error

    def destroy(self) -> None:
        """Take it away between runs, as `xl destroy` does, whatever it was doing: its memory, its disks, its
        share of the CPUs and its entries in the store are free again. What it has said stays readable.
        """
        self._system.destroy(self, self._domain)

    @property
    def memory_mib(self) -> float:
        """The memory it owns now, in MiB: what it was built with less what its balloon has given back."""
        return self._domain.memory.pages / FRAMES_A_MIB

    def set_memory_target(self, mib: int) -> None:
        """Ask its balloon driver to shrink or grow to `mib` MiB, as libxl does: through memory/target.

        It follows while the system runs, if it has such a driver. Raises ValueError unless `mib` is at least
        1 and at most what the guest was built with.
        """
        most = self._domain.memory.maximum // FRAMES_A_MIB
        if not 1 <= mib <= most:
            raise ValueError(f"the memory target of guest {self.name!r} is 1 to {most} MiB, not {mib}")
        self._system.hypervisor.store.write(f"{home(self.id)}/memory/target", str(mib * KIB_A_MIB))

    def read_virtual(self, address: int, length: int, vcpu: int = 0) -> bytes:
        """Guest memory as its vCPU's page tables map it now. Raises GuestFault where they map nothing."""
        return self._domain.vcpus[vcpu].space.read(address, length)
