"""Small kernels that behave in one particular way, for the tests of the command and the API."""

from __future__ import annotations

from guests.echo import FAREWELL, MASK_EVENTS
from guests.echo import build as echo
from guests.macros import hypercall, kernel, line

__all__ = ["FAREWELL", "MASK_EVENTS", "echo"]


def wild_jump() -> bytes:
    """Jumps to an address nothing is mapped at, without a trap handler."""
    return kernel(line("jumping"), hypercall("xen_version", 0, 0), "mov rax, 0x123456789000\njmp rax")


def flood() -> bytes:
    """Says the same line for ever."""
    return kernel("again:", line("all work and no play makes a dull guest"), "jmp again")


def spin_forever() -> bytes:
    """Says one line and never does anything else."""
    return kernel(line("spinning"), "again:\njmp again")


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
