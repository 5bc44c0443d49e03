"""The stores Linux makes to its page tables, carried out at once: `xchg`, `mov`, `and` and `or`.

Any other instruction, and any store that would be refused, is left to the general way
(`firmware.memory.ptwr`), which needs two traps. Encodings: Intel SDM volume 2, chapter 2 and the
instructions' pages.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple, Protocol

from firmware.domain.vcpu import VCpu
from firmware.hypercalls import GuestFault
from machine.core import Core
from machine.memory import MachineMemory
from machine.registers import CS_FLAGS, DESC_L, FLAG_TF, FLAGS_ARITHMETIC, RIP

LONGEST: Final = 15
"""Bytes of the longest instruction."""
KNOWN: Final = 512
"""Instructions remembered; a guest that makes up more starts anew."""
WORD: Final = (1 << 64) - 1
PREFIX_DS, PREFIX_LOCK = 0x3E, 0xF0
NO_INDEX: Final = 4
"""A SIB byte's index that means none; REX.X makes it R12."""
ZERO_FLAG, SIGN_FLAG, PARITY_FLAG = 1 << 6, 1 << 7, 1 << 2
PARITY: Final = tuple(0 if value.bit_count() & 1 else PARITY_FLAG for value in range(256))


class Action(Enum):
    """What is done to the memory operand."""

    EXCHANGE = auto()
    MOVE = auto()
    AND = auto()
    OR = auto()


class Store(NamedTuple):
    """A decoded store: of a 64-bit register, or (AND, OR) of a byte. Registers are indices of a core's `q`;
    -1 is none.
    """

    action: Action
    length: int
    register: int
    immediate: int
    base: int
    offset: int
    scale: int
    displacement: int


REGISTER_FORMS: Final = {0x87: Action.EXCHANGE, 0x89: Action.MOVE}
"""Opcodes with a register and a memory operand of the operand size."""
BYTE_IMMEDIATE: Final = 0x80
BYTE_FORMS: Final = {1: Action.OR, 4: Action.AND}
"""Opcode 0x80's /digit."""


def decode(code: bytes) -> Store | None:
    """The 64-bit instruction that `code`, 15 bytes of it, begins with; None when it is not one of these."""
    at = 0
    locked = False
    while code[at] in (PREFIX_DS, PREFIX_LOCK) and at < 2:
        locked = locked or code[at] == PREFIX_LOCK
        at += 1
    rex = 0
    if code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    opcode, modrm = code[at], code[at + 1]
    action = REGISTER_FORMS.get(opcode) if rex & 8 else None
    if opcode == BYTE_IMMEDIATE:
        action = BYTE_FORMS.get(modrm >> 3 & 7)
    if action is None or (locked and action is Action.MOVE):
        return None
    at += 2
    mode, base = modrm >> 6, modrm & 7
    index, scale, displacement = -1, 0, 0
    if mode == 3 or (mode == 0 and base == 5):
        return None  # a register, or relative to RIP
    if base == 4:
        sib = code[at]
        at += 1
        base, index, scale = sib & 7, sib >> 3 & 7 | rex << 2 & 8, sib >> 6
        index = -1 if index == NO_INDEX else index
        if mode == 0 and base == 5:
            return None  # no base
    base |= rex << 3 & 8
    if mode:
        size = 1 if mode == 1 else 4
        displacement = int.from_bytes(code[at : at + size], "little", signed=True)
        at += size
    immediate = 0
    if opcode == BYTE_IMMEDIATE:
        immediate = code[at]
        at += 1
    return Store(action, at, modrm >> 3 & 7 | rex << 1 & 8, immediate, base, index, scale, displacement)


class Tables(Protocol):
    """Who knows the page tables that a guest sees read-only."""

    def entry_behind(self, vcpu: VCpu, va: int) -> int: ...
    def replace(self, vcpu: VCpu, at: int, entry: int) -> bool: ...


class PlainStores:
    """Carries them out."""

    __slots__ = ("_known", "_q", "_tables")

    def __init__(self, memory: MachineMemory, tables: Tables) -> None:
        self._q = memory.q
        self._tables = tables
        self._known: dict[bytes, Store | None] = {}

    def carry_out(self, vcpu: VCpu, core: Core, va: int) -> bool:
        """A store of the guest's kernel faulted at `va`: whether it has been done, and RIP is behind it."""
        q = core.q
        rip = q[RIP]
        flags = core.eflags()
        if not core.d[CS_FLAGS] & DESC_L or flags & FLAG_TF:
            return False
        try:
            code = vcpu.space.read(rip, LONGEST)
        except GuestFault:
            return False
        known = self._known
        if code in known:
            store = known[code]
        else:
            if len(known) >= KNOWN:
                known.clear()
            store = known[code] = decode(code)
        if store is None:
            return False
        action, length, register, immediate, base, index, scale, displacement = store
        address = q[base] + displacement
        if index >= 0:
            address += q[index] << scale
        byte = action is Action.AND or action is Action.OR
        if address & WORD != va or (va & 7 and not byte):
            return False
        at = self._tables.entry_behind(vcpu, va)
        if not at:
            return False
        old = self._q[at >> 3]
        if not byte:
            if not self._tables.replace(vcpu, at, q[register]):
                return False
            if action is Action.EXCHANGE:
                q[register] = old
        else:
            shift = (va & 7) << 3
            value = old >> shift & 0xFF
            result = value & immediate if action is Action.AND else value | immediate
            if not self._tables.replace(vcpu, at, old & ~(0xFF << shift) | result << shift):
                return False
            result_flags = PARITY[result] | result & SIGN_FLAG | (0 if result else ZERO_FLAG)
            core.set_eflags(flags & ~FLAGS_ARITHMETIC | result_flags)
        q[RIP] = rip + length & WORD
        return True
