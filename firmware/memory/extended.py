"""mmuext_op: pins, roots, TLB flushes, the LDT, whole pages (Xen 4.17 `mm.c`, do_mmuext_op)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from firmware.abi import xen
from firmware.abi.errno import EACCES, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM
from firmware.hypercalls import CONTINUE, GuestFault
from firmware.memory.descriptors import Descriptors
from firmware.memory.frames import L1_TABLE, L2_TABLE, L3_TABLE, L4_TABLE, WRITABLE
from firmware.memory.owner import Domains, MemoryOwner, VCpu
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
from firmware.memory.types import PageTypes
from firmware.memory.validate import INTERRUPTED


class ExtendedOps:
    """The handler: a table of commands."""

    __slots__ = ("_commands", "_descriptors", "_domains", "_memory", "_shootdown", "_types")

    def __init__(self, types: PageTypes, descriptors: Descriptors, domains: Domains) -> None:
        self._types = types
        self._memory = types.memory
        self._domains = domains
        self._descriptors = descriptors
        self._shootdown = types.shootdown
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

    def mmuext_op(self, vcpu: VCpu, uops: int, count: int, pdone: int, foreigndom: int) -> int:
        """Run `count` extended operations from `uops`; how many were done is added at `pdone`."""
        types = self._types
        if not types.begin(vcpu):
            vcpu.restart(uops, count, pdone, foreigndom)
            return CONTINUE
        count &= COUNT_MASK
        if count == WORK_DONE and not uops:
            return result_of(foreigndom)
        done = 0
        if count & PREEMPTED:
            count &= ~PREEMPTED
            done = read_done(vcpu, pdone)
        domain, space = vcpu.domain, vcpu.space
        variant: Any = xen.mmuext_op.w32 if domain.pv32 else xen.mmuext_op.w64
        size = variant.size
        if not space.allowed(uops, count * size):
            return -EFAULT
        pages, denied = page_owner(self._domains, domain, foreigndom & 0xFFFF)
        if pages is None:
            denied = -EPERM
        if denied:
            return denied
        commands, unpack = self._commands, variant.codec.unpack
        position = rc = 0
        limit = min(count, SLICE)
        left = False
        while position < limit and types.work > 0 and not left:
            try:
                cmd, arg1, arg2 = unpack(space.read(uops + position * size, size))
            except GuestFault:
                rc = -EFAULT
                break
            command = commands.get(cmd)
            rc = -ENOSYS if command is None else command(vcpu, arg1, arg2, pages)
            left = not types.end(vcpu)
            if rc:
                break
            position += 1
        if pdone:
            write_done(vcpu, pdone, done + position)
        if rc == INTERRUPTED or (rc == 0 and position < count):
            vcpu.restart(uops + position * size, (count - position) | PREEMPTED, pdone, foreigndom)
            return CONTINUE
        return again_for_result(vcpu, rc) if left else rc

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
                types.replaced(old)
        else:
            if owner.pv32:
                self._descriptors.drop_ldt(vcpu)
            self._shootdown.load_root(vcpu.core, mfn << 12)
        return 0

    def load_root(self, vcpu: VCpu, mfn: int) -> int:
        """Make frame `mfn` the running vCPU's kernel root (MOV to CR3); 0, a negative errno, or INTERRUPTED:
        the instruction is to run again.
        """
        types = self._types
        if types.begin(vcpu):
            rc = self._new_baseptr(vcpu, mfn, 0, vcpu.domain.memory)
            if types.end(vcpu) or rc:
                return rc
        return INTERRUPTED

    def _new_user_baseptr(self, vcpu: VCpu, mfn: int, arg2: int, pages: MemoryOwner | None) -> int:
        owner = vcpu.domain.memory
        if owner.pv32:
            return -EINVAL
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
            types.replaced(old)
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
            cores = cores_of(vcpu, bitmap)
        except GuestFault:
            return -EINVAL
        self._shootdown.cores(cores)
        return 0

    def _invlpg_multi(self, vcpu: VCpu, va: int, bitmap: int, pages: MemoryOwner | None) -> int:
        try:
            cores = cores_of(vcpu, bitmap)
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
