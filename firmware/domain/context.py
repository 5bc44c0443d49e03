"""Giving a vCPU its first registers: the guest context of VCPUOP_initialise, and the start of day of vCPU 0.

The context is checked and what concerns memory (roots, GDT, LDT) is taken at once; the registers are loaded
when the vCPU first gets a core. Sources: arch-x86/xen.h (vcpu_guest_context); behaviour of
arch_set_info_guest in Xen 4.17.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

from firmware.abi import arch_x86, arch_x86_32, errno
from firmware.domain.vcpu import NO_TRAP, VECTORS, Trap, VCpu
from firmware.memory.perdomain import PERDOMAIN_COMPAT_START, PERDOMAIN_START, VCPU_SHIFT
from machine.core import Core
from machine.memory import MachineMemory
from machine.paging import canonical
from machine.registers import (
    CS,
    DR7,
    DS,
    ES,
    FS,
    FS_BASE,
    GDT_BASE,
    GDT_LIMIT,
    GS,
    GS_BASE,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    RIP,
    RSI,
    RSP,
    SEG_BASE,
    SEG_SELECTOR,
    SS,
)

EFLAGS_IF: Final = 1 << 9
EFLAGS_IOPL: Final = 3 << 12
GDT_BYTES: Final = 0xF000
"""The guest's 14 pages and Xen's own one (LAST_RESERVED_GDT_BYTE + 1)."""
LONGEST_LDT: Final = 8192
PAGE_MASK: Final = 0xFFF
GENERAL_64: Final = (
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
)
GENERAL_32: Final = {
    "eax": RAX,
    "ecx": RCX,
    "edx": RDX,
    "ebx": RBX,
    "esp": RSP,
    "ebp": RBP,
    "esi": RSI,
    "edi": RDI,
}
NULL_SELECTORS: Final = 3
"""Selectors 0 to 3 are null."""
BREAKPOINTS_ACTIVE: Final = 0xFF
"""DR7's enable bits."""
CR0_TS: Final = 1 << 3
CR4_GUEST: Final = 1 << 2 | 1 << 3
"""CR4 bits that are a PV guest's own: TSD and DE."""


@dataclass
class Entry:
    """The registers a vCPU starts with, loaded on its first core. `general` is by index into the register
    file.
    """

    general: dict[int, int]
    rip: int
    flags: int
    selectors: dict[int, int]
    fs_base: int = 0
    gs_base: int = 0
    fpu: bytes | None = None


class SegmentLoader(Protocol):
    """Who loads segment registers."""

    def load(self, vcpu: VCpu, core: Core, register: int, selector: int) -> bool: ...


class Roots(Protocol):
    """Who takes page-table roots and descriptor tables for a vCPU."""

    def take_root(self, vcpu: VCpu, mfn: int, *, kernel: bool) -> int: ...
    def give_root(self, mfn: int) -> None: ...
    def set_gdt(self, vcpu: VCpu, frames: list[int], entries: int) -> int: ...


class DebugSetter(Protocol):
    """Who checks debug registers."""

    def set_debugreg(self, vcpu: VCpu, number: int, value: int) -> int: ...



def address_allowed(address: int) -> bool:
    """Whether a breakpoint may lie there: outside Xen's own range, in a canonical place."""
    return address < 1 << 47 or address >= arch_x86.HYPERVISOR_VIRT_END


def start_of_day(*, pv32: bool, rip: int, stack: int, start_info: int) -> Entry:
    """vCPU 0 of a new domain, as the toolstack sets it up."""
    if pv32:
        data = arch_x86_32.FLAT_KERNEL_DS
        selectors = {
            CS: arch_x86_32.FLAT_KERNEL_CS,
            SS: arch_x86_32.FLAT_KERNEL_SS,
            DS: data,
            ES: data,
            FS: data,
            GS: data,
        }
    else:
        selectors = {CS: arch_x86.FLAT_KERNEL_CS, SS: arch_x86.FLAT_KERNEL_SS, DS: 0, ES: 0, FS: 0, GS: 0}
    return Entry({RSP: stack, RSI: start_info}, rip, EFLAGS_IF, selectors)


