"""sleeper: every vCPU wakes once a period, computes a little and sleeps again; prints how late it ran.

`period=us`, `busy=blocks` (10 ns each), `wakes=N`. Latencies: from when a vCPU wanted to wake to when
it ran.
"""
from __future__ import annotations

from typing import Final

from guests import team
from guests.macros import line

_MEMBER: Final = """
    mov r14, [rip + wakes]
    call now
    mov r13, rax
sleeper_next:
    imul rax, [rip + period], 1000
    add r13, rax
    mov rdi, r13
    call sleep_until
    call now
    sub rax, r13
    js sleeper_early
    lock add [rip + late], rax
    mov rcx, rax
    imul rcx, rcx
    shr rcx, 10
    lock add [rip + squares], rcx
sleeper_most:
    mov rdx, rax
    mov rax, [rip + latest]
    cmp rdx, rax
    jbe sleeper_counted
    lock cmpxchg [rip + latest], rdx
    mov rax, rdx
    jnz sleeper_most
sleeper_counted:
    lock inc qword ptr [rip + woken]
sleeper_work:
    mov rcx, [rip + busy]
    call work_for
    dec r14
    jnz sleeper_next
    ret
sleeper_early:
    lock inc qword ptr [rip + early]
    jmp sleeper_work
"""


def build() -> bytes:
    """The image."""
    return team.build("sleeper", _MEMBER, {"period": 1000, "busy": 1000, "wakes": 100}, (
        line("sleeper: {qword ptr [rip + woken]:d} wakes, {qword ptr [rip + late]:d} ns late in all, "
             "{qword ptr [rip + latest]:d} at most, squares {qword ptr [rip + squares]:d} x 1024, "
             "{qword ptr [rip + early]:d} early"),
    ), data=("late: .quad 0\nlatest: .quad 0\nsquares: .quad 0\nwoken: .quad 0\nearly: .quad 0",))
