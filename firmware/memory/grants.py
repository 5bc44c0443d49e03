"""grant_table_op: one domain lets another use its frames (Xen 4.17 common/grant_table.c, x86
pv/grant_table.c).

A mapping holds a reference to the frame, and a type reference when it may write; unmapping flushes before
either is dropped. Statuses (GNTST_*) go into each operation's structure, errnos are the call's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from firmware.abi import grant_table as abi
from firmware.abi.errno import EFAULT, EINVAL, ENOSYS
from firmware.hypercalls import CONTINUE, HypercallTable
from firmware.memory.frames import FOREIGN, L1_TABLE, ONE, VALID_MASK, VALIDATED, WRITABLE
from firmware.memory.grant_copy import GrantCopy
from firmware.memory.grant_ops import SLICE, GrantTableOps, variant_of
from firmware.memory.grant_table import Active, GrantTable, Mapping
from firmware.memory.heap import CACHE_TAG
from firmware.memory.m2p import INVALID
from firmware.memory.owner import Domain, Domains, MemoryOwner, VCpu
from firmware.memory.pte import ACCESSED, ADDRESS, AVAILABLE, DIRTY, NO_EXECUTE, PRESENT, RW, USER, adjust_l1
from firmware.memory.types import PageTypes
from firmware.memory.update import EntryUpdate

COMMAND_MASK: Final = 0xFFF
"""GNTTABOP_CMD_MASK: above are continuation arguments, which a guest does not pass."""
MAP_KINDS: Final = abi.GNTMAP_device_map | abi.GNTMAP_host_map
AVAILABLE_SHIFT: Final = 16


class Grants:
    """The handler and every domain's table."""

    __slots__ = ("_commands", "_domains", "_memory", "_own_table", "_tables", "_types", "_update")

    def __init__(self, types: PageTypes, update: EntryUpdate, domains: Domains) -> None:
        self._types = types
        self._memory = types.memory
        self._update = update
        self._domains = domains
        self._tables: dict[int, GrantTable] = {}
        copies = GrantCopy(types, domains, self.table)
        self._own_table = GrantTableOps(types, domains, self.table)
        self._commands: dict[int, Callable[[VCpu, int, int], int]] = {
            abi.GNTTABOP_map_grant_ref: self._each(abi.gnttab_map_grant_ref, self._map),
            abi.GNTTABOP_unmap_grant_ref: self._each(abi.gnttab_unmap_grant_ref, self._unmap),
            abi.GNTTABOP_unmap_and_replace: self._each(abi.gnttab_unmap_and_replace, self._unmap_and_replace),
            abi.GNTTABOP_transfer: self._each(abi.gnttab_transfer, self._transfer),
            abi.GNTTABOP_copy: self._each(abi.gnttab_copy, copies.copy),
            abi.GNTTABOP_swap_grant_ref: self._each(abi.gnttab_swap_grant_ref, self._own_table.swap),
            **self._own_table.commands,
        }

    def register(self, table: HypercallTable) -> None:
        """Enter the handler into the hypercall table."""
        table.register("grant_table_op", self.grant_table_op)

    # Tables

    def table(self, owner: MemoryOwner) -> GrantTable:
        """A domain's table; made when first needed. MemoryError when there is no frame for it."""
        table = self._tables.get(owner.id)
        if table is None:
            table = self._tables[owner.id] = GrantTable(self._memory, self._types.heap, owner)
        return table

    def seed(self, owner: MemoryOwner, ref: int, domid: int, mfn: int) -> None:
        """Write a grant on a new domain's behalf: reserved entry `ref` lets `domid` use frame `mfn`."""
        self.table(owner).store_entry(ref, abi.GTF_permit_access | domid << 16, mfn)

    def release(self, owner: MemoryOwner) -> None:
        """A domain has died: let go of all it had mapped. Its host mappings' references go with its page
        tables.
        """
        table = self._tables.get(owner.id)
        if table is None:
            return
        for handle, mapping in enumerate(table.mappings):
            if mapping is not None:
                self._drop(mapping, mapping.flags, mapping.flags & abi.GNTMAP_device_map)
                table.mappings[handle] = None

    def free_table(self, owner: MemoryOwner) -> None:
        """Give back the table's own frames, which nothing maps; while others still use its grants it stays,
        and goes with the last use.
        """
        table = self._tables.get(owner.id)
        if table is None:
            return
        table.abandoned = True
        if not table.active:
            del self._tables[owner.id]
            for mfn in (*table.frames, *table.status_frames):
                self._types.heap.release_xen(mfn)

    def grant_table_op(self, vcpu: VCpu, cmd: int, uop: int, count: int) -> int:
        """Hypercall: `count` operations of one kind."""
        count &= 0xFFFF_FFFF
        cmd &= 0xFFFF_FFFF
        if count >> 31:
            return -EINVAL
        if cmd & ~COMMAND_MASK:
            if cmd & COMMAND_MASK != abi.GNTTABOP_cache_flush:
                return -EINVAL
            return self._own_table.cache_flush(vcpu, uop, count, cmd & ~COMMAND_MASK)
        command = self._commands.get(cmd & COMMAND_MASK)
        return -ENOSYS if command is None else command(vcpu, uop, count)

    # Helpers

    def _each(
        self, layout: Any, operation: Callable[[VCpu, Any], dict[str, int]]
    ) -> Callable[[VCpu, int, int], int]:
        """A command over an array: each element is read, done, and the fields `operation` returns are
        stored back.
        """

        def handler(vcpu: VCpu, uop: int, count: int) -> int:
            variant = variant_of(vcpu, layout)
            size = variant.size
            space = vcpu.space
            if not space.allowed(uop, count * size):
                return -EFAULT
            for index in range(min(count, SLICE)):
                at = uop + index * size
                for field, value in operation(vcpu, space.unpack(at, variant)).items():
                    width = variant.sizes[field]
                    space.write(
                        at + variant.offset[field], (value & (1 << width * 8) - 1).to_bytes(width, "little")
                    )
            if count > SLICE:
                command = next(number for number, known in self._commands.items() if known is handler)
                vcpu.restart(command, uop + SLICE * size, count - SLICE)
                return CONTINUE
            return 0

        return handler

    # Mapping

    def _map(self, vcpu: VCpu, request: Any) -> dict[str, int]:
        flags = request.flags
        if not flags & MAP_KINDS:
            return {"status": abi.GNTST_bad_gntref}
        remote = self._domains.by_id(request.dom)
        if remote is None:
            return {"status": abi.GNTST_bad_domain}
        mine = self.table(vcpu.domain.memory)
        handle = mine.new_handle()
        if handle is None:
            return {"status": abi.GNTST_no_device_space}
        status, mfn = self._map_grant(vcpu, request, flags, remote)
        if status != abi.GNTST_okay:
            mine.free_handle(handle)
            return {"status": status}
        mine.mappings[handle] = Mapping(request.dom, request.ref, flags)
        return {"status": status, "handle": handle, "dev_bus_addr": mfn << 12}

    def _map_grant(self, vcpu: VCpu, request: Any, flags: int, remote: Domain) -> tuple[int, int]:
        table = self.table(remote.memory)
        ref = request.ref
        readonly = bool(flags & abi.GNTMAP_readonly)
        status, active = self.use(table, ref, vcpu.domain.id, readonly=readonly)
        if active is None:
            return status, 0
        self._count(active, flags, 1)
        status = self._enter_mapping(vcpu, request.host_addr, active.mfn, flags, remote.memory)
        if status != abi.GNTST_okay:
            self._count(active, flags, -1)
            table.release(ref, active, readonly=readonly)
        return status, active.mfn

    def use(self, table: GrantTable, ref: int, domid: int, *, readonly: bool) -> tuple[int, Active | None]:
        """Check a whole-page grant and mark it used; no use is counted yet."""
        if ref >= table.entries:
            return abi.GNTST_bad_gntref, None
        low, high = table.words(ref)
        active = table.active.get(ref)
        if active is not None and (active.domid != domid or active.full or active.sub_page):
            return abi.GNTST_general_error, None
        if active is None or (not readonly and not active.writers):
            status = table.claim(ref, low, domid, pinned=active is not None, readonly=readonly, mapping=True)
            if status != abi.GNTST_okay:
                return status, None
        if active is None:
            active = table.active[ref] = Active(domid, high)
            if not self._types.get_page(high, table.owner):
                table.release(ref, active, readonly=readonly)
                return abi.GNTST_bad_page, None
            self._types.put_page(high)
        return abi.GNTST_okay, active

    @staticmethod
    def _count(active: Active, flags: int, step: int) -> None:
        if flags & abi.GNTMAP_readonly:
            active.device_read += step if flags & abi.GNTMAP_device_map else 0
            active.host_read += step if flags & abi.GNTMAP_host_map else 0
        else:
            active.device_write += step if flags & abi.GNTMAP_device_map else 0
            active.host_write += step if flags & abi.GNTMAP_host_map else 0

    def _enter_mapping(self, vcpu: VCpu, host_addr: int, mfn: int, flags: int, owner: MemoryOwner) -> int:
        """Take the frame once for each kind of mapping, and put it into the page table for a host mapping."""
        types = self._types
        readonly = flags & abi.GNTMAP_readonly
        taken = 0
        for kind in (abi.GNTMAP_host_map, abi.GNTMAP_device_map):
            if flags & kind:
                failed = not types.get_page(mfn, owner)
                if not failed and not readonly and types.get_type(mfn, WRITABLE):
                    types.put_page(mfn)
                    failed = True
                if failed:
                    self._put(mfn, readonly, taken)
                    return abi.GNTST_general_error
                taken += 1
        if flags & abi.GNTMAP_host_map and not self._create(vcpu, host_addr, mfn, flags):
            self._put(mfn, readonly, taken)
            return abi.GNTST_general_error
        return abi.GNTST_okay

    def _put(self, mfn: int, readonly: int, count: int = 1) -> None:
        for _ in range(count):
            if readonly:
                self._types.put_page(mfn)
            else:
                self._types.put_page_and_type(mfn)

    @staticmethod
    def _entry(mfn: int, flags: int, pv32: bool) -> int:
        """The L1 entry for a mapping (grant_to_pte_flags)."""
        entry = mfn << 12 | PRESENT | ACCESSED | DIRTY | NO_EXECUTE
        if flags & abi.GNTMAP_application_map:
            entry |= USER
        if not flags & abi.GNTMAP_readonly:
            entry |= RW
        entry |= flags >> AVAILABLE_SHIFT << 9 & AVAILABLE
        return adjust_l1(entry, pv32)

    def _slot(self, vcpu: VCpu, address: int, contains_pte: int) -> int:
        """Machine address of the caller's own L1 entry that `address` names, 0 when it names none."""
        at = address if contains_pte else vcpu.space.entry_address(address)
        mfn = at >> 12
        types = self._types
        if at & 7 or not at or mfn >= types.frames.size or types.owners[mfn] != vcpu.domain.memory.tag:
            return 0
        word = types.types[mfn]
        return at if word & VALID_MASK == L1_TABLE | VALIDATED and word >= ONE else 0

    def _create(self, vcpu: VCpu, address: int, mfn: int, flags: int) -> bool:
        """Put the mapping into the caller's page table; what was there is dropped
        (create_grant_pv_mapping).
        """
        at = self._slot(vcpu, address, flags & abi.GNTMAP_contains_pte)
        if not at:
            return False
        old = self._memory.q[at >> 3]
        if not flags & abi.GNTMAP_readonly:
            self._types.types[mfn] |= FOREIGN
        self._memory.store64(at, self._entry(mfn, flags, vcpu.domain.pv32))
        self._types.put_page_from_l1(old)
        return True

    # Unmapping

    def _unmap(self, vcpu: VCpu, request: Any) -> dict[str, int]:
        return {
            "status": self._unmap_common(vcpu, request.handle, request.host_addr, request.dev_bus_addr, 0)
        }

    def _unmap_and_replace(self, vcpu: VCpu, request: Any) -> dict[str, int]:
        return {"status": self._unmap_common(vcpu, request.handle, request.host_addr, 0, request.new_addr)}

    def _unmap_common(self, vcpu: VCpu, handle: int, host_addr: int, bus_addr: int, new_addr: int) -> int:
        mine = self.table(vcpu.domain.memory)
        mapping = mine.mapping(handle)
        if mapping is None:
            return abi.GNTST_bad_handle
        table = self._tables.get(mapping.domid)
        active = table.active.get(mapping.ref) if table is not None else None
        if active is None:
            return abi.GNTST_bad_handle
        done = 0
        flags = mapping.flags
        if bus_addr and flags & abi.GNTMAP_device_map:
            if bus_addr != active.mfn << 12:
                return abi.GNTST_bad_dev_addr
            done |= abi.GNTMAP_device_map
        if host_addr and flags & abi.GNTMAP_host_map:
            if not self._replace(vcpu, host_addr, active.mfn, new_addr, flags):
                done = done and abi.GNTMAP_device_map
                self._complete(vcpu, mine, handle, mapping, done)
                return abi.GNTST_general_error
            done |= abi.GNTMAP_host_map
        self._complete(vcpu, mine, handle, mapping, done)
        return abi.GNTST_okay

    def _complete(self, vcpu: VCpu, mine: GrantTable, handle: int, mapping: Mapping, done: int) -> None:
        """Flush, then let go of the frame; the handle goes with its last mapping."""
        if not done:
            return
        self._types.shootdown.owner(vcpu.domain.memory)
        self._drop(mapping, done | mapping.flags & abi.GNTMAP_readonly, done)
        mapping.flags &= ~done
        if not mapping.flags & MAP_KINDS:
            mine.free_handle(handle)

    def _drop(self, mapping: Mapping, flags: int, held: int) -> None:
        """End the uses in `flags`; those also in `held` hold a reference to the frame."""
        table = self._tables[mapping.domid]
        active = table.active[mapping.ref]
        readonly = flags & abi.GNTMAP_readonly
        self._put(active.mfn, readonly, (held & MAP_KINDS).bit_count())
        self._count(active, flags, -1)
        table.release(mapping.ref, active, readonly=bool(readonly))
        if table.abandoned:
            self.free_table(table.owner)

    def _replace(self, vcpu: VCpu, address: int, mfn: int, new_addr: int, flags: int) -> bool:
        """Take the mapping out of the page table; the entry at `new_addr` moves into its place, and is lost
        when the mapping is not there (replace_grant_pv_mapping).
        """
        contains_pte = flags & abi.GNTMAP_contains_pte
        if contains_pte and new_addr:
            return False
        moved = 0
        if new_addr:
            other = self._slot(vcpu, new_addr, 0)
            if not other:
                return False
            moved = self._memory.q[other >> 3]
            if moved & PRESENT and self._types.owners[(moved & ADDRESS) >> 12] == CACHE_TAG:
                return False  # the cache knows by its place who maps a block
            self._memory.store64(other, 0)
        at = self._slot(vcpu, address, contains_pte)
        expected = self._entry(mfn, flags, vcpu.domain.pv32)
        if not at or (self._memory.q[at >> 3] ^ expected) & (ADDRESS | PRESENT | RW):
            self._types.put_page_from_l1(moved)
            return False
        self._memory.store64(at, moved)
        return True

    # Transfer

    def _transfer(self, vcpu: VCpu, request: Any) -> dict[str, int]:
        types, heap = self._types, self._types.heap
        owner, mfn = vcpu.domain.memory, request.mfn
        if mfn >= types.frames.size or types.steal(mfn, owner):
            return {"status": abi.GNTST_bad_page}
        types.shootdown.everyone(types.shootdown.clock)
        remote = self._domains.by_id(request.domid)
        if remote is None:
            heap.release(mfn)
            return {"status": abi.GNTST_bad_domain}
        target = remote.memory
        table = self.table(target)
        if (
            target.dying
            or target.pages >= target.maximum
            or not table.commit_transfer(request.ref, vcpu.domain.id)
        ):
            heap.release(mfn)
            return {"status": abi.GNTST_general_error}
        heap.restore(target, mfn)
        low, pfn = table.words(request.ref)
        if heap.m2p is not None:
            heap.m2p.set(mfn, INVALID)
            heap.m2p.set(mfn, pfn)
        table.store_frame(request.ref, mfn)
        table.store_flags(request.ref, low & 0xFFFF | abi.GTF_transfer_completed)
        return {"status": abi.GNTST_okay}
