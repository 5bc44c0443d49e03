"""What attack guests are written with: verdicts, faults that are expected, page tables to look at, requests.

An attack prints `PASS` and what did not work, or `FAIL` and what it got; the last line is `attack: done`.
Nothing it prints depends on machine frames, addresses or time.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Final

from guests import runtime
from guests.assembler import VIRT_BASE
from guests.macros import hypercall, kernel, line, load, put
from guests.runtime import frame, restore, save

DONE: Final = "attack: done"
"""The last line of an attack that ran to its end."""
PRESENT, WRITABLE, USER, ACCESSED, DIRTY = 1, 2, 4, 0x20, 0x40
SUPERPAGE: Final = 1 << 7
READ_WRITE: Final = PRESENT | WRITABLE | USER | ACCESSED | DIRTY
READ_ONLY: Final = PRESENT | USER | ACCESSED | DIRTY
NO_FRAME: Final = 0xFF_FFFF_FFFF
"""A machine frame number beyond all memory."""
UNMAPPED: Final = 0x7000_0000_0000
NON_CANONICAL: Final = 0x8000_0000_0000_0000
XEN_ADDRESS: Final = 0xFFFF_8300_0000_0000
"""An address of Xen's own."""
ROOT_SLOT: Final = 300
"""A slot of the root that is the guest's own and empty: 0xffff960000000000."""
FREE_VA: Final = 0xFFFF_0000_0000_0000 | ROOT_SLOT << 39

EPERM, ESRCH, EBUSY, EFAULT, EINVAL, ENOSYS, ENOENT, EEXIST = -1, -3, -16, -14, -22, -38, -2, -17
PROTECTION, PAGE_FAULT = 13, 14
ANY: Final = -1
"""Any vector will do."""

_labels = count()


def label(kind: str) -> str:
    """A label nobody else has."""
    return f"{kind}_{next(_labels)}"


def expect(title: str, *values: int) -> str:
    """PASS when rax is one of these numbers, else FAIL."""
    good, end = label("good"), label("end")
    return "\n".join(
        (
            *(f"mov rcx, {value}\ncmp rax, rcx\nje {good}" for value in values),
            line(f"FAIL {title}: {{rax:d}}"),
            f"jmp {end}",
            f"{good}:",
            line(f"PASS {title}"),
            f"{end}:",
        )
    )


def negative(title: str) -> str:
    """PASS when rax is an error."""
    good, end = label("good"), label("end")
    return "\n".join(
        (
            f"test rax, rax\njs {good}",
            line(f"FAIL {title}: {{rax:d}}"),
            f"jmp {end}",
            f"{good}:",
            line(f"PASS {title}"),
            f"{end}:",
        )
    )


def guarded(code: str) -> str:
    """Run code that may fault; after it rax is its vector, or -1. Registers it changed stay changed."""
    end = label("guarded")
    return "\n".join(
        (
            f"lea rax, [rip + {end}]",
            "mov [rip + guard_stack], rsp",
            "mov [rip + guard_resume], rax",
            "mov qword ptr [rip + guard_vector], -1",
            code,
            f"{end}:",
            "mov qword ptr [rip + guard_resume], 0",
            "mov rax, [rip + guard_vector]",
        )
    )


def faults(title: str, code: str, *vectors: int) -> str:
    """PASS when the code takes one of these exceptions (page fault by default)."""
    return guarded(code) + "\n" + expect(title, *(vectors or (PAGE_FAULT,)))


def in_user(code: str) -> str:
    """Run code in user mode until it traps or makes a system call (vector 256); rax is the vector."""
    start, end = label("user"), label("user_end")
    return "\n".join(
        (
            f"lea rax, [rip + {end}]",
            "mov [rip + guard_stack], rsp",
            "mov [rip + guard_resume], rax",
            "mov qword ptr [rip + guard_vector], -1",
            f"lea rax, [rip + {start}]",
            "jmp enter_user",
            f"{start}:",
            code,
            "syscall",
            f"{end}:",
            "mov qword ptr [rip + guard_resume], 0",
            "mov rax, [rip + guard_vector]",
        )
    )


def frame_of(page: str, target: str) -> str:
    """Keep the machine frame of a page of the image at a label."""
    return f"lea rdi, [rip + {page}]\ncall machine_frame\nmov [rip + {target}], rax"


def remap(page: str, flags: int) -> str:
    """Map a page of the image with these flags; rax is the result."""
    return f"lea rdi, [rip + {page}]\nmov rsi, {flags}\ncall remap"


def update(address: str | int, value: str | int) -> str:
    """mmu_update of one entry at a machine address (operands: rax for the value only)."""
    return "\n".join(
        (
            put("request + 8", value),
            load("rax", address),
            "mov [rip + request], rax",
            hypercall("mmu_update", "&request", 1, 0, "DOMID_SELF"),
        )
    )


def extended(command: str, arg1: str | int = 0, arg2: str | int = 0) -> str:
    """One mmuext operation."""
    return "\n".join(
        (
            put("operation", command),
            put("operation + 8", arg1),
            put("operation + 16", arg2),
            hypercall("mmuext_op", "&operation", 1, 0, "DOMID_SELF"),
        )
    )


def shifted(source: str, flags: int | str) -> str:
    """rax = the entry for the frame kept at a label."""
    return f"mov rax, [rip + {source}]\nshl rax, 12\nor rax, {flags}"


def walk(page: str) -> str:
    """Look up an address of the image: table_frame and table_va of levels 4 to 1, rax = its L1 entry's."""
    return f"lea rdi, [rip + {page}]\ncall walk_tables"


