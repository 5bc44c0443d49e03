"""Guests that go wrong in every way there is: faults without handlers, bad returns, privileged instructions.

Nothing is raised, the machine comes to an end, a neighbour goes on, and every frame comes back.
"""

from __future__ import annotations

import random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.domain.domain import DomainState
from guests.assembler import VIRT_BASE
from tests.firmware.hostile import END, SCRATCH, SCRATCH_BYTES, WALL_S, with_neighbour

IDT: Final = (
    """
    lea rdi, [rip + trap_table]
    xor eax, eax
    syscall
    jmp begin
.balign 16
trap_table:
"""
    + "\n".join(f".byte {vector}, 3\n.short 0xe033\n.long 0\n.quad handler" for vector in range(256))
    + """
.quad 0, 0
begin:
    jmp body
handler:
    mov rax, [rip + taken]
    inc rax
    mov [rip + taken], rax
    cmp rax, 400
    ja power_off
    lea rsp, [rip + stack_top]
    mov rax, [rip + resume]
    jmp rax
.balign 8
body:
"""
)
"""A guest that takes every trap and goes on at `resume`, up to 400 times."""

HARM: Final[dict[str, str]] = {
    "no handlers": "ud2",
    "divide by zero, no handlers": "xor ecx, ecx\ndiv ecx",
    "a jump to garbage": "mov rax, 0x123456789000\njmp rax",
    "a jump to a non-canonical address": "mov rax, 0x8000000000000000\njmp rax",
    "a jump into Xen": "mov rax, 0xffff830000000000\njmp rax",
    "a jump into data": f"mov rax, {SCRATCH}\njmp rax",
    "a stack that overflows": "again: push rax\njmp again",
    "a stack in Xen": "mov rsp, 0xffff828000000100\npush rax",
    "recursion": "call recurse\nrecurse: call recurse",
    "a call of nothing": "call 0",
    "a store to its own code": f"mov rax, {VIRT_BASE + 0x1000}\nmov qword ptr [rax], 0\njmp rax",
    "a store to the null page": "mov qword ptr [0], 1",
    "a read of Xen": "mov rax, 0xffff830000000000\nmov rax, [rax]",
    "an endless loop": "forever: jmp forever",
    "halts": "again: hlt\njmp again",
    "iret": "push 0\npush 0\npush 0\npush 0\npush 0\niretq",
    "a far return": "push 0x1230\npush 0\nretfq",
    "single steps for ever": "pushf\nor qword ptr [rsp], 0x100\npopf\nagain: nop\njmp again",
    "sleep without an event": "mov edi, 1\nmov eax, 29\nsyscall",
    "a crash of its own": f"mov rsi, {SCRATCH}\nmov dword ptr [rsi], 3\nmov edi, 2\nmov eax, 29\nsyscall",
    "a reboot": f"mov rsi, {SCRATCH}\nmov dword ptr [rsi], 1\nmov edi, 2\nmov eax, 29\nsyscall",
    "no such reason": f"mov rsi, {SCRATCH}\nmov dword ptr [rsi], 200\nmov edi, 2\nmov eax, 29\nsyscall",
}


ENDLESS: Final = {"an endless loop", "sleep without an event", "a store to its own code"}


@pytest.mark.parametrize("name", list(HARM))
def test_a_guest_without_handlers(name: str) -> None:
    with with_neighbour(HARM[name], cpus=1 + len(name) % 2) as (system, domain):
        system.run(until=lambda: domain.state.ended, within=0.001 if name in ENDLESS else 0.05, wall=WALL_S)
        if name in ENDLESS:
            assert not domain.state.ended
        else:
            assert domain.state.ended
            assert domain.crash is not None or domain.state is DomainState.REBOOT


def frame(cs: int, ss: int, flags: int, rip: int, rsp: int, marks: int = 0) -> str:
    """The iret hypercall with this frame."""
    words = (ss, rsp, flags, cs, rip, marks, 0, 0, 0)
    return "\n".join(f"mov rax, {word}\npush rax" for word in words) + "\nmov eax, 23\nsyscall"


@pytest.mark.parametrize("cs", [0, 3, 0x10, 0xE019, 0xE023, 0xE02B, 0xE033, 0x1234, 0xFFF8, 0xFFFF, 0x33, 4])
@pytest.mark.parametrize("ss", [0, 0xE02B, 0x1234, 0xFFFF])
def test_iret_to_garbage(cs: int, ss: int) -> None:
    with with_neighbour(frame(cs, ss, 0x3FFFFF, 1 << 63, END - 3, cs & 0x100)) as (system, domain):
        system.run(until=lambda: domain.state.ended, within=0.05, wall=WALL_S)
        assert domain.state is DomainState.CRASH


def test_a_kernel_stack_that_is_no_good_and_then_an_event() -> None:
    for stack in (0, 8, END, 1 << 47, 0xFFFF_8000_0000_1000, VIRT_BASE + 0x1100, SCRATCH + 3):
        with with_neighbour(
            f"mov rdi, 0xe02b\nmov rsi, {stack}\nmov eax, 3\nsyscall\nmov rsp, {stack}\nud2"
        ) as (system, domain):
            system.run(until=lambda: domain.state.ended, within=0.05, wall=WALL_S)
            assert domain.state is DomainState.CRASH


