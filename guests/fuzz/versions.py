"""The grant table itself: its version, status frames, size, swapped entries, cache flushes, transfers."""
from __future__ import annotations

from typing import Final

from guests.fuzz.grants import FIRST_REFERENCE, REFERENCES, ROW_SHIFT, SLOTS
from guests.fuzz.support import chance, choose, draw, guarded
from guests.macros import hypercall, say

STATUS_WORDS: Final = 2
"""Bytes of one entry of the status table."""

VERSIONS: Final = f"""
set_version:                            # rdi = a version -> rax = result; what the version is now is noted
    mov [rip + argument + gnttab_set_version.version], edi
    {hypercall("grant_table_op", "GNTTABOP_set_version", "&argument", 1)}
    push rax
    mov word ptr [rip + argument + gnttab_get_version.dom], DOMID_SELF
    {hypercall("grant_table_op", "GNTTABOP_get_version", "&argument", 1)}
    mov eax, [rip + argument + gnttab_get_version.version]
    mov [rip + version], rax
    pop rax
    ret

operation_grant_version:                # another version, with what is mapped first let go, or not
    {say("gv")}
    {chance(4, "version_set")}
    lea rbx, [rip + mappings]
    mov ebp, {SLOTS}
version_unmap:
    mov rdi, rbx
    call release_row
    add rbx, {1 << ROW_SHIFT}
    dec ebp
    jnz version_unmap
version_set:
    {choose("versions")}
    {say(" {rax:d}")}
    mov rdi, rax
    call set_version
    {say(" {rax:d} {qword ptr [rip + version]:d}")}
    ret

release_row:                            # rdi -> a mapping remembered: unmap all of it, print the status
    push rbx
    mov rbx, rdi
    mov eax, [rbx]
    mov [rip + argument + gnttab_unmap_grant_ref.handle], eax
    mov rax, [rbx + 8]
    mov [rip + argument + gnttab_unmap_grant_ref.host_addr], rax
    mov rax, [rbx + 24]
    mov [rip + argument + gnttab_unmap_grant_ref.dev_bus_addr], rax
    {hypercall("grant_table_op", "GNTTABOP_unmap_grant_ref", "&argument", 1)}
    movsx rcx, word ptr [rip + argument + gnttab_unmap_grant_ref.status]
    {say(" {rcx:d}")}
    pop rbx
    ret

operation_grant_status:                 # status frames: how many there are, and the first one's words
    {draw(4)}
    mov rbx, rax
    {say("gs {rax:d}")}
    mov [rip + argument + gnttab_get_status_frames.nr_frames], eax
    mov word ptr [rip + argument + gnttab_get_status_frames.dom], DOMID_SELF
    lea rax, [rip + status_list]
    mov [rip + argument + gnttab_get_status_frames.frame_list], rax
    {hypercall("grant_table_op", "GNTTABOP_get_status_frames", "&argument", 1)}
    movsx rcx, word ptr [rip + argument + gnttab_get_status_frames.status]
    {say(" {rax:d} {rcx:d}")}
    or rax, rcx
    jnz status_over
    test rbx, rbx
    jz status_over
    mov r12, [rip + status_list]
    shl r12, 12
    {draw(3)}
    lea r12, [r12 + rax*2 + 0x61]       # 0x65 is a user's page
    lea rax, [rax*2 + 0x61]
    {say(" {rax:x}")}
    {hypercall("update_va_mapping", "&status_page", "r12", "UVMF_INVLPG")}
    {say(" {rax:d}")}
    test rax, rax
    jnz status_over
    lea rbx, [rip + status_page + {FIRST_REFERENCE * STATUS_WORDS}]
    mov ebp, {REFERENCES}
status_next:
    {guarded("status_read", "movzx r13d, word ptr [rbx]")}
    test rax, rax
    jnz status_fault
    {say(" {r13:x}")}
    add rbx, {STATUS_WORDS}
    dec ebp
    jnz status_next
    jmp status_write
status_fault:
    {say(" ")}
    lea rdi, [rip + status_page]
    call put_fault
status_write:                           # marks of the guest's own making, and then either keep the page
    {chance(3, "status_mark")}
    jmp status_keep
status_mark:
    {draw(32)}
    mov r14, rax
    {guarded("status_written", f"mov [rip + status_page + {FIRST_REFERENCE * STATUS_WORDS}], r14w")}
    {say(" mark {r14:x} {rax:d}")}
status_keep:
    {chance(4, "status_over")}
    {hypercall("update_va_mapping", "&status_page", 0, "UVMF_INVLPG")}
    {say(" {rax:d}")}
status_over:
    ret

operation_grant_table:                  # more frames for the table; its size
    {draw(4)}
    {say("gt {rax:d}")}
    mov [rip + argument + gnttab_setup_table.nr_frames], eax
    call pick_number
    mov [rip + argument + gnttab_setup_table.dom], ax
    lea rax, [rip + status_list]
    mov [rip + argument + gnttab_setup_table.frame_list], rax
    {hypercall("grant_table_op", "GNTTABOP_setup_table", "&argument", 1)}
    movsx rcx, word ptr [rip + argument + gnttab_setup_table.status]
    {say(" {rax:d} {rcx:d}")}
    mov word ptr [rip + argument + gnttab_query_size.dom], DOMID_SELF
    {hypercall("grant_table_op", "GNTTABOP_query_size", "&argument", 1)}
    movsx rcx, word ptr [rip + argument + gnttab_query_size.status]
    {say(" {rax:d} {rcx:d}")}
    mov eax, [rip + argument + gnttab_query_size.nr_frames]
    {say(" {rax:d}")}
    ret

operation_grant_swap:
    {say("gx")}
    call pick_reference
    mov [rip + argument + gnttab_swap_grant_ref.ref_a], eax
    call pick_reference
    mov [rip + argument + gnttab_swap_grant_ref.ref_b], eax
    {hypercall("grant_table_op", "GNTTABOP_swap_grant_ref", "&argument", 1)}
    movsx rcx, word ptr [rip + argument + gnttab_swap_grant_ref.status]
    {say(" {rax:d} {rcx:d}")}
    ret

operation_grant_flush:                  # caches of a page
    {choose("mappable")}
    {say("gf {rax:d}")}
    mov rdi, rax
    call frame
    shl rax, 12
    mov [rip + argument + gnttab_cache_flush.a], rax
    {choose("flush_offsets")}
    mov [rip + argument + gnttab_cache_flush.offset], ax
    {say(" {rax:d}")}
    {choose("flush_offsets")}
    mov [rip + argument + gnttab_cache_flush.length], ax
    {say(" {rax:d}")}
    {choose("flush_commands")}
    mov [rip + argument + gnttab_cache_flush.op], eax
    {say(" {rax:x}")}
    {hypercall("grant_table_op", "GNTTABOP_cache_flush", "&argument", 1)}
    {say(" {rax:d}")}
    ret

operation_grant_transfer:               # a page that comes and goes, to the domain itself
    {say("gw ")}
    call pick_balloon
    {draw(REFERENCES)}
    lea rbp, [rax + {FIRST_REFERENCE}]
    {say(" {rbp:d}")}
    {choose("transfer_flags")}
    mov r13, rax
    {say(" {rax:x}")}
    mov rdi, rbx
    call guest_frame
    mov r12, rax
    mov rax, [rip + own_number]
    shl eax, 16
    or r13, rax
    mov rdi, rbp
    call write_grant
    mov rdi, rbx
    call frame
    mov [rip + argument + gnttab_transfer.mfn], rax
    call pick_number
    mov [rip + argument + gnttab_transfer.domid], ax
    mov [rip + argument + gnttab_transfer.ref], ebp
    {hypercall("grant_table_op", "GNTTABOP_transfer", "&argument", 1)}
    movsx r14, word ptr [rip + argument + gnttab_transfer.status]
    mov rdi, rbp
    call grant_entry
    movzx ecx, word ptr [rax]
    {say(" {r14:d} {rcx:x}")}
    test r14, r14
    jz transfer_over
    cmp r14, GNTST_bad_page
    je transfer_over
    mov rdi, rbx                        # the page is lost: get another
    call guest_frame
    mov [rip + extent], rax
    lea rdi, [rip + extent]
    mov esi, XENMEM_populate_physmap
    call reservation
    {say(" {rax:d}")}
    cmp rax, 1
    jne crash
    mov rax, [rip + extent]
    call new_frame
transfer_over:
    ret
"""

DATA: Final = ".balign 8, 0\nversion: .quad 1\nstatus_list: .quad 0, 0, 0, 0"
BSS: Final = ".balign 4096, 0\nstatus_page: .zero 4096"
