"""memory_op commands that are not about a PV guest's own memory: what an unprivileged PV guest is answered.

Translated guests, virtual NUMA nodes, devices, sharing and the tools of domain 0 (Xen 4.17 common/memory.c,
common/mem_access.c, x86/mm.c, x86/x86_64/mm.c). XENMEM_paging_op and XENMEM_sharing_op are not built into a
Xen configured as usual, and have no handler here either.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from firmware.abi import memory as abi
from firmware.abi.errno import EACCES, EDOM, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from firmware.abi.xen import DOMID_SELF
from firmware.memory.owner import Domain, Domains, VCpu

ACCESS_OP_SIZE: Final = {False: 32, True: 24}
"""Bytes of struct xen_mem_access_op (memory.h), by whether the guest is a 32-bit one."""
ACCESS_DOMID: Final = 2
"""Offset of its `domid`."""
DEVICE_MAP: Final = {False: Struct("<IIQ8x"), True: Struct("<III4x")}
"""struct xen_reserved_device_memory_map: flags, nr_entries, buffer; the device is not looked at."""
DEVICE_ENTRY: Final = {False: 16, True: 8}
"""Bytes of struct xen_reserved_device_memory."""


class ForeignOps:
    """The commands, as functions of the vCPU, the argument and the extents done before."""

    __slots__ = ("_domains", "commands")

    def __init__(self, domains: Domains) -> None:
        self._domains = domains
        self.commands: dict[int, Callable[[VCpu, int, int], int]] = {
            abi.XENMEM_machine_memory_map: self._refused,
            abi.XENMEM_add_to_physmap: self._add_to_physmap,
            abi.XENMEM_add_to_physmap_batch: self._add_to_physmap_batch,
            abi.XENMEM_remove_from_physmap: self._remove_from_physmap,
            abi.XENMEM_claim_pages: self._claim_pages,
            abi.XENMEM_set_pod_target: self._pod_target,
            abi.XENMEM_get_pod_target: self._pod_target,
            abi.XENMEM_get_sharing_freed_pages: self._nothing_shared,
            abi.XENMEM_get_sharing_shared_pages: self._nothing_shared,
            abi.XENMEM_access_op: self._access_op,
            abi.XENMEM_get_vnumainfo: self._vnuma,
            abi.XENMEM_reserved_device_memory_map: self._reserved_devices,
            abi.XENMEM_acquire_resource: self._acquire_resource,
        }

    @staticmethod
    def _read(vcpu: VCpu, layout: Any, at: int) -> Any:
        return vcpu.space.unpack(at, layout.w32 if vcpu.domain.pv32 else layout.w64)

    def _any_domain(self, vcpu: VCpu, domid: int) -> Domain | None:
        """rcu_lock_domain_by_any_id."""
        return vcpu.domain if domid == DOMID_SELF else self._domains.by_id(domid)

    def _nothing_shared(self, vcpu: VCpu, arg: int, done: int) -> int:
        return -ENOSYS if done else 0

    def _refused(self, vcpu: VCpu, arg: int, done: int) -> int:
        return -EPERM

    def _add_to_physmap(self, vcpu: VCpu, arg: int, done: int) -> int:
        if done > 0xFFFF:
            return -EDOM
        request = self._read(vcpu, abi.xen_add_to_physmap, arg)
        if request.space == abi.XENMAPSPACE_gmfn_foreign:
            return -ENOSYS
        return -ESRCH if self._any_domain(vcpu, request.domid) is None else -EACCES

    def _add_to_physmap_batch(self, vcpu: VCpu, arg: int, done: int) -> int:
        if done > 0xFFFF:
            return -EDOM
        request = self._read(vcpu, abi.xen_add_to_physmap_batch, arg)
        if request.space == abi.XENMAPSPACE_gmfn_range:
            return -EOPNOTSUPP
        return -ESRCH if self._any_domain(vcpu, request.domid) is None else -EACCES

    def _remove_from_physmap(self, vcpu: VCpu, arg: int, done: int) -> int:
        if done:
            return -EINVAL
        request = self._read(vcpu, abi.xen_remove_from_physmap, arg)
        return -ESRCH if self._any_domain(vcpu, request.domid) is None else -EACCES

    def _claim_pages(self, vcpu: VCpu, arg: int, done: int) -> int:
        if done:
            return -EINVAL
        request = self._read(vcpu, abi.xen_memory_reservation, arg)
        if request.extent_start or request.extent_order or request.mem_flags:
            return -EINVAL
        return -EINVAL if self._domains.by_id(request.domid) is None else -EPERM

    def _pod_target(self, vcpu: VCpu, arg: int, done: int) -> int:
        request = self._read(vcpu, abi.xen_pod_target, arg)
        return -ESRCH if self._any_domain(vcpu, request.domid) is None else -EINVAL

    def _access_op(self, vcpu: VCpu, arg: int, done: int) -> int:
        data = vcpu.space.read(arg, ACCESS_OP_SIZE[vcpu.domain.pv32])
        domain = self._domains.by_id(int.from_bytes(data[ACCESS_DOMID : ACCESS_DOMID + 2], "little"))
        if domain is None:
            return -ESRCH
        return -EPERM if domain is vcpu.domain else -EINVAL

    def _vnuma(self, vcpu: VCpu, arg: int, done: int) -> int:
        if done:
            return -EINVAL
        request = self._read(vcpu, abi.xen_vnuma_topology_info, arg)
        if request.pad:
            return -EINVAL
        domain = self._any_domain(vcpu, request.domid)
        if domain is None:
            return -ESRCH
        return -EOPNOTSUPP if domain is vcpu.domain else -EPERM

    def _reserved_devices(self, vcpu: VCpu, arg: int, done: int) -> int:
        """There is no IOMMU: no memory is reserved for devices behind it."""
        if done:
            return -EINVAL
        pv32 = vcpu.domain.pv32
        layout = DEVICE_MAP[pv32]
        flags, count, buffer = layout.unpack(vcpu.space.read(arg, layout.size))
        if not vcpu.space.allowed(buffer, count * DEVICE_ENTRY[pv32]):
            return -EFAULT
        if flags & ~abi.XENMEM_RDM_ALL:
            return -EINVAL
        vcpu.space.write32(arg + 4, 0)
        return 0

    def _acquire_resource(self, vcpu: VCpu, arg: int, done: int) -> int:
        request = self._read(vcpu, abi.xen_mem_acquire_resource, arg)
        if request.pad or request.frame >> 32 or request.frame + request.nr_frames >> 32:
            return -EINVAL
        return -ESRCH if self._domains.by_id(request.domid) is None else -EPERM
