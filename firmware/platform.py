"""Calls about the physical machine, of which an unprivileged guest has next to nothing (physdev.h, platform.h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from firmware.abi import errno, physdev
from firmware.domain.vcpu import VCpu
from firmware.hypercalls import HypercallTable

EFLAGS_IOPL_SHIFT: Final = 12
MOST_PORTS: Final = 65536


class Platform:
    """The handlers."""

    def __init__(self) -> None:
        self._ops: dict[int, Callable[[VCpu, int], int]] = {
            physdev.PHYSDEVOP_set_iopl: self._set_iopl,
            physdev.PHYSDEVOP_set_iobitmap: self._set_iobitmap,
            physdev.PHYSDEVOP_eoi: self._eoi,
            physdev.PHYSDEVOP_irq_status_query: self._irq_status_query,
        }
        self._privileged: Final = frozenset((
            physdev.PHYSDEVOP_apic_read, physdev.PHYSDEVOP_apic_write, physdev.PHYSDEVOP_alloc_irq_vector,
            physdev.PHYSDEVOP_manage_pci_add, physdev.PHYSDEVOP_manage_pci_remove, physdev.PHYSDEVOP_manage_pci_add_ext,
            physdev.PHYSDEVOP_pci_mmcfg_reserved, physdev.PHYSDEVOP_restore_msi, physdev.PHYSDEVOP_restore_msi_ext,
            physdev.PHYSDEVOP_setup_gsi, physdev.PHYSDEVOP_pci_device_add, physdev.PHYSDEVOP_pci_device_remove,
            physdev.PHYSDEVOP_dbgp_op,
        ))

    def register(self, table: HypercallTable) -> None:
        """Put physdev_op and the privileged calls into the table."""
        table.register("physdev_op", self.physdev_op)
        for name in ("platform_op", "sysctl", "domctl"):
            table.register(name, self.not_permitted)

    def physdev_op(self, vcpu: VCpu, command: int, argument: int) -> int:
        """Hypercall 33."""
        command &= 0xFFFF_FFFF
        operation = self._ops.get(command)
        if operation is not None:
            return operation(vcpu, argument)
        return -errno.EPERM if command in self._privileged else -errno.ENOSYS

    @staticmethod
    def not_permitted(_vcpu: VCpu, _argument: int) -> int:
        """What platform_op, sysctl and domctl answer an unprivileged guest."""
        return -errno.EPERM

    @staticmethod
    def _set_iopl(vcpu: VCpu, argument: int) -> int:
        level = int.from_bytes(vcpu.space.read(argument, 4), "little")
        if level > 3:
            return -errno.EINVAL
        vcpu.iopl = level << EFLAGS_IOPL_SHIFT
        vcpu.close_ports()
        return 0

    @staticmethod
    def _set_iobitmap(vcpu: VCpu, argument: int) -> int:
        layout = physdev.physdev_set_iobitmap.w32 if vcpu.domain.pv32 else physdev.physdev_set_iobitmap.w64
        request = vcpu.space.unpack(argument, layout)
        return -errno.EINVAL if request.nr_ports > MOST_PORTS else 0

    @staticmethod
    def _eoi(vcpu: VCpu, argument: int) -> int:
        vcpu.space.read(argument, physdev.physdev_eoi.w64.size)
        return -errno.EINVAL

    @staticmethod
    def _irq_status_query(vcpu: VCpu, argument: int) -> int:
        vcpu.space.read(argument, physdev.physdev_irq_status_query.w64.size)
        return -errno.EINVAL
