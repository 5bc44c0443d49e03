"""Grants of a domain's own pages to itself: every way to get a mapping that is not counted.

Tries entries at misaligned addresses and in frames that are no page tables; maps for the host and a device
and unmaps once; maps read-only and makes the entry writable, maps writable and takes the entry away by
hand, and unmaps then; grants and copies into page tables; changes an entry in use, transfers and balloons
what is mapped; copies over the ends of pages; wild references, handles, domains; and uses that overflow a
counter. A broken hypervisor changes a word of its own, or lets a writable mapping outlive the count of it
(XSA-26, XSA-224, XSA-227, XSA-234). A correct one counts each kind of mapping by itself, compares what it
unmaps with what it mapped, and refuses the rest.
"""

from __future__ import annotations

from guests.attacks import grant_support as g
from guests.attacks.support import (
    EBUSY,
    EFAULT,
    EINVAL,
    L1,
    L2,
    NO_FRAME,
    NON_CANONICAL,
    READ_ONLY,
    READ_WRITE,
    UNMAPPED,
    XEN_ADDRESS,
    attack,
    expect,
    extended,
    frame_of,
    label,
    negative,
    remap,
    same,
    shifted,
    update,
    walk,
)
from guests.macros import hypercall, put

REF, SECOND, THIRD, FOURTH = range(g.FIRST, g.FIRST + 4)
HOST, DEVICE, READ = "GNTMAP_host_map", "GNTMAP_device_map", "GNTMAP_readonly"
ENTRY = "GNTMAP_host_map | GNTMAP_contains_pte"
BOTH = "GNTMAP_host_map | GNTMAP_device_map"
MARK = 0x1234_5678
USES = 128
"""How often an entry can be in use in one way: the counter's highest bit must not be passed."""


def pin(page: str = "spare") -> str:
    """Pin a page of the image, which is read-only for us, as a page table."""
    return extended("MMUEXT_PIN_L1_TABLE", f"[rip + {page}_frame]")


def no_table(title: str, page: str = "spare") -> str:
    """PASS when a page cannot become a page table, though we see it read-only ourselves."""
    return "\n".join(
        (
            remap(page, READ_ONLY),
            expect(f"{title}: we see it read-only", 0),
            pin(page),
            expect(f"{title}: it is no page table", EINVAL, EBUSY),
        )
    )


def a_table(title: str, page: str = "spare") -> str:
    """PASS when nothing is left that keeps a page from being one."""
    return "\n".join(
        (
            remap(page, READ_ONLY),
            expect(f"{title}: we see it read-only", 0),
            pin(page),
            expect(f"{title}: it can be a page table", 0),
            extended("MMUEXT_UNPIN_TABLE", f"[rip + {page}_frame]"),
            expect(f"{title}: and a page again", 0),
            remap(page, READ_WRITE),
        )
    )


def misaligned() -> str:
    """Entries by their machine address, none of which is one."""
    parts = [
        g.entry(REF, "GTF_permit_access", "[rip + spare_frame]"),
        put("other", MARK),
        walk("other"),
        "mov r12, rax",
    ]
    for offset in (1, 2, 3, 4, 5, 6, 7):
        parts += [
            f"lea r13, [r12 + {offset}]",
            g.refused(f"an entry {offset} bytes off", g.map_grant(REF, ENTRY, "r13")),
        ]
    places = {
        "a page": ("third_frame", 0),
        "an L2": (f"table_frame + {L2}", 8 * 510),
        "a root": ("table_frame", 8 * 300),
        "the shared page": ("shared_frame", 8),
        "its own grant table": ("grant_frame", 64),
    }
    for name, (frame, offset) in places.items():
        parts += [
            f"mov r13, [rip + {frame}]\nshl r13, 12\nadd r13, {offset}",
            g.refused(f"an entry in {name}", g.map_grant(REF, ENTRY, "r13")),
        ]
    for name, address in {
        "nowhere": NO_FRAME << 12,
        "at 0": 0,
        "in frame 1": 4096,
        "in frame 0x1000": 0x1000 << 12,
        "at the end": (1 << 64) - 8,
        "above all frames": 1 << 62,
    }.items():
        parts.append(g.refused(f"an entry {name}", g.map_grant(REF, ENTRY, address)))
    for name, address in {
        "non-canonical": NON_CANONICAL,
        "Xen's": XEN_ADDRESS,
        "the M2P's": 0xFFFF_8000_0000_0000,
        "without tables": UNMAPPED,
        "the last": (1 << 64) - 4096,
    }.items():
        parts.append(g.refused(f"an address: {name}", g.map_grant(REF, HOST, address)))
    parts.append(same("nothing was mapped there", "other", MARK))
    return "\n".join(parts)


