"""Descriptors that lead to ring 0, and descriptor tables that are page tables.

Tries call, interrupt, trap and task gates, TSS and LDT descriptors, ring-0 and conforming segments by
update_descriptor, in a GDT and in an LDT, and uses what it gets; a GDT or an LDT whose frame is a page
table, or becomes one; and writing an LDT that is in use, though nothing maps it any more. A broken hypervisor
lets a far call reach ring 0, or its descriptor cache write accessed bits into page tables. A correct one
refuses gates and system descriptors, raises every privilege level to the guest's (a call gate gets level 0,
so that using it faults), and keeps the types apart.
"""

from __future__ import annotations

from guests.attacks.support import (
    EBUSY,
    EINVAL,
    PAGE_FAULT,
    PROTECTION,
    READ_ONLY,
    READ_WRITE,
    attack,
    expect,
    extended,
    faults,
    guarded,
    remap,
    update,
)
from guests.macros import hypercall, load, put

CODE0, DATA0, CONFORMING0 = 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00AF_9F00_0000_FFFF
DATA3 = 0x00CF_F300_0000_FFFF
GATE = 0x0000_EC00_E008_0000
"""A call gate of level 3 to Xen's own code selector."""


def system(kind: int) -> int:
    """A present system descriptor of level 3 and this type."""
    return 0x0000_E000_0000_0000 | kind << 40 | 0x0010_0000


def descriptor(title: str, value: int, *codes: int) -> str:
    """Write one with update_descriptor into the page `spare`, slot 8."""
    return "\n".join(
        (
            "mov rdi, [rip + spare_frame]\nshl rdi, 12\nadd rdi, 64",
            load("rsi", value),
            hypercall("update_descriptor", "rdi", "rsi"),
            expect(title, *codes),
        )
    )


def table(title: str, value: int, *codes: int) -> str:
    """The same in a page that is to become a GDT."""
    return "\n".join(
        (
            load("rax", value),
            "mov [rip + other + 64], rax",
            remap("other", READ_ONLY),
            put("gdt_list", "[rip + other_frame]"),
            hypercall("set_gdt", "&gdt_list", 512),
            expect(f"a GDT with {title}", *codes),
            hypercall("set_gdt", "&gdt_list", 0),
            remap("other", READ_WRITE),
        )
    )


KINDS = tuple((f"system type {kind:#x}", system(kind), EINVAL) for kind in range(1, 16) if kind != 12)
LEVELS = (("ring-0 code", CODE0, 0), ("ring-0 data", DATA0, 0), ("conforming ring-0 code", CONFORMING0, 0))
SELECTORS = 8 * 8 | 3


def far_call(selector: int) -> str:
    """A far call to a selector, by a pointer on the stack."""
    return f"push 0\nmov dword ptr [rsp], 0x1000\nmov dword ptr [rsp + 4], {selector}\n.byte 0xff, 0x1c, 0x24"


USE = "\n".join(
    (
        "mov qword ptr [rip + other + 64], 0",
        load("rax", CODE0),
        "mov [rip + spare + 64], rax",
        load("rax", DATA0),
        "mov [rip + spare + 72], rax",
        load("rax", CONFORMING0),
        "mov [rip + spare + 80], rax",
        load("rax", 0x0000_EC00_0010_0000),
        "mov [rip + spare + 88], rax",
        remap("spare", READ_ONLY),
        put("gdt_list", "[rip + spare_frame]"),
        hypercall("set_gdt", "&gdt_list", 512),
        expect("a GDT of them", 0),
        "mov rax, [rip + spare + 64]\nshr rax, 45\nand eax, 3",
        expect("its code has level 3", 3),
        "mov rax, [rip + spare + 72]\nshr rax, 45\nand eax, 3",
        expect("its data too", 3),
        "mov rax, [rip + spare + 80]\nshr rax, 45\nand eax, 3",
        expect("conforming code too", 3),
        "mov rax, [rip + spare + 88]\nshr rax, 45\nand eax, 3",
        expect("the gate has level 0", 0),
        *(
            faults(f"a far call to {name}", far_call(selector), *vectors)
            for name, selector, vectors in (
                ("what was ring 0", 64, (PAGE_FAULT,)),
                ("the gate", 88, (PROTECTION,)),
                ("the gate, level 3", 91, (PROTECTION,)),
                ("what was conforming", 80, (PAGE_FAULT,)),
            )
        ),
        faults("ring 0 in ss", "mov eax, 72\nmov ss, ax", PROTECTION),
        faults("Xen's code in cs", far_call(0xE008), PROTECTION),
        faults("Xen's data in ds", "mov eax, 0xe010\nmov ds, ax", PROTECTION),
        faults("Xen's TSS in ds", "mov eax, 0xe040\nmov ds, ax", PROTECTION),
        extended("MMUEXT_PIN_L1_TABLE", "[rip + spare_frame]"),
        expect("the GDT is no page table", EINVAL, EBUSY),
        faults("a store to the GDT", "mov [rip + spare + 64], rax"),
        remap("spare", READ_WRITE),
        expect("the GDT is not writable", EBUSY, EINVAL),
        hypercall("set_gdt", "&gdt_list", 0),
        expect("without a GDT", 0),
    )
)

