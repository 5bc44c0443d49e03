"""Random arguments to every memory hypercall, 64-bit and 32-bit: always an answer, never an exception."""

from __future__ import annotations

from random import Random

import pytest

from firmware.hypercalls import CONTINUE
from tests.memory.reference import Ledger, check
from tests.memory.world import ARGUMENTS, PlainVCpu, World

NAMES = (
    "mmu_update",
    "mmuext_op",
    "update_va_mapping",
    "update_va_mapping_otherdomain",
    "set_gdt",
    "update_descriptor",
    "memory_op",
    "grant_table_op",
)
CALLS = 1500
EDGES = (
    0,
    1,
    2,
    3,
    7,
    8,
    0x7FF0,
    0x7FF1,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0x8000_0001,
    0xFFFF_FFFF,
    1 << 47,
    (1 << 47) - 1,
    0xFFFF_8000_0000_0000,
    0xFFFF_8800_0000_0000,
    (1 << 64) - 1,
    (1 << 64) - 8,
    1 << 63,
)


def word(rng: Random, vcpu: PlainVCpu) -> int:
    """A value that is often nearly right."""
    frames = vcpu.domain.frames
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(EDGES)
    if kind == 1:
        return rng.getrandbits(64)
    if kind == 2:
        return rng.randrange(40)
    if kind == 3:
        return rng.choice(frames)
    if kind == 4:
        return rng.choice(frames) << 12 | rng.choice((0, 0x61, 0x63, 0x67, 8, 0xFF8))
    if kind == 5:
        return vcpu.domain.va(rng.randrange(len(frames))) + rng.choice((0, 8, 4092, 4095))
    return ARGUMENTS + rng.choice((0, 0, 0x100, 0x104, 0xFFF8))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pv32", [False, True])
def test_random_arguments(name: str, pv32: bool) -> None:
    rng = Random(f"{name} {pv32}")
    world, ledger = World(2304, 2), Ledger()
    domain = world.domain(1, 40, 2, pv32=pv32, maximum=60)
    world.domain(2, 40)
    row = next(row for row in world.table.rows if row is not None and row.name == name)
    vcpu = domain.all[0]
    mask = 0xFFFF_FFFF if pv32 else (1 << 64) - 1
    for _ in range(CALLS):
        for at in range(0, 0x140, 8):
            vcpu.space.write(ARGUMENTS + at, word(rng, vcpu).to_bytes(8, "little"))
        for at in range(0, 0x100, 24):
            if rng.random() < 0.7:
                vcpu.space.write(ARGUMENTS + at, rng.randrange(24).to_bytes(8, "little"))
        arguments = tuple(word(rng, vcpu) & mask for _ in row.arguments)
        if name in {"memory_op", "grant_table_op"} and rng.random() < 0.9:
            arguments = (rng.randrange(32), ARGUMENTS, 1)[: len(row.arguments)]
        result = world.table.call(vcpu, row.number, arguments)
        assert result == CONTINUE or -200 < result < 1 << 64
    for table, level in list(_pins(world).items()):
        ledger.pins[table] = level
    check(world, ledger)


def _pins(world: World) -> dict[int, int]:
    """The tables that are pinned after all that."""
    frames = world.frames
    owned = [mfn for domain in world.domains for mfn in frames.owned_by(domain)]
    return {mfn: frames.type_of(mfn) for mfn in owned if frames.types[mfn] & 0x10}
