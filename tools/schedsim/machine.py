"""The run loop of `machine.machine.Machine` over cores without processors: the same rules, by the same clock.

The core furthest behind runs next, at most a quantum ahead of the others; events happen in between.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from types import SimpleNamespace
from typing import Any, Final

from machine.clock import Clock
from machine.machine import DEFAULT_QUANTUM_NS, MAX_SLICE_NS
from machine.topology import Topology
from tools.schedsim.core import SimCore

SMT_FACTOR: Final = 0.6
"""The speed of a thread beside a busy one, as in `machine.machine.MachineConfig`."""
PARTS: Final = 10_000
"""Speeds are counted in parts of a core's full speed, so that work is a whole number of ns."""


class SimMachine:
    """`cores`, `clock`, `running`: what the mechanism needs of a machine."""

    def __init__(self, topology: Topology, quantum_ns: int = DEFAULT_QUANTUM_NS,
                 smt_factor: float = SMT_FACTOR) -> None:
        if not 0 < smt_factor <= 1:
            raise ValueError(f"an SMT factor of {smt_factor} is not above 0 and up to 1")
        if quantum_ns < 1:
            raise ValueError(f"a quantum of {quantum_ns} ns is none")
        self.config = SimpleNamespace(topology=topology)
        self.clock = Clock()
        self.clock.earlier = self._earlier
        self.quantum = quantum_ns
        self.shared_speed = round(PARTS * smt_factor)
        self.cores = tuple(SimCore(index) for index in range(topology.cpus))
        threads = topology.threads
        for core in self.cores:
            first = core.index - core.index % threads
            core.siblings = tuple(other for other in self.cores[first:first + threads] if other is not core)
        self.running: SimCore | None = None
        self.slices = 0
        self.dispatch: Callable[[Any], int | None]
        """Asks who runs on a core (set by the simulator)."""
        self.execute: Callable[[SimCore], None]
        """Runs whoever that is, up to the core's deadline (set by the simulator)."""
        self._turns: list[tuple[int, bool, int]] = [(0, False, core.index) for core in self.cores]
        """A heap of the cores that are not idle, the furthest behind first; among equals one that spins is
        last, so that it never sees less than what happened by its time.
        """

    def run(self, deadline: int, until: Callable[[], bool] | None = None) -> bool:
        """Run to this time, or until something is true. False: nothing can ever happen any more."""
        clock, cores, turns = self.clock, self.cores, self._turns
        dispatch, execute, quantum = self.dispatch, self.execute, self.quantum
        while until is None or not until():
            due = clock.next()
            if not turns:
                if due is None:
                    return False
                if due > deadline:
                    clock.advance(deadline)
                    return True
                clock.advance(due)
                continue
            now = turns[0][0]
            if now >= deadline:
                clock.advance(deadline)
                return True
            clock.advance(now)
            if due is not None and due <= now:
                continue
            core = cores[heappop(turns)[2]]
            granted = dispatch(core)
            if granted is None:
                core.idle = True
                core.busy = False
                continue
            now = core.time
            end = now + (granted if granted < MAX_SLICE_NS else MAX_SLICE_NS)
            due = clock.next()
            if due is not None and due < end:
                end = due
            if deadline < end:
                end = deadline
            if turns and turns[0][0] + quantum < end:
                end = turns[0][0] + quantum
            self.slices += 1
            core.busy = True
            core.spinning = False
            core.deadline = end
            self.running = core
            try:
                execute(core)
            finally:
                self.running = None
                heappush(turns, (core.time, core.spinning, core.index))
        return True

    def _earlier(self, when: int) -> None:
        if self.running is not None:
            self.running.limit(when)

    def wake(self, core: SimCore, at_ns: int) -> None:
        """An idle core has work from this time on. Harmless when it is not idle."""
        if not core.idle:
            return
        core.idle = False
        core.busy = True
        core.advance(at_ns)
        core.spinning = False
        heappush(self._turns, (core.time, False, core.index))
        running = self.running
        if running is not None:
            running.limit(core.time + self.quantum)

    @property
    def behind(self) -> int | None:
        """The time of the core furthest behind, without the one that runs; None when it is alone."""
        return self._turns[0][0] if self._turns else None

    def spin_until(self, core: SimCore) -> int:
        """How far a core may spin: not past one that works, a quantum past others that spin."""
        end = core.deadline
        for time, spinning, _ in self._turns:
            bound = time + self.quantum if spinning else time
            if bound < end:
                end = bound
        return end
