"""Small kernels that behave in one particular way, for the tests of the command and the API."""

from __future__ import annotations

from guests.macros import hypercall, kernel, line

FAREWELL = "echo: bye"


def wild_jump() -> bytes:
    """Jumps to an address nothing is mapped at, without a trap handler."""
    return kernel(line("jumping"), hypercall("xen_version", 0, 0), "mov rax, 0x123456789000\njmp rax")


def flood() -> bytes:
    """Says the same line for ever."""
    return kernel("again:", line("all work and no play makes a dull guest"), "jmp again")


def spin_forever() -> bytes:
    """Says one line and never does anything else."""
    return kernel(line("spinning"), "again:\njmp again")


MASK_EVENTS = """
    mov rax, -1
    mov [rip + shared_page + shared_info.evtchn_mask], rax
"""
"""No event reaches a vCPU that has nowhere to take it."""


def sleep_forever() -> bytes:
    """Says one line and blocks with every event masked."""
    block = hypercall("sched_op", "SCHEDOP_block", 0)
    return kernel(MASK_EVENTS, line("sleeping"), "again:", block, "jmp again", shared=True)


def reboot() -> bytes:
    """Asks for a reboot."""
    return kernel(line("again!"), "mov ebx, SHUTDOWN_reboot\njmp shut_down")


def suspend() -> bytes:
    """Suspends."""
    return kernel("mov ebx, SHUTDOWN_suspend\njmp shut_down")


def own_crash() -> bytes:
    """Reports a crash of its own."""
    return kernel("jmp crash")


def triple_fault() -> bytes:
    """Breaks its stack and then faults, without a handler."""
    return kernel("xor esp, esp\npush rax")


def echo() -> bytes:
    """Asks for lines, says each back as it is read, powers off after `q`, and sleeps in between."""
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
