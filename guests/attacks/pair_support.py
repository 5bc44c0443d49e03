"""What two attack guests that work together are written with: whose number is next, a page in common, turns.

The giver is created first, the taker next: their numbers follow each other. The giver's first reference is
the page in common, whose first word says whose turn it is.
"""

from __future__ import annotations

from typing import Final

from guests.attacks import grant_support as g
from guests.macros import hypercall

MAIL, WHOLE, READ, CHAIN, LAST = range(g.FIRST, g.FIRST + 5)
"""The giver's references: the page in common, a page, a read-only page, two for a grant of the taker's."""
BACK = g.FIRST
"""The taker's reference: a page for the giver."""
PATIENCE: Final = 2_000_000
"""Yields until the other must have had its turn."""

TURNS: Final = f"""
wait_turn:                              # rdi = the turn that is to come
    mov ecx, {PATIENCE}
turn_look:
    cmp [rip + mail], rdi
    jae turn_here
    call yield
    dec ecx
    jnz turn_look
    jmp crash
turn_here:
    ret
"""


def wait(turn: int) -> str:
    """Until it is this turn."""
    return f"mov edi, {turn}\ncall wait_turn"


def give_turn(turn: int) -> str:
    """Now it is the other's."""
    return f"mov qword ptr [rip + mail], {turn}\ncall yield"


def reservation(frame: str) -> str:
    """Give a frame back: rax is how many were taken."""
    return f"mov rax, [rip + {frame}]\nmov [rip + extent], rax\n" + hypercall(
        "memory_op", "XENMEM_decrease_reservation", "&reservation"
    )


DATA: Final = (
    g.DATA,
    "peer: .quad 0\nextent: .quad 0\nreservation: .quad extent, 1\n.long 0, 0\n.quad DOMID_SELF",
)
BSS: Final = (g.BSS, ".balign 4096, 0\nmail: .zero 4096")
