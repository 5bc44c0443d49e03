"""`support` for attacks by 32-bit PAE guests: the same verdicts, in ring 1.

Machine frames are below 4 GiB where these guests run. A trap is not returned from: the guest goes on where it
was expected, on its own stack.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from guests.assembler import NARROW_BASE
from guests.attacks.support import (
    DONE,
    EBUSY,
    EFAULT,
    EINVAL,
    ENOSYS,
    EPERM,
    PAGE_FAULT,
    PROTECTION,
    READ_ONLY,
    READ_WRITE,
    SUPERPAGE,
    label,
)
from guests.macros32 import hypercall, kernel, line, load, put
from guests.runtime32 import frame

XEN_START: Final = 0xF580_0000
"""Where Xen's part of the address space begins, with the machine-to-physical table."""
XEN_ADDRESSES: Final = (0xF580_0000, 0xF680_0000, 0xFC00_0000, 0xFFFF_F000)
UNMAPPED: Final = 0x7000_0000
FIRST_XEN_SLOT: Final = (XEN_START >> 21) & 511
"""The first entry of the last L2 that is Xen's."""
FREE_VA: Final = 0x4000_0000
"""Where the guest has no tables: its L3 entry 1 is empty."""
NO_EXECUTE_HIGH: Final = 1 << 31
"""The upper half of an entry that has nothing but NX."""
NO_FRAME: Final = 0xFFFFF
"""A frame far above this guest's machine."""


def expect(title: str, *values: int) -> str:
    """PASS when eax is one of these numbers, else FAIL."""
    good, end = label("good"), label("end")
    return "\n".join(
        (
            *(f"cmp eax, {value}\nje {good}" for value in values),
            line(f"FAIL {title}: {{eax:d}}"),
            f"jmp {end}",
            f"{good}:",
            line(f"PASS {title}"),
            f"{end}:",
        )
    )


def negative(title: str) -> str:
    """PASS when eax is an error."""
    good, end = label("good"), label("end")
    return "\n".join(
        (
            f"test eax, eax\njs {good}",
            line(f"FAIL {title}: {{eax:d}}"),
            f"jmp {end}",
            f"{good}:",
            line(f"PASS {title}"),
            f"{end}:",
        )
    )


def guarded(code: str) -> str:
    """Run code that may fault; after it eax is its vector, or -1."""
    end = label("guarded")
    return "\n".join(
        (
            f"mov dword ptr [guard_resume], {end}",
            "mov [guard_stack], esp",
            "mov dword ptr [guard_vector], -1",
            code,
            f"{end}:",
            "mov dword ptr [guard_resume], 0",
            "mov eax, [guard_vector]",
        )
    )


def faults(title: str, code: str, *vectors: int) -> str:
    """PASS when the code takes one of these exceptions (page fault by default)."""
    return guarded(code) + "\n" + expect(title, *(vectors or (PAGE_FAULT,)))


def update(address: str | int, low: str | int, high: int = 0) -> str:
    """mmu_update of one entry at a machine address; the operands are a register or a number, not eax."""
    return "\n".join(
        (
            put("request", address),
            put("request + 4", 0),
            put("request + 8", low),
            put("request + 12", high),
            hypercall("mmu_update", "&request", 1, 0, "DOMID_SELF"),
        )
    )


def extended(command: str, arg1: str | int = 0, arg2: str | int = 0) -> str:
    """One mmuext operation."""
    return "\n".join(
        (
            put("operation", command),
            put("operation + 4", arg1),
            put("operation + 8", arg2),
            hypercall("mmuext_op", "&operation", 1, 0, "DOMID_SELF"),
        )
    )


def mapping(address: str | int, low: str | int, high: int = 0) -> str:
    """update_va_mapping, with the address flushed."""
    return put("map_low", low) + "\n" + hypercall(
        "update_va_mapping", address, "[map_low]", high, "UVMF_INVLPG"
    )


def remap(page: str, flags: int) -> str:
    """Map a page of the image with these flags."""
    return f"lea edi, [{page}]\nmov esi, {flags}\nxor eax, eax\ncall remap"


def shifted(source: str, flags: int | str) -> str:
    """ebx = the entry for the frame kept at a label."""
    return f"mov ebx, [{source}]\nshl ebx, 12\nor ebx, {flags}"


