"""Returns of a PAE guest to where it may not be: Xen's selectors, rings 0 and 2, Xen's addresses, bad flags.

Tries the iret hypercall with code and stack selectors of Xen, of other rings, behind the tables and of none,
to Xen's addresses, to virtual-8086 mode, with I/O privilege; far jumps, calls and returns; callbacks and
stacks with selectors of ring 0; and from user mode the kernel's calls, selectors, pages and the M2P. A broken
hypervisor loads a selector it has not checked (the fault hits the hypervisor, or ring 0 runs on), or leaves
ring 1's pages open to ring 3. A correct one raises the level of what it is given, or gives the guest its
fault.
"""

from __future__ import annotations

from guests.assembler import NARROW_BASE
from guests.attacks.support32 import (
    EFAULT,
    EINVAL,
    PAGE_FAULT,
    PROTECTION,
    READ_WRITE,
    UNMAPPED,
    XEN_ADDRESSES,
    XEN_START,
    attack,
    expect,
    faults,
    guarded,
    label,
)
from guests.macros32 import hypercall, put

FAILSAFE = 257
FAULTS = (PROTECTION, PAGE_FAULT, 11, 12, 10, FAILSAFE)
KERNEL_CS, KERNEL_SS, USER_CS, USER_SS = 0xE019, 0xE021, 0xE02B, 0xE033
IOPL = 3 << 12
VIRTUAL_8086 = 1 << 17
SUPERVISOR = READ_WRITE & ~4
EXIT = 0x24
"""The vector by which code in user mode comes back."""


def iret(eip: str | int, cs: int, flags: int = 0x202, esp: str | int = 0, ss: int = USER_SS) -> str:
    """The iret hypercall."""
    return "\n".join(
        (
            f"push {ss}",
            f"mov eax, {esp}\npush eax",
            f"push {flags}\npush {cs}",
            f"mov eax, {eip}\npush eax\npush eax",
            "mov eax, __HYPERVISOR_iret\nint 0x82",
        )
    )


def in_user(code: str) -> str:
    """Run code in user mode until it traps; eax is the vector, or EXIT."""
    start = label("user")
    return guarded(
        "\n".join(
            (
                f"lea ecx, [{start}]",
                iret("ecx", USER_CS, esp="[user_stack_place]"),
                f"{start}:",
                f"mov ecx, {USER_SS}\nmov ds, ecx\nmov es, ecx",
                code,
                f"int {EXIT}",
            )
        )
    )


def returns() -> str:
    """Selectors, addresses and flags."""
    parts = []
    for name, cs, ss in (
        ("Xen's code, ring 1", 0xE009, USER_SS),
        ("Xen's code, ring 3", 0xE00B, USER_SS),
        ("the kernel's code in ring 2", 0xE01A, USER_SS),
        ("a null code selector", 3, USER_SS),
        ("data as code", KERNEL_SS, USER_SS),
        ("a selector behind the GDT", 0xFFFB, USER_SS),
        ("code of no LDT", 7, USER_SS),
        ("Xen's data as a user's stack", USER_CS, 0xE010),
        ("Xen's data as a stack, ring 3", USER_CS, 0xE013),
        ("the kernel's stack for a user", USER_CS, KERNEL_SS),
        ("code as a stack", USER_CS, USER_CS),
        ("no stack", USER_CS, 3),
        ("a task state as code", 0xE043, USER_SS),
    ):
        parts += [
            guarded(iret(0x1000, cs, ss=ss)),
            expect(f"iret with {name}", *FAULTS),
        ]
    for address in (*XEN_ADDRESSES[1:], UNMAPPED, 0):
        for name, cs in (("the kernel", KERNEL_CS), ("a user", USER_CS)):
            parts += [
                guarded(iret(address, cs, esp="[user_stack_place]")),
                expect(f"iret of {name} to {address:#x}", *FAULTS, 6),
            ]
    parts += [
        guarded(iret(0x1000, USER_CS, 0x202 | VIRTUAL_8086)),
        expect("iret to virtual-8086 mode", *FAULTS),
    ]
    for address in (XEN_START, 0xFC00_0000, UNMAPPED, 0xFFFF_FFFC):
        parts += [
            faults(f"a store there, {address:#x}", f"mov eax, {address}\nmov [eax], eax", *FAULTS),
        ]
    for name, code in (
        ("a far jump to Xen's code", ".byte 0xea\n.long 0x1000\n.short 0xe008"),
        ("a far jump to it, ring 1", ".byte 0xea\n.long 0x1000\n.short 0xe009"),
        ("a far jump to user code", ".byte 0xea\n.long 0x1000\n.short 0xe02b"),
        ("a far return to Xen's code", "push 0xe008\npush 0x1000\nretf"),
        ("a far return to ring 2", "push 0xe01a\npush 0x1000\nretf"),
        ("the processor's iret to Xen's code", "pushfd\npush 0xe008\npush 0x1000\niretd"),
        ("Xen's data in ds", "mov eax, 0xe010\nmov ds, eax"),
        ("Xen's data in ss", "mov eax, 0xe010\nmov ss, eax"),
        ("ring 0's data in ss", "mov eax, 0xe020\nmov ss, eax"),
        ("int 0x80 unregistered", "int 0x81"),
    ):
        parts.append(faults(name, code, *FAULTS))
    return "\n".join(parts)


