"""Grant tables of version 2: status frames kept over a change of version, parts of pages, grants of grants.

Maps a status frame and goes back to version 1, makes status frames page tables, changes the version with
entries in use and with entries version 1 cannot express, grants parts of pages that go over their ends, and
another's grant that is its own, Xen's or nobody's. A broken hypervisor gives a frame back that the guest
still writes (XSA-379, XSA-387), or copies where nobody granted (XSA-226, XSA-230, XSA-350's relatives). A
correct one keeps the frame or the version, and refuses.
"""

from __future__ import annotations

from guests.attacks import grant_support as g
from guests.attacks.support import (
    EBUSY,
    EINVAL,
    NON_CANONICAL,
    READ_ONLY,
    READ_WRITE,
    XEN_ADDRESS,
    attack,
    expect,
    extended,
    negative,
    remap,
    same,
)
from guests.macros import hypercall, put

REF = g.FIRST
RESERVED = 2
"""A reserved reference nobody uses: it is carried over."""
ERANGE, EFAULT = -34, -14
MARK = 0x1234_5678
HOST = "GNTMAP_host_map"
OWN, SELF = "[rip + own_number]", "DOMID_SELF"


def status_at(page: str, flags: int) -> str:
    """Map the first status frame over a page of the image."""
    return "\n".join(
        (
            f"mov rsi, [rip + status_frame]\nshl rsi, 12\nor rsi, {flags}",
            hypercall("update_va_mapping", f"&{page}", "rsi", "UVMF_INVLPG"),
        )
    )


STATUS = "\n".join(
    (
        g.refused("status frames in version 1", g.status_frames(1)),
        g.works("version 2", g.set_version(2)),
        g.works("its status frame", g.status_frames(1)),
        g.refused("more of them than there are", g.status_frames(2)),
        g.refused("2**32 - 1 of them", g.status_frames(0xFFFF_FFFF), EFAULT, g.GENERAL),
        g.works("it can be mapped", status_at("third", READ_WRITE)),
        put("third + 4088", MARK),
        g.refused("version 1 while it is mapped", g.set_version(1), EBUSY),
        g.works("still there are status frames", g.status_frames(1)),
        same("and it is the same", "third + 4088", MARK),
        g.works("read-only", status_at("third", READ_ONLY)),
        g.refused("version 1 while it is mapped read-only", g.set_version(1), EBUSY),
        g.refused("as a page table", extended("MMUEXT_PIN_L1_TABLE", "[rip + status_frame]"), EINVAL, EBUSY),
        g.refused("as a root", extended("MMUEXT_PIN_L4_TABLE", "[rip + status_frame]"), EINVAL, EBUSY),
        g.refused("as the root", extended("MMUEXT_NEW_BASEPTR", "[rip + status_frame]"), EINVAL, EBUSY),
        put("gdt_list", "[rip + status_frame]"),
        hypercall("set_gdt", "&gdt_list", 512),
        expect("as a descriptor table", EINVAL, EBUSY),
        g.refused("given away", g.transfer("[rip + status_frame]", REF), g.BAD_PAGE),
        put("extent", "[rip + status_frame]"),
        hypercall("memory_op", "XENMEM_decrease_reservation", "&reservation"),
        expect("ballooned out", 1),
        remap("third", READ_WRITE),
        g.works("back to version 1", g.set_version(1)),
        status_at("third", READ_WRITE),
        negative("the frame that was a status frame"),
        status_at("third", READ_ONLY),
        negative("that frame read-only"),
        g.refused("its frames are gone", g.status_frames(1)),
        g.works("there and back", g.set_version(2)),
        g.works("and back", g.set_version(1)),
    )
)

