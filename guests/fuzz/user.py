"""User mode: a word read or written there, through a root of its own."""
from __future__ import annotations

from typing import Final

from guests.fuzz import tables as t
from guests.fuzz.stores import FORMS
from guests.fuzz.support import TOUCHED, choose, draw
from guests.macros import hypercall, say

UNDEFINED: Final = 6
"""The vector by which code in user mode comes back."""

USER: Final = f"""
operation_user:
    {draw(6)}
    lea rbx, [rax + {t.L4.start}]
    cmp ebx, {t.L4.stop}
    jb user_look
    mov ebx, {t.ROOT}
user_look:                              # it must show the kernel, which the code in user mode is part of
    {say("U {rbx:d}")}
    mov rdi, rbx
    mov esi, {t.KERNEL_SLOT}
    call peek
    and rax, {~TOUCHED}
    or rdx, rdx
    jnz user_unfit
    cmp rax, [rip + kernel_entry]
    jne user_unfit
    mov qword ptr [rip + requests], MMUEXT_NEW_USER_BASEPTR
    mov rdi, rbx
    call frame
    mov [rip + requests + 8], rax
    {hypercall("mmuext_op", "&requests", 1, 0, "DOMID_SELF")}
    {say(" {rax:d} ")}
    test rax, rax
    jnz user_over
    {hypercall("stack_switch", "FLAT_KERNEL_SS", "&trap_stack_top")}
    call pick_address
    mov rbx, rax
    mov rdi, rax
    call put_address
    {draw(8)}
    {say(".{rax:d}")}
    lea r12, [rbx + rax*8]
    mov [rip + store_target], r12
    {draw(2)}
    test eax, eax
    jz user_store
    call flush
    lea rbx, [rip + user_read]
    call in_user
    jne user_fault
    {say(" =")}
    mov rdi, r13
    and rdi, {~TOUCHED}
    call put_entry
    ret
user_store:
    {draw(len(FORMS))}
    mov rbp, rax
    mov edi, 1
    call make_entry
    mov r13, rax
    {choose("stored_bits")}
    mov r15, rax
    mov r14d, 1
    mov ecx, eax
    shl r14, cl
    {say(" w{rbp:d} ")}
    mov rdi, r13
    call put_entry
    {say(" {r15:d}")}
    call flush
    lea rbx, [rip + user_write]
    call in_user
    jne user_fault
    ret
user_fault:
    {say(" ")}
    mov rdi, [rip + store_target]
    call put_fault
    ret
user_unfit:
    {say(" unfit")}
user_over:
    ret

in_user:                                # rbx = code: run it in user mode; equal when it came to its end
    lea rax, [rip + user_back]
    mov [rip + recover], rax
    mov [rip + recover_stack], rsp
    push FLAT_USER_SS
    lea rax, [rip + user_stack_top]
    push rax
    push 2                              # events stay masked
    push FLAT_USER_CS
    push rbx
    push 0
    push rcx
    push r11
    push rax
    mov eax, __HYPERVISOR_iret
    syscall
user_back:
    mov qword ptr [rip + recover], 0
    cmp qword ptr [rip + fault_vector], {UNDEFINED}
    ret

user_read:
    mov r13, [r12]
    ud2
user_write:
    lea rcx, [rip + store_forms]
    call qword ptr [rcx + rbp*8]
    ud2
"""

BSS: Final = """
.balign 16, 0
trap_stack: .zero 8192
trap_stack_top:
user_stack: .zero 4096
user_stack_top:
"""
