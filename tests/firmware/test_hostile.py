"""Guests that mean harm, on the whole machine: random arguments to every hypercall, and every way to go wrong at once.

Whatever they do, nothing is raised, the machine comes to an end, a neighbour goes on, and every frame comes back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.abi import xen
from firmware.domain.domain import Domain, DomainState
from guests.assembler import VIRT_BASE, Program
from xenpy.system import Reason, System

TEXT_BYTES: Final = 0x10000
CALLS: Final = VIRT_BASE + TEXT_BYTES
"""Where the table of calls lies: number, six arguments and room for the result, until a number is -1."""
CALL_BYTES: Final = 64
MOST_CALLS: Final = 512
SCRATCH: Final = CALLS + MOST_CALLS * CALL_BYTES
SCRATCH_BYTES: Final = 0x8000
END: Final = (1 << 64) - 1
MIB: Final = 8
WALL_S: Final = 60.0
"""Host seconds; a run that takes them is one that hangs."""

START: Final = """
guest_entry:
    cld
    lea rsp, [rip + stack_top]
"""
POWER_OFF: Final = """
power_off:
    mov dword ptr [rip + reason], 0
    mov edi, 2
    lea rsi, [rip + reason]
    mov eax, 29
    syscall
    jmp power_off
"""
LOOP: Final = f"""
    mov r15, {CALLS}
next_call:
    mov rax, [r15]
    cmp rax, -1
    je power_off
    mov rdi, [r15 + 8]
    mov rsi, [r15 + 16]
    mov rdx, [r15 + 24]
    mov r10, [r15 + 32]
    mov r8, [r15 + 40]
    mov r9, [r15 + 48]
    syscall
    mov [r15 + 56], rax
    add r15, {CALL_BYTES}
    jmp next_call
