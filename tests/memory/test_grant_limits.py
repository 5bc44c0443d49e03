"""What a domain's creator allows its grant table to be; cache_flush, which looks into others' tables."""

from __future__ import annotations

import pytest

from firmware.abi import grant_table as gnt
from firmware.abi.errno import EFAULT, EILSEQ, EINVAL, ENOSYS, EOPNOTSUPP, EPERM
from firmware.memory.grant_table import HANDLES_IN_FRAME, GrantTable
from firmware.memory.owner import GrantLimits, MemoryOwner
from tests.memory.guest_model import SELF, Guest
from tests.memory.test_mmu import Scene
from tests.memory.world import ARGUMENTS

HOST = gnt.GNTMAP_host_map
FLUSH = gnt.GNTTAB_CACHE_CLEAN


class Limited(Scene):
    """The first domain's table is its creator's choice."""

    def limit(self, **limits: int) -> GrantTable:
        self.domain.memory.grants = GrantLimits(**limits)
        grants = self.world.grants
        grants.free_table(self.domain.memory)
        return grants.table(self.domain.memory)


@pytest.fixture
def scene() -> Limited:
    return Limited()


def test_what_xen_gives_a_domain_by_itself() -> None:
    limits = MemoryOwner(1).grants
    assert (limits.frames, limits.maptrack_frames, limits.version) == (64, 1024, 2)


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("frames", 0, "max_grant_frames"),
        ("frames", 65, "max_grant_frames"),
        ("frames", -1, "max_grant_frames"),
        ("maptrack_frames", -1, "max_maptrack_frames"),
        ("maptrack_frames", 1025, "max_maptrack_frames"),
        ("version", 0, "max_grant_version"),
        ("version", 3, "max_grant_version"),
    ],
)
def test_what_xen_refuses(name: str, value: int, key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key} is \d+ to \d+, not {value}"):
        GrantLimits(**{name: value})


def test_a_table_grows_to_its_limit(scene: Limited) -> None:
    scene.limit(frames=3)

    def setup(frames: int) -> int:
        return scene.guest.grant_op(
            gnt.GNTTABOP_setup_table,
            gnt.gnttab_setup_table,
            dom=SELF,
            nr_frames=frames,
            frame_list=ARGUMENTS + 0x100,
        )["status"]

    assert setup(1) == gnt.GNTST_okay
    assert setup(4) == gnt.GNTST_general_error
    assert setup(3) == gnt.GNTST_okay
    size = scene.guest.grant_op(gnt.GNTTABOP_query_size, gnt.gnttab_query_size, dom=SELF)
    assert (size["nr_frames"], size["max_nr_frames"]) == (3, 3)


@pytest.mark.parametrize("frames", [0, 1])
def test_mappings_are_limited(scene: Limited, frames: int) -> None:
    scene.limit(maptrack_frames=frames)
    neighbour = Guest(scene.world, scene.other.all[0], scene.ledger)
    neighbour.grant(9, scene.domain.id, scene.other.frames[5], gnt.GTF_permit_access | gnt.GTF_readonly)
    flags = gnt.GNTMAP_device_map | gnt.GNTMAP_readonly
    table = scene.world.grants.table(scene.domain.memory)
    if frames:
        taken = [table.new_handle() for _ in range(HANDLES_IN_FRAME - 2)]
        assert None not in taken
        assert scene.guest.map_grant(scene.other.id, 9, flags, 0)[0] == gnt.GNTST_okay
    assert scene.guest.map_grant(scene.other.id, 9, flags, 0)[0] == gnt.GNTST_no_device_space


def test_a_version_may_be_forbidden(scene: Limited) -> None:
    scene.limit(version=1)

    def switch(version: int) -> int:
        answer = scene.guest.grant_op(gnt.GNTTABOP_set_version, gnt.gnttab_set_version, version=version)
        return answer["result"]

    assert [switch(version) for version in (1, 2, 3)] == [0, -ENOSYS, -EINVAL]
    scene.limit(version=2)
    assert switch(2) == 0


