"""Options of a guest: `name=number` on its command line."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guests.macros import text

READER: Final = """
option_value:                           # rsi -> name with its `=`: rax = the number behind it, or 0
    mov rdx, [rip + start_info_address]
    lea rdx, [rdx + start_info.cmd_line]
    xor eax, eax
option_start:
    cmp byte ptr [rdx], 0
    je option_done
    mov rdi, rsi
    mov r8, rdx
option_compare:
    mov cl, [rdi]
    test cl, cl
    jz option_digit
    inc rdi
    cmp cl, [r8]
    lea r8, [r8 + 1]
    je option_compare
    inc rdx
    jmp option_start
option_digit:
    movzx ecx, byte ptr [r8]
    sub ecx, 48
    cmp ecx, 9
    ja option_done
    imul rax, rax, 10
    add rax, rcx
    inc r8
    jmp option_digit
option_done:
    ret
"""


def read(defaults: Mapping[str, int]) -> str:
    """Store each option's number, or its default, at the label of its name."""
    return "\n".join(
        f"lea rsi, [rip + option_{name}]\ncall option_value\ntest rax, rax\njnz option_{name}_given\n"
        f"mov rax, {default}\noption_{name}_given:\nmov [rip + {name}], rax"
        for name, default in defaults.items()
    )


def data(defaults: Mapping[str, int]) -> str:
    """The options' names and numbers."""
    return "\n".join(
        f"option_{name}:\n{text(f'{name}=')}\n.balign 8, 0\n{name}: .quad 0" for name in defaults
    )
