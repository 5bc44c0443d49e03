"""Privileged instructions that Xen carries out for a PV guest when they raise #GP.

Which ones, with what checks and effects: `pv_emulate_privileged_op` in Xen 4.17 (arch/x86/pv/emul-priv-op.c).
All others (hlt, invlpg, lgdt, lmsw, swapgs, invd...) stay the #GP they are. Decoding is capstone's, once for
each sequence of bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from firmware.abi import xen
from firmware.abi.errno import ERESTART
from firmware.hypercalls import GuestFault
from firmware.traps import msr
from firmware.traps.cpuid import CpuidPolicy
from firmware.traps.instruction import NO_PORT, PORT_IN_DX, Decoder, Instruction, Operation
from firmware.traps.ports import Ports
from machine.core import Core
from machine.registers import (
    CR0,
    CR0_TS,
    CR2,
    CR4,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    CR4_TSD,
    CS_BASE,
    CS_FLAGS,
    DESC_B,
    DESC_L,
    FLAG_DF,
    FLAG_TF,
    FS,
    GS,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    RIP,
    RSI,
    SEG_BASE,
    TSC_AUX,
    VECTOR_DB,
    VECTOR_GP,
    VECTOR_PF,
)

if TYPE_CHECKING:
    from firmware.memory.guest import GuestSpace

WORD: Final = (1 << 64) - 1
WORD32: Final = (1 << 32) - 1
LONGEST: Final = 15
"""Bytes of the longest instruction (Intel SDM volume 2, 2.3.11)."""
PAGE: Final = 4096
REMEMBERED: Final = 1024
"""Decoded instructions kept."""
BURST: Final = 1024
"""Elements of one `rep ins` or `rep outs` done at a time; then events get their chance."""
ELEMENT_NS: Final = 200
"""What each costs in virtual time, so that others get their turn."""

FORCED_PREFIX: Final = b"\x0f\x0bxen"
CPUID: Final = b"\x0f\xa2"

CR4_DE: Final = 1 << 3
CR4_MCE: Final = 1 << 6
CR4_CHOICE: Final = CR4_TSD | CR4_DE
"""Bits of CR4 that are the guest's own (PV_CR4_GUEST_MASK, less what this processor lacks)."""
CR4_SHOWN: Final = CR4_PAE | CR4_MCE | CR4_OSFXSR | CR4_OSXMMEXCPT
"""Bits of Xen's CR4 the guest reads (PV_CR4_GUEST_VISIBLE_MASK)."""
DR6_RESERVED: Final = 0xFFFF_0FF0
DR6_STEP: Final = 1 << 14
_WIDTHS: Final = (1, 2, 8, 4)
"""Bytes a breakpoint covers, by its LEN field in DR7 (Intel SDM volume 3, 17.2.4)."""
_ARCHITECTURAL_IOPL: Final = 1 << xen.VMASST_TYPE_architectural_iopl
_IOPL_SHIFT: Final = 12
_NO_ERROR: Final = -1
_CPL_USER: Final = 3
_WRITE_ACCESS: Final = 2
"""The error code of a page fault on a store."""


class Fault(NamedTuple):
    """The exception to raise instead, RIP where it belongs; `error` below 0: the vector has no error code."""

    vector: int
    error: int


DONE: Final = True
"""The instruction has been carried out and RIP is behind it."""
UNHANDLED: Final = False
"""Not one of those: the guest gets the #GP it raised."""
AGAIN: Final = None
"""It is not finished: RIP is still at it, and it is to run again."""
AGAIN_NS: Final = 250_000
"""What a part of such an instruction costs in virtual time."""
Outcome = Fault | bool | None

PROTECTION: Final = Fault(VECTOR_GP, 0)


class Domain(msr.Domain, Protocol):
    """What the emulation asks of a domain."""

    @property
    def id(self) -> int:
        """Its number."""

    @property
    def vm_assist(self) -> int:
        """The assists it enabled, a bit each (VMASST_TYPE_*)."""


class VCpu(msr.VCpu, Protocol):
    """What the emulation asks of a vCPU, and what it sets."""

    cr4: int
    in_kernel: bool
    cr0_ts: bool
    debugreg: list[int]
    dr7_emul: int
    iopl: int

    @property
    def domain(self) -> Domain:
        """The domain it belongs to."""

    @property
    def space(self) -> GuestSpace:
        """Its kernel's address space."""

    def read_here(self, address: int, length: int) -> bytes:
        """Bytes as the mode it is in (kernel or user) sees them; GuestFault."""


