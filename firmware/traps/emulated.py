"""Which stores to a page table Xen carries out for a guest (Xen: pv/ro-page-fault.c, its x86_emulate hooks).

An integer instruction whose operand is 1, 2, 4 or 8 bytes, naturally aligned, and begins where the fault is:
nothing of the FPU, MMX or SSE, and no 16 bytes. Everything else is left a page fault.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

from firmware.domain.vcpu import VCpu
from firmware.hypercalls import GuestFault
from machine.core import Core
from machine.registers import CS as CS_SEGMENT
from machine.registers import CS_FLAGS, DESC_L, DS, ES, FS, GS, R8, RAX, RIP, SEG_BASE, SS

LONGEST: Final = 15
"""Bytes of the longest instruction."""
KNOWN: Final = 512
"""Instructions remembered; a guest that makes up more starts anew."""
SIZES: Final = (1, 2, 4, 8)
WORD: Final = (1 << 64) - 1
WORD32: Final = (1 << 32) - 1
NO_REGISTER: Final = -1
VECTOR_REGISTERS: Final = ("xmm", "ymm", "zmm", "mm", "st")


class Form(NamedTuple):
    """Where an instruction stores: registers are indices of a core's `q`, or NO_REGISTER.

    `bits` is the register with a bit's number for BTS, BTR and BTC, which reach beyond their operand.
    """

    size: int
    base: int
    scaled: int
    scale: int
    displacement: int
    segment: int
    bits: int


REFUSED: Final = Form(0, NO_REGISTER, NO_REGISTER, 0, 0, DS, NO_REGISTER)
IMPLICIT: Final = Form(1, NO_REGISTER, NO_REGISTER, 0, 0, DS, NO_REGISTER)
"""The store is not an operand: a push, a call."""


@cache
def _registers() -> dict[str, int]:
    names = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
    numbers = {f"{width}{name}": RAX + at for at, name in enumerate(names) for width in ("r", "e", "")}
    return numbers | {f"r{at}{width}": R8 + at - 8 for at in range(8, 16) for width in ("", "d", "w")}


@cache
def _engine(bits: int) -> Any:
    import capstone

    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64 if bits == 64 else capstone.CS_MODE_32)
    engine.detail = True
    return engine


def decode(code: bytes, bits: int) -> Form:
    """What the first instruction of `code` stores to."""
    from capstone import CS_AC_WRITE, x86

    found = next(_engine(bits).disasm(code, 0, 1), None)
    if found is None or x86.X86_GRP_FPU in found.groups:
        return REFUSED
    for operand in found.operands:
        if operand.type == x86.X86_OP_REG and found.reg_name(operand.reg).startswith(VECTOR_REGISTERS):
            return REFUSED
    places = [operand for operand in found.operands if operand.type == x86.X86_OP_MEM]
    if not places:
        return IMPLICIT
    place = next((operand for operand in places if operand.access & CS_AC_WRITE), places[0])
    if place.size not in SIZES:
        return REFUSED
    segments = {x86.X86_REG_FS: FS, x86.X86_REG_GS: GS, x86.X86_REG_ES: ES, x86.X86_REG_SS: SS,
                x86.X86_REG_CS: CS_SEGMENT}
    displacement = place.mem.disp
    number = _registers().get
    base = place.mem.base
    if base == x86.X86_REG_RIP:
        base, displacement = 0, displacement + found.size
        base_register = RIP
    else:
        base_register = number(found.reg_name(base), NO_REGISTER) if base else NO_REGISTER
    index = place.mem.index
    bits_register = NO_REGISTER
    if found.id in (x86.X86_INS_BTS, x86.X86_INS_BTR, x86.X86_INS_BTC):
        bit = found.operands[1]
        if bit.type == x86.X86_OP_REG:
            bits_register = number(found.reg_name(bit.reg), NO_REGISTER)
    scaled = number(found.reg_name(index), NO_REGISTER) if index else NO_REGISTER
    return Form(place.size, base_register, scaled, place.mem.scale, displacement,
                segments.get(place.mem.segment, DS), bits_register)


class EmulatedStores:
    """Decides for the instruction at which a guest's kernel has faulted."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[int, bytes], Form] = {}

    def allowed(self, vcpu: VCpu, core: Core, va: int) -> bool:
        """Whether Xen carries out the store that faulted at `va`."""
        q = core.q
        long = bool(core.d[CS_FLAGS] & DESC_L)
        rip = q[RIP] if long else q[RIP] + q[SEG_BASE[CS_SEGMENT]] & WORD32
        try:
            code = vcpu.space.read(rip, LONGEST)
        except GuestFault:
            return True  # it ends before the page does: leave it to the processor
        key = (64 if long else 32, code)
        form = self._known.get(key)
        if form is None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            form = self._known[key] = decode(code, key[0])
        if form is REFUSED:
            return False
        if form is IMPLICIT:
            return True
        address = form.displacement
        if form.base >= 0:
            address += q[form.base]
        if form.scaled >= 0:
            address += q[form.scaled] * form.scale
        if form.bits >= 0:
            width = form.size * 8
            number = q[form.bits] & (1 << width) - 1
            number -= (number >> width - 1) << width
            address += (number >> width.bit_length() - 1) * form.size
        if not long or form.segment in (FS, GS):
            address += q[SEG_BASE[form.segment]]
        return address & (WORD if long else WORD32) == va and not va & form.size - 1
