"""The page-table hypercalls: mmu_update, update_va_mapping, update_va_mapping_otherdomain, mmuext_op.

Return codes, partial completion and the done counter are those of Xen 4.17's `mm.c`. Long requests are done
in pieces: the call is restarted with MMU_UPDATE_PREEMPTED set, as Xen's continuations are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, Final

from firmware.abi import xen
from firmware.abi.errno import EACCES, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from firmware.hypercalls import CONTINUE, GuestFault, HypercallError, HypercallTable
from firmware.memory.descriptors import Descriptors
from firmware.memory.frames import (
    L1_TABLE,
    L2_TABLE,
    L3_TABLE,
    L4_TABLE,
    ONE,
    TYPE_MASK,
    VALID_MASK,
    VALIDATED,
    WRITABLE,
)
from firmware.memory.m2p import MachineToPhys
from firmware.memory.owner import DOMID_IO, DOMID_XEN, Core, Domain, Domains, MemoryOwner, VCpu
from firmware.memory.pte import (
    ACCESSED_DIRTY,
    ADDRESS,
    GLOBAL,
    GUEST_KERNEL,
    L1_DISALLOWED,
    REVALIDATE,
    RW,
    USER,
)
from firmware.memory.types import WRITABLE_VALIDATED, PageTypes
from firmware.memory.update import EntryUpdate

PREEMPTED: Final = 1 << 31
"""MMU_UPDATE_PREEMPTED (x86 mm.c): this is the rest of a request begun earlier."""
COUNT_MASK: Final = 0xFFFF_FFFF
SLICE: Final = 1024
"""Requests done before a call is restarted."""
UPDATE_SIZE: Final = 16
MODE_MASK: Final = 7
L1_VALIDATED: Final = L1_TABLE | VALIDATED
KERNEL_USER: Final = GUEST_KERNEL | USER


_PAIR: Final = Struct("<QQ").unpack


class Mmu:
    """The handlers. Foreign domains are resolved by `domains`."""

    __slots__ = (
        "_commands",
        "_descriptors",
        "_domains",
        "_levels",
        "_m2p",
        "_memory",
        "_q",
        "_shootdown",
        "_size",
        "_types",
        "_update",
    )

    def __init__(
        self, types: PageTypes, m2p: MachineToPhys, descriptors: Descriptors, domains: Domains
    ) -> None:
        self._types = types
        self._memory = types.memory
        self._q = types.memory.q
        self._size = types.frames.size
        self._m2p = m2p
        self._domains = domains
        self._descriptors = descriptors
        self._shootdown = types.shootdown
        update = self._update = EntryUpdate(types)
        self._levels: dict[int, Callable[[int, int, MemoryOwner, bool], int]] = {
            L2_TABLE: update.l2,
            L3_TABLE: update.l3,
            L4_TABLE: update.l4,
        }
        self._commands: dict[int, Callable[[VCpu, int, int, MemoryOwner | None], int]] = {
            xen.MMUEXT_PIN_L1_TABLE: self._pin_l1,
            xen.MMUEXT_PIN_L2_TABLE: self._pin_l2,
            xen.MMUEXT_PIN_L3_TABLE: self._pin_l3,
            xen.MMUEXT_PIN_L4_TABLE: self._pin_l4,
            xen.MMUEXT_UNPIN_TABLE: self._unpin,
            xen.MMUEXT_NEW_BASEPTR: self._new_baseptr,
            xen.MMUEXT_NEW_USER_BASEPTR: self._new_user_baseptr,
            xen.MMUEXT_TLB_FLUSH_LOCAL: self._flush_local,
            xen.MMUEXT_INVLPG_LOCAL: self._invlpg_local,
            xen.MMUEXT_TLB_FLUSH_MULTI: self._flush_multi,
            xen.MMUEXT_INVLPG_MULTI: self._invlpg_multi,
            xen.MMUEXT_TLB_FLUSH_ALL: self._flush_all,
            xen.MMUEXT_INVLPG_ALL: self._invlpg_all,
            xen.MMUEXT_FLUSH_CACHE: self._flush_cache,
            xen.MMUEXT_FLUSH_CACHE_GLOBAL: self._flush_cache_global,
            xen.MMUEXT_SET_LDT: self._set_ldt,
            xen.MMUEXT_CLEAR_PAGE: self._clear_page,
            xen.MMUEXT_COPY_PAGE: self._copy_page,
            xen.MMUEXT_MARK_SUPER: self._super,
            xen.MMUEXT_UNMARK_SUPER: self._super,
        }

    def register(self, table: HypercallTable) -> None:
        """Enter the handlers into the hypercall table."""
        table.register("mmu_update", self.mmu_update)
        table.register("mmuext_op", self.mmuext_op)
        table.register("update_va_mapping", self.update_va_mapping)
        table.register("update_va_mapping_otherdomain", self.update_va_mapping_otherdomain)

    @property
    def update(self) -> EntryUpdate:
        """Updates of single entries, for the other parts of this floor."""
        return self._update

    # mmu_update

    def mmu_update(self, vcpu: VCpu, ureqs: int, count: int, pdone: int, foreigndom: int) -> int:
        """Apply `count` updates from `ureqs`; how many were done is added at `pdone`.

        Requests are read ahead to the end of their page; an update of anything but an L1 table, which might
        change them, makes the rest be read again.
        """
        count &= COUNT_MASK
        done = 0
        space = vcpu.space
        if count & PREEMPTED:
            count &= ~PREEMPTED
            done = self._read_done(vcpu, pdone)
        owner = vcpu.domain.memory
        pages: MemoryOwner | None = owner
        allowed = 0
        if foreigndom != xen.DOMID_SELF:
            if not space.allowed(ureqs, count * UPDATE_SIZE):
                return -EFAULT
            pages, allowed = self._foreign(vcpu, foreigndom & COUNT_MASK)
        elif count != 1 and not space.allowed(ureqs, count * UPDATE_SIZE):
            return -EFAULT
        types, q, store = self._types, self._q, self._memory.store64
        words, counts, owners = types.types, types.counts, types.owners
        size, pv32 = self._size, owner.pv32
        table_tag = owner.tag
        page_tag = owner.tag if pages is owner else -1 if pages is None else pages.tag
        rc = position = 0
        limit = min(count, SLICE)
        flush = False
        ahead: list[int] = []
        try:
            while position < limit:
                if ahead:
                    ptr, new = ahead.pop(), ahead.pop()
                elif limit - position == 1:
                    ptr, new = _PAIR(space.read(ureqs + position * UPDATE_SIZE, UPDATE_SIZE))
                else:
                    at = ureqs + position * UPDATE_SIZE
                    here = min(limit - position, (4096 - (at & 4095)) // UPDATE_SIZE) or 1
                    ahead = memoryview(space.read(at, here * UPDATE_SIZE)).cast("Q").tolist()
                    ahead.reverse()
                    ptr, new = ahead.pop(), ahead.pop()
                mode = ptr & MODE_MASK
                mfn = ptr >> 12
                if mode == 1 or mode > 3 or allowed:
                    rc = self._odd(vcpu, ptr, new, pages, allowed)
                    if rc:
                        break
                    position += 1
                    continue
                if mfn >= size or owners[mfn] != table_tag:
                    rc = -EINVAL
                    break
                word = words[mfn]
                if word & VALID_MASK != L1_VALIDATED or word < ONE:
                    ahead.clear()
                    kind = word & TYPE_MASK
                    rc = self._other(ptr - mode, new, word, owner, pages, mode == 2)
                    if rc:
                        break
                    if L2_TABLE <= kind <= L4_TABLE and word >= ONE:
                        flush = True
                    position += 1
                    continue
                index = ptr >> 3
                old = q[index]
                if new & 1:
                    if new & L1_DISALLOWED:
                        rc = -EINVAL
                        break
                    if not pv32:
                        if not new & USER:
                            new |= KERNEL_USER
                        elif not new & GUEST_KERNEL:
                            new |= GLOBAL
                    if not (old ^ new) & REVALIDATE:
                        store(index << 3, new | old & ACCESSED_DIRTY if mode == 2 else new)
                        position += 1
                        continue
                    target = (new & ADDRESS) >> 12
                    if target < size and owners[target] == page_tag:
                        if new & RW:
                            word = words[target]
                            if word & VALID_MASK == WRITABLE_VALIDATED and word >= ONE:
                                words[target] = word + ONE
                                counts[target] += ONE
                            else:
                                rc = types.get_page_from_l1(new, owner, pages)
                                if rc:
                                    break
                        else:
                            counts[target] += ONE
                    else:
                        rc = types.get_page_from_l1(new, owner, pages)
                        if rc:
                            break
                store(index << 3, new | old & ACCESSED_DIRTY if mode == 2 else new)
                if old & 1:
                    target = (old & ADDRESS) >> 12
                    if old & RW:
                        word = words[target]
                        if word >= 2 * ONE:
                            words[target] = word - ONE
                        else:
                            types.put_type(target)
                    word = counts[target]
                    if word >= 2 * ONE:
                        counts[target] = word - ONE
                    else:
                        types.put_page(target)
                position += 1
        except GuestFault:
            rc = -EFAULT
        if flush:
            self._shootdown.owner(owner)
        if pdone:
            self._write_done(vcpu, pdone, done + position)
        if rc == 0 and position < count:
            vcpu.restart(ureqs + position * UPDATE_SIZE, (count - position) | PREEMPTED, pdone, foreigndom)
            return CONTINUE
        return rc

    def _other(
        self, at: int, new: int, word: int, owner: MemoryOwner, pages: MemoryOwner | None, preserve: bool
    ) -> int:
        """An update of something that is not an L1 table: a table above, or an ordinary page, which is
        written.
        """
        kind = word & TYPE_MASK
        if word >= ONE and word & VALIDATED:
            level = self._levels.get(kind)
            if level is not None:
                return -EINVAL if pages is not owner else level(at, new, owner, preserve)
            if kind == WRITABLE:
                self._memory.store64(at, new)
                return 0
            return -EINVAL
        mfn = at >> 12
        if self._types.get_type(mfn, WRITABLE):
            return -EINVAL
        self._memory.store64(at, new)
        self._types.put_type(mfn)
        return 0

    def _odd(self, vcpu: VCpu, ptr: int, new: int, pages: MemoryOwner | None, allowed: int) -> int:
        """Machine-to-phys updates, unknown commands, and everything a domain may not do to another."""
        mode = ptr & MODE_MASK
        if mode > xen.MMU_PT_UPDATE_NO_TRANSLATE:
            return -ENOSYS
        if allowed:
            return allowed
        mfn = ptr >> 12
        if pages is None or mfn >= self._size or self._types.owners[mfn] != pages.tag:
            return -EINVAL
        self._m2p.set(mfn, new)
        return 0

    def _foreign(self, vcpu: VCpu, foreigndom: int) -> tuple[MemoryOwner | None, int]:
        """Whose frames may be mapped, and the error every request gets when it is somebody's the caller may
        not touch.

        None stands for DOMID_IO. Raises HypercallError(ESRCH) for a domain that does not exist.
        """
        domain = vcpu.domain
        denied = 0
        if foreigndom >> 16:
            tables = self._domains.by_id((foreigndom >> 16) - 1)
            if tables is None:
                raise HypercallError(ESRCH)
            if tables is not domain:
                denied = -EPERM
        pages, foreign_denied = self.page_owner(domain, foreigndom & 0xFFFF)
        return pages, denied or foreign_denied

    def page_owner(self, domain: Domain, domid: int) -> tuple[MemoryOwner | None, int]:
        """The memory a foreign-domain argument names, and 0 or -EPERM (get_pg_owner and the default XSM
        policy).

        Raises HypercallError(ESRCH) for an unknown domain and for the caller's own number.
        """
        if domid == xen.DOMID_SELF:
            return domain.memory, 0
        if domid == DOMID_IO:
            return None, 0
        if domid == DOMID_XEN:
            return None, -EPERM
        if domid == domain.id:
            raise HypercallError(ESRCH)
        foreign = self._domains.by_id(domid)
        if foreign is None:
            raise HypercallError(ESRCH)
        return foreign.memory, -EPERM

    # update_va_mapping

    def update_va_mapping(self, vcpu: VCpu, va: int, val: int, flags: int, high_flags: int = 0) -> int:
        """Set the L1 entry that maps `va` and flush as `flags` say. A 32-bit guest passes (va, low, high,
        flags).
        """
        if vcpu.domain.pv32:
            val, flags = val & 0xFFFF_FFFF | (flags & 0xFFFF_FFFF) << 32, high_flags
        return self._set_mapping(vcpu, va, val, flags, vcpu.domain.memory, 0)

    def update_va_mapping_otherdomain(
        self, vcpu: VCpu, va: int, val: int, flags: int, domid: int, compat_domid: int = 0
    ) -> int:
        """The same, mapping a frame of another domain."""
        if vcpu.domain.pv32:
            val, flags, domid = val & 0xFFFF_FFFF | (flags & 0xFFFF_FFFF) << 32, domid, compat_domid
        pages, denied = self.page_owner(vcpu.domain, domid & 0xFFFF)
        return self._set_mapping(vcpu, va, val, flags, pages, denied)

    def _set_mapping(
        self, vcpu: VCpu, va: int, new: int, flags: int, pages: MemoryOwner | None, denied: int
    ) -> int:
        if denied:
            return denied
        owner = vcpu.domain.memory
        at = vcpu.space.entry_address(va)
        mfn = at >> 12
        types = self._types
        if not at or types.owners[mfn] != owner.tag:
            return -EINVAL
        word = types.types[mfn]
        if word & VALID_MASK != L1_VALIDATED or word < ONE:
            return -EINVAL
        rc = self._update.l1(at, new, owner, pages)
        if rc:
            return rc
        kind = flags & xen.UVMF_FLUSHTYPE_MASK
        if kind == xen.UVMF_NONE or kind == xen.UVMF_FLUSHTYPE_MASK:
            return 0
        scope = flags & ~xen.UVMF_FLUSHTYPE_MASK
        if scope == xen.UVMF_LOCAL:
            cores: Sequence[Core] = (vcpu.core,)
        elif scope == xen.UVMF_ALL:
            cores = owner.cores
        else:
            try:
                cores = self._cores_of(vcpu, scope)
            except GuestFault:
                return -EFAULT
        if kind == xen.UVMF_TLB_FLUSH:
            self._shootdown.cores(cores)
        else:
            self._shootdown.page(cores, va)
        return 0

    def _cores_of(self, vcpu: VCpu, bitmap: int) -> list[Core]:
        """The cores on which the vCPUs of a guest's bitmap may have translations (vcpumask_to_pcpumask)."""
        domain = vcpu.domain
        vcpus = domain.vcpus
        width = 32 if domain.pv32 else 64
        cores: list[Core] = []
        dirty = domain.memory.cores
        for bias in range(0, len(vcpus), width):
            at = bitmap + bias // 8
            mask = vcpu.space.read32(at) if width == 32 else vcpu.space.read64(at)
            for bit in range(min(width, len(vcpus) - bias)):
                if mask >> bit & 1:
                    target = vcpus[bias + bit]
                    if target is not None and target.core in dirty and target.core not in cores:
                        cores.append(target.core)
        return cores

    # mmuext_op

    def mmuext_op(self, vcpu: VCpu, uops: int, count: int, pdone: int, foreigndom: int) -> int:
        """Run `count` extended operations from `uops`; how many were done is added at `pdone`."""
        count &= COUNT_MASK
        done = 0
        if count & PREEMPTED:
            count &= ~PREEMPTED
            done = self._read_done(vcpu, pdone)
        domain, space = vcpu.domain, vcpu.space
        variant: Any = xen.mmuext_op.w32 if domain.pv32 else xen.mmuext_op.w64
        size = variant.size
        if not space.allowed(uops, count * size):
            return -EFAULT
        pages, denied = self.page_owner(domain, foreigndom & 0xFFFF)
        if pages is None:
            denied = -EPERM
        if denied:
            return denied
        commands, unpack = self._commands, variant.codec.unpack
        position = rc = 0
        limit = min(count, SLICE)
        while position < limit:
            try:
                cmd, arg1, arg2 = unpack(space.read(uops + position * size, size))
            except GuestFault:
                rc = -EFAULT
                break
            command = commands.get(cmd)
            rc = -ENOSYS if command is None else command(vcpu, arg1, arg2, pages)
            if rc:
                break
            position += 1
        if pdone:
            self._write_done(vcpu, pdone, done + position)
        if rc == 0 and position < count:
            vcpu.restart(uops + position * size, (count - position) | PREEMPTED, pdone, foreigndom)
            return CONTINUE
        return rc

    def _pin_l1(self, vcpu: VCpu, mfn: int, arg2: int, pages: MemoryOwner | None) -> int:
        return self._pin(mfn, vcpu, L1_TABLE)

    def _pin_l2(self, vcpu: VCpu, mfn: int, arg2: int, pages: MemoryOwner | None) -> int:
        return self._pin(mfn, vcpu, L2_TABLE)

    def _pin_l3(self, vcpu: VCpu, mfn: int, arg2: int, pages: MemoryOwner | None) -> int:
        return self._pin(mfn, vcpu, L3_TABLE)

    def _pin_l4(self, vcpu: VCpu, mfn: int, arg2: int, pages: MemoryOwner | None) -> int:
        return 0 if vcpu.domain.pv32 else self._pin(mfn, vcpu, L4_TABLE)

    def _pin(self, mfn: int, vcpu: VCpu, kind: int) -> int:
        return self._types.pin(mfn, vcpu.domain.memory, kind)

    def _unpin(self, vcpu: VCpu, mfn: int, arg2: int, pages: MemoryOwner | None) -> int:
        return self._types.unpin(mfn, vcpu.domain.memory)

    def _new_baseptr(self, vcpu: VCpu, mfn: int, arg2: int, pages: MemoryOwner | None) -> int:
        owner = vcpu.domain.memory
        old = vcpu.kernel_root
        if mfn != old:
            types = self._types
            rc = types.get_page_and_type(mfn, owner, L3_TABLE if owner.pv32 else L4_TABLE)
            if rc:
                return rc
            self._descriptors.drop_ldt(vcpu)
            if not owner.m2p_strict and not owner.pv32:
                types.slots.show_m2p(mfn << 12)
            vcpu.kernel_root = mfn
            vcpu.space.root = mfn << 12
            self._shootdown.load_root(vcpu.core, mfn << 12)
            if old:
                types.put_page_and_type(old)
        else:
            if owner.pv32:
                self._descriptors.drop_ldt(vcpu)
            self._shootdown.load_root(vcpu.core, mfn << 12)
        return 0

    def load_root(self, vcpu: VCpu, mfn: int) -> int:
        """Make frame `mfn` the running vCPU's kernel root (MMUEXT_NEW_BASEPTR, MOV to CR3); 0 or a negative
        errno.
        """
        return self._new_baseptr(vcpu, mfn, 0, vcpu.domain.memory)

    def _new_user_baseptr(self, vcpu: VCpu, mfn: int, arg2: int, pages: MemoryOwner | None) -> int:
        owner = vcpu.domain.memory
        old = vcpu.user_root
        if mfn == old:
            return 0
        types = self._types
        if mfn:
            rc = types.get_page_and_type(mfn, owner, L4_TABLE)
            if rc:
                return rc
            if owner.m2p_strict:
                types.slots.hide_m2p(mfn << 12)
        vcpu.user_root = mfn
        vcpu.core.flush_parked()
        if old:
            types.put_page_and_type(old)
        return 0

    def _flush_local(self, vcpu: VCpu, arg1: int, arg2: int, pages: MemoryOwner | None) -> int:
        self._shootdown.core(vcpu.core)
        return 0

    def _invlpg_local(self, vcpu: VCpu, va: int, arg2: int, pages: MemoryOwner | None) -> int:
        if vcpu.space.allowed(va):
            self._shootdown.page((vcpu.core,), va)
        return 0

    def _flush_multi(self, vcpu: VCpu, arg1: int, bitmap: int, pages: MemoryOwner | None) -> int:
        try:
            cores = self._cores_of(vcpu, bitmap)
        except GuestFault:
            return -EINVAL
        self._shootdown.cores(cores)
        return 0

    def _invlpg_multi(self, vcpu: VCpu, va: int, bitmap: int, pages: MemoryOwner | None) -> int:
        try:
            cores = self._cores_of(vcpu, bitmap)
        except GuestFault:
            return -EINVAL
        if vcpu.space.allowed(va):
            self._shootdown.page(cores, va)
        return 0

    def _flush_all(self, vcpu: VCpu, arg1: int, arg2: int, pages: MemoryOwner | None) -> int:
        self._shootdown.owner(vcpu.domain.memory)
        return 0

    def _invlpg_all(self, vcpu: VCpu, va: int, arg2: int, pages: MemoryOwner | None) -> int:
        if vcpu.space.allowed(va):
            self._shootdown.page(vcpu.domain.memory.cores, va)
        return 0

    def _flush_cache(self, vcpu: VCpu, arg1: int, arg2: int, pages: MemoryOwner | None) -> int:
        return -EACCES

    def _flush_cache_global(self, vcpu: VCpu, arg1: int, arg2: int, pages: MemoryOwner | None) -> int:
        return -EINVAL

    def _set_ldt(self, vcpu: VCpu, base: int, entries: int, pages: MemoryOwner | None) -> int:
        return self._descriptors.set_ldt(vcpu, base, entries & COUNT_MASK)

    def _clear_page(self, vcpu: VCpu, mfn: int, arg2: int, pages: MemoryOwner | None) -> int:
        types = self._types
        if types.get_page_and_type(mfn, vcpu.domain.memory, WRITABLE):
            return -EINVAL
        self._memory.fill(mfn << 12, 4096)
        types.put_page_and_type(mfn)
        return 0

    def _copy_page(self, vcpu: VCpu, mfn: int, source: int, pages: MemoryOwner | None) -> int:
        types = self._types
        owner = vcpu.domain.memory
        if not types.get_page(source, owner):
            return -EINVAL
        rc = types.get_page_and_type(mfn, owner, WRITABLE)
        if not rc:
            self._memory.copy_frame(mfn, source)
            types.put_page_and_type(mfn)
        types.put_page(source)
        return -EINVAL if rc else 0

    def _super(self, vcpu: VCpu, arg1: int, arg2: int, pages: MemoryOwner | None) -> int:
        return -EOPNOTSUPP

    # The done counter

    def _read_done(self, vcpu: VCpu, pdone: int) -> int:
        if not pdone:
            return 0
        try:
            return vcpu.space.read32(pdone)
        except GuestFault:
            return 0

    def _write_done(self, vcpu: VCpu, pdone: int, done: int) -> None:
        """Xen ignores a counter it cannot write."""
        try:
            vcpu.space.write32(pdone, done & COUNT_MASK)
        except GuestFault:
            return
