"""hypercalls: every call and sub-operation with odd arguments, and its return code.

Only what an unprivileged guest and dom0 are answered alike is here, so that one list of answers serves both.
Calls go by `syscall` with the number in rax, past the hypercall page, to try numbers it lacks too.
"""
from __future__ import annotations

from typing import Final

from guests.calls import BAD, GROUPS, NO_FRAME
from guests.macros import hypercall, kernel, line, say, text

_PATCH: Final = f"""
    lea rdi, [rip + data_page]              # requests and operations on a page of ours
    call machine_frame
    mov r12, rax
    shl rax, 12
    mov [rip + request_data], rax
    mov [rip + request_list], rax
    mov [rip + request_list + 16], rax
    or rax, 2
    mov [rip + request_keep], rax
    xor rax, 3
    mov [rip + request_m2p], rax
    lea rcx, [rip + data_page]
    mov rdx, {0xFFFF_FFFF_8000_0000}
    sub rcx, rdx
    shr rcx, 12
    mov [rip + request_m2p + 8], rcx
    mov [rip + op_unpin + mmuext_op.arg1], r12
    mov [rip + op_pin + mmuext_op.arg1], r12
    mov [rip + op_root + mmuext_op.arg1], r12
    mov [rip + op_clear + mmuext_op.arg1], r12
    mov [rip + op_copy + mmuext_op.arg1], r12
    mov [rip + gdt_list], r12
    mov rdi, [rip + start_info_address]
    mov rdi, [rdi + start_info.pt_base]
    call machine_frame
    shl rax, 12
    add rax, {256 * 8}
    mov [rip + request_xen_slot], rax
"""

ROW: Final = 80
"""Bytes of a table row: name, number, four arguments, two fields to show."""

_LOOP: Final = f"""
    lea r12, [rip + rows]
next_row:
    mov rax, [r12]
    test rax, rax
    jz rows_done
    mov rax, [r12 + 8]
    mov rdi, [r12 + 16]
    mov rsi, [r12 + 24]
    mov rdx, [r12 + 32]
    mov r10, [r12 + 40]
    syscall
    {say("{qword ptr [r12]:s}: {rax:d}")}
    lea rbx, [r12 + 48]
    call show_field
    lea rbx, [r12 + 64]
    call show_field
    {line("")}
    add r12, {ROW}
    jmp next_row

show_field:                             # rbx -> address and width of a field; width 0: none
    mov rsi, [rbx]
    mov rcx, [rbx + 8]
    test rcx, rcx
    jz field_shown
    mov rax, [rsi]
    cmp rcx, 8
    je field_print
    cmp rcx, 4
    je field_word
    movsx rax, ax
    {say(" {rax:d}")}
    ret
field_word:
    mov eax, eax
field_print:
    {say(" {rax:x}")}
field_shown:
    ret
"""

_RESULTS: Final = f"""
rows_done:
    {line("done: {qword ptr [rip + done]:d}")}
    {line("multicall results: {qword ptr [rip + calls + 8]:d} {qword ptr [rip + calls + 72]:d} "
          "{qword ptr [rip + calls + 136]:d}")}
    mov eax, [rip + data_page]
    {line("cleared: {rax:x}")}
    {hypercall("vcpu_op", "VCPUOP_get_runstate_info", 0, "&area")}
    mov eax, [rip + area]
    {line("run state area: {rax:d}")}
    {line("hypercalls: done")}
"""


def _rows() -> tuple[list[str], list[str], list[str]]:
    """Table rows, names and argument blocks."""
    rows, names, blocks = [], [], []
    for index, call in enumerate(entry for entries in GROUPS for entry in entries):
        names.append(f"name{index}:\n{text(call.title)}")
        cells = []
        block = ""
        for argument in (*call.arguments, 0, 0, 0, 0)[:4]:
            if isinstance(argument, bytes):
                block = f"block{index}"
                blocks.append(f".balign 8, 0\n{block}:\n.byte " + ", ".join(map(str, argument)))
                cells.append(block)
            else:
                cells.append(argument.removeprefix("&") if isinstance(argument, str) else str(argument))
        shown = [*call.show, (0, 0), (0, 0)][:2]
        shows = [f"{block or 0} + {at}, {width}" for at, width in shown]
        rows.append(f".quad name{index}, {call.number}, {', '.join(cells)}, {', '.join(shows)}")
    return rows, names, blocks


_BLOCKS: Final = f"""
.balign 8, 0
done: .quad 99
request_data: .quad 0, 7
request_keep: .quad 0, 7
request_m2p: .quad 0, 0
request_list: .quad 0, 8, 0, 9
request_list_bad: .quad {NO_FRAME << 12}, 0
request_xen_slot: .quad 0, 0
op_unpin: .quad MMUEXT_UNPIN_TABLE, 0, 0
op_pin: .quad MMUEXT_PIN_L1_TABLE, 0, 0
op_root: .quad MMUEXT_NEW_BASEPTR, 0, 0
op_clear: .quad MMUEXT_CLEAR_PAGE, 0, 0
op_copy: .quad MMUEXT_COPY_PAGE, 0, {NO_FRAME}
gdt_list: .quad 0
area_pointer: .quad area
area: .zero 64
event_registration: .quad CALLBACKTYPE_event, crash
no_frame_list: .quad {NO_FRAME}
no_frame_reservation: .quad no_frame_list, 1
.long 0, 0
.quad DOMID_SELF
calls:
.quad __HYPERVISOR_xen_version, 99, XENVER_version, 0, 0, 0, 0, 0
.quad __HYPERVISOR_multicall, 99, {BAD}, 1, 0, 0, 0, 0
.quad 1000, 99, 0, 0, 0, 0, 0, 0
"""


def build() -> bytes:
    """The image."""
    rows, names, blocks = _rows()
    return kernel(
        _PATCH, _LOOP, _RESULTS, "ret", traps=True, pages=True,
        data=(_BLOCKS, *blocks, ".balign 8, 0\nrows:", *rows, ".quad 0", *names),
        bss=(".balign 4096, 0\ndata_page: .zero 4096\nspare_page: .zero 4096",),
    )
