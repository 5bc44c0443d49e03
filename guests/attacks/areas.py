"""Areas the hypervisor writes on its own: vcpu_info, run states, times, and contexts of new vCPUs.

Points them at page tables, read-only pages, frames of nobody and of Xen, Xen's address range, non-
canonical and unaligned places, and gives the frame of a vcpu_info away or makes it a page table;
initialises vCPUs on tables of nobody, with Xen's selectors and addresses. A broken hypervisor writes what
the guest chose where the guest may not. A correct one takes a writable reference or goes through the
guest's own tables each time.
"""

from __future__ import annotations

from guests.attacks.support import (
    EBUSY,
    EFAULT,
    EINVAL,
    ENOENT,
    NO_FRAME,
    NON_CANONICAL,
    READ_ONLY,
    READ_WRITE,
    UNMAPPED,
    XEN_ADDRESS,
    attack,
    expect,
    extended,
    negative,
    remap,
)
from guests.macros import hypercall, put

ENXIO = -6


def info(title: str, frame: str | int, offset: int, *codes: int) -> str:
    """Register vCPU 1's vcpu_info."""
    return "\n".join(
        (
            put("info", frame),
            put("info + 8", offset),
            hypercall("vcpu_op", "VCPUOP_register_vcpu_info", 1, "&info"),
            expect(title, *codes),
        )
    )


def area(title: str, command: str, address: str | int, *codes: int) -> str:
    """Register an area of vCPU 0 by its address."""
    return "\n".join((put("info", address), hypercall("vcpu_op", command, 0, "&info"), expect(title, *codes)))


def areas() -> str:
    """Both kinds of areas in all kinds of places."""
    parts = []
    for name, command in (
        ("run states", "VCPUOP_register_runstate_memory_area"),
        ("times", "VCPUOP_register_vcpu_time_memory_area"),
    ):
        parts += [
            area(f"{name} in Xen", command, XEN_ADDRESS, EFAULT),
            area(f"{name} in the M2P", command, 0xFFFF_8000_0000_0000, EFAULT),
            area(f"{name} nowhere", command, NON_CANONICAL, EFAULT),
            area(f"{name} unmapped", command, UNMAPPED, 0),
            area(f"{name} in a page table", command, "&spare", 0),
            area(f"{name} over the end", command, (1 << 64) - 1, 0, EFAULT),
            hypercall("sched_op", "SCHEDOP_yield", 0),
            "mov rax, [rip + spare]",
            expect(f"{name}: the page table is as it was", 0),
            hypercall("vcpu_op", command, 0, XEN_ADDRESS),
            expect(f"{name} from Xen", EFAULT),
            area(f"{name} in an own page", command, "&third", 0),
        ]
    return "\n".join(parts)


def context(title: str, field: str, value: str | int, width: int = 8) -> str:
    """Initialise vCPU 1 with one thing wrong."""
    return "\n".join(
        (
            put(f"context + vcpu_guest_context.{field}", value, width),
            hypercall("vcpu_op", "VCPUOP_initialise", 1, "&context"),
            negative(title),
            put(f"context + vcpu_guest_context.{field}", 0, width),
        )
    )


CONTEXTS = "\n".join(
    (
        put("context + vcpu_guest_context.flags", "VGCF_in_kernel"),
        context("on no root", "ctrlreg + 24", NO_FRAME << 12),
        context("on frame 0", "ctrlreg + 24", 0),
        context("on an L1", "ctrlreg + 24", "r12"),
        context("on frame 0x1000", "ctrlreg + 24", 0x1000 << 12),
        (
            "mov rdi, [rip + start_info_address]\nmov rdi, [rdi + start_info.pt_base]\n"
            "call machine_frame\nshl rax, 12\nmov r13, rax"
        ),
        put("context + vcpu_guest_context.ctrlreg + 24", "r13"),
        context("a user's root of nobody", "ctrlreg + 8", NO_FRAME << 12),
        context("an L1 as a user's root", "ctrlreg + 8", "r12"),
        context("rip nowhere", "user_regs.rip", NON_CANONICAL),
        context("gs nowhere", "gs_base_kernel", NON_CANONICAL),
        context("a GDT too long", "gdt_ents", 8192 + 1),
        context("an LDT too long", "ldt_ents", 8193),
        put("context + vcpu_guest_context.gdt_frames", "[rip + spare_frame]"),
        context("a page table as GDT", "gdt_ents", 512),
        context("a trap handler nowhere", "trap_ctxt + 8", NON_CANONICAL),
        hypercall("vcpu_op", "VCPUOP_initialise", 1, XEN_ADDRESS),
        expect("from Xen", EFAULT),
        hypercall("vcpu_op", "VCPUOP_up", 1, 0),
        expect("and is not up", EINVAL),
        hypercall("vcpu_op", "VCPUOP_initialise", 77, "&context"),
        expect("a vCPU nobody has", ENOENT),
    )
)

INFO = "\n".join(
    (
        info("a page table as vcpu_info", "[rip + spare_frame]", 0, EINVAL, EBUSY),
        info("no frame", NO_FRAME, 0, EINVAL),
        info("frame 0", 0, 0, EINVAL),
        info("over the end of its page", "[rip + other_frame]", 4096 - 8, ENXIO),
        info("far behind its page", "[rip + other_frame]", 0xFFFF_FFF8, ENXIO),
        info("unaligned", "[rip + other_frame]", 4, ENXIO),
        info("an own page", "[rip + other_frame]", 0, 0),
        info("again", "[rip + third_frame]", 0, EINVAL),
        remap("other", READ_ONLY),
        extended("MMUEXT_PIN_L1_TABLE", "[rip + other_frame]"),
        expect("the page of a vcpu_info is no page table", EINVAL, EBUSY),
        put("extent", "[rip + other_frame]"),
        hypercall("memory_op", "XENMEM_decrease_reservation", "&reservation"),
        expect("it may be given away", 1),
        remap("other", READ_WRITE),
        "mov byte ptr [rip + other], 0x55\nmovzx eax, byte ptr [rip + other]",
        expect("and stays while it is used", 0x55),
    )
)


def build() -> bytes:
    """The image."""
    return attack(
        remap("spare", READ_ONLY),
        extended("MMUEXT_PIN_L1_TABLE", "[rip + spare_frame]"),
        expect("a page table", 0),
        "mov r12, [rip + spare_frame]\nshl r12, 12",
        areas(),
        CONTEXTS,
        INFO,
        data=(
            "info: .quad 0, 0\nextent: .quad 0\nreservation: .quad extent, 1\n.long 0, 0\n.quad DOMID_SELF",
        ),
        bss=(".balign 64, 0\ncontext: .zero sizeof(vcpu_guest_context)",),
    )
