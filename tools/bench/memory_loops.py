"""PV guests that do one page-table operation `count` times and power off.

Source: Xen's public headers (xen.h: struct mmu_update, struct mmuext_op). Register r15 counts down. An
operation that fails is an undefined instruction: the guest crashes, and says no `done`.
"""

from __future__ import annotations

from typing import Final

from guests.macros import hypercall, kernel, line

BATCH: Final = 32
ENTRIES: Final = 512
WRITABLE: Final = 0x67
READ_ONLY: Final = 0x65
"""Flags of an entry: present, user, accessed, dirty, and the right to write."""
FIRST_SPARE: Final = 2048
"""The frame from which on a guest of 16 MiB uses none at its start."""
ABOVE: Final = 3
"""Tables above the first L1 table, which lie in front of it."""

_DONE: Final = line("done")
_CHECK: Final = "test rax, rax\njnz failed"
_FAILED: Final = "jmp measured\nfailed:\nud2\nmeasured:"

# r14: machine address of the L1 table that maps the image
_FIND_TABLE: Final = f"""
    mov rdi, [rip + start_info_address]
    mov rdi, [rdi + start_info.pt_base]
    add rdi, {ABOVE * 4096}
    call machine_frame
    shl rax, 12
    mov r14, rax
"""


def updates(count: int, batch: int) -> bytes:
    """mmu_update of `batch` entries at a time, `count` times: they become read-only and writable by turns."""
    body = f"""
    {_FIND_TABLE}
    lea r12, [rip + targets]
    lea rbx, [rip + protect]
    lea rbp, [rip + release]
    mov r13d, {batch}
build:
    mov rdi, r12
    call machine_frame
    shl rax, 12
    mov rdx, r12
    shr rdx, 12
    and edx, 511
    lea rdx, [r14 + rdx*8]
    mov [rbx], rdx
    mov [rbp], rdx
    lea rdx, [rax + {READ_ONLY}]
    mov [rbx + 8], rdx
    lea rdx, [rax + {WRITABLE}]
    mov [rbp + 8], rdx
    add r12, 4096
    add rbx, 16
    add rbp, 16
    dec r13
    jnz build
    mov r15, {count // 2}
again:
    {hypercall("mmu_update", "&protect", batch, 0, "DOMID_SELF")}
    {_CHECK}
    {hypercall("mmu_update", "&release", batch, 0, "DOMID_SELF")}
    {_CHECK}
    dec r15
    jnz again
    {_FAILED}
    """
    arrays = (".balign 4096", f"targets: .zero {batch * 4096}", f"protect: .zero {batch * 16}",
              f"release: .zero {batch * 16}")
    return kernel(body, _DONE, bss=arrays, pages=True)


def pins(count: int, entries: int) -> bytes:
    """Pin an L1 table with `entries` writable mappings, and unpin it, `count` times."""
    body = f"""
    lea rbx, [rip + table]
    mov rsi, [rip + start_info_address]
    mov rsi, [rsi + start_info.mfn_list]
    xor ecx, ecx
fill:
    cmp ecx, {entries}
    je filled
    mov rax, [rsi + rcx*8 + {FIRST_SPARE * 8}]
    shl rax, 12
    or rax, {WRITABLE}
    mov [rbx + rcx*8], rax
    inc ecx
    jmp fill
filled:
    lea rdi, [rip + table]
    mov esi, {READ_ONLY}
    call remap
    {_CHECK}
    lea rdi, [rip + table]
    call machine_frame
    mov [rip + pin_mfn], rax
    mov [rip + unpin_mfn], rax
    mov r15, {count}
again:
    {hypercall("mmuext_op", "&pin", 1, 0, "DOMID_SELF")}
    {_CHECK}
    {hypercall("mmuext_op", "&unpin", 1, 0, "DOMID_SELF")}
    {_CHECK}
    dec r15
    jnz again
    {_FAILED}
    """
    operations = (".balign 8\npin: .long MMUEXT_PIN_L1_TABLE, 0\npin_mfn: .quad 0, 0",
                  "unpin: .long MMUEXT_UNPIN_TABLE, 0\nunpin_mfn: .quad 0, 0")
    return kernel(body, _DONE, data=operations, bss=(".balign 4096", "table: .zero 4096"), pages=True)
