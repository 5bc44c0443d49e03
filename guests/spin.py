"""spin: a busy loop without a hypercall in it, for measuring and for schedulers to take turns with.

`rounds=N` on the command line is the number of rounds of a million instructions; each tenth prints a line.
"""
from __future__ import annotations

from typing import Final

from guests import options
from guests.macros import kernel, line

ROUNDS: Final = 1000
LOOPS: Final = 500_000
"""Turns of the inner loop in a round: two instructions each."""
REPORTS: Final = 10

_SPIN: Final = f"""
    xor r13d, r13d                      # rounds done
    xor r14d, r14d                      # lines printed
round:
    cmp r13, r12
    jae rounds_done
    mov ecx, {LOOPS}
spin:
    dec ecx
    jnz spin
    inc r13
    mov rax, r13                        # a line at each tenth of the way
    imul rax, rax, {REPORTS}
    xor edx, edx
    div r12
    cmp rax, r14
    jbe round
    mov r14, rax
    {line("spin: {r13:d} rounds")}
    jmp round
rounds_done:
"""


def build() -> bytes:
    """The image."""
    return kernel(
        options.read({"rounds": ROUNDS}), "mov r12, [rip + rounds]", line("spin: {r12:d} rounds to go"),
        _SPIN, line("spin: done"), "ret", options.READER, data=(options.data({"rounds": ROUNDS}),),
    )
