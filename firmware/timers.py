"""A vCPU's three timers (single-shot, periodic, poll time-out), all on the machine's virtual clock.

System time is virtual ns since the machine started, the same value the guest computes from its TSC. The first
two raise VIRQ_TIMER. The periodic timer ticks only while its vCPU runs: one that is late comes when the vCPU
runs again. Sources: vcpu.h (VCPUOP_set_*_timer), xen.h (set_timer_op), sched.h (sched_poll).
"""

from __future__ import annotations

from typing import Final, Protocol

from firmware.abi import errno, xen
from firmware.abi import vcpu as vcpu_abi
from firmware.domain.vcpu import RUNNING, VCpu
from firmware.hypercalls import HypercallTable
from machine.clock import Clock

MILLISECOND: Final = 1_000_000
FAR_FUTURE: Final = 1 << 50
"""set_timer_op takes anything further off (or in the far past, as unsigned) for a wrapped value of Linux's.
"""
WRAPPED_DELAY: Final = 100 * MILLISECOND
"""What it sets instead."""
LONGEST_PERIOD: Final = (1 << 62) - 1
"""STIME_DELTA_MAX: half of what signed nanoseconds hold."""


class Wakes(Protocol):
    """The scheduler, as the poll time-out needs it."""

    def unblock(self, vcpu: VCpu) -> None:
        """Make a polling vCPU runnable."""


class Timers:
    """Sets, fires and stops them."""

    def __init__(self, clock: Clock, scheduler: Wakes) -> None:
        self._clock = clock
        self._scheduler = scheduler

    def register(self, table: HypercallTable) -> None:
        """Put set_timer_op into the table."""
        table.register("set_timer_op", self.set_timer_op)

    def set_timer_op(self, vcpu: VCpu, timeout: int, high: int = 0) -> int:
        """Hypercall 15: the absolute system time of the next VIRQ_TIMER, 0 for none. 32-bit guests pass two
        halves.
        """
        when = (timeout & 0xFFFF_FFFF) | high << 32 if vcpu.domain.pv32 else timeout
        if when == 0:
            self.stop_single_shot(vcpu)
            return 0
        now = vcpu.core.now()
        if when >> 63 or when - now >= FAR_FUTURE:
            when = now + WRAPPED_DELAY
        self._set_single_shot(vcpu, when)
        return 0

    def set_single_shot(self, vcpu: VCpu, argument: int) -> int:
        """VCPUOP_set_singleshot_timer, of the calling vCPU; a time in the past raises its event at once,
        whatever the flags say (so since 4.17.3).
        """
        layout = vcpu_abi.vcpu_set_singleshot_timer
        request = vcpu.space.unpack(argument, layout.w32 if vcpu.domain.pv32 else layout.w64)
        when = request.timeout_abs_ns
        if when < vcpu.core.now() or when >> 63:
            self.stop_single_shot(vcpu)
            vcpu.domain.events.send_virq(vcpu, xen.VIRQ_TIMER)
        else:
            self._set_single_shot(vcpu, when)
        return 0

    def stop_single_shot(self, vcpu: VCpu) -> None:
        """Nothing will come of the single-shot timer any more."""
        if vcpu.single_shot is not None:
            vcpu.single_shot.cancel()
            vcpu.single_shot = None

    def _set_single_shot(self, vcpu: VCpu, when: int) -> None:
        if vcpu.single_shot is not None:
            vcpu.single_shot.cancel()
        vcpu.single_shot = self._clock.at(when, self._single_shot, vcpu)
        vcpu.core.limit(when)

    def _single_shot(self, vcpu: VCpu) -> None:
        vcpu.single_shot = None
        vcpu.domain.events.send_virq(vcpu, xen.VIRQ_TIMER)

    def set_periodic(self, vcpu: VCpu, target: VCpu, argument: int) -> int:
        """VCPUOP_set_periodic_timer; a period from 1 ms."""
        layout = vcpu_abi.vcpu_set_periodic_timer
        period = vcpu.space.unpack(argument, layout.w32 if vcpu.domain.pv32 else layout.w64).period_ns
        if not MILLISECOND <= period <= LONGEST_PERIOD:
            return -errno.EINVAL
        self.stop_periodic(target)
        target.period_ns = period
        target.next_period = vcpu.core.now() + period
        self.run_periodic(target)
        return 0

    def stop_periodic(self, vcpu: VCpu) -> None:
        """Nothing will come of the periodic timer any more."""
        vcpu.period_ns = 0
        if vcpu.periodic is not None:
            vcpu.periodic.cancel()
            vcpu.periodic = None

    def run_periodic(self, vcpu: VCpu) -> None:
        """A vCPU with a period runs from now on: the tick it missed, and those to come."""
        if vcpu.runstate != RUNNING or vcpu.periodic is not None:
            return
        core = vcpu.core
        now = max(core.now(), self._clock.now)
        if now >= vcpu.next_period:
            vcpu.domain.events.send_virq(vcpu, xen.VIRQ_TIMER)
            vcpu.next_period = now + vcpu.period_ns
        vcpu.periodic = self._clock.at(vcpu.next_period, self._periodic, vcpu)
        core.limit(vcpu.next_period)

    def _periodic(self, vcpu: VCpu) -> None:
        vcpu.periodic = None
        self.run_periodic(vcpu)

    def set_poll(self, vcpu: VCpu, when: int) -> None:
        """A polling vCPU runs again at this system time at the latest."""
        vcpu.poll_timer = self._clock.at(when, self._poll, vcpu)

    def stop_poll(self, vcpu: VCpu) -> None:
        """The poll ended before its time."""
        if vcpu.poll_timer is not None:
            vcpu.poll_timer.cancel()
            vcpu.poll_timer = None

    def _poll(self, vcpu: VCpu) -> None:
        vcpu.poll_timer = None
        self._scheduler.unblock(vcpu)

    def stop_all(self, vcpu: VCpu) -> None:
        """The vCPU has ended."""
        self.stop_single_shot(vcpu)
        self.stop_periodic(vcpu)
        self.stop_poll(vcpu)
