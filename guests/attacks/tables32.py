"""Page tables of a PAE guest: the rules of its root, Xen's part of the last L2, recursive tables, levels.

Tries every forbidden bit in root entries, the root's last entry and those behind it, Xen's entries of the
last L2, an L2 that serves twice where Xen's may be only once, tables that name themselves, superpages, high
bits, roots that are none, a fourth level, and frames of others; and stores to what it sees of its tables and
of Xen. A broken hypervisor loads a root whose reserved bits fault in its own mode, loses its mapping of
itself (the last L2 is shared with it), or leaves a writable view of a table (XSA-148, XSA-182, XSA-240). A
correct one refuses, and what is refused changes nothing.
"""

from __future__ import annotations

from guests.attacks.support32 import (
    EBUSY,
    EINVAL,
    EPERM,
    FIRST_XEN_SLOT,
    L1,
    L2,
    L3,
    NO_FRAME,
    PAGE_FAULT,
    PROTECTION,
    READ_ONLY,
    READ_WRITE,
    SUPERPAGE,
    XEN_ADDRESSES,
    attack,
    expect,
    extended,
    faults,
    mapping,
    negative,
    remap,
    same,
    shifted,
    update,
    walk,
)
from guests.macros32 import hypercall, put

MARK = 0x1234_5678
PRESENT = 1
ROOT_FORBIDDEN = (3, 4, 7, 8)
"""Bits of a PAE root entry Xen refuses (COMPAT_L3_DISALLOW_MASK): PWT, PCD, PSE, GLOBAL."""
FAULTS = (PAGE_FAULT, PROTECTION)


def at(level: int, slot: int | str = 0) -> str:
    """ebp = the machine address of an entry of the table at that level of the last walk."""
    offset = slot * 8 if isinstance(slot, int) else slot
    return f"mov ebp, [table_frame + {level}]\nshl ebp, 12\nadd ebp, {offset}"


def roots() -> str:
    """Entries of the root in use, and of one to be validated."""
    parts = [
        remap("spare", READ_ONLY),
        extended("MMUEXT_PIN_L2_TABLE", "[spare_frame]"),
        expect("an L2 of its own", 0),
        walk("third"),
    ]
    for bit in ROOT_FORBIDDEN:
        parts += [
            at(L3, 1),
            shifted("spare_frame", PRESENT | 1 << bit),
            update("ebp", "ebx"),
            expect(f"bit {bit} in a root entry", EINVAL),
        ]
    for bit in (20, 21, 30, 31):
        parts += [
            at(L3, 1),
            shifted("spare_frame", PRESENT),
            update("ebp", "ebx", 1 << bit),
            expect(f"bit {32 + bit} in a root entry", EINVAL),
        ]
    for slot in (3, 4, 5, 511):
        parts += [
            at(L3, slot),
            shifted("spare_frame", PRESENT),
            update("ebp", "ebx"),
            expect(f"root entry {slot}", EINVAL),
            at(L3, slot),
            update("ebp", 0),
            expect(f"root entry {slot} emptied", EINVAL),
        ]
    parts += [
        at(L3, 1),
        f"mov ebx, [table_frame + {L3}]\nshl ebx, 12\nor ebx, {PRESENT}",
        update("ebp", "ebx"),
        expect("the root in the root", EINVAL),
        at(L3, 1),
        f"mov ebx, [table_frame + {L1}]\nshl ebx, 12\nor ebx, {PRESENT}",
        update("ebp", "ebx"),
        expect("an L1 in the root", EINVAL),
        at(L3, 1),
        f"mov ebx, [table_frame + {L2}]\nshl ebx, 12\nor ebx, {PRESENT}",
        update("ebp", "ebx"),
        expect("the last L2 a second time", EINVAL),
        at(L3, 1),
        shifted("spare_frame", PRESENT),
        update("ebp", "ebx"),
        expect("an L2 is put in", 0),
        extended("MMUEXT_UNPIN_TABLE", "[spare_frame]"),
        expect("unpinned", 0),
        remap("spare", READ_WRITE),
        negative("writable while it is in the root"),
        at(L3, 1),
        update("ebp", 0),
        expect("taken out", 0),
        remap("spare", READ_WRITE),
        expect("and a page again", 0),
    ]
    # another root: one whose last entry is empty, an ordinary L2, or Xen's a second time
    parts += [
        remap("other", READ_ONLY),
        extended("MMUEXT_PIN_L3_TABLE", "[other_frame]"),
        negative("a root without its last L2"),
        remap("other", READ_WRITE),
        shifted("spare_frame", PRESENT),
        "mov [other + 24], ebx\nmov [other + 8], ebx",
        remap("spare", READ_ONLY),
        remap("other", READ_ONLY),
        extended("MMUEXT_PIN_L3_TABLE", "[other_frame]"),
        negative("a root whose last L2 serves twice"),
        extended("MMUEXT_NEW_BASEPTR", "[other_frame]"),
        negative("such a root as the root"),
        remap("other", READ_WRITE),
        "mov dword ptr [other + 8], 0",
        remap("other", READ_ONLY),
        extended("MMUEXT_PIN_L3_TABLE", "[other_frame]"),
        expect("a root with a last L2 of its own", 0),
        remap("spare", READ_WRITE),
        negative("its last L2, writable"),
        f"mov ebp, [spare_frame]\nshl ebp, 12\nadd ebp, {FIRST_XEN_SLOT * 8}",
        update("ebp", 0),
        expect("Xen's entry in it emptied", EPERM),
        extended("MMUEXT_UNPIN_TABLE", "[other_frame]"),
        expect("that root goes", 0),
        remap("spare", READ_WRITE),
        remap("other", READ_WRITE),
        expect("and its pages are pages", 0),
    ]
    return "\n".join(parts)


