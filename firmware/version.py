"""xen_version and vm_assist: what the hypervisor says it is, and the assists a guest may switch on.

Version 4.17 and its answers to an unprivileged PV guest (version.h, features.h; xen/common/kernel.c
behaviour).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from firmware.abi import arch_x86, arch_x86_32, errno, features, version, xen
from firmware.domain.vcpu import VCpu
from firmware.hypercalls import HypercallTable

MAJOR: Final = 4
MINOR: Final = 17
EXTRA: Final = b".5-xenpy"
CAPABILITIES: Final = b"xen-3.0-x86_64 xen-3.0-x86_32p "
COMPILER: Final = b"xenpy"
CHANGESET: Final = b"unknown"
HIDDEN: Final = b"<denied>\0"
"""What an unprivileged guest reads where it may not look: the hypervisor's command line."""
PAGE_SIZE: Final = 4096

PV_FEATURES: Final = (
    1 << features.XENFEAT_mmu_pt_update_preserve_ad
    | 1 << features.XENFEAT_highmem_assist
    | 1 << features.XENFEAT_gnttab_map_avail_bits
    | 1 << features.XENFEAT_memory_op_vnode_supported
    | 1 << features.XENFEAT_not_direct_mapped
)
ASSISTS_32: Final = (
    1 << xen.VMASST_TYPE_4gb_segments
    | 1 << xen.VMASST_TYPE_4gb_segments_notify
    | 1 << xen.VMASST_TYPE_writable_pagetables
    | 1 << xen.VMASST_TYPE_pae_extended_cr3
    | 1 << xen.VMASST_TYPE_runstate_update_flag
    | 1 << xen.VMASST_TYPE_architectural_iopl
)
ASSISTS_64: Final = ASSISTS_32 | 1 << xen.VMASST_TYPE_m2p_strict
"""What a guest may switch on; some mean nothing to a 64-bit one, which may switch them on all the same."""


class Version:
    """The handlers."""

    def __init__(self) -> None:
        self._commands: dict[int, Callable[[VCpu, int], int]] = {
            version.XENVER_version: self._version,
            version.XENVER_extraversion: self._text(EXTRA, version.XEN_EXTRAVERSION_LEN),
            version.XENVER_compile_info: self._compile_info,
            version.XENVER_capabilities: self._text(CAPABILITIES, version.XEN_CAPABILITIES_INFO_LEN),
            version.XENVER_changeset: self._text(CHANGESET, version.XEN_CHANGESET_INFO_LEN),
            version.XENVER_platform_parameters: self._platform_parameters,
            version.XENVER_get_features: self._features,
            version.XENVER_pagesize: self._page_size,
            version.XENVER_guest_handle: self._guest_handle,
            version.XENVER_commandline: self._text(HIDDEN, len(HIDDEN)),
            version.XENVER_build_id: self._build_id,
        }

    def register(self, table: HypercallTable) -> None:
        """Put xen_version and vm_assist into the table."""
        table.register("xen_version", self.xen_version)
        table.register("vm_assist", self.vm_assist)

    def xen_version(self, vcpu: VCpu, command: int, argument: int) -> int:
        """Hypercall 17."""
        handler = self._commands.get(command & 0xFFFF_FFFF)
        return -errno.ENOSYS if handler is None else handler(vcpu, argument)

    @staticmethod
    def _version(_vcpu: VCpu, _argument: int) -> int:
        return MAJOR << 16 | MINOR

    @staticmethod
    def _text(text: bytes, length: int) -> Callable[[VCpu, int], int]:
        data = text.ljust(length, b"\0")

        def answer(vcpu: VCpu, argument: int) -> int:
            vcpu.space.write(argument, data)
            return 0

        return answer

    @staticmethod
    def _compile_info(vcpu: VCpu, argument: int) -> int:
        vcpu.space.write(
            argument,
            version.xen_compile_info.w64.pack(
                compiler=COMPILER, compile_by=COMPILER, compile_domain=COMPILER, compile_date=CHANGESET
            ),
        )
        return 0

    @staticmethod
    def _platform_parameters(vcpu: VCpu, argument: int) -> int:
        if vcpu.domain.pv32:
            data = version.xen_platform_parameters.w32.pack(virt_start=arch_x86_32.HYPERVISOR_VIRT_START)
        else:
            data = version.xen_platform_parameters.w64.pack(virt_start=arch_x86.HYPERVISOR_VIRT_START)
        vcpu.space.write(argument, data)
        return 0

    @staticmethod
    def _features(vcpu: VCpu, argument: int) -> int:
        layout = version.xen_feature_info.w64
        asked = vcpu.space.unpack(argument, layout)
        if asked.submap_idx >= features.XENFEAT_NR_SUBMAPS:
            return -errno.EINVAL
        submap = PV_FEATURES
        if vcpu.domain.vm_assist >> xen.VMASST_TYPE_pae_extended_cr3 & 1:
            submap |= 1 << features.XENFEAT_pae_pgdir_above_4gb
        vcpu.space.write(argument, layout.pack(submap_idx=asked.submap_idx, submap=submap))
        return 0

    @staticmethod
    def _page_size(_vcpu: VCpu, argument: int) -> int:
        return -errno.EINVAL if argument else PAGE_SIZE

    @staticmethod
    def _guest_handle(vcpu: VCpu, argument: int) -> int:
        vcpu.space.write(argument, vcpu.domain.handle)
        return 0

    @staticmethod
    def _build_id(_vcpu: VCpu, _argument: int) -> int:
        return -errno.EPERM

    @staticmethod
    def vm_assist(vcpu: VCpu, command: int, kind: int) -> int:
        """Hypercall 21."""
        command &= 0xFFFF_FFFF
        kind &= 0xFFFF_FFFF
        domain = vcpu.domain
        if kind >= 64 or not (ASSISTS_32 if domain.pv32 else ASSISTS_64) >> kind & 1:
            return -errno.EINVAL
        if command == xen.VMASST_CMD_enable:
            domain.vm_assist |= 1 << kind
        elif command == xen.VMASST_CMD_disable:
            domain.vm_assist &= ~(1 << kind)
        else:
            return -errno.ENOSYS
        domain.memory.m2p_strict = bool(domain.vm_assist >> xen.VMASST_TYPE_m2p_strict & 1)
        return 0
