"""Stacks, handlers and roots with which no guest can go on: it falls, and falls alone.

The command line's digit says how: traps taken with the stack pointer in Xen's addresses, in none, in the
read-only table of frames, in a page table; from user mode with such a kernel stack; handlers that are not
there; an iret off a stack nobody can read; a root without the kernel, a stack taken away. A broken hypervisor
writes a trap's frame where the guest cannot (XSA-7's neighbours, XSA-105), takes the fault itself, or
delivers faults of faults for ever. A correct one ends the domain. Nothing is printed but that it began.
"""

from __future__ import annotations

from guests.attacks.support import (
    NON_CANONICAL,
    READ_ONLY,
    UNMAPPED,
    USER_TABLES,
    XEN_ADDRESS,
    attack,
    extended,
    remap,
)
from guests.macros import hypercall, line

M2P = 0xFFFF_8000_0000_0000
BEGINS, SURVIVED = "falls", "FAIL it goes on"


def trap_on(stack: str) -> str:
    """A trap of the kernel, whose frame goes below its stack pointer."""
    return f"mov rsp, {stack}\nud2"


def trap_of_user(stack: int) -> str:
    """A trap of user mode, with this kernel stack."""
    return "\n".join(
        (
            USER_TABLES,
            hypercall("stack_switch", "FLAT_KERNEL_SS", stack),
            "lea rax, [rip + user_trap]\njmp enter_user",
        )
    )


KINDS = (
    trap_on(str(XEN_ADDRESS + 4096)),
    trap_on(str(NON_CANONICAL)),
    trap_on(str(M2P + 4096)),
    trap_on(str(UNMAPPED)),
    "mov rsp, [rip + start_info_address]\nmov rsp, [rsp + start_info.pt_base]\nadd rsp, 4096\nud2",
    trap_on("64"),
    trap_of_user(XEN_ADDRESS + 4096),
    trap_of_user(NON_CANONICAL),
    trap_of_user(UNMAPPED),
    "lea rax, [rip + trap_table]\nmov qword ptr [rax + 16 * 14 + 8], 0x1000\n"
    "mov qword ptr [rax + 16 * 6 + 8], 0x1000\n" + hypercall("set_trap_table", "&trap_table") + "\nud2",
    f"mov rsp, {XEN_ADDRESS}\nmov eax, __HYPERVISOR_iret\nsyscall",
    f"mov rsp, {UNMAPPED}\nmov eax, __HYPERVISOR_iret\nsyscall",
    "lea rax, [rip + third + 4096]\nmov rsp, rax\n" + remap("third", READ_ONLY) + "\nud2",
    remap("third", READ_ONLY) + "\n" + extended("MMUEXT_PIN_L4_TABLE", "[rip + third_frame]") + "\n"
    + extended("MMUEXT_NEW_BASEPTR", "[rip + third_frame]") + "\nud2",
    "lea rax, [rip + trap_table]\nmov qword ptr [rax + 16 * 14 + 8], 0x1000\n"
    + hypercall("set_trap_table", "&trap_table") + "\n" + hypercall("set_callbacks", 0x1000, 0x1000, 0x1000)
    + "\nmov byte ptr [rip + shared_page + vcpu_info.evtchn_upcall_pending], 1\n"
    + "mov byte ptr [rip + shared_page + vcpu_info.evtchn_upcall_mask], 0\n"
    + hypercall("sched_op", "SCHEDOP_yield", 0),
)
"""Each way to fall, by the letter on the command line, from `a` on."""


def build() -> bytes:
    """The image."""
    return attack(
        line(BEGINS),
        "call console_drain",
        "mov rax, [rip + start_info_address]\nmovzx eax, byte ptr [rax + start_info.cmd_line]\nsub eax, 97",
        "lea rcx, [rip + kinds]\njmp qword ptr [rcx + rax*8]",
        *(f"kind_{number}:\n{code}\njmp survived" for number, code in enumerate(KINDS)),
        "user_trap: ud2",
        "survived:",
        line(SURVIVED),
        data=(".balign 8, 0\nkinds: .quad " + ", ".join(f"kind_{number}" for number in range(len(KINDS))),),
    )
