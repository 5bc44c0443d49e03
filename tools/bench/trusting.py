"""xenpy with a type layer that believes its guest: `python -m tools.bench.trusting boot ...`.

What is left away is what validation costs: no entry is checked, no reference is taken or dropped for what an
entry maps, no frame that changes its role is flushed for. What a table must be for a guest to run is kept:
its type, Xen's own slots and the rights Xen adds to entries. For one guest that does nothing wrong, and only
to measure: with it a guest could take the machine.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np

from firmware.abi.errno import EFAULT, EINVAL
from firmware.hypercalls import GuestFault
from firmware.memory.frames import L1_TABLE, L4_TABLE, ONE, TYPE_MASK, VALID_MASK, VALIDATED
from firmware.memory.mmu import UPDATE_SIZE, Mmu
from firmware.memory.native import NativeUpdates
from firmware.memory.owner import MemoryOwner, VCpu
from firmware.memory.pte import ACCESSED_DIRTY, GLOBAL, GUEST_KERNEL, PRESENT, USER, adjust_l1
from firmware.memory.requests import write_done
from firmware.memory.types import PageTypes
from firmware.memory.update import EntryUpdate
from firmware.memory.validate import Validator
from xenpy.cli import main

MODES: Final = 3
"""Low bits of a request's address: what it asks for, MMU_PT_UPDATE_PRESERVE_AD (2) at most here."""
PRESERVE: Final = 2
L1: Final = L1_TABLE | VALIDATED


def get_page(types: PageTypes, mfn: int, owner: MemoryOwner) -> bool:
    """Any frame there is."""
    return mfn < types.frames.size


def put_page(types: PageTypes, mfn: int) -> None:
    """No reference was taken."""


def get_type(types: PageTypes, mfn: int, kind: int) -> int:
    """Tables are still counted by the tables above them: their first use makes them what they are."""
    if not L1_TABLE <= kind & TYPE_MASK <= L4_TABLE:
        return 0
    word = types.types[mfn]
    if word >= ONE:
        types.types[mfn] = word + ONE
        return 0
    types.types[mfn] = kind | ONE
    failure = types.validator.promote(mfn, kind)
    types.types[mfn] = 0 if failure else kind | VALIDATED | ONE
    return failure


def put_type(types: PageTypes, mfn: int, parent: int = -1) -> int:
    """Of a table: its last use ends what it was."""
    word = types.types[mfn]
    if word < ONE:
        return 0
    if word < 2 * ONE:
        types.validator.demote(mfn, word)
        types.types[mfn] = 0
    else:
        types.types[mfn] = word - ONE
    return 0


def accept(types: PageTypes, entry: int, owner: MemoryOwner, pages: MemoryOwner | None) -> int:
    """Whatever it maps."""
    return 0


def forget(types: PageTypes, entry: int, tables: MemoryOwner) -> None:
    """It held nothing."""


def accept_table(validator: Any, mfn: int, owner: MemoryOwner, kind: int) -> int:
    """Only the rights Xen adds to a 64-bit guest's entries (`adjust_l1`)."""
    table = validator._words[mfn << 9 : mfn + 1 << 9]
    slots = (table & PRESENT).nonzero()[0]
    entries = table[slots]
    adjusted = np.where(entries & USER == 0, entries | GUEST_KERNEL | USER, entries)
    adjusted = np.where(adjusted & GUEST_KERNEL == 0, adjusted | GLOBAL, adjusted)
    copy = table.copy()
    copy[slots] = adjusted
    validator._memory.write(mfn << 12, copy.tobytes())
    return 0


def forget_table(validator: Validator, mfn: int, owner: MemoryOwner, word: int) -> int:
    """Its entries held nothing."""
    return 0


def update_l1(
    update: Any, at: int, new: int, tables: MemoryOwner, pages: MemoryOwner | None, preserve: bool = False
) -> int:
    """Store what the guest wants."""
    if new & PRESENT:
        new = adjust_l1(new, tables.pv32)
    update._memory.store64(at, new | update._q[at >> 3] & ACCESSED_DIRTY if preserve else new)
    return 0


def mmu_update(mmu: Any, vcpu: VCpu, ureqs: int, count: int, pdone: int, foreigndom: int) -> int:
    """Store what the guest wants, entry by entry."""
    owner = vcpu.domain.memory
    words = mmu._types.types
    done = 0
    try:
        requests = memoryview(vcpu.space.read(ureqs, count * UPDATE_SIZE)).cast("Q")
    except GuestFault:
        return -EFAULT
    while done < count:
        request, new = requests[2 * done], requests[2 * done + 1]
        mode = request & MODES
        at = request - mode
        if at >> 12 >= mmu._size:
            return -EINVAL
        word = words[at >> 12]
        if mode == 1:
            mmu._m2p.set(at >> 12, new)
        elif word & VALID_MASK == L1:
            update_l1(mmu, at, new, owner, owner, mode == PRESERVE)
        else:
            failure = mmu._other(at, new, word, owner, owner, mode == PRESERVE)
            if failure:
                return int(failure)
        done += 1
    if pdone:
        write_done(vcpu, pdone, done)
    return 0


def serve(native: NativeUpdates, vcpu: Any, core: Any) -> None:
    """Nothing is done natively: that path validates."""


REPLACED: Final[tuple[tuple[type, str, Any], ...]] = (
    (PageTypes, "get_page", get_page),
    (PageTypes, "put_page", put_page),
    (PageTypes, "get_type", get_type),
    (PageTypes, "put_type", put_type),
    (PageTypes, "get_page_from_l1", accept),
    (PageTypes, "put_page_from_l1", forget),
    (Validator, "_promote_l1", accept_table),
    (Validator, "_demote_l1", forget_table),
    (EntryUpdate, "l1", update_l1),
    (Mmu, "mmu_update", mmu_update),
    (NativeUpdates, "serve", serve),
)


def trust() -> None:
    """From now on every hypervisor of this process believes its guests."""
    for owner, name, function in REPLACED:
        if not hasattr(owner, name):
            raise AttributeError(f"{owner.__name__}.{name} is no more: there is nothing to replace")
        setattr(owner, name, function)


if __name__ == "__main__":
    trust()
    sys.exit(main())
