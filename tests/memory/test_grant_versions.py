"""Going between the versions of a grant table: what stands in the way, what becomes of the status frames.

All as real Xen 4.17 was seen to do, by the guests `mmufuzz` and `versions`.
"""

from __future__ import annotations

import pytest

from firmware.abi import grant_table as gnt
from firmware.abi import xen
from firmware.abi.errno import EBUSY, ERANGE
from firmware.memory.frames import WRITABLE
from tests.memory.guest_model import SELF
from tests.memory.test_grant_rules import ACCESS, DEVICE, HOST, READONLY, Three
from tests.memory.test_mmu import Scene

PAGE = 20
REF = 9


@pytest.fixture
def scene() -> Three:
    scene = Three()
    scene.version_2(scene.neighbour)
    return scene


def to_version(scene: Three, version: int) -> int:
    return scene.neighbour.grant_op(
        gnt.GNTTABOP_set_version, gnt.gnttab_set_version, version=version
    )["result"]


def map_status(scene: Three, flags: int) -> int:
    """The granter maps its own status frame."""
    at = scene.other.va(PAGE)
    return scene.neighbour.update_va_mapping(at, scene.theirs.status_frames[0] << 12 | flags, 2)


@pytest.mark.parametrize("flags", [0x61, 0x63])
def test_not_while_a_status_frame_is_mapped(scene: Three, flags: int) -> None:
    frames = list(scene.theirs.status_frames)
    assert map_status(scene, flags) == 0
    assert to_version(scene, 1) == -EBUSY
    assert (scene.theirs.version, scene.theirs.status_frames) == (2, frames)
    assert scene.neighbour.update_va_mapping(scene.other.va(PAGE), 0, 2) == 0
    assert to_version(scene, 1) == 0
    assert scene.theirs.status_frames == []
    scene.holds()


def test_the_status_frame_is_the_domains_no_more(scene: Three) -> None:
    frame = scene.theirs.status_frames[0]
    free, pages = scene.world.heap.free, scene.other.memory.xen_pages
    assert to_version(scene, 1) == 0
    assert (scene.world.heap.free, scene.other.memory.xen_pages) == (free + 1, pages - 1)
    assert scene.neighbour.update_va_mapping(scene.other.va(PAGE), frame << 12 | 0x61, 2) < 0
    scene.holds()


def test_a_status_frame_given_up_while_it_is_mapped(scene: Three) -> None:
    frame = scene.theirs.status_frames[0]
    pages = scene.other.memory.xen_pages
    assert map_status(scene, 0x63) == 0
    assert scene.neighbour.reservation(1, [frame]) == 1
    assert to_version(scene, 1) == -EBUSY, "it is mapped, and the domain's again"
    assert scene.neighbour.update_va_mapping(scene.other.va(PAGE), 0, 2) == 0
    assert scene.world.frames.type_of(frame) == WRITABLE
    assert map_status(scene, 0x61) == 0
    assert scene.neighbour.update_va_mapping(scene.other.va(PAGE), 0, 2) == 0
    assert scene.neighbour.reservation(1, [frame]) == 1
    assert to_version(scene, 1) == 0
    assert scene.other.memory.xen_pages == pages - 1
    scene.holds()


@pytest.mark.parametrize("entry", [(gnt.GTF_transitive, 8), (ACCESS, 1 << 32)])
def test_not_with_reserved_entries_that_version_1_cannot_say(scene: Three, entry: tuple[int, int]) -> None:
    scene.theirs.store_entry(7, *entry)
    assert to_version(scene, 1) == -ERANGE
    scene.theirs.store_entry(7, ACCESS, (1 << 32) - 1)
    scene.theirs.store_entry(8, *entry)
    assert to_version(scene, 1) == 0
    assert [scene.theirs.words(ref) for ref in (7, 8)] == [(ACCESS, (1 << 32) - 1), (0, 0)]


def test_swapped_entries_take_their_marks_along(scene: Three) -> None:
    scene.theirs.store_entry(REF, ACCESS | 1 << 16, scene.mfn)
    scene.world.memory.write((scene.theirs.status_frames[0] << 12) + 2 * REF, b"\x18\x00")
    fields = {"ref_a": 8, "ref_b": REF}
    answer = scene.neighbour.grant_op(gnt.GNTTABOP_swap_grant_ref, gnt.gnttab_swap_grant_ref, **fields)
    assert answer["status"] == gnt.GNTST_okay
    assert [scene.theirs.status(ref) for ref in (8, REF)] == [0x18, 0]


