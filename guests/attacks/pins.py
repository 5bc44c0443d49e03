"""Pins, roots and reservations in the wrong order: each count taken once must be given back once.

Tries to unpin twice, to unpin what is in use, to pin under a second type, to free pages that are mapped,
pinned, roots or descriptor tables and use what is left, roots of nobody and of Xen, and a thousand
mappings of one frame. A broken hypervisor frees a frame that is still a page table, or loses count of its
uses. A correct one keeps the frame and its type until the last use is gone.
"""

from __future__ import annotations

from guests.attacks.support import (
    EBUSY,
    EINVAL,
    NO_FRAME,
    READ_ONLY,
    READ_WRITE,
    attack,
    expect,
    extended,
    faults,
    remap,
    shifted,
    update,
    walk,
)
from guests.macros import hypercall, put


def decrease(title: str, frame: str, extents: int) -> str:
    """Give one frame back."""
    return "\n".join(
        (
            put("extent", f"[rip + {frame}]"),
            hypercall("memory_op", "XENMEM_decrease_reservation", "&reservation"),
            expect(title, extents),
        )
    )


def build() -> bytes:
    """The image."""
    return attack(
        extended("MMUEXT_PIN_L1_TABLE", "[rip + spare_frame]"),
        expect("pin a writable page", EINVAL, EBUSY),
        remap("spare", READ_ONLY),
        extended("MMUEXT_PIN_L1_TABLE", "[rip + spare_frame]"),
        expect("pin", 0),
        extended("MMUEXT_PIN_L1_TABLE", "[rip + spare_frame]"),
        expect("pin again", EINVAL),
        extended("MMUEXT_PIN_L2_TABLE", "[rip + spare_frame]"),
        expect("pin as an L2", EINVAL),
        extended("MMUEXT_PIN_L4_TABLE", "[rip + spare_frame]"),
        expect("pin as a root", EINVAL),
        remap("spare", READ_WRITE),
        expect("a pinned page is not writable", EBUSY),
        extended("MMUEXT_NEW_BASEPTR", "[rip + spare_frame]"),
        expect("an L1 as the root", EINVAL),
        extended("MMUEXT_NEW_USER_BASEPTR", "[rip + spare_frame]"),
        expect("an L1 as the user's root", EINVAL),
        extended("MMUEXT_CLEAR_PAGE", "[rip + spare_frame]"),
        expect("clear a page table", EINVAL),
        extended("MMUEXT_COPY_PAGE", "[rip + spare_frame]", "[rip + other_frame]"),
        expect("copy over it", EINVAL),
        extended("MMUEXT_UNPIN_TABLE", "[rip + spare_frame]"),
        expect("unpin", 0),
        extended("MMUEXT_UNPIN_TABLE", "[rip + spare_frame]"),
        expect("unpin again", EINVAL),
        extended("MMUEXT_UNPIN_TABLE", NO_FRAME),
        expect("unpin no frame", EINVAL),
        extended("MMUEXT_NEW_BASEPTR", 0),
        expect("frame 0 as the root", EINVAL),
        extended("MMUEXT_NEW_BASEPTR", NO_FRAME),
        expect("no frame as the root", EINVAL),
        # The root and the tables in use: unpinned, given away, still there.
        walk("spare"),
        "mov r12, [rip + table_frame]",
        extended("MMUEXT_UNPIN_TABLE", "r12"),
        expect("unpin the root in use", 0),
        extended("MMUEXT_PIN_L4_TABLE", "r12"),
        expect("pin it again", 0),
        decrease("give the root away", "table_frame", 1),
        decrease("twice", "table_frame", 1),
        decrease("an L1 in use", "table_frame + 24", 1),
        "mov rax, cr3\nshr rax, 12\nsub rax, [rip + table_frame]",
        expect("the root is still the root", 0),
        extended("MMUEXT_TLB_FLUSH_LOCAL"),
        expect("and works", 0),
        # Pages that are mapped: the frame stays until the mapping goes.
        decrease("a page that is mapped", "other_frame", 1),
        put("other", 0x1234),
        "mov rax, [rip + other]",
        expect("is still there", 0x1234),
        faults("and writable", "mov [rip + other + 8], rax", -1),
        decrease("again", "other_frame", 1),
        remap("spare", READ_ONLY),
        extended("MMUEXT_PIN_L1_TABLE", "[rip + spare_frame]"),
        expect("pin", 0),
        decrease("a page that is pinned", "spare_frame", 1),
        extended("MMUEXT_UNPIN_TABLE", "[rip + spare_frame]"),
        expect("unpin it", 0),
        "lea rdi, [rip + other]\nxor esi, esi",
        hypercall("update_va_mapping", "rdi", "rsi", "UVMF_INVLPG"),
        expect("the last mapping goes", 0),
        "lea rdi, [rip + other]\nmov rsi, [rip + other_frame]\nshl rsi, 12\nor rsi, 0x67",
        hypercall("update_va_mapping", "rdi", "rsi", "UVMF_INVLPG"),
        expect("and the frame with it", EBUSY, EINVAL),
        put("extent", NO_FRAME),
        hypercall("memory_op", "XENMEM_decrease_reservation", "&reservation"),
        expect("give no frame", 0),
        put("extent", 0),
        hypercall("memory_op", "XENMEM_decrease_reservation", "&reservation"),
        expect("give frame 0", 0),
        # Many mappings of one frame, then it becomes a table only without them.
        "mov r13d, 512\nlea r14, [rip + many]",
        "many_next:",
        "mov rdi, r14\nmov rsi, [rip + third_frame]",
        f"shl rsi, 12\nor rsi, {READ_WRITE}",
        hypercall("update_va_mapping", "rdi", "rsi", 0),
        "add r14, 4096\ndec r13d",
        "jnz many_next",
        remap("third", READ_ONLY),
        extended("MMUEXT_PIN_L1_TABLE", "[rip + third_frame]"),
        expect("512 writable mappings", EBUSY, EINVAL),
        "mov r13d, 512\nlea r14, [rip + many]",
        "fewer_next:",
        "mov rdi, r14\nxor esi, esi",
        hypercall("update_va_mapping", "rdi", "rsi", 0),
        "add r14, 4096\ndec r13d",
        "jnz fewer_next",
        extended("MMUEXT_PIN_L1_TABLE", "[rip + third_frame]"),
        expect("none", 0),
        faults("their stale entries", "mov [rip + many + 4096], rax"),
        shifted("third_frame", READ_WRITE),
        "mov r12, rax",
        walk("spare"),
        "mov rbx, rax",
        update("rbx", "r12"),
        expect("one more", EBUSY, EINVAL),
        data=("extent: .quad 0\nreservation: .quad extent, 1\n.long 0, 0\n.quad DOMID_SELF",),
        bss=(".balign 4096, 0\nmany: .zero 0x200000",),
    )