def registrations() -> str:
    """What is registered with selectors of ring 0: its level is raised."""
    parts = []
    for name, address in (("Xen's", XEN_START), ("the end's", 0xFFFF_FFFC), ("nobody's", UNMAPPED)):
        parts += [
            hypercall("set_trap_table", address),
            expect(f"a trap table, {name}", 0, EFAULT),
        ]
    parts += [
        "mov byte ptr [trap_table + 8 * 6 + 1], 0\nmov word ptr [trap_table + 8 * 6 + 2], 0xe018",
        hypercall("set_trap_table", "&trap_table"),
        expect("a handler in ring 0", 0),
        guarded("ud2"),
        expect("runs", 6),
        "mov eax, [guard_cs]\nand eax, 3",
        expect("the guest was in ring 1", 1),
        "mov ax, cs\nand eax, 3",
        expect("and is", 1),
        hypercall("stack_switch", 0xE020, "&trap_stack_top"),
        expect("a stack of ring 0", 0, EINVAL),
        in_user("ud2"),
        expect("is one of ring 1", 6),
        "mov ax, ss\nand eax, 3",
        expect("as it must be", 1),
        hypercall("stack_switch", KERNEL_SS, "&trap_stack_top"),
        expect("the kernel's own", 0),
    ]
    return "\n".join(parts)


def users() -> str:
    """What user mode may not do."""
    parts = [in_user("nop"), expect("user mode works", EXIT)]
    for name, code in (
        ("the kernel's call", "mov eax, 17\nxor ebx, ebx\nint 0x82"),
        ("a hypercall's page", f"mov eax, {NARROW_BASE}\ncall eax"),
        ("a page of the kernel, read", "mov eax, [third]"),
        ("a page of the kernel, written", "mov [third], eax"),
        ("the M2P", f"mov eax, [{XEN_START}]"),
        ("the M2P, written", f"mov [{XEN_START}], eax"),
        ("the GDT", "mov eax, [0xfc000000]"),
        ("the kernel's data in ds", f"mov eax, {KERNEL_SS}\nmov ds, eax"),
        ("the kernel's stack", f"mov eax, {KERNEL_SS}\nmov ss, eax"),
        ("Xen's data", "mov eax, 0xe010\nmov es, eax"),
        ("a jump to the kernel", f".byte 0xea\n.long 0x1000\n.short {KERNEL_CS}"),
        ("a call of the kernel", f".byte 0x9a\n.long 0x1000\n.short {KERNEL_CS}"),
        ("a return to the kernel", f"push {KERNEL_CS}\npush 0x1000\nretf"),
        ("cli", "cli"),
        ("a port", "mov dx, 0x3f8\nout dx, al"),
        ("hlt", "hlt"),
        ("cr3", "mov eax, cr3"),
        ("lgdt", "lgdt [user_stack]"),
        ("int 0x20", "int 0x20"),
    ):
        parts += [in_user(code), expect(f"a user: {name}", *FAULTS)]
    return "\n".join(parts)


SETUP = f"""
    lea edi, [{NARROW_BASE + 4096}]         # user mode runs the same text, on the same data
open_pages:
    mov esi, {READ_WRITE}
    xor eax, eax
    call remap
    test eax, eax
    jnz crash
    add edi, 4096
    cmp edi, image_end
    jb open_pages
    lea edi, [third]
    mov esi, {SUPERVISOR}
    xor eax, eax
    call remap
    test eax, eax
    jnz crash
    mov eax, [start_info_address]           # the console's page is the kernel's own
""" + put("user_stack_place", "&user_stack_top")


def build() -> bytes:
    """The image."""
    return attack(
        SETUP,
        returns(),
        users(),
        registrations(),
        hypercall("sched_op", "SCHEDOP_yield", 0),
        expect("all is well", 0),
        data=("user_stack_place: .long 0",),
        trap_flags={3: 3, 4: 3, EXIT: 3},
    )
