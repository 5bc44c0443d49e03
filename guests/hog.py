"""hog: every vCPU computes and never blocks, for schedulers to share out.

`rounds=N` is how many rounds of a million blocks (10 ms) each vCPU does, by default more than anyone waits
for.
"""
from __future__ import annotations

from typing import Final

from guests import team
from guests.macros import line

BLOCKS: Final = 1_000_000

_MEMBER: Final = f"""
    mov r14, [rip + rounds]
hog_round:
    mov ecx, {BLOCKS}
    call work_for
    lock inc qword ptr [rip + total]
    dec r14
    jnz hog_round
"""


def build() -> bytes:
    """The image."""
    return team.build("hog", _MEMBER, {"rounds": 1 << 40}, (
        line("hog: {qword ptr [rip + vcpus]:d} vCPUs, {qword ptr [rip + total]:d} rounds, {r12:d} us"),
    ), data=("total: .quad 0",))
