"""Random arguments to every hypercall, from a guest on the whole machine.

Nothing is raised, the machine comes to an end, a neighbour goes on, and every frame comes back.
"""

from __future__ import annotations

import random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.abi import xen
from firmware.domain.domain import Domain, DomainState
from guests.assembler import VIRT_BASE
from tests.firmware.hostile import CALLS, END, LOOP, SCRATCH, SCRATCH_BYTES, WALL_S, with_neighbour
from xenpy.system import System

NUMBERS: Final = (
    0,
    1,
    2,
    3,
    7,
    8,
    63,
    64,
    127,
    128,
    255,
    511,
    512,
    513,
    4095,
    4096,
    4097,
    8191,
    8192,
    8193,
    65535,
    65536,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 47) - 1,
    1 << 47,
    (1 << 52) - 1,
    1 << 52,
    1 << 62,
    1 << 63,
    END - 1,
    END,
    xen.DOMID_SELF,
    0x7FF1,
    0x7FF2,
    0x7FF4,
    0x7FFF,
)
POINTERS: Final = (
    0,
    8,
    VIRT_BASE,
    VIRT_BASE + 0x1000,
    CALLS,
    SCRATCH - 1,
    SCRATCH,
    SCRATCH + SCRATCH_BYTES - 1,
    SCRATCH + SCRATCH_BYTES - 8,
    (1 << 47) - 8,
    1 << 47,
    0xFFFF_8000_0000_0000,
    0xFFFF_8000_0000_0001,
    0xFFFF_8200_0000_0000,
    0xFFFF_87FF_FFFF_FFF8,
    0xFFFF_8800_0000_0000,
    END - 4095,
    END - 7,
)
FLAGS: Final = (0, 1, 3, 5, 7, 0x63, 0x67, 0xE7, 0x1E7, 0xFFF, 1 << 63 | 0x67)
SUBCOMMANDS: Final = 40
ENDS: Final = {(29, 1), (29, 2), (29, 3), (6, 1), (6, 2), (6, 0x1_0000_0001)}


class Source:
    """Random calls and data: boundaries, own and foreign frames, own and other pointers."""

    def __init__(self, seed: int, domain: Domain, system: System) -> None:
        self.random = random.Random(seed)
        frames = system.hypervisor.memory.frames
        self.own = frames.owned_by(domain.id)
        self.odd = [
            0,
            1,
            15,
            domain.shared_info >> 12,
            domain.vcpus[0].kernel_root,
            frames.owned_by(domain.id + 1)[7],
            system.machine.memory.frames - 1,
            system.machine.memory.frames,
            1 << 40,
        ]

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
            ends = row[0] == 23 or (row[0], row[1] & 0xFFFF_FFFF) in ENDS or (row[0], row[1]) == (24, 2)
            if not ends or (ending and len(rows) == count - 1):
                rows.append(row)
        return b"".join(b"".join(value.to_bytes(8, "little") for value in (*row, 0)) for row in rows)


def arm(source: Source, domain: Domain, count: int, *, ending: bool) -> None:
    """Put random calls and random data into the guest."""
    space = domain.vcpus[0].space
    space.write(CALLS, source.calls(count, ending=ending) + END.to_bytes(8, "little"))
    space.write(SCRATCH, source.data(SCRATCH_BYTES >> 3))


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
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
        table = b"".join(
            number.to_bytes(8, "little") + END.to_bytes(8, "little") * 2 + row[24:] for number in quiet
        )
        domain.vcpus[0].space.write(CALLS, table + END.to_bytes(8, "little"))
        system.run(until=lambda: domain.state.ended, within=20, wall=WALL_S)
        assert domain.state is DomainState.POWEROFF
        counts = system.hypervisor.calls.counts
        assert all(counts[number] for number in quiet)
