"""Emulation of a guest kernel's direct stores to its L1 tables, which it maps read-only (Xen: pv/ro-page-
fault.c).

No decoder is needed. The faulting instruction runs once more, alone (single step), with the table's page
mapped to a writable copy of the table. The debug trap after it shows the copy; the one word that may differ
goes through the same check as any other update. What is refused is undone: the registers go back to the
fault, and the guest gets its page fault.

The guest must have asked for it with the writable_pagetables assist; without it an unprivileged guest's store
faults.
"""

from __future__ import annotations

from typing import Any, Final

from firmware.memory.frames import L1_TABLE, ONE, VALID_MASK, VALIDATED
from firmware.memory.owner import VCpu
from firmware.memory.pte import ADDRESS, PRESENT, RW
from firmware.memory.types import PageTypes
from firmware.memory.update import EntryUpdate

ASSIST: Final = 1 << 2
"""VMASST_TYPE_writable_pagetables (xen.h) as a bit of `vm_assist`."""
FAULT_PRESENT: Final = 1 << 0
FAULT_WRITE: Final = 1 << 1
FAULT_RESERVED: Final = 1 << 3
FAULT_FETCH: Final = 1 << 4
"""Bits of a page fault's error code (Intel SDM volume 3, 4.7)."""
FAULT_BITS: Final = FAULT_PRESENT | FAULT_WRITE | FAULT_RESERVED | FAULT_FETCH
EFLAGS_TF: Final = 1 << 8
STORE_SIZES: Final = (1, 2, 4, 8)


class _Store:
    """A store under way: who makes it, where, the table before it, and how to undo it."""

    __slots__ = ("before", "state", "stepping", "table", "va", "vcpu")

    def __init__(
        self, vcpu: VCpu, va: int, table: int, before: Any, state: bytes, stepping: bool
    ) -> None:
        self.before = before
        self.vcpu = vcpu
        self.va = va
        self.table = table
        self.state = state
        self.stepping = stepping


