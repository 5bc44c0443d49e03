"""The report of a crashed guest: what a person needs to see why, from the plain data of `CrashInfo`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Final

from firmware.abi import errno
from firmware.domain.crash import CrashInfo, RecentCall
from firmware.hypercalls import ROWS

Symbol = Callable[[int], "str | None"]
"""The name of a code address (`start_kernel+0x1f`), or None."""

COLUMNS: Final = 3
GENERAL: Final = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)
INSTRUCTIONS: Final = 3
"""How many instructions are shown, the faulting one first."""
STACK_WORDS: Final = 16
"""How many words of the stack are shown as they are."""
ENTRY: Final = "+0x0"
"""Where a function begins nothing returns to: such a word of the stack is a pointer to it."""
MAX_ERRNO: Final = 4095
"""Results from -4095 to -1 are error numbers."""


def no_symbols(address: int) -> str | None:
    """For images without a symbol table."""
    return None


def render(crash: CrashInfo, guest: str, symbol: Symbol = no_symbols) -> str:
    """The report, as lines without a final line feed."""
    mode = "kernel" if crash.in_kernel else "user"
    return "\n".join([
        f"guest {guest!r} crashed: {crash.reason}",
        f"  vCPU {crash.vcpu}, in {mode} mode, after {crash.virtual_ns / 1e9:.6f} s of virtual time",
        *_registers(crash),
        *_instructions(crash, symbol),
        *_stack(crash, symbol),
        *_hypercalls(crash.recent_calls),
    ])


def _registers(crash: CrashInfo) -> Iterator[str]:
    yield "registers"
    known = [name for name in GENERAL if name in crash.registers]
    rest = [name for name in crash.registers if name not in GENERAL]
    names = known + rest
    for row in range(0, len(names), COLUMNS):
        cells = (f"{name:>9} {crash.registers[name]:016x}" for name in names[row:row + COLUMNS])
        yield "".join(cells)


def _instructions(crash: CrashInfo, symbol: Symbol) -> Iterator[str]:
    import capstone

    rip = crash.registers.get("rip", 0)
    where = symbol(rip)
    yield f"instruction at {rip:#x}" + (f" ({where})" if where else "")
    if not crash.code:
        yield "  the guest's page tables have nothing there"
        return
    mode = capstone.CS_MODE_64 if crash.long_mode else capstone.CS_MODE_32
    lines = capstone.Cs(capstone.CS_ARCH_X86, mode).disasm_lite(crash.code, rip, INSTRUCTIONS)
    at = 0
    for address, size, name, operands in lines:
        mark = " " if at else ">"
        yield f"{mark} {address:016x}  {crash.code[at:at + size].hex(' '):<24}  {name} {operands}".rstrip()
        at += size
    if not at:
        yield f"> {rip:016x}  {crash.code.hex(' ')}  (no instruction)"


def _stack(crash: CrashInfo, symbol: Symbol) -> Iterator[str]:
    rsp = crash.registers.get("rsp", 0)
    width = 8 if crash.long_mode else 4
    yield f"stack at {rsp:#x}"
    if not crash.stack:
        yield "  the guest's page tables have nothing there"
        return
    per_row = 2 * COLUMNS - 2
    for row in range(0, min(len(crash.stack), STACK_WORDS), per_row):
        words = crash.stack[row:min(row + per_row, STACK_WORDS)]
        yield f"  +{row * width:03x}  " + " ".join(f"{word:0{2 * width}x}" for word in words)
    named = [
        (at, word, name) for at, word in enumerate(crash.stack)
        if (name := symbol(word)) and not name.endswith(ENTRY)
    ]
    if named:
        yield "stack trace (return addresses found on the stack, newest first)"
        for at, word, name in named:
            yield f"  +{at * width:03x}  {word:0{2 * width}x}  {name}"


def _hypercalls(calls: tuple[RecentCall, ...]) -> Iterator[str]:
    yield "last hypercalls, newest last" if calls else "no hypercall was made"
    names = {row.number: row for row in ROWS}
    for call, group in groupby(calls):
        row = names.get(call.number)
        name = row.name if row else f"hypercall {call.number}"
        count = len(row.arguments) if row else 2
        shown = [f"{value:#x}" for value in (call.first, call.second)[:count]]
        if count > len(shown):
            shown.append("...")
        times = sum(1 for _ in group)
        more = f" ({times} times)" if times > 1 else ""
        yield f"  {name}({', '.join(shown)}) {_result(call.result)}{more}"


def _result(value: int | None) -> str:
    if value is None:
        return "ended it"
    return "= " + _number(value)


def _number(value: int) -> str:
    return f"-{errno.name(-value)}" if -MAX_ERRNO <= value < 0 else f"{value:#x}"
