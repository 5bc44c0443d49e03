"""Rules of the page-table calls and of page types that the plain cases do not reach, one at a time."""

from __future__ import annotations

import pytest

from firmware.abi import memory as mem
from firmware.abi import xen
from firmware.abi.errno import EBUSY, EINVAL, EPERM
from firmware.hypercalls import GuestFault, HypercallError
from firmware.memory.frames import COUNT_LIMIT, L4_TABLE, PARTIAL, VALIDATED, WRITABLE
from firmware.memory.owner import DOMID_IO
from firmware.memory.perdomain import GDT_PAGES
from firmware.memory.requests import page_owner
from tests.memory.guest_model import Guest
from tests.memory.test_mmu import Scene
from tests.memory.test_unfinished import Towers

XEN_ADDRESS = 0xFFFF_8000_0000_0000
BAD_DESCRIPTOR = 0x0000_8900_0000_0067
RING0_CODE = 0x00AF_9B00_0000_FFFF
NO_EXECUTE = 1 << 63
MANY = 100
"""Entries enough for the bulk way."""


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def narrow() -> Scene:
    return Scene(pv32=True)


def fill(scene: Scene, table: int, entries: int, last: int) -> None:
    """An L1 table in the making: ordinary entries, then this one."""
    for slot in range(entries):
        scene.world.memory.store64(scene.at(table, slot), scene.frames[slot % 28] << 12 | 0x67)
    scene.world.memory.store64(scene.at(table, entries), last)


