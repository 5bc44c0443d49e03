"""The other of two domains that work together, with `giver`: it maps what it is granted, and wants more.

It maps a page for itself and a device and unmaps once, maps again what is no longer granted, makes a
read-only mapping writable, uses the other's page as its own (as a page table, a descriptor table, a page to
clear, give away, grant on), writes a page its owner has given up, and copies through grants of grants. A
broken hypervisor takes a mapped page for an owned one, or frees a page that is mapped. A correct one knows
whose it is, and keeps it until it is unmapped.
"""

from __future__ import annotations

from guests.attacks import grant_support as g
from guests.attacks.giver import MARK, SECOND
from guests.attacks.pair_support import (
    BACK,
    BSS,
    CHAIN,
    DATA,
    LAST,
    MAIL,
    READ,
    TURNS,
    WHOLE,
    give_turn,
    reservation,
    wait,
)
from guests.attacks.support import (
    READ_ONLY,
    READ_WRITE,
    attack,
    expect,
    extended,
    faults,
    frame_of,
    label,
    negative,
    remap,
    same,
    update,
    walk,
)
from guests.macros import hypercall, put

HOST, DEVICE, BOTH = "GNTMAP_host_map", "GNTMAP_device_map", "GNTMAP_host_map | GNTMAP_device_map"
RO = "GNTMAP_host_map | GNTMAP_readonly"
PEER = "[rip + peer]"
THIRD_MARK = 0x3456_789A


def taken(reference: int, flags: str, address: str | int) -> str:
    """Map a grant of the giver's."""
    return g.map_grant(reference, flags, address, PEER)


def mail() -> str:
    """The page in common, when the giver has granted it."""
    again, here = label("again"), label("here")
    return "\n".join(
        (
            f"mov r12d, 1000000\n{again}:",
            taken(MAIL, HOST, "&mail"),
            f"test rax, rax\njz {here}",
            f"call yield\ndec r12d\njnz {again}\njmp crash\n{here}:",
        )
    )


def not_its_own() -> str:
    """The giver's page, whose frame is known by the mapping, used as one's own."""
    return "\n".join(
        (
            walk("third"),
            "mov r12, rax\nmov r13, [rip + foreign]",
            *(
                extended(command, "r13") + "\n" + negative(f"{name}, the other's page")
                for name, command in (
                    ("pinned as an L1", "MMUEXT_PIN_L1_TABLE"),
                    ("pinned as an L4", "MMUEXT_PIN_L4_TABLE"),
                    ("as the root", "MMUEXT_NEW_BASEPTR"),
                    ("as the user's root", "MMUEXT_NEW_USER_BASEPTR"),
                    ("cleared", "MMUEXT_CLEAR_PAGE"),
                    ("unpinned", "MMUEXT_UNPIN_TABLE"),
                )
            ),
            extended("MMUEXT_COPY_PAGE", "r13", "[rip + spare_frame]"),
            negative("copied over"),
            put("gdt_list", "r13"),
            hypercall("set_gdt", "&gdt_list", 512),
            negative("as a descriptor table"),
            "mov rdi, r13\nshl rdi, 12\nxor esi, esi\n" + hypercall("update_descriptor", "rdi", "rsi"),
            negative("as a place for a descriptor"),
            "mov rbx, r13\nshl rbx, 12\n" + update("rbx", 0),
            negative("as a place for an entry"),
            "mov rbx, r13\nshl rbx, 12\nor rbx, 1\n" + update("rbx", 0),
            negative("in the M2P"),
            reservation("foreign"),
            expect("given back", 0),
            g.refused("given on", g.transfer("r13", BACK, PEER), g.BAD_PAGE),
            g.refused(
                "copied to by its frame",
                g.copy_grant(("[rip + spare_frame]", "DOMID_SELF", 0), ("r13", "DOMID_SELF", 0), 8, 0),
                g.BAD_PAGE,
            ),
            f"mov rbx, r13\nshl rbx, 12\nor rbx, {READ_WRITE}",
            hypercall("update_va_mapping", "&spare", "rbx", 0),
            negative("mapped without a grant"),
            f"mov rbx, r13\nshl rbx, 12\nor rbx, {READ_WRITE}",
            hypercall("update_va_mapping_otherdomain", "&spare", "rbx", 0, PEER),
            negative("mapped as the other's"),
        )
    )


