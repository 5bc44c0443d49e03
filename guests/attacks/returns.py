"""Returns and jumps to where nobody may be: non-canonical and hypervisor addresses, bad selectors, bad flags.

Tries iret, in kernel and in user mode and as from a system call, far jumps and calls, and stacks in non-
canonical, hypervisor and unmapped places. On a broken hypervisor the fault hits the hypervisor itself,
with the guest's stack or GS base (the sysret hole, XSA-7, XSA-10). A correct one gives the guest its
fault.
"""

from __future__ import annotations

from guests.attacks.support import (
    NON_CANONICAL,
    UNMAPPED,
    USER_TABLES,
    XEN_ADDRESS,
    attack,
    expect,
    guarded,
    in_user,
)
from guests.macros import hypercall, load

PLACES = (
    ("non-canonical", NON_CANONICAL),
    ("just not canonical", 1 << 47),
    ("Xen's", XEN_ADDRESS),
    ("the M2P", 0xFFFF_8000_0000_0000),
    ("nowhere", UNMAPPED),
)
FAULTS = (13, 14, 12, 257)
"""#GP, #PF, #SS, or the failsafe callback."""


def iret(rip: int, rsp: str, cs: int, ss: int, flags: int, kind: int) -> str:
    """The iret hypercall with all of these."""
    return "\n".join(
        (
            *(f"{load('rax', word)}\npush rax" for word in (ss, rsp, flags, cs, rip, kind)),
            "push 0\npush 0\npush 0\nmov eax, __HYPERVISOR_iret\nsyscall",
        )
    )


def tries() -> str:
    """All of them."""
    parts = []
    for name, place in PLACES:
        for mode, cs, ss in (("kernel", 0xE030, 0xE02B), ("user", 0xE033, 0xE02B)):
            for how, kind in (("iret", 0), ("sysret", 256)):
                parts += [
                    guarded(iret(place, "&user_stack_top", cs, ss, 0x202, kind)),
                    expect(f"{how} to the {mode}, rip {name}", *FAULTS),
                ]
        parts += [
            in_user(f"{load('rax', place)}\njmp rax"),
            expect(f"a user's jump, {name}", *FAULTS),
            in_user(f"{load('rsp', place)}\npush rax"),
            expect(f"a user's stack, {name}", *FAULTS),
            guarded(f"{load('rax', place)}\njmp rax"),
            expect(f"a jump, {name}", *FAULTS),
            guarded(f"{load('rbx', place)}\nmov [rbx], rax"),
            expect(f"a store there, {name}", *FAULTS),
            hypercall("set_segment_base", 0, place),
            guarded("mov qword ptr fs:[8], rax" if place >> 48 else "int3"),
            expect(f"its fs base, {name}", *FAULTS, 3, -1),
            hypercall("set_segment_base", 0, 0),
        ]
    for name, cs, ss in (
        ("Xen's code", 0xE008, 0xE02B),
        ("a null code selector", 3, 0xE02B),
        ("Xen's data as a stack", 0xE033, 0xE010),
        ("an LDT that is not there", 7, 0xE02B),
        ("a selector behind the GDT", 0xFFFB, 0xE02B),
    ):
        parts += [
            guarded(iret(0x1000, "&user_stack_top", cs, ss, 0x202, 0)),
            expect(f"iret with {name}", *FAULTS),
        ]
    return "\n".join(parts)


def build() -> bytes:
    """The image."""
    return attack(
        USER_TABLES,
        expect("user tables", 0),
        tries(),
        guarded(iret(0x1000, "&user_stack_top", 0xE033, 0xE02B, 0x23002, 0)),
        expect("iret to virtual-8086 mode", *FAULTS),
    )
