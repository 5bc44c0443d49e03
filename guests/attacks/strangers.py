"""Other domains' memory, ports and page tables without being given them.

Names every low domain id, Xen's and nobody's in the foreign-domain arguments, event channels, remote
shutdown and transfers, and thousands of frames that are not its own by guessing their numbers. A broken
hypervisor lets a guest map, free, signal or stop a neighbour. A correct one answers with errors and
changes nothing.
"""

from __future__ import annotations

from guests.attacks.support import READ_WRITE, attack, expect, extended, label, negative, update, walk
from guests.macros import hypercall, put

DOMAINS = (3, 0x1234, 0x7FF1, 0x7FF2, 0x7FF3, 0x7FF4, 0x7FF5, 0x7FFF)


def foreign() -> str:
    """mmu_update and update_va_mapping with other owners, and with tables of others."""
    parts = [walk("spare"), "mov r12, rax"]
    for domain in DOMAINS:
        parts += [
            put("request", "r12"),
            put("request + 8", 1 << 12 | READ_WRITE),
            hypercall("mmu_update", "&request", 1, 0, domain),
            negative(f"an update for domain {domain:#x}"),
            put("request", "r12"),
            hypercall("mmu_update", "&request", 1, 0, (domain + 1) << 16 | 0x7FF0),
            negative(f"a table of domain {domain:#x}"),
            hypercall("update_va_mapping_otherdomain", "&spare", 1 << 12 | READ_WRITE, 0, domain),
            negative(f"a mapping of domain {domain:#x}"),
            hypercall("mmuext_op", "&operation", 1, 0, domain),
            negative(f"an operation for domain {domain:#x}"),
        ]
    return "\n".join(parts)


FIRST, LAST = 0x100, 0x1100
"""Frames that are guessed."""
_TRIES = (
    update("r12", "rbx"),
    extended("MMUEXT_NEW_BASEPTR", "r13"),
    extended("MMUEXT_PIN_L1_TABLE", "r13"),
    extended("MMUEXT_CLEAR_PAGE", "r13"),
    extended("MMUEXT_COPY_PAGE", "[rip + other_frame]", "r13"),
    extended("MMUEXT_UNPIN_TABLE", "r13"),
    "mov rdi, r13\nshl rdi, 12\nxor esi, esi\n" + hypercall("update_descriptor", "rdi", "rsi"),
    "mov rbx, r13\nshl rbx, 12\n" + update("rbx", 0),
    "or rbx, 1\n" + update("rbx", 0),
)


def guessed() -> str:
    """Frames that are not ours as a mapping, a root, a table, a page to clear, copy, write or give away."""
    parts = [
        walk("spare"),
        f"mov r12, rax\nmov r13d, {FIRST}\nxor r14d, r14d\nguess_next:",
        "call is_ours\ntest eax, eax\njnz guess_ours",
        f"mov rbx, r13\nshl rbx, 12\nor rbx, {READ_WRITE}",
    ]
    for code in _TRIES:
        refused = label("refused")
        parts += [code, f"test rax, rax\njs {refused}\ninc r14d\n{refused}:"]
    parts += [
        put("extent", "r13"),
        hypercall("memory_op", "XENMEM_decrease_reservation", "&reservation"),
        f"add r14, rax\nguess_ours:\ninc r13d\ncmp r13d, {LAST}\njb guess_next\nmov rax, r14",
        expect("frames of others that answered", 0),
    ]
    return "\n".join(parts)


IS_OURS = """
is_ours:                                # r13 = a frame: eax = 1 when it is ours, by M2P and list
    push rcx
    push rdx
    push rsi
    mov rsi, [rip + start_info_address]
    mov rdx, [rsi + start_info.shared_info]
    shr rdx, 12
    mov eax, 1
    cmp rdx, r13
    je ours_known
    mov rcx, MACH2PHYS_VIRT_START
    mov rcx, [rcx + r13*8]
    xor eax, eax
    cmp rcx, [rsi + start_info.nr_pages]
    jae ours_known
    mov rdx, [rsi + start_info.mfn_list]
    cmp [rdx + rcx*8], r13
    sete al
ours_known:
    pop rsi
    pop rdx
    pop rcx
    ret
"""


def others() -> str:
    """Ports, shutdown and frames of others."""
    parts = []
    for domain in (3, 0x1234, 0x7FF2):
        parts += [
            put("argument", domain, 2),
            put("argument + 4", 1, 4),
            put("argument + 8", 0, 4),
            hypercall("event_channel_op", "EVTCHNOP_bind_interdomain", "&argument"),
            negative(f"a port of domain {domain:#x}"),
            put("argument", domain, 4),
            put("argument + 4", 1, 4),
            hypercall("sched_op", "SCHEDOP_remote_shutdown", "&argument"),
            negative(f"shutting down {domain:#x}"),
            put("argument", FIRST),
            put("argument + 8", domain, 4),
            put("argument + 12", 0, 4),
            hypercall("grant_table_op", "GNTTABOP_transfer", "&argument", 1),
            expect(f"a transfer to {domain:#x} is judged", 0),
            "movsx rax, word ptr [rip + argument + 16]",
            negative(f"and refused, {domain:#x}"),
        ]
    return "\n".join(parts)


def build() -> bytes:
    """The image."""
    return attack(
        foreign(),
        guessed(),
        others(),
        extended("MMUEXT_TLB_FLUSH_LOCAL"),
        expect("all is well", 0),
        text=(IS_OURS,),
        data=(
            "extent: .quad 0\nreservation: .quad extent, 1\n.long 0, 0\n.quad DOMID_SELF\nargument: .zero 64",
        ),
    )
