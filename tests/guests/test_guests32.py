"""Our own 32-bit PAE guests: their images, their consoles, and a hostile one with random arguments.

Debian's Xen is built without 32-bit PV: what they must print follows from the documented interface, as the
header of each guest says.
"""
from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import guests
from firmware.abi import xen
from firmware.domain.domain import Domain, DomainState
from firmware.domain.image import parse_image
from guests.assembler import NARROW_BASE, PAGE, Program
from tools.oracle import record
from xenpy.system import Reason, System

NAMES: Final = [name for name, guest in guests.GUESTS.items() if guest.width == 32]
HIGH_MIB: Final = 5200
"""Memory of a machine that has some above 4 GiB once a first domain has taken most of it."""
WITHIN_S: Final = 60.0
WALL_S: Final = 60.0


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_elf32_and_says_it_is_a_pae_guest(name: str) -> None:
    image = guests.build(name)
    assert (image[:5], image[24:28]) == (b"\x7fELF\x01", (NARROW_BASE + PAGE).to_bytes(4, "little"))
    kernel = parse_image(image, name)
    assert (kernel.width, kernel.virt_base, kernel.hypercall_page) == (32, NARROW_BASE, NARROW_BASE)
    assert guests.build(name) == image


@pytest.mark.parametrize("name", NAMES)
def test_the_console_is_the_one_that_the_interface_asks_for(name: str) -> None:
    guest = guests.GUESTS[name]
    lines = record.expected(name).splitlines()
    assert lines[-1] == guest.expected
    with System(cpus=guest.vcpus) as system:
        domain = system.add_domain(f"builtin:{name}", vcpus=guest.vcpus, memory=32)
        outcome = system.run(within=WITHIN_S, wall=WALL_S)
        assert domain.console.log.decode().splitlines() == lines
    assert outcome.reason is Reason.ENDED


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_same_above_4_gib(name: str) -> None:
    """Roots whose frame numbers have more than 20 bits go through CR3 folded."""
    guest = guests.GUESTS[name]
    with System(cpus=guest.vcpus, memory=HIGH_MIB) as system:
        system.add_domain("builtin:hello", name="low", memory=HIGH_MIB - 1000)
        domain = system.add_domain(f"builtin:{name}", vcpus=guest.vcpus, memory=32)
        vcpu = system.hypervisor.lifecycle.domains[domain.id].vcpus[0]
        assert vcpu.kernel_root >> 20
        system.run(until=lambda: domain.ended, within=WITHIN_S, wall=WALL_S)
        assert domain.console.log.decode().splitlines() == record.expected(name).splitlines()


@pytest.mark.parametrize(("vcpus", "cpus"), [(1, 1), (2, 1), (3, 2)])
def test_smp_agrees_however_many_vcpus_share_the_cpus(vcpus: int, cpus: int) -> None:
    with System(cpus=cpus) as system:
        domain = system.add_domain("builtin:smp32", vcpus=vcpus, memory=32)
        system.run(within=WITHIN_S, wall=WALL_S)
        lines = domain.console.log.decode().splitlines()
    assert f"counter: {vcpus * 1000}, missing 0" in lines
    assert lines[-1] == "smp32: done"


# --- hostile arguments --------------------------------------------------------------------------------------

TEXT_BYTES: Final = 0x4000
CALLS: Final = NARROW_BASE + TEXT_BYTES
"""Where the table of calls lies: number, six arguments and room for the result, until a number is -1."""
CALL_BYTES: Final = 32
MOST_CALLS: Final = 512
SCRATCH: Final = CALLS + MOST_CALLS * CALL_BYTES
SCRATCH_BYTES: Final = 0x8000
END: Final = (1 << 32) - 1
MIB: Final = 8
IRET: Final = 23
ENDS: Final = {(29, 1), (29, 2), (29, 3), (6, 1), (6, 2), (24, 2)}
"""Calls that stop the guest."""

SOURCE: Final = f"""
guest_entry:
    cld
    lea esp, [stack_top]
    lea eax, [{CALLS}]
    mov [next], eax
next_call:
    mov edi, [next]
    mov eax, [edi]
    cmp eax, -1
    je power_off
    mov ebx, [edi + 4]
    mov ecx, [edi + 8]
    mov edx, [edi + 12]
    mov esi, [edi + 16]
    mov ebp, [edi + 24]
    mov edi, [edi + 20]
    int 0x82
    mov edi, [next]
    mov [edi + 28], eax
    add dword ptr [next], {CALL_BYTES}
    jmp next_call
power_off:
    mov dword ptr [reason], 0
    mov ebx, 2
    lea ecx, [reason]
    mov eax, 29
    int 0x82
    jmp power_off
.balign {TEXT_BYTES // 2}, 0
"""
NUMBERS: Final = (
    0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 127, 255, 511, 512, 513, 1023, 1024, 4095, 4096, 8191, 8192, 65535,
    65536,
    (1 << 31) - 1, 1 << 31, END - 1, END, xen.DOMID_SELF, 0x7FF1, 0x7FF2, 0x7FF4, 0x7FFF,
)
POINTERS: Final = (
    0, 4, NARROW_BASE, NARROW_BASE + PAGE, CALLS, SCRATCH - 1, SCRATCH, SCRATCH + SCRATCH_BYTES - 1,
    0xF57F_FFFC,
    0xF57F_FFFF, 0xF580_0000, 0xF580_0001, 0xFC00_0000, 0xFFDF_FFFF, 0xFFE0_0000, END - 4095, END - 3, END,
)
FLAGS: Final = (0, 1, 3, 5, 7, 0x63, 0x67, 0xE7, 0x1E7, 0xFFF)


