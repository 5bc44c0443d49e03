"""What guests are written with: functions that give assembly text, and `kernel`, which adds the runtime.

Operands are Keystone's; an operand `&label` is the label's address. Names of Xen's headers are known.
"""
from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from guests import names, runtime
from guests.assembler import HYPERCALL_PAGE, HYPERCALL_SLOT, Program

ARGUMENTS: Final = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_FIELD: Final = re.compile(r"\{([^{}:]+):([dxs])\}")
_PUT: Final = {"d": "put_decimal", "x": "put_hex", "s": "put_string"}


def kernel(*main: str, data: Iterable[str] = (), bss: Iterable[str] = (), shared: bool = False,
           traps: bool = False, events: bool = False, pages: bool = False,
           trap_flags: dict[int, int] | None = None) -> bytes:
    """The image of a guest whose `main` runs once the console works, and which powers off when it returns.

    `shared` maps shared_info at `shared_page`, `traps` sets a handler for every vector that calls `trap_hook`
    (rdi -> frame) with its `trap_flags` (3: open to user mode, 4: masks events), `pages` links page-table
    helpers, `events` (which implies `traps`) sets the upcall, which calls `event_hook` (rdi = port). Events
    start out masked.
    """
    program = Program(
        text=[runtime.BOOT, runtime.CONSOLE, runtime.PRINT],
        data=[runtime.CONSOLE_DATA, *data],
        bss=[runtime.BOOT_BSS, *bss],
    )
    start = []
    if shared or traps or events:
        program.text.append(runtime.SHARED)
        program.bss.insert(0, runtime.SHARED_BSS)
        start.append("call map_shared")
    if pages:
        program.text.append(runtime.PAGES)
    if traps or events:
        program.text.extend((runtime.FRAMES, runtime.EVENTS, unexpected_trap(), runtime.trap_entries()))
        program.data.extend((runtime.HOOKS, runtime.trap_table(trap_flags or {3: 3, 4: 3})))
        start.append(hypercall("set_trap_table", "&trap_table"))
    if events:
        start.append(hypercall("set_segment_base", "SEGBASE_GS_KERNEL", "&vcpu_zero"))
        start.append(hypercall("set_callbacks", "&event_upcall", "&crash", "&crash"))
    program.text.extend(("guest_main:", *start, *main, "ret"))
    return program.image()


def text(value: str) -> str:
    """The bytes of a text, ended by zero."""
    return ".byte " + ", ".join(map(str, value.encode() + b"\0"))


def say(template: str) -> str:
    """Print a text in which `{operand:d}`, `{operand:x}` and `{operand:s}` are decimal, hex and a string."""
    parts = []
    at = 0
    for match in _FIELD.finditer(template):
        parts.append(_literal(template[at:match.start()]))
        parts.append(f"push {match[1]}\ncall {_PUT[match[2]]}")
        at = match.end()
    parts.append(_literal(template[at:]))
    return "\n".join(part for part in parts if part)


def line(template: str) -> str:
    """As `say`, and end the line."""
    return say(template + "\n")


def _literal(value: str) -> str:
    return f"call put_literal\n{text(value)}" if value else ""


def load(register: str, operand: str | int) -> str:
    """Put a number, an operand or the address `&label` into a 64-bit register."""
    if isinstance(operand, int):
        return f"mov {register}, {operand}" if operand else f"xor {register}, {register}"
    if operand.startswith("&"):
        return f"lea {register}, [rip + {operand[1:]}]"
    return "" if operand == register else f"mov {register}, {operand}"


def put(target: str, value: str | int, width: int = 8) -> str:
    """Store a number or an operand at a label (or label + offset), `width` bytes of it. Uses rax."""
    part = {1: "al", 2: "ax", 4: "eax", 8: "rax"}[width]
    return f"{load('rax', value)}\nmov [rip + {target}], {part}"


def get(source: str, width: int = 8) -> str:
    """Load rax from a label (or label + offset), zero-extended."""
    return {1: "movzx eax, byte ptr", 2: "movzx eax, word ptr", 4: "mov eax,", 8: "mov rax,"}[width] + \
        f" [rip + {source}]"


def number(name: str) -> int:
    """A hypercall's number. Raises KeyError for an unknown name."""
    value = names.value(f"__HYPERVISOR_{name}")
    if value is None:
        raise KeyError(name)
    return value


def hypercall(name: str, *arguments: str | int) -> str:
    """Call through the hypercall page: result in rax; rcx, r11 and the argument registers are lost."""
    loads = [load(register, value) for register, value in zip(ARGUMENTS, arguments, strict=False)]
    return "\n".join((*loads, f"call {HYPERCALL_PAGE + HYPERCALL_SLOT * number(name)}"))


def unexpected_trap() -> str:
    """The first trap hook: report the trap and crash."""
    vector, error, rip = (f"qword ptr [rbx + {runtime.frame(word)}]" for word in ("vector", "error", "rip"))
    report = line(f"unexpected trap {{{vector}:d}} error {{{error}:x}} at {{{rip}:x}}")
    return f"trap_unexpected:\nmov rbx, rdi\n{report}\njmp crash"
