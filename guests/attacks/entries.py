"""Entries no page table may hold: superpages, reserved and cache bits, Xen's slots, frames of others.

Tries each in tables of every level, in use and about to be validated, and the slots of the root that are
Xen's. A broken hypervisor maps memory the guest does not own, in 2 MiB or 1 GiB pieces (XSA-148), or lets
it see or change the hypervisor's own mappings. A correct one refuses every one of them and changes
nothing.
"""

from __future__ import annotations

from guests.attacks.support import (
    EBUSY,
    EINVAL,
    EPERM,
    L1,
    L2,
    L3,
    L4,
    NO_FRAME,
    PRESENT,
    READ_ONLY,
    READ_WRITE,
    ROOT_SLOT,
    SUPERPAGE,
    attack,
    expect,
    extended,
    faults,
    remap,
    shifted,
    update,
    walk,
)


def refused(title: str, offset: int, slot: int, value: str, *codes: int) -> str:
    """An entry (code that leaves it in rax) for a slot of one of the tables of `spare`."""
    return "\n".join(
        (
            value,
            f"mov rbx, [rip + table_frame + {offset}]\nshl rbx, 12\nadd rbx, {slot * 8}",
            update("rbx", "rax"),
            expect(title, *(codes or (EINVAL,))),
        )
    )


def superpages() -> str:
    """Large pages in L2, L3 and L4, over the guest's own and anybody's memory."""
    return "\n".join(
        refused(
            f"a superpage in an L{level}, {what}",
            offset,
            slot,
            f"mov rax, {address | READ_WRITE | SUPERPAGE}",
        )
        for level, offset, slot in ((2, L2, 500), (3, L3, 5), (4, L4, ROOT_SLOT))
        for what, address in (("frame 0", 0), ("the second gigabyte", 1 << 30), ("no memory", NO_FRAME << 12))
    )


def xen_slots() -> str:
    """Xen's slots of the root."""
    return "\n".join(
        refused(f"slot {slot} of the root, {what}", L4, slot, code)
        for slot in (256, 257, 260, 261, 271)
        for what, code in (
            ("nothing", "xor eax, eax"),
            ("a table", shifted("table_frame + 8", READ_WRITE)),
            ("itself", shifted("table_frame", READ_ONLY)),
        )
    )


def validated() -> str:
    """The same in a table that is to be pinned."""
    parts = [remap("spare", READ_WRITE)]
    for title, value in (
        ("cache bits", PRESENT | 0x18),
        ("a large page", PRESENT | SUPERPAGE),
        ("no frame", NO_FRAME << 12 | PRESENT),
        ("high bits of an address", 1 << 51 | PRESENT),
        ("frame 0", READ_WRITE),
    ):
        for level in (1, 2, 3, 4):
            parts += [
                f"mov rax, {value}\nmov [rip + spare], rax",
                remap("spare", READ_ONLY),
                extended(f"MMUEXT_PIN_L{level}_TABLE", "[rip + spare_frame]"),
                expect(f"an L{level} with {title}", EINVAL, EPERM, EBUSY),
                remap("spare", READ_WRITE),
            ]
    return "\n".join(parts)


def build() -> bytes:
    """The image."""
    return attack(
        walk("spare"),
        superpages(),
        xen_slots(),
        validated(),
        "mov qword ptr [rip + spare], 0",
        refused("a frame beyond memory", L1, 0, f"mov rax, {NO_FRAME << 12 | READ_WRITE}", EPERM, EINVAL),
        refused(
            "the highest frame", L1, 0, f"mov rax, {((1 << 52) - 1) & ~4095 | READ_WRITE}", EPERM, EINVAL
        ),
        refused("frame 0 of the machine", L1, 0, f"mov rax, {READ_ONLY}", EPERM, EINVAL, EBUSY),
        refused("a root, writable", L1, 0, shifted("table_frame", READ_WRITE), EBUSY, EINVAL),
        refused("an L1, writable", L1, 0, shifted("table_frame + 24", READ_WRITE), EBUSY, EINVAL),
        refused("cache bits", L1, 0, shifted("spare_frame", READ_WRITE | 0x18)),
        update(f"{NO_FRAME << 12}", 0),
        expect("a table beyond memory", EINVAL),
        faults("a store to the M2P", "mov rbx, MACH2PHYS_VIRT_START\nmov [rbx], rax"),
        faults("a read of the per-domain area", "mov rbx, 0xffff820000000000\nmov rax, [rbx]"),
        faults("a store to the per-domain area", "mov rbx, 0xffff820000000000\nmov [rbx], rax"),
        faults("a read of Xen's", "mov rbx, 0xffff82d040000000\nmov rax, [rbx]"),
    )
