"""Pages that come and go: exchange, decrease, populate, increase."""
from __future__ import annotations

from typing import Final

from guests.assembler import VIRT_BASE
from guests.fuzz import tables as t
from guests.fuzz.support import choose, draw
from guests.macros import hypercall, say

BALLOON: Final = f"""
pick_balloon:                           # rbx = number of a page that comes and goes
    {draw(len(t.BALLOON))}
    lea rbx, [rax + {t.BALLOON.start}]
    {say("{rbx:d}")}
    ret

guest_frame:                            # rdi = page of the pool -> its guest frame number
    call pool_address
    mov rcx, {VIRT_BASE}
    sub rax, rcx
    shr rax, 12
    ret

new_frame:                              # rax = the machine frame page rbx has now: note it and clear it
    lea rcx, [rip + frames]
    mov [rcx + rbx*8], rax
    mov [rip + requests + 8], rax
    mov qword ptr [rip + requests], MMUEXT_CLEAR_PAGE
    {hypercall("mmuext_op", "&requests", 1, 0, "DOMID_SELF")}
    {say(" {rax:d}")}
    ret

operation_balloon_map:
    {say("c ")}
    call pick_balloon
    mov rdi, rbx
    call pool_address
    mov r12, rax
    {draw(4)}
    cmp eax, 2
    jae balloon_unmap
    add eax, eax
    lea r13, [rax + 0x61]
    mov rdi, rbx
    call frame
    shl rax, 12
    or r13, rax
    jmp balloon_do
balloon_unmap:
    xor r13d, r13d
balloon_do:
    mov rax, r13
    and eax, 0xfff
    {say(" {rax:x}")}
    {hypercall("update_va_mapping", "r12", "r13", "UVMF_INVLPG")}
    {say(" {rax:d}")}
    ret

operation_exchange:
    {say("e ")}
    call pick_balloon
    mov rdi, rbx
    call frame
    mov [rip + extent], rax
    mov rdi, rbx
    call guest_frame
    mov [rip + extent_out], rax
    lea rdi, [rip + exchange]
    lea rax, [rip + extent]
    mov [rdi + xen_memory_exchange.in_.extent_start], rax
    lea rax, [rip + extent_out]
    mov [rdi + xen_memory_exchange.out.extent_start], rax
    mov qword ptr [rdi + xen_memory_exchange.in_.nr_extents], 1
    mov qword ptr [rdi + xen_memory_exchange.out.nr_extents], 1
    mov word ptr [rdi + xen_memory_exchange.in_.domid], DOMID_SELF
    mov word ptr [rdi + xen_memory_exchange.out.domid], DOMID_SELF
    mov qword ptr [rdi + xen_memory_exchange.nr_exchanged], 0
    {hypercall("memory_op", "XENMEM_exchange", "&exchange")}
    {say(" {rax:d} {qword ptr [rip + exchange + xen_memory_exchange.nr_exchanged]:d}")}
    test rax, rax
    jnz exchange_done
    mov rax, [rip + extent_out]
    call new_frame
exchange_done:
    ret

operation_balloon:                      # give a page back, twice, and get another
    {say("h ")}
    call pick_balloon
    mov rdi, rbx
    call frame
    mov [rip + extent], rax
    lea rdi, [rip + extent]
    mov esi, XENMEM_decrease_reservation
    call reservation
    {say(" {rax:d}")}
    lea rdi, [rip + extent]
    mov esi, XENMEM_decrease_reservation
    call reservation
    {say(" {rax:d}")}
    mov rdi, rbx
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
    ret
"""

INCREASE: Final = f"""
operation_increase:                     # a page more, and less again, perhaps for a domain that is not there
    mov qword ptr [rip + extent], 0
    lea rdi, [rip + extent]
    mov esi, XENMEM_increase_reservation
    call reservation
    mov rbx, rax
    lea rdi, [rip + extent]
    mov esi, XENMEM_decrease_reservation
    call reservation
    {say("i {rbx:d} {rax:d}")}
    {choose("domains")}
    {say(" d{rax:x}")}
    mov [rip + argument + xen_memory_reservation.domid], ax
    {hypercall("memory_op", "XENMEM_increase_reservation", "&argument")}
    {say(" {rax:d}")}
    cmp rax, 1
    jne increase_done
    lea rdi, [rip + extent]
    mov esi, XENMEM_decrease_reservation
    call reservation
    {say(" {rax:d}")}
increase_done:
    ret
"""
