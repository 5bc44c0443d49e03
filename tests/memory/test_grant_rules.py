"""Rules of grants that the plain cases do not reach: a third domain, parts of pages, ends of tables."""

from __future__ import annotations

import pytest

from firmware.abi import grant_table as gnt
from firmware.abi import xen
from firmware.abi.errno import EBUSY, EFAULT, EINVAL, EPERM
from firmware.memory.frames import FOREIGN
from firmware.memory.grant_table import PIN_LIMIT, GrantTable
from tests.memory.guest_model import SELF, Guest
from tests.memory.test_mmu import Scene
from tests.memory.world import ARGUMENTS

ACCESS, READONLY = gnt.GTF_permit_access, gnt.GTF_readonly
HOST, DEVICE, MAP_READONLY = gnt.GNTMAP_host_map, gnt.GNTMAP_device_map, gnt.GNTMAP_readonly
XEN_ADDRESS = 0xFFFF_8000_0000_0000
V1_END = 512


class Three(Scene):
    """The scene, the other domain's guest, and a third domain with one."""

    def __init__(self) -> None:
        super().__init__()
        third = self.world.domain(3, 40)
        self.ledger.pins[third.root] = 4
        self.neighbour = Guest(self.world, self.other.all[0], self.ledger)
        self.third = Guest(self.world, third.all[0], self.ledger)
        for vcpu in (*self.domain.all, self.other.all[0], third.all[0]):
            self.world.shootdown.enter(vcpu.core, vcpu.domain.memory)
        self.theirs: GrantTable = self.world.grants.table(self.other.memory)
        self.mfn = self.other.frames[3]

    def map(
        self, ref: int = 8, flags: int = HOST, pfn: int = 20, who: Guest | None = None
    ) -> tuple[int, int]:
        guest = who or self.guest
        return guest.map_grant(2, ref, flags, guest.vcpu.domain.va(pfn))

    def version_2(self, guest: Guest) -> None:
        answer = guest.grant_op(gnt.GNTTABOP_set_version, gnt.gnttab_set_version, version=2)
        assert answer["version"] == 2


@pytest.fixture
def scene() -> Three:
    return Three()


