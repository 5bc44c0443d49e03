"""Machine: puts the parts together and owns the run loop. No policy."""

from __future__ import annotations

import gc
import random
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic, perf_counter_ns
from types import FrameType

from .clock import Clock
from .core import FULL_SPEED, Core, TrapHandler
from .engine import Engine, EngineOptions, SharedWord
from .memory import MachineMemory
from .topology import Topology
from .turns import Turns

DEFAULT_QUANTUM_NS = 200_000  # how far one core may run ahead of another
MAX_SLICE_NS = 10_000_000  # between two looks at `until`, the wall clock and SIGINT
SLICES_A_COLLECTION = 4096  # the collector runs between slices only: inside traps it costs 4 % of a boot
SIXTEEN_MIB = 16 << 20
SLOWEST = 0.001  # the least SMT factor
SMT_FACTOR = 0.6  # two busy threads of a core do 1.2 times the work of one


class RunEnd(Enum):
    """Why `Machine.run` returned."""

    CONDITION = "until() was true"
    DEADLINE = "the virtual deadline was reached"
    WALL = "the wall-clock limit was reached"
    IDLE = "nothing is runnable and no event is pending: nothing will ever change"
    HALTED = "halt() was called"


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """`memory` in bytes; `epoch`: wall-clock ns at virtual 0; `hash_blocks`: hash every block that runs.

    `smt_factor`: the speed of a logical CPU, in parts of its full one, while another thread of its core is
    busy; more than 0, and 1 when threads do not disturb each other. ValueError otherwise.
    """

    topology: Topology = field(default_factory=Topology)
    memory: int = SIXTEEN_MIB
    seed: int = 0
    epoch: int = 0
    hash_blocks: bool = False
    quantum_ns: int = DEFAULT_QUANTUM_NS
    smt_factor: float = SMT_FACTOR
    engine: EngineOptions = field(default_factory=EngineOptions)

    def __post_init__(self) -> None:
        if not SLOWEST <= self.smt_factor <= 1:
            raise ValueError(f"an SMT factor of {self.smt_factor} is not from {SLOWEST} to 1")


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums since the machine was built; tuples are indexed by core.

    The ns are host time, for reports, and 0 without `Machine.profile`: `run_ns` of all, `slice_ns` of the
    slices in it, `callback_ns` of the traps in those; between slices, `dispatch_ns` of the dispatches and
    `event_ns` of what events call. What is left is the run loop itself, and `until`.
    """

    blocks: tuple[int, ...]
    tsc_reads: tuple[int, ...]
    flushes: tuple[int, ...]
    page_flushes: tuple[int, ...]
    bank_switches: tuple[int, ...]
    slices: int
    switches: int
    events: int
    tlb_fills: int
    slow_stores: int
    kept_slow: int
    code_frames: int
    run_ns: int
    slice_ns: int
    callback_ns: int
    dispatch_ns: int
    event_ns: int


class Unhandled:
    """The handler of a core nobody has taken: nothing to run, every trap is an error."""

    def dispatch(self, core: Core) -> int | None:
        """Idle."""
        return None

    def syscall(self, core: Core) -> None:
        """Nobody asked for it."""
        raise RuntimeError(f"core {core.index}: syscall without a handler")

    def exception(self, core: Core, vector: int, error: int, software: bool) -> None:
        """Nobody asked for it."""
        raise RuntimeError(f"core {core.index}: vector {vector}, error {error:#x}, without a handler")

    def cpuid(self, core: Core) -> None:
        """Nobody asked for it."""
        raise RuntimeError(f"core {core.index}: cpuid without a handler")


class Machine:
    """`memory`, `cores`, `clock`, `random` (seeded). A context manager; `close()` gives the engine back.

    `degraded`: empty, or why the engine runs slower than it could. `profile`: keep host times too.
    """

    def __init__(self, config: MachineConfig) -> None:
        self.config = config
        self.memory = MachineMemory(config.memory)
        self.clock = Clock(config.epoch)
        self.random = random.Random(config.seed)
        self._engine = Engine(
            (self.memory.address, self.memory.size),
            self.memory.code_address,
            config.topology.cpus,
            config.engine,
            config.hash_blocks,
        )
        self.degraded = self._engine.degraded
        self.memory.connect(self._engine.invalidate, every_write=not self._engine.lean)
        nobody: TrapHandler = Unhandled()
        self.cores = tuple(Core(self._engine, cpu, i, nobody) for i, cpu in enumerate(self._engine.cpus))
        self._turns = Turns(self.cores)
        self._shared_rate = round(FULL_SPEED / config.smt_factor)
        self._siblings: tuple[tuple[Core, ...], ...] = ()
        if config.topology.threads > 1 and self._shared_rate != FULL_SPEED:
            topology = config.topology
            self._siblings = tuple(
                tuple(self.cores[other] for other in topology.siblings(cpu)) for cpu in range(topology.cpus)
            )
        self._quantum = config.quantum_ns
        self._running: Core | None = None
        self._last: Core | None = None
        self._halted = False
        self._interrupted = False
        self._profile = False
        self._slices = self._switches = 0
        self._run_ns = self._slice_ns = self._dispatch_ns = self._event_ns = 0
        self._closed = False
        self.clock.earlier = self._earlier

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- running

    def run(
        self,
        until: Callable[[], bool] | None = None,
        deadline_ns: int | None = None,
        wall_s: float | None = None,
    ) -> RunEnd:
        """Run until something ends it. `until` and the wall clock are looked at between slices only.

        SIGINT ends the slice and is raised here as KeyboardInterrupt: the machine stays whole. An
        exception of a handler is raised here too.
        """
        if self._closed:
            raise RuntimeError("the machine is closed")
        if self._running is not None:
            raise RuntimeError("the machine is running")
        ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        begin = perf_counter_ns() if self._profile else 0
        self._interrupted = self._halted = False
        if ours:
            signal.signal(signal.SIGINT, self._on_interrupt)
        collecting = gc.isenabled()
        gc.disable()
        try:
            with self._engine.translating():
                return self._loop(until, deadline_ns, None if wall_s is None else monotonic() + wall_s)
        finally:
            self._running = None
            if collecting:
                gc.enable()
            if ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            if begin:
                self._run_ns += perf_counter_ns() - begin

    def _loop(self, until: Callable[[], bool] | None, deadline: int | None, wall: float | None) -> RunEnd:
        clock, turns, visible_time = self.clock, self._turns, self._engine.time
        turns.restart()
        while True:
            if self._interrupted:
                raise KeyboardInterrupt
            if self._halted:
                return RunEnd.HALTED
            if until is not None and until():
                return RunEnd.CONDITION
            if wall is not None and monotonic() >= wall:
                return RunEnd.WALL
            first = turns.first()
            due = clock.next()
            if first is not None:
                now = first[0]
            elif due is not None:
                now = due
            else:
                return RunEnd.IDLE
            if deadline is not None and (now > deadline if first is None else now >= deadline):
                clock.advance(deadline)
                return RunEnd.DEADLINE
            visible_time[0] = now
            if first is None or (due is not None and due <= now):
                self._fire(now)
                continue  # what fired may have woken a core that is further behind
            if now > clock.now:
                clock.now = now
            turns.take()
            core = self.cores[first[1]]
            granted = self._dispatch(core)
            if granted is None:
                core.idle = True
                core.busy = False
                continue
            if not (self._halted or self._interrupted):  # the dispatch may have ended the run
                self._slice(core, self._slice_end(core, granted, deadline))
            turns.add(core)

    def _fire(self, now: int) -> None:
        begin = perf_counter_ns() if self._profile else 0
        self.clock.advance(now)
        if begin:
            self._event_ns += perf_counter_ns() - begin

    def _dispatch(self, core: Core) -> int | None:
        if not self._profile:
            return core.handler.dispatch(core)
        begin = perf_counter_ns()
        granted = core.handler.dispatch(core)
        self._dispatch_ns += perf_counter_ns() - begin
        return granted

    def _slice_end(self, core: Core, granted: int, deadline: int | None) -> int:
        end = core.now() + (granted if granted < MAX_SLICE_NS else MAX_SLICE_NS)
        due = self.clock.next()
        if due is not None and due < end:
            end = due
        if deadline is not None and deadline < end:
            end = deadline
        behind = self._turns.first()
        if behind is not None and behind[0] + self._quantum < end:
            end = behind[0] + self._quantum
        return end

    def _slice(self, core: Core, end: int) -> None:
        if core is not self._last:
            self._last = core
            self._switches += 1
        self._slices += 1
        if not self._slices % SLICES_A_COLLECTION:
            gc.collect(0)
        core.busy = True
        if self._siblings:
            self._set_pace(core)
        self._running = core
        try:
            if self._profile:
                begin = perf_counter_ns()
                core.run(end)
                self._slice_ns += perf_counter_ns() - begin
            else:
                core.run(end)
        finally:
            self._running = None
        failure = self._engine.failure
        if failure is not None:
            self._engine.failure = None
            raise failure

    def _set_pace(self, core: Core) -> None:
        """Threads of one core share its units. A change counts from its next slice, but for `wake`."""
        for other in self._siblings[core.index]:
            if other.busy:
                core.pace(self._shared_rate)
                return
        core.pace(FULL_SPEED)

    def _earlier(self, when: int) -> None:
        if self._running is not None:
            self._running.limit(when)

    def _on_interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt  # asked twice: whoever handles the first one does not return
        self._interrupted = True
        if self._running is not None:
            self._running.stop()

    def wake(self, core: Core, at_ns: int) -> None:
        """An idle core has work from this time on. Harmless when it is not idle."""
        if not core.idle:
            return
        core.idle = False
        core.busy = True
        core.advance(at_ns)
        self._turns.add(core)
        running = self._running
        if running is not None:
            if self._siblings and running in self._siblings[core.index]:
                running.pace(self._shared_rate)
            running.limit(core.now() + self._quantum)

    def native_syscall(self, source: str, values: Mapping[str, int]) -> bool:
        """A native handler of system calls, asked before `TrapHandler.syscall` on cores with a `native` word:
        assembler text in which `{NAME}` stands for `values[NAME]`, a register's offset or the routine SEE
        (what it gets and may do: `Engine.native_syscall`, `stubs.s`). False when native handlers are off.
        """
        if self.config.engine.native:
            self._engine.native_syscall(source, values)
        return self.config.engine.native

    def halt(self) -> None:
        """End `run` before the next slice, and the running slice now."""
        self._halted = True
        if self._running is not None:
            self._running.stop()

    # -- looking

    @property
    def running(self) -> Core | None:
        """The core in the middle of a slice; None between slices, as in the callbacks of events."""
        return self._running

    @property
    def block_hash(self) -> int | None:
        """Hash of (core, address) of every executed block in order; None without `hash_blocks`."""
        return int(self._engine.shared[SharedWord.HASH]) if self.config.hash_blocks else None

    @property
    def profile(self) -> bool:
        """Whether host times are kept."""
        return self._profile

    @profile.setter
    def profile(self, on: bool) -> None:
        if on != self._profile:
            self._profile = on
            self._engine.hooks.profile(on)

    @property
    def counters(self) -> Counters:
        """The counters as they are now."""
        cores, shared = self.cores, self._engine.shared
        return Counters(
            blocks=tuple(core.blocks for core in cores),
            tsc_reads=tuple(core.tsc_reads for core in cores),
            flushes=tuple(core.flushes for core in cores),
            page_flushes=tuple(core.page_flushes for core in cores),
            bank_switches=tuple(core.bank_switches for core in cores),
            slices=self._slices,
            switches=self._switches,
            events=self.clock.fired,
            tlb_fills=shared[SharedWord.FILLS],
            slow_stores=shared[SharedWord.SLOW_STORES],
            kept_slow=shared[SharedWord.KEPT_SLOW],
            code_frames=shared[SharedWord.PROTECTED],
            run_ns=self._run_ns,
            slice_ns=self._slice_ns,
            callback_ns=self._engine.callback_ns,
            dispatch_ns=self._dispatch_ns,
            event_ns=self._event_ns,
        )

    def close(self) -> None:
        """Give the engine back. Memory and registers stay readable."""
        if not self._closed:
            self._closed = True
            self.memory.disconnect()
            for core in self.cores:
                core.retire()
            self._engine.close()
