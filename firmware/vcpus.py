"""vcpu_op: bringing vCPUs up and down, their areas in guest memory, their timers (vcpu.h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from firmware.abi import arch_x86, errno, sched, xen
from firmware.abi import vcpu as vcpu_abi
from firmware.domain.context import Contexts
from firmware.domain.domain import Domain
from firmware.domain.vcpu import PAUSE_DOWN, VCpu
from firmware.hypercalls import CONTINUE, GuestFault, HypercallTable
from firmware.sched.scheduler import Scheduler
from firmware.timers import Timers
from machine.memory import MachineMemory

INFO_SIZE: Final = 64
"""struct vcpu_info is as large for both kinds of guest."""
RUNSTATE_SIZE: Final = vcpu_abi.vcpu_runstate_info.w64.size
TSC_MULTIPLIER: Final = 1 << 31
TSC_SHIFT: Final = 1
"""system_time = (tsc << shift) * multiplier >> 32: the TSC counts nanoseconds."""
EVEN_VERSION: Final = 2
"""A vcpu_time_info is valid while its version is even."""


class Ends(Protocol):
    """Who ends domains."""

    def shutdown(self, domain: Domain, reason: int) -> None: ...


class InfoPages(Protocol):
    """Who lets a vCPU's vcpu_info lie in a frame of the guest's own."""

    def take_info_frame(self, vcpu: VCpu, mfn: int) -> int: ...


def time_info(pv32: bool) -> bytes:
    """A vcpu_time_info, which never changes: the TSC is the system time."""
    layout = xen.vcpu_time_info.w32 if pv32 else xen.vcpu_time_info.w64
    values = dict.fromkeys(layout.offset, 0)
    for name in list(values):
        if name.startswith("pad"):
            del values[name]
    values |= {"version": EVEN_VERSION, "tsc_to_system_mul": TSC_MULTIPLIER, "tsc_shift": TSC_SHIFT}
    return layout.pack(**values)


class VCpuOps:
    """The handlers."""

    def __init__(
        self,
        memory: MachineMemory,
        scheduler: Scheduler,
        contexts: Contexts,
        timers: Timers,
        ends: Ends,
        info_pages: InfoPages,
    ) -> None:
        self._memory = memory
        self._scheduler = scheduler
        self._contexts = contexts
        self._timers = timers
        self._ends = ends
        self._info_pages = info_pages
        self._ops: dict[int, Callable[[VCpu, VCpu, int], int]] = {
            vcpu_abi.VCPUOP_initialise: self._initialise,
            vcpu_abi.VCPUOP_up: self._up,
            vcpu_abi.VCPUOP_down: self._down,
            vcpu_abi.VCPUOP_is_up: self._is_up,
            vcpu_abi.VCPUOP_get_runstate_info: self._get_runstate_info,
            vcpu_abi.VCPUOP_register_runstate_memory_area: self._register_runstate_area,
            vcpu_abi.VCPUOP_set_periodic_timer: self._set_periodic,
            vcpu_abi.VCPUOP_stop_periodic_timer: self._stop_periodic,
            vcpu_abi.VCPUOP_set_singleshot_timer: self._set_single_shot,
            vcpu_abi.VCPUOP_stop_singleshot_timer: self._stop_single_shot,
            vcpu_abi.VCPUOP_register_vcpu_info: self._register_info,
            vcpu_abi.VCPUOP_send_nmi: self._send_nmi,
            vcpu_abi.VCPUOP_get_physid: self._get_physid,
            vcpu_abi.VCPUOP_register_vcpu_time_memory_area: self._register_time_area,
        }

    def register(self, table: HypercallTable) -> None:
        """Put vcpu_op into the table."""
        table.register("vcpu_op", self.vcpu_op)

    def vcpu_op(self, vcpu: VCpu, command: int, number: int, argument: int) -> int:
        """Hypercall 24."""
        number &= 0xFFFF_FFFF
        if number >= len(vcpu.domain.vcpus):
            return -errno.ENOENT
        operation = self._ops.get(command & 0xFFFF_FFFF)
        return -errno.ENOSYS if operation is None else operation(vcpu, vcpu.domain.vcpus[number], argument)

    def _initialise(self, vcpu: VCpu, target: VCpu, argument: int) -> int:
        if not target.info:
            return -errno.EINVAL
        layout = arch_x86.vcpu_guest_context.w32 if vcpu.domain.pv32 else arch_x86.vcpu_guest_context.w64
        context = vcpu.space.unpack(argument, layout)
        if target.initialised:
            return -errno.EEXIST
        result = self._contexts.initialise(target, context)
        if result == -errno.ERESTART:
            vcpu.restart(vcpu_abi.VCPUOP_initialise, target.id, argument)
            return CONTINUE
        return result

    def _up(self, _vcpu: VCpu, target: VCpu, _argument: int) -> int:
        if not target.initialised:
            return -errno.EINVAL
        if target.pause_flags & PAUSE_DOWN:
            self._scheduler.bring_up(target)
        return 0

    def _down(self, vcpu: VCpu, target: VCpu, _argument: int) -> int:
        others = (other for other in vcpu.domain.vcpus if other is not target)
        if all(other.pause_flags & PAUSE_DOWN for other in others):
            self._ends.shutdown(vcpu.domain, sched.SHUTDOWN_poweroff)
            return 0
        self._scheduler.hold(target, PAUSE_DOWN)
        return 0

    @staticmethod
    def _is_up(_vcpu: VCpu, target: VCpu, _argument: int) -> int:
        return 0 if target.pause_flags & PAUSE_DOWN else 1

    def _get_runstate_info(self, vcpu: VCpu, target: VCpu, argument: int) -> int:
        layout = vcpu_abi.vcpu_runstate_info.w32 if vcpu.domain.pv32 else vcpu_abi.vcpu_runstate_info.w64
        state, since, times = self._scheduler.runstate_info(target)
        vcpu.space.write(argument, layout.pack(state=state, state_entry_time=since, time=tuple(times)))
        return 0

    @staticmethod
    def _area(vcpu: VCpu, argument: int, size: int) -> int:
        """The address of an area of that size, which the guest may name."""
        layout = vcpu_abi.vcpu_register_runstate_memory_area
        area = int(vcpu.space.unpack(argument, layout.w32 if vcpu.domain.pv32 else layout.w64).addr)
        if not vcpu.space.allowed(area, size):
            raise GuestFault(area)
        return area

    def _register_runstate_area(self, vcpu: VCpu, target: VCpu, argument: int) -> int:
        target.runstate_area = self._area(vcpu, argument, RUNSTATE_SIZE)
        if target.runstate_area:
            self._scheduler.write_runstate(target, target.runstate_area, vcpu)
        return 0

    def _register_time_area(self, vcpu: VCpu, target: VCpu, argument: int) -> int:
        data = time_info(vcpu.domain.pv32)
        target.time_area = self._area(vcpu, argument, len(data))
        try:
            vcpu.space.write(target.time_area, data)
        except GuestFault:
            return 0
        return 0

    def _set_periodic(self, vcpu: VCpu, target: VCpu, argument: int) -> int:
        return self._timers.set_periodic(vcpu, target, argument)

    def _stop_periodic(self, _vcpu: VCpu, target: VCpu, _argument: int) -> int:
        self._timers.stop_periodic(target)
        return 0

    def _set_single_shot(self, vcpu: VCpu, target: VCpu, argument: int) -> int:
        return -errno.EINVAL if target is not vcpu else self._timers.set_single_shot(vcpu, argument)

    def _stop_single_shot(self, vcpu: VCpu, target: VCpu, _argument: int) -> int:
        if target is not vcpu:
            return -errno.EINVAL
        self._timers.stop_single_shot(vcpu)
        return 0

    def _register_info(self, vcpu: VCpu, target: VCpu, argument: int) -> int:
        request: Any = vcpu.space.unpack(argument, vcpu_abi.vcpu_register_vcpu_info.w64)
        if request.offset > 4096 - INFO_SIZE or request.offset & (3 if vcpu.domain.pv32 else 7):
            return -errno.ENXIO
        if target is not vcpu and not target.pause_flags & PAUSE_DOWN:
            return -errno.EINVAL
        if target.info and not target.domain.shared_info <= target.info < target.domain.shared_info + 4096:
            return -errno.EINVAL
        problem = self._info_pages.take_info_frame(target, request.mfn)
        if problem:
            return problem
        self._move_info(target, (request.mfn << 12) + request.offset)
        return 0

    def _move_info(self, target: VCpu, info: int) -> None:
        """Copy the old vcpu_info and mark everything pending, so that no event is lost in between."""
        memory = self._memory
        if target.info:
            memory.write(info, memory.read(target.info, INFO_SIZE))
        else:
            memory.write(info, bytes(INFO_SIZE))
            memory.store8(info + 1, 1)
            layout = xen.vcpu_info.w32 if target.domain.pv32 else xen.vcpu_info.w64
            memory.write(info + layout.offset["time"], time_info(target.domain.pv32))
        target.place_info(info)
        width = 4 if target.domain.pv32 else 8
        selector = (xen.vcpu_info.w32 if target.domain.pv32 else xen.vcpu_info.w64).offset[
            "evtchn_pending_sel"
        ]
        memory.store8(info, 1)
        memory.write(info + selector, b"\xff" * width)

    def _send_nmi(self, _vcpu: VCpu, target: VCpu, argument: int) -> int:
        if argument:
            return -errno.EINVAL
        target.nmi_pending = True
        self._scheduler.unblock(target)
        return 0

    @staticmethod
    def _get_physid(_vcpu: VCpu, _target: VCpu, _argument: int) -> int:
        return -errno.EINVAL
