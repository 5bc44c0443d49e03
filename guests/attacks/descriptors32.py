"""Descriptors of a PAE guest that lead to ring 0 or over Xen, and descriptor tables that are page tables.

Tries gates, task states and tables as descriptors, gates to Xen's code, ring-0 and long segments, and calls
through what it gets; segments whose base and limit reach Xen's part of the address space, and stores through
them; a GDT and an LDT over page tables, over Xen, and over pages it can write; and instructions that load
tables. The kernel is in ring 1, so a broken hypervisor needs to let by one descriptor only. A correct one
refuses system descriptors, raises every level to 1, keeps a table's frames read-only, and its pages are not
to be written whatever segment they are reached through.
"""

from __future__ import annotations

from guests.attacks.support32 import (
    EBUSY,
    EINVAL,
    L1,
    L2,
    L3,
    NO_FRAME,
    PAGE_FAULT,
    PROTECTION,
    READ_ONLY,
    READ_WRITE,
    UNMAPPED,
    XEN_ADDRESSES,
    XEN_START,
    attack,
    expect,
    extended,
    faults,
    guarded,
    negative,
    remap,
    walk,
)
from guests.macros32 import hypercall, put

FAULTS = (PROTECTION, PAGE_FAULT, 11, 10)
"""Also a segment that is not there, and an invalid task state."""
ENTRIES = 512
XEN_CODE, KERNEL_CODE = 0xE008, 0xE019
FIRST = 8
"""The descriptor that is tried; its selector is 8 times that."""
PRIVILEGE = 3 << 13
"""The level in the upper half of a descriptor."""


def gate(kind: int, selector: int, offset: int = 0x1000) -> int:
    """A gate: `kind` is the byte of its type, level and presence (Intel SDM volume 3, 5.8.3)."""
    return offset & 0xFFFF | selector << 16 | kind << 40 | offset >> 16 << 48


def segment(access: int, base: int = 0, limit: int = 0xF_FFFF, flags: int = 0xC) -> int:
    """A segment: `access` is its byte of type, level and presence, `flags` granularity and size."""
    low = limit & 0xFFFF | (base & 0xFF_FFFF) << 16
    return low | access << 40 | limit >> 16 << 48 | flags << 52 | base >> 24 << 56


def write(descriptor: int, index: int = FIRST) -> str:
    """update_descriptor of the table's own page."""
    return "\n".join(
        (
            f"mov ebx, [table_page_frame]\nshl ebx, 12\nadd ebx, {index * 8}",
            hypercall("update_descriptor", "ebx", 0, descriptor & 0xFFFF_FFFF, descriptor >> 32),
        )
    )


REFUSED = {
    "an available task state": 0x0000_8900_0000_0067,
    "a busy task state": 0x0000_8B00_0000_0067,
    "a local table": 0x0000_8200_0000_0FFF,
    "a task gate": gate(0xE5, 0x40),
    "an interrupt gate": gate(0xEE, KERNEL_CODE),
    "a trap gate": gate(0xEF, KERNEL_CODE),
    "a 16-bit call gate": gate(0xE4, KERNEL_CODE),
    "a 16-bit interrupt gate": gate(0xE6, KERNEL_CODE),
    "a call gate to Xen's code": gate(0xEC, XEN_CODE),
    "a call gate to Xen's code, RPL 3": gate(0xEC, XEN_CODE | 3),
    "a call gate to the last selector": gate(0xEC, 0xFFF8),
    "a call gate with reserved bits": gate(0xEC, KERNEL_CODE) | 0xE0 << 32,
    "a long code segment": segment(0x9B, flags=0xA),
}
ACCEPTED = {
    "ring-0 code": segment(0x9B),
    "ring-0 data": segment(0x93),
    "ring-0 conforming code": segment(0x9F),
    "ring-0 data over Xen": segment(0x93, base=0xF000_0000),
}


def descriptors() -> str:
    """Each descriptor, and what it is good for."""
    parts = []
    for name, value in REFUSED.items():
        parts += [write(value), expect(name, EINVAL)]
    for name, value in ACCEPTED.items():
        parts += [
            write(value),
            expect(f"{name} is stored", 0),
            f"mov eax, [table_page + {FIRST * 8 + 4}]\nand eax, {PRIVILEGE}",
            expect(f"{name} has another level", 1 << 13, 3 << 13),
            faults(f"{name} for ring 0", f"mov eax, {FIRST * 8}\nmov ss, eax", *FAULTS),
        ]
    for name, selector in (("its own code", 0x48), ("ring 1's code", KERNEL_CODE), ("a local one", 0x4C)):
        parts += [
            write(segment(0x9B), FIRST + 1),
            write(gate(0xEC, selector)),
            "mov ebp, eax",
            expect(f"a call gate to {name}", 0, EINVAL),
            faults(f"a call through it to {name}", f".byte 0x9a\n.long 0\n.short {FIRST * 8 + 1}", *FAULTS),
            faults(f"a jump through it to {name}", f".byte 0xea\n.long 0\n.short {FIRST * 8 + 3}", *FAULTS),
        ]
    for selector in (XEN_CODE, XEN_CODE | 1, 0xE010, 0xE038, 0xE040, 0xFFFB, 0x0004):
        parts.append(
            faults(f"a call to {selector:#x}", f".byte 0x9a\n.long 0x1000\n.short {selector}", *FAULTS)
        )
    for base in (0xF000_0000, XEN_START, 0xFC00_0000):
        parts += [
            write(segment(0xB3, base=base)),
            expect(f"data from {base:#x} on", 0),
            guarded(f"mov eax, {FIRST * 8 + 1}\nmov fs, eax"),
            expect(f"can be loaded, {base:#x}", -1),
            *(
                faults(
                    f"a store to {address:#x} from {base:#x}",
                    f"mov eax, {(address - base) & 0xFFFF_FFFF}\nmov dword ptr fs:[eax + 8], 7",
                    *FAULTS,
                )
                for address in XEN_ADDRESSES
            ),
            "xor eax, eax\nmov fs, eax",
        ]
    for name, code in (
        ("lgdt", "lgdt [spare]"), ("lidt", "lidt [spare]"), ("lldt", "mov eax, 0x40\nlldt ax"),
        ("ltr", "mov eax, 0x40\nltr ax"), ("a new CR0", "mov eax, cr0\nand eax, 0xfffeffff\nmov cr0, eax"),
        ("iret", "pushfd\npush 0xe008\npush 0x1000\niretd"),
        ("retf", "push 0xe008\npush 0x1000\nretf"), ("a user's stack", "push 0xe033\npop ss"),
    ):
        parts.append(faults(f"{name} in ring 1", code, *FAULTS, 6))
    return "\n".join(parts)


