"""sched_op: yield, block, poll, shutdown and the domain watchdog (sched.h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from firmware.abi import errno, sched
from firmware.domain.domain import Domain
from firmware.domain.vcpu import PAUSE_BLOCKED, PAUSE_POLLING, VCpu
from firmware.hypercalls import HypercallTable
from firmware.sched.scheduler import Scheduler
from machine.clock import Clock, Event
from machine.memory import MachineMemory

DECISION_NS: Final = 1_000
"""What a yield, or a poll that has to wait, costs its caller in virtual time, so that a guest that spins with
it does not spin for long.
"""
MOST_PORTS: Final = 128
"""SCHEDOP_poll takes no more."""
WATCHDOGS: Final = 2
"""NR_DOMAIN_WATCHDOG_TIMERS."""
ALL_TAKEN: Final = -errno.ENOSPC & 0xFFFF_FFFF
"""What a third watchdog gets: Xen returns the error through an unsigned 32-bit number."""
SECOND: Final = 1_000_000_000


class PollTimer(Protocol):
    """Who ends a poll in time."""

    def set_poll(self, vcpu: VCpu, when: int) -> None:
        """Unblock the vCPU at this system time."""


class Ends(Protocol):
    """Who ends domains."""

    def shutdown(self, domain: Domain, reason: int, caller: VCpu | None = None) -> None:
        """End a domain with a SHUTDOWN_ reason, given by the hypercall of `caller` if it is one."""

    def by_id(self, number: int) -> Domain | None:
        """The living domain of that number."""


class SchedOps:
    """The hypercall and its older form."""

    def __init__(
        self, scheduler: Scheduler, memory: MachineMemory, clock: Clock, timers: PollTimer, ends: Ends
    ) -> None:
        self._scheduler = scheduler
        self._memory = memory
        self._clock = clock
        self._timers = timers
        self._ends = ends
        self._watchdogs: dict[int, list[Event | None]] = {}
        self._ops: dict[int, Callable[[VCpu, int], int]] = {
            sched.SCHEDOP_yield: self._yield,
            sched.SCHEDOP_block: self._block,
            sched.SCHEDOP_shutdown: self._shutdown,
            sched.SCHEDOP_poll: self._poll,
            sched.SCHEDOP_remote_shutdown: self._remote_shutdown,
            sched.SCHEDOP_shutdown_code: self._shutdown_code,
            sched.SCHEDOP_watchdog: self._watchdog,
            sched.SCHEDOP_pin_override: self._pin_override,
        }

    def register(self, table: HypercallTable) -> None:
        """Put sched_op and sched_op_compat into the table."""
        table.register("sched_op", self.sched_op)
        table.register("sched_op_compat", self.sched_op_compat)

    def sched_op(self, vcpu: VCpu, command: int, argument: int) -> int:
        """Hypercall 29."""
        operation = self._ops.get(command & 0xFFFF_FFFF)
        return -errno.ENOSYS if operation is None else operation(vcpu, argument)

    def sched_op_compat(self, vcpu: VCpu, command: int, argument: int) -> int:
        """Hypercall 6: shutdown takes its reason directly."""
        command &= 0xFFFF_FFFF
        if command == sched.SCHEDOP_shutdown:
            self._ends.shutdown(vcpu.domain, argument & 0xFF, vcpu)
            return 0
        if command in (sched.SCHEDOP_yield, sched.SCHEDOP_block):
            return self._ops[command](vcpu, argument)
        return -errno.ENOSYS

    def _yield(self, vcpu: VCpu, _argument: int) -> int:
        vcpu.core.charge(DECISION_NS)
        self._scheduler.give_way(vcpu)
        return 0

    def _block(self, vcpu: VCpu, _argument: int) -> int:
        self.block(vcpu)
        return 0

    def block(self, vcpu: VCpu) -> None:
        """Unmask upcalls and sleep until there is an event."""
        self._memory.store8(vcpu.info + 1, 0)
        if not self._memory.b[vcpu.info]:
            self._scheduler.hold(vcpu, PAUSE_BLOCKED)

    def _shutdown(self, vcpu: VCpu, argument: int) -> int:
        request = vcpu.space.unpack(argument, sched.sched_shutdown.w64)
        self._ends.shutdown(vcpu.domain, request.reason & 0xFF, vcpu)
        return 0

    def _poll(self, vcpu: VCpu, argument: int) -> int:
        layout = sched.sched_poll.w32 if vcpu.domain.pv32 else sched.sched_poll.w64
        poll = vcpu.space.unpack(argument, layout)
        if poll.nr_ports > MOST_PORTS:
            return -errno.EINVAL
        if not vcpu.space.allowed(poll.ports, 4 * poll.nr_ports):
            return -errno.EFAULT
        events = vcpu.domain.events
        if self._memory.b[vcpu.info] and not self._memory.b[vcpu.info + 1]:
            return 0
        ports = []
        for at in range(poll.ports, poll.ports + 4 * poll.nr_ports, 4):
            number = vcpu.space.read32(at)
            events.port(number)
            if events.is_pending(number):
                return 0
            ports.append(number)
        vcpu.core.charge(DECISION_NS)
        vcpu.poll_ports = tuple(ports)
        events.polling.append(vcpu)
        if poll.timeout:
            # A signed time: one with the sign bit has passed.
            self._timers.set_poll(vcpu, 0 if poll.timeout >> 63 else poll.timeout)
        self._scheduler.hold(vcpu, PAUSE_POLLING)
        return 0

    def _remote_shutdown(self, vcpu: VCpu, argument: int) -> int:
        request = vcpu.space.unpack(argument, sched.sched_remote_shutdown.w64)
        target = self._ends.by_id(request.domain_id)
        return -errno.ESRCH if target is None else -errno.EPERM

    def _shutdown_code(self, vcpu: VCpu, argument: int) -> int:
        request = vcpu.space.unpack(argument, sched.sched_shutdown.w64)
        if vcpu.domain.shutdown_code is None:
            vcpu.domain.shutdown_code = request.reason & 0xFF
        return 0

    def _watchdog(self, vcpu: VCpu, argument: int) -> int:
        request = vcpu.space.unpack(argument, sched.sched_watchdog.w64)
        domain = vcpu.domain
        timers = self._watchdogs.setdefault(domain.id, [None] * WATCHDOGS)
        number = request.id
        if number > WATCHDOGS:
            return -errno.EINVAL
        if number == 0:
            if None not in timers:
                return ALL_TAKEN
            number = timers.index(None) + 1
            timers[number - 1] = self._watch(vcpu, request.timeout)
            return number
        running = timers[number - 1]
        if running is None:
            return -errno.EINVAL
        running.cancel()
        timers[number - 1] = self._watch(vcpu, request.timeout) if request.timeout else None
        return 0

    def _watch(self, vcpu: VCpu, seconds: int) -> Event:
        when = vcpu.core.now() + seconds * SECOND
        vcpu.core.limit(when)
        return self._clock.at(when, self._watchdog_fired, vcpu.domain)

    def _watchdog_fired(self, domain: Domain) -> None:
        self._ends.shutdown(domain, sched.SHUTDOWN_watchdog)

    def forget(self, domain: Domain) -> None:
        """The domain has ended: its watchdogs have too."""
        for timer in self._watchdogs.pop(domain.id, []):
            if timer is not None:
                timer.cancel()

    def _pin_override(self, vcpu: VCpu, _argument: int) -> int:
        return -errno.EPERM