def halves() -> str:
    """Mapped for the host and a device, unmapped once."""
    return "\n".join(
        (
            g.works("a map for host and device", g.map_grant(REF, BOTH, "&third")),
            put("third + 16", MARK),
            same("it is the page", "spare + 16", MARK),
            no_table("mapped twice"),
            g.works("unmapped for the host", g.unmap_grant("&third")),
            no_table("mapped for a device"),
            g.refused("unmapped for the host again", g.unmap_grant("&third"), 0),
            no_table("and once more"),
            g.refused("unmapped at another device address", g.unmap_grant(0, 0x1000), g.BAD_DEVICE),
            no_table("still for a device"),
            "mov r13, [rip + spare_frame]\nshl r13, 12",
            g.works("unmapped for the device", g.unmap_grant(0, "r13")),
            g.refused("the handle is gone", g.unmap_grant(0, "r13"), g.BAD_HANDLE),
            a_table("unmapped"),
            remap("third", READ_WRITE),
            expect("the place is ours again", 0),
        )
    )


def by_hand() -> str:
    """Entries of grants changed by mmu_update: what they hold is counted with them."""
    return "\n".join(
        (
            g.works("a read-only map", g.map_grant(REF, f"{HOST} | {READ}", "&third")),
            walk("third"),
            "mov r12, rax",
            shifted("spare_frame", READ_WRITE),
            "mov rbx, rax",
            update("r12", "rbx"),
            expect("made writable by hand", 0),
            no_table("writable by hand"),
            g.refused("unmapped as read-only", g.unmap_grant("&third")),
            no_table("still writable by hand"),
            update("r12", 0),
            expect("taken away by hand", 0),
            g.refused("unmapped though it is gone", g.unmap_grant("&third")),
            g.refused("and elsewhere", g.unmap_grant("&other")),
            a_table("no writable map is left"),
            g.works("a writable map", g.map_grant(REF, HOST, "&third")),
            no_table("a writable map"),
            update("r12", 0),
            expect("taken away by hand, too", 0),
            g.refused("unmapped though that is gone", g.unmap_grant("&third")),
            a_table("no writable map is left by hand"),
            remap("third", READ_WRITE),
            expect("the place is ours again", 0),
        )
    )


def tables() -> str:
    """Grants of page tables, and copies into them."""
    root = "mov r13, [rip + table_frame]"
    return "\n".join(
        (
            walk("third"),
            root,
            g.entry(SECOND, "GTF_permit_access", "r13"),
            g.refused("a writable map of the root", g.map_grant(SECOND, HOST, "&other")),
            g.refused("a device's writable map of the root", g.map_grant(SECOND, DEVICE, 0)),
            g.refused(
                "a copy into the root", g.copy_grant(("[rip + third_frame]", "DOMID_SELF", 0),
                                                     (SECOND, "[rip + own_number]", 2400), 8, 2)
            ),
            g.refused(
                "a copy into the root's frame", g.copy_grant(("[rip + third_frame]", "DOMID_SELF", 0),
                                                             ("r13", "DOMID_SELF", 2400), 8, 0)
            ),
            g.works("a read-only map of the root", g.map_grant(SECOND, f"{HOST} | {READ}", "&other")),
            walk("other"),
            "mov r12, rax",
            f"mov rbx, r13\nshl rbx, 12\nor rbx, {READ_WRITE}",
            update("r12", "rbx"),
            expect("made writable by hand", EINVAL, EBUSY),
            g.works("unmapped", g.unmap_grant("&other")),
            f"mov r13, [rip + table_frame + {L1}]",
            g.entry(SECOND, "GTF_permit_access", "r13"),
            g.refused("a writable map of an L1", g.map_grant(SECOND, HOST, "&other")),
            "mov r13, [rip + grant_frame]",
            g.entry(SECOND, "GTF_permit_access", "r13"),
            g.works("a map of the grant table itself", g.map_grant(SECOND, HOST, "&other")),
            g.works("unmapped again", g.unmap_grant("&other")),
            remap("other", READ_WRITE),
            expect("the place is ours again", 0),
        )
    )