def tables() -> str:
    """Where descriptor tables may not be."""
    parts = [
        remap("table_page", READ_WRITE),
        negative("the table's page, writable"),
        extended("MMUEXT_PIN_L1_TABLE", "[table_page_frame]"),
        expect("the table's page as a page table", EINVAL, EBUSY),
        faults("a store to the table", "mov dword ptr [table_page + 64], 0"),
        faults("a store where the processor has it", "mov dword ptr [0xfc000040], 0", *FAULTS),
        walk("third"),
    ]
    for name, frame in (
        ("the root", f"[table_frame + {L3}]"),
        ("an L2", f"[table_frame + {L2}]"),
        ("an L1", f"[table_frame + {L1}]"),
        ("a page it can write", "[other_frame]"),
        ("no frame", NO_FRAME),
        ("frame 1", 1),
    ):
        parts += [
            put("gdt_list", frame),
            hypercall("set_gdt", "&gdt_list", ENTRIES),
            expect(f"{name} as a GDT", EINVAL, EBUSY),
        ]
    for entries in (7169, 8192, 0x8000_0000, 0xFFFF_FFFF):
        parts += [
            hypercall("set_gdt", "&gdt_list", entries),
            expect(f"a GDT of {entries:#x}", EINVAL),
        ]
    for name, address in (
        ("the root", f"[table_va + {L3}]"),
        ("an L1", f"[table_va + {L1}]"),
        ("the M2P", XEN_START),
        ("the GDT's place", 0xFC00_0000),
        ("nothing", UNMAPPED),
        ("the end", 0xFFFF_F000),
    ):
        parts += [
            f"mov ebp, {address}",
            extended("MMUEXT_SET_LDT", "ebp", ENTRIES),
            expect(f"{name} as an LDT is found out later", 0, EINVAL),
            faults(f"its first selector: {name}", "mov eax, 5\nmov gs, eax", *FAULTS),
            faults(f"a call by it: {name}", ".byte 0x9a\n.long 0\n.short 13", *FAULTS),
        ]
    parts += [
        extended("MMUEXT_SET_LDT", "0xc0000004", 8),
        expect("an LDT that is not aligned", EINVAL),
        extended("MMUEXT_SET_LDT", "0xc0000000", 8193),
        expect("an LDT too long", EINVAL),
        extended("MMUEXT_SET_LDT", 0, 0),
        expect("no LDT", 0),
        "lea ebp, [other]",
        "mov dword ptr [other], 0xffff\nmov dword ptr [other + 4], 0x00cfb300",
        extended("MMUEXT_SET_LDT", "ebp", ENTRIES),
        expect("an LDT in a page it writes", 0),
        faults("is none while it can be written", "mov eax, 5\nmov gs, eax", *FAULTS),
        remap("other", READ_ONLY),
        guarded("mov eax, 5\nmov gs, eax"),
        expect("then it is one", -1),
        remap("other", READ_WRITE),
        negative("and cannot be written"),
        "xor eax, eax\nmov gs, eax",
        extended("MMUEXT_SET_LDT", 0, 0),
        expect("no LDT again", 0),
        remap("other", READ_WRITE),
        expect("the page is a page", 0),
        hypercall("set_gdt", "&gdt_list", 0),
        expect("no GDT", 0),
        remap("table_page", READ_WRITE),
        expect("its page is a page, too", 0),
    ]
    return "\n".join(parts)


def build() -> bytes:
    """The image."""
    return attack(
        "lea edi, [table_page]\ncall machine_frame\nmov [table_page_frame], eax",
        remap("table_page", READ_ONLY),
        put("gdt_list", "[table_page_frame]"),
        hypercall("set_gdt", "&gdt_list", ENTRIES),
        expect("a GDT", 0),
        descriptors(),
        tables(),
        extended("MMUEXT_TLB_FLUSH_LOCAL"),
        expect("all is well", 0),
        data=("table_page_frame: .long 0\ngdt_list: .long 0",),
        bss=(".balign 4096, 0\ntable_page: .zero 4096",),
    )
