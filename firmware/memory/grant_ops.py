"""The grant tables themselves: setting one up, its size, its version, its status frames, swapping entries.

Source: grant_table.h; behaviour of Xen 4.17's common/grant_table.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from firmware.abi import grant_table as abi
from firmware.abi.errno import EBUSY, EFAULT, EILSEQ, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from firmware.abi.xen import DOMID_SELF
from firmware.hypercalls import CONTINUE, GuestFault
from firmware.memory.grant_table import GrantTable
from firmware.memory.owner import Domain, Domains, MemoryOwner, VCpu
from firmware.memory.types import PageTypes

FRAME: Final = 4096
SLICE: Final = 256
"""Operations done before a call is restarted."""


def variant_of(vcpu: VCpu, layout: Any) -> Any:
    """The caller's variant of a structure."""
    return layout.w32 if vcpu.domain.pv32 else layout.w64


class GrantTableOps:
    """The commands on a domain's own table. `table` gives an owner's table, made when first needed."""

    __slots__ = ("_domains", "_table", "_types", "commands")

    def __init__(
        self, types: PageTypes, domains: Domains, table: Callable[[MemoryOwner], GrantTable]
    ) -> None:
        self._types = types
        self._domains = domains
        self._table = table
        self.commands: dict[int, Callable[[VCpu, int, int], int]] = {
            abi.GNTTABOP_setup_table: self._setup_table,
            abi.GNTTABOP_query_size: self._query_size,
            abi.GNTTABOP_set_version: self._set_version,
            abi.GNTTABOP_get_version: self._get_version,
            abi.GNTTABOP_get_status_frames: self._get_status_frames,
            abi.GNTTABOP_cache_flush: self.cache_flush,
        }

    def any_domain(self, vcpu: VCpu, domid: int) -> Domain | None:
        """The domain a request names; DOMID_SELF is the caller."""
        return vcpu.domain if domid == DOMID_SELF else self._domains.by_id(domid)

    def _own(self, vcpu: VCpu, domid: int) -> int:
        """The status for an operation on another domain's table, GNTST_okay for the caller's own."""
        domain = self.any_domain(vcpu, domid)
        if domain is None:
            return abi.GNTST_bad_domain
        return abi.GNTST_okay if domain is vcpu.domain else abi.GNTST_permission_denied

    def _setup_table(self, vcpu: VCpu, uop: int, count: int) -> int:
        if count != 1:
            return -EINVAL
        variant = variant_of(vcpu, abi.gnttab_setup_table)
        request = vcpu.space.unpack(uop, variant)
        width = variant.sizes["frame_list"]
        if not vcpu.space.allowed(request.frame_list, request.nr_frames * width):
            return -EFAULT
        status = self._own(vcpu, request.dom)
        if status == abi.GNTST_okay:
            table = self._table(vcpu.domain.memory)
            if request.nr_frames > table.max_frames or not table.grow(request.nr_frames):
                status = abi.GNTST_general_error
            else:
                status = self._list(vcpu, request.frame_list, table.frames[: request.nr_frames], width)
        return self._answer(vcpu, uop, variant, status)

    def _list(self, vcpu: VCpu, at: int, frames: list[int], width: int) -> int:
        try:
            vcpu.space.write(at, b"".join(mfn.to_bytes(width, "little") for mfn in frames))
        except GuestFault:
            return abi.GNTST_bad_virt_addr
        return abi.GNTST_okay

    @staticmethod
    def _answer(vcpu: VCpu, uop: int, variant: Any, status: int) -> int:
        vcpu.space.write(uop + variant.offset["status"], status.to_bytes(2, "little", signed=True))
        return 0

    def _query_size(self, vcpu: VCpu, uop: int, count: int) -> int:
        if count != 1:
            return -EINVAL
        variant = variant_of(vcpu, abi.gnttab_query_size)
        request = vcpu.space.unpack(uop, variant)
        status = self._own(vcpu, request.dom)
        frames, limit = request.nr_frames, request.max_nr_frames
        if status == abi.GNTST_okay:
            table = self._table(vcpu.domain.memory)
            frames, limit = len(table.frames), table.max_frames
        vcpu.space.write(
            uop, variant.pack(dom=request.dom, nr_frames=frames, max_nr_frames=limit, status=status)
        )
        return 0

    def _get_status_frames(self, vcpu: VCpu, uop: int, count: int) -> int:
        if count != 1:
            return -EINVAL
        variant = variant_of(vcpu, abi.gnttab_get_status_frames)
        request = vcpu.space.unpack(uop, variant)
        if not vcpu.space.allowed(request.frame_list, request.nr_frames * 8):
            return -EFAULT
        status = self._own(vcpu, request.dom)
        if status == abi.GNTST_okay:
            table = self._table(vcpu.domain.memory)
            if request.nr_frames > len(table.status_frames):
                status = abi.GNTST_general_error
            else:
                status = self._list(vcpu, request.frame_list, table.status_frames[: request.nr_frames], 8)
        return self._answer(vcpu, uop, variant, status)

    def _set_version(self, vcpu: VCpu, uop: int, count: int) -> int:
        variant = variant_of(vcpu, abi.gnttab_set_version)
        version = vcpu.space.unpack(uop, variant).version
        if version not in (1, 2):
            return -EINVAL
        table = self._table(vcpu.domain.memory)
        if version > table.owner.grants.version:
            return -ENOSYS
        rc = 0
        if version != table.version:
            if any(ref >= abi.GNTTAB_NR_RESERVED_ENTRIES for ref in table.active):
                rc = -EBUSY
            else:
                rc = -table.set_version(version)
        vcpu.space.write(uop, variant.pack(version=table.version))
        return rc

    def _get_version(self, vcpu: VCpu, uop: int, count: int) -> int:
        variant = variant_of(vcpu, abi.gnttab_get_version)
        request = vcpu.space.unpack(uop, variant)
        domain = self.any_domain(vcpu, request.dom)
        if domain is None:
            return -ESRCH
        if domain is not vcpu.domain:
            return -EPERM
        version = self._table(domain.memory).version
        vcpu.space.write(uop, variant.pack(dom=request.dom, pad=request.pad, version=version))
        return 0

    def swap(self, vcpu: VCpu, request: Any) -> dict[str, int]:
        table = self._table(vcpu.domain.memory)
        first, second = request.ref_a, request.ref_b
        if first >= table.entries or second >= table.entries:
            return {"status": abi.GNTST_bad_gntref}
        if first != second:
            if first in table.active or second in table.active:
                return {"status": abi.GNTST_eagain}
            table.swap(first, second)
        return {"status": abi.GNTST_okay}

    def cache_flush(self, vcpu: VCpu, uop: int, count: int, first: int = 0) -> int:
        """Caches are coherent here: only the arguments are judged. From entry `first` on of another domain's
        table a grant is looked for, as a call says that was interrupted while it looked.
        """
        variant = variant_of(vcpu, abi.gnttab_cache_flush)
        if not vcpu.space.allowed(uop, count * variant.size):
            return -EFAULT
        for index in range(min(count, SLICE)):
            rc = self._flush_one(vcpu, vcpu.space.unpack(uop + index * variant.size, variant), first)
            if rc:
                return rc
            first = 0
        if count > SLICE:
            vcpu.restart(abi.GNTTABOP_cache_flush, uop + SLICE * variant.size, count - SLICE)
            return CONTINUE
        return 0

    def _flush_one(self, vcpu: VCpu, request: Any, first: int) -> int:
        if request.offset + request.length > FRAME or request.offset >= FRAME:
            return -EINVAL
        if request.op & ~(abi.GNTTAB_CACHE_CLEAN | abi.GNTTAB_CACHE_INVAL):
            return -EINVAL
        if not request.length or not request.op:
            return -EILSEQ if first else 0
        mfn = request.a >> 12
        if mfn >= self._types.frames.size:
            return -EINVAL
        owner = self._types.owner_of(mfn)
        if owner is None:
            return -EPERM
        if owner is not vcpu.domain.memory and not self._maps(vcpu, owner, mfn, first):
            return -EINVAL
        return -EOPNOTSUPP if request.op == abi.GNTTAB_CACHE_INVAL else 0

    def _maps(self, vcpu: VCpu, owner: MemoryOwner, mfn: int, first: int) -> bool:
        """Whether the caller uses a grant of that frame, entry `first` or later (grant_map_exists)."""
        return any(
            ref >= first and active.mfn == mfn and active.domid == vcpu.domain.id
            for ref, active in self._table(owner).active.items()
        )