class TestTables:
    @pytest.mark.parametrize("entries", [3, MANY])
    @pytest.mark.parametrize(
        ("entry", "result"),
        [
            pytest.param(lambda s: s.frames[9] << 12 | 0x6F, -EINVAL, id="PWT"),
            pytest.param(lambda s: 5 << 12 | 0x61, -EPERM, id="device memory"),
            pytest.param(lambda s: 0x90_0000 << 12 | 0x61, -EPERM, id="beyond memory"),
            pytest.param(lambda s: s.l1 << 12 | 0x63, -EBUSY, id="a table, writable"),
            pytest.param(lambda s: s.frames[30] << 12 | 0x63, -EBUSY, id="itself, writable"),
            pytest.param(lambda s: s.other.frames[3] << 12 | 0x63, -EBUSY, id="another's"),
        ],
    )
    def test_a_whole_l1(self, scene: Scene, entries: int, entry: object, result: int) -> None:
        table = scene.table(30)
        fill(scene, table, entries, entry(scene))  # type: ignore[operator]
        assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == result
        scene.holds()

    def test_presence_is_counted(self, scene: Scene) -> None:
        mfn = scene.frames[20]
        references = scene.world.frames.references(mfn)
        value = mfn << 12 | 0x61
        assert scene.guest.mmu_update((scene.at(scene.l1, 20), value)) == 0
        kept = scene.entry(20)
        assert scene.guest.mmu_update((scene.at(scene.l1, 20), kept & ~1)) == 0
        assert scene.world.frames.references(mfn) == references - 1
        assert scene.guest.mmu_update((scene.at(scene.l1, 20), kept)) == 0
        assert scene.world.frames.references(mfn) == references
        scene.holds()

    def test_device_memory_only_in_l1_tables(self, scene: Scene) -> None:
        update, l2 = scene.guest.mmu_update, scene.l2
        assert update((scene.at(l2, 3), scene.l1 << 12 | 0x67), foreign=DOMID_IO) == -EINVAL
        assert update((scene.at(l2, 3), 0), foreign=DOMID_IO) == -EINVAL
        assert update((scene.frames[9] << 12 | 1, 7), foreign=DOMID_IO) == -EINVAL

    def test_a_descriptor_table_is_not_written_plainly(self, scene: Scene) -> None:
        table = scene.table(30)
        assert scene.guest.set_gdt([table], 512) == 0
        assert scene.guest.mmu_update((scene.at(table, 1), BAD_DESCRIPTOR)) == -EINVAL
        assert scene.world.entry(table, 1) == 0

    def test_xens_memory_is_nobodys(self, scene: Scene) -> None:
        assert page_owner(scene.world, scene.domain, 0x7FF2) == (None, -EPERM)
        with pytest.raises(HypercallError):
            page_owner(scene.world, scene.domain, scene.domain.id)

    def test_update_va_mapping_wants_an_l1_of_ones_own(self, scene: Scene) -> None:
        """Read-only views of other tables lead to entries that are not the guest's to change."""
        guest, types = scene.guest, scene.world.types
        guest.vcpu.space.read(scene.domain.va(20), 1)
        word = types.types[scene.l1]
        for other in (word & ~7 | 2, word & ~8):
            types.types[scene.l1] = other
            assert guest.update_va_mapping(scene.domain.va(20), 0, 0) == -EINVAL
        types.types[scene.l1] = word
        scene.world.frames.owners[scene.l1] = scene.other.memory.tag
        assert guest.update_va_mapping(scene.domain.va(20), 0, 0) == -EINVAL

    @pytest.mark.parametrize("bit", [3, 4, 7, 8])
    @pytest.mark.parametrize("level", [2, 3, 4])
    def test_flags_above_l1(self, scene: Scene, level: int, bit: int) -> None:
        table = scene.domain.tables[4 - level]
        below = scene.domain.tables[5 - level]
        assert scene.guest.mmu_update((scene.at(table, 9), below << 12 | 0x67 | 1 << bit)) == -EINVAL
        new = scene.table(30)
        scene.world.memory.store64(scene.at(new, 9), below << 12 | 0x67 | 1 << bit)
        command = (xen.MMUEXT_PIN_L2_TABLE, xen.MMUEXT_PIN_L3_TABLE, xen.MMUEXT_PIN_L4_TABLE)[level - 2]
        assert scene.guest.extended(command, new) == -EINVAL
        scene.holds()

    def test_what_a_linear_entry_may_name(self, scene: Scene) -> None:
        page, l3 = scene.frames[9], scene.domain.tables[1]
        for target in (page, l3, scene.domain.root, scene.other.tables[2]):
            assert scene.guest.mmu_update((scene.at(scene.l2, 7), target << 12 | 0x61)) == -EINVAL
        scene.holds()

    def test_a_linear_entry_keeps_what_it_names(self, scene: Scene) -> None:
        second = scene.table(30)
        guest = scene.guest
        assert guest.extended(xen.MMUEXT_PIN_L2_TABLE, second) == 0
        assert guest.mmu_update((scene.at(scene.l2, 7), second << 12 | 0x61)) == 0
        assert guest.extended(xen.MMUEXT_UNPIN_TABLE, second) == 0
        assert scene.world.frames.type_count(second) == 1
        assert guest.mmu_update((scene.at(scene.l2, 7), 0)) == 0
        assert scene.world.frames.linear == {}
        assert guest.mmu_update((scene.at(scene.l1, 30), second << 12 | 0x63)) == 0
        scene.holds()

    def test_strict_roots(self, scene: Scene) -> None:
        """Without the assist every kernel root shows the table; it comes back when a root is loaded."""
        root = scene.table(30)
        guest = scene.guest
        scene.world.memory.store64(scene.at(root, 257), 0x1234_5067)
        assert guest.extended(xen.MMUEXT_PIN_L4_TABLE, root) == 0
        assert scene.world.entry(root, 257) == 0
        scene.holds()

    def test_a_failed_table_leaves_nothing(self, scene: Scene) -> None:
        new = scene.table(30)
        for slot in range(3):
            scene.world.memory.store64(scene.at(new, slot), scene.l1 << 12 | 0x67)
        scene.world.memory.store64(scene.at(new, 3), scene.frames[9] << 12 | 0x67)
        before = scene.world.frames.type_count(scene.l1)
        assert scene.guest.extended(xen.MMUEXT_PIN_L2_TABLE, new) == -EINVAL
        assert scene.world.frames.type_count(scene.l1) == before
        assert scene.world.frames.type_count(new) == 0
        scene.holds()


    def test_a_table_that_names_itself_goes_like_another(self, scene: Scene) -> None:
        guest, second = scene.guest, scene.table(30)
        assert guest.extended(xen.MMUEXT_PIN_L2_TABLE, second) == 0
        for _ in range(2):
            assert guest.mmu_update((scene.at(second, 5), second << 12 | 0x61)) == 0
            assert guest.mmu_update((scene.at(second, 5), 0)) == 0
        scene.holds()
        assert guest.mmu_update((scene.at(second, 5), second << 12 | 0x61)) == 0
        assert guest.extended(xen.MMUEXT_UNPIN_TABLE, second) == 0
        assert scene.world.frames.type_count(second) == 0
        scene.holds()

    def test_a_page_that_is_written_plainly_is_let_go(self, scene: Scene) -> None:
        assert scene.guest.update_va_mapping(scene.domain.va(9), 0, 0) == 0
        assert scene.guest.mmu_update((scene.frames[9] << 12 | 8, 0xABCD)) == 0
        assert scene.world.frames.type_count(scene.frames[9]) == 0
        scene.holds()