class TestMapping:
    def test_only_for_whom_it_is(self, scene: Three) -> None:
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS)
        assert scene.map(who=scene.third)[0] == gnt.GNTST_general_error
        assert scene.map()[0] == gnt.GNTST_okay
        assert scene.map(who=scene.third)[0] == gnt.GNTST_general_error
        scene.theirs.store_entry(8, ACCESS | 3 << 16, scene.mfn)
        assert scene.map(who=scene.third)[0] == gnt.GNTST_general_error, "while another uses it"
        scene.holds()

    @pytest.mark.parametrize("flags", [gnt.GTF_invalid, gnt.GTF_accept_transfer, gnt.GTF_type_mask])
    def test_only_what_is_permitted(self, scene: Three, flags: int) -> None:
        scene.neighbour.grant(8, 1, scene.mfn, flags)
        assert scene.map()[0] == gnt.GNTST_general_error
        assert scene.theirs.status(8) == 0

    @pytest.mark.parametrize("ref", [V1_END, V1_END + 1, 0xFFFF_FFFF])
    def test_a_tables_end(self, scene: Three, ref: int) -> None:
        assert scene.map(ref)[0] == gnt.GNTST_bad_gntref

    def test_a_frame_that_is_not_the_granters(self, scene: Three) -> None:
        for mfn in (scene.frames[3], scene.third.vcpu.domain.frames[3], 0x105, 5, 2304, 0xFFFF_FFFF):
            scene.neighbour.grant(8, 1, mfn, ACCESS)
            assert scene.map()[0] == gnt.GNTST_bad_page
            assert scene.theirs.status(8) == 0
            assert scene.theirs.active == {}
        scene.holds()

    def test_a_table_is_not_mapped_writable(self, scene: Three) -> None:
        references = scene.world.frames.references(scene.other.root)
        scene.neighbour.grant(8, 1, scene.other.root, ACCESS)
        assert scene.map()[0] == gnt.GNTST_general_error
        assert scene.map(flags=HOST | DEVICE)[0] == gnt.GNTST_general_error
        assert scene.world.frames.references(scene.other.root) == references
        assert (scene.theirs.status(8), scene.theirs.active) == (0, {})
        assert scene.map(flags=HOST | MAP_READONLY)[0] == gnt.GNTST_okay
        scene.holds()

    def test_read_only_first_and_writable_then(self, scene: Three) -> None:
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS | READONLY)
        assert scene.map(flags=HOST | MAP_READONLY)[0] == gnt.GNTST_okay
        assert scene.map(pfn=21)[0] == gnt.GNTST_general_error
        assert scene.theirs.status(8) == gnt.GTF_reading
        scene.holds()

    def test_marks_go_with_the_last_use_of_a_kind(self, scene: Three) -> None:
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS)
        va = scene.domain.va
        reader, writers = scene.map(flags=HOST | MAP_READONLY)[1], [scene.map(pfn=pfn)[1] for pfn in (21, 22)]
        both = gnt.GTF_reading | gnt.GTF_writing
        assert scene.theirs.status(8) == both
        assert scene.guest.unmap_grant(writers[0], va(21)) == gnt.GNTST_okay
        assert scene.theirs.status(8) == both, "one still writes"
        assert scene.guest.unmap_grant(writers[1], va(22)) == gnt.GNTST_okay
        assert scene.theirs.status(8) == gnt.GTF_reading
        assert scene.guest.unmap_grant(reader, va(20)) == gnt.GNTST_okay
        assert (scene.theirs.status(8), scene.theirs.active) == (0, {})
        scene.holds()

    def test_uses_do_not_overflow(self, scene: Three) -> None:
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS)
        assert scene.map()[0] == gnt.GNTST_okay
        scene.theirs.active[8].host_write = PIN_LIMIT + 1
        assert scene.map(pfn=21)[0] == gnt.GNTST_general_error

    def test_parts_of_pages_are_not_mapped(self, scene: Three) -> None:
        scene.version_2(scene.neighbour)
        entry = ACCESS | gnt.GTF_sub_page | 1 << 16 | 64 << 32 | 16 << 48
        scene.theirs.store_entry(8, entry, scene.mfn)
        assert scene.map()[0] == gnt.GNTST_general_error
        scene.theirs.store_entry(8, ACCESS | 1 << 16, scene.mfn)
        assert scene.map()[0] == gnt.GNTST_okay
        scene.theirs.active[8].sub_page = True
        assert scene.map(pfn=21)[0] == gnt.GNTST_general_error

    def test_where_a_mapping_goes(self, scene: Three) -> None:
        """Only into an L1 entry of one's own."""
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS)
        flags = HOST | gnt.GNTMAP_contains_pte
        for at in (2304 << 12, 0xFFFF_FFFF_F000, 0, scene.frames[9] << 12, scene.l1 << 12 | 4, 0x105 << 12):
            assert scene.guest.map_grant(2, 8, flags, at)[0] == gnt.GNTST_general_error
        for va in (0x4000_0000, XEN_ADDRESS, 1 << 47):
            assert scene.guest.map_grant(2, 8, HOST, va)[0] == gnt.GNTST_general_error
        assert scene.world.grants.table(scene.other.memory).active == {}
        scene.holds()

    def test_what_was_mapped_there_is_let_go(self, scene: Three) -> None:
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS)
        before = scene.world.frames.references(scene.frames[20])
        assert scene.map()[0] == gnt.GNTST_okay
        assert scene.world.frames.references(scene.frames[20]) == before - 1
        scene.holds()


