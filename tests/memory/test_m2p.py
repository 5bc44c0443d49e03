"""The machine-to-phys table is made page by page, and guests see no difference."""

from __future__ import annotations

from firmware.memory.m2p import COMPAT_LIMIT, INVALID, NEVER
from firmware.memory.pte import ADDRESS, PRESENT, RW
from tests.memory.world import FIRST_FREE, World

PAGE_ENTRIES = 512


def seen(world: World, mfn: int, *, narrow: bool = False) -> int:
    """The entry of a frame as a guest's own walk from the L3 or L2 table finds it."""
    q = world.memory.q
    if narrow:
        l1 = world.slots.compat_entries[mfn >> 19]
    else:
        l2 = q[(world.slots.m2p_entry & ADDRESS) >> 3]
        l1 = q[((l2 & ADDRESS) >> 3) + (mfn >> 18)]
    page = q[((l1 & ADDRESS) >> 3) + (mfn >> (10 if narrow else 9) & 511)]
    assert page & (PRESENT | RW) == PRESENT
    at = page & ADDRESS
    return int(world.memory.d[at + (mfn & 1023) * 4 >> 2] if narrow else q[(at >> 3) + (mfn & 511)])


def test_entries_nobody_has_set_are_those_of_free_frames() -> None:
    world = World()
    for mfn in (FIRST_FREE, 511, 512, 2047):
        assert world.m2p.get(mfn) == seen(world, mfn) == INVALID
        assert seen(world, mfn, narrow=True) == INVALID & 0xFFFF_FFFF
    assert world.m2p.get(0) == seen(world, FIRST_FREE - 1) == int.from_bytes(bytes((NEVER,)) * 8, "little")


def test_a_page_is_made_when_it_is_needed() -> None:
    world = World()
    assert not world.m2p.wide.there(1024)
    world.m2p.set(1025, 7)
    assert world.m2p.wide.there(1024)
    assert not world.m2p.wide.there(1536)
    assert (seen(world, 1024), seen(world, 1025), seen(world, 1026)) == (INVALID, 7, INVALID)
    assert seen(world, 1025, narrow=True) == 7
    assert seen(world, 1536) == INVALID


def test_a_range_reaches_over_pages() -> None:
    world = World()
    world.m2p.set_range(1000, 5, 600)
    assert [world.m2p.get(mfn) for mfn in (999, 1000, 1599, 1600)] == [INVALID, 5, 604, INVALID]
    assert [seen(world, mfn) for mfn in (999, 1000, 1599, 1600)] == [INVALID, 5, 604, INVALID]
    assert [seen(world, mfn, narrow=True) for mfn in (1000, 1599)] == [5, 604]


def test_who_saw_the_shared_page_does_not_go_on_seeing_it() -> None:
    world = World()
    world.domain(1)
    core = world.cores[0]
    before = core.flushes
    world.m2p.set(1600, 1)
    made = core.flushes
    assert made > before
    world.m2p.set(1601, 2)
    assert core.flushes == made


def test_the_narrow_table_ends_where_32_bit_guests_can_look() -> None:
    assert World().m2p.compat.entries == 2048
    assert COMPAT_LIMIT == (0x1_0000_0000 - 0xF580_0000) // 4
