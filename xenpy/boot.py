"""`xenpy boot`: one guest on one machine, its console on stdout, and how it ended as an exit status."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from typing import Final

from firmware.domain.domain import DomainState
from machine.topology import Topology
from xenpy.disking import DiskRequest
from xenpy.errors import BadInputError, ExitStatus, XenpyError, reason_of
from xenpy.output import ConsoleSink, RunLog, open_output, write_all
from xenpy.schedule import write_to
from xenpy.scheduling import SchedulingRequest
from xenpy.stops import Stops
from xenpy.system import SECOND, Outcome, Reason, System
from xenpy.terminal import Pacer, Terminal
from xenpy.typing_in import LOOK_NS, Typist

HEADROOM_MIB: Final = 64
"""Memory of the machine besides the guest's."""
STEP_S: Final = 0.01
"""Virtual time between two looks at the keyboard."""
LONGEST_WAIT_S: Final = 0.25
"""Host time between two looks at the signals while nothing happens."""

LIMITS: Final = {
    Reason.WITHIN: "--within is over",
    Reason.WALL: "--wall is over",
    Reason.IDLE: "the guest waits for something that will never come; give it --input, or a terminal",
}

ENDS: Final = {
    DomainState.POWEROFF: "the guest powered off",
    DomainState.REBOOT: "the guest asked for a reboot; that ends the run",
    DomainState.SUSPEND: "the guest suspended; that ends the run",
}
CRASHES: Final = (DomainState.CRASH, DomainState.WATCHDOG)


@dataclass(frozen=True)
class BootRequest:
    """What `xenpy boot` was asked for. Memory in MiB, `within` and `wall` in seconds."""

    image: str
    memory: int = 256
    vcpus: int = 1
    topology: Topology = field(default_factory=Topology)
    ramdisk: Path | None = None
    cmdline: str = ""
    name: str | None = None
    seed: int = 0
    inputs: tuple[bytes, ...] = ()
    until: re.Pattern[str] | None = None
    within: float | None = None
    wall: float | None = None
    log: Path | None = None
    stats: Path | None = None
    hash_blocks: bool = False
    scheduling: SchedulingRequest = field(default_factory=SchedulingRequest)
    store_socket: Path | None = None
    disks: DiskRequest = field(default_factory=DiskRequest)
    interactive: bool = True
    """Give the guest the keyboard, if stdin is one and there is no `inputs`."""


