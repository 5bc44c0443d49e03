"""Tables that name tables in use, as a new root names those of the kernel."""

from __future__ import annotations

import pytest

from firmware.abi import xen
from firmware.abi.errno import EINVAL
from firmware.memory.frames import COUNT_LIMIT, L1_TABLE
from tests.memory.test_mmu import Scene

ENTRY = 0x67


@pytest.fixture
def scene() -> Scene:
    return Scene()


def naming(scene: Scene, target: int) -> int:
    """A frame that is to become a table with one entry, for `target`."""
    table = scene.table(30)
    scene.world.memory.store64(scene.at(table, 5), target << 12 | ENTRY)
    return table


def test_it_is_counted_and_given_back(scene: Scene) -> None:
    frames, table = scene.world.frames, naming(scene, scene.l1)
    before = frames.references(scene.l1), frames.type_count(scene.l1)
    assert scene.guest.extended(xen.MMUEXT_PIN_L2_TABLE, table) == 0
    assert (frames.references(scene.l1), frames.type_count(scene.l1)) == (before[0] + 1, before[1] + 1)
    scene.holds()
    assert scene.guest.extended(xen.MMUEXT_UNPIN_TABLE, table) == 0
    assert (frames.references(scene.l1), frames.type_count(scene.l1)) == before
    scene.holds()


def test_another_domains_is_refused(scene: Scene) -> None:
    theirs = next(mfn for mfn in scene.other.tables if scene.world.frames.type_of(mfn) == L1_TABLE)
    assert scene.guest.extended(xen.MMUEXT_PIN_L2_TABLE, naming(scene, theirs)) == -EINVAL
    scene.holds()


@pytest.mark.parametrize("command", [xen.MMUEXT_PIN_L3_TABLE, xen.MMUEXT_PIN_L4_TABLE])
def test_one_of_another_level_is_refused(scene: Scene, command: int) -> None:
    assert scene.guest.extended(command, naming(scene, scene.l1)) == -EINVAL
    scene.holds()


@pytest.mark.parametrize("what", ["types", "counts"])
def test_one_that_takes_no_more_is_refused(scene: Scene, what: str) -> None:
    words = getattr(scene.world.frames, what)
    table, before = naming(scene, scene.l1), words[scene.l1]
    words[scene.l1] = COUNT_LIMIT | before & 0xFF
    assert scene.guest.extended(xen.MMUEXT_PIN_L2_TABLE, table) == -EINVAL
    assert words[scene.l1] == COUNT_LIMIT | before & 0xFF
    words[scene.l1] = before
    scene.holds()


def test_a_linear_page_table_others_use_is_let_go(scene: Scene) -> None:
    first, second = scene.table(30), scene.table(31)
    assert scene.guest.extended(xen.MMUEXT_PIN_L2_TABLE, first) == 0
    scene.world.memory.store64(scene.at(second, 5), first << 12 | ENTRY & ~2)
    assert scene.guest.extended(xen.MMUEXT_PIN_L2_TABLE, second) == 0
    assert scene.world.frames.linear
    assert scene.guest.extended(xen.MMUEXT_UNPIN_TABLE, second) == 0
    assert not scene.world.frames.linear
    scene.holds()
