"""barriers: a bulk-synchronous team: all compute, all wait for all, and again.

`rounds=N` supersteps of `work=blocks` (10 ns each). Waiting is spinning. `apart=1`: nobody waits for anybody,
the same work by strangers. `time=ms` ends it early. The report counts the rounds of all.
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
    call time_over
    test eax, eax
    jz barrier_wait
    ret
barrier_passed:
    lock inc qword ptr [rip + passed]
    call time_over
    test eax, eax
    jnz barrier_enough
    cmp r14, [rip + rounds]
    jb barrier_round
barrier_enough:
"""


def build() -> bytes:
    """The image."""
    return team.build("barriers", _MEMBER, {"rounds": 100, "work": 10_000, "apart": 0}, (
        line("barriers: {qword ptr [rip + vcpus]:d} vCPUs, {qword ptr [rip + passed]:d} rounds, {r12:d} us"),
    ), data=("arrived: .quad 0\npassed: .quad 0",))
