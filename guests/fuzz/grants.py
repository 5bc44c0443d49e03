"""Operations on grants, of the domain's own pages to itself: entries, maps, unmaps, replacements, copies."""
from __future__ import annotations

from typing import Final

from guests.assembler import VIRT_BASE
from guests.fuzz import tables as t
from guests.fuzz.support import TOUCHED, chance, choose, draw
from guests.macros import hypercall, say

FIRST_REFERENCE: Final = 8
"""GNTTAB_NR_RESERVED_ENTRIES."""
REFERENCES: Final = 4
NO_HANDLE: Final = 0xFFFF
SLOTS: Final = 4
"""Mappings remembered; a row is handle, address, page of the pool or -1, device address."""
ROW_SHIFT: Final = 5

SETUP: Final = f"""
setup_grants:                           # find out the domain's own number, and map its grant table
    xor ebx, ebx
find_number:
    mov [rip + argument + evtchn_alloc_unbound.dom], bx
    mov [rip + argument + evtchn_alloc_unbound.remote_dom], bx
    {hypercall("event_channel_op", "EVTCHNOP_alloc_unbound", "&argument")}
    test rax, rax
    jz number_found
    inc ebx
    cmp ebx, 0x7ff0
    jb find_number
    jmp crash
number_found:
    mov [rip + own_number], rbx
    mov eax, [rip + argument + evtchn_alloc_unbound.port]
    mov [rip + argument + evtchn_close.port], eax
    {hypercall("event_channel_op", "EVTCHNOP_close", "&argument")}
    mov word ptr [rip + argument + gnttab_setup_table.dom], DOMID_SELF
    mov dword ptr [rip + argument + gnttab_setup_table.nr_frames], 1
    lea rax, [rip + extent]
    mov [rip + argument + gnttab_setup_table.frame_list], rax
    {hypercall("grant_table_op", "GNTTABOP_setup_table", "&argument", 1)}
    test rax, rax
    jnz crash
    cmp word ptr [rip + argument + gnttab_setup_table.status], 0
    jne crash
    mov rsi, [rip + extent]
    shl rsi, 12
    or rsi, 0x63
    {hypercall("update_va_mapping", "&grant_page", "rsi", "UVMF_INVLPG")}
    test rax, rax
    jnz crash
    {draw(2)}
    lea rdi, [rax + 1]
    call set_version
    test rax, rax
    jnz crash
    xor ebx, ebx
next_grant:
    lea rdi, [rbx + {t.DATA.start}]
    call frame
    mov r12, rax
    mov r13, [rip + own_number]
    shl r13d, 16
    or r13, GTF_permit_access
    lea rdi, [rbx + {FIRST_REFERENCE}]
    call write_grant
    inc ebx
    cmp ebx, {REFERENCES}
    jb next_grant
    ret
"""

