"""The hypervisor: puts its parts together on a machine, and creates and destroys domains.

It is the machine's trap handler; what happens to a trap is in `traps/entry.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from firmware.abi import xen
from firmware.console import ConsoleIo, DomainConsole
from firmware.disk.attach import Disks
from firmware.disk.backend import BlockBackend
from firmware.disk.cache import BufferCache
from firmware.disk.cache_ops import CacheOps
from firmware.disk.extents import Extent
from firmware.disk.vbd import VirtualDisk
from firmware.domain.builder import build
from firmware.domain.context import Contexts, start_of_day
from firmware.domain.domain import Domain, DomainState
from firmware.domain.image import KernelImage
from firmware.domain.lifecycle import Lifecycle
from firmware.domain.vcpu import VCpu
from firmware.events import EventChannelOps, EventChannels
from firmware.hypercalls import HypercallTable
from firmware.memory.floor import MemoryFloor
from firmware.memory.guest import GuestSpace
from firmware.memory.native import NativeUpdates
from firmware.memory.owner import DEFAULT_GRANTS, GrantLimits, MemoryOwner
from firmware.multicall import Multicall
from firmware.platform import Platform
from firmware.sched import policies  # noqa: F401  registers them
from firmware.sched.control import ANYWHERE, SchedulerControl, Scheduling
from firmware.sched.ops import SchedOps
from firmware.sched.parameters import ParameterError, Value
from firmware.sched.scheduler import Scheduler, SwitchCosts
from firmware.store.boot import Boot, domain_uuid, populate
from firmware.store.connection import Connection
from firmware.store.ring import SharedRing
from firmware.store.store import Store
from firmware.timers import Timers
from firmware.trace import Trace
from firmware.traps.bounce import Bounce
from firmware.traps.bounce32 import Bounce32
from firmware.traps.callbacks import Callbacks
from firmware.traps.cpuid import CpuidPolicy
from firmware.traps.debug import DebugRegisters
from firmware.traps.entry import Traps
from firmware.traps.iret import Iret
from firmware.traps.privileged import Privileged
from firmware.traps.segments import Segments
from firmware.vcpus import VCpuOps, time_info
from firmware.version import Version
from machine.core import Core
from machine.disk import Disk
from machine.machine import Machine

FRAMES_A_MIB: Final = 256
FIRST_FREE_FRAME: Final = 16
"""Frames below are left alone: none is ever frame 0, which guests take for "no frame"."""
LEGACY_VCPUS: Final = 32
"""vCPUs whose vcpu_info lies in the shared_info page (XEN_LEGACY_MAX_VCPUS)."""
MOST_VCPUS: Final = 128
FRAME_SHIFT: Final = 12
CACHE_MIB: Final = 256
"""The buffer cache's limit when none is given: enough for an image's hot part, little for a host."""
SECOND: Final = 1_000_000_000
ONE_INSTRUCTION_NS: Final = 1
"""A slice for the single step of a store that the hypervisor carries out."""


class DomainError(Exception):
    """A domain that cannot be made, in one sentence."""


@dataclass(frozen=True)
class DomainConfig:
    """What a new domain is to be."""

    name: str
    image: KernelImage
    memory_mib: int
    vcpus: int = 1
    cmdline: bytes = b""
    ramdisk: bytes | None = None
    grants: GrantLimits = DEFAULT_GRANTS
    """What its grant table may grow to."""
    disks: tuple[VirtualDisk, ...] = ()
    scheduling: Scheduling = ANYWHERE
    block_cache: bool = False
    """Whether it has the hypercall of the buffer cache."""


class Hypervisor:
    """Xen, on a machine."""

    def __init__(
        self,
        machine: Machine,
        *,
        seed: int = 0,
        log: Callable[[str], None] = lambda line: None,
        policy: str = "rrobin",
        settings: Mapping[str, Value] | None = None,
        costs: SwitchCosts | None = None,
        cache_mib: int = CACHE_MIB,
    ) -> None:
        self.machine = machine
        self.seed = seed
        self.calls = HypercallTable(log)
        self._first_state = machine.cores[0].save()
        self._connections: dict[int, Connection] = {}
        self.lifecycle = Lifecycle(log)
        self.memory = MemoryFloor(machine.memory, machine.cores, FIRST_FREE_FRAME, self.lifecycle)
        self.native = NativeUpdates(machine.native_syscall, machine.memory, self.memory.frames)
        self.calls.native["mmu_update"] = lambda: self.native.done
        self.trace = Trace()
        self.scheduler = Scheduler(
            machine, self.memory.shootdown, policy, settings, costs=costs, trace=self.trace
        )
        self.scheduling = SchedulerControl(self.scheduler)
        self.lifecycle.scheduler = self.scheduler
        self.store = Store()
        self.cache = (
            BufferCache(machine.memory, machine.clock, self.memory.types, cache_mib * FRAMES_A_MIB)
            if cache_mib else None
        )
        self.disks = Disks(machine.memory, machine.clock, self.memory, self.store, log, self.cache)
        self._cache_ops = CacheOps(self.cache, self.disks) if self.cache is not None else None
        self._next_domain = 1
        frames = machine.memory.frames
        self._cpuid = {pv32: CpuidPolicy(pv32=pv32, frames=frames) for pv32 in (False, True)}
        self._make_subsystems()
        self.syscall = self.traps.syscall
        self.exception = self.traps.exception
        for core in machine.cores:
            core.handler = self

    def _make_subsystems(self) -> None:
        machine, memory, calls = self.machine, self.machine.memory, self.calls
        segments = Segments(memory, self.memory)
        timers = Timers(machine.clock, self.scheduler)
        debug = DebugRegisters()
        contexts = Contexts(memory, self.memory.heap.xen_frame(), segments, self.memory, debug)
        self.sched_ops = SchedOps(self.scheduler, memory, machine.clock, timers, self.lifecycle)
        iret = Iret(memory, segments, self.lifecycle)
        self.privileged = Privileged(self._cpuid, debug, self.memory.mmu.extended.load_root)
        self.traps = Traps(
            memory,
            calls,
            Bounce(memory),
            Bounce32(memory, segments),
            self.memory.ptwr,
            self.privileged,
            self.memory.descriptors,
            self.lifecycle,
        )
        iret.faults = self.traps
        self._resume = contexts.resume
        self.scheduler.resume = self._resumed
        self.scheduler.ticking = timers.run_periodic
        self.timers = timers
        for part in (
            timers,
            debug,
            iret,
            self.sched_ops,
            EventChannelOps(self.lifecycle),
            ConsoleIo(),
            Version(),
            Platform(),
            Multicall(calls),
            Callbacks(segments),
            VCpuOps(memory, self.scheduler, contexts, timers, self.lifecycle, self.memory),
        ):
            part.register(calls)
        self.memory.register(calls)
        if self._cache_ops is not None:
            self._cache_ops.register(calls)
        self.lifecycle.on_end.append(self._ended)

    def _resumed(self, vcpu: VCpu, core: Core) -> None:
        """A vCPU was just loaded on a core."""
        self._resume(vcpu, core)
        self.native.serve(vcpu, core)

    # --- the machine's trap handler -------------------------------------------------------------------------

    def dispatch(self, core: Core) -> int | None:
        """Choose who runs on this core; deliver what came for it; the longest slice in ns, or None."""
        current = core.current
        if isinstance(current, VCpu) and current.storing:
            return ONE_INSTRUCTION_NS
        while (slice_ns := self.scheduler.dispatch(core)) is not None:
            vcpu = core.current
            if not isinstance(vcpu, VCpu):
                break
            self.traps.dispatched(vcpu, core)
            if not vcpu.pause_flags:
                break
        return slice_ns

    def cpuid(self, core: Core) -> None:
        """A `cpuid` instruction of a guest."""
        vcpu = core.current
        if isinstance(vcpu, VCpu):
            self.privileged.cpuid(vcpu, core)

    # --- domains --------------------------------------------------------------------------------------------

    def create_domain(self, config: DomainConfig) -> Domain:
        """Build a domain and let its vCPU 0 run. DomainError, DiskError, ImageError or BuildError say what is
        wrong, in one sentence.
        """
        if not 1 <= config.vcpus <= MOST_VCPUS:
            raise DomainError(f"a domain has 1 to {MOST_VCPUS} vCPUs, not {config.vcpus}")
        pages = config.memory_mib * FRAMES_A_MIB
        if pages > self.memory.heap.available:
            raise DomainError(
                f"domain {config.name!r} asks for {config.memory_mib} MiB and the machine has "
                f"{self.memory.heap.available // FRAMES_A_MIB} MiB free: give the machine more memory"
            )
        self.disks.check(config.disks)
        number = self._next_domain
        pv32 = config.image.width == 32
        uuid = domain_uuid(number, self.seed)
        domain = Domain(
            number, config.name, pv32=pv32, handle=bytes.fromhex(uuid.replace("-", "")), image=config.image
        )
        owner = MemoryOwner(
            number, pv32=pv32, maximum=pages, vcpus=config.vcpus, grants=config.grants
        )
        domain.memory = owner
        memory = self.memory
        memory.add_domain(domain)
        try:
            self._populate(domain, config, pages)
        except BaseException:
            self.disks.destroyed(domain)
            memory.remove_domain(domain)
            if domain.shared_info:
                memory.heap.release_xen(domain.shared_info >> FRAME_SHIFT)
            raise
        self._next_domain += 1
        self.lifecycle.domains[number] = domain
        domain.state = DomainState.RUNNING
        self.scheduler.bring_up(domain.vcpus[0])
        return domain

    def _populate(self, domain: Domain, config: DomainConfig, pages: int) -> None:
        machine_memory, memory, owner = self.machine.memory, self.memory, domain.memory
        frames = np.asarray(memory.heap.allocate(owner, pages), dtype=np.uint64)
        shared = memory.heap.xen_frame()
        memory.heap.share_with(shared, owner)
        domain.shared_info = shared << 12
        domain.vcpus.extend(VCpu(domain, index) for index in range(config.vcpus))
        self._shared_info(domain)
        domain.events = EventChannels(domain, machine_memory, self.scheduler)
        store_port = domain.events.connect_backend(lambda: self._store_signal(domain))
        console_port = domain.events.connect_backend(lambda: self._console_signal(domain))
        built = build(
            machine_memory,
            frames,
            config.image,
            cmdline=config.cmdline,
            ramdisk=config.ramdisk,
            shared_info_mfn=shared,
            console_port=console_port,
            store_port=store_port,
        )
        memory.name_frames(built.frames)
        domain.image = config.image.released()
        domain.vm_assist = built.vm_assist
        domain.console = DomainConsole(
            machine_memory, built.console_mfn << 12, lambda: domain.events.raise_port(console_port)
        )
        for vcpu in domain.vcpus:
            vcpu.space = GuestSpace(machine_memory, owner)
            vcpu.saved = self._first_state
        try:
            self.scheduling.admit(domain, config.scheduling)
        except ParameterError as error:
            raise DomainError(f"domain {config.name!r} cannot be scheduled: {error}") from error
        first = domain.vcpus[0]
        if memory.start_root(first, built.root_mfn):
            raise DomainError(
                f"the page tables built for domain {config.name!r} are not valid: this is a fault of xenpy"
            )
        for ring in (built.console_mfn, built.store_mfn):
            memory.hold(domain, ring)
        first.initialised = True
        first.entry = start_of_day(
            pv32=domain.pv32, rip=built.entry, stack=built.stack_va, start_info=built.start_info_va
        )
        populate(
            self.store,
            Boot(
                domain.id,
                config.name,
                config.vcpus,
                config.memory_mib << 10,
                config.memory_mib << 10,
                built.store_mfn,
                store_port,
                built.console_mfn,
                console_port,
                self.seed,
                command_line=config.cmdline.decode("latin-1"),
            ),
        )
        self._connections[domain.id] = self.store.introduce(
            domain.id,
            SharedRing(machine_memory, built.store_mfn << 12),
            lambda: domain.events.raise_port(store_port),
        )
        for disk in config.disks:
            self.disks.attach(domain, disk)
        if config.block_cache and self._cache_ops is not None:
            self._cache_ops.admit(domain)

    def attach_disk(
        self,
        domain: Domain,
        vdev: str,
        disk: Disk,
        *,
        readonly: bool = False,
        extents: tuple[Extent, ...] | None = None,
        shared: bool = False,
    ) -> BlockBackend:
        """Offer a disk, or ranges of it, to a domain that may be running. DiskError or ValueError, in one
        sentence.
        """
        made = VirtualDisk(vdev, disk, read_only=readonly, extents=extents, shared=shared)
        return self.disks.attach(domain, made)

    def detach_disk(self, domain: Domain, vdev: str, *, force: bool = False) -> bool:
        """Take a disk away; whether it is gone, or the guest has yet to let go of it. DiskError."""
        return self.disks.detach(domain, vdev, force=force)

    def _shared_info(self, domain: Domain) -> None:
        """vcpu_info of the first vCPUs, upcalls masked; the wall clock. No event is masked, as a toolstack
        leaves it.
        """
        layout, info = (
            (xen.shared_info.w32, xen.vcpu_info.w32)
            if domain.pv32
            else (xen.shared_info.w64, xen.vcpu_info.w64)
        )
        memory = self.machine.memory
        base = domain.shared_info
        for vcpu in domain.vcpus[:LEGACY_VCPUS]:
            vcpu.place_info(base + info.size * vcpu.id)
        for index in range(LEGACY_VCPUS):
            memory.store8(base + info.size * index + info.offset["evtchn_upcall_mask"], 1)
            memory.write(base + info.size * index + info.offset["time"], time_info(domain.pv32))
        epoch = self.machine.clock.epoch
        memory.store32(base + layout.offset["wc_version"], 2)
        memory.store32(base + layout.offset["wc_sec"], epoch // SECOND & 0xFFFF_FFFF)
        memory.store32(base + layout.offset["wc_nsec"], epoch % SECOND)

    @staticmethod
    def _console_signal(domain: Domain) -> None:
        domain.console.serve()

    def _store_signal(self, domain: Domain) -> None:
        connection = self._connections.get(domain.id)
        if connection is not None:
            connection.service()
            self.store.settle()

    def _ended(self, domain: Domain) -> None:
        for vcpu in domain.vcpus:
            self.timers.stop_all(vcpu)
        self.sched_ops.forget(domain)
        self.disks.ended(domain)
        domain.console.drain()
        self.store.domain_stopped(domain.id)
        if domain.on_end is not None:
            domain.on_end(domain)

    def destroy_domain(self, domain: Domain) -> None:
        """Take an ended domain away: every frame it had is free again. ValueError when it still runs."""
        if not domain.state.ended:
            raise ValueError(f"domain {domain.name!r} has not ended")
        self.disks.destroyed(domain)
        if self._cache_ops is not None:
            self._cache_ops.forget(domain)
        for vcpu in domain.vcpus:
            self.scheduler.remove(vcpu)
        self.scheduler.pools[domain.vcpus[0].pool].policy.forget_domain(domain.id)
        self._connections.pop(domain.id, None)
        self.store.release(domain.id)
        self.privileged.ports.forget(domain.id)
        self.store.remove_domain(domain.id)
        self.memory.remove_domain(domain)
        self.memory.heap.release_xen(domain.shared_info >> FRAME_SHIFT)
        self.lifecycle.domains.pop(domain.id, None)
        domain.state = DomainState.DYING
