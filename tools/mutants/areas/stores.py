"""Emulated stores to page tables: who may make them, where, and what comes of them."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

PTWR: Final = "firmware/memory/ptwr.py"

AREA: Final = Area(
    "stores",
    ("tests/memory/test_calls.py", "tests/memory/test_stores.py"),
    (
        Mutant(
            "only writes to pages that are there",
            PTWR,
            "error & FAULT_BITS != FAULT_PRESENT | FAULT_WRITE",
            "False",
        ),
        Mutant(
            "no instruction fetches",
            PTWR,
            "FAULT_BITS: Final = FAULT_PRESENT | FAULT_WRITE | FAULT_RESERVED | FAULT_FETCH",
            "FAULT_BITS: Final = FAULT_PRESENT | FAULT_WRITE",
        ),
        Mutant(
            "only for those who asked for it", PTWR, "or not vcpu.domain.vm_assist & ASSIST\n        ):", "):"
        ),
        Mutant("only for kernels", PTWR, "or not vcpu.in_kernel\n", ""),
        Mutant(
            "only of one's own tables",
            PTWR,
            "if mfn >= types.frames.size or types.owners[mfn] != vcpu.domain.memory.tag:",
            "if mfn >= types.frames.size:",
        ),
        Mutant(
            "only of L1 tables",
            PTWR,
            "return int(mfn) if word & VALID_MASK == L1_TABLE | VALIDATED and word >= ONE else -1",
            "return int(mfn)",
        ),
        Mutant(
            "only tables shown read-only",
            PTWR,
            "if entry & (PRESENT | RW) != PRESENT:\n            return -1\n",
            "pass\n",
        ),
        Mutant(
            "the same table after the store",
            PTWR,
            "if self._table_behind(vcpu, va) != table:\n            return False\n",
            "pass\n",
        ),
        Mutant(
            "one word", PTWR, "if len(changed) > 1 or int(changed[0]) != slot:", "if int(changed[0]) != slot:"
        ),
        Mutant(
            "the word that faulted",
            PTWR,
            "if len(changed) > 1 or int(changed[0]) != slot:",
            "if len(changed) > 1:",
        ),
        Mutant("aligned", PTWR, "if not _aligned(old ^ new, va & 7):\n            return False\n", "pass\n"),
        Mutant(
            "what another CPU stored meanwhile stays",
            PTWR,
            "if int(words[(table << 9) + slot]) != old:",
            "if False:",
        ),
        Mutant(
            "the entry is validated",
            PTWR,
            "if not self._update.l1(at, new, owner, owner):\n            return True",
            "self._memory.store64(at, new)\n        if True:\n            return True",
        ),
        Mutant(
            "a refused store is undone",
            PTWR,
            "self.refused += 1\n        vcpu.core.load(store.state)\n",
            "self.refused += 1\n",
        ),
        Mutant(
            "the guest's own single steps end and begin with it",
            PTWR,
            "core.single_step(store.stepping)",
            "pass",
        ),
        Mutant(
            "a store to two pages",
            PTWR,
            "if under_way is not None and (under_way.va ^ va) >> 12:",
            "if False:",
        ),
        Mutant("an ended store is forgotten", PTWR, "self._stores[core.index] = None\n", "pass\n"),
    ),
)
