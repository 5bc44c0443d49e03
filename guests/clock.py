"""The clock of guests: system time from the shared page and the TSC, and sleeping until a time."""
from __future__ import annotations

from typing import Final

from guests.macros import hypercall

NOW: Final = """
now:                                    # rax = system time in ns, by the shared page and the TSC
    push rbx
    push rcx
    push rdx
    push rsi
    lea rbx, [rip + shared_page + vcpu_info.time]
now_again:
    mov esi, [rbx + vcpu_time_info.version]
    test esi, 1
    jnz now_again
    rdtsc
    shl rdx, 32
    or rax, rdx
    sub rax, [rbx + vcpu_time_info.tsc_timestamp]
    movsx ecx, byte ptr [rbx + vcpu_time_info.tsc_shift]
    test ecx, ecx
    js now_right
    shl rax, cl
    jmp now_scale
now_right:
    neg ecx
    shr rax, cl
now_scale:
    mov edx, [rbx + vcpu_time_info.tsc_to_system_mul]
    mul rdx
    shrd rax, rdx, 32
    add rax, [rbx + vcpu_time_info.system_time]
    cmp esi, [rbx + vcpu_time_info.version]
    jne now_again
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    ret
"""

SLEEP: Final = f"""
sleep_until:                            # rdi = system time; rax, rcx, rdx, rsi, rdi, r8 to r11 are lost
    sub rsp, sizeof(sched_poll)
    mov qword ptr [rsp + sched_poll.ports], 0
    mov qword ptr [rsp + sched_poll.nr_ports], 0
    mov [rsp + sched_poll.timeout], rdi
    mov rsi, rsp
    {hypercall("sched_op", "SCHEDOP_poll", "rsi")}
    add rsp, sizeof(sched_poll)
    ret
"""
"""Polling no ports at all: only the time-out ends it. Every vCPU has its own."""