class TestUnmapping:
    @pytest.fixture
    def mapped(self, scene: Three) -> int:
        """A handle; the grant is at frame 20's place."""
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS)
        status, handle = scene.map()
        assert status == gnt.GNTST_okay
        return handle

    def test_handles(self, scene: Three, mapped: int) -> None:
        va = scene.domain.va(20)
        mappings = len(scene.world.grants.table(scene.domain.memory).mappings)
        for handle in (mapped + 1, mapped + mappings, 0xFFFF_FFFF):
            assert scene.guest.unmap_grant(handle, va) == gnt.GNTST_bad_handle
        assert scene.neighbour.unmap_grant(mapped, va) == gnt.GNTST_bad_handle
        assert scene.guest.unmap_grant(mapped, va) == gnt.GNTST_okay
        assert scene.guest.unmap_grant(mapped, va) == gnt.GNTST_bad_handle
        scene.holds()

    def test_a_handle_ends_with_its_mapping(self, scene: Three, mapped: int) -> None:
        """Also while another mapping of the same grant goes on."""
        assert scene.map(pfn=21)[0] == gnt.GNTST_okay
        assert scene.guest.unmap_grant(mapped, scene.domain.va(20)) == gnt.GNTST_okay
        assert scene.guest.unmap_grant(mapped, scene.domain.va(20)) == gnt.GNTST_bad_handle
        assert scene.guest.unmap_grant(mapped, 0) == gnt.GNTST_bad_handle
        scene.holds()

    def test_the_entry_must_be_the_mappings(self, scene: Three, mapped: int) -> None:
        old = scene.entry(20)
        assert scene.guest.unmap_grant(mapped, scene.domain.va(21)) == gnt.GNTST_general_error
        for wrong in (old & ~2, old & ~1, old ^ 1 << 12):
            scene.world.memory.store64(scene.at(scene.l1, 20), wrong)
            assert scene.guest.unmap_grant(mapped, scene.domain.va(20)) == gnt.GNTST_general_error
            assert scene.entry(20) == wrong
        for va in (0x4000_0000, XEN_ADDRESS):
            assert scene.guest.unmap_grant(mapped, va) == gnt.GNTST_general_error
        scene.world.memory.store64(scene.at(scene.l1, 20), old)
        scene.holds()
        assert scene.guest.unmap_grant(mapped, scene.domain.va(20)) == gnt.GNTST_okay
        assert scene.entry(20) == 0

    def test_each_kind_once(self, scene: Three) -> None:
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS)
        handle = scene.map(flags=HOST | DEVICE)[1]
        bus, frames = scene.mfn << 12, scene.world.frames
        assert scene.guest.unmap_grant(handle, 0, bus + 1) == gnt.GNTST_bad_dev_addr
        assert scene.guest.unmap_grant(handle, 0, bus) == gnt.GNTST_okay
        held = frames.references(scene.mfn)
        assert scene.guest.unmap_grant(handle, 0, bus) == gnt.GNTST_okay, "there is nothing left to do"
        assert frames.references(scene.mfn) == held
        assert scene.guest.unmap_grant(handle, scene.domain.va(20)) == gnt.GNTST_okay
        assert frames.references(scene.mfn) == held - 1
        assert scene.theirs.active == {}
        scene.holds()

    def replace(self, scene: Three, handle: int, address: int, new: int) -> int:
        fields = {"host_addr": address, "new_addr": new, "handle": handle}
        op = gnt.GNTTABOP_unmap_and_replace
        return scene.guest.grant_op(op, gnt.gnttab_unmap_and_replace, **fields)["status"]

    def test_replacing_needs_a_replacement(self, scene: Three, mapped: int) -> None:
        va = scene.domain.va
        for new in (0x4000_0000, XEN_ADDRESS):
            assert self.replace(scene, mapped, va(20), new) == gnt.GNTST_general_error
        assert scene.entry(20) & 1
        assert self.replace(scene, mapped, va(20), va(21)) == gnt.GNTST_okay
        assert scene.entry(21) == 0
        scene.holds()

    def test_a_replacement_is_lost_when_the_mapping_is_not_there(self, scene: Three, mapped: int) -> None:
        """Its reference goes with it."""
        va = scene.domain.va
        references = scene.world.frames.references(scene.frames[21])
        assert self.replace(scene, mapped, va(22), va(21)) == gnt.GNTST_general_error
        assert scene.entry(21) == 0
        assert scene.world.frames.references(scene.frames[21]) == references - 1
        scene.holds()

    def test_replacing_by_a_ptes_address(self, scene: Three) -> None:
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS)
        at = scene.at(scene.l1, 20)
        status, handle = scene.guest.map_grant(2, 8, HOST | gnt.GNTMAP_contains_pte, at)
        assert status == gnt.GNTST_okay
        assert self.replace(scene, handle, at, scene.domain.va(21)) == gnt.GNTST_general_error
        assert scene.guest.unmap_grant(handle, at) == gnt.GNTST_okay

    def test_death_ends_device_mappings(self, scene: Three) -> None:
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS)
        scene.neighbour.grant(9, 1, scene.mfn, ACCESS)
        before = scene.world.frames.references(scene.mfn)
        assert scene.map(8, DEVICE)[0] == scene.map(9, HOST | DEVICE)[0] == gnt.GNTST_okay
        scene.world.destroy(scene.domain)
        assert scene.world.frames.references(scene.mfn) == before
        assert [scene.theirs.status(ref) for ref in (8, 9)] == [0, 0]
        assert scene.theirs.active == {}