class Ptwr:
    """One store under way per core at most."""

    __slots__ = ("_memory", "_scratch", "_stores", "_types", "_update", "_words", "emulated", "refused")

    def __init__(self, types: PageTypes, update: EntryUpdate) -> None:
        self._types = types
        self._update = update
        self._memory = types.memory
        self._words = types.memory.words
        cores = len(types.shootdown.flushed)
        self._scratch = [types.heap.xen_frame() for _ in range(cores)]
        self._stores: list[_Store | None] = [None] * cores
        self.emulated = 0
        self.refused = 0

    def begin(self, vcpu: VCpu, va: int, error: int) -> bool:
        """A page fault of the running vCPU: whether it is a store to an L1 table, and its instruction now
        runs alone.

        On True the handler returns to the guest; the next trap is vector 1, and belongs to `finish`.
        """
        if (
            error & FAULT_BITS != FAULT_PRESENT | FAULT_WRITE
            or not vcpu.in_kernel
            or not vcpu.domain.vm_assist & ASSIST
        ):
            return False
        core = vcpu.core
        under_way = self._end(vcpu)
        if under_way is not None and (under_way.va ^ va) >> 12:
            # It reaches two pages, which no store Xen carries out does: the fault is that of the first.
            self.refused += 1
            core.load(under_way.state)
            return False
        table = self._table_behind(vcpu, va)
        if table < 0:
            return False
        scratch = self._scratch[core.index]
        self._memory.copy_frame(scratch, table)
        before = self._words[table << 9 : (table + 1) << 9].copy()
        stepping = bool(core.eflags() & EFLAGS_TF)
        self._stores[core.index] = _Store(vcpu, va, table, before, core.save(), stepping)
        core.enter_mapping(va, scratch << 12, True)
        core.single_step(True)
        return True

    def entry_behind(self, vcpu: VCpu, va: int) -> int:
        """Machine address of the L1 entry that the running vCPU's `va` shows read-only, when its store there
        would be run by `begin` and none is under way; else 0.
        """
        if not vcpu.in_kernel or not vcpu.domain.vm_assist & ASSIST:
            return 0
        if self._stores[vcpu.core.index] is not None:
            return 0
        table = self._table_behind(vcpu, va)
        return 0 if table < 0 else table << 12 | va & 0xFF8

    def replace(self, vcpu: VCpu, at: int, entry: int) -> bool:
        """Carry out a store to the L1 entry at machine address `at`, of which `entry_behind` told; False, and
        nothing done, when the value is refused.
        """
        owner = vcpu.domain.memory
        if self._update.l1(at, entry, owner, owner):
            return False
        self.emulated += 1
        return True

    def pending(self, vcpu: VCpu) -> bool:
        """Whether a store of this vCPU is under way."""
        store = self._stores[vcpu.core.index]
        return store is not None and store.vcpu is vcpu

    def finish(self, vcpu: VCpu) -> bool:
        """The debug trap after the store. True: done as the guest wanted. False: refused, and the registers
        are those at the fault; the caller injects the page fault. A guest that single-steps itself has its TF
        back in EFLAGS, and gets the debug trap too when True is returned.
        """
        store = self._end(vcpu)
        if store is None:
            return False
        if self._apply(store, self._scratch[vcpu.core.index]):
            self.emulated += 1
            return True
        self.refused += 1
        vcpu.core.load(store.state)
        return False

    def cancel(self, vcpu: VCpu) -> None:
        """Something else happened before the store: another fault, the end of the time slice. Nothing was
        changed; the guest will fault on the store again.
        """
        self._end(vcpu)

    def _end(self, vcpu: VCpu) -> _Store | None:
        core = vcpu.core
        store = self._stores[core.index]
        if store is None:
            return None
        self._stores[core.index] = None
        core.single_step(store.stepping)
        core.flush_page(store.va)
        return store

    def _table_behind(self, vcpu: VCpu, va: int) -> int:
        """The L1 table of the vCPU's domain that `va` shows read-only; -1 when it shows something else."""
        at = vcpu.space.entry_address(va)
        entry = self._memory.q[at >> 3] if at else 0
        if entry & (PRESENT | RW) != PRESENT:
            return -1
        mfn = (entry & ADDRESS) >> 12
        types = self._types
        if mfn >= types.frames.size or types.owners[mfn] != vcpu.domain.memory.tag:
            return -1
        word = types.types[mfn]
        return int(mfn) if word & VALID_MASK == L1_TABLE | VALIDATED and word >= ONE else -1

    def _apply(self, store: _Store, scratch: int) -> bool:
        vcpu, va, table = store.vcpu, store.va, store.table
        if self._table_behind(vcpu, va) != table:
            return False
        words = self._words
        before = store.before
        changed = (words[scratch << 9 : (scratch + 1) << 9] != before).nonzero()[0]
        if not len(changed):
            return True
        slot = va >> 3 & 511
        if len(changed) > 1 or int(changed[0]) != slot:
            return False
        new = int(words[(scratch << 9) + slot])
        old = int(before[slot])
        if not _aligned(old ^ new, va & 7):
            return False
        if int(words[(table << 9) + slot]) != old:
            # Another CPU was quicker: the instruction runs again on what is there now.
            vcpu.core.load(store.state)
            return True
        at = (table << 12) + slot * 8
        owner = vcpu.domain.memory
        if not self._update.l1(at, new, owner, owner):
            return True
        if owner.pv32 and va & 4 and new & PRESENT:
            return not self._update.l1(at, new & ~PRESENT, owner, owner)
        return False


def _aligned(difference: int, offset: int) -> bool:
    """Whether a naturally aligned store at byte `offset` of a word can have made this difference to it."""
    return any(
        not offset % size and not difference & ~(((1 << size * 8) - 1) << offset * 8) for size in STORE_SIZES
    )
