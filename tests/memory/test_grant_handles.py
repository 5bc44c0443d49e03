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


def test_replacing_a_mapping_that_is_not_there_loses_the_other(scene: Scene) -> None:
    handle = map_it(scene)
    answer = scene.guest.grant_op(
        gnt.GNTTABOP_unmap_and_replace, gnt.gnttab_unmap_and_replace,
        host_addr=scene.domain.va(22), new_addr=scene.domain.va(21), handle=handle,
    )
    assert answer["status"] == gnt.GNTST_general_error
    assert scene.entry(21) == 0
    assert scene.entry(22)
    scene.holds()


def test_a_copy_into_a_grant_held_for_reading_needs_the_same_frame(scene: Scene) -> None:
    neighbour = Guest(scene.world, scene.other.all[0], scene.ledger)
    flags = gnt.GNTMAP_host_map | gnt.GNTMAP_readonly
    assert scene.guest.map_grant(2, 8, flags, scene.domain.va(20))[0] == gnt.GNTST_okay

    def copy() -> int:
        return scene.guest.grant_op(
            gnt.GNTTABOP_copy, gnt.gnttab_copy,
            source={"u": scene.frames[30], "domid": 0x7FF0, "offset": 0},
            dest={"u": 8, "domid": 2, "offset": 0}, len=8, flags=gnt.GNTCOPY_dest_gref,
        )["status"]

    assert copy() == gnt.GNTST_okay
    neighbour.grant(8, 1, scene.other.frames[21], gnt.GTF_permit_access)
    assert copy() == gnt.GNTST_general_error
    neighbour.grant(8, 1, scene.frames[21], gnt.GTF_permit_access)
    assert copy() == gnt.GNTST_bad_page
    scene.holds()