class TestBatches:
    """Several updates in one call: each is checked as one alone."""

    @pytest.mark.parametrize(
        ("value", "result"),
        [
            pytest.param(lambda s: s.frames[9] << 12 | 0x63, 0, id="own frame, writable"),
            pytest.param(lambda s: s.frames[9] << 12 | 0x61, 0, id="own frame, read-only"),
            pytest.param(lambda s: s.frames[20] << 12 | 0x61, 0, id="the same frame, read-only"),
            pytest.param(lambda s: s.frames[20] << 12 | 0x62, 0, id="not present"),
            pytest.param(lambda s: s.l1 << 12 | 0x61, 0, id="own table, read-only"),
            pytest.param(lambda s: s.l1 << 12 | 0x63, -EBUSY, id="own table, writable"),
            pytest.param(lambda s: s.other.frames[3] << 12 | 0x61, -EBUSY, id="another's frame"),
            pytest.param(lambda s: s.other.frames[3] << 12 | 0x63, -EBUSY, id="another's frame, writable"),
            pytest.param(lambda s: 0x105 << 12 | 0x61, -EBUSY, id="Xen's frame"),
            pytest.param(lambda s: 5 << 12 | 0x61, -EPERM, id="device memory"),
            pytest.param(lambda s: 2304 << 12 | 0x61, -EPERM, id="beyond memory"),
            pytest.param(lambda s: s.frames[9] << 12 | 0x6B, -EINVAL, id="PWT"),
            pytest.param(lambda s: s.frames[9] << 12 | 0x73, -EINVAL, id="PCD"),
            pytest.param(lambda s: s.frames[9] << 12 | 0xE3, -EINVAL, id="PAT"),
        ],
    )
    def test_an_l1_entry(self, scene: Scene, value: object, result: int) -> None:
        new = value(scene)  # type: ignore[operator]
        old, other = scene.entry(20), scene.frames[12] << 12 | 0x61
        requests = zip((21, 20, 22), (other, new, other), strict=True)
        assert scene.guest.mmu_update(*((scene.at(scene.l1, slot), to) for slot, to in requests)) == result
        assert scene.entry(21) >> 12 & 0xFF_FFFF == scene.frames[12]
        assert (scene.entry(22) >> 12 & 0xFF_FFFF == scene.frames[12]) is (result == 0)
        assert (scene.entry(20) == old) is (result != 0)
        scene.holds()

    def test_whose_tables(self, scene: Scene) -> None:
        good = (scene.at(scene.l1, 21), 0)
        for at in (scene.at(scene.other.tables[-1], 20), 2304 << 12, 1 << 60, 0x105 << 12):
            assert scene.guest.mmu_update(good, (at, 0)) == -EINVAL
            assert scene.guest.mmu_update((at, 0)) == -EINVAL
        scene.holds()

    def test_the_last_references_of_old_entries(self, scene: Scene) -> None:
        """A frame given up that only this entry held."""
        guest, mfn = scene.guest, scene.frames[9]
        assert guest.reservation(mem.XENMEM_decrease_reservation, [mfn]) == 1
        assert guest.mmu_update((scene.at(scene.l1, 9), 0), (scene.at(scene.l1, 10), 0)) == 0
        assert scene.world.frames.owner_of(mfn) is None
        assert scene.world.frames.type_count(scene.frames[10]) == 0
        scene.holds()


