"""A team: every vCPU of a guest runs the same routine at once, and vCPU 0 waits until all have done so."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from guests import clock, options
from guests.macros import hypercall, kernel, line, put

MAX_VCPUS: Final = 32
"""vCPUs whose vcpu_info lies in the shared page."""
STACK: Final = 4096
LOOK_NS: Final = 1_000_000
"""How long vCPU 0 sleeps between two looks at whether the others have finished."""

FIRST_FRAME: Final = """
    mov rdi, [rip + start_info_address]
    mov rdi, [rdi + start_info.pt_base]
    call machine_frame
    shl rax, 12
    mov [rip + context + vcpu_guest_context.ctrlreg + 24], rax
"""
"""The page tables of the vCPUs to come are those of vCPU 0."""


def context(entry: str, upcall: str) -> str:
    """What every vCPU to come has in common: where it begins, and its callbacks."""
    return "\n".join((
        put("context + vcpu_guest_context.flags", "VGCF_in_kernel"),
        put("context + vcpu_guest_context.user_regs.rip", f"&{entry}"),
        put("context + vcpu_guest_context.user_regs.cs", "FLAT_KERNEL_CS", 2),
        put("context + vcpu_guest_context.user_regs.ss", "FLAT_KERNEL_SS", 2),
        put("context + vcpu_guest_context.user_regs.rflags", 0x202),
        put("context + vcpu_guest_context.kernel_ss", "FLAT_KERNEL_SS"),
        put("context + vcpu_guest_context.event_callback_eip", f"&{upcall}"),
        put("context + vcpu_guest_context.failsafe_callback_eip", "&crash"),
        put("context + vcpu_guest_context.syscall_callback_eip", "&crash"),
    ))


_COUNT: Final = f"""
    xor r12d, r12d
count_vcpus:
    {hypercall("vcpu_op", "VCPUOP_is_up", "r12", 0)}
    test rax, rax
    js counted_vcpus
    inc r12d
    cmp r12d, {MAX_VCPUS}
    jb count_vcpus
counted_vcpus:
    mov [rip + vcpus], r12
"""

_START: Final = f"""
    mov r12d, 1
start_next:
    cmp r12, [rip + vcpus]
    jae started_all
    mov [rip + context + vcpu_guest_context.user_regs.r15], r12
    imul rdx, r12, {STACK}
    lea rcx, [rip + stacks]
    add rcx, rdx
    mov [rip + context + vcpu_guest_context.user_regs.rsp], rcx
    mov [rip + context + vcpu_guest_context.kernel_sp], rcx
    {hypercall("vcpu_op", "VCPUOP_initialise", "r12", "&context")}
    test rax, rax
    jnz crash
    {hypercall("vcpu_op", "VCPUOP_up", "r12", 0)}
    inc r12d
    jmp start_next
started_all:
"""

_MEMBER: Final = f"""
member_entry:                           # r15 = its number
    {hypercall("vcpu_op", "VCPUOP_stop_periodic_timer", "r15", 0)}
    call gather
    call member
    call leave
    {hypercall("vcpu_op", "VCPUOP_down", "r15", 0)}
    jmp crash

gather:                                 # nobody begins before all are there; the last one says when that was
    mov eax, 1
    lock xadd [rip + ready], rax
    inc rax
    cmp rax, [rip + vcpus]
    jne gather_wait
    call now
    imul rcx, [rip + time], 1000000
    add rcx, rax
    mov [rip + deadline], rcx
    mov [rip + began], rax
gather_wait:
    cmp qword ptr [rip + began], 0
    jne gathered
    rdtsc
    jmp gather_wait
gathered:
    ret

time_over:                              # rax = whether `time` is over; takes its time to find out
    call now
    cmp rax, [rip + deadline]
    setae al
    movzx eax, al
    cmp qword ptr [rip + time], 0
    jne time_said
    xor eax, eax
time_said:
    ret

leave:                                  # the last one to leave says when that was
    call now
    mov rbx, rax
    mov eax, 1
    lock xadd [rip + finished], rax
    inc rax
    cmp rax, [rip + vcpus]
    jne left
    mov [rip + ended], rbx
left:
    ret
"""

_RUN: Final = f"""
    xor r15d, r15d
    call gather
    call member
    call leave
first_look:
    cmp qword ptr [rip + ended], 0
    jne first_done
    call now
    lea rdi, [rax + {LOOK_NS}]
    call sleep_until
    jmp first_look
first_done:
"""

ELAPSED: Final = """
    mov rax, [rip + ended]
    sub rax, [rip + began]
    mov rcx, 1000
    xor edx, edx
    div rcx
    mov r12, rax
"""
"""Microseconds from when all had begun to when the last had finished, in r12."""

_WORDS: Final = "\n".join(
    f"{name}: .quad 0" for name in ("vcpus", "ready", "finished", "began", "ended", "deadline")
)

WORK: Final = """
work_for:                               # rcx = how many blocks of work
    test rcx, rcx
    jz work_done
work_more:
    dec rcx
    jnz work_more
work_done:
    ret
"""


def build(name: str, member: str, defaults: Mapping[str, int], report: Iterable[str],
          data: Iterable[str] = (), bss: Iterable[str] = ()) -> bytes:
    """The image of a guest whose vCPUs all run the routine `member` (r15 = number), which may use every
    register but r15 and rsp. `report` is printed when all have returned, with r12 the microseconds it took.
    The option `time=ms` is every team's; a member that heeds it asks `time_over`.
    """
    defaults = {**defaults, "time": 0}
    return kernel(
        options.read(defaults), _COUNT, hypercall("vcpu_op", "VCPUOP_stop_periodic_timer", 0, 0),
        context("member_entry", "crash"), FIRST_FRAME, _START, _RUN, ELAPSED, *report, line(f"{name}: done"),
        "ret",
        _MEMBER, "member:", member, "ret", WORK, clock.NOW, clock.SLEEP, options.READER,
        shared=True, pages=True,
        data=(options.data(defaults), _WORDS, *data),
        bss=(".balign 64, 0\ncontext: .zero sizeof(vcpu_guest_context)",
             f".balign 16, 0\nstacks: .zero {STACK * MAX_VCPUS}", *bss),
    )
