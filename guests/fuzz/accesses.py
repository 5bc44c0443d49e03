"""Reading through the guest's own mappings, assists, stacks, stale translations."""
from __future__ import annotations

from typing import Final

from guests.fuzz import tables as t
from guests.fuzz.support import TOUCHED, choose, draw, guarded
from guests.macros import hypercall, say

ACCESS: Final = f"""
operation_read:                         # a word through the guest's own mappings
    call flush
    call pick_address
    mov rbx, rax
    {say("l ")}
    mov rdi, rax
    call put_address
    {draw(8)}
    {say(".{rax:d}")}
    lea r12, [rbx + rax*8]
    call put_word
    ret

put_word:                               # r12 -> a word: print it, or the fault
    {guarded("word_read", "mov r13, [r12]")}
    test rax, rax
    jnz word_fault
    {say(" =")}
    mov rdi, r13
    and rdi, {~TOUCHED}
    call put_entry
    ret
word_fault:
    {say(" ")}
    mov rdi, r12
    call put_fault
    ret

operation_assist:
    {choose("assists")}
    mov rbx, rax
    {draw(9)}
    cmp eax, 7
    jbe assist_command
    mov ebx, 2
assist_command:
    and eax, 1
    {say("v {rax:d} {rbx:d}")}
    mov rdi, rax
    {hypercall("vm_assist", "rdi", "rbx")}
    {say(" {rax:d}")}
    ret

operation_stack:
    {choose("stacks")}
    mov rbx, rax
    {choose("odd_addresses")}
    mov r12, rax
    {say("s {rbx:x} {r12:x}")}
    {hypercall("stack_switch", "rbx", "r12")}
    {say(" {rax:d}")}
    ret

operation_stale:                        # a page written, unmapped without a flush, and made a page table
    {draw(len(t.DATA))}
    lea rbx, [rax + {t.DATA.start}]
    {say("z {rbx:d}")}
    mov rdi, rbx
    call pool_address
    mov r12, rax
    mov rdi, rbx
    call frame
    mov r14, rax
    shl rax, 12
    or rax, 0x63
    mov r13, rax
    {hypercall("update_va_mapping", "r12", "r13", "UVMF_INVLPG")}
    {say(" {rax:d}")}
    {guarded("stale_touched", "mov qword ptr [r12], 0x1230")}
    {draw(3)}
    test eax, eax
    jz stale_clean
    mov qword ptr [rip + requests], MMUEXT_CLEAR_PAGE
    mov [rip + requests + 8], r14
    {hypercall("mmuext_op", "&requests", 1, 0, "DOMID_SELF")}
    {say(" {rax:d}")}
stale_clean:
    {draw(2)}
    test eax, eax
    jz stale_gone
    lea rax, [r13 - 2]
stale_gone:
    mov rsi, rax
    {hypercall("update_va_mapping", "r12", "rsi", 0)}
    {say(" {rax:d}")}
    {draw(4)}
    mov [rip + requests], rax
    mov [rip + requests + 8], r14
    {hypercall("mmuext_op", "&requests", 1, 0, "DOMID_SELF")}
    {say(" {rax:d}")}
    test rax, rax
    jnz stale_done
    {guarded("stale_written", "mov qword ptr [r12], 0")}
    test rax, rax
    jz stale_unpin
    {say(" ")}
    mov rdi, r12
    call put_fault
stale_unpin:
    mov qword ptr [rip + requests], MMUEXT_UNPIN_TABLE
    {hypercall("mmuext_op", "&requests", 1, 0, "DOMID_SELF")}
    {say(" {rax:d}")}
stale_done:
    {hypercall("update_va_mapping", "r12", "r13", "UVMF_INVLPG")}
    {say(" {rax:d}")}
    ret
"""
