"""Flushes: of every core that may hold a translation, before a frame is used in its new role."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

TYPES: Final = "firmware/memory/types.py"
MMU: Final = "firmware/memory/mmu.py"
EXTENDED: Final = "firmware/memory/extended.py"
DESCRIPTORS: Final = "firmware/memory/descriptors.py"
GRANTS: Final = "firmware/memory/grants.py"
HEAP: Final = "firmware/memory/heap.py"
SHOOTDOWN: Final = "firmware/memory/shootdown.py"
VALIDATE: Final = "firmware/memory/validate.py"

AREA: Final = Area(
    "flushes",
    (
        "tests/memory/test_mmu.py",
        "tests/memory/test_flushes.py",
        "tests/memory/test_grant_rules.py",
        "tests/memory/test_calls.py",
    ),
    (
        Mutant(
            "a change of type flushes", TYPES, "self.shootdown.older(owner, self.stamps[mfn], mfn)", "pass"
        ),
        Mutant(
            "a change of type flushes before it validates",
            TYPES,
            """\
        if changed and foreign:
            self.shootdown.everyone(self.stamps[mfn], mfn)
        elif changed:
            owner = self._by_tag.get(self.owners[mfn])
            if owner is not None:
                self.shootdown.older(owner, self.stamps[mfn], mfn)
        if word & VALIDATED:
            return 0
        if kind in (WRITABLE, SHARED):
            types[mfn] |= VALIDATED
            return 0
        return self._check(mfn, kind)
""",
            """\
        owner = self._by_tag.get(self.owners[mfn])
        if word & VALIDATED:
            return 0
        if kind in (WRITABLE, SHARED):
            types[mfn] |= VALIDATED
            if changed and owner is not None:
                self.shootdown.older(owner, self.stamps[mfn], mfn)
            return 0
        failure = self._check(mfn, kind)
        if changed and foreign:
            self.shootdown.everyone(self.stamps[mfn], mfn)
        elif changed and owner is not None:
            self.shootdown.older(owner, self.stamps[mfn], mfn)
        return failure