def xens() -> str:
    """Xen's part of the address space, by entries, by mappings and by stores."""
    parts = [walk("third")]
    for slot in (FIRST_XEN_SLOT, FIRST_XEN_SLOT + 1, 480, 511):
        parts += [
            at(L2, slot),
            update("ebp", 0),
            expect(f"Xen's entry {slot} of the last L2 emptied", EPERM),
            at(L2, slot),
            shifted("spare_frame", READ_WRITE),
            update("ebp", "ebx"),
            expect(f"Xen's entry {slot} of the last L2", EPERM),
        ]
    for address in XEN_ADDRESSES:
        parts += [
            shifted("spare_frame", READ_WRITE),
            mapping(address, "ebx"),
            negative(f"a mapping at {address:#x}"),
            mapping(address, 0),
            negative(f"no mapping at {address:#x}"),
            faults(f"a store at {address:#x}", f"mov eax, {address}\nmov [eax], eax", *FAULTS),
        ]
    parts += [
        faults("the root is not to be written", f"mov eax, [table_va + {L3}]\nmov dword ptr [eax], 7"),
        faults("nor the last L2", f"mov eax, [table_va + {L2}]\nmov dword ptr [eax + 8], 7"),
        faults("nor an L1", f"mov eax, [table_va + {L1}]\nlock or dword ptr [eax + 4088], 2"),
    ]
    for name, level in (("root", L3), ("last L2", L2), ("L1", L1)):
        parts += [
            f"mov ebx, [table_frame + {level}]\nshl ebx, 12\nor ebx, {READ_WRITE}",
            mapping("&third", "ebx"),
            expect(f"the {name}, writable", EINVAL, EBUSY),
        ]
    return "\n".join(parts)