def walk(page: str) -> str:
    """Look up an address of the image: table_frame of levels 3 to 1, eax = its L1 entry's machine address."""
    return f"lea edi, [{page}]\ncall walk_tables"


def same(title: str, page: str, value: int) -> str:
    """PASS when a page's first word is this."""
    return f"mov eax, [{page}]\n" + expect(title, value)


L3, L2, L1 = (4 * level for level in range(3))
"""Offsets into table_frame and table_va."""

_SUPPORT: Final = f"""
guard_hook:                             # a trap: where it was expected go on there, else give up
    cmp dword ptr [guard_resume], 0
    je trap_unexpected
    mov eax, [edi + {frame("vector")}]
    mov [guard_vector], eax
    mov eax, [edi + {frame("cs")}]
    mov [guard_cs], eax
    mov esp, [guard_stack]
    jmp dword ptr [guard_resume]

failsafe_entry:                         # an iret or a selector that cannot be loaded: vector 257
    mov eax, FLAT_KERNEL_DS
    mov ds, eax
    mov es, eax
    mov dword ptr [guard_vector], 257
    cmp dword ptr [guard_resume], 0
    je crash
    mov esp, [guard_stack]
    jmp dword ptr [guard_resume]

walk_tables:                            # edi = an address whose tables are in the image's linear mapping
    push ebx
    push ecx
    push edx
    push esi
    mov esi, [start_info_address]
    mov esi, [esi + start_info.pt_base]
    push edi
    mov edi, esi
    call machine_frame
    pop edi
    mov [table_frame], eax
    mov [table_va], esi
    mov edx, edi
    shr edx, 30
    mov ebx, 4
walk_level:
    mov eax, [esi + edx*8]
    shr eax, 12
    mov [ebx + table_frame], eax
    mov esi, [eax*4 + MACH2PHYS_VIRT_START]
    shl esi, 12
    add esi, {NARROW_BASE}
    mov [ebx + table_va], esi
    mov edx, edi
    cmp ebx, 8
    je walk_last
    shr edx, 21
    and edx, 511
    mov ebx, 8
    jmp walk_level
walk_last:
    shr edx, 12
    and edx, 511
    shl eax, 12
    lea eax, [eax + edx*8]
    pop esi
    pop edx
    pop ecx
    pop ebx
    ret
"""

_DATA: Final = """
.balign 8, 0
guard_stack: .long 0
guard_resume: .long 0
guard_vector: .long 0
guard_cs: .long 0
map_low: .long 0
request: .long 0, 0, 0, 0
operation: .long 0, 0, 0
table_frame: .long 0, 0, 0
table_va: .long 0, 0, 0
spare_frame: .long 0
other_frame: .long 0
third_frame: .long 0
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
        hypercall("set_callbacks", "FLAT_KERNEL_CS", "&crash", "FLAT_KERNEL_CS", "&failsafe_entry"),
        hypercall("stack_switch", "FLAT_KERNEL_SS", "&trap_stack_top"),
        *(f"lea edi, [{page}]\ncall machine_frame\nmov [{page}_frame], eax"
          for page in ("spare", "other", "third")),
    )
)


def attack(
    *main: str,
    text: Iterable[str] = (),
    data: Iterable[str] = (),
    bss: Iterable[str] = (),
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
        pages=True,
        trap_flags=trap_flags,
    )


__all__ = [
    "EBUSY",
    "EFAULT",
    "EINVAL",
    "ENOSYS",
    "EPERM",
    "FIRST_XEN_SLOT",
    "FREE_VA",
    "L1",
    "L2",
    "L3",
    "NO_EXECUTE_HIGH",
    "NO_FRAME",
    "PAGE_FAULT",
    "PROTECTION",
    "READ_ONLY",
    "READ_WRITE",
    "SUPERPAGE",
    "UNMAPPED",
    "XEN_ADDRESSES",
    "XEN_START",
    "attack",
    "expect",
    "extended",
    "faults",
    "guarded",
    "label",
    "load",
    "mapping",
    "negative",
    "remap",
    "same",
    "shifted",
    "update",
    "walk",
]
