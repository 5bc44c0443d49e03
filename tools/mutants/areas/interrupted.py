"""Checks and destructions of tables that are interrupted, and LDTs that go with what shows them."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

TYPES: Final = "firmware/memory/types.py"
VALIDATE: Final = "firmware/memory/validate.py"
MMU: Final = "firmware/memory/mmu.py"
EXTENDED: Final = "firmware/memory/extended.py"

AREA: Final = Area(
    "interrupted",
    ("tests/memory/test_interrupted.py", "tests/memory/test_unfinished.py"),
    (
        Mutant(
            "a check is interrupted",
            VALIDATE,
            "if types.work <= 0 and moved:\n                self._frames.partial[mfn] = slot, False",
            "if False:\n                self._frames.partial[mfn] = slot, False",
        ),
        Mutant(
            "a destruction is interrupted",
            VALIDATE,
            "if types.work <= 0 and moved:\n                partial[mfn] = slot + 1, False",
            "if False:\n                partial[mfn] = slot + 1, False",
        ),
        Mutant(
            "L1 tables cost work",
            VALIDATE,
            "TABLE_WORK + len(slots)\n        if len",
            "0\n        if len",
        ),
        Mutant(
            "an interrupted table is PARTIAL",
            TYPES,
            "elif failure == INTERRUPTED or self.old == mfn:",
            "elif self.old == mfn:",
        ),
        Mutant(
            "a PARTIAL table keeps a reference while it is checked",
            TYPES,
            "elif failure == INTERRUPTED or self.old == mfn:\n"
            "            self.types[mfn] |= PARTIAL\n"
            "            self.counts[mfn] += ONE",
            "elif failure == INTERRUPTED or self.old == mfn:\n"
            "            self.types[mfn] |= PARTIAL",
        ),
        Mutant(
            "a PARTIAL table keeps a reference while it is taken apart",
            TYPES,
            "if interrupted:\n            self.types[mfn] |= PARTIAL\n            self.counts[mfn] += ONE",
            "if interrupted:\n            self.types[mfn] |= PARTIAL",
        ),
        Mutant(
            "a table taken apart again gives back that reference",
            TYPES,
            "interrupted = self._take_apart(mfn, word)\n        self.put_page(mfn)",
            "interrupted = self._take_apart(mfn, word)",
        ),
        Mutant(
            "what somebody else went on with is left alone",
            TYPES,
            "if not word & PARTIAL:\n            return 0\n",
            "pass\n",
        ),
        Mutant(
            "an entry keeps the reference to what is half checked",
            VALIDATE,
            "if not held:\n                    counts[target] += ONE",
            "pass",
        ),
        Mutant(
            "an entry with a reference takes no second one",
            VALIDATE,
            "if held or types.get_page(target, owner):",
            "if types.get_page(target, owner):",
        ),
        Mutant(
            "only the entry where it stopped has one",
            VALIDATE,
            "if slot > first:\n                held = False",
            "pass",
        ),
        Mutant(
            "what is half taken apart is not dropped again",
            VALIDATE,
            "interrupted = types.put_partial(target)",
            "interrupted = types.put_type(target)",
        ),
        Mutant(
            "its reference is, in the end",
            VALIDATE,
            "if not interrupted:\n                    types.put_page(target)",
            "pass",
        ),
        Mutant(
            "the entry where destruction stopped is looked at again",
            VALIDATE,
            "min(limit, end + held)",
            "min(limit, end)",
        ),
        Mutant(
            "what failed below is dropped with its entry",
            VALIDATE,
            "slot, held or (types.old != 0 and types.old == target)",
            "slot, held",
        ),
        Mutant(
            "entries are stored after the check",
            "firmware/memory/update.py",
            "failure = self._validator.get_table(new, mfn, owner, level)\n            if failure:",
            "failure = self._validator.get_table(new, mfn, owner, level)\n"
            "            if failure and failure != -85:",
        ),
        Mutant(
            "what a call left is finished by the next",
            TYPES,
            "self.old = self.unfinished.pop((vcpu.domain.id, vcpu.id), 0)",
            "self.old = 0",
        ),
        Mutant(
            "what a call left is known",
            TYPES,
            "self.unfinished[vcpu.domain.id, vcpu.id] = mfn\n            return False",
            "return False",
        ),
        Mutant(
            "mmu_update: what is left is finished first",
            MMU,
            "and not types.unfinished:",
            "and True:",
        ),
        Mutant(
            "mmu_update: the answer after what is left",
            MMU,
            "return again_for_result(vcpu, rc)",
            "return again_for_result(vcpu, 0)",
        ),
        Mutant(
            "mmuext_op: the answer after what is left",
            EXTENDED,
            "return again_for_result(vcpu, rc) if left else rc",
            "return again_for_result(vcpu, 0) if left else rc",
        ),
        Mutant(
            "a dead domain's interrupted calls",
            TYPES,
            "self.put_page(self.unfinished.pop(key))",
            "self.unfinished.pop(key)",
        ),
    ),
)
