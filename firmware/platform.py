"""Calls about the physical machine and other kinds of domain, of which an unprivileged PV guest has next to
nothing.

Sources: physdev.h, platform.h, sysctl.h, domctl.h, hvm/hvm_op.h, xenpmu.h; behaviour of Xen 4.17 without a
virtual PMU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from firmware.abi import errno, physdev, xen
from firmware.domain.vcpu import VCpu
from firmware.hypercalls import HypercallTable

EFLAGS_IOPL_SHIFT: Final = 12
MOST_PORTS: Final = 65536
IRQ_UNMASK_NOTIFY: Final = 4
"""A physdev_op older than 3.2: unmask the guest's interrupts, of which there are none."""

PRIVILEGED: Final[dict[str, tuple[int, int]]] = {
    "platform_op": (136, 0x0300_0000),
    "sysctl": (136, 0x15),
    "domctl": (144, 0x15),
}
"""Bytes of each structure and the interface version in its second word (XENPF_, XEN_SYSCTL_,
XEN_DOMCTL_INTERFACE_VERSION).
"""

HVMOP_PARAMETERS: Final = (0, 1)
HVMOP_FLUSH_TLBS: Final = 5
HVM_PARAMETER_BYTES: Final = 16


class Platform:
    """The handlers."""

    def __init__(self) -> None:
        self._ops: dict[int, Callable[[VCpu, int], int]] = {
            physdev.PHYSDEVOP_set_iopl: self._set_iopl,
            physdev.PHYSDEVOP_set_iobitmap: self._set_iobitmap,
            physdev.PHYSDEVOP_eoi: self._eoi,
            physdev.PHYSDEVOP_irq_status_query: self._irq_status_query,
            IRQ_UNMASK_NOTIFY: lambda _vcpu, _argument: 0,
        }
        self._privileged: Final = frozenset(
            (
                physdev.PHYSDEVOP_apic_read,
                physdev.PHYSDEVOP_apic_write,
                physdev.PHYSDEVOP_alloc_irq_vector,
                physdev.PHYSDEVOP_manage_pci_add,
                physdev.PHYSDEVOP_manage_pci_remove,
                physdev.PHYSDEVOP_manage_pci_add_ext,
                physdev.PHYSDEVOP_pci_mmcfg_reserved,
                physdev.PHYSDEVOP_restore_msi,
                physdev.PHYSDEVOP_restore_msi_ext,
                physdev.PHYSDEVOP_setup_gsi,
                physdev.PHYSDEVOP_pci_device_add,
                physdev.PHYSDEVOP_pci_device_remove,
                physdev.PHYSDEVOP_dbgp_op,
                physdev.PHYSDEVOP_map_pirq,
                physdev.PHYSDEVOP_unmap_pirq,
                physdev.PHYSDEVOP_prepare_msix,
                physdev.PHYSDEVOP_release_msix,
            )
        )

    def register(self, table: HypercallTable) -> None:
        """Put physdev_op and the privileged calls into the table."""
        table.register("physdev_op", self.physdev_op)
        for name, (size, interface) in PRIVILEGED.items():
            table.register(name, self._refusal(size, interface))
        table.register("hvm_op", self.hvm_op)
        table.register("xenpmu_op", self.xenpmu_op)

    def physdev_op(self, vcpu: VCpu, command: int, argument: int) -> int:
        """Hypercall 33."""
        command &= 0xFFFF_FFFF
        operation = self._ops.get(command)
        if operation is not None:
            return operation(vcpu, argument)
        return -errno.EPERM if command in self._privileged else -errno.ENOSYS

    @staticmethod
    def _refusal(size: int, interface: int) -> Callable[[VCpu, int], int]:
        def refuse(vcpu: VCpu, argument: int) -> int:
            """What an unprivileged guest is answered: its structure is looked at before its rights."""
            version = int.from_bytes(vcpu.space.read(argument, size)[4:8], "little")
            return -errno.EPERM if version == interface else -errno.EACCES

        return refuse

    @staticmethod
    def hvm_op(vcpu: VCpu, command: int, argument: int) -> int:
        """Hypercall 34: parameters are for HVM domains; everything else is not there."""
        command &= 0xFFFF_FFFF
        if command in HVMOP_PARAMETERS:
            domid = int.from_bytes(vcpu.space.read(argument, HVM_PARAMETER_BYTES)[:2], "little")
            return -errno.EINVAL if domid in (xen.DOMID_SELF, vcpu.domain.id) else -errno.ESRCH
        return -errno.EINVAL if command == HVMOP_FLUSH_TLBS else -errno.ENOSYS

    @staticmethod
    def xenpmu_op(_vcpu: VCpu, _command: int, _argument: int) -> int:
        """Hypercall 40: there is no virtual performance counter."""
        return -errno.EOPNOTSUPP

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