class TestTransfer:
    def send(self, scene: Three, ref: int = 8, mfn: int | None = None, domid: int = 2) -> int:
        fields = {"mfn": scene.frames[9] if mfn is None else mfn, "domid": domid, "ref": ref}
        return scene.guest.grant_op(gnt.GNTTABOP_transfer, gnt.gnttab_transfer, **fields)["status"]

    @pytest.fixture
    def scene(self) -> Three:
        """Frame 9 is mapped nowhere, the receiver has asked for it and has room."""
        scene = Three()
        assert scene.guest.update_va_mapping(scene.domain.va(9), 0, 0) == 0
        scene.neighbour.grant(8, 1, 0x77, gnt.GTF_accept_transfer)
        scene.other.memory.maximum += 1
        return scene

    def test_the_frame_must_be_given_up(self, scene: Three) -> None:
        for mfn in (scene.frames[10], scene.other.frames[3], scene.l1, 2304, 1 << 40):
            assert self.send(scene, mfn=mfn) == gnt.GNTST_bad_page
        scene.holds()
        assert self.send(scene) == gnt.GNTST_okay
        scene.holds()

    @pytest.mark.parametrize("ref", [9, V1_END, 0xFFFF_FFFF])
    def test_only_where_it_is_asked_for(self, scene: Three, ref: int) -> None:
        assert self.send(scene, ref) == gnt.GNTST_general_error
        assert scene.world.frames.owner_of(scene.frames[9]) is None
        scene.holds()

    @pytest.mark.parametrize(
        "entry",
        [
            gnt.GTF_accept_transfer | 3 << 16,
            ACCESS | 1 << 16,
            gnt.GTF_accept_transfer | gnt.GTF_transfer_committed | 1 << 16,
        ],
    )
    def test_only_from_whom_it_is_asked(self, scene: Three, entry: int) -> None:
        scene.theirs.store_entry(8, entry, 0x77)
        assert self.send(scene) == gnt.GNTST_general_error
        assert scene.theirs.words(8) == (entry, 0x77)

    def test_the_receivers_allowance_and_life(self, scene: Three) -> None:
        scene.other.memory.maximum -= 1
        assert self.send(scene) == gnt.GNTST_general_error
        scene.holds()
        assert scene.guest.update_va_mapping(scene.domain.va(10), 0, 0) == 0
        scene.other.memory.maximum += 1
        scene.other.memory.dying = True
        assert self.send(scene, mfn=scene.frames[10]) == gnt.GNTST_general_error
        assert scene.other.memory.pages == 40