def changed() -> str:
    """An entry that changes while it is in use; a page given away while it is mapped."""
    return "\n".join(
        (
            g.entry(SECOND, "GTF_permit_access", "[rip + spare_frame]"),
            g.works("a map", g.map_grant(SECOND, HOST, "&third")),
            put("first_handle", "[rip + handle]"),
            g.entry(SECOND, 0, "[rip + table_frame]"),
            g.works("and another, the entry in use being cleared", g.map_grant(SECOND, HOST, "&other")),
            put("other + 24", MARK),
            same("is of the page that was granted", "spare + 24", MARK),
            g.refused(
                "a copy from an entry that has changed", g.copy_grant(
                    (SECOND, "[rip + own_number]", 0), ("[rip + fourth_frame]", "DOMID_SELF", 0), 8, 1
                ), 0
            ),
            g.refused("its transfer", g.transfer("[rip + spare_frame]", SECOND), g.BAD_PAGE),
            put("extent", "[rip + spare_frame]"),
            put("argument + gnttab_swap_grant_ref.ref_a", REF, 4),
            put("argument + gnttab_swap_grant_ref.ref_b", SECOND, 4),
            hypercall("grant_table_op", "GNTTABOP_swap_grant_ref", "&argument", 1),
            "movsx rax, word ptr [rip + argument + gnttab_swap_grant_ref.status]",
            expect("swapped while in use", g.IN_USE),
            no_table("mapped by an entry that is gone"),
            g.works("one map goes", g.unmap_grant("&third", handle="[rip + first_handle]")),
            no_table("one map is left"),
            g.works("the other goes", g.unmap_grant("&other")),
            a_table("mapped no more"),
            remap("third", READ_WRITE),
            remap("other", READ_WRITE),
            expect("the places are ours again", 0),
        )
    )


def replaced() -> str:
    """Unmap and replace, with addresses of all kinds."""
    return "\n".join(
        (
            g.entry(SECOND, "GTF_permit_access", "[rip + spare_frame]"),
            g.works("a map to be replaced", g.map_grant(SECOND, HOST, "&third")),
            *(
                g.refused(f"replaced by {name}", g.replace_grant("&third", address))
                for name, address in {
                    "Xen's": XEN_ADDRESS,
                    "nothing canonical": NON_CANONICAL,
                    "nothing": UNMAPPED,
                }.items()
            ),
            no_table("it is still there"),
            g.refused("replaced by itself", g.replace_grant("&third", "&third")),
            a_table("then it is lost"),
            g.refused("and cannot be unmapped", g.unmap_grant("&third")),
            remap("third", READ_WRITE),
            expect("the place is ours again", 0),
        )
    )


def copies() -> str:
    """Copies over the ends of pages, of wild frames and references."""
    own, self_ = "[rip + own_number]", "DOMID_SELF"
    third = ("[rip + third_frame]", self_, 0)
    parts = [g.entry(THIRD, "GTF_permit_access", "[rip + spare_frame]")]
    for name, source, dest, length in (
        ("starts at the end", 4096, 0, 1),
        ("ends behind the end", 4090, 0, 8),
        ("of 64 KiB", 0xFFFF, 0xFFFF, 0xFFFF),
        ("of a page and a byte", 0, 0, 4097),
        ("ends behind the other end", 0, 4089, 8),
    ):
        parts.append(
            g.refused(
                f"a copy that {name}" if " " in name and not name.startswith("of") else f"a copy {name}",
                g.copy_grant(("[rip + third_frame]", self_, source), ("[rip + other_frame]", self_, dest),
                             length, 0),
                g.BAD_COPY,
            )
        )
    for name, frame in (("no frame", NO_FRAME), ("frame 1", 1), ("frame 0x1000", 0x1000)):
        parts += [
            g.refused(f"a copy from {name}", g.copy_grant((frame, self_, 0), third, 8, 0), g.BAD_PAGE),
            g.refused(f"a copy to {name}", g.copy_grant(third, (frame, self_, 0), 8, 0), g.BAD_PAGE),
        ]
    for name, reference in (("behind the table", 512), ("-1", 0xFFFF_FFFF)):
        parts += [
            g.refused(f"a copy from reference {name}", g.copy_grant((reference, own, 0), third, 8, 1),
                      g.BAD_REFERENCE),
            g.refused(f"a map of reference {name}", g.map_grant(reference, HOST, "&other"), g.BAD_REFERENCE),
        ]
    parts += [
        g.refused("a copy from nobody by frame", g.copy_grant((0x100, 0x1234, 0), third, 8, 0), g.BAD_DOMAIN),
        g.refused("a copy from a frame by domain", g.copy_grant((0x100, own, 0), third, 8, 0), g.DENIED),
        g.refused("a copy to a frame by domain", g.copy_grant(third, (0x100, own, 0), 8, 0), g.DENIED),
        g.refused("a copy from nobody", g.copy_grant((THIRD, 0x1234, 0), third, 8, 1), g.BAD_DOMAIN),
        g.refused("a copy from Xen", g.copy_grant((THIRD, 0x7FF2, 0), third, 8, 1), g.BAD_DOMAIN),
        g.refused("a map of nobody's", g.map_grant(THIRD, HOST, "&other", 0x1234), g.BAD_DOMAIN),
        g.refused("a map of Xen's", g.map_grant(THIRD, HOST, "&other", 0x7FF2), g.BAD_DOMAIN),
        g.refused("a map of no kind", g.map_grant(THIRD, READ, "&other"), g.BAD_REFERENCE),
    ]
    for handle in (0xFFFF_FFFF, 0x1_2345, 255):
        parts.append(
            g.refused(f"handle {handle:#x}", g.unmap_grant("&other", handle=handle), g.BAD_HANDLE)
        )
    for name, flags, frame in (
        ("of no frame", "GTF_permit_access", 0xFFFF_FFFF),
        ("of frame 0x1000", "GTF_permit_access", 0x1000),
    ):
        parts += [
            g.entry(THIRD, flags, frame),
            g.refused(f"a map {name}", g.map_grant(THIRD, HOST, "&other"), g.BAD_PAGE),
        ]
    for name, granted in (("nothing", 0), ("a transfer", "GTF_accept_transfer"), ("another's grant", 3),
                        ("part of a page", "GTF_permit_access | GTF_sub_page")):
        parts += [
            g.entry(THIRD, granted, "[rip + spare_frame]"),
            g.refused(f"a map of an entry for {name}", g.map_grant(THIRD, HOST, "&other")),
        ]
    parts += [
        g.entry(THIRD, "GTF_permit_access | GTF_readonly", "[rip + spare_frame]"),
        g.refused("a writable map of a read-only grant", g.map_grant(THIRD, HOST, "&other")),
        g.refused("a copy to a read-only grant", g.copy_grant(third, (THIRD, own, 0), 8, 2)),
        g.entry(THIRD, "GTF_permit_access", "[rip + spare_frame]", "3"),
        g.refused("a map of a grant to somebody else", g.map_grant(THIRD, HOST, "&other")),
    ]
    return "\n".join(parts)


