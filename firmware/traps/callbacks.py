"""What a guest kernel registers with Xen: its virtual IDT, its callbacks, its kernel stack, its segment bases
and its FPU state.

Sources: arch-x86/xen.h (trap_info), callback.h, nmi.h, arch-x86/xen-x86_64.h (SEGBASE_*); behaviour of
pv/callback.c and pv/misc-hypercalls.c of Xen 4.17.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from firmware.abi import arch_x86, arch_x86_32, callback, errno, nmi
from firmware.domain.vcpu import NO_TRAP, VECTORS, Trap, VCpu
from firmware.hypercalls import CONTINUE, HypercallTable
from firmware.traps.segments import Segments
from machine.paging import canonical
from machine.registers import FS, GS, SEG_BASE

NMI_VECTOR: Final = 2
WORD: Final = (1 << 64) - 1
LONGEST_TABLE: Final = 512
"""Entries of a trap table taken before the call is restarted for the rest."""
ENTRY_NS: Final = 1_000
"""What an entry of so long a table costs in virtual time."""



class Callbacks:
    """The handlers."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._registrations: dict[int, Callable[[VCpu, int, int, bool], int]] = {
            callback.CALLBACKTYPE_event: self._event,
            callback.CALLBACKTYPE_failsafe: self._failsafe,
            callback.CALLBACKTYPE_syscall: self._syscall,
            callback.CALLBACKTYPE_syscall32: self._syscall32,
            callback.CALLBACKTYPE_sysenter: self._sysenter,
            callback.CALLBACKTYPE_nmi: self._nmi,
        }
        self._bases: dict[int, Callable[[VCpu, int], int]] = {
            arch_x86.SEGBASE_FS: self._fs_base,
            arch_x86.SEGBASE_GS_USER: self._gs_user,
            arch_x86.SEGBASE_GS_KERNEL: self._gs_kernel,
            arch_x86.SEGBASE_GS_USER_SEL: self._gs_user_selector,
        }

    def register(self, table: HypercallTable) -> None:
        """Put the handlers into the table."""
        for handler in (
            self.set_trap_table,
            self.set_callbacks,
            self.callback_op,
            self.nmi_op,
            self.stack_switch,
            self.set_segment_base,
            self.fpu_taskswitch,
        ):
            table.register(handler.__name__, handler)

    # --- the virtual IDT ------------------------------------------------------------------------------------

    def set_trap_table(self, vcpu: VCpu, traps: int) -> int:
        """Hypercall 0: entries until one with address 0; a null pointer empties the table."""
        pv32 = vcpu.domain.pv32
        if not traps:
            vcpu.traps[:] = [NO_TRAP] * VECTORS
            return 0
        layout = arch_x86.trap_info.w32 if pv32 else arch_x86.trap_info.w64
        for _ in range(LONGEST_TABLE):
            entry = vcpu.space.unpack(traps, layout)
            if not entry.address:
                return 0
            if not pv32 and not canonical(entry.address):
                return -errno.EINVAL
            vcpu.traps[entry.vector] = make_trap(entry, pv32)
            traps += layout.size
        vcpu.core.charge(LONGEST_TABLE * ENTRY_NS)
        vcpu.restart(traps)
        return CONTINUE

    # --- callbacks ------------------------------------------------------------------------------------------

    def set_callbacks(self, vcpu: VCpu, event: int, failsafe: int, syscall: int, high: int = 0) -> int:
        """Hypercall 4. 64-bit: three addresses; 32-bit: selector and address of two callbacks."""
        if vcpu.domain.pv32:
            self._event(vcpu, fix_code_selector(event & 0xFFFF), failsafe, False)
            self._failsafe(vcpu, fix_code_selector(syscall & 0xFFFF), high, False)
            return 0
        for register, address in ((self._event, event), (self._failsafe, failsafe), (self._syscall, syscall)):
            if canonical(address):
                register(vcpu, 0, address, False)
        return 0

    def callback_op(self, vcpu: VCpu, command: int, argument: int) -> int:
        """Hypercall 30."""
        command &= 0xFFFF_FFFF
        if command == callback.CALLBACKOP_register:
            return self._register(vcpu, argument)
        if command == callback.CALLBACKOP_unregister:
            kind = vcpu.space.unpack(argument, callback.callback_unregister.w64).type
            if kind == callback.CALLBACKTYPE_nmi:
                vcpu.traps[NMI_VECTOR] = NO_TRAP
                return 0
            return -errno.EINVAL if kind in self._registrations else -errno.ENOSYS
        return -errno.EINVAL if vcpu.domain.pv32 else -errno.ENOSYS

    def _register(self, vcpu: VCpu, argument: int) -> int:
        if vcpu.domain.pv32:
            request = vcpu.space.unpack(argument, callback.callback_register.w32)
            selector, address = fix_code_selector(request.address.cs & 0xFFFF), request.address.eip
            if request.type == callback.CALLBACKTYPE_syscall:
                return -errno.ENOSYS
        else:
            request = vcpu.space.unpack(argument, callback.callback_register.w64)
            selector, address = 0, request.address
            if not canonical(address):
                return -errno.EINVAL
        enter = self._registrations.get(request.type)
        if enter is None:
            return -errno.ENOSYS
        return enter(vcpu, selector, address, bool(request.flags & callback.CALLBACKF_mask_events))

    @staticmethod
    def _event(vcpu: VCpu, selector: int, address: int, _masks: bool) -> int:
        vcpu.event_cs, vcpu.event_address = selector, address
        return 0

    @staticmethod
    def _failsafe(vcpu: VCpu, selector: int, address: int, masks: bool) -> int:
        vcpu.failsafe_cs, vcpu.failsafe_address, vcpu.failsafe_masks = selector, address, masks
        return 0

    @staticmethod
    def _syscall(vcpu: VCpu, _selector: int, address: int, masks: bool) -> int:
        vcpu.syscall_address, vcpu.syscall_masks = address, masks
        return 0

    @staticmethod
    def _syscall32(vcpu: VCpu, selector: int, address: int, masks: bool) -> int:
        vcpu.syscall32_cs, vcpu.syscall32_address, vcpu.syscall32_masks = selector, address, masks
        return 0

    @staticmethod
    def _sysenter(vcpu: VCpu, selector: int, address: int, masks: bool) -> int:
        vcpu.sysenter_cs, vcpu.sysenter_address, vcpu.sysenter_masks = selector, address, masks
        return 0

    @staticmethod
    def _nmi(vcpu: VCpu, _selector: int, address: int, _masks: bool) -> int:
        if not canonical(address):
            return -errno.EINVAL
        selector = arch_x86_32.FLAT_KERNEL_CS if vcpu.domain.pv32 else arch_x86.FLAT_KERNEL_CS
        vcpu.traps[NMI_VECTOR] = Trap(address, selector, True, 0)
        return 0

    def nmi_op(self, vcpu: VCpu, command: int, argument: int) -> int:
        """Hypercall 28."""
        command &= 0xFFFF_FFFF
        if command == nmi.XENNMI_register_callback:
            layout = nmi.xennmi_callback.w32 if vcpu.domain.pv32 else nmi.xennmi_callback.w64
            return self._nmi(vcpu, 0, vcpu.space.unpack(argument, layout).handler_address, True)
        if command == nmi.XENNMI_unregister_callback:
            vcpu.traps[NMI_VECTOR] = NO_TRAP
            return 0
        return -errno.ENOSYS

    # --- stack, segment bases, FPU --------------------------------------------------------------------------

    @staticmethod
    def stack_switch(vcpu: VCpu, ss: int, esp: int) -> int:
        """Hypercall 3: the kernel stack that bounces from user mode use."""
        vcpu.kernel_ss = fix_stack_selector(ss & 0xFFFF, vcpu.domain.pv32)
        vcpu.kernel_sp = esp
        return 0

    def set_segment_base(self, vcpu: VCpu, which: int, base: int) -> int:
        """Hypercall 25, of 64-bit guests."""
        setter = self._bases.get(which & 0xFFFF_FFFF)
        return -errno.EINVAL if setter is None else setter(vcpu, base)

    @staticmethod
    def _fs_base(vcpu: VCpu, base: int) -> int:
        if not canonical(base):
            return -errno.EINVAL
        vcpu.core.q[SEG_BASE[FS]] = base
        return 0

    @staticmethod
    def _gs_user(vcpu: VCpu, base: int) -> int:
        if not canonical(base):
            return -errno.EINVAL
        vcpu.gs_shadow = base
        return 0

    @staticmethod
    def _gs_kernel(vcpu: VCpu, base: int) -> int:
        if not canonical(base):
            return -errno.EINVAL
        vcpu.core.q[SEG_BASE[GS]] = base
        return 0

    def _gs_user_selector(self, vcpu: VCpu, base: int) -> int:
        """Load GS for the user half; a selector that cannot be loaded becomes null, without an error."""
        core = vcpu.core
        kernel_base = core.q[SEG_BASE[GS]]
        selector = base & 0xFFFF
        if selector > 3:
            selector |= 3
        if not self._segments.load(vcpu, core, GS, selector):
            self._segments.load(vcpu, core, GS, 0)
        vcpu.gs_shadow = core.q[SEG_BASE[GS]]
        core.q[SEG_BASE[GS]] = kernel_base
        return 0

    @staticmethod
    def fpu_taskswitch(vcpu: VCpu, on: int) -> int:
        """Hypercall 5: set or clear CR0.TS."""
        vcpu.cr0_ts = bool(on & 0xFFFF_FFFF)
        vcpu.core.set_cr0_ts(vcpu.cr0_ts)
        return 0


def make_trap(entry: Any, pv32: bool) -> Trap:
    """An IDT entry from the guest's trap_info, its code selector fixed up to the guest's privilege."""
    selector = fix_code_selector(entry.cs) if pv32 else entry.cs | 3
    return Trap(
        entry.address, selector, bool(entry.flags & arch_x86.TI_IF), entry.flags & arch_x86.TI_DPL_MASK
    )


def fix_code_selector(selector: int) -> int:
    """A 32-bit guest's code selector: at least ring 1, and the flat kernel one where it named Xen's own."""
    return selector if selector & 3 else selector | 1


def fix_stack_selector(selector: int, pv32: bool) -> int:
    """A stack selector fixed up to the guest kernel's ring."""
    if not pv32:
        return selector | 3
    return selector if selector & 3 else selector | 1
