"""Descriptor tables and what the processor makes of their selectors."""
from __future__ import annotations

from typing import Final

from guests.fuzz import tables as t
from guests.fuzz.support import chance, choose, draw, guarded
from guests.macros import hypercall, say

DESCRIPTORS: Final = f"""
operation_descriptor:
    {chance(8, "descriptor_any")}
    {draw(len(t.DATA) + len(t.BALLOON))}
    add eax, {t.DATA.start}
    jmp descriptor_frame
descriptor_any:
    {choose("mappable")}
descriptor_frame:
    mov rbx, rax
    {draw(8)}
    mov r12, rax
    {choose("descriptors")}
    mov r13, rax
    {draw(3)}
    test eax, eax
    jnz descriptor_whole
    {draw(32)}                          # a bit of the upper half: no descriptor is to look like an entry
    add eax, 32
    btc r13, rax
descriptor_whole:
    {say("d {rbx:d}.{r12:d} {r13:x}")}
    mov rdi, rbx
    call frame
    shl rax, 12
    lea r14, [rax + r12*8]
    {draw(16)}
    test eax, eax
    jnz descriptor_aligned
    {say(" odd")}
    inc r14
descriptor_aligned:
    {hypercall("update_descriptor", "r14", "r13")}
    {say(" {rax:d}")}
    mov rdi, rbx
    mov rsi, r12
    xor edx, edx
    call show_slot
    ret

operation_gdt:
    {say("g ")}
    lea rbx, [rip + requests]
    mov ebp, 14
gdt_frame:
    {draw(len(t.DATA) + len(t.BALLOON))}
    lea rdi, [rax + {t.DATA.start}]
    cmp ebp, 13
    jb gdt_put
    {say("{rdi:d} ")}
gdt_put:
    call frame
    mov [rbx], rax
    add rbx, 8
    dec ebp
    jnz gdt_frame
    {choose("gdt_lengths")}
    mov rbx, rax
    {hypercall("set_gdt", "&requests", "rbx")}
    {say("{rbx:x} {rax:d}")}
    ret

operation_selector:                     # what the processor says about a selector
    {choose("selectors")}
    mov rbx, rax
    {say("q {rbx:x}")}
    {guarded("selector_lar", "xor r13d, r13d", "lar r13d, ebx", "setz al", "movzx r14d, al")}
    call put_answer
    {guarded("selector_lsl", "xor r13d, r13d", "lsl r13d, ebx", "setz al", "movzx r14d, al")}
    call put_answer
    {guarded("selector_verr", "xor r13d, r13d", "verr bx", "setz al", "movzx r14d, al")}
    call put_answer
    {guarded("selector_verw", "xor r13d, r13d", "verw bx", "setz al", "movzx r14d, al")}
    call put_answer
    {guarded("selector_load", "xor r13d, r13d", "xor r14d, r14d", "mov es, ebx", "mov r14d, 2")}
    call put_answer
    xor eax, eax
    mov es, eax
    ret

put_answer:                             # rax: whether it faulted; r14 and r13: what it gave
    test rax, rax
    jnz answer_fault
    {say(" {r14:d}")}
    test r13, r13
    jz answer_put
    {say(":{r13:x}")}
answer_put:
    ret
answer_fault:
    {say(" ")}
    mov rdi, [rip + fault_address]      # where the LDT is is not known: show the offset in the page
    and rdi, -4096
    call put_fault
    ret
"""