""",
        ),
        Mutant(
            "the last type reference stamps the frame",
            TYPES,
            "self.stamps[mfn] = self.shootdown.clock\n        self.types[mfn] = (word - ONE)",
            "self.types[mfn] = (word - ONE)",
        ),
        Mutant(
            "a change of type in bulk flushes",
            VALIDATE,
            "self._types.shootdown.older(owner, stamp, *targets.tolist())",
            "pass",
        ),
        Mutant(
            "a change of type in bulk heeds the youngest stamp",
            VALIDATE,
            "int(frames.stamp_array[targets].max())",
            "int(frames.stamp_array[targets].min())",
        ),
        Mutant(
            "the last type references dropped in bulk stamp the frames",
            VALIDATE,
            "frames.stamp_array[idle] = self._types.shootdown.clock",
            "pass",
        ),
        Mutant(
            "a core flushed in the tick of the stamp is flushed again",
            SHOOTDOWN,
            "if flushed[core.index] <= stamp:",
            "if flushed[core.index] < stamp:",
        ),
        Mutant(
            "a flush for a new owner heeds the tick of the stamp",
            SHOOTDOWN,
            "if flushed[core.index] <= stamp and self._running[core.index]:",
            "if flushed[core.index] < stamp and self._running[core.index]:",
        ),
        Mutant(
            "a core that runs an owner's vCPU is known to",
            SHOOTDOWN,
            "owner.cores.append(core)",
            "pass",
        ),
        Mutant(
            "every one of some frames is dropped",
            SHOOTDOWN,
            "for mfn in frames:",
            "for mfn in frames[:1]:",
        ),
        Mutant(
            "a frame with code takes a whole flush",
            SHOOTDOWN,
            "self.core(core)\n                return\n            self.frame_flushes",
            "return\n            self.frame_flushes",
        ),
        Mutant(
            "no frames named are all of them",
            SHOOTDOWN,
            "if not 0 < len(frames) <= FEW:",
            "if len(frames) > FEW:",
        ),
        Mutant("the clock ticks with every flush", SHOOTDOWN, "self.clock += 1", "pass"),
        Mutant(
            "a frame granted for writing is flushed everywhere",
            TYPES,
            "if changed and foreign:\n"
            "            self.shootdown.everyone(self.stamps[mfn], mfn)\n"
            "        elif changed:",
            "if changed:",
        ),
        Mutant(
            "a frame granted for writing is known to be", GRANTS, "self._types.types[mfn] |= FOREIGN", "pass"
        ),
        Mutant(
            "a frame granted for writing is so until its type changes",
            TYPES,
            "word &= ~(TYPE_MASK | VALIDATED | FOREIGN)",
            "word &= ~(TYPE_MASK | VALIDATED)",
        ),
        Mutant(
            "a new page of the machine-to-phys table is seen by all",
            "firmware/memory/m2p.py",
            "self._shootdown.everyone(self._shootdown.clock)",
            "pass",
        ),
        Mutant(
            "a new root is loaded",
            EXTENDED,
            "self._shootdown.load_root(vcpu.core, mfn << 12)\n            if old:",
            "if old:",
        ),
        Mutant(
            "the same root again flushes",
            EXTENDED,
            "self._descriptors.drop_ldt(vcpu)\n            self._shootdown.load_root(vcpu.core, mfn << 12)",
            "self._descriptors.drop_ldt(vcpu)",
        ),
        Mutant("a new user root flushes the user's bank", EXTENDED, "vcpu.core.flush_parked()", "pass"),
        Mutant(
            "a new root drops the LDT",
            EXTENDED,
            "self._descriptors.drop_ldt(vcpu)\n            if not owner.m2p_strict",
            "if not owner.m2p_strict",
        ),
        Mutant(
            "mmu_update above L1 flushes", MMU, "if flush:\n            self._shootdown.owner(owner)", "pass"
        ),
        Mutant("a table above L1 is noticed", MMU, "flush = True", "pass"),
        Mutant(
            "what is remembered of the tables ends with them",
            "firmware/memory/update.py",
            "owner.generation += 1",
            "pass",
        ),
        Mutant(
            "update_va_mapping: TLB flush",
            MMU,
            "if kind == xen.UVMF_TLB_FLUSH:\n            self._shootdown.cores(cores)",
            "if kind == xen.UVMF_TLB_FLUSH:\n            pass",
        ),
        Mutant("update_va_mapping: INVLPG", MMU, "self._shootdown.page(cores, va)", "pass"),
        Mutant("update_va_mapping: on all CPUs", MMU, "cores = owner.cores\n", "cores = (vcpu.core,)\n"),
        Mutant(
            "update_va_mapping: on some CPUs",
            MMU,
            "try:\n                cores = cores_of(vcpu, scope)",
            "try:\n                cores = cores_of(vcpu, scope)[:1]",
        ),
        Mutant("TLB_FLUSH_LOCAL", EXTENDED, "self._shootdown.core(vcpu.core)", "pass"),
        Mutant("TLB_FLUSH_MULTI", EXTENDED, "self._shootdown.cores(cores)", "pass"),
        Mutant("TLB_FLUSH_ALL", EXTENDED, "self._shootdown.owner(vcpu.domain.memory)", "pass"),
        Mutant("INVLPG_LOCAL", EXTENDED, "self._shootdown.page((vcpu.core,), va)", "pass"),
        Mutant("INVLPG_MULTI", EXTENDED, "self._shootdown.page(cores, va)", "pass"),
        Mutant("INVLPG_ALL", EXTENDED, "self._shootdown.page(vcpu.domain.memory.cores, va)", "pass"),
        Mutant(
            "set_gdt flushes",
            DESCRIPTORS,
            "self._types.shootdown.core(vcpu.core)\n        return rc",
            "pass\n        return rc",
        ),
        Mutant(
            "a new LDT flushes the old",
            DESCRIPTORS,
            "if self.drop_ldt(vcpu):\n                self._types.shootdown.core(vcpu.core)",
            "self.drop_ldt(vcpu)",
        ),
        Mutant(
            "an unmapped grant is flushed",
            GRANTS,
            "self._types.shootdown.owner(vcpu.domain.memory)\n        self._drop",
            "self._drop",
        ),
        Mutant(
            "an unmapped grant is flushed before it is let go",
            GRANTS,
            """\
        self._types.shootdown.owner(vcpu.domain.memory)
        self._drop(mapping, done | mapping.flags & abi.GNTMAP_readonly, done)
""",
            """\
        self._drop(mapping, done | mapping.flags & abi.GNTMAP_readonly, done)
        self._types.shootdown.owner(vcpu.domain.memory)
""",
        ),
        Mutant(
            "a transferred frame is flushed",
            GRANTS,
            "types.shootdown.everyone(types.shootdown.clock)",
            "pass",
        ),
        Mutant(
            "a freed frame is flushed before reuse",
            HEAP,
            "self._shootdown.everyone(frames.stamps[first], first)",
            "pass",
        ),
        Mutant(
            "a run of freed frames is flushed before reuse",
            HEAP,
            "self._shootdown.everyone(int(frames.stamp_array[first : first + count].max()))",
            "pass",
        ),
        Mutant(
            "a freed frame is stamped",
            HEAP,
            "frames.stamps[mfn] = self._shootdown.clock\n        if frames.owners",
            "if frames.owners",
        ),
        Mutant(
            "a freed frame of Xen's is stamped",
            HEAP,
            "self._frames.stamps[mfn] = self._shootdown.clock\n        self.xen",
            "self.xen",
        ),
        Mutant(
            "the page of an emulated store is flushed",
            "firmware/memory/ptwr.py",
            "core.flush_page(store.va)",
            "pass",
        ),
    ),
)
