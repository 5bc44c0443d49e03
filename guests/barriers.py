"""barriers: a bulk-synchronous team: all compute, all wait for all, and again.

`rounds=N` supersteps of `work=blocks` (10 ns each). Waiting is spinning. `apart=1`: nobody waits for anybody,
the same work by strangers.
"""
from __future__ import annotations

from typing import Final

from guests import team
from guests.macros import line

_MEMBER: Final = """
    xor r14d, r14d                      # rounds done
barrier_round:
    mov rcx, [rip + work]
    call work_for
    inc r14
    cmp qword ptr [rip + apart], 0
    jne barrier_passed
    lock inc qword ptr [rip + arrived]
    mov rbx, r14
    imul rbx, [rip + vcpus]
barrier_wait:
    cmp [rip + arrived], rbx
    jae barrier_passed
    rdtsc
    jmp barrier_wait
barrier_passed:
    cmp r14, [rip + rounds]
    jb barrier_round
"""


def build() -> bytes:
    """The image."""
    return team.build("barriers", _MEMBER, {"rounds": 100, "work": 10_000, "apart": 0}, (
        line("barriers: {qword ptr [rip + vcpus]:d} vCPUs, {qword ptr [rip + rounds]:d} rounds, {r12:d} us"),
    ), data=("arrived: .quad 0",))