def writable_by_hand(title: str) -> str:
    """Make a read-only mapping at `third` writable."""
    return "\n".join(
        (
            walk("third"),
            f"mov r12, rax\nmov rbx, [rip + foreign]\nshl rbx, 12\nor rbx, {READ_WRITE}",
            update("r12", "rbx"),
            negative(title),
            faults(f"{title}: no store", "mov qword ptr [rip + third], 7"),
        )
    )


def build() -> bytes:
    """The image."""
    device = "mov r13, [rip + foreign]\nshl r13, 12"
    known = (
        "mov rax, [rip + argument + gnttab_map_grant_ref.dev_bus_addr]\nshr rax, 12\nmov [rip + foreign], rax"
    )
    return attack(
        g.SETUP,
        "mov rax, [rip + own_number]\ndec rax\nmov [rip + peer], rax",
        frame_of("back", "back_frame"),
        put("back", THIRD_MARK),
        g.entry(BACK, "GTF_permit_access", "[rip + back_frame]", domain=PEER),
        mail(),
        g.works("a page for itself and a device", taken(WHOLE, BOTH, "&third")),
        known,
        put("first_handle", "[rip + handle]"),
        put("third + 16", MARK),
        not_its_own(),
        give_turn(1),
        wait(2),
        g.works("again, no longer granted but in use", taken(WHOLE, HOST, "&other")),
        put("second_handle", "[rip + handle]"),
        g.works("unmapped once", g.unmap_grant("&third", handle="[rip + first_handle]")),
        faults("the page is not there", "mov qword ptr [rip + third], 7"),
        give_turn(3),
        wait(4),
        device,
        g.works("for the device, too", g.unmap_grant(0, "r13", handle="[rip + first_handle]")),
        g.works("and again", g.unmap_grant("&other", handle="[rip + second_handle]")),
        g.refused("more often than mapped", g.unmap_grant("&other", handle="[rip + second_handle]"),
                  g.BAD_HANDLE),
        g.refused("no longer granted", taken(WHOLE, HOST, "&other")),
        give_turn(5),
        wait(6),
        g.refused("a read-only page, writable", taken(READ, HOST, "&third")),
        g.refused("for a device, writable", taken(READ, DEVICE, 0)),
        g.refused(
            "a copy to it",
            g.copy_grant(("[rip + spare_frame]", "DOMID_SELF", 0), (READ, PEER, 0), 8, 2),
        ),
        g.works("read-only", taken(READ, RO, "&third")),
        known,
        faults("it cannot be written", "mov qword ptr [rip + third], 7"),
        writable_by_hand("a read-only page by hand"),
        g.works("unmapped", g.unmap_grant("&third")),
        g.works(
            "a copy through its own grant",
            g.copy_grant((CHAIN, PEER, 0), ("[rip + spare_frame]", "DOMID_SELF", 0), 8, 1),
        ),
        same("is of its own page", "spare", THIRD_MARK),
        g.works(
            "and through part of one, which it is not",
            g.copy_grant((LAST, PEER, 0), ("[rip + spare_frame]", "DOMID_SELF", 8), 8, 1),
        ),
        same("is of its own page, too", "spare + 8", THIRD_MARK),
        g.refused("a map of a grant of a grant", taken(CHAIN, HOST, "&third")),
        give_turn(7),
        wait(8),
        g.works("a page once more", taken(WHOLE, HOST, "&third")),
        put("third + 16", SECOND),
        give_turn(9),
        wait(10),
        same("its owner has given it up, and it is as it was", "third + 16", SECOND),
        put("third + 16", MARK),
        same("to be written, too", "third + 16", MARK),
        put("first_handle", "[rip + handle]"),
        g.works("mapped again", taken(WHOLE, HOST, "&other")),
        g.works("unmapped", g.unmap_grant("&third", handle="[rip + first_handle]")),
        same("and still there", "other + 16", MARK),
        g.works("unmapped, it is free", g.unmap_grant("&other")),
        give_turn(11),
        remap("third", READ_WRITE),
        expect("the place is its own", 0),
        remap("third", READ_ONLY),
        expect("all is well", 0),
        text=(TURNS,),
        data=(
            *DATA,
            "foreign: .quad 0\nfirst_handle: .quad 0\nsecond_handle: .quad 0\ngdt_list: .quad 0",
            "back_frame: .quad 0",
        ),
        bss=(*BSS, "back: .zero 4096"),
    )