class TestCacheFlush:
    """Clean, invalidate or both a part of one's own frame or of one that is mapped by a grant."""

    def flush(self, scene: Scene, mfn: int, first: int = 0, **fields: int) -> int:
        request = {"a": mfn << 12, "offset": 0, "length": 64, "op": FLUSH} | fields
        command = gnt.GNTTABOP_cache_flush | first
        return scene.guest.grant_op(command, gnt.gnttab_cache_flush, **request)["result"]

    def test_ones_own(self, scene: Scene) -> None:
        own = scene.frames[5]
        assert self.flush(scene, own) == 0
        assert self.flush(scene, own, op=FLUSH | gnt.GNTTAB_CACHE_INVAL) == 0
        assert self.flush(scene, own, op=gnt.GNTTAB_CACHE_INVAL) == -EOPNOTSUPP
        assert self.flush(scene, own, op=gnt.GNTTAB_CACHE_SOURCE_GREF) == -EINVAL
        assert self.flush(scene, own, offset=4000, length=97) == -EINVAL
        assert self.flush(scene, own, offset=4096, length=0) == -EINVAL
        assert self.flush(scene, own, first=1 << 12) == 0

    def test_nothing_to_do(self, scene: Scene) -> None:
        nowhere = scene.world.frames.size
        assert self.flush(scene, nowhere, op=0) == 0
        assert self.flush(scene, nowhere, length=0) == 0
        assert self.flush(scene, nowhere) == -EINVAL
        assert self.flush(scene, nowhere, length=0, first=1 << 12) == -EILSEQ

    def test_nobodys(self, scene: Scene) -> None:
        assert self.flush(scene, 0x105) == -EPERM
        assert self.flush(scene, 5) == -EPERM
        assert self.flush(scene, scene.world.heap.runs()[-1][0]) == -EPERM

    def test_anothers(self, scene: Scene) -> None:
        neighbour = Guest(scene.world, scene.other.all[0], scene.ledger)
        mfn = scene.other.frames[5]
        assert self.flush(scene, mfn) == -EINVAL
        neighbour.grant(9, scene.domain.id, mfn, gnt.GTF_permit_access)
        assert self.flush(scene, mfn) == -EINVAL
        status, handle = scene.guest.map_grant(scene.other.id, 9, HOST, scene.domain.va(20))
        assert status == gnt.GNTST_okay
        assert self.flush(scene, mfn) == 0
        assert self.flush(scene, mfn, op=gnt.GNTTAB_CACHE_INVAL) == -EOPNOTSUPP
        assert self.flush(scene, mfn, first=1 << 12) == -EINVAL
        assert self.flush(scene, scene.other.frames[6]) == -EINVAL
        assert scene.guest.unmap_grant(handle, scene.domain.va(20)) == gnt.GNTST_okay
        assert self.flush(scene, mfn) == -EINVAL

    def test_what_a_third_has_mapped(self, scene: Scene) -> None:
        neighbour = Guest(scene.world, scene.other.all[0], scene.ledger)
        third = scene.world.domain(3, 40)
        mfn = scene.other.frames[5]
        neighbour.grant(9, third.id, mfn, gnt.GTF_permit_access)
        stranger = Guest(scene.world, third.all[0], scene.ledger)
        assert stranger.map_grant(scene.other.id, 9, HOST, third.va(20))[0] == gnt.GNTST_okay
        assert self.flush(scene, mfn) == -EINVAL

    def test_bad_arguments(self, scene: Scene) -> None:
        call, vcpu = scene.world.call, scene.guest.vcpu
        bad = 0xFFFF_8300_0000_0000
        assert call(vcpu, "grant_table_op", gnt.GNTTABOP_cache_flush, bad, 1) == -EFAULT
        assert call(vcpu, "grant_table_op", gnt.GNTTABOP_cache_flush, bad, 0) == -EFAULT
        assert call(vcpu, "grant_table_op", gnt.GNTTABOP_cache_flush, ARGUMENTS, 0) == 0
        assert call(vcpu, "grant_table_op", gnt.GNTTABOP_query_size | 1 << 12, ARGUMENTS, 1) == -EINVAL
