"""Debug registers: what a guest may put into them and what it reads back.

Sources: Intel SDM volume 3, 17.2; behaviour of set_debugreg in pv/misc-hypercalls.c of Xen 4.17.
"""

from __future__ import annotations

from typing import Final

from firmware.abi import errno
from firmware.domain.context import address_allowed
from firmware.domain.vcpu import DR6_DEFAULT, DR7_DEFAULT, VCpu
from firmware.hypercalls import HypercallTable

CR4_DE: Final = 1 << 3
DR6_FIXED_ZEROS: Final = 1 << 12
DR7_FIXED_ZEROS: Final = 0xD800
DR7_GENERAL_DETECT: Final = 1 << 13
DR7_ACTIVE: Final = 0xFF
"""The L and G enable bits of the four breakpoints."""
TYPE_IO: Final = 2
"""The R/W field of an I/O breakpoint."""
WORD32: Final = (1 << 32) - 1


class DebugRegisters:
    """The two handlers, and the same checks for the emulated MOV."""

    def register(self, table: HypercallTable) -> None:
        """Put set_debugreg and get_debugreg into the table."""
        table.register("set_debugreg", self.set_debugreg)
        table.register("get_debugreg", self.get_debugreg)

    def set_debugreg(self, vcpu: VCpu, number: int, value: int) -> int:
        """Hypercall 8: 0, -ENODEV (no such register), -EINVAL (invalid bit), -EPERM (not for a guest)."""
        number &= WORD32
        if number <= 3:
            if not address_allowed(value):
                return -errno.EPERM
            vcpu.debugreg[number] = value
            self.activate(vcpu)
            return 0
        if (number in (4, 5) and vcpu.cr4 & CR4_DE) or number > 7:
            return -errno.ENODEV
        if value != value & WORD32:
            return -errno.EINVAL
        if number in (4, 6):
            vcpu.debugreg[6] = (value | DR6_DEFAULT) & ~DR6_FIXED_ZEROS
            return 0
        return self._control(vcpu, (value | DR7_DEFAULT) & ~DR7_FIXED_ZEROS)

    def _control(self, vcpu: VCpu, value: int) -> int:
        if value & DR7_GENERAL_DETECT:
            return -errno.EPERM
        vcpu.dr7_emul = emulated = 0
        if value & DR7_ACTIVE:
            for index in range(4):
                if value >> 16 + 4 * index & 3 == TYPE_IO:
                    if not vcpu.cr4 & CR4_DE:
                        return -errno.EPERM
                    emulated |= value & 3 << 2 * index
        vcpu.dr7_emul = emulated
        vcpu.close_ports()
        vcpu.debugreg[7] = value & ~emulated
        self.activate(vcpu)
        return 0

    @staticmethod
    def activate(vcpu: VCpu) -> None:
        """Give the core the breakpoints of the vCPU it runs."""
        if vcpu.loaded:
            first, second, third, fourth = vcpu.debugreg[:4]
            vcpu.core.set_breakpoints((first, second, third, fourth), vcpu.debugreg[7])

    @staticmethod
    def get_debugreg(vcpu: VCpu, number: int) -> int:
        """Hypercall 9: the register's value, which may look like an error; -ENODEV when there is none."""
        number &= WORD32
        if number > 7 or (number in (4, 5) and vcpu.cr4 & CR4_DE):
            return -errno.ENODEV
        if number in (4, 5):
            number += 2
        return vcpu.debugreg[number] | (vcpu.dr7_emul if number == 7 else 0)
