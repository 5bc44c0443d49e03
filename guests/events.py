"""events: every event-channel operation with its return code, pending and mask bits, and the upcall.

Ports are named by letters: what number a port gets depends on the ports a guest starts with.
"""
from __future__ import annotations

from typing import Final

from guests.macros import get, hypercall, kernel, line, load, put, say

NOBODY: Final = 0x1234
"""A domain that does not exist."""
BAD_POINTER: Final = 0x7000_0000_0000
NO_PORT: Final = 4095
"""A port of the 2-level ABI that no bucket holds yet."""
PORTS: Final = "abcdefg"


def operation(title: str, command: str, structure: str, **fields: str | int) -> str:
    """Perform one operation on `argument` and print its result. A field is a number, an operand or a port."""
    widths = {"dom": 2, "remote_dom": 2}
    stores = [put(f"argument + {structure}.{name}", _port(value), widths.get(name, 4))
              for name, value in fields.items()]
    call = hypercall("event_channel_op", command, "&argument")
    return "\n".join((*stores, call, line(title + ": {rax:d}")))


def _port(value: str | int) -> str | int:
    return f"qword ptr [rip + port_{value}]" if isinstance(value, str) and value in PORTS else value


def keep(port: str, source: str) -> str:
    """Remember the port an operation gave."""
    return get(f"argument + {source}", 4) + "\n" + put(f"port_{port}", "rax")


def status(title: str, port: str | int) -> str:
    """Print a port's state and vCPU."""
    return "\n".join((
        put("argument + evtchn_status.status", 99, 4), put("argument + evtchn_status.vcpu", 99, 4),
        operation(f"status of {title}", "EVTCHNOP_status", "evtchn_status", dom="DOMID_SELF", port=port),
        get("argument + evtchn_status.status", 4), say("  state {rax:d}"),
        get("argument + evtchn_status.vcpu", 4), line(" vcpu {rax:d}"),
    ))


def bits(title: str, port: str) -> str:
    """Print what the shared page says about a port, and about vCPU 0."""
    return "\n".join((
        load("rbx", "&shared_page"), f"mov rcx, [rip + port_{port}]",
        "xor eax, eax\nbt qword ptr [rbx + shared_info.evtchn_pending], rcx\nsetc al",
        say(title + ": pending {rax:d}"),
        "xor eax, eax\nbt qword ptr [rbx + shared_info.evtchn_mask], rcx\nsetc al", say(" masked {rax:d}"),
        "movzx eax, byte ptr [rbx + vcpu_info.evtchn_upcall_pending]", say(" upcall {rax:d}"),
        "mov rax, [rbx + vcpu_info.evtchn_pending_sel]", line(" selector {rax:x}"),
    ))


def upcalls(title: str) -> str:
    """Open the upcall, by the mask byte and a hypercall that looks at it, and print which ports came."""
    return "\n".join((
        put("came", 0), put("shared_page + vcpu_info.evtchn_upcall_mask", 0, 1),
        hypercall("xen_version", "XENVER_version", 0),
        put("shared_page + vcpu_info.evtchn_upcall_mask", 1, 1),
        get("came"), line(title + ": upcalls {rax:d} last {qword ptr [rip + last]:d}"),
    ))


def clear(port: str) -> str:
    """Take a port's pending bit away."""
    return f"{_locate(port)}\nlock btr qword ptr [rbx + shared_info.evtchn_pending], rcx"


def mask(port: str) -> str:
    """Set a port's mask bit."""
    return f"{_locate(port)}\nlock bts qword ptr [rbx + shared_info.evtchn_mask], rcx"


def _locate(port: str) -> str:
    return f"mov rcx, [rip + port_{port}]\nlea rbx, [rip + shared_page]"


_SAME: Final = "xor eax, eax\ncmp rcx, rdx\nsete al"

