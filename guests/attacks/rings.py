"""The console's and the store's ring, given away or made page tables.

Tries to pin the pages it shares with the console and the store as page tables, and to balloon them out.
Whoever serves the rings writes to them what a guest chooses: indices, typed text, replies. A hypervisor
whose backend holds no reference of its own would write entries into a page table (everything is lost
then), or into the memory of the domain that gets the frame next. A correct one refuses the change of
type, since the backend has the page mapped for writing, and keeps the frame for as long as the backend
does (the class of XSA-387, XSA-397: a page another end still writes is used anew).
"""

from __future__ import annotations

from guests.assembler import VIRT_BASE
from guests.attacks.support import EBUSY, EINVAL, READ_ONLY, attack, expect, extended
from guests.macros import hypercall, put


def ring(name: str, field: str) -> str:
    """Attack one ring, whose frame start_info names in `field`. Nothing is printed while it is read-only."""
    return "\n".join(
        (
            f"mov rax, [rip + start_info_address]\nmov r12, [rax + start_info.{field}]",
            _ADDRESS,
            f"mov rsi, r12\nshl rsi, 12\nor rsi, {READ_ONLY}",
            hypercall("update_va_mapping", "r13", "rsi", "UVMF_INVLPG"),
            "push rax",
            extended("MMUEXT_PIN_L1_TABLE", "r12"),
            "push rax",
            extended("MMUEXT_PIN_L4_TABLE", "r12"),
            "push rax",
            put("gdt_list", "r12"),
            hypercall("set_gdt", "&gdt_list", 512),
            "push rax",
            "mov rsi, r12\nshl rsi, 12\nor rsi, 0x63",
            hypercall("update_va_mapping", "r13", "rsi", "UVMF_INVLPG"),
            expect(f"{name}: writable again", 0),
            "pop rax",
            expect(f"{name}: not a descriptor table", EINVAL, EBUSY),
            "pop rax",
            expect(f"{name}: not a root", EINVAL, EBUSY),
            "pop rax",
            expect(f"{name}: not a page table", EINVAL, EBUSY),
            "pop rax",
            expect(f"{name}: read-only for us", 0),
        )
    )


_ADDRESS = "\n".join(
    (
        "mov rcx, MACH2PHYS_VIRT_START\nmov r13, [rcx + r12*8]\nshl r13, 12",
        f"mov rcx, {VIRT_BASE}",
        "add r13, rcx",
    )
)
GIVE_AWAY = "\n".join(
    (
        "mov rax, [rip + start_info_address]\nmov rax, [rax + start_info.store_mfn]",
        "mov [rip + extent], rax",
        hypercall("memory_op", "XENMEM_decrease_reservation", "&reservation"),
        expect("the store's page is given away", 1),
        "mov rax, [rip + start_info_address]\nmov r12, [rax + start_info.store_mfn]",
        _ADDRESS,
        "xor esi, esi",
        hypercall("update_va_mapping", "r13", "rsi", "UVMF_INVLPG"),
        expect("and unmapped", 0),
        (
            "mov rax, [rip + start_info_address]\nmov eax, [rax + start_info.store_evtchn]\n"
            "mov [rip + port], eax"
        ),
        hypercall("event_channel_op", "EVTCHNOP_send", "&port"),
        expect("the store is signalled", 0),
    )
)


def build() -> bytes:
    """The image."""
    return attack(
        "mov rax, [rip + start_info_address]\ntest dword ptr [rax + start_info.flags], SIF_INITDOMAIN",
        "jnz no_rings",
        ring("console", "console.mfn"),
        ring("store", "store_mfn"),
        GIVE_AWAY,
        "no_rings:",
        data=(
            "gdt_list: .quad 0\nextent: .quad 0\nport: .quad 0",
            "reservation: .quad extent, 1\n.long 0, 0\n.quad DOMID_SELF",
        ),
    )
