"""event_channel.h: event channels, their operations, and the FIFO ABI's structures."""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, array, u8, u16, u32, u64, union

EVTCHNOP_bind_interdomain: Final = 0
EVTCHNOP_bind_virq: Final = 1
EVTCHNOP_bind_pirq: Final = 2
EVTCHNOP_close: Final = 3
EVTCHNOP_send: Final = 4
EVTCHNOP_status: Final = 5
EVTCHNOP_alloc_unbound: Final = 6
EVTCHNOP_bind_ipi: Final = 7
EVTCHNOP_bind_vcpu: Final = 8
EVTCHNOP_unmask: Final = 9
EVTCHNOP_reset: Final = 10
EVTCHNOP_init_control: Final = 11
EVTCHNOP_expand_array: Final = 12
EVTCHNOP_set_priority: Final = 13

BIND_PIRQ__WILL_SHARE: Final = 1

EVTCHNSTAT_closed: Final = 0
EVTCHNSTAT_unbound: Final = 1
EVTCHNSTAT_interdomain: Final = 2
EVTCHNSTAT_pirq: Final = 3
EVTCHNSTAT_virq: Final = 4
EVTCHNSTAT_ipi: Final = 5

# The 2-level ABI has this many ports for (64-bit, 32-bit) guests.
EVTCHN_2L_NR_CHANNELS: Final = (4096, 1024)

# The FIFO ABI: priorities, bits of an event word.
EVTCHN_FIFO_PRIORITY_MAX: Final = 0
EVTCHN_FIFO_PRIORITY_DEFAULT: Final = 7
EVTCHN_FIFO_PRIORITY_MIN: Final = 15
EVTCHN_FIFO_MAX_QUEUES: Final = 16
EVTCHN_FIFO_PENDING: Final = 31
EVTCHN_FIFO_MASKED: Final = 30
EVTCHN_FIFO_LINKED: Final = 29
EVTCHN_FIFO_BUSY: Final = 28
EVTCHN_FIFO_LINK_BITS: Final = 17
EVTCHN_FIFO_LINK_MASK: Final = 0x1ffff
EVTCHN_FIFO_NR_CHANNELS: Final = 1 << 17

evtchn_alloc_unbound: Final = Layout("evtchn_alloc_unbound", [
    ("dom", u16), ("remote_dom", u16), ("port", u32),
])

evtchn_bind_interdomain: Final = Layout("evtchn_bind_interdomain", [
    ("remote_dom", u16), ("remote_port", u32), ("local_port", u32),
])

evtchn_bind_virq: Final = Layout("evtchn_bind_virq", [("virq", u32), ("vcpu", u32), ("port", u32)])

evtchn_bind_pirq: Final = Layout("evtchn_bind_pirq", [("pirq", u32), ("flags", u32), ("port", u32)])

evtchn_bind_ipi: Final = Layout("evtchn_bind_ipi", [("vcpu", u32), ("port", u32)])

evtchn_close: Final = Layout("evtchn_close", [("port", u32)])

evtchn_send: Final = Layout("evtchn_send", [("port", u32)])

evtchn_status_interdomain: Final = Layout("evtchn_status_interdomain", [("dom", u16), ("port", u32)])

# u by status: a domain (unbound), a peer (interdomain), or a pirq or virq number.
evtchn_status: Final = Layout("evtchn_status", [
    ("dom", u16), ("port", u32), ("status", u32), ("vcpu", u32),
    ("u", union(unbound=u16, interdomain=evtchn_status_interdomain, pirq=u32, virq=u32)),
])

evtchn_bind_vcpu: Final = Layout("evtchn_bind_vcpu", [("port", u32), ("vcpu", u32)])

evtchn_unmask: Final = Layout("evtchn_unmask", [("port", u32)])

evtchn_reset: Final = Layout("evtchn_reset", [("dom", u16)])

evtchn_init_control: Final = Layout("evtchn_init_control", [
    ("control_gfn", u64), ("offset", u32), ("vcpu", u32), ("link_bits", u8), ("pad", array(u8, 7)),
])

evtchn_expand_array: Final = Layout("evtchn_expand_array", [("array_gfn", u64)])

evtchn_set_priority: Final = Layout("evtchn_set_priority", [("port", u32), ("priority", u32)])

# The argument of event_channel_op_compat: a command and its structure.
evtchn_op: Final = Layout("evtchn_op", [
    ("cmd", u32),
    ("u", union(
        alloc_unbound=evtchn_alloc_unbound, bind_interdomain=evtchn_bind_interdomain,
        bind_virq=evtchn_bind_virq, bind_pirq=evtchn_bind_pirq, bind_ipi=evtchn_bind_ipi,
        close=evtchn_close, send=evtchn_send, status=evtchn_status, bind_vcpu=evtchn_bind_vcpu,
        unmask=evtchn_unmask,
    )),
])

evtchn_fifo_control_block: Final = Layout("evtchn_fifo_control_block", [
    ("ready", u32), ("rsvd", u32), ("head", array(u32, EVTCHN_FIFO_MAX_QUEUES)),
])
