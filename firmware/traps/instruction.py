"""Privileged instructions, decoded: which one it is, how long, and its operands as numbers.

Only what Xen 4.17 carries out for a PV guest is decoded (`validate` in arch/x86/pv/emul-priv-op.c).
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Final, NamedTuple

from machine.registers import CS, DS, ES, FS, GS, R8, RAX, SS

PORT_IN_DX: Final = -2
NO_PORT: Final = -1
_REPEATS: Final = (0xF2, 0xF3)


class Operation(Enum):
    """What an instruction does."""

    CLEAR_TS = auto()
    WRITE_BACK = auto()
    READ_CONTROL = auto()
    WRITE_CONTROL = auto()
    READ_DEBUG = auto()
    WRITE_DEBUG = auto()
    READ_MSR = auto()
    WRITE_MSR = auto()
    READ_TSC = auto()
    READ_TSC_AND_PROCESSOR = auto()
    IDENTIFY = auto()
    INTERRUPT_FLAG = auto()
    READ_PORT = auto()
    WRITE_PORT = auto()
    READ_STRING = auto()
    WRITE_STRING = auto()


class Instruction(NamedTuple):
    """One instruction.

    `size` and `address_size` are bytes, `register` an index into a core's registers, `special` the number of
    a control or debug register, `port` a number, PORT_IN_DX or NO_PORT, `segment` an index of
    machine.registers.
    """

    operation: Operation
    length: int
    size: int = 0
    register: int = 0
    special: int = 0
    port: int = NO_PORT
    repeated: bool = False
    segment: int = DS
    address_size: int = 8


class Decoder:
    """Instructions of one code size: 16, 32 or 64 bits."""

    def __init__(self, bits: int) -> None:
        import capstone
        from capstone import x86

        modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
        self._engine = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
        self._engine.detail = True
        self._x86 = x86
        self._segments = {x86.X86_REG_ES: ES, x86.X86_REG_CS: CS, x86.X86_REG_SS: SS, x86.X86_REG_FS: FS,
                          x86.X86_REG_GS: GS}
        names = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
        self._registers = {f"{width}{name}": RAX + at for at, name in enumerate(names) for width in "er"}
        self._registers |= {f"r{number}": R8 + number - 8 for number in range(8, 16)}
        self._plain = {
            x86.X86_INS_CLTS: Operation.CLEAR_TS,
            x86.X86_INS_WBINVD: Operation.WRITE_BACK,
            x86.X86_INS_RDMSR: Operation.READ_MSR,
            x86.X86_INS_WRMSR: Operation.WRITE_MSR,
            x86.X86_INS_RDTSC: Operation.READ_TSC,
            x86.X86_INS_RDTSCP: Operation.READ_TSC_AND_PROCESSOR,
            x86.X86_INS_CPUID: Operation.IDENTIFY,
            x86.X86_INS_CLI: Operation.INTERRUPT_FLAG,
            x86.X86_INS_STI: Operation.INTERRUPT_FLAG,
        }
        self._special = {
            **{f"cr{number}": (Operation.READ_CONTROL, Operation.WRITE_CONTROL, number) for number in
            range(16)}, **{f"dr{number}": (Operation.READ_DEBUG, Operation.WRITE_DEBUG, number) for number in
            range(16)},
        }
        self._strings = {
            x86.X86_INS_INSB: (Operation.READ_STRING, 1), x86.X86_INS_INSW: (Operation.READ_STRING, 2),
            x86.X86_INS_INSD: (Operation.READ_STRING, 4), x86.X86_INS_OUTSB: (Operation.WRITE_STRING, 1),
            x86.X86_INS_OUTSW: (Operation.WRITE_STRING, 2), x86.X86_INS_OUTSD: (Operation.WRITE_STRING, 4),
        }

    def decode(self, code: bytes) -> Instruction | None:
        """The first instruction of `code`; None when it is none, or none that Xen carries out."""
        found = next(self._engine.disasm(code, 0, 1), None)
        if found is None:
            return None
        plain = self._plain.get(found.id)
        if plain is not None:
            return Instruction(plain, found.size)
        if found.id in self._strings:
            return self._string(found)
        match found.id:
            case self._x86.X86_INS_IN:
                return self._port(found, Operation.READ_PORT, port=1, value=0)
            case self._x86.X86_INS_OUT:
                return self._port(found, Operation.WRITE_PORT, port=0, value=1)
            case self._x86.X86_INS_MOV:
                return self._move(found)
            case _:
                return None

    def _move(self, found: Any) -> Instruction | None:
        target, source = (found.reg_name(operand.reg) if operand.type == self._x86.X86_OP_REG else ""
                          for operand in found.operands)
        if source in self._special:
            read, _, number = self._special[source]
            return Instruction(read, found.size, register=self._registers[target], special=number)
        if target in self._special:
            _, write, number = self._special[target]
            return Instruction(write, found.size, register=self._registers[source], special=number)
        return None

    def _port(self, found: Any, operation: Operation, *, port: int, value: int) -> Instruction:
        place = found.operands[port]
        number = place.imm & 0xFF if place.type == self._x86.X86_OP_IMM else PORT_IN_DX
        return Instruction(operation, found.size, size=found.operands[value].size, port=number)

    def _string(self, found: Any) -> Instruction:
        operation, size = self._strings[found.id]
        memory = next(operand for operand in found.operands if operand.type == self._x86.X86_OP_MEM)
        return Instruction(operation, found.size, size=size, port=PORT_IN_DX, repeated=found.prefix[0] in
        _REPEATS,
                           segment=self._segments.get(memory.mem.segment, DS), address_size=found.addr_size)
