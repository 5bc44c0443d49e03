"""Event channels, the 2-level ABI: a domain's ports, its pending and mask bitmaps, and how a vCPU learns of
them.

An event sets its port's bit in `shared_info.evtchn_pending`; where the port is not masked, the bit of that
word in the vCPU's `evtchn_pending_sel`; where that was clear, the vCPU's `evtchn_upcall_pending` byte. The
guest clears them in the opposite order. The bitmaps are little-endian, so this module sets bits by byte and
only the width of a selector word (64 or 32 ports) depends on the kind of guest. Source: event_channel.h,
xen.h (shared_info), xen/common/event_2l.c behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final, Protocol

from firmware.abi import errno, xen
from firmware.abi import event_channel as ec
from firmware.domain.domain import Domain
from firmware.domain.vcpu import PAUSE_BLOCKED, PAUSE_POLLING, VCpu
from firmware.hypercalls import HypercallError, HypercallTable
from machine.memory import MachineMemory

GLOBAL_VIRQS: Final = frozenset(range(xen.NR_VIRQS)) - {
    xen.VIRQ_TIMER,
    xen.VIRQ_DEBUG,
    xen.VIRQ_XENOPROF,
    xen.VIRQ_XENPMU,
}
"""VIRQs that only vCPU 0 may bind (virq_type: everything that is not per vCPU)."""

BACKEND_DOMAIN: Final = 0
"""Who the console and store ports are connected to, as the guest sees it."""
BUCKET: Final = 64
"""Ports come into being so many at a time (EVTCHNS_PER_BUCKET); one that exists may be free."""
COMPAT_OPS: Final = frozenset(range(ec.EVTCHNOP_bind_interdomain, ec.EVTCHNOP_unmask + 1))
"""What the pre-3.0.2 form of the hypercall knows."""


class State(IntEnum):
    """What a port is bound to, numbered as EVTCHNSTAT_*."""

    FREE = ec.EVTCHNSTAT_closed
    UNBOUND = ec.EVTCHNSTAT_unbound
    INTERDOMAIN = ec.EVTCHNSTAT_interdomain
    PIRQ = ec.EVTCHNSTAT_pirq
    VIRQ = ec.EVTCHNSTAT_virq
    IPI = ec.EVTCHNSTAT_ipi


class Port:
    """One event channel end."""

    __slots__ = ("state", "vcpu", "remote_domain", "remote_port", "virq", "consumer")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Back to a free port that would notify vCPU 0."""
        self.state = State.FREE
        self.vcpu = 0
        self.remote_domain = 0
        self.remote_port = 0
        self.virq = 0
        self.consumer: Callable[[], None] | None = None


class Wakes(Protocol):
    """The scheduler, as events need it."""

    def unblock(self, vcpu: VCpu) -> None:
        """Make a blocked or polling vCPU runnable."""


class Domains(Protocol):
    """Who finds a domain by its number."""

    def by_id(self, number: int) -> Domain | None:
        """The living domain of that number."""


