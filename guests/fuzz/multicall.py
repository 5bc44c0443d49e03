"""Several calls in one, with what each of them was answered."""
from __future__ import annotations

from typing import Final

from guests.fuzz.support import choose, draw
from guests.macros import hypercall, say

MOST: Final = 4
ENTRY_SHIFT: Final = 6
"""A multicall_entry is 64 bytes: number, result, six arguments."""
UNANSWERED: Final = 0x7777
KINDS: Final = ("update", "map", "extended", "assist", "nested", "unknown", "descriptor", "version")

MULTICALL: Final = f"""
operation_multicall:
    {say("M")}
    {draw(MOST)}
    inc eax
    mov [rip + call_count], rax
    xor ebp, ebp
call_next:                              # fill entry rbp
    {say(" (")}
    {draw(len(KINDS) + 5)}
    xor edx, edx
    mov ecx, {len(KINDS)}
    cmp eax, ecx
    jb call_kind
    sub eax, ecx                        # the first three come more often
    mov ecx, 3
    div ecx
    mov eax, edx
call_kind:
    lea rcx, [rip + call_kinds]
    mov rcx, [rcx + rax*8]
    mov rax, rbp
    shl rax, {ENTRY_SHIFT}
    lea rdx, [rip + calls]
    add rax, rdx
    mov [rip + call_entry], rax
    mov qword ptr [rax + multicall_entry.result], {UNANSWERED}
    call rcx
    {say(")")}
    inc rbp
    cmp rbp, [rip + call_count]
    jb call_next
    {hypercall("multicall", "&calls", "qword ptr [rip + call_count]")}
    {say(" {rax:d}:")}
    lea rbx, [rip + calls + multicall_entry.result]
    mov rbp, [rip + call_count]
call_show:
    {say(" {qword ptr [rbx]:d}")}
    add rbx, {1 << ENTRY_SHIFT}
    dec rbp
    jnz call_show
    ret

put_call:                               # eax = number, rdi, rsi, rdx, r10 = arguments: write the entry
    mov rcx, [rip + call_entry]
    mov [rcx + multicall_entry.op], rax
    mov [rcx + multicall_entry.args], rdi
    mov [rcx + multicall_entry.args + 8], rsi
    mov [rcx + multicall_entry.args + 16], rdx
    mov [rcx + multicall_entry.args + 24], r10
    ret

call_update:
    {say("u ")}
    mov r15, rbp
    shl r15, 4
    lea rax, [rip + call_requests]
    add r15, rax
    call pick_request
    call put_request
    mov rdi, r15
    mov eax, __HYPERVISOR_mmu_update
call_single:                            # one request, for the domain itself
    mov esi, 1
    xor edx, edx
    mov r10d, DOMID_SELF
    jmp put_call

call_map:
    {say("m ")}
    call pick_mapping
    mov rdi, r12
    mov rsi, r13
    mov rdx, r14
    xor r10d, r10d
    mov eax, __HYPERVISOR_update_va_mapping
    jmp put_call

call_extended:
    {say("x")}
    lea rdi, [rbp + rbp*2]
    lea rax, [rip + call_operations]
    lea rdi, [rax + rdi*8]
    call pick_extended
    mov rdi, r15
    mov eax, __HYPERVISOR_mmuext_op
    jmp call_single

call_assist:
    {draw(2)}
    mov rdi, rax
    {say("v {rax:d}")}
    mov esi, VMASST_TYPE_writable_pagetables
    xor edx, edx
    xor r10d, r10d
    mov eax, __HYPERVISOR_vm_assist
    jmp put_call

call_nested:
    {say("n")}
    lea rdi, [rip + calls]
    mov esi, 1
    xor edx, edx
    xor r10d, r10d
    mov eax, __HYPERVISOR_multicall
    jmp put_call

call_unknown:
    {choose("unknown_calls")}
    {say("? {rax:x}")}
    xor edi, edi
    xor esi, esi
    xor edx, edx
    xor r10d, r10d
    jmp put_call

call_descriptor:                        # of a frame that serves as data, or is one
    {choose("mappable")}
    mov rbx, rax
    {draw(8)}
    mov r12, rax
    {choose("descriptors")}
    {say("d {rbx:d}.{r12:d} {rax:x}")}
    mov rsi, rax
    push rsi
    mov rdi, rbx
    call frame
    pop rsi
    shl rax, 12
    lea rdi, [rax + r12*8]
    xor edx, edx
    xor r10d, r10d
    mov eax, __HYPERVISOR_update_descriptor
    jmp put_call

call_version:
    {say("g")}
    mov word ptr [rip + call_argument + gnttab_get_version.dom], DOMID_SELF
    mov edi, GNTTABOP_get_version
    lea rsi, [rip + call_argument]
    mov edx, 1
    xor r10d, r10d
    mov eax, __HYPERVISOR_grant_table_op
    jmp put_call

.balign 8, 0
call_kinds:
.quad {", ".join(f"call_{kind}" for kind in KINDS)}
"""

DATA: Final = f"""
.balign 8, 0
call_count: .quad 0
call_entry: .quad 0
call_argument: .zero 16
calls: .zero {MOST << ENTRY_SHIFT}
call_requests: .zero {MOST * 16}
call_operations: .zero {MOST * 24}
"""
