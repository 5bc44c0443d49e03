"""yields: every vCPU yields again and again: a storm of scheduling decisions. `rounds=N` each."""
from __future__ import annotations

from typing import Final

from guests import team
from guests.macros import hypercall, line

_MEMBER: Final = f"""
    mov r14, [rip + rounds]
yield_round:
    {hypercall("sched_op", "SCHEDOP_yield", 0)}
    dec r14
    jnz yield_round
"""


def build() -> bytes:
    """The image."""
    return team.build("yields", _MEMBER, {"rounds": 1000}, (
        line("yields: {qword ptr [rip + vcpus]:d} vCPUs, {qword ptr [rip + rounds]:d} each, {r12:d} us"),
    ))