def counted() -> str:
    """One entry in use more often than its counter holds."""
    again, over = label("again"), label("over")
    return "\n".join(
        (
            g.entry(FOURTH, "GTF_permit_access", "[rip + spare_frame]"),
            "xor r12d, r12d",
            f"{again}:",
            g.map_grant(FOURTH, DEVICE, 0),
            f"test rax, rax\njnz {over}\ninc r12d\ncmp r12d, {2 * USES}\njb {again}",
            f"{over}:",
            expect("one use too many", g.GENERAL),
            "mov rax, r12",
            expect("after as many as are counted", USES),
            no_table("in use so often"),
            g.transfer("[rip + spare_frame]", FOURTH),
            expect("its transfer", g.BAD_PAGE),
        )
    )


SIZES = "\n".join(
    (
        *(
            "\n".join(
                (
                    put("argument + gnttab_setup_table.dom", "DOMID_SELF", 2),
                    put("argument + gnttab_setup_table.nr_frames", frames, 4),
                    put("argument + gnttab_setup_table.frame_list", "&grant_frame"),
                    hypercall("grant_table_op", "GNTTABOP_setup_table", "&argument", 1),
                    "movsx rcx, word ptr [rip + argument + gnttab_setup_table.status]\nor rax, rcx",
                    negative(f"a table of {frames:#x} frames"),
                )
            )
            for frames in (65, 0x1000, 0x8000_0000, 0xFFFF_FFFF)
        ),
        *(
            "\n".join((hypercall("grant_table_op", command, pointer, count), expect(title, EFAULT, EINVAL)))
            for title, command, pointer, count in (
                ("requests of Xen's", "GNTTABOP_map_grant_ref", XEN_ADDRESS, 1),
                ("requests nowhere", "GNTTABOP_unmap_grant_ref", NON_CANONICAL, 1),
                ("requests without tables", "GNTTABOP_copy", UNMAPPED, 1),
                ("too many requests", "GNTTABOP_map_grant_ref", "&argument", 0xFFFF_FFFF),
                ("requests over the end", "GNTTABOP_transfer", (1 << 64) - 8, 1),
                ("a size nowhere", "GNTTABOP_query_size", NON_CANONICAL, 1),
                ("a table nowhere", "GNTTABOP_setup_table", NON_CANONICAL, 1),
            )
        ),
    )
)


def build() -> bytes:
    """The image."""
    return attack(
        g.SETUP,
        frame_of("fourth", "fourth_frame"),
        "mov rax, [rip + start_info_address]\nmov rax, [rax + start_info.shared_info]\nshr rax, 12",
        "mov [rip + shared_frame], rax",
        misaligned(),
        halves(),
        by_hand(),
        tables(),
        changed(),
        replaced(),
        copies(),
        counted(),
        SIZES,
        extended("MMUEXT_TLB_FLUSH_LOCAL"),
        expect("all is well", 0),
        data=(g.DATA, "shared_frame: .quad 0\nfirst_handle: .quad 0\nextent: .quad 0\nfourth_frame: .quad 0"),
        bss=(g.BSS, ".balign 4096, 0\nfourth: .zero 4096"),
    )
