"""Extended operations: pins, roots, flushes, the LDT, clearing and copying."""
from __future__ import annotations

from typing import Final

from guests.fuzz import tables as t
from guests.fuzz.support import TOUCHED, chance, choose, draw
from guests.macros import hypercall, say

EXTENDED: Final = f"""
pick_extended:  # r12 = command, r13 and r14 = numbers of frames, printed and put at rdi
    push rdi
    {choose("extended")}
    mov r12, rax
    {chance(6, "extended_any")}
    {draw(t.POOL)}
    jmp extended_frame
extended_any:
    {choose("mappable")}
extended_frame:
    mov r13, rax
    {draw(24)}
    mov r14, rax
    {say(" {r12:d} {r13:d}")}
    cmp r12, MMUEXT_COPY_PAGE
    jne extended_put
    {say(" {r14:d}")}
extended_put:
    pop r15
    mov [r15], r12
    mov rdi, r13
    call frame
    mov [r15 + 8], rax
    mov rdi, r14
    call frame
    mov [r15 + 16], rax
    ret

operation_extended:                     # a command on a frame
    {say("x")}
    lea rdi, [rip + requests]
    call pick_extended
    {hypercall("mmuext_op", "&requests", 1, 0, "DOMID_SELF")}
    {say(" {rax:d}")}
    ret

operation_extended_batch:               # several, perhaps for another domain
    {say("y")}
    lea rdi, [rip + requests]
    call pick_extended
    lea rdi, [rip + requests + 24]
    mov qword ptr [rdi], MMUEXT_TLB_FLUSH_ALL
    lea rdi, [rip + requests + 48]
    call pick_extended
    lea rdi, [rip + requests + 72]
    call pick_extended
    call pick_domain
    mov qword ptr [rip + done_count], 7
    mov r10, rax
    {hypercall("mmuext_op", "&requests", 4, "&done_count", "r10")}
    {say(" {rax:d} {qword ptr [rip + done_count]:d}")}
    ret

operation_addressed:                    # a command on an address
    {draw(len(t.ADDRESSED))}
    shl rax, 4
    lea rcx, [rip + addressed]
    add rcx, rax
    lea r15, [rip + requests]
    mov rax, [rcx]
    mov [r15], rax
    mov rdx, [rcx + 8]
    mov [r15 + 16], rdx
    {say("a {rax:d} {rdx:x} ")}
    {chance(6, "addressed_odd")}
    call pick_address
    mov [r15 + 8], rax
    mov rdi, rax
    call put_address
    jmp addressed_mask
addressed_odd:
    {choose("odd_addresses")}
    mov [r15 + 8], rax
    {say("{rax:x}")}
addressed_mask:
    {draw(2)}
    test eax, eax
    jz addressed_do
    mov rax, [r15 + 16]
    mov rcx, {t.BAD}
    cmp rax, rcx
    jne addressed_do
    {say(" mask")}
    lea rax, [rip + everyone]
    mov [r15 + 16], rax
addressed_do:
    {hypercall("mmuext_op", "&requests", 1, 0, "DOMID_SELF")}
    {say(" {rax:d}")}
    ret

operation_root:                         # another root, if the kernel would live on
    {draw(4)}
    lea rbx, [rax + {t.L4.start}]
    cmp ebx, {t.L4.stop}
    jb root_look
    mov ebx, {t.ROOT}
root_look:
    {say("r {rbx:d}")}
    mov rdi, rbx
    mov esi, {t.KERNEL_SLOT}
    call peek
    and rax, {~TOUCHED}
    or rdx, rdx
    jnz root_unfit
    cmp rax, [rip + kernel_entry]
    jne root_unfit
    mov qword ptr [rip + requests], MMUEXT_NEW_BASEPTR
    mov rdi, rbx
    call frame
    mov [rip + requests + 8], rax
    {hypercall("mmuext_op", "&requests", 1, 0, "DOMID_SELF")}
    {say(" {rax:d}")}
    ret
root_unfit:
    {say(" unfit")}
    ret
"""
