"""One of two domains that work together, with `taker`: it grants pages and wants them back as page tables.

While the taker has a page mapped (for itself, for a device, twice), it makes the page a page table, gives it
away, takes the grant back; and it grants what the taker granted it. A broken hypervisor forgets a mapping of
the other domain's (XSA-224, XSA-234, XSA-255), and the other writes a page table. A correct one counts them
all, and the page is a page table as soon as the last is gone, not before.
"""

from __future__ import annotations

from guests.attacks import grant_support as g
from guests.attacks.grants import a_table, no_table
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
    READ_WRITE,
    attack,
    expect,
    extended,
    frame_of,
    negative,
    remap,
    same,
)

MARK, SECOND = 0x1234_5678, 0x2345_6789
PEER = "[rip + peer]"


def build() -> bytes:
    """The image."""
    return attack(
        g.SETUP,
        "mov rax, [rip + own_number]\ninc rax\nmov [rip + peer], rax",
        frame_of("mail", "mail_frame"),
        g.works("version 2", g.set_version(2)),
        g.wide_entry(WHOLE, "GTF_permit_access", "[rip + spare_frame]", domain=PEER),
        g.wide_entry(READ, "GTF_permit_access | GTF_readonly", "[rip + other_frame]", domain=PEER),
        f"mov rdx, {PEER}",
        g.wide_entry(CHAIN, "GTF_transitive", BACK, domain=PEER),
        f"mov [rip + grant_page + {CHAIN * 16 + 4}], dx",
        f"mov rdx, {PEER}",
        g.wide_entry(LAST, "GTF_transitive | GTF_sub_page", BACK, domain=PEER),
        f"mov [rip + grant_page + {LAST * 16 + 4}], dx",
        g.wide_entry(MAIL, "GTF_permit_access", "[rip + mail_frame]", domain=PEER),
        wait(1),
        same("what the taker wrote", "spare + 16", MARK),
        no_table("the taker has it for itself and a device"),
        g.refused("its transfer", g.transfer("[rip + spare_frame]", WHOLE, PEER), g.BAD_PAGE),
        g.refused("another version", g.set_version(1), -16),
        g.wide_entry(WHOLE, 0, 0, domain=PEER),
        give_turn(2),
        wait(3),
        no_table("the taker has it for a device, and once more, ungranted"),
        give_turn(4),
        wait(5),
        a_table("the taker let go"),
        remap("spare", READ_WRITE),
        expect("it is a page again", 0),
        give_turn(6),
        wait(7),
        same("the read-only page is as it was", "other", 0),
        g.wide_entry(WHOLE, "GTF_permit_access", "[rip + spare_frame]", domain=PEER),
        give_turn(8),
        wait(9),
        same("what the taker wrote then", "spare + 16", SECOND),
        reservation("spare_frame"),
        expect("the page is given up while the taker has it", 1),
        remap("spare", 0),
        expect("and unmapped", 0),
        give_turn(10),
        wait(11),
        remap("spare", READ_WRITE),
        negative("it is not its own any more"),
        g.works("all is well", extended("MMUEXT_TLB_FLUSH_LOCAL")),
        text=(TURNS,),
        data=(*DATA, "mail_frame: .quad 0"),
        bss=BSS,
    )
