"""spin: a busy loop without a hypercall in it, for measuring and for schedulers to take turns with.

`rounds=N` on the command line is the number of rounds of a million instructions; each tenth prints a line.
"""
from __future__ import annotations

from typing import Final

from guests.macros import kernel, line, text

ROUNDS: Final = 1000
LOOPS: Final = 500_000
"""Turns of the inner loop in a round: two instructions each."""
REPORTS: Final = 10

_PARSE: Final = """
    mov rsi, [rip + start_info_address]
    lea rsi, [rsi + start_info.cmd_line]
next_start:                             # is it `rounds=` here?
    cmp byte ptr [rsi], 0
    je parsed
    lea rdi, [rip + option]
    mov rdx, rsi
compare:
    mov al, [rdi]
    test al, al
    jz digits_start
    cmp al, [rdx]
    jne no_match
    inc rdi
    inc rdx
    jmp compare
no_match:
    inc rsi
    jmp next_start
digits_start:
    xor r12d, r12d
digit:
    movzx eax, byte ptr [rdx]
    sub eax, 48
    cmp eax, 9
    ja parsed
    imul r12, r12, 10
    add r12, rax
    inc rdx
    jmp digit
parsed:
"""

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
        f"mov r12d, {ROUNDS}", _PARSE, line("spin: {r12:d} rounds to go"), _SPIN, line("spin: done"),
        data=("option:", text("rounds=")),
    )