class EventChannels:
    """The ports of one domain."""

    __slots__ = (
        "domain",
        "ports",
        "_memory",
        "_scheduler",
        "_pending",
        "_mask",
        "_selector",
        "_word_shift",
        "limit",
        "polling",
    )

    def __init__(self, domain: Domain, memory: MachineMemory, scheduler: Wakes) -> None:
        self.domain = domain
        self._memory = memory
        self._scheduler = scheduler
        shared, info = (
            (xen.shared_info.w32, xen.vcpu_info.w32)
            if domain.pv32
            else (xen.shared_info.w64, xen.vcpu_info.w64)
        )
        self._pending = domain.shared_info + shared.offset["evtchn_pending"]
        self._mask = domain.shared_info + shared.offset["evtchn_mask"]
        self._selector = info.offset["evtchn_pending_sel"]
        self._word_shift = 5 if domain.pv32 else 6
        self.limit = 1024 if domain.pv32 else 4096
        self.ports: list[Port] = [Port() for _ in range(BUCKET)]
        self.polling: list[VCpu] = []

    def allocate(self) -> int:
        """The lowest free port from 1 on, still FREE; HypercallError(ENOSPC) when there is none."""
        for number in range(1, len(self.ports)):
            if self.ports[number].state is State.FREE:
                return number
        if len(self.ports) >= self.limit:
            raise HypercallError(errno.ENOSPC)
        number = len(self.ports)
        self.ports.extend(Port() for _ in range(BUCKET))
        return number

    def port(self, number: int) -> Port:
        """The port of that number, free perhaps (0 always is); HypercallError(EINVAL) beyond those that
        exist.
        """
        if number >= len(self.ports):
            raise HypercallError(errno.EINVAL)
        return self.ports[number]

    def connect_backend(self, consumer: Callable[[], None]) -> int:
        """A port connected to domain 0 whose notifications call `consumer`."""
        number = self.allocate()
        port = self.ports[number]
        port.state = State.INTERDOMAIN
        port.remote_domain = BACKEND_DOMAIN
        port.remote_port = number
        port.consumer = consumer
        return number

    def raise_port(self, number: int) -> None:
        """Set the port pending and let its vCPU know."""
        memory = self._memory
        where = self._pending + (number >> 3)
        bit = 1 << (number & 7)
        bits = memory.b[where]
        if bits & bit:
            return
        memory.store8(where, bits | bit)
        if not memory.b[self._mask + (number >> 3)] & bit:
            self._select(number)
        if self.polling:
            self._end_polls(number)

    def _select(self, number: int) -> None:
        vcpu = self.domain.vcpus[self.ports[number].vcpu]
        info = vcpu.info
        if not info:
            return
        memory = self._memory
        word = number >> self._word_shift
        where = info + self._selector + (word >> 3)
        bits = memory.b[where]
        bit = 1 << (word & 7)
        if bits & bit:
            return
        memory.store8(where, bits | bit)
        if memory.b[info]:
            return
        memory.store8(info, 1)
        if vcpu.pause_flags & (PAUSE_BLOCKED | PAUSE_POLLING):
            self._scheduler.unblock(vcpu)

    def _end_polls(self, number: int) -> None:
        """End the polls for this port, and those for several ports or none: Xen keeps but one port a vCPU."""
        for vcpu in list(self.polling):
            if len(vcpu.poll_ports) != 1 or number == vcpu.poll_ports[0]:
                self._scheduler.unblock(vcpu)

    def is_pending(self, number: int) -> bool:
        """The pending bit of a port number, valid or not in use (beyond the bitmap: False)."""
        return number < self.limit and bool(self._memory.b[self._pending + (number >> 3)] >> (number & 7) & 1)

    def is_masked(self, number: int) -> bool:
        """The mask bit of a port number below the limit."""
        return bool(self._memory.b[self._mask + (number >> 3)] >> (number & 7) & 1)

    def unmask(self, number: int) -> None:
        """Clear the mask bit; a pending event is then delivered."""
        self.port(number)
        memory = self._memory
        where = self._mask + (number >> 3)
        bit = 1 << (number & 7)
        bits = memory.b[where]
        if bits & bit:
            memory.store8(where, bits & ~bit)
            if self.is_pending(number):
                self._select(number)

    def send_virq(self, vcpu: VCpu, virq: int) -> None:
        """Raise a VIRQ on a vCPU, if the guest has bound it."""
        number = vcpu.virqs.get(virq)
        if number:
            self.raise_port(number)

    def free(self, number: int) -> None:
        """Give a port back: not pending, notifying vCPU 0."""
        where = self._pending + (number >> 3)
        self._memory.store8(where, self._memory.b[where] & ~(1 << (number & 7)))
        self.ports[number].clear()


