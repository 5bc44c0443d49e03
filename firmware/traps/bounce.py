"""Bounce frames: how a 64-bit guest kernel is entered for an exception, an event, a system call or an NMI.

The frame is the hardware's (RIP, CS, RFLAGS, RSP, SS) with RCX and R11 below it, the error code between where
the vector has one, and for the failsafe callback the data segment selectors at the bottom. Bits 32 to 39 of
the CS word are the upcall mask from before. Source: xen.h and arch-x86/xen.h (iret_context, trap_info),
behaviour of create_bounce_frame.
"""

from __future__ import annotations

import struct
from typing import Final

from firmware.abi import arch_x86, xen
from firmware.abi.arch_x86 import FLAT_RING3_CS64, FLAT_RING3_SS64
from firmware.domain.vcpu import VCpu
from firmware.hypercalls import GuestFault
from machine.core import Core
from machine.memory import MachineMemory
from machine.registers import (
    CS_FLAGS,
    CS_SELECTOR,
    DS_SELECTOR,
    ES_SELECTOR,
    FS_SELECTOR,
    GS_BASE,
    GS_SELECTOR,
    R11,
    RCX,
    RIP,
    RSP,
    SS_SELECTOR,
)

EFLAGS_TF: Final = 1 << 8
EFLAGS_IF: Final = 1 << 9
EFLAGS_DF: Final = 1 << 10
EFLAGS_IOPL: Final = 3 << 12
EFLAGS_NT: Final = 1 << 14
EFLAGS_RF: Final = 1 << 16
EFLAGS_VM: Final = 1 << 17
EFLAGS_AC: Final = 1 << 18
CLEARED_ON_ENTRY: Final = EFLAGS_TF | EFLAGS_NT | EFLAGS_RF | EFLAGS_VM | EFLAGS_AC
"""Flags an interrupt gate clears (Intel SDM volume 3, 6.12.1), and AC so that a user's cannot reach the
kernel.
"""

ARCHITECTURAL_IOPL: Final = 1 << xen.VMASST_TYPE_architectural_iopl
"""vm_assist bit: the guest sees its own I/O privilege level in EFLAGS."""

WORD: Final = (1 << 64) - 1
CODE64_FLAGS: Final = 0x00A0_FB00
"""Descriptor bits of a present, readable, accessed 64-bit code segment of DPL 3 (G, L), as a segment cache
holds them.
"""
FLAT_LIMIT: Final = 0xFFFF_FFFF

FIRST_BAD_STACK: Final = arch_x86.HYPERVISOR_VIRT_START + 1
LAST_BAD_STACK: Final = arch_x86.HYPERVISOR_VIRT_END + 12 * 8
"""A frame must not reach into Xen's part of the address space."""

_PLAIN: Final = struct.Struct("<7Q")
_WITH_ERROR: Final = struct.Struct("<8Q")
_FAILSAFE: Final = struct.Struct("<11Q")


class BounceError(Exception):
    """The guest cannot be entered: its stack or its handler is no good. The domain crashes."""


class Bounce:
    """Builds bounce frames."""

    __slots__ = ("_bytes", "_memory")

    def __init__(self, memory: MachineMemory) -> None:
        self._memory = memory
        self._bytes = memory.b

    def enter(self, vcpu: VCpu, core: Core, address: int, masks_events: bool, error: int = -1,
              failsafe: bool = False) -> None:
        """Enter the guest kernel at `address`; `error` below 0 pushes none. BounceError when that is
        impossible.
        """
        q = core.q
        d = core.d
        info = vcpu.info
        mask = self._bytes[info + 1]
        flags = core.eflags()
        cs = d[CS_SELECTOR] & 0xFFFF
        rsp = q[RSP]
        if vcpu.in_kernel:
            cs &= ~3
            stack = rsp if failsafe else rsp & ~0xF
        else:
            enter_kernel(vcpu, core)
            stack = vcpu.kernel_sp if failsafe else vcpu.kernel_sp & ~0xF
        if FIRST_BAD_STACK <= stack < LAST_BAD_STACK:
            raise BounceError(f"its stack pointer {stack:#x} is in the hypervisor's address range")
        if not address:
            raise BounceError("it has no handler")
        pushed = flags & ~(EFLAGS_IF | EFLAGS_IOPL) | (0 if mask else EFLAGS_IF)
        if vcpu.iopl and vcpu.domain.vm_assist & ARCHITECTURAL_IOPL:
            pushed |= vcpu.iopl
        if failsafe:
            frame = _FAILSAFE.pack(q[RCX], q[R11], d[DS_SELECTOR] & 0xFFFF, d[ES_SELECTOR] & 0xFFFF,
                                   d[FS_SELECTOR] & 0xFFFF, d[GS_SELECTOR] & 0xFFFF,
                                   q[RIP], cs | mask << 32, pushed, rsp, d[SS_SELECTOR] & 0xFFFF)
        elif error >= 0:
            frame = _WITH_ERROR.pack(q[RCX], q[R11], error, q[RIP], cs | mask << 32, pushed, rsp,
                                     d[SS_SELECTOR] & 0xFFFF)
        else:
            frame = _PLAIN.pack(q[RCX], q[R11], q[RIP], cs | mask << 32, pushed, rsp, d[SS_SELECTOR] & 0xFFFF)
        stack = stack - len(frame) & WORD
        try:
            vcpu.space.write(stack, frame)
        except GuestFault as fault:
            raise BounceError(f"its stack at {stack:#x} cannot be written") from fault
        if masks_events and not mask:
            self._memory.store8(info + 1, 1)
        q[RSP] = stack
        q[RIP] = address
        if d[CS_FLAGS] == CODE64_FLAGS:
            d[CS_SELECTOR] = FLAT_RING3_CS64
        else:
            core.set_cs(FLAT_RING3_CS64, 0, FLAT_LIMIT, CODE64_FLAGS)
        d[SS_SELECTOR] = FLAT_RING3_SS64
        if flags & CLEARED_ON_ENTRY:
            core.set_eflags(flags & ~CLEARED_ON_ENTRY)


def enter_kernel(vcpu: VCpu, core: Core) -> None:
    """From the guest's user half to its kernel half: page tables and GS base."""
    vcpu.in_kernel = True
    q = core.q
    vcpu.gs_shadow, q[GS_BASE] = q[GS_BASE], vcpu.gs_shadow
    core.switch_bank(vcpu.kernel_root << 12, 0)


def enter_user(vcpu: VCpu, core: Core) -> None:
    """From the guest's kernel half to its user half; its user page-table root must be there."""
    vcpu.in_kernel = False
    q = core.q
    vcpu.gs_shadow, q[GS_BASE] = q[GS_BASE], vcpu.gs_shadow
    core.switch_bank(vcpu.user_root << 12, 1)


