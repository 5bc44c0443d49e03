"""Guest pointers: the range a guest may name, the rights its own tables give."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

GUEST: Final = "firmware/memory/guest.py"
MMU: Final = "firmware/memory/mmu.py"
EXTENDED: Final = "firmware/memory/extended.py"
GRANTS: Final = "firmware/memory/grants.py"
OPS: Final = "firmware/memory/grant_ops.py"

AREA: Final = Area(
    "pointers",
    ("tests/memory/test_calls.py", "tests/memory/test_limits.py", "tests/memory/test_mmu.py"),
    (
        Mutant("Xen's range", GUEST, "return va < LOW_END or HYPERVISOR_END <= va < TOP", "return va < TOP"),
        Mutant(
            "non-canonical addresses",
            GUEST,
            "return va < LOW_END or HYPERVISOR_END",
            "return va < 1 << 48 or HYPERVISOR_END",
        ),
        Mutant("a 32-bit guest's range", GUEST, "return va + length <= COMPAT_END", "return va < 1 << 32"),
        Mutant(
            "a walk stays in the guest's range",
            GUEST,
            "if not self.allowed(va):\n            raise GuestFault(va)\n",
            "pass\n",
        ),
        Mutant(
            "a walk reads what is there",
            GUEST,
            "if not entry & PRESENT or (write and not entry & RW):\n"
            "            raise GuestFault(va)\n"
            "        marked",
            "if write and not entry & RW:\n            raise GuestFault(va)\n        marked",
        ),
        Mutant(
            "a walk writes what is writable",
            GUEST,
            "if not entry & PRESENT or (write and not entry & RW):\n"
            "            raise GuestFault(va)\n"
            "        marked",
            "if not entry & PRESENT:\n            raise GuestFault(va)\n        marked",
        ),
        Mutant(
            "a walk writes below writable tables only",
            GUEST,
            "if not entry & PRESENT or (write and not entry & RW):\n                raise",
            "if not entry & PRESENT:\n                raise",
        ),
        Mutant(
            "a walk goes through tables that are there",
            GUEST,
            "if not entry & PRESENT or (write and not entry & RW):\n                raise",
            "if write and not entry & RW:\n                raise",
        ),
        Mutant("tables remembered for writing are writable", GUEST, "if rights:\n", "if True:\n"),
        Mutant(
            "a remembered table: the page is writable",
            GUEST,
            "if entry & WRITABLE == WRITABLE and",
            "if entry & READABLE == READABLE and",
        ),
        Mutant(
            "a remembered table: the page is there",
            GUEST,
            "if entry & READABLE == READABLE and offset + length",
            "if offset + length",
        ),
        Mutant(
            "a remembered table: a word that is there",
            GUEST,
            "if entry & READABLE == READABLE:\n                word",
            "if True:\n                word",
        ),
        Mutant(
            "a read stays in its page",
            GUEST,
            "if entry & READABLE == READABLE and offset + length <= 4096:",
            "if entry & READABLE == READABLE:",
        ),
        Mutant(
            "a write stays in its page",
            GUEST,
            "if entry & WRITABLE == WRITABLE and offset + len(data) <= 4096:",
            "if entry & WRITABLE == WRITABLE:",
        ),
        Mutant(
            "a slow read stays in its page", GUEST, "here = min(length, 4096 - (va & 4095))", "here = length"
        ),
        Mutant(
            "a slow write stays in its page",
            GUEST,
            "here = min(length - at, 4096 - (va & 4095))",
            "here = length - at",
        ),
        Mutant("translate: rights", GUEST, "need = WRITABLE if write else READABLE", "need = READABLE"),
        Mutant(
            "what is remembered ends with its root",
            GUEST,
            "if (q[old + slot] ^ q[new + slot]) & SAME_TABLE:",
            "if False:",
        ),
        Mutant(
            "what is remembered ends with the rights of its root",
            GUEST,
            "SAME_TABLE: Final = ADDRESS | PRESENT | RW",
            "SAME_TABLE: Final = ADDRESS | PRESENT",
        ),
        Mutant(
            "what is remembered ends with a change",
            GUEST,
            "if table is not None and not va & 7 and self._generation == self._owner.generation:\n"
            "            entry = self._q[table + (va >> 12 & 511)]\n"
            "            if entry & READABLE",
            "if table is not None and not va & 7:\n"
            "            entry = self._q[table + (va >> 12 & 511)]\n"
            "            if entry & READABLE",
        ),
        Mutant(
            "mmu_update: the list's range",
            MMU,
            "elif count != 1 and not space.allowed(ureqs, count * UPDATE_SIZE):",
            "elif False:",
        ),
        Mutant(
            "mmuext_op: the list's range", EXTENDED, "if not space.allowed(uops, count * size):", "if False:"
        ),
        Mutant(
            "mmuext_op: INVLPG_LOCAL outside Xen",
            EXTENDED,
            "if vcpu.space.allowed(va):\n            self._shootdown.page((vcpu.core,), va)",
            "self._shootdown.page((vcpu.core,), va)",
        ),
        Mutant(
            "mmuext_op: INVLPG_ALL outside Xen",
            EXTENDED,
            "if vcpu.space.allowed(va):\n            self._shootdown.page(vcpu.domain",
            "if True:\n            self._shootdown.page(vcpu.domain",
        ),
        Mutant(
            "grant_table_op: the list's range",
            GRANTS,
            "if not space.allowed(uop, count * size):",
            "if False:",
        ),
        Mutant(
            "setup_table: the list's range",
            OPS,
            "if not vcpu.space.allowed(request.frame_list, request.nr_frames * width):",
            "if False:",
        ),
        Mutant(
            "get_status_frames: the list's range",
            OPS,
            "if not vcpu.space.allowed(request.frame_list, request.nr_frames * 8):",
            "if False:",
        ),
    ),
)