LDT = "\n".join(
    (
        remap("third", READ_ONLY),
        extended("MMUEXT_PIN_L1_TABLE", "[rip + third_frame]"),
        expect("a page table", 0),
        put("gdt_list", "[rip + third_frame]"),
        hypercall("set_gdt", "&gdt_list", 512),
        expect("is no GDT", EINVAL, EBUSY),
        extended("MMUEXT_SET_LDT", "&third", 512),
        expect("an LDT over it", 0),
        faults("is never used", "mov eax, 0x47\nmov ds, ax", PROTECTION, 14, 11),
        faults("nor by a far call", far_call(0x47), PROTECTION, 14, 11),
        "mov rdi, [rip + third_frame]\nshl rdi, 12",
        load("rsi", DATA0),
        hypercall("update_descriptor", "rdi", "rsi"),
        expect("no descriptor in a page table", EINVAL),
        "mov rax, [rip + third + 64]",
        expect("untouched", 0),
        extended("MMUEXT_SET_LDT", 0, 0),
        expect("no LDT", 0),
    )
)

MAPPED_LDT = "\n".join(
    (
        remap("other", READ_WRITE),
        expect("a page to be an LDT", 0),
        put("other", 0),
        put("other + 8", DATA3),
        remap("other", READ_ONLY),
        extended("MMUEXT_SET_LDT", "&other", 512),
        expect("an LDT of its own", 0),
        guarded("mov eax, 0xf\nmov es, ax"),
        expect("is used", -1),
        remap("other", READ_WRITE),
        expect("and not writable then", EBUSY),
        "mov rsi, [rip + other_frame]\nshl rsi, 12\nor rsi, 0x61",
        hypercall("update_va_mapping", "&spare", "rsi", "UVMF_INVLPG"),
        expect("seen a second time", 0),
        hypercall("update_va_mapping", "&spare", 0, "UVMF_INVLPG"),
        expect("and no more", 0),
        remap("other", READ_WRITE),
        expect("it is not writable for that", EBUSY),
        hypercall("update_va_mapping", "&other", 0, "UVMF_INVLPG"),
        expect("not seen at all", 0),
        "mov rsi, [rip + other_frame]\nshl rsi, 12\nor rsi, 0x63",
        hypercall("update_va_mapping", "&spare", "rsi", "UVMF_INVLPG"),
        expect("it is not writable elsewhere", EBUSY),
        "xor eax, eax\nmov es, ax",
        extended("MMUEXT_SET_LDT", 0, 0),
        expect("no LDT at last", 0),
        remap("other", READ_WRITE),
        expect("then it is a page", 0),
    )
)


def build() -> bytes:
    """The image."""
    return attack(
        *(descriptor(*row) for row in (*KINDS, *LEVELS)),
        *(table(*row) for row in (*KINDS, *LEVELS)),
        descriptor("a call gate to Xen", GATE, EINVAL),
        update("1", 0),
        expect("frame 0", EINVAL),
        USE,
        LDT,
        MAPPED_LDT,
        data=("gdt_list: .quad 0",),
    )
