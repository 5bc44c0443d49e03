"""The scheduling mechanism: blocking and waking, switching vCPUs on logical CPUs, and the accounting of run
states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

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
from firmware.sched.policy import Policy
from machine.core import Core
from machine.machine import Machine

KERNEL_BANK: Final = 0
USER_BANK: Final = 1
"""Which TLB bank of a core each half of a 64-bit guest uses."""


def wanted_state(vcpu: VCpu) -> int:
    """The run state of a vCPU that does not run, from what keeps it."""
    if not vcpu.pause_flags:
        return RUNNABLE
    return OFFLINE if vcpu.pause_flags & ~(PAUSE_BLOCKED | PAUSE_POLLING) else BLOCKED


class Scheduler:
    """Runs vCPUs on the machine's logical CPUs as a policy decides."""

    def __init__(self, machine: Machine, policy: Policy, shootdown: Shootdown) -> None:
        self._machine = machine
        self._shootdown = shootdown
        self.resume: Callable[[VCpu, Core], None]
        """Told of each vCPU that was loaded on a core (set by the composition root)."""
        self.ticking: Callable[[VCpu], None]
        """Told of each vCPU with a periodic timer that begins to run (set by the composition root)."""
        self.policy = policy
        self.switches = 0

    def now(self) -> int:
        """System time where we are: the executing core's, between slices the machine's."""
        core = self._machine.running
        return self._machine.clock.now if core is None else core.now()

    def add(self, vcpu: VCpu) -> None:
        """Place a new vCPU; it stays down until it is brought up."""
        vcpu.home = self.policy.add(vcpu)
        vcpu.core = self._machine.cores[vcpu.home]
        vcpu.runstate_since = self.now()

    def remove(self, vcpu: VCpu) -> None:
        """Take a vCPU that has ended off its core and out of the policy's hands."""
        self.policy.remove(vcpu)
        if vcpu.loaded:
            self.unload(vcpu.core)

    def hold(self, vcpu: VCpu, flag: int) -> None:
        """Something (a PAUSE_ flag) keeps the vCPU from running from now on."""
        was = vcpu.pause_flags
        vcpu.pause_flags = was | flag
        if not was:
            now = self.now()
            self.policy.sleep(vcpu, now)
            if vcpu.loaded:
                vcpu.core.stop()
        if vcpu.runstate != RUNNING:
            self._account(vcpu, wanted_state(vcpu), self.now())

    def release(self, vcpu: VCpu, flags: int) -> None:
        """These PAUSE_ flags do not keep it any more; with none left it runs when its turn comes."""
        was = vcpu.pause_flags
        if not was & flags:
            return
        vcpu.pause_flags = was & ~flags
        now = self.now()
        if vcpu.runstate != RUNNING:
            self._account(vcpu, wanted_state(vcpu), now)
        if not vcpu.pause_flags:
            core = self.policy.wake(vcpu, now)
            self._machine.wake(self._machine.cores[core], now)

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
        """The running vCPU yields its logical CPU to others that wait for it."""
        if self.policy.give_way(vcpu, self.now()):
            vcpu.core.stop()

    def dispatch(self, core: Core) -> int | None:
        """Choose and load who runs on this core; the longest slice in ns, or None when it is idle."""
        now = core.now()
        choice = self.policy.pick(core.index, now)
        if choice is None:
            current = core.current
            if isinstance(current, VCpu) and current.runstate == RUNNING:
                self._account(current, wanted_state(current), now)
            return None
        vcpu, slice_ns = choice
        if core.current is not vcpu:
            self._switch(core, vcpu)
        if vcpu.runstate != RUNNING:
            self._account(vcpu, RUNNING, core.now())
            if vcpu.period_ns:
                self.ticking(vcpu)
        return slice_ns

    def _switch(self, core: Core, vcpu: VCpu) -> None:
        self.unload(core)
        if vcpu.loaded:
            self.unload(vcpu.core)
        behind = vcpu.last_time - core.now()
        if behind > 0:
            core.charge(behind)
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
            current.last_time = core.now()
            core.current = None
            if current.runstate == RUNNING:
                self._account(current, wanted_state(current), core.now())

    def _account(self, vcpu: VCpu, state: int, now: int) -> None:
        if state != vcpu.runstate:
            passed = now - vcpu.runstate_since
            if passed > 0:
                vcpu.runstate_times[vcpu.runstate] += passed
                vcpu.runstate_since = now
            was, vcpu.runstate = vcpu.runstate, state
            if RUNNING in (was, state) and vcpu.runstate_area:
                self.write_runstate(vcpu, vcpu.runstate_area)

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
