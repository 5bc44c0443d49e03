"""A machine with a guest that means harm and one that does not, and what must hold whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

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
    return Program(
        text=[START + body + POWER_OFF + f"\n.balign {TEXT_BYTES}, 0\n"],
        data=[f".zero {MOST_CALLS * CALL_BYTES + SCRATCH_BYTES}"],
        bss=["stack: .zero 8192\nstack_top: .quad 0\nreason: .quad 0\ntaken: .quad 0\nresume: .quad 0"],
    ).image()


@contextmanager
def with_neighbour(body: str, *, cpus: int = 1, vcpus: int = 1) -> Iterator[tuple[System, Domain]]:
    """A machine with the hostile guest and its neighbour; all is checked when the block ends."""
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