def image() -> bytes:
    """A guest that makes the calls of its table and then powers off."""
    return Program(
        text=[SOURCE], data=[f".zero {MOST_CALLS * CALL_BYTES + SCRATCH_BYTES}"],
        bss=["stack: .zero 8192\nstack_top: .long 0\nreason: .long 0\nnext: .long 0"], width=32,
    ).image()


class Source:
    """Random calls and data, drawn towards what Xen looks at."""

    def __init__(self, seed: int, domain: Domain, system: System) -> None:
        self.random = random.Random(seed)
        frames = system.hypervisor.memory.frames
        self.own = frames.owned_by(domain.id)
        self.odd = [0, 1, domain.shared_info >> 12, domain.vcpus[0].kernel_root,
                    frames.owned_by(domain.id + 1)[7],
                    system.machine.memory.frames - 1, system.machine.memory.frames, 1 << 19]
        self._kinds: tuple[tuple[float, Callable[[], int]], ...] = (
            (0.35, lambda: self.random.choice(NUMBERS)), (0.55, self.pointer), (0.7, self.frame),
            (0.85, lambda: (self.frame() << 12 | self.random.choice(FLAGS)) & END),
            (0.95, lambda: self.random.randrange(40)), (2.0, lambda: self.random.getrandbits(32)),
        )

    def frame(self) -> int:
        return int(self.random.choice(self.own if self.random.random() < 0.7 else self.odd))

    def pointer(self) -> int:
        if self.random.random() < 0.7:
            return SCRATCH + self.random.randrange(SCRATCH_BYTES >> 2) * 4
        return self.random.choice(POINTERS)

    def word(self) -> int:
        kind = self.random.random()
        return next(draw for below, draw in self._kinds if kind < below)()

    def call(self) -> tuple[int, ...]:
        number = self.random.randrange(64) if self.random.random() < 0.98 else self.word()
        first = self.random.randrange(40) if self.random.random() < 0.5 else self.word()
        second = self.random.randrange(4) if self.random.random() < 0.2 else self.pointer()
        return (number, first, second, *(self.word() for _ in range(4)), 0)

    def calls(self, count: int, *, ending: bool) -> bytes:
        """A table of calls; those that stop the guest stand at most at its end."""
        rows: list[tuple[int, ...]] = []
        while len(rows) < count:
            row = self.call()
            stops = row[0] == IRET or row[:2] in ENDS
            if not stops or (ending and len(rows) == count - 1):
                rows.append(row)
        return b"".join(struct.pack("<8I", *row) for row in rows) + END.to_bytes(4, "little")


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 1 << 30), cpus=st.integers(1, 2), ending=st.booleans())
def test_random_arguments_to_every_hypercall(seed: int, cpus: int, ending: bool) -> None:
    _harm(seed, cpus, ending)


@pytest.mark.soak
@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 1 << 60), cpus=st.integers(1, 3), ending=st.booleans())
def test_random_arguments_to_every_hypercall_for_long(seed: int, cpus: int, ending: bool) -> None:
    _harm(seed, cpus, ending)


def _harm(seed: int, cpus: int, ending: bool) -> None:
    """Nothing is raised, the machine comes to an end, the neighbour goes on, and every frame comes back."""
    with System(cpus=cpus, memory=64) as system:
        free = system.hypervisor.memory.heap.free
        guest = system.add_domain(image(), name="hostile", memory=MIB, vcpus=2)
        neighbour = system.add_domain("builtin:spin", memory=MIB, cmdline="rounds=20")
        domain = system.hypervisor.lifecycle.domains[guest.id]
        source = Source(seed, domain, system)
        space = domain.vcpus[0].space
        space.write(CALLS, source.calls(400, ending=ending))
        space.write(SCRATCH, b"".join(source.word().to_bytes(4, "little") for _ in range(SCRATCH_BYTES >> 2)))
        system.run(until=lambda: guest.ended, within=0.02, wall=WALL_S)
        system.hypervisor.lifecycle.shutdown(domain, 0)
        outcome = system.run(until=lambda: neighbour.ended and guest.ended, within=20, wall=WALL_S)
        assert outcome.reason is not Reason.WALL
        assert neighbour.state is DomainState.POWEROFF
        for ended in (domain, system.hypervisor.lifecycle.domains[neighbour.id]):
            system.hypervisor.destroy_domain(ended)
        assert system.hypervisor.memory.heap.free == free, "every frame comes back"
