"""Validation of page-table entries: flags, owners, Xen's slots, linear tables, the rules of PAE."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

MMU: Final = "firmware/memory/mmu.py"
UPDATE: Final = "firmware/memory/update.py"
VALIDATE: Final = "firmware/memory/validate.py"
PTE: Final = "firmware/memory/pte.py"
FRAMES: Final = "firmware/memory/frames.py"

AREA: Final = Area(
    "tables",
    ("tests/memory/test_mmu.py", "tests/memory/test_used_tables.py", "tests/memory/test_rules.py"),
    (
        Mutant("mmu_update: flags of an L1 entry", MMU, "if new & L1_DISALLOWED:", "if False:"),
        Mutant(
            "mmu_update: whose table it is",
            MMU,
            "if mfn >= size or owners[mfn] != table_tag:",
            "if mfn >= size:",
        ),
        Mutant(
            "mmu_update: a table beyond memory",
            MMU,
            "if mfn >= size or owners[mfn] != table_tag:",
            "if owners[mfn] != table_tag:",
        ),
        Mutant(
            "mmu_update: whose frame is mapped",
            MMU,
            "if target < size and owners[target] == page_tag:",
            "if target < size:",
        ),
        Mutant(
            "mmu_update: no writable page table",
            MMU,
            "if word & VALID_MASK == WRITABLE_VALIDATED and word >= ONE:",
            "if word >= ONE:",
        ),
        Mutant(
            "mmu_update: only a validated L1 is written as one",
            MMU,
            "if word & VALID_MASK != L1_VALIDATED or word < ONE:\n                    ahead",
            "if word & TYPE_MASK > L2_TABLE or word < ONE:\n                    ahead",
        ),
        Mutant(
            "mmu_update of one: whose table it is",
            MMU,
            "if self._owners[mfn] != owner.tag:\n            return NOT_SIMPLE\n",
            "pass\n",
        ),
        Mutant(
            "mmu_update of one: a table beyond memory",
            MMU,
            "if ptr & MODE_MASK or mfn >= self._size:",
            "if ptr & MODE_MASK:",
        ),
        Mutant(
            "mmu_update of one: a plain one",
            MMU,
            "if ptr & MODE_MASK or mfn >= self._size:",
            "if mfn >= self._size:",
        ),
        Mutant(
            "mmu_update of one: an L1 table",
            MMU,
            "if word & VALID_MASK != L1_VALIDATED or word < ONE:\n            return NOT_SIMPLE",
            "if word < ONE:\n            return NOT_SIMPLE",
        ),
        Mutant(
            "a change of RW is a new entry",
            PTE,
            "FAST_FLAGS: Final = NO_EXECUTE |",
            "FAST_FLAGS: Final = RW | NO_EXECUTE |",
        ),
        Mutant(
            "a change of frame is a new entry",
            PTE,
            "FAST_FLAGS: Final = NO_EXECUTE |",
            "FAST_FLAGS: Final = ADDRESS | NO_EXECUTE |",
        ),
        Mutant(
            "a change of presence is a new entry",
            PTE,
            "FAST_FLAGS: Final = NO_EXECUTE |",
            "FAST_FLAGS: Final = PRESENT | NO_EXECUTE |",
        ),
        Mutant(
            "mmu_update: whose frame a machine-to-phys update names",
            MMU,
            "if pages is None or mfn >= self._size or self._types.owners[mfn] != pages.tag:",
            "if pages is None or mfn >= self._size:",
        ),
        Mutant(
            "mmu_update: another domain as owner",
            MMU,
            "if allowed:\n            return allowed",
            "if False:\n            return allowed",
        ),
        Mutant(
            "mmu_update: foreign frames only in L1 tables",
            MMU,
            "return -EINVAL if pages is not owner else level(at, new, owner, preserve)",
            "return level(at, new, owner, preserve)",
        ),
        Mutant("mmu_update: no plain write to a descriptor table", MMU, "if kind == WRITABLE:", "if kind:"),
        Mutant(
            "update_va_mapping: whose table it is",
            MMU,
            "if not at or types.owners[mfn] != owner.tag:",
            "if not at:",
        ),
        Mutant(
            "update_va_mapping: an L1 table",
            MMU,
            "word = types.types[mfn]\n        if word & VALID_MASK != L1_VALIDATED or word < ONE:",
            "word = types.types[mfn]\n        if word < ONE:",
        ),
        Mutant(
            "foreign domain: another's memory",
            "firmware/memory/requests.py",
            "return foreign.memory, -EPERM",
            "return foreign.memory, 0",
        ),
        Mutant(
            "foreign domain: Xen's memory",
            "firmware/memory/requests.py",
            "return None, -EPERM",
            "return None, 0",
        ),
        Mutant(
            "update of an L2 entry: flags",
            UPDATE,
            "if new & TABLE_DISALLOWED:\n                return -EINVAL\n            new = adjust_l2",
            "new = adjust_l2",
        ),
        Mutant(
            "update of an L3 entry: flags",
            UPDATE,
            "if new & (COMPAT_L3_DISALLOWED if owner.pv32 else TABLE_DISALLOWED):",
            "if False:",
        ),
        Mutant(
            "update of a PAE L3 entry: high flags",
            UPDATE,
            "if new & (COMPAT_L3_DISALLOWED if owner.pv32 else TABLE_DISALLOWED):",
            "if new & TABLE_DISALLOWED:",
        ),
        Mutant(
            "update of an L4 entry: flags",
            UPDATE,
            "if new & TABLE_DISALLOWED:\n                return -EINVAL\n            new = adjust_l4",
            "new = adjust_l4",
        ),
        Mutant(
            "update of an L4 entry: Xen's slots",
            UPDATE,
            "if FIRST_XEN_SLOT <= at >> 3 & 511 <= LAST_XEN_SLOT:",
            "if False:",
        ),
        Mutant(
            "update of a PAE root's last slot", UPDATE, "if owner.pv32 and (at >> 3 & 511) >= 3:", "if False:"
        ),
        Mutant(
            "update of Xen's part of a compat L2",
            UPDATE,
            "if owner.pv32 and self._types.types[mfn] & PAE_XEN_L2 and (at >> 3 & 511) >= "
            "COMPAT_FIRST_XEN_SLOT:",
            "if False:",
        ),
        Mutant(
            "whole L1 in bulk: flags",
            VALIDATE,
            "if int(np.bitwise_or.reduce(entries)) & L1_DISALLOWED:",
            "if False:",
        ),
        Mutant(
            "whole L1 in bulk: beyond memory", VALIDATE, "if int(targets.max()) >= frames.size:", "if False:"
        ),
        Mutant(
            "whole L1 in bulk: owners",
            VALIDATE,
            "if (frames.owner_array[targets] != owner.tag).any():",
            "if False:",
        ),
        Mutant(
            "whole L1 in bulk: no writable table", VALIDATE, "if (words[other] >= _ONE).any():", "if False:"
        ),
        Mutant(
            "whole L1: a failure gives back what was taken",
            VALIDATE,
            "for done in reversed(slots[:position]):",
            "for done in ():",
        ),
        Mutant(
            "whole table: flags",
            VALIDATE,
            "if entry & disallowed:\n                failure = -EINVAL\n            el",
            "",
        ),
        Mutant(
            "whole table: a failure gives back what was taken",
            VALIDATE,
            "        types.old = mfn\n\n    def _checked",
            "\n    def _checked",
        ),
        Mutant(
            "whole root: Xen's slots are not the guest's",
            VALIDATE,
            "self._types.slots.fill_root(mfn << 12, owner, read_only_m2p=owner.m2p_strict)",
            "pass",
        ),
        Mutant(
            "the machine-to-phys slot of a strict user root",
            "firmware/memory/extended.py",
            "if owner.m2p_strict:\n                types.slots.hide_m2p(mfn << 12)",
            "",
        ),
        Mutant("linear tables: read-only", VALIDATE, "if entry & RW:\n            return False\n", "pass\n"),
        Mutant(
            "linear tables: one that is named names none",
            VALIDATE,
            "not 0 <= entries < LINEAR_LIMIT",
            "False",
        ),
        Mutant(
            "linear tables: one that names is not named", VALIDATE, "not -LINEAR_LIMIT < uses <= 0", "False"
        ),
        Mutant(
            "linear tables: of the same level",
            VALIDATE,
            "or types.types[target] & VALID_MASK != level | VALIDATED",
            "",
        ),
        Mutant(
            "linear tables: none among PAE roots",
            VALIDATE,
            "and not (level == L3_TABLE and owner.pv32)",
            "",
        ),
        Mutant(
            "linear tables: a count given back",
            "firmware/memory/types.py",
            "self.validator.drop_linear(mfn, parent)",
            "pass",
        ),
        Mutant(
            "PAE root: nothing after its four entries",
            VALIDATE,
            "self._memory.fill((mfn << 12) + 32, 4096 - 32)",
            "pass",
        ),
        Mutant(
            "PAE root: the last slot is there",
            VALIDATE,
            "if not entry & PRESENT:\n            return -EINVAL\n        types, target",
            "types, target",
        ),
        Mutant(
            "PAE root: flags of the last slot",
            VALIDATE,
            "if entry & disallowed:",
            "if entry & disallowed and not (compat_l3 and slot == 3):",
        ),
        Mutant(
            "PAE root: the last L2 is nobody else's",
            VALIDATE,
            "if not failure and self._shares_last_l2(mfn):",
            "if False:",
        ),
        Mutant(
            "PAE root: one that shares its last L2 gives back what was taken",
            VALIDATE,
            "self._stop(mfn, ENTRIES, False, -1)",
            "pass",
        ),
        Mutant(
            "PAE root: a failure takes back the flags Xen set",
            VALIDATE,
            "self._restore_compat_l3(mfn, [slot for slot in slots if slot < end])",
            "pass",
        ),
        Mutant(
            "compat L2: Xen's entries are written",
            VALIDATE,
            "self._types.slots.fill_compat(mfn << 12, owner)",
            "pass",
        ),
        Mutant(
            "compat L2: is no ordinary L2",
            FRAMES,
            "KIND_MASK: Final = TYPE_MASK | PAE_XEN_L2",
            "KIND_MASK: Final = TYPE_MASK",
        ),
        Mutant(
            "a 32-bit guest has no L4 table",
            VALIDATE,
            "if owner.pv32:\n            return -EINVAL\n        slots",
            "slots",
        ),
        Mutant("a table in use: the domain's own", VALIDATE, " and owners[target] == tag\n", "\n"),
        Mutant(
            "a table in use: of the level below",
            VALIDATE,
            "and words[target] & KIND_OR_VALID == valid\n",
            "\n",
        ),
        Mutant("a table in use: room for more uses", VALIDATE, "and words[target] < COUNT_LIMIT and", "and"),
        Mutant(
            "a table in use: room for more references", VALIDATE, " and counts[target] < COUNT_LIMIT\n", "\n"
        ),
        Mutant(
            "a table others use too loses a use",
            VALIDATE,
            "words[target] -= ONE\n                counts",
            "counts",
        ),
        Mutant(
            "a table others use too loses a reference",
            VALIDATE,
            "counts[target] -= ONE\n                interrupted",
            "interrupted",
        ),
        Mutant(
            "a linear page table is counted when it goes",
            VALIDATE,
            ">= 2 * ONE and words[target] & TYPE_MASK != level:",
            ">= 2 * ONE:",
        ),
    ),
)
