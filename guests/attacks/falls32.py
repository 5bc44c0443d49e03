"""`falls` of a PAE guest: stacks, selectors and roots with which ring 1 cannot go on.

The command line's letter says how: traps with the stack pointer in Xen's part, in none, in a page table; from
user mode with such a kernel stack; handlers that are not there; an iret to ring 0, or off a stack nobody can
read; a root without the kernel. A broken hypervisor writes a trap's frame through its own mappings or loads
the selector. A correct one ends the domain. Nothing is printed but that it began.
"""

from __future__ import annotations

from guests.attacks.falls import BEGINS, SURVIVED
from guests.attacks.support32 import READ_ONLY, UNMAPPED, XEN_START, attack, extended, remap
from guests.macros32 import hypercall, line

GDT_PLACE = 0xFC00_1000
"""Where the processor finds the guest's descriptors: Xen's."""


def trap_on(stack: int | str) -> str:
    """A trap of the kernel, whose frame goes below its stack pointer."""
    return f"mov esp, {stack}\nud2"


def trap_of_user(stack: int) -> str:
    """A trap of user mode, with this kernel stack: user mode has no page it may run, so it traps at once."""
    return "\n".join(
        (
            hypercall("stack_switch", "FLAT_KERNEL_SS", stack),
            "push FLAT_USER_SS\npush 0x1000\npush 0x202\npush FLAT_USER_CS\npush 0x1000\npush 0",
            "mov eax, __HYPERVISOR_iret\nint 0x82",
        )
    )


def iret_to(selector: int) -> str:
    """The iret hypercall, to a selector."""
    return (
        f"push FLAT_USER_SS\npush 0x1000\npush 0x202\npush {selector}\npush 0x1000\npush 0\n"
        "mov eax, __HYPERVISOR_iret\nint 0x82"
    )


KINDS = (
    trap_on(XEN_START + 4096),
    trap_on(GDT_PLACE),
    trap_on(UNMAPPED),
    "mov esp, [start_info_address]\nmov esp, [esp + start_info.pt_base]\nadd esp, 4096\nud2",
    trap_on(64),
    trap_of_user(XEN_START + 4096),
    trap_of_user(GDT_PLACE),
    trap_of_user(UNMAPPED),
    "mov dword ptr [trap_table + 8 * 14 + 4], 0x1000\nmov dword ptr [trap_table + 8 * 6 + 4], 0x1000\n"
    + hypercall("set_trap_table", "&trap_table") + "\nud2",
    iret_to(0xE008),
    iret_to(0xE018),
    f"mov esp, {GDT_PLACE + 0x10_0000}\nmov eax, __HYPERVISOR_iret\nint 0x82",
    f"mov esp, {UNMAPPED}\nmov eax, __HYPERVISOR_iret\nint 0x82",
    "lea eax, [third + 4096]\nmov esp, eax\nlea eax, [boot_stack_top]\nxchg esp, eax\npush eax\n"
    + remap("third", READ_ONLY) + "\npop esp\nud2",
    "mov eax, [spare_frame]\nshl eax, 12\nor eax, 1\nmov [other + 24], eax\n" + remap("spare", READ_ONLY)
    + "\n" + remap("other", READ_ONLY) + "\n" + extended("MMUEXT_NEW_BASEPTR", "[other_frame]") + "\nud2",
)
"""Each way to fall, by the letter on the command line, from `a` on."""


def build() -> bytes:
    """The image."""
    return attack(
        line(BEGINS),
        "call console_drain",
        "mov eax, [start_info_address]\nmovzx eax, byte ptr [eax + start_info.cmd_line]\nsub eax, 97",
        "jmp dword ptr [eax*4 + kinds]",
        *(f"kind_{number}:\n{code}\njmp survived" for number, code in enumerate(KINDS)),
        "survived:",
        line(SURVIVED),
        data=(".balign 4, 0\nkinds: .long " + ", ".join(f"kind_{number}" for number in range(len(KINDS))),),
    )