def test_a_flood_of_the_console() -> None:
    flood = (
        f"again: xor edi, edi\nmov esi, {SCRATCH_BYTES}\nmov rdx, {SCRATCH}\nmov eax, 18\nsyscall\njmp again"
    )
    with with_neighbour(flood) as (system, domain):
        system.run(within=0.001, wall=WALL_S)
        assert not domain.state.ended
        assert len(domain.console.output) > SCRATCH_BYTES


def steps(instructions: list[str]) -> str:
    """Each instruction by itself, with a handler that goes on with the next."""
    parts = []
    for index, instruction in enumerate(instructions):
        parts.append(
            f"lea rax, [rip + step_{index}]\nmov [rip + resume], rax\nlea rsp, [rip + stack_top]\n"
            f"mov rax, {SCRATCH}\nmov rbx, rax\nmov rsi, rax\nmov rdi, rax\nmov ecx, 1\nmov edx, 1\n"
            f"{instruction}\nstep_{index}:"
        )
    return IDT + "\n".join(parts)


PRIVILEGED: Final = [
    *(f"mov cr{number}, {register}" for number in (0, 2, 3, 4, 8) for register in ("rcx", "rbx")),
    *(f"mov rbp, cr{number}" for number in (0, 2, 3, 4, 8)),
    *(f"mov dr{number}, rcx" for number in range(8)),
    *(f"mov rbp, dr{number}" for number in range(8)),
    "lgdt [rbx]",
    "lidt [rbx]",
    "lldt cx",
    "ltr cx",
    "sgdt [rbx]",
    "sidt [rbx]",
    "sldt cx",
    "str cx",
    "lmsw cx",
    "smsw cx",
    "clts",
    "invlpg [rbx]",
    "wbinvd",
    "invd",
    "rdmsr",
    "wrmsr",
    "rdpmc",
    "rdtsc",
    "rdtscp",
    "cpuid",
    "swapgs",
    "hlt",
    "cli",
    "sti",
    "in al, dx",
    "in eax, dx",
    "in al, 0x60",
    "out dx, al",
    "out dx, eax",
    "out 0x60, al",
    "insb",
    "outsb",
    "rep insd",
    "rep outsd",
    "iretq",
    "retfq",
    ".byte 0x48, 0x0f, 0x07",
    "sysexit",
    "sysenter",
    "monitor",
    "mwait",
    "xgetbv",
    "xsetbv",
    "vmcall",
    "vmmcall",
    "clac",
    "stac",
    "mov ds, cx",
    "mov es, cx",
    "mov fs, cx",
    "mov gs, cx",
    "mov ss, cx",
    "lsl ecx, ecx",
    "lar ecx, ecx",
    "verr cx",
    "verw cx",
    "int3",
    "int1",
    "ud2",
    "pushf\nor qword ptr [rsp], 0x30100\npopf\nnop",
    "pushf\nor qword ptr [rsp], 0x7000\npopf",
    "mov ecx, 0xc0000080\nrdmsr",
    "mov ecx, 0xc0000101\nwrmsr",
    "mov ecx, 0xffffffff\nwrmsr",
    "fninit\nfwait",
    "fxsave [rbx]",
    "fxrstor [rbx]",
    "ldmxcsr [rbx]",
    "lock inc qword ptr [rbx + 4093]",
    "cmpxchg16b [rbx]",
    "enter 65535, 31",
]


def test_every_privileged_instruction() -> None:
    with with_neighbour(steps(PRIVILEGED)) as (system, domain):
        system.run(until=lambda: domain.state.ended, within=5, wall=WALL_S)
        assert domain.state is DomainState.POWEROFF


def test_every_software_interrupt() -> None:
    with with_neighbour(steps([f"int {vector}" for vector in range(256)])) as (system, domain):
        system.run(until=lambda: domain.state.ended, within=5, wall=WALL_S)
        assert domain.state is DomainState.POWEROFF


@pytest.mark.parametrize("register", ["ds", "es", "fs", "gs", "ss"])
def test_every_kind_of_selector(register: str) -> None:
    selectors = [
        0,
        1,
        3,
        4,
        7,
        8,
        0x10,
        0x1000,
        0x7FFF,
        0xDFF8,
        0xE000,
        0xE008,
        0xE010,
        0xE018,
        0xE019,
        0xE021,
        0xE023,
        0xE028,
        0xE02B,
        0xE030,
        0xE033,
        0xE038,
        0xE040,
        0xE048,
        0xE050,
        0xEFF8,
        0xF000,
        0xFFF8,
        0xFFFC,
        0xFFFF,
    ]
    with with_neighbour(steps([f"mov ecx, {value}\nmov {register}, cx" for value in selectors])) as (
        system,
        domain,
    ):
        system.run(until=lambda: domain.state.ended, within=5, wall=WALL_S)
        assert domain.state is DomainState.POWEROFF


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 1 << 30))
def test_random_bytes_as_code(seed: int) -> None:
    """Random bytes as code, with a handler for every trap: it goes on at another place each time."""
    body = steps([f"mov rax, {SCRATCH + 8 * index}\njmp rax" for index in range(256)])
    with with_neighbour(body) as (_system, domain):
        data = random.Random(seed).randbytes(SCRATCH_BYTES)
        domain.vcpus[0].space.write(SCRATCH, data)