class TestPae:
    def root(self, scene: Scene, *, entry: int = 1) -> tuple[int, int]:
        """A second root in the making, and its last L2."""
        root, last = scene.table(30), scene.table(31)
        scene.world.memory.store64(scene.at(root, 3), last << 12 | entry)
        return root, last

    def test_a_root_has_four_entries(self, narrow: Scene) -> None:
        root, last = self.root(narrow)
        narrow.world.memory.store64(narrow.at(root, 4), narrow.domain.tables[1] << 12 | 1)
        narrow.world.memory.store64(narrow.at(root, 511), 0x1234)
        assert narrow.guest.extended(xen.MMUEXT_PIN_L3_TABLE, root) == 0
        assert [narrow.world.entry(root, slot) for slot in (4, 511)] == [0, 0]
        assert narrow.world.entry(last, 428) == narrow.world.slots.compat_entries[0]
        narrow.holds()

    @pytest.mark.parametrize("bits", [NO_EXECUTE, 1 << 52, 1 << 7, 1 << 3])
    def test_flags_of_a_root(self, narrow: Scene, bits: int) -> None:
        root, _ = self.root(narrow, entry=1 | bits)
        assert narrow.guest.extended(xen.MMUEXT_PIN_L3_TABLE, root) == -EINVAL
        at = narrow.at(narrow.domain.root, 0)
        assert narrow.guest.mmu_update((at, narrow.domain.tables[1] << 12 | 1 | bits)) == -EINVAL
        narrow.holds()

    def test_a_failed_root_leaves_nothing(self, narrow: Scene) -> None:
        root = narrow.table(30)
        narrow.world.memory.store64(narrow.at(root, 0), narrow.domain.tables[1] << 12 | 1)
        before = narrow.world.frames.type_count(narrow.domain.tables[1])
        assert narrow.guest.extended(xen.MMUEXT_PIN_L3_TABLE, root) == -EINVAL
        assert narrow.world.frames.type_count(narrow.domain.tables[1]) == before

    def test_a_last_l2_that_is_not_there(self, narrow: Scene) -> None:
        root, last = self.root(narrow, entry=0)
        assert narrow.guest.extended(xen.MMUEXT_PIN_L3_TABLE, root) == -EINVAL
        assert narrow.world.frames.type_count(last) == 0

    def test_a_shared_last_l2_is_let_go(self, narrow: Scene) -> None:
        root, last = narrow.table(30), narrow.domain.tables[4]
        narrow.world.memory.store64(narrow.at(root, 3), last << 12 | 1)
        before = narrow.world.frames.references(last), narrow.world.frames.type_count(last)
        assert narrow.guest.extended(xen.MMUEXT_PIN_L3_TABLE, root) == -EINVAL
        assert (narrow.world.frames.references(last), narrow.world.frames.type_count(last)) == before

    def test_the_last_l2_is_no_ordinary_one(self, narrow: Scene) -> None:
        root, last = narrow.domain.root, narrow.domain.tables[4]
        assert narrow.guest.mmu_update((narrow.at(root, 0), last << 12 | 1)) == -EINVAL
        assert narrow.guest.extended(xen.MMUEXT_PIN_L2_TABLE, last) == -EINVAL
        narrow.holds()

    def test_roots_are_not_linear(self, narrow: Scene) -> None:
        root = narrow.domain.root
        assert narrow.guest.mmu_update((narrow.at(root, 0), root << 12 | 1)) == -EINVAL
        new, _ = self.root(narrow)
        narrow.world.memory.store64(narrow.at(new, 0), new << 12 | 1)
        assert narrow.guest.extended(xen.MMUEXT_PIN_L3_TABLE, new) == -EINVAL
        narrow.holds()

    def test_there_are_no_l4_tables(self, narrow: Scene) -> None:
        table = narrow.table(30)
        assert narrow.world.types.pin(table, narrow.domain.memory, L4_TABLE) == -EINVAL
        narrow.holds()

    def test_addresses(self, narrow: Scene) -> None:
        space = narrow.guest.vcpu.space
        assert space.allowed(0xF580_0000 - 8, 8)
        assert not space.allowed(0xF580_0000 - 8, 9)
        assert not space.allowed(0xF580_0000)
        for address in (0xF580_0000, 0xFC00_0000):
            with pytest.raises(GuestFault):
                space.read(address, 1)

    def test_descriptor_pages_are_read_only(self, narrow: Scene) -> None:
        """Its kernel runs at supervisor privilege, where the per-domain area is visible."""
        table = narrow.table(30)
        assert narrow.guest.set_gdt([table], 512) == 0
        assert narrow.guest.extended(xen.MMUEXT_SET_LDT, narrow.domain.va(31), 512) == 0
        narrow.table(31)
        assert narrow.world.descriptors.map_ldt_page(narrow.guest.vcpu, 0)
        area = narrow.world.descriptors.area(narrow.domain.id)
        entries = [narrow.world.memory.q[area._slot(0, page) >> 3] for page in (0, 1, GDT_PAGES, 16)]
        assert [entry & 3 for entry in entries] == [1, 1, 1, 1]