class Contexts:
    """Applies guest contexts."""

    def __init__(
        self, memory: MachineMemory, fpu_frame: int, segments: SegmentLoader, roots: Roots, debug: DebugSetter
    ) -> None:
        self._memory = memory
        self._fpu_image = fpu_frame << 12
        self._segments = segments
        self._roots = roots
        self._debug = debug
        self._begun: dict[VCpu, int] = {}
        """The kernel roots taken for vCPUs whose user root is still being checked."""

    def initialise(self, vcpu: VCpu, context: Any) -> int:
        """Take a vcpu_guest_context (either width) for a vCPU that was never initialised: 0, a negative
        errno, or -ERESTART: checking its roots takes longer, and the same call goes on with it.
        """
        pv32 = vcpu.domain.pv32
        problem = self._check(context, pv32)
        if problem:
            return problem
        self._take_tables(vcpu, context, pv32)
        frames = [int(frame) for frame in context.gdt_frames]
        entries = int(context.gdt_ents)
        if entries:
            result = self._roots.set_gdt(vcpu, frames[: (entries + 511) // 512], entries)
            if result:
                return result
        vcpu.ldt_base, vcpu.ldt_entries = int(context.ldt_base), int(context.ldt_ents)
        result = self._take_roots(vcpu, context, pv32)
        if result:
            self._roots.set_gdt(vcpu, [], 0)
            return result
        for number in (0, 1, 2, 3, 6, 7):
            self._debug.set_debugreg(vcpu, number, context.debugreg[number])
        vcpu.cr4 = context.ctrlreg[4] & CR4_GUEST
        if not pv32:
            vcpu.gs_shadow = context.gs_base_user
        vcpu.cr0_ts = bool(context.ctrlreg[0] & CR0_TS)
        vcpu.entry = self._entry(context, pv32)
        vcpu.iopl = vcpu.entry.flags & EFLAGS_IOPL
        vcpu.initialised = True
        return 0

    @staticmethod
    def _check(context: Any, pv32: bool) -> int:
        if context.ldt_ents > LONGEST_LDT or context.ldt_base & PAGE_MASK or context.gdt_ents > LONGEST_LDT:
            return -errno.EINVAL
        if (
            not all(map(address_allowed, context.debugreg[:4]))
            or (context.debugreg[6] | context.debugreg[7]) >> 32
        ):
            return -errno.EINVAL
        if pv32:
            return 0
        addresses = (
            context.user_regs.rip,
            context.user_regs.rsp,
            context.kernel_sp,
            context.event_callback_eip,
            context.failsafe_callback_eip,
            context.syscall_callback_eip,
            context.fs_base,
            context.gs_base_kernel,
            context.gs_base_user,
        )
        traps = (trap.address for trap in context.trap_ctxt)
        if not all(map(canonical, addresses)) or not all(map(canonical, traps)):
            return -errno.EINVAL
        if not context.flags & arch_x86.VGCF_in_kernel and not context.ctrlreg[1]:
            return -errno.EINVAL
        return 0

    @staticmethod
    def _take_tables(vcpu: VCpu, context: Any, pv32: bool) -> None:
        ring = 1 if pv32 else 3
        vcpu.kernel_ss = context.kernel_ss & 0xFFFF | (0 if context.kernel_ss & 3 else ring)
        vcpu.kernel_sp = context.kernel_sp
        for vector in range(VECTORS):
            trap = context.trap_ctxt[vector]
            vcpu.traps[vector] = (
                NO_TRAP
                if not trap.address
                else Trap(
                    trap.address,
                    trap.cs | (0 if trap.cs & 3 else ring),
                    bool(trap.flags & arch_x86.TI_IF),
                    trap.flags & arch_x86.TI_DPL_MASK,
                )
            )
        vcpu.event_address = context.event_callback_eip
        vcpu.failsafe_address = context.failsafe_callback_eip
        vcpu.failsafe_masks = bool(context.flags & arch_x86.VGCF_failsafe_disables_events)
        if pv32:
            vcpu.event_cs, vcpu.failsafe_cs = (
                selector & 0xFFFF | (0 if selector & 3 else ring)
                for selector in (context.event_callback_cs, context.failsafe_callback_cs)
            )
        else:
            vcpu.syscall_address = context.syscall_callback_eip
            vcpu.syscall_masks = bool(context.flags & arch_x86.VGCF_syscall_disables_events)

    def _take_roots(self, vcpu: VCpu, context: Any, pv32: bool) -> int:
        cr3 = context.ctrlreg[3]
        mfn = (cr3 >> 12 & 0xFFFFF | (cr3 & 0xFFF) << 20) if pv32 else cr3 >> 12
        begun = self._begun.pop(vcpu, None)
        if begun is not None and begun != mfn:
            self._roots.give_root(begun)  # of a call that was interrupted and not gone on with
            vcpu.kernel_root = 0
        if begun != mfn:
            result = self._roots.take_root(vcpu, mfn, kernel=True)
            if result:
                return result
            vcpu.kernel_root = mfn
        if not pv32 and context.ctrlreg[1]:
            user = context.ctrlreg[1] >> 12
            result = self._roots.take_root(vcpu, user, kernel=False)
            if result == -errno.ERESTART:
                self._begun[vcpu] = mfn
                return result
            if result:
                self._roots.give_root(mfn)
                vcpu.kernel_root = 0
                return result
            vcpu.user_root = user
        in_kernel = bool(context.flags & arch_x86.VGCF_in_kernel)
        vcpu.in_kernel = pv32 or in_kernel or not vcpu.user_root
        vcpu.space.root = vcpu.kernel_root << 12
        return 0

    @staticmethod
    def _entry(context: Any, pv32: bool) -> Entry:
        regs = context.user_regs
        selectors = {ES: regs.es, CS: regs.cs, SS: regs.ss, DS: regs.ds, FS: regs.fs, GS: regs.gs}
        for register in (CS, SS):
            selectors[register] |= (0 if selectors[register] & 3 else 1) if pv32 else 3
        fpu = bytes(context.fpu_ctxt) if context.flags & arch_x86.VGCF_i387_valid else None
        if pv32:
            general = {index: getattr(regs, name) for name, index in GENERAL_32.items()}
            return Entry(general, regs.eip, regs.eflags, selectors, fpu=fpu)
        general = {index: getattr(regs, name) for index, name in enumerate(GENERAL_64)}
        return Entry(general, regs.rip, regs.rflags, selectors, context.fs_base, context.gs_base_kernel, fpu)

    def resume(self, vcpu: VCpu, core: Core) -> None:
        """The vCPU was just loaded on a core: its first registers, its data segments, its breakpoints."""
        if vcpu.entry is not None:
            self._enter(vcpu, core, vcpu.entry)
            vcpu.entry = None
        else:
            self._load_data_segments(vcpu, core)
        if vcpu.debugreg[7] & BREAKPOINTS_ACTIVE or core.q[DR7] & BREAKPOINTS_ACTIVE:
            first, second, third, fourth = vcpu.debugreg[:4]
            core.set_breakpoints((first, second, third, fourth), vcpu.debugreg[7])

    def _load_data_segments(self, vcpu: VCpu, core: Core) -> None:
        """Selectors other than null are read from the tables anew; one that is not there any more is the
        failsafe's case.
        """
        d, q = core.d, core.q
        for register in (DS, ES, FS, GS):
            selector = d[SEG_SELECTOR[register]] & 0xFFFF
            if selector > NULL_SELECTORS:
                base = q[SEG_BASE[register]]
                if not self._segments.load(vcpu, core, register, selector):
                    vcpu.failsafe_pending = True
                elif not vcpu.domain.pv32 and register in (FS, GS):
                    q[SEG_BASE[register]] = base

    def _enter(self, vcpu: VCpu, core: Core, entry: Entry) -> None:
        pv32 = vcpu.domain.pv32
        core.set_mode(not pv32, entry.selectors[CS] & 3 if pv32 else 3)
        for index, value in entry.general.items():
            core.q[index] = value
        core.q[RIP] = entry.rip
        core.set_eflags(entry.flags & ~EFLAGS_IOPL | EFLAGS_IF)
        start = PERDOMAIN_COMPAT_START if pv32 else PERDOMAIN_START
        core.q[GDT_BASE] = start + (vcpu.id << VCPU_SHIFT)
        core.d[GDT_LIMIT] = GDT_BYTES - 1
        vcpu.load_ldt()
        for register, selector in entry.selectors.items():
            if not self._segments.load(vcpu, core, register, selector):
                vcpu.failsafe_pending = True
        if not pv32:
            core.q[FS_BASE] = entry.fs_base
            core.q[GS_BASE] = entry.gs_base
            if not vcpu.in_kernel:
                vcpu.gs_shadow, core.q[GS_BASE] = core.q[GS_BASE], vcpu.gs_shadow
        if entry.fpu is not None:
            self._memory.write(self._fpu_image, entry.fpu)
            core.restore_fpu(self._fpu_image)
        core.set_cr0_ts(vcpu.cr0_ts)
