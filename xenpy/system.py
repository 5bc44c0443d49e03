"""The API that tests and scripts use: a machine with Xen as its firmware, its guests, and runs of it.

>>> with System(cpus=2) as system:
...     guest = system.add_domain("builtin:hello")
...     match = guest.console.expect("Hello from")
...     outcome = system.run()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Final

from firmware.abi.sched import SHUTDOWN_poweroff
from firmware.disk.attach import DiskError
from firmware.disk.scheduler import DEFAULT_POLICY
from firmware.disk.vbd import VirtualDisk
from firmware.domain.domain import Domain
from firmware.domain.errors import BuildError
from firmware.hypervisor import CACHE_MIB, DomainConfig, DomainError, Hypervisor
from firmware.sched.control import ANYWHERE, SchedulerControl, Scheduling
from firmware.sched.parameters import ParameterError, Value
from firmware.trace import Trace
from machine.disk import Model
from machine.faults import Fault, PowerCut
from machine.machine import DEFAULT_QUANTUM_NS, SMT_FACTOR, Machine, MachineConfig, RunEnd
from machine.topology import Topology
from xenpy import images, schedule
from xenpy.disks import DEFAULT_MODEL, DiskLike, EmulatedDisk, Shelf
from xenpy.errors import BadInputError
from xenpy.guest import FRAMES_A_MIB, Frame, Guest, frame_of
from xenpy.stats import Stats
from xenpy.store import StoreView
from xenpy.store_socket import StoreSocket

MIB: Final = 1 << 20
DEFAULT_SCHEDULER: Final = "rrobin"
SECOND: Final = 1_000_000_000
EPOCH: Final = 1_672_531_200 * SECOND
"""The wall clock at virtual time 0 when nothing else is asked for: 2023-01-01 00:00 UTC."""
MACHINE_MIB: Final = 4096
"""Memory of a machine when nothing else is asked for. It is reserved, not used."""


class Reason(Enum):
    """Why a run came to its end."""

    CONDITION = "the condition was met"
    ENDED = "every guest has ended"
    WITHIN = "the virtual time was over"
    WALL = "the host time was over"
    IDLE = "every guest waits for something that will never come"
    POWER = "the power failed"


@dataclass(frozen=True)
class Outcome:
    """The end of a run: why, the machine's virtual time in ns, and the run's host time in seconds."""

    reason: Reason
    virtual_ns: int
    wall_s: float

    def __str__(self) -> str:
        return f"{self.reason.value} at {self.virtual_ns / SECOND:.6f} s of virtual time"


class System:
    """A machine, its hypervisor and its guests. A context manager: leaving it frees the machine.

    `topology` is "sockets x cores x threads", or `cpus` gives one socket of that many cores. `memory` is
    the whole machine's in MiB, `seed` that of all randomness, `epoch` the wall clock at virtual time 0 in
    ns since 1970. `hash_blocks` hashes every executed block; `profile` keeps host times, for
    `stats().python_share`. `log` gets the hypervisor's messages, a line each. `scheduler` names the policy
    that shares the CPUs out, `settings` are its parameters (`xenpy schedulers` lists them); `smt_factor` is
    a thread's speed while its sibling is busy. `quantum_ns` is how far one CPU may run ahead of another: how
    exactly CPUs that wait for each other in loops do so, and how long the host takes. `faults` are what goes
    wrong with disks, as `machine.faults.Fault` or in its words: "disk.read:device=xvda,probability=0.01".
    `disk_cache` is how many MiB of memory that no domain has may keep what was read from disks; 0: none.
    """

    def __init__(self, topology: str | Topology | None = None, *, cpus: int = 1, memory: int = MACHINE_MIB,
                 seed: int = 0, epoch: int = EPOCH, hash_blocks: bool = False,
                 profile: bool = False, log: Callable[[str], None] | None = None,
                 scheduler: str = DEFAULT_SCHEDULER, settings: Mapping[str, Value] | None = None,
                 quantum_ns: int = DEFAULT_QUANTUM_NS,
                 smt_factor: float = SMT_FACTOR,
                 faults: Sequence[Fault | str] = (), disk_cache: int = CACHE_MIB) -> None:
        if topology is None:
            topology = Topology(cores=cpus)
        elif isinstance(topology, str):
            topology = Topology.parse(topology)
        self.machine = Machine(MachineConfig(
            topology=topology, memory=memory * MIB, seed=seed, epoch=epoch, hash_blocks=hash_blocks,
            smt_factor=smt_factor, quantum_ns=quantum_ns,
        ))
        self.machine.profile = profile
        self.messages: list[str] = []
        """What the hypervisor has said about the guests so far."""
        self._log = log
        try:
            self.hypervisor = Hypervisor(
                self.machine, seed=seed, log=self._message, policy=scheduler, settings=settings,
                cache_mib=disk_cache,
            )
        except ParameterError as error:
            self.machine.close()
            raise BadInputError(str(error)) from error
        try:
            self._shelf = Shelf(self.hypervisor, seed, faults)
        except BadInputError:
            self.machine.close()
            raise
        self.guests: list[Guest] = []
        self.store_socket: StoreSocket | None = None
        """Where programs of the host find the store (`serve_store`)."""
        self.power_cut = ""
        """How the power failed, as a fault asked for; the machine runs no more then."""
        self._wall = 0.0

    def __enter__(self) -> System:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close the disks, and free the machine. Guests of a closed system can no longer be run or
        inspected. BadInputError, when all that is done, for a disk that lost data.
        """
        try:
            self._shelf.close()
        finally:
            if self.store_socket is not None:
                self.store_socket.close()
            self.machine.close()

    @property
    def now_ns(self) -> int:
        """The machine's virtual time: that of the core that is furthest."""
        return max(self.machine.clock.now, *(core.now() for core in self.machine.cores))

    def add_domain(self, image: str | Path | bytes, *, name: str | None = None, memory: int = 64,
                   vcpus: int = 1, cmdline: str | bytes = "",
                   ramdisk: str | Path | bytes | None = None,
                   scheduling: Scheduling = ANYWHERE, disks: Sequence[DiskLike] = (),
                   disk_scheduler: str = DEFAULT_POLICY,
                   disk_settings: Mapping[str, Value] | None = None, cache_calls: bool = False) -> Guest:
        """Build a guest from a path, `builtin:NAME` or the image's bytes, with `memory` in MiB.
        `scheduling` says its share (weight, cap, ...), its CPU pool and where it may run. `disks` are in the
        words of xl ("format=raw, vdev=xvda, target=root.img") or come from `EmulatedDisk.use`; disks that are
        opened for the first time get `disk_scheduler`. With `cache_calls` the guest may map cached blocks.

        Raises BadInputError when the image cannot be read or is none, or the memory does not suffice.
        """
        kernel = images.load(image)
        if ramdisk is not None and not isinstance(ramdisk, bytes):
            ramdisk = images.read(Path(ramdisk), "RAM disk", memory * MIB)
        line = cmdline.encode("utf-8", "surrogateescape") if isinstance(cmdline, str) else cmdline
        try:
            with self._shelf.uses(disks, disk_scheduler, disk_settings) as attached:
                domain = self.hypervisor.create_domain(DomainConfig(
                    name=name or kernel.name.removeprefix(images.BUILTIN), image=kernel, memory_mib=memory,
                    vcpus=vcpus, cmdline=line, ramdisk=ramdisk, scheduling=scheduling, disks=attached,
                    block_cache=cache_calls,
                ))
        except DiskError as error:
            raise BadInputError(str(error)) from error
        except (BuildError, DomainError) as error:
            raise BadInputError(f"{kernel.path}: {error}") from error
        guest = Guest(domain, self)
        self.guests.append(guest)
        return guest

    def add_disk(self, target: str | Path | None = None, *, format: str = "raw",  # noqa: A002 - xl's word
                 size: int | None = None, model: str | Model = DEFAULT_MODEL, name: str | None = None,
                 read_only: bool = False, snapshot: bool = False, overlay: str | Path | None = None,
                 write_cache: bool = False, scheduler: str = DEFAULT_POLICY,
                 settings: Mapping[str, Value] | None = None) -> EmulatedDisk:
        """An emulated disk, for any number of guests (`EmulatedDisk.use`).

        It is the image `target` in `format` ("raw", "qcow2"), or a temporary one of `size` MiB. `model` is
        "flash", "spinning" or a model of `machine.disk`. With `snapshot` changes are thrown away, with
        `overlay` they go to that file. `write_cache`: what is not flushed can be lost in a power cut.
        `scheduler` ("fifo", "batch", "cello") decides whose request goes next. Raises BadInputError.
        """
        return self._shelf.add(
            target, format=format, size=size, model=model, name=name, read_only=read_only, snapshot=snapshot,
            overlay=overlay, write_cache=write_cache, scheduler=scheduler, settings=settings)

    @property
    def disks(self) -> list[EmulatedDisk]:
        """The emulated disks, in the order in which they were opened."""
        return list(self._shelf.disks)

    def resize_disk_cache(self, mib: int) -> None:
        """Have the disks' cache keep at most so many MiB from now on. ValueError when the system was made
        without one, or below 0.
        """
        if self.hypervisor.cache is None:
            raise ValueError("this system has no cache of disks: give it a disk_cache when it is made")
        self.hypervisor.cache.set_limit(mib * FRAMES_A_MIB)

    def disks_for(self, disks: Sequence[DiskLike]) -> AbstractContextManager[tuple[VirtualDisk, ...]]:
        """Disks as a guest is to see them, opened where they are not; closed again when the block fails."""
        return self._shelf.uses(disks)

    @property
    def store(self) -> StoreView:
        """The xenstore, with the rights of domain 0."""
        return StoreView(self.hypervisor.store)

    def serve_store(self, path: str | Path) -> StoreSocket:
        """Answer for the store on a socket while the machine runs, for `xenpy store` and other programs that
        talk to xenstored. Raises BadInputError.
        """
        if self.store_socket is not None:
            raise BadInputError("the store has its socket already")
        self.store_socket = StoreSocket(Path(path), self.hypervisor.store)
        return self.store_socket

    @property
    def scheduling(self) -> SchedulerControl:
        """Pools, affinity, shares and policies, all changed while the machine runs."""
        return self.hypervisor.scheduling

    @property
    def trace(self) -> Trace:
        """The schedule trace: `trace.start()`, then `write_schedule`."""
        return self.hypervisor.trace

    def write_schedule(self, path: str | Path) -> None:
        """Write the schedule trace to a file: .json for Chrome and Perfetto, .txt a timeline. BadInputError
        when that cannot be.
        """
        schedule.write(self.trace, Path(path), self.now_ns)

    def destroy(self, guest: Guest, domain: Domain) -> None:
        """See `Guest.destroy`."""
        if guest not in self.guests:
            return
        guest.console.refill()
        self.hypervisor.lifecycle.shutdown(domain, SHUTDOWN_poweroff)
        self.hypervisor.destroy_domain(domain)
        self.guests.remove(guest)

    def run(self, until: Callable[[], bool] | None = None, within: float | None = None,
            wall: float | None = None) -> Outcome:
        """Run until the condition holds, every guest has ended, or a limit: virtual or host seconds.

        Without a limit it goes on until nothing can ever happen again.
        """
        started = time.monotonic()
        deadline = None if within is None else self.now_ns + round(within * SECOND)
        met = False

        def enough() -> bool:
            nonlocal met
            if self.store_socket is not None:
                self.store_socket.look()
            going = False
            for guest in self.guests:
                guest.console.refill()
                going = going or not guest.ended
            met = met or (until is not None and until())
            return met or not (going or self._disks_busy)

        end = RunEnd.CONDITION
        try:
            if not self.power_cut and not enough():
                end = self.machine.run(enough, deadline, wall)
            enough()
        except PowerCut as cut:
            self.power_cut = str(cut).rstrip(".")
        spent = time.monotonic() - started
        self._wall += spent
        return Outcome(self._reason(end, met), self.now_ns, spent)

    def every(self, period_ns: int, action: Callable[[], bool]) -> None:
        """Call `action` every so many ns of virtual time for as long as it returns True."""
        clock = self.machine.clock

        def tick(_: object) -> None:
            if action():
                clock.at(clock.now + period_ns, tick, None)

        clock.at(clock.now + period_ns, tick, None)

    def pass_time(self, seconds: float) -> None:
        """Have virtual time pass in the next run even if no guest asks for it."""
        clock = self.machine.clock
        clock.at(clock.now + round(seconds * SECOND), lambda _: None)

    @property
    def busy_ns(self) -> int:
        """Virtual time that the cores were not idle, all together."""
        return sum(core.busy_ns for core in self.machine.cores)

    def frame(self, mfn: int) -> Frame:
        """One machine frame as the hypervisor keeps it."""
        return frame_of(self.hypervisor.memory.frames, mfn)

    def stats(self) -> Stats:
        """The counters since the machine was built."""
        counters = self.machine.counters
        share = None
        if counters.run_ns:
            share = (counters.run_ns - counters.slice_ns + counters.callback_ns) / counters.run_ns
        block_hash = self.machine.block_hash
        disks, faults = self._shelf.stats()
        return Stats(
            blocks=sum(counters.blocks),
            virtual_ns=self.now_ns,
            wall_s=self._wall,
            python_share=share,
            hypercalls=self.hypervisor.calls.named_counts(),
            traps=self.hypervisor.traps.named_counts(),
            tlb_flushes=sum(counters.flushes) + sum(counters.page_flushes),
            switches=self.hypervisor.scheduler.switches,
            block_hash=None if block_hash is None else f"{block_hash:016x}",
            disks=disks,
            faults=faults,
            disk_cache=self._shelf.cache_stats(),
        )

    @property
    def _disks_busy(self) -> bool:
        """What guests asked of the disks before they ended is carried out."""
        return any(not disk.idle for disk in self._shelf.disks)

    def _reason(self, end: RunEnd, met: bool) -> Reason:
        if self.power_cut:
            return Reason.POWER
        if met:
            return Reason.CONDITION
        if all(guest.ended for guest in self.guests):
            return Reason.ENDED
        return {RunEnd.DEADLINE: Reason.WITHIN, RunEnd.WALL: Reason.WALL}.get(end, Reason.IDLE)

    def _message(self, text: str) -> None:
        self.messages.append(text)
        if self._log is not None:
            self._log(text)