class TestTransitive:
    """A copy by the scene's guest through a grant of the neighbour's."""

    def status(self, scene: Three, *, dest: bool = False) -> int:
        near = {"u": scene.frames[9], "domid": SELF, "offset": 0}
        far = {"u": REF, "domid": 2, "offset": 0}
        source, target = (near, far) if dest else (far, near)
        flags = gnt.GNTCOPY_dest_gref if dest else gnt.GNTCOPY_source_gref
        at = scene.guest.pass_bytes(gnt.gnttab_copy.w64.pack(source=source, dest=target, len=8, flags=flags))
        assert scene.world.call(scene.guest.vcpu, "grant_table_op", gnt.GNTTABOP_copy, at, 1) == 0
        return int(gnt.gnttab_copy.w64.unpack(scene.guest.vcpu.space.read(at, 40)).status)

    @pytest.mark.parametrize("flags", [0, gnt.GTF_sub_page])
    def test_through_one_of_the_callers_own(self, scene: Three, flags: int) -> None:
        scene.guest.grant(8, 2, scene.frames[5], ACCESS)
        scene.theirs.store_entry(REF, gnt.GTF_transitive | flags | 1 << 16 | 1 << 32, 8)
        assert self.status(scene) == gnt.GNTST_okay
        scene.holds()

    def test_never_through_the_granters_own(self, scene: Three) -> None:
        scene.theirs.store_entry(8, ACCESS | 2 << 16, scene.mfn)
        scene.theirs.store_entry(REF, gnt.GTF_transitive | 1 << 16 | 2 << 32, 8)
        assert self.status(scene) == self.status(scene, dest=True) == gnt.GNTST_general_error
        assert scene.theirs.active == {}
        scene.holds()

    def test_an_entry_that_becomes_one_while_it_is_mapped(self, scene: Three) -> None:
        scene.theirs.store_entry(REF, ACCESS | 1 << 16, scene.mfn)
        assert scene.map(REF)[0] == gnt.GNTST_okay
        scene.guest.grant(8, 2, scene.frames[5], ACCESS)
        scene.theirs.store_entry(REF, gnt.GTF_transitive | 1 << 16 | 1 << 32, 8)
        assert self.status(scene) == gnt.GNTST_eagain, "that is not what is in use"
        assert scene.world.grants.table(scene.domain.memory).active == {}
        scene.holds()


def test_the_same_bits_in_version_1_are_no_grant_of_a_grant() -> None:
    scene = Three()
    scene.neighbour.grant(REF, 1, scene.mfn, ACCESS)
    assert scene.map(REF, gnt.GNTMAP_host_map | gnt.GNTMAP_readonly)[0] == gnt.GNTST_okay
    scene.neighbour.grant(REF, 1, scene.other.frames[4], gnt.GTF_transitive)
    assert TestTransitive().status(scene, dest=True) == gnt.GNTST_general_error
    scene.neighbour.grant(REF, 1, scene.mfn, gnt.GTF_transitive)
    assert TestTransitive().status(scene, dest=True) == gnt.GNTST_okay, "it is the frame in use"


class TestWhoIsNamed:
    """Copies by frame: only one's own, and who names somebody else is told whether that is somebody."""

    @pytest.mark.parametrize(("domid", "status"), [
        (0, gnt.GNTST_permission_denied), (1, gnt.GNTST_permission_denied), (2, gnt.GNTST_permission_denied),
        (9, gnt.GNTST_bad_domain), (xen.DOMID_XEN, gnt.GNTST_bad_domain),
    ])
    def test_a_frame(self, domid: int, status: int) -> None:
        scene = Scene()
        near = {"u": scene.frames[9], "domid": SELF, "offset": 0}
        far = {"u": scene.frames[9], "domid": domid, "offset": 0}
        for source, dest in ((near, far), (far, near)):
            at = scene.guest.pass_bytes(gnt.gnttab_copy.w64.pack(source=source, dest=dest, len=8))
            assert scene.world.call(scene.guest.vcpu, "grant_table_op", gnt.GNTTABOP_copy, at, 1) == 0
            assert gnt.gnttab_copy.w64.unpack(scene.guest.vcpu.space.read(at, 40)).status == status


def test_a_dead_granters_table_goes_with_its_last_use() -> None:
    scene = Three()
    world = scene.world
    scene.neighbour.grant(REF, 1, scene.mfn, ACCESS | READONLY)
    handle = scene.map(REF, DEVICE | gnt.GNTMAP_readonly)[1]
    frames = list(scene.theirs.frames)
    world.grants.free_table(scene.other.memory)
    held = world.heap.xen
    assert scene.guest.unmap_grant(handle, 0, scene.mfn << 12) == gnt.GNTST_okay
    assert world.heap.xen == held - len(frames)
    assert all(world.frames.references(mfn) == 0 for mfn in frames)


def test_only_a_dead_granters_table_goes() -> None:
    scene = Three()
    scene.neighbour.grant(REF, 1, scene.mfn, ACCESS)
    handle = scene.map(REF, HOST)[1]
    assert scene.guest.unmap_grant(handle, scene.domain.va(20)) == gnt.GNTST_okay
    assert scene.world.grants.table(scene.other.memory) is scene.theirs
