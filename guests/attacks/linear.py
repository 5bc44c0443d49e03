"""Recursive (linear) page tables made writable, and updates through stale ones.

Tries a root, an L3 and an L2 that name themselves or a table of their own level with the writable bit
set, at once or afterwards by the bits that may change without a check; then reaches its L1 tables through
the read-only recursive slot and writes to them. A broken hypervisor leaves the guest a writable view of
its own page tables (XSA-182, XSA-240). A correct one lets such entries be read-only only, refuses to add
the bit, and the processor refuses the stores.
"""

from __future__ import annotations

from guests.attacks.support import (
    EINVAL,
    FREE_VA,
    L2,
    L3,
    L4,
    READ_ONLY,
    READ_WRITE,
    ROOT_SLOT,
    attack,
    expect,
    faults,
    shifted,
    update,
    walk,
)

RECURSIVE = 0xFFFF_0000_0000_0000 | ROOT_SLOT << 39 | ROOT_SLOT << 30 | ROOT_SLOT << 21 | ROOT_SLOT << 12
"""Where a root that names itself in that slot shows itself."""


def itself(level: str, offset: int, slot: int) -> str:
    """Entries of a table for itself."""
    return "\n".join(
        (
            f"mov rbx, [rip + table_frame + {offset}]\nshl rbx, 12\nmov r12, rbx\nadd rbx, {slot * 8}",
            f"lea rax, [r12 + {READ_WRITE}]",
            update("rbx", "rax"),
            expect(f"{level} naming itself, writable", EINVAL),
            f"lea rax, [r12 + {READ_ONLY}]",
            update("rbx", "rax"),
            expect(f"{level} naming itself, read-only", 0),
            f"lea rax, [r12 + {READ_WRITE}]",
            update("rbx", "rax"),
            expect(f"{level}, the bit added", EINVAL),
            "mov rax, rbx\nor rax, 2\nmov rbx, rax",
            f"lea rax, [r12 + {READ_WRITE}]",
            update("rbx", "rax"),
            expect(f"{level}, the bit added, accessed bits kept", EINVAL),
            "and rbx, -4",
        )
    )


def build() -> bytes:
    """The image."""
    return attack(
        walk("spare"),
        itself("a root", L4, ROOT_SLOT),
        faults("a store to the root", f"mov rbx, {RECURSIVE}\nmov rax, -1\nmov [rbx + 8], rax"),
        faults("a read of the root", f"mov rbx, {RECURSIVE}\nmov rax, [rbx]", -1),
        f"mov rbx, [rip + table_frame + {L4}]\nshl rbx, 12\nadd rbx, {ROOT_SLOT * 8}",
        update("rbx", 0),
        expect("removed", 0),
        itself("an L3", L3, 5),
        update("rbx", 0),
        expect("removed", 0),
        itself("an L2", L2, 500),
        update("rbx", 0),
        expect("removed", 0),
        faults("the stale view of the root", f"mov rbx, {FREE_VA}\nmov rax, [rbx]"),
        shifted("spare_frame", READ_WRITE),
        "mov rcx, 511\nand rax, rcx",
        expect("flags", READ_WRITE & 511),
    )
