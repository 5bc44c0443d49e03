"""Counts: every reference taken is given back once, every frame is somebody's."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

TYPES: Final = "firmware/memory/types.py"
MMU: Final = "firmware/memory/mmu.py"
VALIDATE: Final = "firmware/memory/validate.py"
EXTENDED: Final = "firmware/memory/extended.py"
DESCRIPTORS: Final = "firmware/memory/descriptors.py"
GRANTS: Final = "firmware/memory/grants.py"
FLOOR: Final = "firmware/memory/floor.py"

AREA: Final = Area(
    "counts",
    (
        "tests/memory/test_mmu.py",
        "tests/memory/test_rules.py",
        "tests/memory/test_limits.py",
        "tests/memory/test_grant_rules.py",
        "tests/memory/test_floor.py",
        "tests/memory/test_calls.py",
    ),
    (
        Mutant(
            "get_page counts", TYPES, "self.counts[mfn] = count + ONE\n        return True", "return True"
        ),
        Mutant(
            "put_page counts",
            TYPES,
            "else:\n            self.counts[mfn] = count - ONE\n\n    def drop",
            "\n    def drop",
        ),
        Mutant("the last reference frees", TYPES, "self._free(mfn, count)", "self.counts[mfn] = count - ONE"),
        Mutant(
            "get_type counts",
            TYPES,
            "self.types[mfn] = word + ONE\n        return 0\n\n    def _first",
            "return 0\n\n    def _first",
        ),
        Mutant(
            "put_type counts",
            TYPES,
            "if word >= 2 * ONE:\n            self.types[mfn] = word - ONE\n        elif L1_TABLE",
            "if word >= 2 * ONE:\n            pass\n        elif L1_TABLE",
        ),
        Mutant(
            "the last type reference takes a table apart", TYPES, "self.validator.demote(mfn, word)", "0"
        ),
        Mutant(
            "a failed type gives the reference back",
            TYPES,
            "if failure and self.old != mfn:\n            self.put_page(mfn)",
            "if False:\n            self.put_page(mfn)",
        ),
        Mutant(
            "an L1 entry that fails gives the reference back",
            TYPES,
            "elif self.get_type(mfn, WRITABLE):\n                self.put_page(mfn)",
            "elif self.get_type(mfn, WRITABLE):",
        ),
        Mutant(
            "an L1 entry that goes gives the type back",
            TYPES,
            "if entry & RW:\n                word = self.types[mfn]\n                if word >= 2",
            "if False:\n                word = self.types[mfn]\n                if word >= 2",
        ),
        Mutant(
            "a failed second pin gives both back",
            TYPES,
            "self.put_page_and_type(mfn)\n            return -EINVAL",
            "return -EINVAL",
        ),
        Mutant(
            "unpin gives both back",
            TYPES,
            "self.types[mfn] &= ~PINNED\n            self.replaced(mfn)",
            "self.types[mfn] &= ~PINNED",
        ),
        Mutant(
            "an owner gives its own reference once",
            TYPES,
            "if self.counts[mfn] & ALLOCATED:\n            self.counts",
            "if True:\n            self.counts",
        ),
        Mutant(
            "a freed frame leaves its owner's count",
            TYPES,
            "else:\n                owner.pages -= 1",
            "else:\n                pass",
        ),
        Mutant(
            "a stolen frame leaves its owner's count", TYPES, "owner.pages -= 1\n        return 0", "return 0"
        ),
        Mutant(
            "a dead domain's pins are given back",
            TYPES,
            "if self.put_page_and_type(mfn):\n                self.put_page(mfn)\n            if self.work",
            "if self.work",
        ),
        Mutant(
            "a dead domain's frames are given back",
            TYPES,
            "for mfn in held[:RELEASE_STEP]:",
            "for mfn in held[:1]:",
        ),
        Mutant("mmu_update: type reference of a new entry", MMU, "words[target] = word + ONE", "pass"),
        Mutant(
            "mmu_update: reference of a new writable entry",
            MMU,
            "words[target] = word + ONE\n                                counts[target] += ONE",
            "words[target] = word + ONE",
        ),
        Mutant(
            "mmu_update: reference of a new read-only entry",
            MMU,
            "else:\n                            counts[target] += ONE",
            "else:\n                            pass",
        ),
        Mutant("mmu_update: type reference of the old entry", MMU, "words[target] = word - ONE", "pass"),
        Mutant("mmu_update: reference of the old entry", MMU, "counts[target] = word - ONE", "pass"),
        Mutant("mmu_update: last type reference of the old entry", MMU, "types.put_type(target)", "pass"),
        Mutant("mmu_update: last reference of the old entry", MMU, "types.put_page(target)", "pass"),
        Mutant(
            "mmu_update: an ordinary page is let go",
            MMU,
            "self._types.put_type(mfn)\n        return 0",
            "return 0",
        ),
        Mutant(
            "an L1 entry replaced",
            "firmware/memory/update.py",
            "self._types.put_page_from_l1(old)",
            "pass",
        ),
        Mutant(
            "an entry above L1 replaced",
            "firmware/memory/update.py",
            "self._validator.replace_table(old, mfn)",
            "pass",
        ),
        Mutant("whole L1 in bulk: type references", VALIDATE, "np.add.at(types, written, _ONE)", "pass"),
        Mutant(
            "whole L1 in bulk: references", VALIDATE, "np.add.at(frames.count_array, targets, _ONE)", "pass"
        ),
        Mutant(
            "L1 given up in bulk: type references", VALIDATE, "np.subtract.at(types, written, _ONE)", "pass"
        ),
        Mutant(
            "L1 given up in bulk: a frame that would be freed",
            VALIDATE,
            "if (counts[targets] < _ONE).any():",
            "if False:",
        ),
        Mutant(
            "a table's entry for itself holds nothing",
            VALIDATE,
            "if entry & PRESENT and target != mfn:",
            "if entry & PRESENT:",
        ),
        Mutant("a linear entry holds a type reference", VALIDATE, "types.types[target] += ONE", "pass"),
        Mutant(
            "a table that fails gives the reference back",
            VALIDATE,
            "types.put_page(target)\n        if (",
            "pass\n        if (",
        ),
        Mutant(
            "a linear entry that fails gives the reference back",
            VALIDATE,
            "types.put_page(target)\n            return False",
            "return False",
        ),
        Mutant(
            "the old root is given back",
            EXTENDED,
            "self._shootdown.load_root(vcpu.core, mfn << 12)\n"
            "            if old:\n"
            "                types.replaced(old)",
            "self._shootdown.load_root(vcpu.core, mfn << 12)",
        ),
        Mutant(
            "the old user root is given back",
            EXTENDED,
            "vcpu.core.flush_parked()\n        if old:\n            types.replaced(old)",
            "vcpu.core.flush_parked()",
        ),
        Mutant(
            "a cleared page is given back",
            EXTENDED,
            "self._memory.fill(mfn << 12, 4096)\n        types.put_page_and_type(mfn)",
            "self._memory.fill(mfn << 12, 4096)",
        ),
        Mutant("a copied page is given back", EXTENDED, "types.put_page(source)\n        return", "return"),
        Mutant(
            "GDT frames of a failed call are given back",
            DESCRIPTORS,
            "for taken in frames[:position]:",
            "for taken in ():",
        ),
        Mutant(
            "old GDT frames are given back",
            DESCRIPTORS,
            "area.set_gdt_page(vcpu.id, page, None)\n            self._types.put_page_and_type(mfn)",
            "area.set_gdt_page(vcpu.id, page, None)",
        ),
        Mutant(
            "old LDT frames are given back",
            DESCRIPTORS,
            "area.set_ldt_page(vcpu.id, page, None)\n                self._types.put_page_and_type(mfn)",
            "area.set_ldt_page(vcpu.id, page, None)",
        ),
        Mutant("update_descriptor lets go of the type", DESCRIPTORS, "types.put_type(mfn)\n", "pass\n"),
        Mutant(
            "update_descriptor lets go of the frame",
            DESCRIPTORS,
            "types.put_page(mfn)\n        return",
            "return",
        ),
        Mutant(
            "grant: host and device mappings hold one reference each",
            GRANTS,
            "for kind in (abi.GNTMAP_host_map, abi.GNTMAP_device_map):",
            "for kind in (abi.GNTMAP_host_map,):",
        ),
        Mutant(
            "grant: a writable mapping holds the type",
            GRANTS,
            "if not failed and not readonly and types.get_type(mfn, WRITABLE):",
            "if False:",
        ),
        Mutant(
            "grant: a mapping that fails is given back",
            GRANTS,
            "self._put(mfn, readonly, taken)\n"
            "            return abi.GNTST_general_error\n"
            "        return abi.GNTST_okay",
            "return abi.GNTST_general_error\n        return abi.GNTST_okay",
        ),
        Mutant(
            "grant: uses of a failed mapping",
            GRANTS,
            "self._count(active, flags, -1)\n            table.release(ref, active",
            "table.release(ref, active",
        ),
        Mutant(
            "grant: a replacement that is lost is let go",
            GRANTS,
            "self._types.put_page_from_l1(moved)",
            "pass",
        ),
        Mutant(
            "grant: what a mapping replaced is let go",
            GRANTS,
            "self._types.put_page_from_l1(old)",
            "pass",
        ),
        Mutant(
            "grant: an unmapped frame is let go",
            GRANTS,
            "self._put(active.mfn, readonly, (held & MAP_KINDS).bit_count())",
            "pass",
        ),
        Mutant(
            "grant: uses of an ended mapping",
            GRANTS,
            "self._count(active, flags, -1)\n        table.release(mapping.ref",
            "table.release(mapping.ref",
        ),
        Mutant(
            "grant: a dead domain's mappings end",
            GRANTS,
            "self._drop(mapping, mapping.flags, mapping.flags & abi.GNTMAP_device_map)",
            "pass",
        ),
        Mutant(
            "grant: a copy lets go of the frame",
            "firmware/memory/grant_copy.py",
            "table.release(ref, used, readonly=readonly)\n            self._types.put_page(used.mfn)",
            "table.release(ref, used, readonly=readonly)",
        ),
        Mutant(
            "vcpu_info: the frame is held",
            FLOOR,
            "if self.types.get_page_and_type(mfn, domain.memory, WRITABLE):",
            "if False:",
        ),
        Mutant(
            "vcpu_info: the frame is held until the domain dies",
            FLOOR,
            "for mfn in self.held.pop(domain.id, ()):\n            self.types.put_page_and_type(mfn)\n",
            "",
        ),
        Mutant(
            "a dead domain's roots are given back",
            FLOOR,
            "for root in (vcpu.kernel_root, vcpu.user_root):",
            "for root in (vcpu.kernel_root,):",
        ),
        Mutant("a dead domain's GDT is given back", FLOOR, "self.descriptors.drop_gdt(vcpu)", "pass"),
        Mutant(
            "a new vCPU's root is held",
            FLOOR,
            "result = self.types.take_table(mfn, owner, kind, self.types.step)",
            "result = 0",
        ),
    ),
)