class TestCopy:
    def copy(
        self, scene: Three, source: dict[str, int], dest: dict[str, int], length: int = 8, flags: int = 0
    ) -> int:
        fields = {"len": length, "flags": flags, "source": source, "dest": dest}
        return scene.guest.grant_op(gnt.GNTTABOP_copy, gnt.gnttab_copy, **fields)["status"]

    def near(self, scene: Three, offset: int = 0, pfn: int = 9) -> dict[str, int]:
        return {"u": scene.frames[pfn], "domid": SELF, "offset": offset}

    @pytest.mark.parametrize(
        ("source", "dest", "length", "status"),
        [
            (4088, 0, 8, gnt.GNTST_okay),
            (0, 4088, 8, gnt.GNTST_okay),
            (0, 0, 4096, gnt.GNTST_okay),
            (4089, 0, 8, gnt.GNTST_bad_copy_arg),
            (0, 4089, 8, gnt.GNTST_bad_copy_arg),
            (0, 1, 4096, gnt.GNTST_bad_copy_arg),
            (1, 0, 4096, gnt.GNTST_bad_copy_arg),
            (0xFFFF, 0, 8, gnt.GNTST_bad_copy_arg),
            (0, 0xFFFF, 8, gnt.GNTST_bad_copy_arg),
        ],
    )
    def test_bounds(self, scene: Three, source: int, dest: int, length: int, status: int) -> None:
        after = scene.frames[11]
        scene.world.memory.fill(scene.frames[9] << 12, 4096, 0x11)
        assert self.copy(scene, self.near(scene, source), self.near(scene, dest, 10), length) == status
        assert scene.world.memory.read(after << 12, 64) == bytes(64)
        scene.holds()

    def test_frames_of_others_only_by_a_grant(self, scene: Three) -> None:
        theirs = {"u": scene.mfn, "domid": 2, "offset": 0}
        mine = {"u": scene.mfn, "domid": SELF, "offset": 0}
        assert self.copy(scene, theirs, self.near(scene)) == gnt.GNTST_permission_denied
        assert self.copy(scene, self.near(scene), theirs) == gnt.GNTST_permission_denied
        assert self.copy(scene, mine, self.near(scene)) == gnt.GNTST_bad_page
        assert self.copy(scene, self.near(scene), mine) == gnt.GNTST_bad_page
        assert self.copy(scene, self.near(scene), {**mine, "u": scene.l1}) == gnt.GNTST_general_error
        assert self.copy(scene, {**mine, "u": 1 << 40}, self.near(scene)) == gnt.GNTST_bad_page
        scene.holds()

    def test_grants(self, scene: Three) -> None:
        far = {"u": 8, "domid": 2, "offset": 0}
        by_source, by_dest = gnt.GNTCOPY_source_gref, gnt.GNTCOPY_dest_gref

        def both(grant: int, mfn: int) -> tuple[int, int]:
            scene.theirs.store_entry(8, grant, mfn)
            return (
                self.copy(scene, far, self.near(scene), flags=by_source),
                self.copy(scene, self.near(scene), far, flags=by_dest),
            )

        okay, error, bad = gnt.GNTST_okay, gnt.GNTST_general_error, gnt.GNTST_bad_page
        assert both(ACCESS | 1 << 16, scene.mfn) == (okay, okay)
        assert both(ACCESS | READONLY | 1 << 16, scene.mfn) == (okay, error)
        assert both(ACCESS | 3 << 16, scene.mfn) == (error, error)
        assert both(1 << 16, scene.mfn) == (error, error)
        assert both(ACCESS | 1 << 16, scene.frames[3]) == (bad, bad)
        assert both(ACCESS | 1 << 16, 2304) == (bad, bad)
        assert both(ACCESS | 1 << 16, scene.other.root) == (okay, error)
        assert scene.theirs.status(8) == 0
        assert scene.theirs.active == {}
        assert (
            self.copy(scene, {**far, "u": V1_END}, self.near(scene), flags=by_source) == gnt.GNTST_bad_gntref
        )
        scene.holds()

    def test_while_it_is_mapped(self, scene: Three) -> None:
        far = {"u": 8, "domid": 2, "offset": 0}
        scene.neighbour.grant(8, 3, scene.mfn, ACCESS | READONLY)
        assert scene.map(flags=HOST | MAP_READONLY, who=scene.third)[0] == gnt.GNTST_okay
        scene.theirs.store_flags(8, ACCESS | READONLY | gnt.GTF_reading)
        assert (
            self.copy(scene, far, self.near(scene), flags=gnt.GNTCOPY_source_gref) == gnt.GNTST_general_error
        )
        fields = {"len": 8, "flags": gnt.GNTCOPY_dest_gref, "dest": far}
        source = {"u": scene.third.vcpu.domain.frames[9], "domid": SELF, "offset": 0}
        op = scene.third.grant_op
        answer = op(gnt.GNTTABOP_copy, gnt.gnttab_copy, source=source, **fields)
        assert answer["status"] == gnt.GNTST_general_error, "read-only"
        scene.holds()

    def test_parts_of_pages(self, scene: Three) -> None:
        scene.version_2(scene.neighbour)
        scene.theirs.store_entry(8, ACCESS | gnt.GTF_sub_page | 1 << 16 | 64 << 32 | 16 << 48, scene.mfn)

        def status(offset: int, length: int) -> int:
            far = {"u": 8, "domid": 2, "offset": offset}
            return self.copy(scene, far, self.near(scene), length, gnt.GNTCOPY_source_gref)

        assert [status(*part) for part in ((64, 16), (64, 8), (79, 1), (80, 0))] == [gnt.GNTST_okay] * 4
        for part in ((63, 1), (63, 17), (64, 17), (79, 2), (80, 1), (0, 4096)):
            assert status(*part) == gnt.GNTST_general_error
        scene.holds()

    def test_one_step_through_another_domain(self, scene: Three) -> None:
        """A transitive grant names another domain's grant, and that one must name memory."""
        for guest in (scene.neighbour, scene.third):
            scene.version_2(guest)
        last = scene.world.grants.table(scene.third.vcpu.domain.memory)
        mfn = scene.third.vcpu.domain.frames[5]
        scene.world.memory.fill(mfn << 12, 4096, 0x33)
        scene.theirs.store_entry(8, gnt.GTF_transitive | 1 << 16 | 3 << 32, 9)
        far = {"u": 8, "domid": 2, "offset": 0}

        def status() -> int:
            return self.copy(scene, far, self.near(scene), flags=gnt.GNTCOPY_source_gref)

        last.store_entry(9, ACCESS | 2 << 16, mfn)
        assert status() == gnt.GNTST_okay
        assert scene.world.memory.read(scene.frames[9] << 12, 8) == b"\x33" * 8
        last.store_entry(9, ACCESS | 1 << 16, mfn)
        assert status() == gnt.GNTST_general_error, "it is granted to the second, not to the first"
        last.store_entry(9, gnt.GTF_transitive | 2 << 16 | 2 << 32, 10)
        scene.theirs.store_entry(10, ACCESS | 3 << 16, scene.mfn)
        assert status() == gnt.GNTST_general_error, "two steps"
        assert last.active == scene.theirs.active == {}
        scene.holds()


