"""Context changes inside a multicall, and calls that change the rest of their batch.

Tries iret (also to user mode, and with a stack nobody can read), a new root and a new user root in the
middle of a batch, a batch within a batch, lists in read-only and in page-table pages, and long calls that
are continued while their entry lies where the call itself writes. A broken hypervisor goes on with the
batch in the wrong context or takes the changed rest for checked. A correct one ends the batch at an iret,
answers -EINVAL to a batch in a batch, and checks each entry when it comes to it.
"""

from __future__ import annotations

from guests.attacks.support import (
    EFAULT,
    EINVAL,
    PAGE_FAULT,
    READ_ONLY,
    READ_WRITE,
    USER_TABLES,
    XEN_ADDRESS,
    attack,
    expect,
    guarded,
    in_user,
    remap,
)
from guests.macros import hypercall, put

REFUSED_OLD_QEMU = 4
"""The vector real Xen delivers for a refused `int 0x82` under QEMU before 10, whose error code is wrong."""
ENTRY = 64
"""Bytes of a multicall entry: number, result, six arguments."""


def entry(position: int, number: str, *arguments: str | int) -> str:
    """Fill one entry of `calls`; arguments are numbers, operands or `&label`."""
    return "\n".join(
        (
            put(f"calls + {position * ENTRY}", number),
            put(f"calls + {position * ENTRY + 8}", 0x7777),
            *(put(f"calls + {position * ENTRY + 16 + 8 * at}", value) for at, value in enumerate(arguments)),
        )
    )


def batch(count: int) -> str:
    """Run the first entries."""
    return hypercall("multicall", "&calls", count)


def result(position: int, title: str, *values: int) -> str:
    """What an entry was answered."""
    return f"mov rax, [rip + calls + {position * ENTRY + 8}]\n" + expect(title, *values)


IRET_KERNEL = "\n".join(
    (
        entry(0, "__HYPERVISOR_xen_version", 0, 0),
        entry(1, "__HYPERVISOR_iret"),
        entry(2, "__HYPERVISOR_xen_version", 0, 0),
        (
            "push FLAT_KERNEL_SS\nlea rax, [rsp + 8]\npush rax\npush 0x202\npush 0xe030\n"
            "lea rax, [rip + came_back]\npush rax"
        ),
        "push 0\npush 0\npush 0\nmov eax, 0x5555\npush rax",
        "mov edi, 0\nlea rdi, [rip + calls]\nmov esi, 3\nmov eax, __HYPERVISOR_multicall\nsyscall",
        "came_back:",
        expect("an iret ends its batch with the context's rax", 0x5555),
        result(0, "the call before it ran", 0x40011),
        result(2, "the call after it did not", 0x7777),
    )
)

ROOTS = "\n".join(
    (
        "mov rdi, [rip + start_info_address]\nmov rdi, [rdi + start_info.pt_base]\ncall machine_frame",
        "mov [rip + root_op + 8], rax\nmov [rip + user_op + 8], rax",
        entry(0, "__HYPERVISOR_mmuext_op", "&root_op", 1, 0, "DOMID_SELF"),
        entry(1, "__HYPERVISOR_mmuext_op", "&user_op", 1, 0, "DOMID_SELF"),
        entry(2, "__HYPERVISOR_mmuext_op", "&none_op", 1, 0, "DOMID_SELF"),
        entry(3, "__HYPERVISOR_multicall", "&calls", 1),
        entry(4, "1000", 0),
        batch(5),
        expect("a batch of roots", 0),
        result(0, "the root", 0),
        result(1, "the user's root", 0),
        result(2, "no user's root", 0),
        result(3, "a batch in a batch", EINVAL),
        result(4, "no call", -38),
        entry(0, "__HYPERVISOR_update_va_mapping", "&calls", 0, "UVMF_INVLPG"),
        entry(1, "__HYPERVISOR_xen_version", 0, 0),
        batch(2),
        expect("a batch that takes its list away", EFAULT),
        remap("calls", READ_WRITE),
        remap("calls", READ_ONLY),
        batch(1),
        expect("a read-only list", EFAULT),
        remap("calls", READ_WRITE),
        f"mov rdi, {XEN_ADDRESS}\nmov esi, 1\nmov eax, __HYPERVISOR_multicall\nsyscall",
        expect("a list of Xen's", EFAULT),
        f"mov rdi, {1 << 63}\nmov esi, 1\nmov eax, __HYPERVISOR_multicall\nsyscall",
        expect("a list nowhere", EFAULT),
    )
)

LONG = "\n".join(
    (
        "lea rdi, [rip + requests]\nmov rbx, [rip + spare_frame]\nshl rbx, 12\nmov ecx, 4096",
        "long_fill:\nmov [rdi], rbx\nmov qword ptr [rdi + 8], 7\nadd rdi, 16\ndec ecx\njnz long_fill",
        entry(0, "__HYPERVISOR_mmu_update", "&requests", 4096, "&done", "DOMID_SELF"),
        entry(1, "__HYPERVISOR_xen_version", 0, 0),
        batch(2),
        expect("a batch with a long call", 0),
        result(0, "the long call", 0),
        result(1, "the one after", 0x40011),
        "mov eax, [rip + done]",
        expect("all of it was done", 4096),
        entry(0, "__HYPERVISOR_mmu_update", "&requests", 0xFFFF_FFFF, 0, "DOMID_SELF"),
        batch(1),
        result(0, "a call that says it goes on, and too far", EFAULT, EINVAL),
        hypercall("mmu_update", "&requests", 0x8000_1000, "&done", "DOMID_SELF"),
        expect("a continuation nobody began", 0),
        "mov eax, [rip + done]",
        expect("adds to the number it is given", 8192),
    )
)

USER = "\n".join(
    (
        USER_TABLES,
        expect("user tables", 0),
        in_user("mov edi, 0\nmov eax, __HYPERVISOR_xen_version"),
        expect("a user's call is its kernel's", 256),
        in_user("int 0x82"),
        expect("int 0x82 of a user", 13, REFUSED_OLD_QEMU),
        guarded("int 0x82"),
        expect("int 0x82 of the kernel", 13, REFUSED_OLD_QEMU),
        in_user(f"mov eax, {0xFFFFFFFF}\nsysenter"),
        expect("sysenter of a user", 13, 6),
        in_user("mov rax, MACH2PHYS_VIRT_START\nmov [rax], rax"),
        expect("a user writes the M2P", PAGE_FAULT),
    )
)


def build() -> bytes:
    """The image."""
    return attack(
        IRET_KERNEL,
        ROOTS,
        LONG,
        USER,
        data=(
            "root_op: .quad MMUEXT_NEW_BASEPTR, 0, 0\nuser_op: .quad MMUEXT_NEW_USER_BASEPTR, 0, 0",
            "none_op: .quad MMUEXT_NEW_USER_BASEPTR, 0, 0\ndone: .quad 0",
        ),
        bss=(".balign 4096, 0\ncalls: .zero 4096\nrequests: .zero 65536",),
    )