"""


@cache
def image(body: str) -> bytes:
    """A guest that runs this text from its first instruction on and then powers off."""
    return Program(text=[START + body + POWER_OFF + f"\n.balign {TEXT_BYTES}, 0\n"], data=[f".zero {MOST_CALLS * CALL_BYTES + SCRATCH_BYTES}"],
                   bss=["stack: .zero 8192\nstack_top: .quad 0\nreason: .quad 0\ntaken: .quad 0\nresume: .quad 0"]).image()


@contextmanager
def with_neighbour(body: str, *, cpus: int = 1, vcpus: int = 1) -> Iterator[tuple[System, Domain]]:
    """A machine with the hostile guest and one that minds its business; all is checked when the block ends."""
    with System(cpus=cpus, memory=64) as system:
        free = system.hypervisor.memory.heap.free
        hostile = system.add_domain(image(body), name="hostile", memory=MIB, vcpus=vcpus)
        neighbour = system.add_domain("builtin:spin", memory=MIB, cmdline="rounds=3")
        domain = system.hypervisor.lifecycle.domains[hostile.id]
        yield system, domain
        system.run(until=lambda: hostile.ended, within=0.002, wall=WALL_S)
        system.hypervisor.lifecycle.shutdown(domain, 0)
        outcome = system.run(until=lambda: neighbour.ended and hostile.ended, within=20, wall=WALL_S)
        assert outcome.reason is not Reason.WALL
        assert neighbour.state is DomainState.POWEROFF
        assert neighbour.console.log.endswith(b"spin: done\n")
        for guest in (domain, system.hypervisor.lifecycle.domains[neighbour.id]):
            system.hypervisor.destroy_domain(guest)
        assert system.hypervisor.memory.heap.free == free, "every frame comes back"


NUMBERS: Final = (
    0, 1, 2, 3, 7, 8, 63, 64, 127, 128, 255, 511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193, 65535, 65536,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 47) - 1, 1 << 47, (1 << 52) - 1, 1 << 52, 1 << 62, 1 << 63, END - 1, END,
    xen.DOMID_SELF, 0x7FF1, 0x7FF2, 0x7FF4, 0x7FFF,
)
POINTERS: Final = (
    0, 8, VIRT_BASE, VIRT_BASE + 0x1000, CALLS, SCRATCH - 1, SCRATCH, SCRATCH + SCRATCH_BYTES - 1, SCRATCH + SCRATCH_BYTES - 8,
    (1 << 47) - 8, 1 << 47, 0xFFFF_8000_0000_0000, 0xFFFF_8000_0000_0001, 0xFFFF_8200_0000_0000, 0xFFFF_87FF_FFFF_FFF8,
    0xFFFF_8800_0000_0000, END - 4095, END - 7,
)
FLAGS: Final = (0, 1, 3, 5, 7, 0x63, 0x67, 0xE7, 0x1E7, 0xFFF, 1 << 63 | 0x67)
SUBCOMMANDS: Final = 40
ENDS: Final = {(29, 1), (29, 2), (29, 3), (6, 1), (6, 2), (6, 0x1_0000_0001)}


class Source:
    """Random calls and data, drawn towards what Xen looks at: boundaries, own and foreign frames, own pointers."""

    def __init__(self, seed: int, domain: Domain, system: System) -> None:
        self.random = random.Random(seed)
        frames = system.hypervisor.memory.frames
        self.own = frames.owned_by(domain.id)
        self.odd = [0, 1, 15, domain.shared_info >> 12, domain.vcpus[0].kernel_root, frames.owned_by(domain.id + 1)[7],
                    system.machine.memory.frames - 1, system.machine.memory.frames, 1 << 40]

    def frame(self) -> int:
        return int(self.random.choice(self.own if self.random.random() < 0.7 else self.odd))

    def pointer(self) -> int:
        if self.random.random() < 0.7:
            return SCRATCH + self.random.randrange(SCRATCH_BYTES >> 3) * 8
        return self.random.choice(POINTERS)

    def word(self) -> int:
        kind = self.random.random()
        if kind < 0.35:
            return self.random.choice(NUMBERS)
        if kind < 0.55:
            return self.pointer()
        if kind < 0.7:
            return self.frame()
        if kind < 0.85:
            return self.frame() << 12 | self.random.choice(FLAGS)
        if kind < 0.95:
            return self.random.randrange(SUBCOMMANDS) | self.random.randrange(8) << 32
        return self.random.getrandbits(64)

    def data(self, count: int) -> bytes:
        return b"".join(self.word().to_bytes(8, "little") for _ in range(count))

    def call(self) -> tuple[int, ...]:
        number = self.random.randrange(64) if self.random.random() < 0.98 else self.word()
        first = self.random.randrange(SUBCOMMANDS) if self.random.random() < 0.5 else self.word()
        second = self.random.randrange(4) if self.random.random() < 0.2 else self.pointer()
        return (number, first, second, *(self.word() for _ in range(4)))

    def calls(self, count: int, *, ending: bool) -> bytes:
        """A table of calls; those that stop the guest stand at most at its end."""
        rows: list[tuple[int, ...]] = []
        while len(rows) < count:
            row = self.call()
            if row[0] == 23 or (row[0], row[1] & 0xFFFF_FFFF) in ENDS or (row[0], row[1]) == (24, 2):
                if not ending or len(rows) < count - 1:
                    continue
            rows.append(row)
        return b"".join(b"".join(value.to_bytes(8, "little") for value in (*row, 0)) for row in rows)


def arm(source: Source, domain: Domain, count: int, *, ending: bool) -> None:
    """Put random calls and random data into the guest."""
    space = domain.vcpus[0].space
    space.write(CALLS, source.calls(count, ending=ending) + END.to_bytes(8, "little"))
    space.write(SCRATCH, source.data(SCRATCH_BYTES >> 3))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 1 << 30), cpus=st.integers(1, 2), ending=st.booleans())
def test_random_arguments_to_every_hypercall(seed: int, cpus: int, ending: bool) -> None:
    with with_neighbour(LOOP, cpus=cpus, vcpus=2) as (system, domain):
        arm(Source(seed, domain, system), domain, 400, ending=ending)


@pytest.mark.soak
@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 1 << 60), cpus=st.integers(1, 3), ending=st.booleans())
def test_random_arguments_to_every_hypercall_for_long(seed: int, cpus: int, ending: bool) -> None:
    with with_neighbour(LOOP, cpus=cpus, vcpus=2) as (system, domain):
        arm(Source(seed, domain, system), domain, 500, ending=ending)


def test_every_hypercall_is_reached() -> None:
    with with_neighbour(LOOP) as (system, domain):
        row = b"".join(value.to_bytes(8, "little") for value in (0, 0, 0, 0, 0, 0, 0, 0))
        quiet = [number for number in range(64) if number != 23]
        table = b"".join(number.to_bytes(8, "little") + END.to_bytes(8, "little") * 2 + row[24:] for number in quiet)
        domain.vcpus[0].space.write(CALLS, table + END.to_bytes(8, "little"))
        system.run(until=lambda: domain.state.ended, within=20, wall=WALL_S)
        assert domain.state is DomainState.POWEROFF
        counts = system.hypervisor.calls.counts
        assert all(counts[number] for number in quiet)


# --- every way to go wrong ----------------------------------------------------------------------------------------------

IDT: Final = """
    lea rdi, [rip + trap_table]
    xor eax, eax
    syscall
    jmp begin