_HOOK: Final = """
event_came:                             # rdi = port: count it, and remember its letter's place
    inc qword ptr [rip + came]
    mov rcx, -1
    lea rdx, [rip + port_a]
find_letter:
    inc rcx
    cmp rdi, [rdx + rcx*8]
    jne find_letter
    mov [rip + last], rcx
    ret
"""

ALLOCATE = ("EVTCHNOP_alloc_unbound", "evtchn_alloc_unbound")
BIND = ("EVTCHNOP_bind_interdomain", "evtchn_bind_interdomain")
VIRQ = ("EVTCHNOP_bind_virq", "evtchn_bind_virq")
IPI = ("EVTCHNOP_bind_ipi", "evtchn_bind_ipi")
CLOSE = ("EVTCHNOP_close", "evtchn_close")
SEND = ("EVTCHNOP_send", "evtchn_send")
MOVE = ("EVTCHNOP_bind_vcpu", "evtchn_bind_vcpu")
UNMASK = ("EVTCHNOP_unmask", "evtchn_unmask")

_MAIN: Final = (
    put("event_hook", "&event_came"), hypercall("vcpu_op", "VCPUOP_stop_periodic_timer", 0, 0),
    operation("allocate", *ALLOCATE, dom="DOMID_SELF", remote_dom="DOMID_SELF"),
    keep("a", "evtchn_alloc_unbound.port"), status("a", "a"),
    operation("allocate for nobody", *ALLOCATE, dom="DOMID_SELF", remote_dom=NOBODY),
    keep("b", "evtchn_alloc_unbound.port"),
    "mov rcx, [rip + port_a]\ninc rcx\nmov rdx, [rip + port_b]", _SAME, line("  the next port: {rax:d}"),
    operation("close b", *CLOSE, port="b"),
    operation("allocate in nobody", *ALLOCATE, dom=NOBODY, remote_dom="DOMID_SELF"),
    operation("bind to a", *BIND, remote_dom="DOMID_SELF", remote_port="a"),
    keep("b", "evtchn_bind_interdomain.local_port"), status("a", "a"), status("b", "b"),
    "mov ecx, [rip + argument + evtchn_status.u.interdomain.port]\nmov rdx, [rip + port_a]", _SAME,
    line("  b's peer is a: {rax:d}"),
    operation("bind to a again", *BIND, remote_dom="DOMID_SELF", remote_port="a"),
    operation("bind to nobody", *BIND, remote_dom=NOBODY, remote_port="a"),
    operation("bind to no port", *BIND, remote_dom="DOMID_SELF", remote_port=NO_PORT),
    operation("bind to port 0", *BIND, remote_dom="DOMID_SELF", remote_port=0),
    bits("after binding, a", "a"), bits("after binding, b", "b"),
    operation("unmask a", *UNMASK, port="a"), operation("unmask b", *UNMASK, port="b"),
    bits("after unmasking, b", "b"), upcalls("quiet"),
    operation("send a", *SEND, port="a"), bits("after sending, a", "a"), bits("after sending, b", "b"),
    upcalls("sent"), bits("after the upcall, b", "b"),
    mask("b"),
    operation("send a, b masked", *SEND, port="a"), bits("masked, b", "b"), upcalls("masked"),
    operation("unmask b", *UNMASK, port="b"), bits("unmasked, b", "b"), upcalls("unmasked"),
    operation("send b", *SEND, port="b"), operation("send a", *SEND, port="a"),
    operation("send a twice", *SEND, port="a"), upcalls("both ways"),
    operation("send no port", *SEND, port=NO_PORT), operation("send port 0", *SEND, port=0),
    operation("send a port beyond the ABI", *SEND, port=4096),
    operation("close a", *CLOSE, port="a"), status("a", "a"), status("b", "b"),
    operation("send b to nobody", *SEND, port="b"),
    operation("close a again", *CLOSE, port="a"), operation("close port 0", *CLOSE, port=0),
    operation("close no port", *CLOSE, port=NO_PORT),
    operation("virq timer", *VIRQ, virq="VIRQ_TIMER", vcpu=0), keep("c", "evtchn_bind_virq.port"),
    "mov rcx, [rip + port_a]\nmov rdx, [rip + port_c]", _SAME, line("  the lowest free port: {rax:d}"),
    status("c", "c"), get("argument + evtchn_status.u.virq", 4), line("  virq {rax:d}"),
    operation("virq timer again", *VIRQ, virq="VIRQ_TIMER", vcpu=0),
    operation("virq timer of no vcpu", *VIRQ, virq="VIRQ_TIMER", vcpu=77),
    operation("virq debug", *VIRQ, virq="VIRQ_DEBUG", vcpu=0), keep("d", "evtchn_bind_virq.port"),
    operation("virq 24", *VIRQ, virq=24, vcpu=0),
    operation("global virq on vcpu 1", *VIRQ, virq="VIRQ_CONSOLE", vcpu=1),
    operation("send c", *SEND, port="c"),
    operation("ipi", *IPI, vcpu=0), keep("e", "evtchn_bind_ipi.port"), status("e", "e"),
    operation("second ipi", *IPI, vcpu=0), keep("f", "evtchn_bind_ipi.port"),
    operation("ipi of no vcpu", *IPI, vcpu=77),
    operation("unmask e", *UNMASK, port="e"), operation("send e", *SEND, port="e"), bits("ipi, e", "e"),
    upcalls("ipi"),
    operation("move b to vcpu 0", *MOVE, port="b", vcpu=0), operation("move c", *MOVE, port="c", vcpu=0),
    operation("move e", *MOVE, port="e", vcpu=0), operation("move b to no vcpu", *MOVE, port="b", vcpu=77),
    operation("move no port", *MOVE, port=NO_PORT, vcpu=0), operation("move port 0", *MOVE, port=0, vcpu=0),
    operation("unmask no port", *UNMASK, port=NO_PORT), operation("unmask a, closed", *UNMASK, port="a"),
    operation("status of nobody's port", "EVTCHNOP_status", "evtchn_status", dom=NOBODY, port=1),
    status("no port", NO_PORT), status("port 0", 0), status("c", "c"), status("d", "d"), status("f", "f"),
    operation("priority of b", "EVTCHNOP_set_priority", "evtchn_set_priority", port="b", priority=0),
    operation("priority of no port", "EVTCHNOP_set_priority", "evtchn_set_priority", port=NO_PORT,
              priority=0),
    operation("reset nobody", "EVTCHNOP_reset", "evtchn_reset", dom=NOBODY),
    operation("operation 99", "99", "evtchn_send", port=0),
    hypercall("event_channel_op", "EVTCHNOP_send", BAD_POINTER), line("send from a bad pointer: {rax:d}"),
    hypercall("event_channel_op", "EVTCHNOP_alloc_unbound", BAD_POINTER),
    line("allocate from a bad pointer: {rax:d}"),
    operation("send c closes nothing", *SEND, port="c"),
    *(operation(f"close {port}", *CLOSE, port=port) for port in "bcdef"),
    # A pending bit outlives its port; the next owner starts clean.
    operation("ipi", *IPI, vcpu=0), keep("g", "evtchn_bind_ipi.port"), bits("new ipi, g", "g"),
    operation("send g", *SEND, port="g"), bits("sent, g", "g"), operation("close g", *CLOSE, port="g"),
    bits("closed, g", "g"), operation("ipi", *IPI, vcpu=0), keep("g", "evtchn_bind_ipi.port"),
    bits("again, g", "g"), clear("g"), operation("close g", *CLOSE, port="g"),
    line("events: done"),
)


def build() -> bytes:
    """The image."""
    return kernel(
        *_MAIN, "ret", _HOOK, events=True,
        data=(*(f"port_{port}: .quad 0" for port in PORTS), "came: .quad 0\nlast: .quad 0",
              "argument: .zero 64"),
    )
