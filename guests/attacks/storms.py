"""Storms of scheduling: two vCPUs have the hypervisor decide again and again.

`kind=1`: both yield. `kind=2`: both poll with a time-out `pause` ns away, `kind=3`: with one that has
passed. `kind=4`: one blocks, and the other wakes it. `kind=5`: one computes, and the other takes it down and
brings it up. On a broken scheduler a wake-up, or what precedes it, is worth more CPU time than it should be,
or decisions take their time from the neighbours (theft of CPU time by sleeping over ticks: Zhou and others
2011).
"""

from __future__ import annotations

from typing import Final

from guests import team
from guests.macros import hypercall, line

KINDS: Final = {"yields": 1, "polls": 2, "passed polls": 3, "wakes": 4, "comings and goings": 5}
"""By what they do."""
VCPUS: Final = 2

_MEMBER: Final = f"""
    mov r14, [rip + kind]
    cmp r14, 1
    je yields
    cmp r14, 3
    je passed_polls
    ja pairs
polls:
    call now
    mov rdi, rax
    add rdi, [rip + pause]
    call sleep_until
    jmp polls
yields:
    {hypercall("sched_op", "SCHEDOP_yield", 0)}
    jmp yields
passed_polls:
    mov edi, 1
    call sleep_until
    jmp passed_polls
pairs:
    test r15, r15
    jz first_of_pair
    cmp r14, 5
    je computes
blocks:
    {hypercall("sched_op", "SCHEDOP_block", 0)}
    jmp blocks
computes:
    dec rcx
    jmp computes
first_of_pair:
    cmp r14, 5
    je comes_and_goes
wakes:
    {hypercall("vcpu_op", "VCPUOP_send_nmi", 1, 0)}
    jmp wakes
comes_and_goes:
    {hypercall("vcpu_op", "VCPUOP_down", 1, 0)}
    {hypercall("vcpu_op", "VCPUOP_up", 1, 0)}
    jmp comes_and_goes
"""


def build() -> bytes:
    """The image."""
    return team.build("storms", _MEMBER, {"kind": 1, "pause": 5_000}, (line("storms: over"),))
