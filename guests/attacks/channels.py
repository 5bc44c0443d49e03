"""Event channels: ports, domains, vCPUs and virqs that are not the guest's, storms, and bitmaps full of ones.

Tries every operation on ports far outside the table, on ports of every low domain, on vCPUs and virqs that do
not exist; binds to what waits for somebody else; uses up all ports and gives them back; closes twice; sets
every pending bit, mask bit and selector by hand; sends twenty thousand times; polls lists too long. A broken
hypervisor indexes an array with what the guest gave (XSA-107), signals or closes a neighbour's port, or
takes the guest's bitmaps for its own state (XSA-317, XSA-342, XSA-344). A correct one checks every number
against its own.
"""

from __future__ import annotations

from guests.attacks.support import (
    EFAULT,
    EINVAL,
    ENOENT,
    NON_CANONICAL,
    UNMAPPED,
    XEN_ADDRESS,
    attack,
    expect,
    label,
    negative,
)
from guests.macros import hypercall, put

WILD_PORTS = (2000, 4095, 4096, 0x2_0000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
"""Outside the table of a domain with few ports; the last ones outside every table."""
WILD_VCPUS = (1, 31, 32, 8192, 0x8000_0000, 0xFFFF_FFFF)
DOMAINS = range(16)
OTHERS = (0x1234, 0x7FEF, 0x7FF1, 0x7FF2, 0x7FF4, 0x7FFF)
STORM = 20_000
MOST_PORTS = 4096
LIST = 128
"""Ports one poll may name."""
WIDTHS = {"dom": 2, "remote_dom": 2}


def operation(command: str, structure: str, **fields: str | int) -> str:
    """One operation; its result in rax."""
    stores = [
        put(f"argument + {structure}.{name}", value, WIDTHS.get(name, 4)) for name, value in fields.items()
    ]
    return "\n".join((*stores, hypercall("event_channel_op", f"EVTCHNOP_{command}", "&argument")))


def port(source: str, target: str) -> str:
    """Keep the port an operation gave."""
    return f"mov eax, [rip + argument + {source}.port]\nmov [rip + {target}], eax"


def wild() -> str:
    """Numbers outside their ranges."""
    parts = []
    for number in WILD_PORTS:
        parts += [
            operation("send", "evtchn_send", port=number),
            expect(f"send to port {number:#x}", EINVAL),
            operation("close", "evtchn_close", port=number),
            expect(f"close port {number:#x}", EINVAL),
            operation("status", "evtchn_status", dom="DOMID_SELF", port=number),
            expect(f"status of port {number:#x}", EINVAL),
            operation("unmask", "evtchn_unmask", port=number),
            expect(f"unmask port {number:#x}", EINVAL),
            operation("bind_vcpu", "evtchn_bind_vcpu", port=number, vcpu=0),
            expect(f"bind port {number:#x} to a vCPU", EINVAL),
        ]
    for vcpu in WILD_VCPUS:
        parts += [
            operation("bind_ipi", "evtchn_bind_ipi", vcpu=vcpu),
            expect(f"an IPI of vCPU {vcpu:#x}", ENOENT),
            operation("bind_virq", "evtchn_bind_virq", virq="VIRQ_TIMER", vcpu=vcpu),
            expect(f"the timer of vCPU {vcpu:#x}", ENOENT),
            operation("bind_virq", "evtchn_bind_virq", virq="VIRQ_DOM_EXC", vcpu=vcpu),
            expect(f"a global virq of vCPU {vcpu:#x}", EINVAL),
        ]
    for virq in (24, 25, 0x100, 0x8000_0000, 0xFFFF_FFFF):
        parts += [
            operation("bind_virq", "evtchn_bind_virq", virq=virq, vcpu=0),
            expect(f"virq {virq:#x}", EINVAL),
        ]
    for pirq in (0, 16, 0x1000, 0xFFFF_FFFF):
        parts += [
            operation("bind_pirq", "evtchn_bind_pirq", pirq=pirq, flags=0),
            negative(f"physical interrupt {pirq:#x}"),
        ]
    for command in (11, 12, 13):
        parts += [
            put("argument", "[rip + spare_frame]"),
            put("argument + 8", 0xFFFF_FFFF),
            hypercall("event_channel_op", command, "&argument"),
            negative(f"command {command} with wild numbers"),
        ]
    for command in (14, 99, 0x7FFF_FFFF, 0xFFFF_FFFF):
        parts += [
            hypercall("event_channel_op", command, "&argument"),
            negative(f"command {command:#x}"),
        ]
    for name, address in (("Xen's", XEN_ADDRESS), ("nowhere", NON_CANONICAL), ("unmapped", UNMAPPED)):
        parts += [
            line
            for command in range(11)
            for line in (
                hypercall("event_channel_op", command, address),
                expect(f"command {command}, argument {name}", EFAULT),
            )
        ]
    return "\n".join(parts)


def others() -> str:
    """Ports of other domains, and of one's own that wait for others."""
    again, mine, answered = label("again"), label("mine"), label("answered")
    parts = [
        operation("alloc_unbound", "evtchn_alloc_unbound", dom="DOMID_SELF", remote_dom=0x1234),
        expect("a port for nobody", 0),
        port("evtchn_alloc_unbound", "port_a"),
        operation("alloc_unbound", "evtchn_alloc_unbound", dom="DOMID_SELF", remote_dom="DOMID_SELF"),
        expect("a port for itself", 0),
        port("evtchn_alloc_unbound", "port_b"),
        operation(
            "bind_interdomain", "evtchn_bind_interdomain", remote_dom="DOMID_SELF",
            remote_port="[rip + port_a]"
        ),
        expect("bound to what waits for another", EINVAL),
        operation(
            "bind_interdomain", "evtchn_bind_interdomain", remote_dom="DOMID_SELF",
            remote_port="[rip + port_b]"
        ),
        expect("bound to itself", 0),
        "mov eax, [rip + argument + evtchn_bind_interdomain.local_port]\nmov [rip + port_c], eax",
        operation(
            "bind_interdomain", "evtchn_bind_interdomain", remote_dom="DOMID_SELF",
            remote_port="[rip + port_b]"
        ),
        expect("bound to what is bound", EINVAL),
    ]
    for number in (0, *WILD_PORTS):
        parts += [
            operation(
                "bind_interdomain", "evtchn_bind_interdomain", remote_dom="DOMID_SELF", remote_port=number
            ),
            expect(f"bound to port {number:#x}", EINVAL),
        ]
    parts += [
        f"xor r14d, r14d\nxor r12d, r12d\n{again}:",
        f"mov eax, r12d\nshr eax, 4\ncmp eax, [rip + own_number]\nje {mine}",
        "mov [rip + argument + evtchn_bind_interdomain.remote_dom], ax\nmov eax, r12d\nand eax, 15",
        "mov [rip + argument + evtchn_bind_interdomain.remote_port], eax",
        hypercall("event_channel_op", "EVTCHNOP_bind_interdomain", "&argument"),
        f"test rax, rax\njs {answered}\ninc r14d\n{answered}:",
        "mov eax, r12d\nshr eax, 4\nmov [rip + argument + evtchn_status.dom], ax",
        "mov eax, r12d\nand eax, 15\nmov [rip + argument + evtchn_status.port], eax",
        hypercall("event_channel_op", "EVTCHNOP_status", "&argument"),
        f"test rax, rax\njs {mine}\ninc r14d\n{mine}:",
        f"inc r12d\ncmp r12d, {len(DOMAINS) * 16}\njb {again}\nmov rax, r14",
        expect("ports of others that answered", 0),
        *(
            "\n".join(
                (
                    operation("alloc_unbound", "evtchn_alloc_unbound", dom=domain, remote_dom="DOMID_SELF"),
                    negative(f"a port in domain {domain:#x}"),
                    operation("status", "evtchn_status", dom=domain, port=1),
                    negative(f"a status of domain {domain:#x}"),
                    operation("reset", "evtchn_reset", dom=domain),
                    negative(f"a reset of domain {domain:#x}"),
                )
            )
            for domain in OTHERS
        ),
        operation("bind_virq", "evtchn_bind_virq", virq="VIRQ_TIMER", vcpu=0),
        expect("the timer", 0),
        port("evtchn_bind_virq", "port_d"),
        operation("bind_virq", "evtchn_bind_virq", virq="VIRQ_TIMER", vcpu=0),
        expect("the timer twice", -17),
        *(
            operation("bind_vcpu", "evtchn_bind_vcpu", port=f"[rip + port_{name}]", vcpu=vcpu)
            + "\n"
            + expect(f"port {name} to vCPU {vcpu:#x}", *codes)
            for name, vcpu, codes in (
                ("c", 1, (ENOENT,)), ("c", 0xFFFF_FFFF, (ENOENT,)), ("c", 0, (0,)), ("d", 0, (EINVAL,)),
            )
        ),
        operation("send", "evtchn_send", port="[rip + port_d]"),
        expect("send to the timer", EINVAL),
        operation("send", "evtchn_send", port="[rip + port_a]"),
        expect("send to what is not bound", 0),
        operation("close", "evtchn_close", port="[rip + port_d]"),
        expect("close the timer", 0),
        operation("close", "evtchn_close", port="[rip + port_d]"),
        expect("and again", EINVAL),
    ]
    return "\n".join(parts)


def storms() -> str:
    """Every bit by hand, and events without end."""
    send, unmask = label("send"), label("unmask")
    take, full, give, taken = label("take"), label("full"), label("give"), label("taken")
    return "\n".join(
        (
            # the console's bits stay: the guest waits for no event
            "lea rdi, [rip + shared_page + shared_info.evtchn_pending]\nmov rax, -1\nmov ecx, 64\nrep stosq",
            "lea rdi, [rip + shared_page + shared_info.evtchn_mask]\nmov rax, -1\nmov ecx, 64\nrep stosq",
            "mov qword ptr [rip + shared_page + vcpu_info.evtchn_pending_sel], -1",
            operation("send", "evtchn_send", port="[rip + port_c]"),
            expect("send with every bit pending", 0),
            f"xor r13d, r13d\nxor r12d, r12d\n{unmask}:",
            put("argument + evtchn_unmask.port", "r12", 4),
            hypercall("event_channel_op", "EVTCHNOP_unmask", "&argument"),
            f"inc r12d\ncmp r12d, {2 * MOST_PORTS}\njb {unmask}",
            "mov byte ptr [rip + shared_page + vcpu_info.evtchn_upcall_pending], 0",
            f"xor r13d, r13d\nmov r12d, {STORM}\n{send}:",
            operation("send", "evtchn_send", port="[rip + port_c]"),
            f"or r13, rax\ndec r12d\njnz {send}\nmov rax, r13",
            expect("a storm", 0),
            f"xor r12d, r12d\nlea r14, [rip + taken_ports]\n{take}:",
            operation("alloc_unbound", "evtchn_alloc_unbound", dom="DOMID_SELF", remote_dom="DOMID_SELF"),
            f"test rax, rax\njs {full}",
            "mov eax, [rip + argument + evtchn_alloc_unbound.port]\nmov [r14 + r12*4], eax",
            f"inc r12d\ncmp r12d, {MOST_PORTS}\njb {take}\n{full}:",
            negative("all ports are taken"),
            operation("bind_ipi", "evtchn_bind_ipi", vcpu=0),
            negative("no other kind is left"),
            f"xor r13d, r13d\n{give}:\ndec r12d\njs {taken}",
            "mov eax, [r14 + r12*4]",
            operation("close", "evtchn_close", port="rax"),
            f"or r13, rax\njmp {give}\n{taken}:\nmov rax, r13",
            expect("all are given back", 0),
            operation("bind_ipi", "evtchn_bind_ipi", vcpu=0),
            expect("and there are ports again", 0),
        )
    )


def poll(title: str, ports: str | int, count: int, *codes: int) -> str:
    """Wait for one of some ports, a nanosecond."""
    return "\n".join(
        (
            put("argument + sched_poll.ports", ports),
            put("argument + sched_poll.nr_ports", count, 4),
            put("argument + sched_poll.timeout", 1),
            hypercall("sched_op", "SCHEDOP_poll", "&argument"),
            expect(title, *codes),
        )
    )


POLLS = "\n".join(
    (
        poll("a list too long", "&taken_ports", LIST + 1, EINVAL),
        poll("a list much too long", "&taken_ports", 0xFFFF_FFFF, EINVAL),
        poll("a list of Xen's", XEN_ADDRESS, 1, EFAULT),
        poll("a list nowhere", NON_CANONICAL, 1, EFAULT),
        poll("a list without tables", UNMAPPED, 1, EFAULT),
        put("taken_ports", 0xFFFF_FFFF, 4),
        poll("a port nobody has", "&taken_ports", 1, EINVAL),
        put("taken_ports", 0x2_0000, 4),
        poll("a port outside the table", "&taken_ports", 1, EINVAL),
    )
)

OWN_NUMBER = """
    xor ebx, ebx
find_number:
    mov [rip + argument + evtchn_alloc_unbound.dom], bx
    mov [rip + argument + evtchn_alloc_unbound.remote_dom], bx
""" + hypercall("event_channel_op", "EVTCHNOP_alloc_unbound", "&argument") + """
    test rax, rax
    jz number_found
    inc ebx
    cmp ebx, 0x7ff0
    jb find_number
    jmp crash
number_found:
    mov [rip + own_number], rbx
"""


def build() -> bytes:
    """The image."""
    return attack(
        OWN_NUMBER,
        wild(),
        others(),
        storms(),
        POLLS,
        hypercall("sched_op", "SCHEDOP_yield", 0),
        expect("all is well", 0),
        data=(
            ".balign 8, 0\nargument: .zero 64\nown_number: .quad 0",
            "port_a: .quad 0\nport_b: .quad 0\nport_c: .quad 0\nport_d: .quad 0",
        ),
        bss=(f".balign 8, 0\ntaken_ports: .zero {4 * MOST_PORTS}",),
    )
