"""Options, the frame table, the tables the guest starts with, and the loop over the operations."""
from __future__ import annotations

from typing import Final

from guests.assembler import VIRT_BASE
from guests.fuzz import tables as t
from guests.fuzz.support import TOUCHED, draw
from guests.macros import hypercall, line, put, say

RESERVE: Final = 64
"""Pages given back at the start, so that no operation meets the domain's limit."""

START: Final = f"""
    lea rsi, [rip + option_seed]
    call option_value
    mov rbx, rax
    lea rsi, [rip + option_ops]
    call option_value
    mov [rip + operations_left], rax
    {line("mmufuzz: seed {rbx:d}, {rax:d} operations")}
    inc rbx
    mov rax, 0x9E3779B97F4A7C15
    imul rax, rbx
    mov [rip + random_state], rax
    {put("trap_hook", "&trap_expected")}
    lea r12, [rip + frames]
    xor ebx, ebx                        # the pool's frames
find_pool:
    mov rdi, rbx
    call pool_address
    mov rdi, rax
    call machine_frame
    mov [r12 + rbx*8], rax
    inc ebx
    cmp ebx, {t.POOL}
    jb find_pool
    mov rdi, [rip + start_info_address]
    call machine_frame
    mov [r12 + {t.START_INFO * 8}], rax
    mov rbx, [rip + start_info_address]
    mov rbx, [rbx + start_info.pt_base]
    mov rdi, rbx
    call machine_frame
    mov [r12 + {t.ROOT * 8}], rax
    mov rax, [rbx + {t.KERNEL_SLOT * 8}]
    mov [rip + kernel_entry], rax
    call boot_table
    mov [r12 + {t.BOOT_L3 * 8}], rcx
    mov rax, [rax + 510*8]
    call boot_table
    mov [r12 + {t.BOOT_L2 * 8}], rcx
    mov rax, [rax]
    call boot_table
    mov [r12 + {t.BOOT_L1 * 8}], rcx
    mov dword ptr [rip + argument], 1
    lea rax, [r12 + {t.XEN_FRAME * 8}]
    mov [rip + argument + xen_machphys_mfn_list.extent_start], rax
    {hypercall("memory_op", "XENMEM_machphys_mfn_list", "&argument")}
    test rax, rax
    jnz crash
    jmp write_tables

boot_table:  # rax = an entry of the boot tables -> rax = where its table is, rcx = frame
    mov rcx, 0x000ffffffffff000
    and rax, rcx
    shr rax, 12
    mov rcx, rax
    mov rdx, MACH2PHYS_VIRT_START
    mov rax, [rdx + rax*8]
    shl rax, 12
    mov rdx, {VIRT_BASE}
    add rax, rdx
    ret
"""

LINKS: Final = (
    *((table, slot, t.DATA.start + (table + slot) % len(t.DATA), 0x25 if slot & 1 else 0x67)
      for table in t.L1 for slot in range(7)),
    (6, 0, 0, 0x67), (6, 1, 1, 0x67), (6, 2, 2, 0x67), (7, 0, 3, 0x67), (7, 1, 4, 0x67),
    (9, 0, 6, 0x67), (9, 1, 7, 0x67), (10, 0, 8, 0x67), (12, 0, 10, 0x67),
)
"""What the tables hold at the start: table, slot, frame it names, flags."""

TABLES: Final = f"""
write_tables:
    lea rbx, [rip + links]
next_link:
    mov rdi, [rbx + 16]
    call frame
    shl rax, 12
    or rax, [rbx + 24]
    mov r12, rax
    mov rdi, [rbx]
    call pool_address
    mov rcx, [rbx + 8]
    mov [rax + rcx*8], r12
    add rbx, 32
    lea rax, [rip + links_end]
    cmp rbx, rax
    jb next_link
    mov ebx, {t.L4.start}
next_root:                              # every root shows the kernel
    mov rdi, rbx
    call pool_address
    mov rcx, [rip + kernel_entry]
    mov [rax + {t.KERNEL_SLOT * 8}], rcx
    inc ebx
    cmp ebx, {t.L4.stop}
    jb next_root
    xor ebx, ebx
next_read_only:
    mov rdi, rbx
    call pool_address
    mov rdi, rax
    mov esi, 0x61
    call remap
    test rax, rax
    jnz crash
    inc ebx
    cmp ebx, {t.DATA.start}
    jb next_read_only
    mov rax, [rip + frames + {t.ROOT * 8}]
    shl rax, 12
    add rax, {t.TEST_SLOT * 8}
    mov [rip + requests], rax
    mov rax, [rip + frames + {t.L3.start * 8}]
    shl rax, 12
    or rax, 0x67
    mov [rip + requests + 8], rax
    {hypercall("mmu_update", "&requests", 1, 0, "DOMID_SELF")}
    test rax, rax
    jnz crash
    xor ebx, ebx
next_reserve:                           # unmap the reserve and give it back
    mov rdi, rbx
    shl rdi, 12
    lea rax, [rip + reserve]
    add rdi, rax
    call machine_frame
    mov [rip + extent], rax
    {hypercall("update_va_mapping", "rdi", 0, "UVMF_INVLPG")}
    lea rdi, [rip + extent]
    mov esi, XENMEM_decrease_reservation
    call reservation
    cmp rax, 1
    jne crash
    inc ebx
    cmp ebx, {RESERVE}
    jb next_reserve
    and qword ptr [rip + kernel_entry], {~TOUCHED}
    call setup_grants
    call setup_second
    mov rdi, [rip + start_info_address]     # what it holds is the machine's: the tests can read the page
    xor eax, eax
    mov ecx, 512
    rep stosq

    xor ebp, ebp
next_operation:
    cmp rbp, [rip + operations_left]
    jae operations_done
    {say("{rbp:d} ")}
    push rbp
    {draw("operations_count")}
    lea rcx, [rip + operations]
    mov rax, [rcx + rax*8]
    call run_operation
    pop rbp
    {line("")}
    inc rbp
    jmp next_operation
operations_done:
    {line("mmufuzz: done")}
    ret

reservation:                            # rdi -> one extent, rsi = command -> extents done
    mov [rip + argument + xen_memory_reservation.extent_start], rdi
    mov qword ptr [rip + argument + xen_memory_reservation.nr_extents], 1
    mov qword ptr [rip + argument + xen_memory_reservation.extent_order], 0
    mov word ptr [rip + argument + xen_memory_reservation.domid], DOMID_SELF
    {hypercall("memory_op", "rsi", "&argument")}
    ret
"""