class TestTables:
    def test_lists_and_sizes(self, scene: Three) -> None:
        op = scene.guest.grant_op
        setup, status = gnt.GNTTABOP_setup_table, gnt.GNTTABOP_get_status_frames
        for command, layout in ((setup, gnt.gnttab_setup_table), (status, gnt.gnttab_get_status_frames)):
            answer = op(command, layout, dom=SELF, nr_frames=65, frame_list=XEN_ADDRESS)
            assert answer["result"] == -EFAULT
            for domid, expected in ((2, gnt.GNTST_permission_denied), (9, gnt.GNTST_bad_domain)):
                answer = op(command, layout, dom=domid, nr_frames=0, frame_list=ARGUMENTS + 0x100)
                assert answer["status"] == expected
            answer = op(command, layout, dom=SELF, nr_frames=65, frame_list=ARGUMENTS + 0x100)
            assert answer["status"] == gnt.GNTST_general_error
        assert len(scene.world.grants.table(scene.domain.memory).frames) == 1
        too_many = op(
            status, gnt.gnttab_get_status_frames, dom=SELF, nr_frames=1, frame_list=ARGUMENTS + 0x100
        )
        assert too_many["status"] == gnt.GNTST_general_error, "version 1 has none"
        for count in (0, 2):
            assert scene.world.call(scene.guest.vcpu, "grant_table_op", setup, ARGUMENTS, count) == -EINVAL
        assert scene.world.call(scene.guest.vcpu, "grant_table_op", 0, ARGUMENTS, 1 << 31) == -EINVAL

    def test_a_change_of_version(self, scene: Three) -> None:
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS)
        handle = scene.map()[1]
        op = scene.neighbour.grant_op
        assert op(gnt.GNTTABOP_set_version, gnt.gnttab_set_version, version=2)["result"] == -EBUSY
        assert scene.guest.unmap_grant(handle, scene.domain.va(20)) == gnt.GNTST_okay
        scene.neighbour.grant(16, 1, scene.mfn, ACCESS)
        scene.version_2(scene.neighbour)
        assert [scene.theirs.words(ref) for ref in (8, 16)] == [(0, 0)] * 2, "others are not carried over"
        assert op(gnt.GNTTABOP_get_version, gnt.gnttab_get_version, dom=1)["result"] == -EPERM

    def test_swapping(self, scene: Three) -> None:
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS)

        def swap(first: int, second: int) -> int:
            fields = {"ref_a": first, "ref_b": second}
            op = gnt.GNTTABOP_swap_grant_ref
            return scene.neighbour.grant_op(op, gnt.gnttab_swap_grant_ref, **fields)["status"]

        assert swap(8, 9) == gnt.GNTST_okay
        assert [scene.theirs.words(ref)[1] for ref in (8, 9)] == [0, scene.mfn]
        assert swap(8, V1_END) == swap(V1_END, 8) == gnt.GNTST_bad_gntref
        assert scene.map(9)[0] == gnt.GNTST_okay
        assert swap(8, 9) == swap(9, 8) == gnt.GNTST_eagain

    def test_cache_flush(self, scene: Three) -> None:
        def flush(mfn: int, offset: int = 0, length: int = 64) -> int:
            fields = {"a": mfn << 12, "offset": offset, "length": length, "op": gnt.GNTTAB_CACHE_CLEAN}
            return scene.guest.grant_op(gnt.GNTTABOP_cache_flush, gnt.gnttab_cache_flush, **fields)["result"]

        assert flush(scene.frames[9]) == 0
        assert flush(scene.mfn) == -EINVAL
        assert flush(1 << 40) == -EINVAL
        assert flush(scene.frames[9], 4096) == flush(scene.frames[9], 4095, 2) == -EINVAL