def entries() -> str:
    """What entries of L2 and L1 tables may not be."""
    parts = [
        remap("spare", READ_ONLY),
        extended("MMUEXT_PIN_L2_TABLE", "[spare_frame]"),
        expect("what was a last L2 as an ordinary one: Xen's entries are in it", EINVAL),
        remap("spare", READ_WRITE),
        extended("MMUEXT_CLEAR_PAGE", "[spare_frame]"),
        expect("cleared", 0),
        remap("spare", READ_ONLY),
        extended("MMUEXT_PIN_L2_TABLE", "[spare_frame]"),
        expect("an L2", 0),
    ]
    l2 = "mov ebp, [spare_frame]\nshl ebp, 12"
    for name, flags in (
        ("a superpage", READ_WRITE | SUPERPAGE),
        ("a superpage read-only", READ_ONLY | SUPERPAGE),
        ("a global entry", READ_WRITE | 0x100),
        ("an uncached entry", READ_WRITE | 0x10),
    ):
        parts += [
            l2,
            shifted("other_frame", flags),
            update("ebp", "ebx"),
            expect(f"{name} in an L2", EINVAL),
        ]
    parts += [
        l2,
        shifted("spare_frame", READ_WRITE),
        update("ebp", "ebx"),
        expect("an L2 in itself, writable", EINVAL),
        walk("third"),
        l2,
        f"mov ebx, [table_frame + {L2}]\nshl ebx, 12\nor ebx, {READ_WRITE}",
        update("ebp", "ebx"),
        expect("the last L2 in an L2, writable", EINVAL),
        l2,
        f"mov ebx, [table_frame + {L3}]\nshl ebx, 12\nor ebx, {READ_WRITE}",
        update("ebp", "ebx"),
        expect("the root in an L2", EINVAL),
        l2,
        update("ebp", NO_FRAME << 12 | READ_WRITE),
        expect("no frame in an L2", EINVAL),
        l2,
        update("ebp", 1 << 12 | READ_WRITE),
        expect("frame 1 in an L2", EINVAL),
        extended("MMUEXT_UNPIN_TABLE", "[spare_frame]"),
        expect("the L2 goes", 0),
        remap("spare", READ_WRITE),
        put("third", MARK),
        walk("third"),
        "mov ebp, eax",
    ]
    parts += [
        shifted("other_frame", READ_WRITE),
        update("ebp", "ebx", 0xF_FFFF),
        negative("a frame above all in an L1"),
    ]
    for frame in (0, 1, 0x1000, NO_FRAME):
        parts += [
            update("ebp", frame << 12 | READ_WRITE),
            negative(f"frame {frame:#x}"),
            mapping("&third", frame << 12 | READ_ONLY),
            negative(f"frame {frame:#x}, read-only"),
        ]
    parts += [
        same("the page is where it was", "third", MARK),
    ]
    return "\n".join(parts)


def levels() -> str:
    """Tables of levels a PAE guest has not, and in places they are not for."""
    parts = [walk("third"), remap("other", READ_ONLY)]
    for name, frame in (
        ("a page", "[other_frame]"),
        ("an L1", f"[table_frame + {L1}]"),
        ("an L2", f"[table_frame + {L2}]"),
        ("no frame", NO_FRAME),
        ("frame 0x1000", 0x1000),
    ):
        parts += [
            extended("MMUEXT_NEW_BASEPTR", frame),
            negative(f"{name} as the root"),
            extended("MMUEXT_NEW_USER_BASEPTR", frame),
            negative(f"{name} as the user's root"),
        ]
    for name, command, level in (
        ("the root as an L1", "MMUEXT_PIN_L1_TABLE", L3),
        ("the root as an L2", "MMUEXT_PIN_L2_TABLE", L3),
        ("the last L2 as an ordinary one", "MMUEXT_PIN_L2_TABLE", L2),
        ("the last L2 as an L1", "MMUEXT_PIN_L1_TABLE", L2),
        ("an L1 as a root", "MMUEXT_PIN_L3_TABLE", L1),
    ):
        parts += [
            extended(command, f"[table_frame + {level}]"),
            expect(name, EINVAL),
        ]
    parts += [
        extended("MMUEXT_PIN_L4_TABLE", "[other_frame]"),
        "mov ebp, eax",
        remap("other", READ_WRITE),
        expect("what was pinned as an L4 is a page", 0),
        extended("MMUEXT_UNPIN_TABLE", f"[table_frame + {L1}]"),
        expect("an L1 nobody pinned", EINVAL),
        f"mov ebx, [table_frame + {L3}]",
        extended("MMUEXT_CLEAR_PAGE", "ebx"),
        expect("the root cleared", EINVAL, EBUSY),
        extended("MMUEXT_COPY_PAGE", "ebx", "[other_frame]"),
        expect("the root copied over", EINVAL, EBUSY),
        f"mov ebx, [table_frame + {L3}]",
        put("extent", "ebx"),
        hypercall("memory_op", "XENMEM_decrease_reservation", "&reservation"),
        extended("MMUEXT_TLB_FLUSH_LOCAL"),
        expect("the guest lives without its own reference to its root", 0),
    ]
    return "\n".join(parts)


def build() -> bytes:
    """The image."""
    return attack(
        roots(),
        xens(),
        entries(),
        remap("third", READ_WRITE),
        expect("a page of its own", 0),
        levels(),
        extended("MMUEXT_TLB_FLUSH_LOCAL"),
        expect("all is well", 0),
        data=(
            ".balign 4, 0\nextent: .long 0\nreservation: .long extent, 1, 0, 0\n.short DOMID_SELF",
            ".balign 4, 0",
        ),
    )
