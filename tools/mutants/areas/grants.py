"""Grants: what the granter allows, what a handle stands for, the bounds of tables, frames and copies."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

GRANTS: Final = "firmware/memory/grants.py"
TABLE: Final = "firmware/memory/grant_table.py"
COPY: Final = "firmware/memory/grant_copy.py"
OPS: Final = "firmware/memory/grant_ops.py"
HEAP: Final = "firmware/memory/heap.py"

AREA: Final = Area(
    "grants",
    (
        "tests/memory/test_calls.py",
        "tests/memory/test_grant_rules.py",
        "tests/memory/test_grant_limits.py",
        "tests/memory/test_grant_versions.py",
    ),
    (
        Mutant(
            "map: a table's end",
            GRANTS,
            "if ref >= table.entries:\n            return abi.GNTST_bad_gntref, None\n",
            "pass\n",
        ),
        Mutant(
            "map: one grantee at a time",
            GRANTS,
            "(active.domid != domid or active.full or active.sub_page)",
            "(active.full or active.sub_page)",
        ),
        Mutant(
            "map: uses do not overflow",
            GRANTS,
            "(active.domid != domid or active.full or active.sub_page)",
            "(active.domid != domid or active.sub_page)",
        ),
        Mutant(
            "map: no part of a page",
            GRANTS,
            "(active.domid != domid or active.full or active.sub_page)",
            "(active.domid != domid or active.full)",
        ),
        Mutant(
            "map: a second use that writes is checked",
            GRANTS,
            "if active is None or (not readonly and not active.writers):",
            "if active is None:",
        ),
        Mutant(
            "map: the granter's own frame",
            GRANTS,
            "if not self._types.get_page(high, table.owner):\n"
            "                table.release(ref, active, readonly=readonly)\n"
            "                return abi.GNTST_bad_page, None\n"
            "            self._types.put_page(high)\n",
            "pass\n",
        ),
        Mutant(
            "claim: for this domain", TABLE, "(not allowed or low >> 16 & 0xFFFF != domid)", "not allowed"
        ),
        Mutant(
            "claim: access is permitted",
            TABLE,
            "(not allowed or low >> 16 & 0xFFFF != domid)",
            "low >> 16 & 0xFFFF != domid",
        ),
        Mutant("claim: read-only", TABLE, "if not readonly and flags & GTF_readonly:", "if False:"),
        Mutant(
            "claim: no part of a page to map",
            TABLE,
            "mask = GTF_type_mask | GTF_sub_page if mapping else GTF_type_mask",
            "mask = GTF_type_mask",
        ),
        Mutant(
            "claim: marks the entry",
            TABLE,
            "self._set_status(ref, flags, GTF_reading if readonly else GTF_reading | GTF_writing)",
            "pass",
        ),
        Mutant("release: clears the marks", TABLE, "if not active.pins:", "if False:"),
        Mutant("release: keeps the mark of other readers", TABLE, "if not active.pins:", "if True:"),
        Mutant(
            "release: keeps the mark of other writers",
            TABLE,
            "if not readonly and not active.writers:",
            "if not readonly:",
        ),
        Mutant(
            "a read-only mapping",
            GRANTS,
            "if not flags & abi.GNTMAP_readonly:\n            entry |= RW",
            "entry |= RW",
        ),
        Mutant(
            "a slot: whose table",
            GRANTS,
            "or types.owners[mfn] != vcpu.domain.memory.tag:\n            return 0",
            ":\n            return 0",
        ),
        Mutant("a slot: aligned", GRANTS, "if at & 7 or not at", "if not at"),
        Mutant("a slot: beyond memory", GRANTS, "or mfn >= types.frames.size or types", "or types"),
        Mutant(
            "a slot: in an L1 table",
            GRANTS,
            "return at if word & VALID_MASK == L1_TABLE | VALIDATED and word >= ONE else 0",
            "return at",
        ),
        Mutant(
            "unmap: a handle",
            TABLE,
            "return self.mappings[handle] if handle < len(self.mappings) else None",
            "return self.mappings[handle % len(self.mappings)] if self.mappings else None",
        ),
        Mutant("unmap: the handle ends", GRANTS, "mine.free_handle(handle)\n\n", "pass\n\n"),
        Mutant("unmap: each kind once", GRANTS, "mapping.flags &= ~done", "pass"),
        Mutant("unmap: the bus address", GRANTS, "if bus_addr != active.mfn << 12:", "if False:"),
        Mutant(
            "unmap: the entry is the mapping's",
            GRANTS,
            "if not at or (self._memory.q[at >> 3] ^ expected) & (ADDRESS | PRESENT | RW):",
            "if not at:",
        ),
        Mutant(
            "unmap: rights of the entry",
            GRANTS,
            "if not at or (self._memory.q[at >> 3] ^ expected) & (ADDRESS | PRESENT | RW):",
            "if not at or (self._memory.q[at >> 3] ^ expected) & (ADDRESS | PRESENT):",
        ),
        Mutant(
            "unmap: the entry is cleared",
            GRANTS,
            "self._memory.store64(at, moved)\n        return True",
            "return True",
        ),
        Mutant(
            "unmap_and_replace: the moved entry leaves its place",
            GRANTS,
            "self._memory.store64(other, 0)",
            "pass",
        ),
        Mutant(
            "unmap_and_replace: there is a replacement",
            GRANTS,
            "if not other:\n                return False\n",
            "pass\n",
        ),
        Mutant(
            "unmap_and_replace: not by a PTE's address",
            GRANTS,
            "if contains_pte and new_addr:\n            return False\n",
            "pass\n",
        ),
        Mutant(
            "transfer: an unmapped frame of one's own",
            GRANTS,
            "if mfn >= types.frames.size or types.steal(mfn, owner):",
            "if mfn >= types.frames.size or types.steal(mfn, owner) and False:",
        ),
        Mutant("transfer: the receiver's allowance", GRANTS, "or target.pages >= target.maximum\n", ""),
        Mutant(
            "transfer: the receiver asked for it",
            GRANTS,
            "or not table.commit_transfer(request.ref, vcpu.domain.id)\n",
            "",
        ),
        Mutant(
            "transfer: the receiver lives",
            GRANTS,
            "target.dying\n            or target.pages",
            "target.pages",
        ),
        Mutant(
            "commit: from this domain, to be accepted",
            TABLE,
            "if low & 0xFFFF != GTF_accept_transfer or low >> 16 & 0xFFFF != domid:",
            "if low & 0xFFFF != GTF_accept_transfer:",
        ),
        Mutant(
            "commit: not twice",
            TABLE,
            "if low & 0xFFFF != GTF_accept_transfer or low >> 16",
            "if not low & GTF_accept_transfer or low >> 16",
        ),
        Mutant(
            "commit: a table's end", TABLE, "if ref >= self.entries:\n            return False\n", "pass\n"
        ),
        Mutant(
            "copy: bounds of the frames",
            COPY,
            "if source.offset + length > FRAME or dest.offset + length > FRAME:",
            "if False:",
        ),
        Mutant(
            "copy: the destination's bounds",
            COPY,
            "if source.offset + length > FRAME or dest.offset + length > FRAME:",
            "if source.offset + length > FRAME:",
        ),
        Mutant(
            "copy: the part that is granted",
            COPY,
            "if end.offset < start or end.offset + length > start + size:",
            "if False:",
        ),
        Mutant(
            "copy: the end of the part",
            COPY,
            "if end.offset < start or end.offset + length > start + size:",
            "if end.offset < start:",
        ),
        Mutant(
            "copy: another's frame only by a grant",
            COPY,
            "if end.domid != DOMID_SELF and not flags & flag:",
            "if False:",
        ),
        Mutant(
            "copy: to an ordinary page",
            COPY,
            "if types.get_type(buffer[0], WRITABLE):\n"
            "                return abi.GNTST_general_error, buffer\n"
            "            held.append(lambda: types.put_type(buffer[0]))",
            "pass",
        ),
        Mutant(
            "copy: frames of the domain",
            COPY,
            "if not types.get_page(end.u, domain.memory):\n"
            "                return abi.GNTST_bad_page, buffer\n"
            "            held.append(lambda: types.put_page(buffer[0]))",
            "pass",
        ),
        Mutant(
            "copy: a table's end",
            COPY,
            "if ref >= table.entries:\n            return abi.GNTST_bad_gntref, nothing\n",
            "pass\n",
        ),
        Mutant("copy: one grantee at a time", COPY, "(active.domid != domid or active.full)", "active.full"),
        Mutant(
            "copy: a use that writes is checked",
            COPY,
            "if active is None or (not readonly and not active.writers):",
            "if active is None:",
        ),
        Mutant(
            "copy: the granter's own frame",
            COPY,
            "return mfn < self._types.frames.size and self._types.owners[mfn] == table.owner.tag",
            "return True",
        ),
        Mutant(
            "copy: one step through other domains",
            COPY,
            "if depth or remote is None or remote.memory is table.owner",
            "if remote is None or remote.memory is table.owner",
        ),
        Mutant(
            "setup_table: one's own",
            OPS,
            "return abi.GNTST_okay if domain is vcpu.domain else abi.GNTST_permission_denied",
            "return abi.GNTST_okay",
        ),
        Mutant(
            "setup_table: the largest table",
            OPS,
            "if request.nr_frames > table.max_frames or not table.grow(request.nr_frames):",
            "if not table.grow(request.nr_frames):",
        ),
        Mutant(
            "get_status_frames: as many as there are",
            OPS,
            "if request.nr_frames > len(table.status_frames):",
            "if False:",
        ),
        Mutant(
            "set_version: not while entries are in use",
            OPS,
            "if any(ref >= abi.GNTTAB_NR_RESERVED_ENTRIES for ref in table.active):",
            "if False:",
        ),
        Mutant(
            "set_version: the entries are cleared",
            TABLE,
            "for mfn in self.frames:\n            self._memory.fill(mfn << 12, 4096)",
            "pass",
        ),
        Mutant(
            "swap: a table's end", OPS, "if first >= table.entries or second >= table.entries:", "if False:"
        ),
        Mutant(
            "swap: not while in use", OPS, "if first in table.active or second in table.active:", "if False:"
        ),
        Mutant(
            "cache_flush: some domain's memory",
            OPS,
            "if owner is None:\n            return -EPERM\n        if owner",
            "if owner and owner",
        ),
        Mutant(
            "cache_flush: another's memory",
            OPS,
            "if owner is not vcpu.domain.memory and not self._maps(vcpu, owner, mfn, first):",
            "if False:",
        ),
        Mutant("cache_flush: of this domain", OPS, " and active.domid == vcpu.domain.id", ""),
        Mutant("cache_flush: of this frame", OPS, "active.mfn == mfn and ", ""),
        Mutant("set_version: the highest", OPS, "if version > table.owner.grants.version:", "if False:"),
        Mutant("as many frames as its creator says", TABLE, "owner.grants.frames", "64"),
        Mutant("as many handles as its creator says", TABLE, "owner.grants.maptrack_frames * ", "1024 * "),
        Mutant(
            "cache_flush: within a frame",
            OPS,
            "if request.offset + request.length > FRAME or request.offset >= FRAME:",
            "if False:",
        ),
        Mutant(
            "set_version: not while a status frame is mapped",
            TABLE,
            "if self._heap.mapped(mfn):\n"
            "                    self._heap.keep_shared(mfn)\n"
            "                    return EBUSY",
            "pass",
        ),
        Mutant("set_version: a status frame given up is kept", TABLE, "self._heap.keep_shared(mfn)", "pass"),
        Mutant(
            "mapped: also when its domain has given it up",
            HEAP,
            "return count >= (2 * ONE if count & ALLOCATED else ONE)",
            "return count >= 2 * ONE",
        ),
        Mutant("set_version: status frames go", TABLE, "self._heap.unshare(mfn, self.owner)", "pass"),
        Mutant(
            "unshare: counted",
            HEAP,
            "if self._frames.owners[mfn] == owner.tag:\n            owner.xen_pages -= 1",
            "owner.xen_pages -= 1",
        ),
        Mutant(
            "set_version: what version 1 cannot say",
            TABLE,
            "if any(self._too_wide(low, high) for low, high in kept):",
            "if False:",
        ),
        Mutant("set_version: frames above 32 bits", TABLE, "and bool(high >> 32)", "and False"),
        Mutant("swap: marks too", TABLE, "self._memory.write(one, self._memory.read(two, 2))", "pass"),
        Mutant(
            "copy: not through the granter's own grant",
            COPY,
            "if depth or remote is None or remote.memory is table.owner",
            "if depth or remote is None",
        ),
        Mutant(
            "copy: a grant of a grant in use as something else",
            COPY,
            "if status == abi.GNTST_okay and not same:",
            "if False:",
        ),
        Mutant(
            "copy: grants of grants are version 2's",
            COPY,
            "transitive = table.version == 2 and low",
            "transitive = low",
        ),
        Mutant(
            "a dead granter's table goes with its last use",
            GRANTS,
            "if table.abandoned:\n            self.free_table(table.owner)",
            "pass",
        ),
        Mutant("a living granter's table stays", GRANTS, "if table.abandoned:", "if True:"),
        Mutant("the number of operations", GRANTS, "if count >> 31:\n            return -EINVAL\n", "pass\n"),
    ),
)
