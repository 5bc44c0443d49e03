"""The scheduling mechanism: blocking and waking, switching vCPUs on logical CPUs, the accounting of run
states, and the trace of all that. Who runs where is the business of the policies (`policy.py`), one a pool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmware.abi import vcpu as vcpu_abi
from firmware.domain.vcpu import (
    BLOCKED,
    NO_POLL,
    OFFLINE,
    PAUSE_BLOCKED,
    PAUSE_DOWN,
    PAUSE_POLLING,
    RUNNABLE,
    RUNNING,
    VCpu,
)
from firmware.hypercalls import HypercallError
from firmware.memory.shootdown import Shootdown
from firmware.sched import events
from firmware.sched.parameters import Value
from firmware.sched.placement import Placement
from firmware.sched.pool import CpuPool
from firmware.trace import Trace
from machine.core import Core
from machine.machine import Machine

if TYPE_CHECKING:
    from machine.clock import Event

KERNEL_BANK: Final = 0
USER_BANK: Final = 1
"""Which TLB bank of a core each half of a 64-bit guest uses."""
DECIDE: Final = 0
"""The end of a turn that has been cut short: the next dispatch decides."""


@dataclass(frozen=True, slots=True)
class SwitchCosts:
    """What changing over costs a logical CPU, in virtual ns: any switch to another vCPU, and what a vCPU
    loses in caches when it goes on elsewhere, by distance (the same CPU, a sibling, its socket, the rest).
    """

    switch: int = 1_000
    migration: tuple[int, int, int, int] = (0, 1_000, 10_000, 50_000)


def wanted_state(vcpu: VCpu) -> int:
    """The run state of a vCPU that does not run, from what keeps it."""
    if not vcpu.pause_flags:
        return RUNNABLE
    return OFFLINE if vcpu.pause_flags & ~(PAUSE_BLOCKED | PAUSE_POLLING) else BLOCKED


class Scheduler:
    """Runs vCPUs on the machine's logical CPUs as the policies of their pools decide."""

    def __init__(self, machine: Machine, shootdown: Shootdown, policy: str = "rrobin",
                 settings: Mapping[str, Value] | None = None, *, placement: Placement | None = None,
                 costs: SwitchCosts | None = None, trace: Trace | None = None) -> None:
        cores = len(machine.cores)
        self._machine = machine
        self._shootdown = shootdown
        self.resume: Callable[[VCpu, Core], None]
        """Told of each vCPU that was loaded on a core (set by the composition root)."""
        self.ticking: Callable[[VCpu], None]
        """Told of each vCPU with a periodic timer that begins to run (set by the composition root)."""
        self.placement = placement or Placement(machine.config.topology)
        self.costs = costs or SwitchCosts()
        self.trace = Trace() if trace is None else trace
        self.at: Callable[[int, Callable[[Any], None], Any], Event] = machine.clock.at
        self.switches = self.decisions = self.migrations = 0
        self.idle = self.placement.all
        """Logical CPUs on which nobody runs and which have not been told to look for work: a bit mask."""
        self._running: list[VCpu | None] = [None] * cores
        self._until = [DECIDE] * cores
        """By logical CPU: when whoever runs there has had their turn."""
        self._since = [0] * cores
        """By logical CPU: up to when its policy knows how long whoever is there has run."""
        self._paid = 0
        """Logical CPUs the next switch of which has been paid for: a bit mask."""
        self._pool_of: list[CpuPool | None] = [None] * cores
        self.pools: dict[int, CpuPool] = {}
        first = self.pools[0] = CpuPool(0, "Pool-0", self)
        first.cores = list(range(cores))
        first.mask = self.placement.all
        first.start(policy, settings or {})
        self._pool_of = [first] * cores

    # -- what policies are told

    def now(self) -> int:
        """System time where we are: the executing core's, between slices the machine's."""
        core = self._machine.running
        return self._machine.clock.now if core is None else core.now()

    def running(self, core: int) -> VCpu | None:
        """Who has that logical CPU; None while it idles."""
        return self._running[core]

    def poke(self, core: int, when: int) -> None:
        """That logical CPU is to decide again at `when`; an idle one wakes for it."""
        bit = 1 << core
        if self.idle & bit:
            self.idle &= ~bit
            self._machine.wake(self._machine.cores[core], when)
        elif when < self._until[core]:
            self._until[core] = when
            target = self._machine.cores[core]
            if self._machine.running is target:
                target.limit(when)

    # -- vCPUs that come and go

    def add(self, vcpu: VCpu, pool: int = 0) -> None:
        """Place a new vCPU; it stays down until it is brought up. ParameterError when there is no room."""
        now = self.now()
        vcpu.home = self.pools[pool].add(vcpu, now)
        vcpu.pool = pool
        vcpu.core = self._machine.cores[vcpu.home]
        vcpu.runstate_since = now
        if self.trace.on:
            self.trace.record(events.DOM_ADD, vcpu.home, now, vcpu.domain.id, vcpu.id)

    def remove(self, vcpu: VCpu) -> None:
        """Take a vCPU that has ended off its core and out of the policy's hands."""
        now = self.now()
        self.withdraw(vcpu, now)
        self.pools[vcpu.pool].remove(vcpu, now)
        if vcpu.loaded:
            self.unload(vcpu.core)
        if self.trace.on:
            self.trace.record(events.DOM_REM, vcpu.home, now, vcpu.domain.id, vcpu.id)

    def withdraw(self, vcpu: VCpu, now: int) -> None:
        """Take a vCPU off its logical CPU, if it has one, and out of its policy's queues; it keeps its flags.
        Whether it is to run again, here or in another pool, is for the caller to say (`CpuPool.policy.wake`).
        """
        policy = self.pools[vcpu.pool].policy
        if vcpu.scheduled:
            core = vcpu.core
            index = core.index
            self._charge_turn(index, vcpu, core.now())
            self._leave(index, vcpu, core.now())
            self._until[index] = DECIDE
            if self._machine.running is core:
                core.stop()
            policy.sleep(vcpu, now)
        elif not vcpu.pause_flags:
            policy.sleep(vcpu, now)

    # -- blocking and waking

    def hold(self, vcpu: VCpu, flag: int) -> None:
        """Something (a PAUSE_ flag) keeps the vCPU from running from now on."""
        was = vcpu.pause_flags
        vcpu.pause_flags = was | flag
        if vcpu.scheduled:
            core = vcpu.core
            self._until[core.index] = DECIDE
            if self._machine.running is core:
                core.stop()
            if not was and self.trace.on:
                number = events.BLOCK if flag in (PAUSE_BLOCKED, PAUSE_POLLING) else events.SLEEP
                self.trace.record(number, core.index, self.now(), vcpu.domain.id, vcpu.id)
            return
        now = self.now()
        if not was:
            self.pools[vcpu.pool].policy.sleep(vcpu, now)
            if self.trace.on:
                self.trace.record(events.SLEEP, vcpu.home, now, vcpu.domain.id, vcpu.id)
        self._account(vcpu, wanted_state(vcpu), now)

    def release(self, vcpu: VCpu, flags: int) -> None:
        """These PAUSE_ flags do not keep it any more; with none left it runs when its turn comes."""
        was = vcpu.pause_flags
        if not was & flags:
            return
        vcpu.pause_flags = was & ~flags
        if vcpu.scheduled:
            return
        now = self.now()
        self._account(vcpu, wanted_state(vcpu), now)
        if not vcpu.pause_flags:
            if now > vcpu.last_time:
                vcpu.last_time = now
            if self.trace.on:
                self.trace.record(events.WAKE, vcpu.home, now, vcpu.domain.id, vcpu.id)
            self.pools[vcpu.pool].policy.wake(vcpu, now)

    def unblock(self, vcpu: VCpu) -> None:
        """An event, or the end of a poll, for a blocked vCPU."""
        if vcpu.pause_flags & PAUSE_POLLING:
            vcpu.poll_ports = NO_POLL
            vcpu.domain.events.polling.remove(vcpu)
            if vcpu.poll_timer is not None:
                vcpu.poll_timer.cancel()
                vcpu.poll_timer = None
        self.release(vcpu, PAUSE_BLOCKED | PAUSE_POLLING)

    def bring_up(self, vcpu: VCpu) -> None:
        """VCPUOP_up: it is not down any more."""
        self.release(vcpu, PAUSE_DOWN)

    def give_way(self, vcpu: VCpu) -> None:
        """The running vCPU yields its logical CPU to others that wait for it. It pays for the switch: a storm
        of yields takes its time from nobody else.
        """
        now = self.now()
        if self.trace.on:
            self.trace.record(events.YIELD, vcpu.core.index, now, vcpu.domain.id, vcpu.id)
        if vcpu.scheduled and self.pools[vcpu.pool].policy.give_way(vcpu, now):
            core = vcpu.core
            core.charge(self.costs.switch)
            self._paid |= 1 << core.index
            self._until[core.index] = DECIDE
            core.stop()

    # -- deciding and switching

    def dispatch(self, core: Core) -> int | None:
        """Load who runs on this core, chosen anew when a turn is over; the longest slice in ns, or None when
        it is idle.
        """
        index = core.index
        left = self._until[index] - core.now()
        if left > 0 and self._running[index] is not None:
            return left
        pool = self._pool_of[index]
        if pool is None:
            self.idle &= ~(1 << index)
            return None
        now = core.now()
        current = self._running[index]
        if current is not None:
            self._charge_turn(index, current, now)
            if current.pause_flags:
                self._leave(index, current, now)
                pool.policy.sleep(current, now)
                current = None
        self.decisions += 1
        choice = pool.policy.pick(index, now, current)
        if choice is None:
            if current is not None:
                self._leave(index, current, now)
            self.idle |= 1 << index
            self._paid &= ~(1 << index)
            self._until[index] = DECIDE
            return None
        self.idle &= ~(1 << index)
        vcpu, slice_ns = choice
        if vcpu is not current:
            self._change(core, current, vcpu, now, slice_ns)
            now = core.now()
        elif self.trace.on:
            self.trace.record(events.SWITCH_INFCONT, index, now, vcpu.domain.id, vcpu.id,
                              now - vcpu.runstate_since, slice_ns)
        self._until[index] = now + slice_ns
        self._paid &= ~(1 << index)
        return slice_ns

    def _charge_turn(self, index: int, vcpu: VCpu, now: int) -> None:
        """Tell the policy how long whoever is on a logical CPU has run since it was last told."""
        ran = now - self._since[index]
        if ran > 0:
            self._since[index] = now
            self.pools[vcpu.pool].policy.ran(vcpu, ran, now)

    def _leave(self, index: int, vcpu: VCpu, now: int) -> None:
        """The vCPU runs there no longer; its registers stay loaded until somebody else's are."""
        self._running[index] = None
        vcpu.scheduled = False
        if now > vcpu.last_time:
            vcpu.last_time = now
        if self.trace.on:
            self.trace.record(events.SWITCH_INFPREV, index, now, vcpu.domain.id, vcpu.id,
                              max(0, now - vcpu.runstate_since))
        self._account(vcpu, wanted_state(vcpu), now)

    def _change(self, core: Core, current: VCpu | None, vcpu: VCpu, now: int, slice_ns: int) -> None:
        if vcpu.scheduled:
            raise RuntimeError(f"{vcpu!r} was picked for CPU {core.index} while it runs on {vcpu.core.index}")
        index = core.index
        if current is not None:
            self._leave(index, current, now)
        core.advance(vcpu.last_time)
        if core.current is not vcpu:
            self._switch(core, vcpu)
        self._running[index] = vcpu
        vcpu.scheduled = True
        now = core.now()
        self._since[index] = now
        if self.trace.on:
            trace, domain = self.trace, vcpu.domain.id
            waited = max(0, now - vcpu.runstate_since)
            trace.record(events.SWITCH_INFNEXT, index, now, domain, vcpu.id, waited, slice_ns)
            if current is None:
                trace.record(events.SWITCH, index, now, events.IDLE, index, domain, vcpu.id)
            else:
                trace.record(events.SWITCH, index, now, current.domain.id, current.id, domain, vcpu.id)
        self._account(vcpu, RUNNING, now)
        if vcpu.period_ns:
            self.ticking(vcpu)

    def _switch(self, core: Core, vcpu: VCpu) -> None:
        self.unload(core)
        if vcpu.loaded:
            self.unload(vcpu.core)
        cost = 0 if self._paid >> core.index & 1 else self.costs.switch
        if vcpu.home != core.index:
            cost += self.costs.migration[self.placement.distance(vcpu.home, core.index)]
            vcpu.home = core.index
            if vcpu.entry is None:
                vcpu.migrations += 1
                self.migrations += 1
        core.charge(cost)
        core.load(vcpu.saved)
        core.current = vcpu
        vcpu.core = core
        vcpu.loaded = True
        vcpu.close_ports()
        # Loading the state has flushed both banks, and nothing ran since.
        core.switch_bank(vcpu.root << 12, KERNEL_BANK if vcpu.in_kernel else USER_BANK)
        self._shootdown.leave(core)
        self._shootdown.enter(core, vcpu.domain.memory)
        self.resume(vcpu, core)
        self.switches += 1

    def unload(self, core: Core) -> None:
        """Save whoever is loaded on a core."""
        current = core.current
        if isinstance(current, VCpu):
            current.saved = core.save()
            current.loaded = False
            core.current = None

    # -- pools

    def pool_of(self, core: int) -> CpuPool | None:
        """The pool that has a logical CPU; None for a free one."""
        return self._pool_of[core]

    def assign(self, core: int, pool: CpuPool | None) -> None:
        """Note whose a logical CPU is. It looks for work at its next dispatch."""
        now = self.now()
        self._pool_of[core] = pool
        self._until[core] = DECIDE
        self.idle |= 1 << core
        if pool is not None:
            self.poke(core, now)

    # -- accounting

    def _account(self, vcpu: VCpu, state: int, now: int) -> None:
        if state != vcpu.runstate:
            passed = now - vcpu.runstate_since
            if passed > 0:
                vcpu.runstate_times[vcpu.runstate] += passed
                vcpu.runstate_since = now
            was, vcpu.runstate = vcpu.runstate, state
            if RUNNING in (was, state) and vcpu.runstate_area:
                self.write_runstate(vcpu, vcpu.runstate_area)
            if self.trace.on:
                self.trace.record(events.RUNSTATE_CHANGE, vcpu.home, now, vcpu.domain.id, vcpu.id, was, state)

    def runstate_info(self, vcpu: VCpu) -> tuple[int, int, list[int]]:
        """State, since when, and ns spent in each state up to now (vcpu_runstate_info)."""
        times = list(vcpu.runstate_times)
        times[vcpu.runstate] += max(0, self.now() - vcpu.runstate_since)
        return vcpu.runstate, vcpu.runstate_since, times

    def write_runstate(self, vcpu: VCpu, address: int, through: VCpu | None = None) -> None:
        """Put its vcpu_runstate_info into guest memory as `through` sees it; a guest that took the mapping
        away gets none.
        """
        layout = vcpu_abi.vcpu_runstate_info
        state, since, times = vcpu.runstate, vcpu.runstate_since, tuple(vcpu.runstate_times)
        data = (layout.w32 if vcpu.domain.pv32 else layout.w64).pack(
            state=state, state_entry_time=since, time=times
        )
        try:
            (through or vcpu).space.write(address, data)
        except HypercallError:
            return
