"""neighbour: a guest that does no harm. It fills pages with what only it knows, looks at them, and prints."""

from __future__ import annotations

from guests.macros import kernel, line

WORDS = 64 * 512
MARK = 0x5EED_0F_7EE1_F00D
"""What its pages hold, combined with each word's address."""

_MAIN = f"""
    mov r15, {MARK}
    lea rdi, [rip + garden]
    mov ecx, {WORDS}
plant:
    mov rax, rdi
    xor rax, r15
    mov [rdi], rax
    add rdi, 8
    dec ecx
    jnz plant
    xor r12d, r12d
look:
    lea rdi, [rip + garden]
    mov ecx, {WORDS}
look_word:
    mov rax, rdi
    xor rax, r15
    cmp [rdi], rax
    jne harmed
    add rdi, 8
    dec ecx
    jnz look_word
    inc r12
    {line("alive {r12:d}")}
    call yield
    jmp look
harmed:
    {line("harmed")}
    jmp crash
"""


def build() -> bytes:
    """The image."""
    return kernel(_MAIN, bss=(f".balign 4096, 0\ngarden: .zero {WORDS * 8}",))