def test_a_table_that_is_finished_later_is_whole() -> None:
    towers = Towers()
    towers.lose()
    table, types = towers.new_l2, towers.world.types.types
    assert types[table] & PARTIAL
    towers.world.memory.store64(towers.at(table, 4), 0)
    assert towers.pin(2, table) == 0
    assert types[table] & (PARTIAL | VALIDATED) == VALIDATED
    towers.holds()
    assert towers.guest.extended(xen.MMUEXT_UNPIN_TABLE, table) == 0
    assert types[table] & PARTIAL == 0
    towers.holds()


class TestTypes:
    def test_references_do_not_overflow(self, scene: Scene) -> None:
        types, mfn = scene.world.types, scene.frames[9]
        owner = scene.domain.memory
        types.counts[mfn] = COUNT_LIMIT | 1
        assert not types.get_page(mfn, owner)
        assert scene.guest.update_va_mapping(scene.domain.va(20), mfn << 12 | 0x61, 0) == -EBUSY
        types.counts[mfn] = 3 << 8 | 1
        types.types[mfn] = COUNT_LIMIT | 8 | WRITABLE
        assert types.get_type(mfn, WRITABLE) == -EINVAL
        assert scene.guest.update_va_mapping(scene.domain.va(20), mfn << 12 | 0x63, 0) == -EBUSY

    @pytest.mark.parametrize("mfn", [2304, 1 << 40, (1 << 52) - 1])
    def test_frames_beyond_memory(self, scene: Scene, mfn: int) -> None:
        for command in (xen.MMUEXT_PIN_L1_TABLE, xen.MMUEXT_CLEAR_PAGE, xen.MMUEXT_UNPIN_TABLE):
            assert scene.guest.extended(command, mfn) == -EINVAL
        assert scene.guest.mmu_update((mfn << 12, 0)) == -EINVAL

    def test_user_roots_are_roots(self, scene: Scene) -> None:
        for mfn in (scene.l2, scene.frames[9], scene.other.root, 2304):
            assert scene.guest.extended(xen.MMUEXT_NEW_USER_BASEPTR, mfn) == -EINVAL
        scene.holds()

    def test_an_unpinned_root_in_use_keeps_its_type(self, scene: Scene) -> None:
        root, guest = scene.table(30), scene.guest
        assert guest.extended(xen.MMUEXT_NEW_USER_BASEPTR, root) == 0
        assert guest.extended(xen.MMUEXT_PIN_L4_TABLE, root) == 0
        assert guest.extended(xen.MMUEXT_UNPIN_TABLE, root) == 0
        assert guest.mmu_update((scene.at(scene.l1, 30), root << 12 | 0x63)) == -EBUSY
        assert guest.extended(xen.MMUEXT_UNPIN_TABLE, root) == -EINVAL
        scene.holds()

    def test_a_failed_type_is_tried_afresh(self, scene: Scene) -> None:
        table = scene.table(30)
        scene.world.memory.store64(scene.at(table, 0), scene.other.frames[0] << 12 | 0x61)
        assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == -EBUSY
        assert scene.world.frames.type_of(table) == 0
        assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == -EBUSY
        scene.world.memory.store64(scene.at(table, 0), 0)
        assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == 0

    def test_stealing(self, scene: Scene) -> None:
        types, owner = scene.world.types, scene.domain.memory
        assert types.steal(scene.frames[9], owner) == -EINVAL, "mapped"
        assert scene.guest.update_va_mapping(scene.domain.va(9), 0, 0) == 0
        assert types.steal(scene.frames[9], scene.other.memory) == -EINVAL, "not its own"
        assert types.steal(1 << 30, owner) == -EINVAL
        assert types.steal(scene.frames[9], owner) == 0
        scene.world.heap.restore(owner, scene.frames[9])
        scene.holds()

    def test_the_last_reference_to_a_frame_frees_it(self, scene: Scene) -> None:
        mfn, guest = scene.frames[9], scene.guest
        guest.reservation(mem.XENMEM_decrease_reservation, [mfn])
        pages = scene.domain.memory.pages
        assert guest.mmu_update((scene.at(scene.l1, 9), 0)) == 0
        assert scene.world.frames.owner_of(mfn) is None
        assert scene.domain.memory.pages == pages - 1
        scene.holds()

    def test_a_bulk_demotion_frees_what_only_it_held(self, scene: Scene) -> None:
        guest, mfn = scene.guest, scene.frames[9]
        table = scene.table(30)
        fill(scene, table, MANY, mfn << 12 | 0x67)
        for slot in range(MANY):
            scene.world.memory.store64(scene.at(table, slot), scene.frames[10 + slot % 10] << 12 | 0x67)
        assert guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == 0
        assert guest.mmu_update((scene.at(scene.l1, 9), 0)) == 0
        assert guest.reservation(mem.XENMEM_decrease_reservation, [mfn]) == 1
        assert scene.world.frames.owner_of(mfn) == 1
        assert guest.extended(xen.MMUEXT_UNPIN_TABLE, table) == 0
        assert scene.world.frames.owner_of(mfn) is None
        scene.holds()


def test_the_neighbour_is_untouched(scene: Scene) -> None:
    """A last look: none of one domain's calls reach another's frames."""
    neighbour = Guest(scene.world, scene.other.all[0], scene.ledger)
    before = scene.world.memory.read(scene.other.frames[5] << 12, 4096)
    for command in (xen.MMUEXT_CLEAR_PAGE, xen.MMUEXT_PIN_L1_TABLE, xen.MMUEXT_UNPIN_TABLE):
        assert scene.guest.extended(command, scene.other.frames[5]) == -EINVAL
    assert scene.world.memory.read(scene.other.frames[5] << 12, 4096) == before
    assert neighbour.extended(xen.MMUEXT_CLEAR_PAGE, scene.other.frames[5]) == 0
