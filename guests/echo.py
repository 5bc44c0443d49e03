"""echo: says back each line that is typed, sleeps in between, and powers off after `q`."""
from __future__ import annotations

from typing import Final

from guests.macros import hypercall, kernel, line

FAREWELL: Final = "echo: bye"

MASK_EVENTS: Final = """
    mov rax, -1
    mov [rip + shared_page + shared_info.evtchn_mask], rax
"""
"""No event reaches a vCPU that has nowhere to take it."""


def build() -> bytes:
    """The image."""
    return kernel(
        MASK_EVENTS,
        line("echo: type, q ends"),
        """
        mov r15, [rip + console_ring]
        jmp look
    wait:
        """,
        hypercall("sched_op", "SCHEDOP_poll", "&poll"),
        """
    look:
        mov edx, [rip + console_port]
        lock btr qword ptr [rip + shared_page + shared_info.evtchn_pending], rdx
        mov ecx, [r15 + xencons_interface.in_cons]
        cmp ecx, [r15 + xencons_interface.in_prod]
        je wait
        mov edx, ecx
        and edx, 1023
        movzx eax, byte ptr [r15 + rdx + xencons_interface.in_]
        inc ecx
        mov [r15 + xencons_interface.in_cons], ecx
        mov r14d, eax
        cmp al, 13
        jne is_line_end
        mov al, 10
    is_line_end:
        call put_char
        cmp r14d, 113
        jne look
        mov al, 10
        call put_char
        """,
        line(FAREWELL),
        data=("poll: .quad console_port\n.long 1, 0\n.quad 0",), shared=True,
    )