class EventChannelOps:
    """event_channel_op: what a guest may do with its ports."""

    def __init__(self, domains: Domains) -> None:
        self._domains = domains
        self._ops: dict[int, Callable[[VCpu, int], int]] = {
            ec.EVTCHNOP_bind_interdomain: self._bind_interdomain,
            ec.EVTCHNOP_bind_virq: self._bind_virq,
            ec.EVTCHNOP_bind_pirq: self._bind_pirq,
            ec.EVTCHNOP_close: self._close,
            ec.EVTCHNOP_send: self._send,
            ec.EVTCHNOP_status: self._status,
            ec.EVTCHNOP_alloc_unbound: self._alloc_unbound,
            ec.EVTCHNOP_bind_ipi: self._bind_ipi,
            ec.EVTCHNOP_bind_vcpu: self._bind_vcpu,
            ec.EVTCHNOP_unmask: self._unmask,
            ec.EVTCHNOP_reset: self._reset,
            ec.EVTCHNOP_set_priority: self._set_priority,
        }

    def register(self, table: HypercallTable) -> None:
        """Put event_channel_op and its pre-3.0.2 form into the table."""
        table.register("event_channel_op", self.event_channel_op)
        table.register("event_channel_op_compat", self.event_channel_op_compat)

    def event_channel_op(self, vcpu: VCpu, command: int, argument: int) -> int:
        """Hypercall 32; FIFO control (init_control, expand_array) answers -ENOSYS, which selects the 2-level
        ABI.
        """
        operation = self._ops.get(command & 0xFFFF_FFFF)
        return -errno.ENOSYS if operation is None else operation(vcpu, argument)

    def event_channel_op_compat(self, vcpu: VCpu, argument: int) -> int:
        """Hypercall 16: the command stands in memory before its argument (`struct evtchn_op`)."""
        layout = ec.evtchn_op.w32 if vcpu.domain.pv32 else ec.evtchn_op.w64
        command = int.from_bytes(vcpu.space.read(argument, layout.size)[:4], "little")
        if command not in COMPAT_OPS:
            return -errno.ENOSYS
        return self.event_channel_op(vcpu, command, argument + layout.offset["u"])

    def _bind_interdomain(self, vcpu: VCpu, argument: int) -> int:
        bind = vcpu.space.unpack(argument, ec.evtchn_bind_interdomain.w64)
        local = vcpu.domain
        number = local.id if bind.remote_dom == xen.DOMID_SELF else bind.remote_dom
        remote = self._domains.by_id(number)
        if remote is None and number != BACKEND_DOMAIN:
            return -errno.ESRCH
        local_number = local.events.allocate()
        if remote is None:
            return -errno.EINVAL
        local_port = local.events.ports[local_number]
        remote_port = remote.events.port(bind.remote_port)
        if remote_port.state is not State.UNBOUND or remote_port.remote_domain != local.id:
            return -errno.EINVAL
        for port, other, other_number in (
            (local_port, remote.id, bind.remote_port),
            (remote_port, local.id, local_number),
        ):
            port.state = State.INTERDOMAIN
            port.remote_domain = other
            port.remote_port = other_number
        local.events.raise_port(local_number)
        vcpu.space.write(
            argument,
            ec.evtchn_bind_interdomain.w64.pack(
                remote_dom=bind.remote_dom, remote_port=bind.remote_port, local_port=local_number
            ),
        )
        return 0

    def _bind_virq(self, vcpu: VCpu, argument: int) -> int:
        bind = vcpu.space.unpack(argument, ec.evtchn_bind_virq.w64)
        domain = vcpu.domain
        if bind.virq >= xen.NR_VIRQS or (bind.virq in GLOBAL_VIRQS and bind.vcpu):
            return -errno.EINVAL
        if bind.vcpu >= len(domain.vcpus):
            return -errno.ENOENT
        target = domain.vcpus[bind.vcpu]
        if bind.virq in target.virqs:
            return -errno.EEXIST
        number = domain.events.allocate()
        port = domain.events.ports[number]
        port.state = State.VIRQ
        port.vcpu = bind.vcpu
        port.virq = bind.virq
        target.virqs[bind.virq] = number
        vcpu.space.write(argument, ec.evtchn_bind_virq.w64.pack(virq=bind.virq, vcpu=bind.vcpu, port=number))
        return 0

    def _bind_pirq(self, vcpu: VCpu, argument: int) -> int:
        vcpu.space.read(argument, ec.evtchn_bind_pirq.w64.size)
        return -errno.EINVAL

    def _bind_ipi(self, vcpu: VCpu, argument: int) -> int:
        bind = vcpu.space.unpack(argument, ec.evtchn_bind_ipi.w64)
        domain = vcpu.domain
        if bind.vcpu >= len(domain.vcpus):
            return -errno.ENOENT
        number = domain.events.allocate()
        port = domain.events.ports[number]
        port.state = State.IPI
        port.vcpu = bind.vcpu
        vcpu.space.write(argument, ec.evtchn_bind_ipi.w64.pack(vcpu=bind.vcpu, port=number))
        return 0

    def _alloc_unbound(self, vcpu: VCpu, argument: int) -> int:
        request = vcpu.space.unpack(argument, ec.evtchn_alloc_unbound.w64)
        domain = vcpu.domain
        if request.dom not in (xen.DOMID_SELF, domain.id):
            return self._foreign(request.dom)
        number = domain.events.allocate()
        port = domain.events.ports[number]
        port.state = State.UNBOUND
        port.remote_domain = domain.id if request.remote_dom == xen.DOMID_SELF else request.remote_dom
        vcpu.space.write(
            argument,
            ec.evtchn_alloc_unbound.w64.pack(dom=request.dom, remote_dom=request.remote_dom, port=number),
        )
        return 0

    def _close(self, vcpu: VCpu, argument: int) -> int:
        number = vcpu.space.unpack(argument, ec.evtchn_close.w64).port
        return self.close(vcpu.domain, number)

    def close(self, domain: Domain, number: int) -> int:
        """Close one port of a domain: 0, or -EINVAL when it is not open."""
        port = domain.events.port(number)
        if port.state is State.FREE:
            return -errno.EINVAL
        if port.state is State.VIRQ:
            for vcpu in domain.vcpus:
                if vcpu.virqs.get(port.virq) == number:
                    del vcpu.virqs[port.virq]
        elif port.state is State.INTERDOMAIN and port.consumer is None:
            remote = self._domains.by_id(port.remote_domain)
            if remote is not None:
                other = remote.events.ports[port.remote_port]
                other.state = State.UNBOUND
                other.remote_domain = domain.id
                other.remote_port = 0
        domain.events.free(number)
        return 0

    def _send(self, vcpu: VCpu, argument: int) -> int:
        number = int.from_bytes(vcpu.space.read(argument, 4), "little")
        domain = vcpu.domain
        port = domain.events.port(number)
        if port.state is State.INTERDOMAIN:
            if port.consumer is not None:
                port.consumer()
                return 0
            remote = self._domains.by_id(port.remote_domain)
            if remote is not None:
                remote.events.raise_port(port.remote_port)
            return 0
        if port.state is State.IPI:
            domain.events.raise_port(number)
            return 0
        return 0 if port.state is State.UNBOUND else -errno.EINVAL

    def _status(self, vcpu: VCpu, argument: int) -> int:
        layout = ec.evtchn_status.w64
        asked = vcpu.space.unpack(argument, layout)
        domain = vcpu.domain
        if asked.dom not in (xen.DOMID_SELF, domain.id):
            return self._foreign(asked.dom)
        port = domain.events.port(asked.port)
        vcpu.space.write(argument + layout.offset["status"], _STATUS[port.state](port))
        return 0

    def _foreign(self, number: int) -> int:
        """What an operation on another domain's ports answers: domain 0 is there, though nothing of it is
        modelled.
        """
        return (
            -errno.EPERM
            if number == BACKEND_DOMAIN or self._domains.by_id(number) is not None
            else -errno.ESRCH
        )

    def _bind_vcpu(self, vcpu: VCpu, argument: int) -> int:
        bind = vcpu.space.unpack(argument, ec.evtchn_bind_vcpu.w64)
        domain = vcpu.domain
        if bind.vcpu >= len(domain.vcpus):
            return -errno.ENOENT
        port = domain.events.port(bind.port)
        if port.state is State.VIRQ and port.virq not in GLOBAL_VIRQS:
            return -errno.EINVAL
        if port.state not in (State.VIRQ, State.UNBOUND, State.INTERDOMAIN, State.PIRQ):
            return -errno.EINVAL
        port.vcpu = bind.vcpu
        return 0

    def _unmask(self, vcpu: VCpu, argument: int) -> int:
        vcpu.domain.events.unmask(vcpu.space.unpack(argument, ec.evtchn_unmask.w64).port)
        return 0

    def _reset(self, vcpu: VCpu, argument: int) -> int:
        asked = vcpu.space.unpack(argument, ec.evtchn_reset.w64)
        domain = vcpu.domain
        if asked.dom not in (xen.DOMID_SELF, domain.id):
            return self._foreign(asked.dom)
        for number in range(1, len(domain.events.ports)):
            if domain.events.ports[number].state is not State.FREE:
                self.close(domain, number)
        return 0

    def _set_priority(self, vcpu: VCpu, argument: int) -> int:
        vcpu.domain.events.port(vcpu.space.unpack(argument, ec.evtchn_set_priority.w64).port)
        return -errno.ENOSYS


def _status(port: Port, first: int = 0, second: int = 0) -> bytes:
    """The tail of evtchn_status from `status` on: status, vcpu, and two words of its union."""
    return b"".join(value.to_bytes(4, "little") for value in (port.state, port.vcpu, first, second))


_STATUS: Final[dict[State, Callable[[Port], bytes]]] = {
    State.FREE: lambda port: _status(port)[:8],
    State.UNBOUND: lambda port: _status(port, port.remote_domain)[:10],
    State.INTERDOMAIN: lambda port: _status(port, port.remote_domain, port.remote_port),
    State.PIRQ: lambda port: _status(port)[:12],
    State.VIRQ: lambda port: _status(port, port.virq)[:12],
    State.IPI: lambda port: _status(port)[:8],
}
