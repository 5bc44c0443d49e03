"""Grant handles are given out in Xen's order, and what a grant maps is not executable."""

from __future__ import annotations

import pytest

from firmware.abi import grant_table as gnt
from firmware.memory.grant_table import HANDLES_IN_FRAME
from firmware.memory.pte import NO_EXECUTE
from tests.memory.guest_model import Guest
from tests.memory.test_mmu import Scene


@pytest.fixture
def scene() -> Scene:
    """The other domain has granted its frame 20 as reference 8."""
    scene = Scene()
    neighbour = Guest(scene.world, scene.other.all[0], scene.ledger)
    neighbour.grant(8, 1, scene.other.frames[20], gnt.GTF_permit_access)
    return scene


def map_it(scene: Scene) -> int:
    status, handle = scene.guest.map_grant(2, 8, gnt.GNTMAP_host_map, scene.domain.va(20))
    assert status == gnt.GNTST_okay
    return handle


def test_a_handle_given_back_is_the_last_to_be_used_again(scene: Scene) -> None:
    handles = []
    for _ in range(2 * HANDLES_IN_FRAME):
        handles.append(map_it(scene))
        assert scene.guest.unmap_grant(handles[-1], scene.domain.va(20)) == gnt.GNTST_okay
    assert handles == list(range(HANDLES_IN_FRAME)) * 2
    scene.holds()


def test_handles_in_use_make_room_for_more(scene: Scene) -> None:
    pages = scene.world.grants.table(scene.domain.memory)
    handles = [pages.new_handle() for _ in range(HANDLES_IN_FRAME + 1)]
    assert handles == [*range(HANDLES_IN_FRAME - 1), HANDLES_IN_FRAME, HANDLES_IN_FRAME + 1]


def test_a_granted_page_is_not_executable(scene: Scene) -> None:
    map_it(scene)
    assert scene.entry(20) & NO_EXECUTE
    scene.holds()
