"""Descriptors and the tables they lie in."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

SEGMENT: Final = "firmware/memory/segment.py"
DESCRIPTORS: Final = "firmware/memory/descriptors.py"
PERDOMAIN: Final = "firmware/memory/perdomain.py"
VALIDATE: Final = "firmware/memory/validate.py"

AREA: Final = Area(
    "descriptors",
    ("tests/memory/test_calls.py", "tests/memory/test_limits.py"),
    (
        Mutant(
            "no privilege above the guest kernel's",
            SEGMENT,
            "dpl = max((descriptor >> DPL_SHIFT) & 3, lowest)",
            "dpl = (descriptor >> DPL_SHIFT) & 3",
        ),
        Mutant(
            "only call gates among system descriptors",
            SEGMENT,
            "if descriptor & TYPE != CALL_GATE:\n        return None\n",
            "pass\n",
        ),
        Mutant(
            "a call gate's segment",
            SEGMENT,
            "if not gate_selector_allowed(selector, pv32):\n        return None\n",
            "pass\n",
        ),
        Mutant(
            "a call gate has no level", SEGMENT, "descriptor &= ~(DPL | SELECTOR)", "descriptor &= ~SELECTOR"
        ),
        Mutant(
            "a call gate has no reserved bits",
            SEGMENT,
            "if descriptor & (COMPAT_GATE_RESERVED if pv32 else GATE_RESERVED):",
            "if False:",
        ),
        Mutant(
            "a 32-bit guest has no long code",
            SEGMENT,
            "if descriptor & LONG:\n        return None\n",
            "pass\n",
        ),
        Mutant(
            "a 32-bit guest's flat segments", SEGMENT, "if base == 0 and limit > COMPAT_START:", "if False:"
        ),
        Mutant(
            "set_gdt: Xen's part",
            DESCRIPTORS,
            "entries &= 0xFFFF_FFFF\n"
            "        if entries > FIRST_RESERVED_ENTRY:\n"
            "            return -EINVAL\n",
            "entries &= 0xFFFF_FFFF\n",
        ),
        Mutant(
            "a new vCPU's GDT: Xen's part",
            DESCRIPTORS,
            '(pv_set_gdt)."""\n        if entries > FIRST_RESERVED_ENTRY:\n            return -EINVAL\n',
            '(pv_set_gdt)."""\n',
        ),
        Mutant(
            "set_gdt: frames of the guest's, checked",
            DESCRIPTORS,
            "if self._types.get_page_and_type(mfn, owner, SEGMENT_DESCRIPTORS):\n                for",
            "if not self._types.get_page(mfn, owner):\n                for",
        ),
        Mutant(
            "whole table: a descriptor that is none",
            VALIDATE,
            "if fixed is None:\n                return -EINVAL\n",
            "pass\n",
        ),
        Mutant("whole table: privileges are raised", VALIDATE, "if fixed != value:", "if False:"),
        Mutant(
            "update_descriptor: aligned", DESCRIPTORS, "if gaddr & 7 or fixed is None:", "if fixed is None:"
        ),
        Mutant(
            "update_descriptor: the descriptor",
            DESCRIPTORS,
            "if gaddr & 7 or fixed is None:\n            return -EINVAL",
            "if gaddr & 7:\n            return -EINVAL\n        fixed = desc",
        ),
        Mutant(
            "update_descriptor: privileges are raised",
            DESCRIPTORS,
            "self._memory.store64(gaddr, fixed)",
            "self._memory.store64(gaddr, desc)",
        ),
        Mutant(
            "update_descriptor: whose frame",
            DESCRIPTORS,
            "if not types.get_page(mfn, vcpu.domain.memory):\n            return -EINVAL",
            "types.counts[mfn] += 256",
        ),
        Mutant(
            "update_descriptor: no page table",
            DESCRIPTORS,
            "rc = types.get_type(mfn, kind)",
            "rc = 0\n        types.types[mfn] += 256",
        ),
        Mutant("set_ldt: length", DESCRIPTORS, "if entries > LDT_LIMIT or base", "if base"),
        Mutant(
            "set_ldt: a page's beginning",
            DESCRIPTORS,
            "or base & 0xFFF or not (vcpu",
            "or not (vcpu",
        ),
        Mutant(
            "set_ldt: outside Xen",
            DESCRIPTORS,
            "or not (vcpu.domain.pv32 or vcpu.space.allowed(base)):",
            "or False:",
        ),
        Mutant(
            "LDT page: within the limit",
            DESCRIPTORS,
            "if offset >> 3 >= vcpu.ldt_entries:\n            return False\n",
            "pass\n",
        ),
        Mutant(
            "LDT page: is mapped",
            DESCRIPTORS,
            "if not entry & PRESENT:\n            return False\n",
            "pass\n",
        ),
        Mutant(
            "LDT page: of the guest's, checked",
            DESCRIPTORS,
            "if self._types.get_page_and_type(mfn, vcpu.domain.memory, SEGMENT_DESCRIPTORS):\n"
            "            return",
            "if not self._types.get_page(mfn, vcpu.domain.memory):\n            return",
        ),
        Mutant(
            "LDT page: not twice",
            DESCRIPTORS,
            "if area.ldt_page(vcpu.id, offset >> 12) is not None:\n"
            "            self._types.put_page_and_type(mfn)\n"
            "            return False\n",
            "pass\n",
        ),
        Mutant(
            "a 32-bit kernel cannot write descriptors",
            PERDOMAIN,
            "flags = PRESENT | ACCESSED | DIRTY if self._pv32 else PRESENT | RW | ACCESSED | DIRTY",
            "flags = PRESENT | RW | ACCESSED | DIRTY",
        ),
        Mutant(
            "an unused GDT page is zeros",
            PERDOMAIN,
            "self._zeros << 12 | PRESENT",
            "self._reserved | PRESENT",
        ),
        Mutant("an old GDT is unmapped", DESCRIPTORS, "area.set_gdt_page(vcpu.id, page, None)", "pass"),
        Mutant("an old LDT is unmapped", DESCRIPTORS, "area.set_ldt_page(vcpu.id, page, None)", "pass"),
    ),
)