GRANTS: Final = f"""
pick_number:                            # -> mostly the domain's own number; another one is printed
    {chance(8, "number_other")}
    mov rax, [rip + own_number]
    ret
number_other:
    {choose("domains")}
    {say(" d{rax:x}")}
    ret

pick_reference:                         # -> a grant reference, printed
    {chance(16, "reference_odd")}
    {draw(REFERENCES)}
    add eax, {FIRST_REFERENCE}
    {say(" g{rax:d}")}
    ret
reference_odd:
    mov eax, 0x10000
    {say(" g-")}
    ret

grant_entry:                            # rdi = reference -> where its entry is
    lea rax, [rip + grant_page]
    cmp qword ptr [rip + version], 2
    je entry_wide
    lea rax, [rax + rdi*8]
    ret
entry_wide:
    shl rdi, 4
    add rax, rdi
    ret

write_grant:                            # rdi = reference, r12 = frame, r13 = the word before it
    call grant_entry
    cmp qword ptr [rip + version], 2
    je write_wide
    mov rcx, r12
    shl rcx, 32
    mov edx, r13d
    or rcx, rdx
    mov [rax], rcx
    ret
write_wide:
    mov [rax], r13
    mov [rax + 8], r12
    ret

operation_grant:                        # write an entry of the grant table
    {draw(REFERENCES)}
    lea rbx, [rax + {FIRST_REFERENCE}]
    {say("ge {rbx:d}")}
    call pick_number
    mov r12, rax
    {choose("grant_entry_flags")}
    mov r13, rax
    {chance(6, "grant_any")}
    {draw(24)}
    jmp grant_frame
grant_any:
    {choose("mappable")}
grant_frame:
    {say(" {rax:d} {r13:x}")}
    mov rdi, rax
    call frame
    shl r12d, 16
    or r13, r12
    mov r12, rax
    cmp qword ptr [rip + version], 2
    jne grant_write
    mov eax, r13d
    and eax, GTF_type_mask
    cmp eax, GTF_transitive
    je grant_transitive
    test r13d, GTF_sub_page
    jz grant_write
    {draw(len(t.PARTS) // 2)}
    shl eax, 4
    lea rcx, [rip + parts]
    mov rdx, [rcx + rax]
    mov rcx, [rcx + rax + 8]
    {say(" {rdx:d}+{rcx:d}")}
    shl rcx, 48
    shl rdx, 32
    or r13, rcx
    or r13, rdx
    jmp grant_write
grant_transitive:                       # another domain's grant, or one of its own
    call pick_number
    shl rax, 32
    or r13, rax
    call pick_reference
    mov r12, rax
grant_write:
    mov rdi, rbx
    jmp write_grant

operation_grant_map:
    {say("gm")}
    {draw(SLOTS)}
    shl rax, {ROW_SHIFT}
    lea rbx, [rip + mappings]
    add rbx, rax
    cmp qword ptr [rbx], {NO_HANDLE}
    je grant_map_new
    {chance(4, "grant_map_new")}
    mov rdi, rbx                        # let go of what was mapped there
    call release_row
grant_map_new:
    {choose("grant_map_flags")}
    mov r12, rax
    {say(" {rax:x}")}
    mov [rip + argument + gnttab_map_grant_ref.flags], eax
    call pick_reference
    mov [rip + argument + gnttab_map_grant_ref.ref], eax
    call pick_number
    mov [rip + argument + gnttab_map_grant_ref.dom], ax
    {say(" ")}
    mov rbp, -1
    test r12d, 16
    jnz grant_map_entry
    {chance(10, "grant_map_odd")}
    call pick_address
    mov r13, rax
    mov rdi, rax
    call put_address
    lea rcx, [rip + pool]
    mov rax, r13
    sub rax, rcx
    jb grant_map_do
    shr rax, 12
    mov rbp, rax
    jmp grant_map_do
grant_map_odd:
    {choose("odd_addresses")}
    mov r13, rax
    {say("{rax:x}")}
    jmp grant_map_do
grant_map_entry:                        # the address is an entry's in a table
    {draw(len(t.L1) + 3)}
    mov r14, rax
    {draw(8)}
    {say("{r14:d}.{rax:d}")}
    mov r13, rax
    shl r13, 3
    mov rdi, r14
    call frame
    shl rax, 12
    or r13, rax
    {chance(12, "grant_map_unaligned")}
    jmp grant_map_do
grant_map_unaligned:
    {say("+4")}
    or r13, 4
grant_map_do:
    mov [rip + argument + gnttab_map_grant_ref.host_addr], r13
    mov qword ptr [rip + argument + gnttab_map_grant_ref.dev_bus_addr], 0
    {hypercall("grant_table_op", "GNTTABOP_map_grant_ref", "&argument", 1)}
    movsx rcx, word ptr [rip + argument + gnttab_map_grant_ref.status]
    {say(" {rax:d} {rcx:d}")}
    test rcx, rcx
    jnz grant_map_show
    mov eax, [rip + argument + gnttab_map_grant_ref.handle]
    mov [rbx], rax
    mov [rbx + 8], r13
    mov [rbx + 16], rbp
    mov rdi, [rip + argument + gnttab_map_grant_ref.dev_bus_addr]
    mov [rbx + 24], rdi
    shr rdi, 12
    call frame_number
    {say(" f{rax:d}")}
grant_map_show:
    mov rdi, rbp

show_mapping:                           # rdi = page of the pool, or -1: print the entry that maps it
    test rdi, rdi
    js mapping_not_shown
    lea rcx, [rip + pool]
    mov rdx, {VIRT_BASE}
    sub rcx, rdx
    shr rcx, 12
    lea rsi, [rcx + rdi]
    mov edi, {t.BOOT_L1}
    mov edx, {TOUCHED}
    call show_slot
mapping_not_shown:
    ret

pick_mapped:                            # rbx -> a mapping remembered, printed
    {draw(SLOTS)}
    {say(" {rax:d}")}
    shl rax, {ROW_SHIFT}
    lea rbx, [rip + mappings]
    add rbx, rax
    ret

operation_grant_unmap:
    {say("gu")}
    call pick_mapped
    mov rax, [rbx]
    mov [rip + argument + gnttab_unmap_grant_ref.handle], eax
    mov r12, [rbx + 8]
    {chance(5, "unmap_nothing")}
    {chance(8, "unmap_elsewhere")}
    jmp unmap_device
unmap_elsewhere:
    {say(" else")}
    call pick_address
    mov r12, rax
    jmp unmap_device
unmap_nothing:
    {say(" none")}
    xor r12d, r12d
unmap_device:
    mov [rip + argument + gnttab_unmap_grant_ref.host_addr], r12
    xor r13d, r13d
    {chance(2, "unmap_do")}
    {say(" dev")}
    mov r13, [rbx + 24]
unmap_do:
    mov [rip + argument + gnttab_unmap_grant_ref.dev_bus_addr], r13
    {hypercall("grant_table_op", "GNTTABOP_unmap_grant_ref", "&argument", 1)}
    movsx rcx, word ptr [rip + argument + gnttab_unmap_grant_ref.status]
    {say(" {rax:d} {rcx:d}")}
    mov rdi, [rbx + 16]
    jmp show_mapping

operation_grant_replace:
    {say("gr")}
    call pick_mapped
    mov rax, [rbx]
    mov [rip + argument + gnttab_unmap_and_replace.handle], eax
    mov rax, [rbx + 8]
    mov [rip + argument + gnttab_unmap_and_replace.host_addr], rax
    call pick_address
    mov [rip + argument + gnttab_unmap_and_replace.new_addr], rax
    {say(" ")}
    mov rdi, rax
    call put_address
    {hypercall("grant_table_op", "GNTTABOP_unmap_and_replace", "&argument", 1)}
    movsx rcx, word ptr [rip + argument + gnttab_unmap_and_replace.status]
    {say(" {rax:d} {rcx:d}")}
    mov rdi, [rbx + 16]
    jmp show_mapping

pick_copy_end:                          # rbx -> one end of a copy; rdi = 0: a frame
    mov r12, rdi
    {draw(8)}
    shl rax, 3
    mov [rbx + gnttab_copy_ptr.offset], ax
    test r12, r12
    jnz copy_reference
    {draw(24)}
    {say(" {rax:d}")}
    mov rdi, rax
    call frame
    mov [rbx + gnttab_copy_ptr.u], rax
    mov word ptr [rbx + gnttab_copy_ptr.domid], DOMID_SELF
    ret
copy_reference:
    call pick_reference
    mov [rbx + gnttab_copy_ptr.u], rax
    call pick_number
    mov [rbx + gnttab_copy_ptr.domid], ax
    ret

operation_grant_copy:
    {say("gc")}
    {choose("copy_flags")}
    mov r14, rax
    mov [rip + argument + gnttab_copy.flags], ax
    {choose("copy_lengths")}
    mov [rip + argument + gnttab_copy.len], ax
    {say(" {r14:d} {rax:d}")}
    lea rbx, [rip + argument + gnttab_copy.source]
    mov rdi, r14
    and edi, 1
    call pick_copy_end
    lea rbx, [rip + argument + gnttab_copy.dest]
    mov rdi, r14
    and edi, 2
    call pick_copy_end
    {hypercall("grant_table_op", "GNTTABOP_copy", "&argument", 1)}
    movsx rcx, word ptr [rip + argument + gnttab_copy.status]
    {say(" {rax:d} {rcx:d}")}
    ret
"""

DATA: Final = (
    ".balign 8, 0\nown_number: .quad 0",
    t.quads("mappings", [cell for _ in range(SLOTS) for cell in (NO_HANDLE, 0, -1, 0)]),
)
BSS: Final = ".balign 4096, 0\ngrant_page: .zero 4096"
