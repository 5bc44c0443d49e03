"""The way in: what happens when a guest makes a system call or raises an exception.

A `syscall` from the guest's kernel half is a hypercall, from its user half a system call of its own, bounced
to the kernel's callback. Exceptions go to the guest's virtual IDT unless Xen has something to do about them
first. Events that became deliverable are delivered on the way out. Behaviour of Xen 4.17's x86_64/entry.S,
traps.c and pv/traps.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from firmware.abi import arch_x86, errno, xen
from firmware.domain.vcpu import DR6_DEFAULT, NO_TRAP, RECENT_CALLS, Trap, VCpu
from firmware.hypercalls import CONTINUE, LIMIT, Handler, HypercallError, HypercallTable
from firmware.memory.perdomain import LDT_OFFSET, PERDOMAIN_COMPAT_START, PERDOMAIN_START, VCPU_SHIFT
from firmware.traps.bounce import EFLAGS_DF, EFLAGS_TF, Bounce, BounceError
from firmware.traps.bounce32 import KERNEL_RING, Bounce32
from firmware.traps.emulated import EmulatedStores
from firmware.traps.privileged import Fault, Privileged
from firmware.traps.stores import PlainStores, Tables
from machine.core import Core
from machine.memory import MachineMemory
from machine.registers import (
    CR2,
    CS_FLAGS,
    CS_SELECTOR,
    DR6,
    DS,
    ES,
    FS,
    GS,
    R8,
    R9,
    R10,
    R11,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    RIP,
    RSI,
    RSP,
    SS_SELECTOR,
)

DIVIDE_ERROR, DEBUG, NMI, BREAKPOINT, OVERFLOW, BOUNDS, INVALID_OPCODE, NO_DEVICE, DOUBLE_FAULT = range(9)
INVALID_TSS, NO_SEGMENT, STACK_ERROR, PROTECTION, PAGE_FAULT = range(10, 15)
FPU_ERROR, ALIGNMENT, MACHINE_CHECK, SIMD_ERROR = range(16, 20)
"""Vectors (Intel SDM volume 3, table 6-1)."""
COMPAT_HYPERCALL: Final = 0x82
DIRECT_INT80: Final = 0x80
HAS_ERROR_CODE: Final = frozenset(
    (DOUBLE_FAULT, INVALID_TSS, NO_SEGMENT, STACK_ERROR, PROTECTION, PAGE_FAULT, ALIGNMENT)
)
GATES_OPEN_TO_USERS: Final = frozenset((BREAKPOINT, OVERFLOW, DIRECT_INT80))
"""Vectors whose real gate lets `int n` of ring 3 through (Xen's IDT)."""
ERROR_FROM_IDT: Final = 2
"""Error-code bit: the selector index names an IDT entry."""

PF_PRESENT: Final = 1
PF_WRITE: Final = 2
PF_USER: Final = 4
PF_INSTRUCTION: Final = 16

ARGUMENTS: Final = (RDI, RSI, RDX, R10, R8, R9)
ARGUMENTS_32: Final = (RBX, RCX, RDX, RSI, RDI, RBP)
"""Where a hypercall's arguments are (arch-x86/xen-x86_64.h, xen-x86_32.h)."""

WORD: Final = (1 << 64) - 1
WORD32: Final = (1 << 32) - 1
CODE_LONG: Final = 1 << 21
RESTART_NS: Final = 250_000
"""What a piece of a long hypercall costs in virtual time: others get their turn between the pieces."""
SYSENTER: Final = b"\x0f\x34"

VECTOR_NAMES: Final = {
    0: "#DE",
    1: "#DB",
    2: "NMI",
    3: "#BP",
    4: "#OF",
    5: "#BR",
    6: "#UD",
    7: "#NM",
    8: "#DF",
    10: "#TS",
    11: "#NP",
    12: "#SS",
    13: "#GP",
    14: "#PF",
    16: "#MF",
    17: "#AC",
    18: "#MC",
    19: "#XM",
}


class DirectWrites(Tables, Protocol):
    """The emulation of stores to page tables."""

    def begin(self, vcpu: VCpu, va: int, error: int) -> bool: ...
    def finish(self, vcpu: VCpu) -> bool: ...
    def cancel(self, vcpu: VCpu) -> None: ...


class DescriptorFaults(Protocol):
    """On-demand mapping of LDT pages."""

    def map_ldt_page(self, vcpu: VCpu, offset: int) -> bool: ...


class Ends(Protocol):
    """Who ends a domain that cannot go on."""

    def crash(self, vcpu: VCpu, reason: str) -> None: ...


class Traps:
    """System calls and exceptions of every vCPU."""

    def __init__(
        self,
        memory: MachineMemory,
        calls: HypercallTable,
        bounce: Bounce,
        bounce32: Bounce32,
        writes: DirectWrites,
        privileged: Privileged,
        descriptors: DescriptorFaults,
        ends: Ends,
    ) -> None:
        self._memory = memory
        self._bytes = memory.b
        self._calls = calls
        self._handlers = calls.handlers
        self._counts = calls.counts
        self._arity = [len(row.arguments) if row else 0 for row in calls.rows]
        self._bounce = bounce
        self._bounce32 = bounce32
        self._writes = writes
        self._stores = PlainStores(memory, writes)
        self._emulated = EmulatedStores()
        self._privileged = privileged
        self._descriptors = descriptors
        self._ends = ends
        self.exceptions = [0] * 256
        self.system_calls = 0
        self.upcalls = 0
        self._cr2_offset = {
            False: xen.vcpu_info.w64.offset["arch"] + arch_x86.arch_vcpu_info.w64.offset["cr2"],
            True: xen.vcpu_info.w32.offset["arch"] + arch_x86.arch_vcpu_info.w32.offset["cr2"],
        }
        self._first: list[Callable[[VCpu, Core, int], None] | None] = [None] * 256
        self._first[DEBUG] = self._debug
        self._first[INVALID_OPCODE] = self._invalid_opcode
        self._first[NO_DEVICE] = self._no_device
        self._first[PROTECTION] = self._protection
        self._first[PAGE_FAULT] = self._page_fault

    # --- system calls ---------------------------------------------------------------------------------------

    def syscall(self, core: Core) -> None:
        """`syscall` at CPL 3; RIP is behind it."""
        vcpu: Any = core.current
        try:
            if vcpu.storing:
                self._cancel_store(vcpu)
            if vcpu.pv32:
                self._undefined_syscall(vcpu, core)
            elif vcpu.in_kernel:
                self._hypercall(vcpu, core)
            else:
                self._system_call(vcpu, core)
            info = vcpu.info
            if (self._bytes[info] and not self._bytes[info + 1]) or vcpu.nmi_pending:
                self.deliver(vcpu, core)
        except BounceError as error:
            self._ends.crash(vcpu, str(error))

    def _hypercall(self, vcpu: VCpu, core: Core) -> None:
        q = core.q
        number = q[RAX]
        first = q[RDI]
        second = q[RSI]
        handler: Handler | None = None
        if number < LIMIT:
            handler = self._handlers[number]
            self._counts[number] += 1
        if handler is None:
            result = self._calls.absent(number)
        else:
            try:
                arity = self._arity[number]
                if arity == 4:
                    result = handler(vcpu, first, second, q[RDX], q[R10])
                elif arity == 2:
                    result = handler(vcpu, first, second)
                elif arity == 3:
                    result = handler(vcpu, first, second, q[RDX])
                elif arity == 1:
                    result = handler(vcpu, first)
                elif arity == 0:
                    result = handler(vcpu)
                else:
                    result = handler(vcpu, *(first, second, q[RDX], q[R10], q[R8], q[R9])[:arity])
            except HypercallError as error:
                result = -error.errno
        if result == CONTINUE:
            q[RIP] = q[RIP] - 2 & WORD
            core.charge(RESTART_NS)
            self._restart(vcpu, core, ARGUMENTS)
            return
        q[RAX] = result & WORD
        at = vcpu.recent_at
        vcpu.recent_calls[at] = (number, first, second, result)
        vcpu.recent_at = at + 1 if at + 1 < RECENT_CALLS else 0

    def _system_call(self, vcpu: VCpu, core: Core) -> None:
        self.system_calls += 1
        q = core.q
        d = core.d
        long_code = d[CS_FLAGS] & CODE_LONG
        address = vcpu.syscall_address if long_code else vcpu.syscall32_address or vcpu.syscall_address
        if not address:
            q[RIP] = q[RIP] - 2 & WORD
            self.inject(vcpu, core, INVALID_OPCODE, -1)
            return
        flags = q[R11]
        d[SS_SELECTOR] = arch_x86.FLAT_RING3_SS64
        d[CS_SELECTOR] = arch_x86.FLAT_RING3_CS64 if long_code else arch_x86.FLAT_RING3_CS32
        self._bounce.enter(vcpu, core, address, vcpu.syscall_masks)
        if flags & EFLAGS_DF:
            core.set_eflags(core.eflags() & ~EFLAGS_DF)

    def _undefined_syscall(self, vcpu: VCpu, core: Core) -> None:
        """`syscall` in 32-bit code: not an instruction of an Intel processor."""
        core.q[RIP] = core.q[RIP] - 2 & WORD32
        vcpu.in_kernel = core.d[CS_SELECTOR] & 3 == KERNEL_RING
        self.inject(vcpu, core, INVALID_OPCODE, -1)

    def _compat_hypercall(self, vcpu: VCpu, core: Core) -> None:
        q = core.q
        number = q[RAX] & WORD32
        arguments = (
            q[RBX] & WORD32,
            q[RCX] & WORD32,
            q[RDX] & WORD32,
            q[RSI] & WORD32,
            q[RDI] & WORD32,
            q[RBP] & WORD32,
        )
        result = self._compat_call(vcpu, number, arguments)
        if result == CONTINUE:
            q[RIP] = q[RIP] - 2 & WORD32
            core.charge(RESTART_NS)
            self._restart(vcpu, core, ARGUMENTS_32)
            return
        q[RAX] = result & WORD32
        at = vcpu.recent_at
        vcpu.recent_calls[at] = (number, arguments[0], arguments[1], result)
        vcpu.recent_at = (at + 1) % RECENT_CALLS

    @staticmethod
    def _restart(vcpu: VCpu, core: Core, registers: tuple[int, ...]) -> None:
        """The hypercall goes on later: its arguments are where it stopped."""
        arguments, vcpu.restarted = vcpu.restarted, None
        if arguments is not None:
            for register, value in zip(registers, arguments, strict=False):
                core.q[register] = value & WORD

    def _compat_call(self, vcpu: VCpu, number: int, arguments: tuple[int, ...]) -> int:
        if number < LIMIT and self._handlers[number] is not None:
            row = self._calls.rows[number]
            if row is not None and not row.pv32:
                return -errno.ENOSYS
        return self._calls.call(vcpu, number, arguments)

    # --- exceptions -----------------------------------------------------------------------------------------

    def exception(self, core: Core, vector: int, error: int, software: bool) -> None:
        """A fault, trap or `int n` of the guest."""
        vcpu: Any = core.current
        try:
            self.exceptions[vector] += 1
            if vcpu.pv32:
                # Its kernel is whatever runs in ring 1, and gets to ring 3 by a plain IRET too.
                vcpu.in_kernel = core.d[CS_SELECTOR] & 3 == KERNEL_RING
            if software:
                self._software(vcpu, core, vector)
            else:
                first = self._first[vector]
                if first is not None:
                    first(vcpu, core, error)
                else:
                    self.inject(vcpu, core, vector, error if vector in HAS_ERROR_CODE else -1)
            info = vcpu.info
            if (self._bytes[info] and not self._bytes[info + 1]) or vcpu.nmi_pending:
                self.deliver(vcpu, core)
        except BounceError as failure:
            self._ends.crash(vcpu, str(failure))

    def inject(self, vcpu: VCpu, core: Core, vector: int, error: int) -> None:
        """Deliver an exception through the guest's virtual IDT; `error` below 0: the vector has none."""
        if vcpu.storing:
            self._cancel_store(vcpu)
        trap: Trap = vcpu.traps[vector]
        if trap is NO_TRAP or not trap.address:
            raise BounceError(self._unhandled(core, vector, error))
        if vector == PAGE_FAULT:
            if vcpu.pv32:
                self._memory.store32(vcpu.info + self._cr2_offset[True], core.q[CR2] & WORD32)
            else:
                self._memory.store64(vcpu.info + self._cr2_offset[False], core.q[CR2])
            error = error & ~PF_USER if vcpu.in_kernel else error | PF_USER
        if vcpu.domain.pv32:
            self._bounce32.enter(vcpu, core, trap.cs, trap.address, trap.masks_events, error)
        else:
            self._bounce.enter(vcpu, core, trap.address, trap.masks_events, error)

    @staticmethod
    def _unhandled(core: Core, vector: int, error: int) -> str:
        name = VECTOR_NAMES.get(vector, f"vector {vector:#x}")
        at = f" at address {core.q[CR2]:#x}" if vector == PAGE_FAULT else ""
        code = f", error code {error:#x}" if error >= 0 else ""
        return f"it raised {name}{at}{code} and has no handler for it"

    def _cancel_store(self, vcpu: VCpu) -> None:
        vcpu.storing = False
        self._writes.cancel(vcpu)

    def _software(self, vcpu: VCpu, core: Core, vector: int) -> None:
        kernel = vcpu.in_kernel
        if vector == COMPAT_HYPERCALL and vcpu.domain.pv32 and kernel:
            self._compat_hypercall(vcpu, core)
            return
        trap = vcpu.traps[vector]
        open_gate = vector in GATES_OPEN_TO_USERS and (vector != DIRECT_INT80 or trap.address != 0)
        if open_gate or trap.dpl >= (1 if kernel else 3):
            self.inject(vcpu, core, vector, -1)
            return
        core.q[RIP] = core.q[RIP] - 2 & WORD
        self.inject(vcpu, core, PROTECTION, vector << 3 | ERROR_FROM_IDT)

    def _debug(self, vcpu: VCpu, core: Core, _error: int) -> None:
        if vcpu.storing:
            vcpu.storing = False
            if not self._writes.finish(vcpu):
                self.inject(vcpu, core, PAGE_FAULT, PF_PRESENT | PF_WRITE)
                return
            if not core.eflags() & EFLAGS_TF:
                return
        vcpu.debugreg[6] |= core.q[DR6]
        core.q[DR6] = DR6_DEFAULT
        self.inject(vcpu, core, DEBUG, -1)

    def _invalid_opcode(self, vcpu: VCpu, core: Core, _error: int) -> None:
        if not self._privileged.forced_cpuid(vcpu, core):
            self.inject(vcpu, core, INVALID_OPCODE, -1)

    def _no_device(self, vcpu: VCpu, core: Core, _error: int) -> None:
        core.set_cr0_ts(False)
        if vcpu.cr0_ts:
            vcpu.cr0_ts = False
            self.inject(vcpu, core, NO_DEVICE, -1)

    def _protection(self, vcpu: VCpu, core: Core, error: int) -> None:
        if not error:
            if not vcpu.in_kernel and self._sysenter(vcpu, core):
                return
            outcome = self._privileged.emulate(vcpu, core)
            if outcome is True:
                return
            if isinstance(outcome, Fault):
                self.inject(vcpu, core, outcome.vector, outcome.error)
                return
        self.inject(vcpu, core, PROTECTION, error)

    def _sysenter(self, vcpu: VCpu, core: Core) -> bool:
        q = core.q
        try:
            if vcpu.read_here(q[RIP], len(SYSENTER)) != SYSENTER:
                return False
        except HypercallError:
            return False
        if not vcpu.sysenter_address or vcpu.pv32:
            return False
        # The instruction saves neither RIP nor RSP: the frame says ring 3 and nothing more, as Xen's does.
        q[RIP] = 0
        q[RSP] = 0
        core.d[CS_SELECTOR] = 3
        core.d[SS_SELECTOR] = arch_x86.FLAT_RING3_SS64
        self._bounce.enter(vcpu, core, vcpu.sysenter_address, vcpu.sysenter_masks)
        return True

    def _page_fault(self, vcpu: VCpu, core: Core, error: int) -> None:
        address = core.q[CR2]
        if (
            vcpu.in_kernel
            and error & (PF_PRESENT | PF_WRITE) == PF_PRESENT | PF_WRITE
            and not error & PF_INSTRUCTION
        ):
            if not vcpu.storing and self._stores.carry_out(vcpu, core, address):
                return
            if (
                not vcpu.storing
                and self._writes.entry_behind(vcpu, address)
                and not self._emulated.allowed(vcpu, core, address)
            ):
                self.inject(vcpu, core, PAGE_FAULT, error)
                return
            vcpu.storing = self._writes.begin(vcpu, address, error)
            if vcpu.storing:
                return
        if not error & PF_USER and self._descriptor_fault(vcpu, core, address):
            return
        self.inject(vcpu, core, PAGE_FAULT, error)

    def _descriptor_fault(self, vcpu: VCpu, core: Core, address: int) -> bool:
        """The CPU itself read a descriptor from an LDT page that is not mapped yet. The guest sees its own
        LDT address.
        """
        start = PERDOMAIN_COMPAT_START if vcpu.domain.pv32 else PERDOMAIN_START
        offset = address - start - (vcpu.id << VCPU_SHIFT) - LDT_OFFSET
        if not 0 <= offset < LDT_OFFSET:
            return False
        if self._descriptors.map_ldt_page(vcpu, offset):
            return True
        core.q[CR2] = vcpu.ldt_base + offset & WORD
        return False

    # --- the way out ----------------------------------------------------------------------------------------

    def deliver(self, vcpu: VCpu, core: Core) -> None:
        """A pending NMI, else pending events that are not masked: enter the guest for them."""
        if vcpu.storing:
            return
        if vcpu.nmi_pending and not vcpu.nmi_masked:
            vcpu.nmi_pending = False
            if vcpu.traps[NMI].address:
                vcpu.nmi_masked = True
                self.inject(vcpu, core, NMI, -1)
                return
        info = vcpu.info
        if not self._bytes[info] or self._bytes[info + 1]:
            return
        self.upcalls += 1
        if vcpu.domain.pv32:
            self._bounce32.enter(vcpu, core, vcpu.event_cs, vcpu.event_address, True)
        else:
            self._bounce.enter(vcpu, core, vcpu.event_address, True)

    def dispatched(self, vcpu: VCpu, core: Core) -> None:
        """About to run this vCPU: deliver what came in the meantime."""
        info = vcpu.info
        try:
            if vcpu.failsafe_pending:
                vcpu.failsafe_pending = False
                self._failsafe(vcpu, core)
            if (self._bytes[info] and not self._bytes[info + 1]) or vcpu.nmi_pending:
                self.deliver(vcpu, core)
        except BounceError as error:
            self._ends.crash(vcpu, str(error))

    def _failsafe(self, vcpu: VCpu, core: Core) -> None:
        """The selectors are in the frame; the registers themselves become null."""
        if vcpu.domain.pv32:
            self._bounce32.enter(
                vcpu, core, vcpu.failsafe_cs, vcpu.failsafe_address, vcpu.failsafe_masks, failsafe=True
            )
        else:
            self._bounce.enter(vcpu, core, vcpu.failsafe_address, vcpu.failsafe_masks, failsafe=True)
        for register in (DS, ES, FS, GS):
            core.set_segment(register, 0, 0, 0, 0)

    def named_counts(self) -> dict[str, int]:
        """How often each kind of trap came, by name."""
        counts = {
            VECTOR_NAMES.get(vector, f"int {vector:#x}"): count
            for vector, count in enumerate(self.exceptions)
            if count
        }
        if self.system_calls:
            counts["syscall"] = self.system_calls
        if self.upcalls:
            counts["upcall"] = self.upcalls
        return counts