def same(title: str, page: str, value: int) -> str:
    """PASS when a page's first word is this."""
    return f"mov rax, [rip + {page}]\n" + expect(title, value)


L4, L3, L2, L1 = (8 * level for level in range(4))
"""Offsets into table_frame and table_va."""

_SUPPORT: Final = f"""
guard_hook:                             # a trap: where it was expected go on there, else give up
    cmp qword ptr [rip + guard_resume], 0
    je trap_unexpected
    mov rax, [rdi + {frame("vector")}]
    mov [rip + guard_vector], rax
    mov rax, [rdi + {frame("rip")}]
    mov [rip + guard_rip], rax
    mov rax, [rip + guard_resume]
    mov [rdi + {frame("rip")}], rax
    mov rax, [rip + guard_stack]
    mov [rdi + {frame("rsp")}], rax
    mov qword ptr [rdi + {frame("rflags")}], 0x202
    mov qword ptr [rdi + {frame("cs")}], {0xE030}
    mov qword ptr [rdi + {frame("ss")}], FLAT_KERNEL_SS
    ret

user_call:                              # a user's system call: a trap of its own vector
    pop rcx
    pop r11
    push -1
    push 256
    jmp trap_common

failsafe_entry:
    pop rcx
    pop r11
    add rsp, 32
    push -1
    push 257
    jmp trap_common

enter_user:                             # rax = where
    push FLAT_USER_SS
    lea rcx, [rip + user_stack_top]
    push rcx
    push 0x202
    push FLAT_USER_CS
    push rax
    push 0
    push rcx
    push r11
    push rax
    mov eax, __HYPERVISOR_iret
    syscall

walk_tables:                            # rdi = an address whose tables are in the image's linear mapping
{save(("rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9"))}
    mov rsi, [rip + start_info_address]
    mov rsi, [rsi + start_info.pt_base]
    push rdi
    mov rdi, rsi
    call machine_frame
    pop rdi
    lea r8, [rip + table_frame]
    lea r9, [rip + table_va]
    mov ecx, 39
walk_level:
    mov [r8], rax
    mov [r9], rsi
    add r8, 8
    add r9, 8
    mov rdx, rdi
    shr rdx, cl
    and edx, 511
    shl rax, 12
    lea rbx, [rax + rdx*8]
    cmp ecx, 12
    je walked
    mov rax, [rsi + rdx*8]
    mov rsi, 0xffffffffff000
    and rax, rsi
    shr rax, 12
    mov rsi, MACH2PHYS_VIRT_START
    mov rsi, [rsi + rax*8]
    shl rsi, 12
    mov rdx, {VIRT_BASE}
    add rsi, rdx
    sub ecx, 9
    jmp walk_level
walked:
    mov rax, rbx
{restore(("rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9"))}
    ret
"""

_DATA: Final = """
.balign 8, 0
guard_stack: .quad 0
guard_resume: .quad 0
guard_vector: .quad 0
guard_rip: .quad 0
request: .quad 0, 0
operation: .quad 0, 0, 0
table_frame: .quad 0, 0, 0, 0
table_va: .quad 0, 0, 0, 0
spare_frame: .quad 0
other_frame: .quad 0
third_frame: .quad 0
"""

_BSS: Final = """
.balign 4096, 0
spare: .zero 4096
other: .zero 4096
third: .zero 4096
trap_stack: .zero 8192
trap_stack_top:
user_stack: .zero 4096
user_stack_top:
"""

_SETUP: Final = "\n".join(
    (
        put("trap_hook", "&guard_hook"),
        hypercall("set_callbacks", "&crash", "&failsafe_entry", "&user_call"),
        hypercall("stack_switch", "FLAT_KERNEL_SS", "&trap_stack_top"),
        *(frame_of(page, f"{page}_frame") for page in ("spare", "other", "third")),
    )
)
USER_TABLES: Final = "\n".join(
    (
        (
            "mov rdi, [rip + start_info_address]\nmov rdi, [rdi + start_info.pt_base]\n"
            "call machine_frame\nmov rbx, rax"
        ),
        extended("MMUEXT_NEW_USER_BASEPTR", "rbx"),
    )
)
"""Let user mode run on the kernel's own tables."""


def attack(
    *main: str,
    text: Iterable[str] = (),
    data: Iterable[str] = (),
    bss: Iterable[str] = (),
    events: bool = False,
    trap_flags: dict[int, int] | None = None,
) -> bytes:
    """The image of an attack. `spare`, `other` and `third` are pages of its own."""
    return kernel(
        _SETUP,
        *main,
        line(DONE),
        "ret",
        _SUPPORT,
        *text,
        data=(_DATA, *data),
        bss=(_BSS, *bss),
        traps=True,
        events=events,
        pages=True,
        trap_flags=trap_flags,
    )


__all__ = [
    "ANY",
    "DONE",
    "FREE_VA",
    "L1",
    "L2",
    "L3",
    "L4",
    "NON_CANONICAL",
    "NO_FRAME",
    "PAGE_FAULT",
    "PROTECTION",
    "READ_ONLY",
    "READ_WRITE",
    "ROOT_SLOT",
    "SUPERPAGE",
    "UNMAPPED",
    "USER_TABLES",
    "XEN_ADDRESS",
    "attack",
    "expect",
    "extended",
    "faults",
    "frame_of",
    "guarded",
    "in_user",
    "label",
    "negative",
    "remap",
    "runtime",
    "same",
    "shifted",
    "update",
    "walk",
]