IN_USE = "\n".join(
    (
        g.entry(REF, "GTF_permit_access", "[rip + spare_frame]"),
        g.works("a map in version 1", g.map_grant(REF, HOST, "&third")),
        g.refused("version 2 with a map", g.set_version(2), EBUSY),
        g.works("it goes", g.unmap_grant("&third")),
        g.works("then version 2", g.set_version(2)),
        g.wide_entry(REF, "GTF_permit_access", "[rip + spare_frame]"),
        g.works("a map in version 2", g.map_grant(REF, HOST, "&third")),
        g.refused("version 1 with a map", g.set_version(1), EBUSY),
        g.works("that goes", g.unmap_grant("&third")),
        remap("third", READ_WRITE),
        g.wide_entry(RESERVED, "GTF_transitive", 1),
        g.refused("version 1 with another's grant", g.set_version(1), ERANGE),
        g.wide_entry(RESERVED, "GTF_permit_access", 1 << 40),
        g.refused("version 1 with a frame too high", g.set_version(1), ERANGE),
        g.wide_entry(RESERVED, 0, 0),
        *(
            g.refused(f"version {version:#x}", g.set_version(version), EINVAL)
            for version in (0, 3, 0xFFFF_FFFF)
        ),
        hypercall("grant_table_op", "GNTTABOP_set_version", XEN_ADDRESS, 1),
        expect("a version of Xen's", EFAULT),
        hypercall("grant_table_op", "GNTTABOP_get_status_frames", NON_CANONICAL, 1),
        expect("status frames nowhere", EFAULT),
    )
)


def part(first: int, length: int) -> str:
    """Grant part of a page."""
    return g.wide_entry(
        REF, "GTF_permit_access | GTF_sub_page", "[rip + spare_frame]", middle=first | length << 16
    )


def parts() -> str:
    """Copies of parts of pages."""
    rows = []
    to = ("[rip + other_frame]", SELF, 0)
    for first, length, offset, count, status in (
        (64, 64, 64, 64, 0),
        (64, 64, 63, 2, g.GENERAL),
        (64, 64, 127, 2, g.GENERAL),
        (64, 64, 0, 8, g.GENERAL),
        (4000, 200, 4000, 96, 0),
        (4000, 200, 4000, 97, g.BAD_COPY),
        (0xFFFF, 0xFFFF, 0, 8, g.GENERAL),
        (0xFFFF, 0xFFFF, 0xFFFF, 8, g.BAD_COPY),
        (0, 0xFFFF, 4090, 8, g.BAD_COPY),
    ):
        rows += [
            part(first, length),
            g.refused(
                f"{count} bytes at {offset} of a grant of {length} at {first}",
                g.copy_grant((REF, OWN, offset), to, count, 1),
                status,
            ),
        ]
    rows += [
        part(64, 64),
        g.refused("a map of part of a page", g.map_grant(REF, HOST, "&third")),
        g.refused("a device's map of part of a page", g.map_grant(REF, "GNTMAP_device_map", 0)),
    ]
    for name, domain in (
        ("its own", OWN), ("Xen's", "0x7ff2"), ("nobody's", "0x1234"), ("DOMID_SELF's", SELF)
    ):
        rows += [
            f"mov rdx, {domain}",
            g.wide_entry(REF, "GTF_transitive", g.FIRST + 1),
            f"mov [rip + grant_page + {REF * 16 + 4}], dx",
            g.refused(f"a copy through {name} grant", g.copy_grant((REF, OWN, 0), to, 8, 1)),
            g.refused(f"a copy to {name} grant", g.copy_grant(to, (REF, OWN, 0), 8, 2)),
            g.refused(f"a map of {name} grant", g.map_grant(REF, HOST, "&third")),
        ]
    rows += [
        "mov rdx, [rip + own_number]",
        g.wide_entry(REF, "GTF_transitive", REF),
        f"mov [rip + grant_page + {REF * 16 + 4}], dx",
        g.refused("a copy through a grant of itself", g.copy_grant((REF, OWN, 0), to, 8, 1)),
    ]
    return "\n".join(rows)


def build() -> bytes:
    """The image."""
    return attack(
        g.SETUP,
        STATUS,
        IN_USE,
        parts(),
        extended("MMUEXT_TLB_FLUSH_LOCAL"),
        expect("all is well", 0),
        data=(
            g.DATA,
            "gdt_list: .quad 0\nextent: .quad 0\nstatus_frame: .quad 0, 0",
            "reservation: .quad extent, 1\n.long 0, 0\n.quad DOMID_SELF",
        ),
        bss=(g.BSS,),
    )