class BootRun:
    """One run of one guest; what `boot` and `demo` share."""

    __slots__ = (
        "_guest", "_log", "_request", "_schedule", "_sink", "_stats", "_stops", "_system", "_terminal",
    )

    def __init__(self, request: BootRequest, stack: ExitStack) -> None:
        self._request = request
        self._terminal: Terminal | None = None
        self._stops = stack.enter_context(Stops())
        self._stats: FileIO | None = None
        self._schedule: FileIO | None = None
        self._log: RunLog | None = None
        self._sink = ConsoleSink(1, lambda: self._stops.requested is not None)
        wanted = request.scheduling
        self._system = stack.enter_context(System(
            request.topology, memory=_machine_mib(request), seed=request.seed,
            hash_blocks=request.hash_blocks, profile=request.stats is not None, log=self.say,
            scheduler=wanted.policy, settings=wanted.parsed_settings(), smt_factor=wanted.smt_factor,
            faults=request.disks.faults, disk_cache=request.disks.cache,
        ))
        if request.stats is not None:
            self._stats = stack.enter_context(open_output(request.stats, "--stats"))
        if wanted.trace is not None:
            self._schedule = stack.enter_context(open_output(wanted.trace, "--sched-trace"))
            self._system.trace.start()
        if request.log is not None:
            self._log = stack.enter_context(RunLog(request.log, lambda: self._system.now_ns))
        self._guest = self._system.add_domain(
            request.image, name=request.name, memory=request.memory, vcpus=request.vcpus,
            cmdline=request.cmdline, ramdisk=request.ramdisk,
            scheduling=wanted.wanted(request.topology.cpus), disks=request.disks.specs,
            disk_scheduler=request.disks.policy, disk_settings=request.disks.parsed_settings(),
            cache_calls=request.disks.cache_calls,
        )
        request.disks.set_shares(self._system, self._guest)
        if request.store_socket is not None:
            self._system.serve_store(request.store_socket)

    def go(self) -> int:
        """Run to the end; the exit status. Raises XenpyError when it is not the guest that ended it."""
        status, why = int(ExitStatus.FAULT), "a fault of xenpy"
        try:
            status, why = self._run()
        except XenpyError as error:
            status, why = error.status, str(error)
            raise
        finally:
            self._write_stats(status, why)
            self._write_schedule()
        return status

    def say(self, text: str) -> None:
        """A message: to stderr, and to the log."""
        end = "\r\n" if self._terminal is not None and self._terminal.raw else "\n"
        lines = "".join(f"xenpy: {line}{end}" for line in text.splitlines())
        with suppress(OSError):
            os.write(2, lines.encode("utf-8", "backslashreplace"))
        if self._log is not None:
            self._log.message(text)

    def _run(self) -> tuple[int, str]:
        console = self._guest.console
        console.tap(self._sink.write)
        if self._log is not None:
            log, name = self._log, self._guest.name
            console.tap(lambda data: log.console(name, data))
        matched = None if self._request.until is None else console.watch(self._request.until)

        def enough() -> bool:
            return (self._stops.requested is not None or self._sink.failure is not None
                    or (matched is not None and matched()))

        if self._request.interactive and not self._request.inputs and _has_keyboard():
            outcome = self._interact(enough)
        else:
            outcome = self._unattended(enough)
        self._sink.check()
        self._stops.check()
        return self._verdict(outcome)

    def _unattended(self, enough: Callable[[], bool]) -> Outcome:
        if self._request.inputs:
            typist = Typist(self._guest.console, lambda: self._guest.blocked, self._request.inputs)
            self._system.every(LOOK_NS, typist.look)
        started, wall = time.monotonic(), self._request.wall
        socket = self._system.store_socket
        while True:
            spent = time.monotonic() - started
            left = None if wall is None else max(wall - spent, 0.0)
            outcome = self._system.run(enough, self._request.within, left)
            if outcome.reason is not Reason.IDLE or socket is None:
                return outcome
            if left == 0.0:
                return replace(outcome, reason=Reason.WALL)
            # What the guest waits for may come through the socket.
            socket.wait(LONGEST_WAIT_S if left is None else min(left, LONGEST_WAIT_S))

    def _interact(self, enough: Callable[[], bool]) -> Outcome | None:
        """Give the guest the keyboard; None when the user detached."""
        request, system = self._request, self._system
        self.say("the keyboard is the guest's; ctrl-] ends")
        started = time.monotonic()
        with Terminal() as terminal:
            self._terminal = terminal
            socket = system.store_socket
            others = (lambda: ()) if socket is None else (lambda: socket.descriptors)
            pacer = Pacer(system.now_ns, system.busy_ns)
            owed = 0.0
            while True:
                keys = terminal.keys(min(owed, LONGEST_WAIT_S), others())
                if keys:
                    self._guest.console.send(keys)
                if terminal.detached:
                    return None
                outcome = system.run(enough, within=STEP_S)
                spent = time.monotonic() - started
                if request.within is not None and system.now_ns >= request.within * SECOND:
                    return replace(outcome, reason=Reason.WITHIN)
                if request.wall is not None and spent >= request.wall:
                    return replace(outcome, reason=Reason.WALL)
                if outcome.reason is Reason.IDLE:
                    system.pass_time(STEP_S)
                elif outcome.reason is not Reason.WITHIN:
                    return outcome
                owed = pacer.owed(system.now_ns, system.busy_ns)

    def _verdict(self, outcome: Outcome | None) -> tuple[int, str]:
        guest = self._guest
        at = f"at {self._system.now_ns / SECOND:.6f} s of virtual time"
        if outcome is None:
            status, why = ExitStatus.DONE, "detached; the guest is gone"
        elif outcome.reason is Reason.POWER:
            status, why = ExitStatus.CRASHED, self._system.power_cut
        elif guest.state in CRASHES:
            self.say(guest.crash_report or f"guest {guest.name!r} {guest.state.value}")
            return ExitStatus.CRASHED, guest.state.value
        elif guest.ended:
            status, why = ExitStatus.DONE, ENDS.get(guest.state, guest.state.value)
        elif outcome.reason is Reason.CONDITION:
            status, why = ExitStatus.DONE, "--until matched"
        else:
            status, why = ExitStatus.LIMIT, LIMITS[outcome.reason]
        self.say(f"{why}, {at}")
        return status, why

    def _write_stats(self, status: int, why: str) -> None:
        stats = self._system.stats()
        if stats.block_hash is not None:
            self.say(f"block hash {stats.block_hash}")
        if self._stats is not None:
            try:
                write_all(self._stats, stats.json(status, why).encode())
            except OSError as error:
                raise BadInputError(f"--stats {self._request.stats}: {reason_of(error)}") from error

    def _write_schedule(self) -> None:
        path = self._request.scheduling.trace
        if self._schedule is not None and path is not None:
            try:
                write_to(self._schedule, path, self._system.trace, self._system.now_ns)
            except OSError as error:
                raise BadInputError(f"--sched-trace {path}: {reason_of(error)}") from error


def boot(request: BootRequest) -> int:
    """Boot a guest and run it to its end; the exit status. Raises XenpyError."""
    with ExitStack() as stack:
        return BootRun(request, stack).go()


def demo() -> int:
    """Boot the guest that comes along, and say what was seen."""
    return boot(BootRequest("builtin:hello", topology=Topology(cores=2), memory=16, interactive=False))


def _machine_mib(request: BootRequest) -> int:
    """Memory of the machine: the guest's, some besides, and what the disks' cache may use."""
    return request.memory + HEADROOM_MIB + (request.disks.cache if request.disks.specs else 0)


def _has_keyboard() -> bool:
    """Stdin is a terminal, and it is ours: not that of a job in the background."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
