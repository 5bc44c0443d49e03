"""locks: a team that shares one ticket lock with a short critical section, as kernels' spinlocks are.

`rounds=N` each, or as many as there is `time=ms` for; `work=blocks` outside and `held=blocks` inside the lock
(10 ns each). A ticket lock is fair, so who is not running when its turn comes holds up everybody.
"""
from __future__ import annotations

from typing import Final

from guests import team
from guests.macros import line

_MEMBER: Final = """
    mov r14, [rip + rounds]
lock_round:
    mov rcx, [rip + work]
    call work_for
    mov eax, 1
    lock xadd [rip + ticket], rax
    mov rbx, rax
lock_wait:
    cmp [rip + serving], rbx
    je lock_taken
    call time_over
    test eax, eax
    jz lock_wait
    ret
lock_taken:
    mov rcx, [rip + held]
    call work_for
    inc qword ptr [rip + total]
    inc qword ptr [rip + serving]
    call time_over
    test eax, eax
    jnz lock_enough
    dec r14
    jnz lock_round
lock_enough:
"""


def build() -> bytes:
    """The image."""
    return team.build("locks", _MEMBER, {"rounds": 1000, "work": 1000, "held": 100}, (
        line("locks: {qword ptr [rip + vcpus]:d} vCPUs, {qword ptr [rip + total]:d} times, {r12:d} us"),
    ), data=("ticket: .quad 0\nserving: .quad 0\ntotal: .quad 0",))
