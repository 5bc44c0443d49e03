"""The iret hypercall: how a guest kernel returns from a bounce frame, to itself or to its user half.

Sources: iret_context in arch-x86/xen-x86_64.h; the stack form of 32-bit guests in arch-x86/xen-x86_32.h
(HYPERVISOR_iret).
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from firmware.abi import arch_x86
from firmware.domain.vcpu import VCpu
from firmware.hypercalls import GuestFault, HypercallTable
from firmware.traps.bounce import (
    ARCHITECTURAL_IOPL,
    CODE64_FLAGS,
    EFLAGS_IF,
    EFLAGS_IOPL,
    EFLAGS_VM,
    FLAT_LIMIT,
    enter_user,
)
from firmware.traps.bounce32 import CLEARED_ON_ENTRY
from firmware.traps.segments import PROTECTION, Segments
from machine.core import Core
from machine.memory import MachineMemory
from machine.paging import canonical
from machine.registers import (
    CS,
    CS_FLAGS,
    CS_SELECTOR,
    R11,
    RAX,
    RCX,
    RIP,
    RSP,
    SS,
    SS_SELECTOR,
)

IN_SYSCALL: Final = arch_x86.VGCF_in_syscall
WORD32: Final = (1 << 32) - 1
_FRAME: Final = struct.Struct("<9Q")
_FRAME32: Final = struct.Struct("<6I")
_SHORT32: Final = struct.Struct("<4I")
_VM86_BYTES: Final = 40
"""EAX, EIP, CS, EFLAGS, ESP, SS and four data segments."""


class Ends(Protocol):
    """Who ends a domain that cannot go on."""

    def crash(self, vcpu: VCpu, reason: str) -> None: ...


class Faults(Protocol):
    """Who delivers the exception a refused return raises."""

    def inject(self, vcpu: VCpu, core: Core, vector: int, error: int) -> None: ...


class Iret:
    """The handler."""

    def __init__(self, memory: MachineMemory, segments: Segments, ends: Ends) -> None:
        self._memory = memory
        self._segments = segments
        self._ends = ends
        self.faults: Faults

    def register(self, table: HypercallTable) -> None:
        """Put iret into the table."""
        table.register("iret", self.iret)

    def iret(self, vcpu: VCpu) -> int:
        """Hypercall 23. Its result is the RAX of the context returned to."""
        if vcpu.domain.pv32:
            return self._iret32(vcpu)
        core = vcpu.core
        q = core.q
        try:
            rax, r11, rcx, frame_flags, rip, cs, flags, rsp, ss = _FRAME.unpack(
                vcpu.space.read(q[RSP], _FRAME.size)
            )
        except GuestFault:
            return self._crash(vcpu, "its iret frame cannot be read")
        if cs & 3 == 3:
            if not vcpu.user_root:
                return self._crash(vcpu, "it returned to user mode without user page tables")
            if vcpu.in_kernel:
                enter_user(vcpu, core)
        if vcpu.domain.vm_assist & ARCHITECTURAL_IOPL:
            vcpu.iopl = flags & EFLAGS_IOPL
            vcpu.close_ports()
        q[RIP] = rip
        q[RSP] = rsp
        core.set_eflags(flags & ~(EFLAGS_IOPL | EFLAGS_VM) | EFLAGS_IF)
        self._memory.store8(vcpu.info + 1, 0 if flags & EFLAGS_IF else 1)
        vcpu.nmi_masked = False
        d = core.d
        cs = cs & 0xFFFF | 3
        ss = ss & 0xFFFF | 3
        if not frame_flags & IN_SYSCALL:
            q[R11] = r11
            q[RCX] = rcx
        else:
            q[RCX] = rip
            q[R11] = core.eflags()
            if canonical(rip):
                cs = cs if cs == arch_x86.FLAT_RING3_CS32 else arch_x86.FLAT_RING3_CS64
                ss = arch_x86.FLAT_RING3_SS64
        if cs != arch_x86.FLAT_RING3_CS64 and self._segments.load_user(vcpu, core, cs, ss):
            return int(rax)
        if cs == arch_x86.FLAT_RING3_CS64:
            if d[CS_FLAGS] == CODE64_FLAGS:
                d[CS_SELECTOR] = cs
            else:
                core.set_cs(cs, 0, FLAT_LIMIT, CODE64_FLAGS)
        elif not self._segments.load(vcpu, core, CS, cs):
            d[CS_SELECTOR], d[SS_SELECTOR] = cs, ss
            return self._refuse(vcpu, core, rax, CS, cs)
        if ss == arch_x86.FLAT_RING3_SS64:
            d[SS_SELECTOR] = ss
        elif not self._segments.load(vcpu, core, SS, ss):
            d[SS_SELECTOR] = ss
            return self._refuse(vcpu, core, rax, SS, ss)
        return int(rax)

    def _refuse(self, vcpu: VCpu, core: Core, rax: int, register: int, selector: int) -> int:
        """The CPU would fault on the selector with the context already the guest's: so does the guest."""
        vector, error = self._segments.fault(vcpu, register, selector)
        return self._deliver(vcpu, core, rax, vector, error)

    def _deliver(self, vcpu: VCpu, core: Core, rax: int, vector: int, error: int) -> int:
        core.q[RAX] = rax
        self.faults.inject(vcpu, core, vector, error)
        return core.q[RAX]

    def _iret32(self, vcpu: VCpu) -> int:
        core = vcpu.core
        q = core.q
        esp = q[RSP] & WORD32
        try:
            eax, eip, cs, flags = _SHORT32.unpack(vcpu.space.read(esp, _SHORT32.size))
            ring = cs & 3
            if flags & EFLAGS_VM:
                return self._refuse_vm86(vcpu, core, esp, flags)
            if ring == 0:
                return self._crash(vcpu, "it returned to ring 0")
            outer = None
            if ring > 1:
                outer = _FRAME32.unpack(vcpu.space.read(esp, _FRAME32.size))
        except GuestFault:
            return self._crash(vcpu, "its iret frame cannot be read")
        if vcpu.domain.vm_assist & ARCHITECTURAL_IOPL:
            vcpu.iopl = flags & EFLAGS_IOPL
            vcpu.close_ports()
        q[RIP] = eip
        core.set_eflags(flags & ~(EFLAGS_IOPL | EFLAGS_VM) | EFLAGS_IF)
        self._memory.store8(vcpu.info + 1, 0 if flags & EFLAGS_IF else 1)
        vcpu.nmi_masked = False
        vcpu.in_kernel = ring == 1
        if outer is None:
            q[RSP] = esp + _SHORT32.size & WORD32
        else:
            q[RSP] = outer[4]
        cs &= 0xFFFF
        d = core.d
        ss = (d[SS_SELECTOR] if outer is None else outer[5]) & 0xFFFF
        if not self._segments.load(vcpu, core, CS, cs):
            d[CS_SELECTOR], d[SS_SELECTOR] = cs, ss
            return self._refuse(vcpu, core, eax, CS, cs)
        if outer is not None:
            if ss & 3 != ring or not self._segments.load(vcpu, core, SS, ss):
                d[SS_SELECTOR] = ss
                vector, error = (
                    (PROTECTION, ss & ~3) if ss & 3 != ring else self._segments.fault(vcpu, SS, ss)
                )
                return self._deliver(vcpu, core, eax, vector, error)
            self._segments.shed(vcpu, core, ring)
        return int(eax)

    def _refuse_vm86(self, vcpu: VCpu, core: Core, esp: int, flags: int) -> int:
        """There is no virtual-8086 mode: the frame moves to the kernel stack, and #GP finds it there."""
        q = core.q
        stack = vcpu.kernel_sp - _VM86_BYTES & WORD32
        trap = vcpu.traps[PROTECTION]
        try:
            frame = vcpu.space.read(esp + 4, _VM86_BYTES - 4)
            vcpu.space.write(stack, bytes(4) + frame)
        except GuestFault:
            return self._crash(vcpu, "its virtual-8086 frame cannot be moved")
        if not self._segments.load(vcpu, core, SS, vcpu.kernel_ss) or not self._segments.load(
            vcpu, core, CS, trap.cs
        ):
            return self._crash(vcpu, "it has no handler for the fault of its virtual-8086 mode")
        eax = q[RAX] = int.from_bytes(vcpu.space.read(esp, 4), "little")
        q[RSP] = stack
        q[RIP] = trap.address
        core.set_eflags(flags & ~(EFLAGS_IOPL | CLEARED_ON_ENTRY) | EFLAGS_IF)
        masked = trap.masks_events or not flags & EFLAGS_IF
        self._memory.store8(vcpu.info + 1, 1 if masked else 0)
        vcpu.nmi_masked = False
        vcpu.in_kernel = True
        return eax

    def _crash(self, vcpu: VCpu, reason: str) -> int:
        self._ends.crash(vcpu, reason)
        return 0
