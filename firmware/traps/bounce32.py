"""Bounce frames of a 32-bit PAE guest, whose kernel runs in ring 1 and its users in rings 2 and 3.

From ring 1 the frame goes below the current stack; from an outer ring the guest's registered kernel stack is
used and the old SS:ESP is pushed first, as the hardware would. Bits 16 to 23 of the CS word are the upcall
mask from before. The frame is written through the stack segment, whose base counts. Source:
arch-x86/xen-x86_32.h; behaviour of compat_create_bounce_frame.
"""

from __future__ import annotations

import struct
from typing import Final

from firmware.domain.vcpu import VCpu
from firmware.hypercalls import GuestFault
from firmware.traps.bounce import (
    ARCHITECTURAL_IOPL,
    EFLAGS_IF,
    EFLAGS_IOPL,
    EFLAGS_NT,
    EFLAGS_RF,
    EFLAGS_TF,
    EFLAGS_VM,
    BounceError,
)
from firmware.traps.segments import Segments
from machine.core import Core
from machine.memory import MachineMemory
from machine.registers import CS, DS, ES, FS, GS, RIP, RSP, SEG_BASE, SEG_SELECTOR, SS

WORD: Final = (1 << 32) - 1
KERNEL_RING: Final = 1
OUTER_RINGS: Final = 2
"""The bit of a code selector that rings 2 and 3 have."""
NULL_SELECTORS: Final = 3
CLEARED_ON_ENTRY: Final = EFLAGS_TF | EFLAGS_NT | EFLAGS_RF | EFLAGS_VM
"""What an interrupt gate clears; AC has no effect in ring 1 and stays."""


class Bounce32:
    """Builds them."""

    __slots__ = ("_memory", "_segments")

    def __init__(self, memory: MachineMemory, segments: Segments) -> None:
        self._memory = memory
        self._segments = segments

    def enter(self, vcpu: VCpu, core: Core, selector: int, address: int, masks_events: bool, error: int = -1,
              failsafe: bool = False) -> None:
        """Enter the guest kernel at selector:address. BounceError when that is impossible."""
        q = core.q
        d = core.d
        info = vcpu.info
        mask = self._memory.b[info + 1]
        flags = core.eflags()
        cs = d[SEG_SELECTOR[CS]] & 0xFFFF
        pushed = flags & ~(EFLAGS_IF | EFLAGS_IOPL) | (0 if mask else EFLAGS_IF)
        if vcpu.domain.vm_assist & ARCHITECTURAL_IOPL:
            pushed |= vcpu.iopl
        words = [q[RIP] & WORD, cs | mask << 16, pushed & WORD]
        if error >= 0:
            words.insert(0, error & WORD)
        if failsafe:
            words[:0] = [d[SEG_SELECTOR[segment]] & 0xFFFF for segment in (DS, ES, FS, GS)]
        if cs & OUTER_RINGS:
            stack = vcpu.kernel_sp & WORD
            words += [q[RSP] & WORD, d[SEG_SELECTOR[SS]] & 0xFFFF]
            if not self._segments.load(vcpu, core, SS, vcpu.kernel_ss):
                raise BounceError(f"its kernel stack selector {vcpu.kernel_ss:#x} cannot be loaded")
        else:
            stack = q[RSP] & WORD
        stack = stack - 4 * len(words) & WORD
        if selector <= NULL_SELECTORS:
            raise BounceError("it has no handler")
        try:
            vcpu.space.write(q[SEG_BASE[SS]] + stack & WORD, struct.pack(f"<{len(words)}I", *words))
        except GuestFault as fault:
            raise BounceError(f"its stack at {stack:#x} cannot be written") from fault
        if masks_events and not mask:
            self._memory.store8(info + 1, 1)
        if not self._segments.load(vcpu, core, CS, selector):
            raise BounceError(f"its handler's code selector {selector:#x} cannot be loaded")
        vcpu.in_kernel = True
        q[RSP] = stack
        q[RIP] = address
        core.set_eflags(flags & ~CLEARED_ON_ENTRY)
