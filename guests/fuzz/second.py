"""The second vCPU: any operation may be run by it. It is down but for the operation, so nothing is raced for.

Both vCPUs have the tables, the memory and the random numbers in common; roots, descriptor tables, stacks and
translations are their own.
"""
from __future__ import annotations

from typing import Final

from guests.fuzz import tables as t
from guests.fuzz.support import chance
from guests.macros import hypercall, put, say

ONE_IN: Final = 4
"""How often an operation is the second vCPU's."""
STACK: Final = 16384

SETUP: Final = "\n".join((
    "setup_second:",
    "lea rdi, [rip + trap_table]\nlea rsi, [rip + context + vcpu_guest_context.trap_ctxt]\nmov ecx, 256",
    "trap_next:                              # in the context a handler is found by its place",
    "mov rax, [rdi]\nmovzx edx, al\nshl edx, 4\nmov [rsi + rdx], rax",
    "mov rax, [rdi + 8]\nmov [rsi + rdx + 8], rax\nadd rdi, 16\ndec ecx\njnz trap_next",
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
    f"mov rax, [rip + frames + {t.ROOT * 8}]\nshl rax, 12",
    "mov [rip + context + vcpu_guest_context.ctrlreg + 24], rax",
    hypercall("vcpu_op", "VCPUOP_initialise", 1, "&context"),
    "test rax, rax\njnz crash",
    hypercall("vcpu_op", "VCPUOP_stop_periodic_timer", 1, 0),
    hypercall("vcpu_op", "VCPUOP_stop_periodic_timer", 0, 0),
    "ret",
))

SECOND: Final = f"""
run_operation:                          # rax = an operation's routine: run it, here or there
    push rax
    {chance(ONE_IN, "run_there")}
    pop rax
    call rax
    ret
run_there:
    {say("2nd ")}
    pop qword ptr [rip + second_work]
    mov qword ptr [rip + current_info], {64}
    {hypercall("vcpu_op", "VCPUOP_up", 1, 0)}
    test rax, rax
    jnz crash
second_wait:
    call yield
    {hypercall("vcpu_op", "VCPUOP_is_up", 1, 0)}
    test rax, rax
    jnz second_wait
    cmp qword ptr [rip + second_work], 0
    jne crash
    mov qword ptr [rip + current_info], 0
    call flush
    ret

second_entry:
    call flush
    call qword ptr [rip + second_work]
    mov qword ptr [rip + second_work], 0
    {hypercall("vcpu_op", "VCPUOP_down", 1, 0)}
    jmp second_entry
"""

DATA: Final = ".balign 8, 0\nsecond_work: .quad 0"
BSS: Final = f"""
.balign 64, 0
context: .zero sizeof(vcpu_guest_context)
.balign 16, 0
second_stack: .zero {STACK}
second_stack_top:
"""
