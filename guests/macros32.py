"""What 32-bit guests are written with: `macros` for ring 1 of a PAE guest. `say`, `line` and `text` are
those.

Operands are Keystone's; an operand `&label` is the label's address. Names of Xen's headers have the values of
their 32-bit layouts.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from guests import runtime32
from guests.assembler import HYPERCALL_SLOT, NARROW_BASE, Program
from guests.macros import line, number, say, text

__all__ = ["ARGUMENTS", "get", "hypercall", "kernel", "line", "load", "number", "put", "say", "text"]

ARGUMENTS: Final = ("ebx", "ecx", "edx", "esi", "edi")


def kernel(*main: str, data: Iterable[str] = (), bss: Iterable[str] = (), shared: bool = False,
           traps: bool = False, events: bool = False, pages: bool = False,
           trap_flags: dict[int, int] | None = None) -> bytes:
    """The image of a guest, as `macros.kernel` makes it: hooks get edi -> frame, and edi = port."""
    program = Program(
        text=[runtime32.BOOT, runtime32.CONSOLE, runtime32.PRINT],
        data=[runtime32.CONSOLE_DATA, *data],
        bss=[runtime32.BOOT_BSS, *bss],
        width=32,
    )
    start = []
    if shared or traps or events:
        program.text.append(runtime32.SHARED)
        program.bss.insert(0, runtime32.SHARED_BSS)
        start.append("call map_shared")
    if pages:
        program.text.append(runtime32.PAGES)
    if traps or events:
        program.text.extend((runtime32.FRAMES, runtime32.EVENTS, unexpected_trap(), runtime32.trap_entries()))
        program.data.extend((runtime32.HOOKS, runtime32.trap_table(trap_flags or {3: 3, 4: 3})))
        start.append(hypercall("set_trap_table", "&trap_table"))
    if events:
        start.append(hypercall(
            "set_callbacks", "FLAT_KERNEL_CS", "&event_upcall", "FLAT_KERNEL_CS", "&crash"))
    program.text.extend(("guest_main:", *start, *main, "ret"))
    return program.image()


def load(register: str, operand: str | int) -> str:
    """Put a number, an operand or the address `&label` into a 32-bit register."""
    if isinstance(operand, int):
        return f"mov {register}, {operand}" if operand else f"xor {register}, {register}"
    if operand.startswith("&"):
        return f"lea {register}, [{operand[1:]}]"
    return "" if operand == register else f"mov {register}, {operand}"


def put(target: str, value: str | int, width: int = 4) -> str:
    """Store a number or an operand at a label (or label + offset), `width` bytes of it. Uses eax."""
    part = {1: "al", 2: "ax", 4: "eax"}[width]
    return f"{load('eax', value)}\nmov [{target}], {part}"


def get(source: str, width: int = 4) -> str:
    """Load eax from a label (or label + offset), zero-extended."""
    return {1: "movzx eax, byte ptr", 2: "movzx eax, word ptr", 4: "mov eax,"}[width] + f" [{source}]"


def hypercall(name: str, *arguments: str | int) -> str:
    """Call through the hypercall page: result in eax; argument registers are lost, ebp holds a sixth one."""
    loads = [load(register, value) for register, value in zip(ARGUMENTS, arguments, strict=False)]
    return "\n".join((*loads, f"call {NARROW_BASE + HYPERCALL_SLOT * number(name)}"))


def unexpected_trap() -> str:
    """The first trap hook: report the trap and crash."""
    vector, error, eip = (f"dword ptr [ebx + {runtime32.frame(word)}]" for word in ("vector", "error", "eip"))
    report = line(f"unexpected trap {{{vector}:d}} error {{{error}:x}} at {{{eip}:x}}")
    return f"trap_unexpected:\nmov ebx, edi\n{report}\njmp crash"
