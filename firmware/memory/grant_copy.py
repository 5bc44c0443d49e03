"""GNTTABOP_copy: bytes between frames, one's own or granted (gnttab_copy in common/grant_table.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from firmware.abi import grant_table as abi
from firmware.abi.xen import DOMID_SELF
from firmware.memory.frames import WRITABLE
from firmware.memory.grant_table import Active, GrantTable
from firmware.memory.owner import Domain, Domains, MemoryOwner, VCpu
from firmware.memory.types import PageTypes

FRAME: Final = 4096


class GrantCopy:
    """The operation. `table` gives a domain's grant table."""

    __slots__ = ("_domains", "_memory", "_types", "table")

    def __init__(
        self, types: PageTypes, domains: Domains, table: Callable[[MemoryOwner], GrantTable]
    ) -> None:
        self._types = types
        self._memory = types.memory
        self._domains = domains
        self.table = table

    def copy(self, vcpu: VCpu, request: Any) -> dict[str, int]:
        """One copy; the status to store."""
        source, dest, flags = request.source, request.dest, request.flags
        for end, flag in ((source, abi.GNTCOPY_source_gref), (dest, abi.GNTCOPY_dest_gref)):
            known = self._any_domain(vcpu, end.domid) is not None
            if not known and end.domid:
                return {"status": abi.GNTST_bad_domain}
            if end.domid != DOMID_SELF and not flags & flag:
                return {"status": abi.GNTST_permission_denied}
            if not known:  # domain 0, which grants nothing
                return {"status": abi.GNTST_bad_domain}
        held: list[Callable[[], object]] = []
        try:
            status, origin = self._claim_buffer(vcpu, source, flags & abi.GNTCOPY_source_gref, True, held)
            if status != abi.GNTST_okay:
                return {"status": status}
            status, target = self._claim_buffer(vcpu, dest, flags & abi.GNTCOPY_dest_gref, False, held)
            if status != abi.GNTST_okay:
                return {"status": status}
            length = request.len
            if source.offset + length > FRAME or dest.offset + length > FRAME:
                return {"status": abi.GNTST_bad_copy_arg}
            for end, (_, start, size) in ((source, origin), (dest, target)):
                if end.offset < start or end.offset + length > start + size:
                    return {"status": abi.GNTST_general_error}
            data = self._memory.read((origin[0] << 12) + source.offset, length)
            self._memory.write((target[0] << 12) + dest.offset, data)
            return {"status": abi.GNTST_okay}
        finally:
            for release in reversed(held):
                release()

    def _claim_buffer(
        self, vcpu: VCpu, end: Any, by_reference: int, readonly: bool, held: list[Callable[[], object]]
    ) -> tuple[int, tuple[int, int, int]]:
        """Take one end of a copy: (status, (frame, first byte, bytes)). What was taken is noted in `held`."""
        domain = self._any_domain(vcpu, end.domid)
        if domain is None:
            return abi.GNTST_bad_domain, (0, 0, 0)
        types = self._types
        if by_reference:
            status, buffer = self._acquire(domain, end.u & 0xFFFF_FFFF, vcpu.domain.id, readonly, held)
            if status != abi.GNTST_okay:
                return status, buffer
        else:
            buffer = (end.u, 0, FRAME)
            if not types.get_page(end.u, domain.memory):
                return abi.GNTST_bad_page, buffer
            held.append(lambda: types.put_page(buffer[0]))
        if not readonly:
            if types.get_type(buffer[0], WRITABLE):
                return abi.GNTST_general_error, buffer
            held.append(lambda: types.put_type(buffer[0]))
        return abi.GNTST_okay, buffer

    def _acquire(
        self,
        domain: Domain,
        ref: int,
        domid: int,
        readonly: bool,
        held: list[Callable[[], object]],
        depth: int = 0,
    ) -> tuple[int, tuple[int, int, int]]:
        """Use a grant for one copy (acquire_grant_for_copy): whole page, part of one, or another domain's
        grant.
        """
        table = self.table(domain.memory)
        nothing = (0, 0, 0)
        if ref >= table.entries:
            return abi.GNTST_bad_gntref, nothing
        low, high = table.words(ref)
        active = table.active.get(ref)
        if active is not None and (active.domid != domid or active.full):
            return abi.GNTST_general_error, nothing
        transitive = table.version == 2 and low & abi.GTF_type_mask == abi.GTF_transitive
        if active is None or (not readonly and not active.writers):
            status = table.claim(ref, low, domid, pinned=active is not None, readonly=readonly, mapping=False)
            if status != abi.GNTST_okay:
                return status, nothing
            if active is not None and not transitive and high != active.mfn:
                table.release(ref, active, readonly=readonly)
                return abi.GNTST_general_error if self._owned(table, high) else abi.GNTST_bad_page, nothing
        fresh = active is None
        if active is not None and transitive:
            status, buffer = self._through(table, low, high, readonly, held, depth)
            same = active.transitive == (low >> 32 & 0xFFFF, high & 0xFFFF_FFFF)
            same = same and buffer == (active.mfn, active.start, active.length)
            if status == abi.GNTST_okay and not same:
                status = abi.GNTST_eagain
            if status != abi.GNTST_okay:
                table.release(ref, active, readonly=readonly)
                return status, nothing
        if active is None:
            status, active = self._activate(table, ref, low, high, domid, readonly, held, depth)
            if active is None:
                return status, nothing
        if not self._types.get_page(active.mfn, self._holder(active.mfn, table.owner)):
            if fresh:
                table.release(ref, active, readonly=readonly)
            return abi.GNTST_bad_page, nothing
        if readonly:
            active.host_read += 1
        else:
            active.host_write += 1
        used = active

        def release() -> None:
            if readonly:
                used.host_read -= 1
            else:
                used.host_write -= 1
            table.release(ref, used, readonly=readonly)
            self._types.put_page(used.mfn)

        held.append(release)
        return abi.GNTST_okay, (active.mfn, active.start, active.length)

    def _holder(self, mfn: int, owner: MemoryOwner) -> MemoryOwner:
        """Whose frame it is: the granter's, or, through a transitive grant, somebody else's."""
        found = self._types.owner_of(mfn) if mfn < self._types.frames.size else None
        return found or owner

    def _activate(
        self,
        table: GrantTable,
        ref: int,
        low: int,
        high: int,
        domid: int,
        readonly: bool,
        held: list[Callable[[], object]],
        depth: int,
    ) -> tuple[int, Active | None]:
        """Begin to use an entry that was idle."""
        flags = low & 0xFFFF
        if table.version == 2 and flags & abi.GTF_type_mask == abi.GTF_transitive:
            status, (mfn, start, length) = self._through(table, low, high, readonly, held, depth)
            if status == abi.GNTST_okay:
                active = table.active[ref] = Active(domid, mfn, start, length, sub_page=True)
                active.transitive = low >> 32 & 0xFFFF, high & 0xFFFF_FFFF
                return status, active
        elif table.version == 2 and flags & abi.GTF_sub_page:
            start, length = low >> 32 & 0xFFFF, low >> 48
            active = table.active[ref] = Active(domid, high, start, length, sub_page=True)
            if self._owned(table, high):
                return abi.GNTST_okay, active
            status = abi.GNTST_bad_page
        else:
            active = table.active[ref] = Active(domid, high)
            if self._owned(table, high):
                return abi.GNTST_okay, active
            status = abi.GNTST_bad_page
        table.release(ref, table.active.setdefault(ref, Active(domid, 0)), readonly=readonly)
        return status, None

    def _through(
        self,
        table: GrantTable,
        low: int,
        high: int,
        readonly: bool,
        held: list[Callable[[], object]],
        depth: int,
    ) -> tuple[int, tuple[int, int, int]]:
        """Use the grant a transitive one stands for: another domain's, and no transitive one itself."""
        remote = self._domains.by_id(low >> 32 & 0xFFFF)
        if depth or remote is None or remote.memory is table.owner:
            return abi.GNTST_general_error, (0, 0, 0)
        return self._acquire(remote, high & 0xFFFF_FFFF, table.owner.id, readonly, held, 1)

    def _owned(self, table: GrantTable, mfn: int) -> bool:
        return mfn < self._types.frames.size and self._types.owners[mfn] == table.owner.tag

    def _any_domain(self, vcpu: VCpu, domid: int) -> Domain | None:
        return vcpu.domain if domid == DOMID_SELF else self._domains.by_id(domid)