.balign 16
trap_table:
""" + "\n".join(f".byte {vector}, 3\n.short 0xe033\n.long 0\n.quad handler" for vector in range(256)) + """
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
        with with_neighbour(f"mov rdi, 0xe02b\nmov rsi, {stack}\nmov eax, 3\nsyscall\nmov rsp, {stack}\nud2") as (system, domain):
            system.run(until=lambda: domain.state.ended, within=0.05, wall=WALL_S)
            assert domain.state is DomainState.CRASH


def test_a_flood_of_the_console() -> None:
    flood = f"again: xor edi, edi\nmov esi, {SCRATCH_BYTES}\nmov rdx, {SCRATCH}\nmov eax, 18\nsyscall\njmp again"
    with with_neighbour(flood) as (system, domain):
        system.run(within=0.001, wall=WALL_S)
        assert not domain.state.ended
        assert len(domain.console.output) > SCRATCH_BYTES


def steps(instructions: list[str]) -> str:
    """Each instruction by itself, with a handler that goes on with the next."""
    parts = []
    for index, instruction in enumerate(instructions):
        parts.append(f"lea rax, [rip + step_{index}]\nmov [rip + resume], rax\nlea rsp, [rip + stack_top]\n"
                     f"mov rax, {SCRATCH}\nmov rbx, rax\nmov rsi, rax\nmov rdi, rax\nmov ecx, 1\nmov edx, 1\n"
                     f"{instruction}\nstep_{index}:")
    return IDT + "\n".join(parts)


PRIVILEGED: Final = [
    *(f"mov cr{number}, {register}" for number in (0, 2, 3, 4, 8) for register in ("rcx", "rbx")),
    *(f"mov rbp, cr{number}" for number in (0, 2, 3, 4, 8)),
    *(f"mov dr{number}, rcx" for number in range(8)), *(f"mov rbp, dr{number}" for number in range(8)),
    "lgdt [rbx]", "lidt [rbx]", "lldt cx", "ltr cx", "sgdt [rbx]", "sidt [rbx]", "sldt cx", "str cx", "lmsw cx", "smsw cx",
    "clts", "invlpg [rbx]", "wbinvd", "invd", "rdmsr", "wrmsr", "rdpmc", "rdtsc", "rdtscp", "cpuid", "swapgs", "hlt", "cli", "sti",
    "in al, dx", "in eax, dx", "in al, 0x60", "out dx, al", "out dx, eax", "out 0x60, al", "insb", "outsb", "rep insd", "rep outsd",
    "iretq", "retfq", ".byte 0x48, 0x0f, 0x07", "sysexit", "sysenter", "monitor", "mwait", "xgetbv", "xsetbv", "vmcall", "vmmcall", "clac", "stac",
    "mov ds, cx", "mov es, cx", "mov fs, cx", "mov gs, cx", "mov ss, cx", "lsl ecx, ecx", "lar ecx, ecx", "verr cx", "verw cx",
    "int3", "int1", "ud2", "pushf\nor qword ptr [rsp], 0x30100\npopf\nnop", "pushf\nor qword ptr [rsp], 0x7000\npopf",
    "mov ecx, 0xc0000080\nrdmsr", "mov ecx, 0xc0000101\nwrmsr", "mov ecx, 0xffffffff\nwrmsr", "fninit\nfwait",
    "fxsave [rbx]", "fxrstor [rbx]", "ldmxcsr [rbx]", "lock inc qword ptr [rbx + 4093]", "cmpxchg16b [rbx]", "enter 65535, 31",
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
    selectors = [0, 1, 3, 4, 7, 8, 0x10, 0x1000, 0x7FFF, 0xDFF8, 0xE000, 0xE008, 0xE010, 0xE018, 0xE019, 0xE021, 0xE023, 0xE028,
                 0xE02B, 0xE030, 0xE033, 0xE038, 0xE040, 0xE048, 0xE050, 0xEFF8, 0xF000, 0xFFF8, 0xFFFC, 0xFFFF]
    with with_neighbour(steps([f"mov ecx, {value}\nmov {register}, cx" for value in selectors])) as (system, domain):
        system.run(until=lambda: domain.state.ended, within=5, wall=WALL_S)
        assert domain.state is DomainState.POWEROFF


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 1 << 30))
def test_random_bytes_as_code(seed: int) -> None:
    """Code of random bytes in writable memory, with a handler for every trap: it goes on at another place each time."""
    body = steps([f"mov rax, {SCRATCH + 8 * index}\njmp rax" for index in range(0, 256)])
    with with_neighbour(body) as (system, domain):
        data = random.Random(seed).randbytes(SCRATCH_BYTES)
        domain.vcpus[0].space.write(SCRATCH, data)
