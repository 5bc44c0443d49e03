"""Stores to page tables that the emulation of direct writes must not be led astray by.

The guest has writable_pagetables on and stores to a table it sees read-only. Tries stores that reach two
tables, change two entries, make an entry that is forbidden, or are unaligned, and a store whose
instruction faults again elsewhere (a string copy from an unmapped page). A broken hypervisor takes over
bytes it did not check, lets the scratch copy it works on be seen, or never comes to an end of such a
store and starves everybody else on the core. A correct one takes exactly one checked entry, and otherwise
delivers the page fault. Compare XSA-213 and the class of XSA-296.
"""

from __future__ import annotations

from guests.attacks.support import (
    PAGE_FAULT,
    READ_ONLY,
    READ_WRITE,
    UNMAPPED,
    attack,
    expect,
    extended,
    faults,
    remap,
    shifted,
)
from guests.macros import hypercall, load

TABLES = "\n".join(
    (
        "lea rdi, [rip + spare]\nxor eax, eax\nmov ecx, 1024\nrep stosq",
        remap("spare", READ_ONLY),
        remap("other", READ_ONLY),
        extended("MMUEXT_PIN_L1_TABLE", "[rip + spare_frame]"),
        expect("a table", 0),
        extended("MMUEXT_PIN_L1_TABLE", "[rip + other_frame]"),
        expect("the table behind it", 0),
        hypercall("vm_assist", "VMASST_CMD_enable", "VMASST_TYPE_writable_pagetables"),
        expect("assist", 0),
    )
)

STORES = "\n".join(
    (
        shifted("third_frame", READ_WRITE),
        "mov [rip + entry], rax",
        faults("an ordinary entry", "mov rax, [rip + entry]\nmov [rip + spare + 8], rax", -1),
        "mov rax, [rip + spare + 8]\nmov rcx, [rip + entry]\nand rax, -4096\nand rcx, -4096\nsub rax, rcx",
        expect("it is there", 0),
        faults(
            "an entry for a page table", shifted("other_frame", READ_WRITE) + "\nmov [rip + spare + 16], rax"
        ),
        faults(
            "an entry for the table itself",
            shifted("spare_frame", READ_WRITE) + "\nmov [rip + spare + 16], rax",
        ),
        faults(
            "an entry for no frame",
            load("rax", 0xFF_FFFF_FFFF << 12 | READ_WRITE) + "\nmov [rip + spare + 16], rax",
        ),
        faults("a store over two entries", "mov rax, -1\nmov [rip + spare + 20], rax"),
        faults("a store off by one", "mov rax, [rip + entry]\nmov [rip + spare + 25], rax"),
        faults("a store over two tables", "mov rax, -1\nmov [rip + spare + 4092], rax"),
        faults("sixteen bytes", "movups [rip + spare + 32], xmm0\nxor eax, eax", PAGE_FAULT, -1),
        faults("a copy from nowhere", f"lea rdi, [rip + spare + 40]\n{load('rsi', UNMAPPED)}\nmovsq"),
        faults(
            "a copy into the next table",
            "lea rdi, [rip + spare + 4088]\nlea rsi, [rip + ones]\nmov ecx, 2\nrep movsq",
        ),
        "mov rax, [rip + spare + 16]",
        expect("nothing came of them", 0),
        "mov rax, [rip + spare + 24]",
        expect("nor of these", 0),
        "mov rax, [rip + other]",
        expect("nor there", 0),
    )
)


def build() -> bytes:
    """The image."""
    return attack(TABLES, STORES, data=("entry: .quad 0\nones: .quad -1, -1",))