class DebugRegisters(Protocol):
    """The checks on debug registers, shared with the hypercalls; negative results are errors."""

    def set_debugreg(self, vcpu: Any, number: int, value: int) -> int:
        """Set one; 0 or a negative errno."""

    def get_debugreg(self, vcpu: Any, number: int) -> int:
        """Read one, or a negative errno."""


LoadRoot = Callable[[Any, int], int]
"""Makes a machine frame the vCPU's page-table root: 0, or a negative errno and nothing has changed."""

_Handler = Callable[[Any, Core, Instruction], Outcome]


class Privileged:
    """The emulation, for all vCPUs of a machine."""

    def __init__(self, policies: dict[bool, CpuidPolicy], debug: DebugRegisters, load_root: LoadRoot) -> None:
        self._policies = policies
        self._debug = debug
        self._load_root = load_root
        self._known: dict[bytes, tuple[_Handler, Instruction] | None] = {}
        self._decoders: dict[int, Decoder] = {}
        self.ports = Ports()
        self._run: dict[Operation, _Handler] = {
            Operation.CLEAR_TS: self._clear_ts,
            Operation.WRITE_BACK: self._write_back,
            Operation.READ_CONTROL: self._read_control,
            Operation.WRITE_CONTROL: self._write_control,
            Operation.READ_DEBUG: self._read_debug,
            Operation.WRITE_DEBUG: self._write_debug,
            Operation.READ_MSR: self._read_msr,
            Operation.WRITE_MSR: self._write_msr,
            Operation.READ_TSC: self._read_tsc,
            Operation.READ_TSC_AND_PROCESSOR: self._read_tsc_and_processor,
            Operation.IDENTIFY: self._identify,
            Operation.INTERRUPT_FLAG: self._interrupt_flag,
            Operation.READ_PORT: self._read_port,
            Operation.WRITE_PORT: self._write_port,
            Operation.READ_STRING: self._read_string,
            Operation.WRITE_STRING: self._write_string,
        }

    def emulate(self, vcpu: VCpu, core: Core) -> Outcome:
        """The instruction at RIP has raised #GP(0)."""
        found = self._decode(vcpu, core)
        if found is None:
            return UNHANDLED
        run, instruction = found
        outcome = run(vcpu, core, instruction)
        if outcome is not DONE:
            return DONE if outcome is AGAIN else outcome
        if not instruction.repeated:
            self._advance(core, instruction.length)
        matched = 0
        if instruction.port != NO_PORT:
            if vcpu.dr7_emul:
                matched = self._breakpoints(vcpu, core, instruction)
            elif vcpu.in_kernel:
                core.open_ports(True)
        if core.eflags() & FLAG_TF:
            matched |= DR6_STEP
        if matched:
            vcpu.debugreg[6] |= matched | DR6_RESERVED
            return Fault(VECTOR_DB, _NO_ERROR)
        return DONE

    def forced_cpuid(self, vcpu: VCpu, core: Core) -> bool:
        """The instruction at RIP has raised #UD: carry it out if it is `ud2`, "xen", `cpuid`."""
        q = core.q
        try:
            if vcpu.read_here(q[CS_BASE] + q[RIP] & WORD, 7) != FORCED_PREFIX + CPUID:
                return False
        except GuestFault:
            return False
        self.cpuid(vcpu, core)
        self._advance(core, 7)
        return True

    def cpuid(self, vcpu: VCpu, core: Core) -> None:
        """Fill EAX to EDX as `cpuid` does; RIP is the caller's business."""
        q = core.q
        policy = self._policies[vcpu.domain.pv32]
        q[RAX], q[RBX], q[RCX], q[RDX] = policy.leaf(vcpu.id, q[RAX], q[RCX], core.cpuid)

    # --- decoding ------------------------------------------------------------------------------------------

    def _decode(self, vcpu: VCpu, core: Core) -> tuple[_Handler, Instruction] | None:
        bits = _code_bits(core)
        q = core.q
        address = q[CS_BASE] + q[RIP] & WORD
        try:
            code = vcpu.read_here(address, LONGEST)
        except GuestFault:
            rest = PAGE - (address & PAGE - 1)
            if rest >= LONGEST:
                return None
            try:
                code = vcpu.read_here(address, rest)
            except GuestFault:
                return None
        key = code + _BITS_KEY[bits]
        if key in self._known:
            return self._known[key]
        decoder = self._decoders.get(bits)
        if decoder is None:
            decoder = self._decoders[bits] = Decoder(bits)
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        instruction = decoder.decode(code)
        found = None if instruction is None else (self._run[instruction.operation], instruction)
        self._known[key] = found
        return found

    @staticmethod
    def _advance(core: Core, length: int) -> None:
        long = core.d[CS_FLAGS] & DESC_L
        core.q[RIP] = core.q[RIP] + length & (WORD if long else WORD32)

    # --- registers -----------------------------------------------------------------------------------------

    def _clear_ts(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`clts`."""
        if not vcpu.in_kernel:
            return PROTECTION
        _task_switched(vcpu, core, False)
        return DONE

    def _write_back(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`wbinvd`: nothing, for a guest without devices."""
        return DONE if vcpu.in_kernel else PROTECTION

    def _read_control(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`mov reg, crN`."""
        if not vcpu.in_kernel:
            return PROTECTION
        number = instruction.special
        if number == 0:
            value = core.q[CR0] & ~CR0_TS | (CR0_TS if vcpu.cr0_ts else 0)
        elif number == 2:
            value = core.q[CR2]
        elif number == 3:
            frame = vcpu.space.root >> 12
            value = (frame << 12 | frame >> 20) & WORD32 if vcpu.domain.pv32 else frame << 12
        elif number == 4:
            value = vcpu.cr4 & CR4_CHOICE | CR4_SHOWN
        else:
            return UNHANDLED
        core.q[instruction.register] = value
        return DONE

    def _write_control(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`mov crN, reg`."""
        if not vcpu.in_kernel:
            return PROTECTION
        number = instruction.special
        value = core.q[instruction.register] & (WORD32 if vcpu.domain.pv32 else WORD)
        if number == 0:
            if (value ^ core.q[CR0]) & ~CR0_TS & WORD:
                return UNHANDLED
            _task_switched(vcpu, core, value & CR0_TS != 0)
        elif number == 2:
            core.q[CR2] = value
        elif number == 3:
            frame = (value >> 12 | value << 20) & WORD32 if vcpu.domain.pv32 else (value & ~0xFFF) >> 12
            result = self._load_root(vcpu, frame)
            if result == -ERESTART:
                core.charge(AGAIN_NS)
                return AGAIN
            if result:
                return UNHANDLED
        elif number == 4:
            vcpu.cr4 = value & CR4_CHOICE
            core.q[CR4] = core.q[CR4] & ~CR4_TSD | value & CR4_TSD
        else:
            return UNHANDLED
        return DONE

    def _read_debug(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`mov reg, drN`."""
        if not vcpu.in_kernel:
            return PROTECTION
        value = self._debug.get_debugreg(vcpu, instruction.special)
        if value < 0:
            return UNHANDLED
        core.q[instruction.register] = value
        return DONE

    def _write_debug(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`mov drN, reg`."""
        if not vcpu.in_kernel:
            return PROTECTION
        value = core.q[instruction.register] & (WORD32 if vcpu.domain.pv32 else WORD)
        return DONE if self._debug.set_debugreg(vcpu, instruction.special, value) == 0 else UNHANDLED

    def _read_msr(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`rdmsr`."""
        q = core.q
        value = msr.read(vcpu, core, q[RCX] & WORD32) if vcpu.in_kernel else None
        if value is None:
            return PROTECTION
        q[RAX] = value & WORD32
        q[RDX] = value >> 32
        return DONE

    def _write_msr(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`wrmsr`."""
        q = core.q
        value = q[RDX] << 32 & WORD | q[RAX] & WORD32
        return DONE if vcpu.in_kernel and msr.write(vcpu, core, q[RCX] & WORD32, value) else PROTECTION

    def _read_tsc(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`rdtsc` with CR4.TSD set: the kernel half may, the user half may not."""
        if not vcpu.in_kernel:
            return PROTECTION
        now = core.now()
        core.q[RAX] = now & WORD32
        core.q[RDX] = now >> 32 & WORD32
        return DONE

    def _read_tsc_and_processor(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`rdtscp`, likewise."""
        outcome = self._read_tsc(vcpu, core, instruction)
        if outcome is DONE:
            core.q[RCX] = core.q[TSC_AUX] & WORD32
        return outcome

    def _identify(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`cpuid`, should it ever raise #GP."""
        self.cpuid(vcpu, core)
        return DONE

    def _interrupt_flag(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`cli` and `sti`: no effect for whom IOPL allows them; events have a mask of their own."""
        return DONE if _privileged_level(vcpu) else UNHANDLED

    # --- ports ---------------------------------------------------------------------------------------------

    def _read_port(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`in`: see `Ports`."""
        if not _privileged_level(vcpu):
            return UNHANDLED
        q, size = core.q, instruction.size
        port = _port(core, instruction)
        value = self.ports.read(vcpu.domain.id, port, size)
        if size == 4:
            q[RAX] = value
        else:
            mask = (1 << 8 * size) - 1
            q[RAX] = q[RAX] & ~mask | value
        return DONE

    def _write_port(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`out`: see `Ports`."""
        if not _privileged_level(vcpu):
            return UNHANDLED
        size = instruction.size
        self.ports.write(vcpu.domain.id, _port(core, instruction), size, core.q[RAX] & (1 << 8 * size) - 1)
        return DONE

    def _read_string(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`ins`, repeated or not."""
        port, size = core.q[RDX] & 0xFFFF, instruction.size

        def move(address: int) -> None:
            vcpu.space.write(address, self.ports.read(vcpu.domain.id, port, size).to_bytes(size, "little"))

        return self._string(vcpu, core, instruction, RDI, move)

    def _write_string(self, vcpu: VCpu, core: Core, instruction: Instruction) -> Outcome:
        """`outs`, repeated or not."""
        port, size = core.q[RDX] & 0xFFFF, instruction.size

        def move(address: int) -> None:
            value = int.from_bytes(vcpu.read_here(address, size), "little")
            self.ports.write(vcpu.domain.id, port, size, value)

        return self._string(vcpu, core, instruction, RSI, move)

    def _string(self, vcpu: VCpu, core: Core, instruction: Instruction, pointer: int,
                move: Callable[[int], None]) -> Outcome:
        if not _privileged_level(vcpu) or not vcpu.in_kernel:
            return UNHANDLED
        q, mask = core.q, (1 << 8 * instruction.address_size) - 1
        left = q[RCX] & mask if instruction.repeated else 1
        step = -instruction.size if core.eflags() & FLAG_DF else instruction.size
        long = _code_bits(core) == LONG
        base = q[SEG_BASE[instruction.segment]] if not long or instruction.segment in (FS, GS) else 0
        for _ in range(min(left, BURST)):
            core.charge(ELEMENT_NS)
            address = base + (q[pointer] & mask) & (WORD if long else WORD32)
            try:
                move(address)
            except GuestFault as fault:
                q[CR2] = fault.address or address
                return Fault(VECTOR_PF, _WRITE_ACCESS if pointer == RDI else 0)
            q[pointer] = _replace(q[pointer], q[pointer] + step, instruction.address_size)
            if instruction.repeated:
                left -= 1
                q[RCX] = _replace(q[RCX], left, instruction.address_size)
        if instruction.repeated and not left:
            self._advance(core, instruction.length)
        return DONE

    def _breakpoints(self, vcpu: VCpu, core: Core, instruction: Instruction) -> int:
        """Bits of DR6 for the I/O breakpoints an access to a port meets (check_guest_io_breakpoint)."""
        if not vcpu.cr4 & CR4_DE:
            return 0
        port, matched = _port(core, instruction), 0
        for index in range(4):
            if vcpu.dr7_emul >> 2 * index & 3:
                width = _WIDTHS[vcpu.debugreg[7] >> 18 + 4 * index & 3]
                start = vcpu.debugreg[index] & ~(width - 1)
                if start < port + instruction.size and start + width > port:
                    matched |= 1 << index
        return matched


LONG: Final = 64
"""Bits of 64-bit code."""
_BITS_KEY: Final = {bits: bytes((bits,)) for bits in (16, 32, LONG)}


def _code_bits(core: Core) -> int:
    flags = core.d[CS_FLAGS]
    return LONG if flags & DESC_L else 32 if flags & DESC_B else 16


def _port(core: Core, instruction: Instruction) -> int:
    return core.q[RDX] & 0xFFFF if instruction.port == PORT_IN_DX else instruction.port


def _replace(register: int, value: int, size: int) -> int:
    """`value` in the low `size` bytes of a register; as in the processor, 4 bytes clear the upper half."""
    if size >= 4:
        return value & (1 << 8 * size) - 1
    return register & ~0xFFFF | value & 0xFFFF


def _task_switched(vcpu: VCpu, core: Core, on: bool) -> None:
    vcpu.cr0_ts = on
    core.set_cr0_ts(on)


def _privileged_level(vcpu: VCpu) -> bool:
    """Whether IOPL allows what needs it; a guest's kernel counts as ring 1, with architectural_iopl as ring
    0.
    """
    if not vcpu.in_kernel:
        level = _CPL_USER
    else:
        level = 0 if vcpu.domain.vm_assist & _ARCHITECTURAL_IOPL else 1
    return level << _IOPL_SHIFT <= vcpu.iopl
