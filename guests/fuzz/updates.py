"""Operations on entries: mmu_update and update_va_mapping."""
from __future__ import annotations

from typing import Final

from guests.assembler import VIRT_BASE
from guests.fuzz import tables as t
from guests.fuzz.support import TOUCHED, chance, choose, draw, guarded
from guests.macros import hypercall, say

UPDATE: Final = f"""
operation_update:                       # one request
    call pick_request
    {say("u ")}
    lea r15, [rip + requests]
    call put_request
    {hypercall("mmu_update", "&requests", 1, 0, "DOMID_SELF")}
    {say(" {rax:d}")}
    mov edx, {TOUCHED}
    test rax, rax
    jnz update_show
    cmp r13, 1
    je update_reverse
    cmp r13, 2
    je update_show
    xor edx, edx
update_show:
    mov rdi, rbx
    mov rsi, r12
    call show_slot
    ret
update_reverse:                         # what the machine-to-physical table says now
    mov rdi, rbx
    call frame
    mov rdx, MACH2PHYS_VIRT_START
    lea r14, [rdx + rax*8]
    {guarded("reverse_read", "mov r13, [r14]")}
    test rax, rax
    jnz reverse_fault
    mov rdi, r13
    {say(" =")}
    call put_entry
    ret
reverse_fault:
    mov rdi, r14
    call put_fault
    ret

pick_request:                           # a request: rbx = table, r12 = slot, r13 = command, r14 = value
    call pick_table
    mov rbx, rax
    mov rdi, rax
    call pick_slot
    mov r12, rax
    {choose("commands")}
    mov r13, rax
    mov rdi, rbx
    call level_of
    mov rdi, rax
    call make_entry
    mov r14, rax
    ret

put_request:                            # print it and write it at r15
    {say("{rbx:d}.{r12:d} {r13:d} ")}
    mov rdi, r14
    call put_entry
    mov rdi, rbx
    call frame
    shl rax, 12
    lea rax, [rax + r12*8]
    or rax, r13
    mov [r15], rax
    mov [r15 + 8], r14
    ret

show_slot:  # rdi = table, rsi = slot, rdx = flags to hide: print it unless it is Xen's
    mov r14, rdi
    mov r15, rsi
    mov r13, rdx
    call level_of
    cmp eax, 4
    jne slot_ours
    cmp r15, 256
    jb slot_ours
    cmp r15, 271
    jbe slot_not_shown
slot_ours:
    mov rdi, r14
    mov rsi, r15
    mov rdx, r13
    call put_slot
slot_not_shown:
    ret

operation_keep:  # an entry with known accessed and dirty bits, then one that keeps them
    call pick_request
    xor r13d, r13d
    {say("k ")}
    lea r15, [rip + requests]
    call put_request
    mov rdi, rbx
    call level_of
    mov rdi, rax
    call make_entry
    mov r14, rax
    mov r13d, 2
    {say(" ")}
    lea r15, [rip + requests + 16]
    call put_request
    mov qword ptr [rip + done_count], 7
    {hypercall("mmu_update", "&requests", 2, "&done_count", "DOMID_SELF")}
    {say(" {rax:d} {qword ptr [rip + done_count]:d}")}
    xor edx, edx
    cmp qword ptr [rip + done_count], 0
    jne keep_show
    mov edx, {TOUCHED}
keep_show:
    mov rdi, rbx
    mov rsi, r12
    call show_slot
    ret

operation_batch:                        # several requests, perhaps for another domain
    {draw(4)}
    lea rbp, [rax + 2]
    mov [rip + batch_size], rbp
    {say("b")}
    lea r15, [rip + requests]
batch_next:
    {say(" ")}
    call pick_request
    call put_request
    add r15, 16
    dec rbp
    jnz batch_next
    call pick_domain
    mov qword ptr [rip + done_count], 7
    mov r10, rax
    {hypercall("mmu_update", "&requests", "qword ptr [rip + batch_size]", "&done_count", "r10")}
    {say(" {rax:d} {qword ptr [rip + done_count]:d}")}
    mov rdi, rbx
    mov rsi, r12
    mov edx, {TOUCHED}
    call show_slot
    ret

pick_domain:                            # mostly DOMID_SELF; another one is printed
    {chance(3, "domain_other")}
    mov eax, DOMID_SELF
    ret
domain_other:
    {choose("domains")}
    {say(" d{rax:x}")}
    ret
"""

MAP: Final = f"""
operation_map:                          # update_va_mapping
    {say("m ")}
    call pick_mapping
    {hypercall("update_va_mapping", "r12", "r13", "r14")}
    jmp map_show

operation_map_other:                    # update_va_mapping_otherdomain
    {say("o ")}
    call pick_mapping
    {choose("domains")}
    {say(" d{rax:x}")}
    mov r10, rax
    {hypercall("update_va_mapping_otherdomain", "r12", "r13", "r14", "r10")}
map_show:
    {say(" {rax:d}")}
    cmp rbx, 0
    jl map_shown
    mov edx, {TOUCHED}
    test rax, rax
    jnz map_flags
    xor edx, edx
map_flags:
    mov rsi, rbx
    lea rcx, [rip + pool]
    mov rdi, {VIRT_BASE}
    sub rcx, rdi
    shr rcx, 12
    add rsi, rcx
    mov edi, {t.BOOT_L1}
    call show_slot
map_shown:
    ret

pick_mapping:  # r12 = address, r13 = entry, r14 = flags; rbx = page of the pool, or -1
    mov rbx, -1
    {chance(8, "mapping_odd")}
    call pick_address
    mov r12, rax
    lea rcx, [rip + pool]
    sub rax, rcx
    jb mapping_address
    mov rbx, rax
    shr rbx, 12
mapping_address:
    mov rdi, r12
    call put_address
    jmp mapping_entry
mapping_odd:
    {choose("odd_addresses")}
    mov r12, rax
    {say("{rax:x}")}
mapping_entry:
    mov edi, 1
    call make_entry
    mov r13, rax
    {say(" ")}
    mov rdi, r13
    call put_entry
    {chance(6, "mapping_bitmap")}
    {choose("flushes")}
    mov r14, rax
    {say(" {rax:x}")}
    ret
mapping_bitmap:
    {draw(2)}
    inc eax
    {say(" b{rax:d}")}
    lea r14, [rip + everyone]
    or r14, rax
    ret
"""
