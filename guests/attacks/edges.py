"""Lists that end where the address space ends, numbers at the ends of their ranges, times that never come.

Tries a trap table, a text and lists of requests whose last byte is that of the address space, with counts
that go on beyond it, and every hypercall argument near 2**64; and sleeps until times close to the end of
64 bits. A broken hypervisor computes the address behind the list, wraps, and goes on in somebody else's
memory (the class of XSA-212), stops, or lets its clock run over. A correct one answers an error or goes
on at address 0, which is the guest's own, and a time that has the sign bit has passed.
"""

from __future__ import annotations

from guests.attacks.support import (
    EFAULT,
    EINVAL,
    ENOSYS,
    L3,
    READ_ONLY,
    READ_WRITE,
    attack,
    expect,
    faults,
    guarded,
    negative,
    remap,
    shifted,
    update,
    walk,
)
from guests.macros import hypercall, line, load, put

TOP = 1 << 64
PAGES = 16
"""Pages mapped at the very end."""

MAP_TOP = "\n".join(
    (
        "lea rdi, [rip + third]\nmov ecx, 256",
        "mov rdx, 0xe03300000041",  # vector 0x41, a selector
        "lea rax, [rip + guest_main]",
        "fill_third:\nmov [rdi], rdx\nmov [rdi + 8], rax\nadd rdi, 16\ndec ecx",
        "jnz fill_third",
        shifted("third_frame", READ_WRITE),
        "lea rdi, [rip + spare + 4096 - 128]\nmov ecx, 16\nrep stosq",
        shifted("spare_frame", READ_WRITE),
        "mov [rip + other + 4088], rax",
        remap("spare", READ_ONLY),
        remap("other", READ_ONLY),
        walk("spare"),
        f"mov rbx, [rip + table_frame + {L3}]\nshl rbx, 12\nadd rbx, 4088",
        shifted("other_frame", READ_WRITE),
        update("rbx", "rax"),
        expect("the end is mapped", 0),
    )
)


def at_end(length: int) -> str:
    """Load rbx with an address so many bytes from the end."""
    return load("rbx", TOP - length)


TABLES = "\n".join(
    (
        at_end(8192),
        hypercall("set_trap_table", "rbx"),
        expect("a trap table up to the end", EFAULT, 0),
        at_end(16),
        hypercall("set_trap_table", "rbx"),
        expect("a trap table of one", EFAULT, 0),
        hypercall("set_trap_table", "&trap_table"),
        expect("the right one", 0),
        at_end(16),
        hypercall("mmu_update", "rbx", 2, 0, "DOMID_SELF"),
        expect("updates beyond the end", EINVAL),
        hypercall("mmu_update", "rbx", 0x7FFF_FFFF, 0, "DOMID_SELF"),
        expect("more of them", EINVAL),
        at_end(24),
        hypercall("mmuext_op", "rbx", 2, 0, "DOMID_SELF"),
        expect("operations beyond the end", ENOSYS),
        at_end(64),
        hypercall("multicall", "rbx", 2),
        expect("calls beyond the end", EFAULT),
        hypercall("multicall", "rbx", 0xFFFF_FFFF),
        expect("more calls", EFAULT),
        at_end(8),
        hypercall("multicall", "rbx", 1),
        negative("a call over the end"),
        at_end(8),
        hypercall("grant_table_op", "GNTTABOP_copy", "rbx", 2),
        negative("copies over the end"),
        hypercall("grant_table_op", "GNTTABOP_map_grant_ref", "rbx", 0x7FFF_FFFF),
        negative("maps over the end"),
        at_end(4),
        hypercall("set_gdt", "rbx", 512),
        expect("a GDT over the end", EFAULT),
        at_end(7),
        hypercall("memory_op", "XENMEM_exchange", "rbx"),
        expect("an exchange over the end", EFAULT),
        at_end(1),
        hypercall("sched_op", "SCHEDOP_poll", "rbx"),
        expect("a poll over the end", EFAULT),
        hypercall("event_channel_op", "EVTCHNOP_send", "rbx"),
        expect("an event over the end", EFAULT),
        at_end(8),
        faults("a stack over the end", "mov rax, [rbx + 1]", -1, 13, 12, 14),
    )
)

NUMBERS = "\n".join(
    (
        "xor r12d, r12d",
        "lea r13, [rip + numbers]",
        "number_next:",
        "mov rbx, [r13]",
        *(
            f"mov rdi, {first}\nmov rsi, {second}\nmov rdx, rbx\nmov r10, {fourth}\n"
            "mov eax, r12d\ncall try_call"
            for first, second, fourth in (
                ("rbx", "rbx", "rbx"),
                (0, "rbx", 0),
                ("rbx", 1, 0x7FF0),
                (7, "rbx", "rbx"),
            )
        ),
        "inc r12d\ncmp r12d, 64\njb number_next",
        "xor r12d, r12d\nadd r13, 8\nlea rax, [rip + numbers_end]",
        "cmp r13, rax\njb number_next",
        line("PASS every call with every number"),
    )
)

TRY = """
try_call:                               # eax = the call: all but those that end, replace or stop this guest
    lea rcx, [rip + spared]
    bt qword ptr [rcx], rax
    jc call_spared
    syscall
call_spared:
    ret
"""
SPARED = (0, 2, 3, 4, 6, 23, 24, 25, 29, 30, 28)
"""set_trap_table, set_gdt, stack_switch, set_callbacks, sched_op_compat, iret, vcpu_op, set_segment_base,
sched_op, callback_op, nmi_op: with these arguments they may do what they are for."""


def poll(title: str, timeout: int) -> str:
    """A poll of no port until then; the timer's event ends it when it does not end by itself."""
    return "\n".join(
        (
            put("poll + sched_poll.timeout", timeout),
            put("poll + sched_poll.nr_ports", 0, 4),
            put("poll + sched_poll.ports", "&poll"),
            hypercall("sched_op", "SCHEDOP_poll", "&poll"),
            expect(f"a poll until {title}", 0),
        )
    )


TIMES = "\n".join(
    (
        poll("2**64 - 1", TOP - 1),
        poll("2**63", 1 << 63),
        poll("1", 1),
        hypercall("set_timer_op", TOP - 1),
        expect("a timer at 2**64 - 1", 0),
        hypercall("set_timer_op", (1 << 63) - 1),
        expect("a timer at 2**63 - 1", 0),
        hypercall("set_timer_op", 0),
    )
)


def build() -> bytes:
    """The image."""
    spared = sum(1 << number for number in SPARED)
    return attack(
        MAP_TOP,
        TABLES,
        guarded(NUMBERS),
        TIMES,
        text=(TRY,),
        data=(
            f"spared: .quad {spared}\npoll: .quad 0, 0, 0\nnumbers: .quad -1, 0x7fffffffffffffff, -8, -4096",
            ".quad 0x8000000000000000, 0x800000000000, 0x7fffffffffff, 0xffffffff, 0xffff830000000000",
            ".quad 0xffff87ffffffffff, 0xffff800000000000, 3, 0xfffffffffffff000\nnumbers_end:",
        ),
    )
