"""The page-table hypercalls: mmu_update, update_va_mapping, update_va_mapping_otherdomain.

Return codes, partial completion and the done counter are those of Xen 4.17's `mm.c`. Long requests are done
in pieces: the call is restarted with MMU_UPDATE_PREEMPTED set, as Xen's continuations are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final

from firmware.abi import xen
from firmware.abi.errno import EFAULT, EINVAL, ENOSYS, EPERM, ESRCH
from firmware.hypercalls import CONTINUE, GuestFault, HypercallError, HypercallTable
from firmware.memory.descriptors import Descriptors
from firmware.memory.extended import ExtendedOps
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
from firmware.memory.owner import Core, Domains, MemoryOwner, VCpu
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
from firmware.memory.requests import (
    COUNT_MASK,
    PREEMPTED,
    SLICE,
    WORK_DONE,
    again_for_result,
    cores_of,
    page_owner,
    read_done,
    result_of,
    write_done,
)
from firmware.memory.types import WRITABLE_VALIDATED, PageTypes
from firmware.memory.update import KERNEL_USER, EntryUpdate
from firmware.memory.validate import INTERRUPTED

UPDATE_SIZE: Final = 16
MODE_MASK: Final = 7
L1_VALIDATED: Final = L1_TABLE | VALIDATED
NOT_SIMPLE: Final = 1
"""No result of an update: they are 0 or a negative errno."""


_PAIR: Final = Struct("<QQ").unpack


class Mmu:
    """The handlers. Foreign domains are resolved by `domains`."""

    __slots__ = (
        "_domains",
        "_levels",
        "_m2p",
        "_memory",
        "_owners",
        "_q",
        "_shootdown",
        "_size",
        "_types",
        "_update",
        "_words",
        "extended",
    )

    def __init__(
        self, types: PageTypes, m2p: MachineToPhys, descriptors: Descriptors, domains: Domains
    ) -> None:
        self._types = types
        self._memory = types.memory
        self._q = types.memory.q
        self._size = types.frames.size
        self._owners = types.owners
        self._words = types.types
        self._m2p = m2p
        self._domains = domains
        self._shootdown = types.shootdown
        update = self._update = EntryUpdate(types)
        self._levels: dict[int, Callable[[int, int, MemoryOwner, bool], int]] = {
            L2_TABLE: update.l2,
            L3_TABLE: update.l3,
            L4_TABLE: update.l4,
        }
        self.extended = ExtendedOps(types, descriptors, domains)

    def register(self, table: HypercallTable) -> None:
        """Enter the handlers into the hypercall table."""
        table.register("mmu_update", self.mmu_update)
        table.register("mmuext_op", self.extended.mmuext_op)
        table.register("update_va_mapping", self.update_va_mapping)
        table.register("update_va_mapping_otherdomain", self.update_va_mapping_otherdomain)

    @property
    def update(self) -> EntryUpdate:
        """Updates of single entries, for the other parts of this floor."""
        return self._update

    def load_root(self, vcpu: VCpu, mfn: int) -> int:
        """A write to CR3, emulated: the same as MMUEXT_NEW_BASEPTR. 0 or a negative errno."""
        return self.extended.load_root(vcpu, mfn)

    # mmu_update

    def mmu_update(self, vcpu: VCpu, ureqs: int, count: int, pdone: int, foreigndom: int) -> int:
        """Apply `count` updates from `ureqs`; how many were done is added at `pdone`.

        Requests are read ahead to the end of their page; an update of anything but an L1 table, which might
        change them, makes the rest be read again.
        """
        types = self._types
        if count == 1 and not pdone and foreigndom == xen.DOMID_SELF and not types.unfinished:
            rc = self._one(vcpu, ureqs)
            if rc != NOT_SIMPLE:
                return rc
        if not types.begin(vcpu):
            vcpu.restart(ureqs, count, pdone, foreigndom)
            return CONTINUE
        count &= COUNT_MASK
        if count == WORK_DONE and not ureqs:
            return result_of(foreigndom)
        done = 0
        space = vcpu.space
        if count & PREEMPTED:
            count &= ~PREEMPTED
            done = read_done(vcpu, pdone)
        owner = vcpu.domain.memory
        pages: MemoryOwner | None = owner
        allowed = 0
        if foreigndom != xen.DOMID_SELF:
            if not space.allowed(ureqs, count * UPDATE_SIZE):
                return -EFAULT
            try:
                pages, allowed = self._foreign(vcpu, foreigndom & COUNT_MASK)
            except HypercallError:
                if pdone and not self._no_tables(foreigndom & COUNT_MASK):
                    write_done(vcpu, pdone, done)
                raise
        elif count != 1 and not space.allowed(ureqs, count * UPDATE_SIZE):
            return -EFAULT
        q, store = self._q, self._memory.store64
        words, counts, owners = types.types, types.counts, types.owners
        size, pv32 = self._size, owner.pv32
        table_tag = owner.tag
        page_tag = owner.tag if pages is owner else -1 if pages is None else pages.tag
        rc = position = 0
        limit = min(count, SLICE)
        flush = left = False
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
                    old = q[ptr >> 3]
                    rc = self._other(ptr - mode, new, word, owner, pages, mode == 2)
                    if rc:
                        break
                    position += 1
                    if L2_TABLE <= kind <= L4_TABLE and word >= ONE:
                        if old & 1:
                            # no translation came through an entry that was not present
                            flush = True
                        left = not types.end(vcpu)
                        if left or types.work <= 0:
                            break
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
            write_done(vcpu, pdone, done + position)
        if rc == INTERRUPTED or (rc == 0 and position < count):
            vcpu.restart(ureqs + position * UPDATE_SIZE, (count - position) | PREEMPTED, pdone, foreigndom)
            return CONTINUE
        if left or not types.end(vcpu):
            return again_for_result(vcpu, rc)
        return rc

    def _one(self, vcpu: VCpu, at: int) -> int:
        """What kernels do most: one plain update of an L1 table. NOT_SIMPLE, and nothing done, when it is
        something else. Raises GuestFault.
        """
        ptr, new = _PAIR(vcpu.space.read(at, UPDATE_SIZE))
        mfn = ptr >> 12
        if ptr & MODE_MASK or mfn >= self._size:
            return NOT_SIMPLE
        owner = vcpu.domain.memory
        if self._owners[mfn] != owner.tag:
            return NOT_SIMPLE
        word = self._words[mfn]
        if word & VALID_MASK != L1_VALIDATED or word < ONE:
            return NOT_SIMPLE
        return self._update.l1(ptr, new, owner, owner)

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

    def _no_tables(self, foreigndom: int) -> bool:
        """Whether the domain named as the tables' owner does not exist: only then nothing is counted."""
        return bool(foreigndom >> 16) and self._domains.by_id((foreigndom >> 16) - 1) is None

    def _foreign(self, vcpu: VCpu, foreigndom: int) -> tuple[MemoryOwner | None, int]:
        """Whose frames may be mapped, and the error every request gets when it is somebody's the caller may
        not touch.

        None stands for DOMID_IO. Raises HypercallError(ESRCH) for a domain that does not exist.
        """
        domain = vcpu.domain
        denied = 0
        if foreigndom >> 16:
            if self._no_tables(foreigndom):
                raise HypercallError(ESRCH)
            if self._domains.by_id((foreigndom >> 16) - 1) is not domain:
                denied = -EPERM
        pages, foreign_denied = page_owner(self._domains, domain, foreigndom & 0xFFFF)
        return pages, denied or foreign_denied

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
        pages, denied = page_owner(self._domains, vcpu.domain, domid & 0xFFFF)
        return self._set_mapping(vcpu, va, val, flags, pages, denied if pages else -EPERM)

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
                cores = cores_of(vcpu, scope)
            except GuestFault:
                return -EFAULT
        if kind == xen.UVMF_TLB_FLUSH:
            self._shootdown.cores(cores)
        else:
            self._shootdown.page(cores, va)
        return 0