class TestForeignWriters:
    """A frame another domain could write: its entry may be gone without a flush of that domain's CPUs."""

    def test_every_cpu_is_flushed_before_its_next_type(self, scene: Three) -> None:
        neighbour, frames = scene.neighbour, scene.world.frames
        neighbour.grant(8, 1, scene.mfn, ACCESS)
        handle = scene.map()[1]
        at = scene.at(scene.other.tables[-1], 3)
        assert neighbour.mmu_update((at, scene.mfn << 12 | 0x61)) == 0
        assert scene.guest.unmap_grant(handle, scene.domain.va(20)) == gnt.GNTST_okay
        mfn, cores = scene.mfn, scene.world.cores
        before = [core.releases(mfn) for core in cores]
        assert neighbour.extended(xen.MMUEXT_PIN_L1_TABLE, mfn) == 0
        assert all(core.releases(mfn) > was for core, was in zip(cores, before, strict=True))
        assert not frames.types[scene.mfn] & FOREIGN

    def test_a_writable_mapping_is_remembered(self, scene: Three) -> None:
        scene.neighbour.grant(8, 1, scene.mfn, ACCESS)
        handle = scene.map(flags=HOST | MAP_READONLY)[1]
        assert not scene.world.frames.types[scene.mfn] & FOREIGN
        assert scene.guest.unmap_grant(handle, scene.domain.va(20)) == gnt.GNTST_okay
        assert scene.map()[0] == gnt.GNTST_okay
        assert scene.world.frames.types[scene.mfn] & FOREIGN
