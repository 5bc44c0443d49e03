"""Page types: who may refer to a frame, when its type may change, pins."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

TYPES: Final = "firmware/memory/types.py"
VALIDATE: Final = "firmware/memory/validate.py"

AREA: Final = Area(
    "types",
    (
        "tests/memory/test_mmu.py",
        "tests/memory/test_rules.py",
        "tests/memory/test_calls.py",
        "tests/memory/test_unfinished.py",
    ),
    (
        Mutant(
            "a reference only for the owner",
            TYPES,
            "if mfn >= self.frames.size or self.owners[mfn] != owner.tag:\n            return False",
            "if mfn >= self.frames.size:\n            return False",
        ),
        Mutant(
            "a reference beyond memory",
            TYPES,
            "if mfn >= self.frames.size or self.owners[mfn] != owner.tag:\n            return False",
            "if self.owners[mfn] != owner.tag:\n            return False",
        ),
        Mutant(
            "references do not overflow",
            TYPES,
            "if count < ONE or count >= COUNT_LIMIT:\n            return False",
            "if count < ONE:\n            return False",
        ),
        Mutant(
            "type references do not overflow",
            TYPES,
            "or not word & VALIDATED or word >= COUNT_LIMIT",
            "or not word & VALIDATED",
        ),
        Mutant(
            "references of L1 entries do not overflow",
            TYPES,
            "if count < ONE or count >= COUNT_LIMIT:\n            return -EBUSY",
            "if count < ONE:\n            return -EBUSY",
        ),
        Mutant(
            "a type in use stays",
            TYPES,
            "if word & KIND_MASK != kind or not word & VALIDATED",
            "if not word & VALIDATED",
        ),
        Mutant(
            "a type is another only without references",
            TYPES,
            "if word < ONE:\n            return",
            "if word < 2 * ONE:\n            return",
        ),
        Mutant(
            "a new type is validated",
            TYPES,
            "failure = self.validator.promote(mfn, kind)",
            "failure = 0",
        ),
        Mutant(
            "a type that changed counts as not validated",
            TYPES,
            "word &= ~(TYPE_MASK | VALIDATED | FOREIGN)",
            "word &= ~(TYPE_MASK | FOREIGN)",
        ),
        Mutant(
            "a failed validation leaves no type",
            TYPES,
            "self.types[mfn] = NONE\n            self.stamps",
            "self.stamps",
        ),
        Mutant("L1 entry: flags", TYPES, "if entry & L1_DISALLOWED:\n            return -EINVAL\n", "pass\n"),
        Mutant(
            "L1 entry: beyond memory",
            TYPES,
            "if mfn >= self.frames.size:\n            return -EINVAL if mfn == INVALID_FRAME else -EPERM\n",
            "pass\n",
        ),
        Mutant("L1 entry: device memory", TYPES, "if tag == IO_TAG:\n            return -EPERM\n", "pass\n"),
        Mutant(
            "L1 entry: whose frame",
            TYPES,
            "if pages is None or tag != pages.tag:",
            "if pages is None:",
        ),
        Mutant(
            "L1 entry: no writable page table",
            TYPES,
            "if word & VALID_MASK == WRITABLE_VALIDATED and ONE <= word < COUNT_LIMIT:",
            "if ONE <= word < COUNT_LIMIT:",
        ),
        Mutant(
            "L1 entry: a writable one takes the type",
            TYPES,
            "if entry & RW:\n            word = self.types[mfn]\n            if word & VALID",
            "if False:\n            word = self.types[mfn]\n            if word & VALID",
        ),
        Mutant(
            "pin: once only",
            TYPES,
            "if self.types[mfn] & PINNED:\n"
            "            self.put_page_and_type(mfn)\n"
            "            return -EINVAL\n",
            "pass\n",
        ),
        Mutant(
            "unpin: only what is pinned",
            TYPES,
            "if self.types[mfn] & PINNED:\n"
            "            self.types[mfn] &= ~PINNED\n"
            "            self.replaced(mfn)",
            "if True:\n"
            "            self.types[mfn] &= ~PINNED\n"
            "            self.replaced(mfn)",
        ),
        Mutant(
            "unpin: once",
            TYPES,
            "self.types[mfn] &= ~PINNED\n            self.replaced(mfn)",
            "self.replaced(mfn)",
        ),
        Mutant(
            "unpin: only one's own",
            TYPES,
            "if not self.get_page(mfn, owner):\n            return -EINVAL\n        failure = 0",
            "self.counts[mfn] += ONE\n        failure = 0",
        ),
        Mutant(
            "steal: only one's own",
            TYPES,
            "if mfn >= self.frames.size or self.owners[mfn] != owner.tag:\n            return -EINVAL",
            "if mfn >= self.frames.size:\n            return -EINVAL",
        ),
        Mutant(
            "steal: a frame nobody else refers to",
            TYPES,
            "if self.counts[mfn] != ONE | ALLOCATED:\n            return -EINVAL\n",
            "pass\n",
        ),
        Mutant(
            "roots: of the right type",
            "firmware/memory/extended.py",
            "rc = types.get_page_and_type(mfn, owner, L3_TABLE if owner.pv32 else L4_TABLE)",
            "rc = 0 if types.get_page(mfn, owner) else -EINVAL",
        ),
        Mutant(
            "user roots: of the right type",
            "firmware/memory/extended.py",
            "rc = types.get_page_and_type(mfn, owner, L4_TABLE)",
            "rc = 0 if types.get_page(mfn, owner) else -EINVAL",
        ),
        Mutant(
            "clear page: an ordinary page",
            "firmware/memory/extended.py",
            "if types.get_page_and_type(mfn, vcpu.domain.memory, WRITABLE):\n"
            "            return -EINVAL\n"
            "        self._memory.fill(mfn << 12, 4096)\n"
            "        types.put_page_and_type(mfn)",
            "self._memory.fill(mfn << 12, 4096)",
        ),
        Mutant(
            "copy page: from one's own",
            "firmware/memory/extended.py",
            "if not types.get_page(source, owner):\n            return -EINVAL\n",
            "types.counts[source] += 256\n",
        ),
        Mutant(
            "copy page: to an ordinary page",
            "firmware/memory/extended.py",
            "if not rc:\n"
            "            self._memory.copy_frame(mfn, source)\n"
            "            types.put_page_and_type(mfn)",
            "self._memory.copy_frame(mfn, source)\n"
            "        if not rc:\n"
            "            types.put_page_and_type(mfn)",
        ),
        Mutant(
            "an unfinished table goes on where it stopped",
            VALIDATE,
            "first, held = self._frames.partial.pop(mfn, (0, False))",
            "first, held = 0, self._frames.partial.pop(mfn, (0, False))[1]",
        ),
        Mutant("an unfinished table is so once", TYPES, "self.types[mfn] &= ~PARTIAL", "pass"),
        Mutant(
            "an unfinished table gives back the reference left on it",
            TYPES,
            "failure = self._check(mfn, kind)\n        self.put_page(mfn)",
            "failure = self._check(mfn, kind)",
        ),
        Mutant(
            "a dead domain's lost references are found",
            TYPES,
            "for _ in range(frames.lost.pop(mfn)):\n                self.put_page(mfn)",
            "frames.lost.pop(mfn)",
        ),
        Mutant(
            "a dead domain's unfinished tables are taken apart",
            TYPES,
            "if self.put_partial(mfn):\n                return True",
            "pass",
        ),
        Mutant(
            "a table that is not unfinished is not gone on with",
            TYPES,
            "if word & (KIND_MASK | PARTIAL) == kind | PARTIAL else -EINVAL",
            "if word & KIND_MASK == kind else -EINVAL",
        ),
    ),
)
