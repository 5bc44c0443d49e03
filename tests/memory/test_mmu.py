"""mmu_update, update_va_mapping and mmuext_op: Xen's codes, read-backs and counts, one rule at a time."""

from __future__ import annotations

from struct import pack

import pytest

from firmware.abi import xen
from firmware.abi.errno import EACCES, EBUSY, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from firmware.memory.frames import L1_TABLE, L2_TABLE, WRITABLE
from tests.memory.guest_model import Guest
from tests.memory.reference import Ledger, check
from tests.memory.world import ARGUMENTS, PlainDomain, World

KERNEL_DATA = 0x63
GUEST_KERNEL = 1 << 52
GLOBAL = 1 << 8
INVALID_MFN = (1 << 40) - 1


class Scene:
    """Two 64-bit domains; the calls are the first one's."""

    def __init__(self, **options: bool) -> None:
        self.world = World(2304, 2)
        self.ledger = Ledger()
        self.domain: PlainDomain = self.world.domain(1, 64, 2, **options)
        self.other = self.world.domain(2, 40)
        for domain in (self.domain, self.other):
            self.ledger.pins[domain.root] = 3 if domain.pv32 else 4
        for vcpu in self.domain.all:
            self.world.schedule(vcpu, vcpu.core)
        self.guest = Guest(self.world, self.domain.all[0], self.ledger)
        self.frames = self.domain.frames
        self.l1 = self.domain.tables[-1]
        self.l2 = self.domain.tables[-2]

    def at(self, table: int, slot: int) -> int:
        return table << 12 | slot * 8

    def entry(self, slot: int) -> int:
        return self.world.entry(self.l1, slot)

    def table(self, pfn: int) -> int:
        """Frame `pfn`, empty and mapped read-only: about to become a table."""
        assert self.guest.mmu_update((self.at(self.l1, pfn), self.frames[pfn] << 12 | 0x61)) == 0
        return self.frames[pfn]

    def holds(self) -> None:
        check(self.world, self.ledger)


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize(
    ("value", "result"),
    [
        pytest.param(lambda s: s.frames[9] << 12 | 0x63, 0, id="own frame, writable"),
        pytest.param(lambda s: s.l1 << 12 | 0x61, 0, id="own table, read-only"),
        pytest.param(lambda s: s.l1 << 12 | 0x63, -EBUSY, id="own L1 table, writable"),
        pytest.param(lambda s: s.domain.root << 12 | 0x63, -EBUSY, id="own root, writable"),
        pytest.param(lambda s: s.other.frames[3] << 12 | 0x61, -EBUSY, id="another's frame"),
        pytest.param(lambda s: 0x105 << 12 | 0x61, -EBUSY, id="Xen's frame"),
        pytest.param(lambda s: s.world.heap.runs()[-1][0] << 12 | 0x61, -EBUSY, id="free frame"),
        pytest.param(lambda s: 0x10 << 12 | 0x61, -EPERM, id="device memory"),
        pytest.param(lambda s: 2304 << 12 | 0x61, -EPERM, id="beyond memory"),
        pytest.param(lambda s: INVALID_MFN << 12 | 0x61, -EINVAL, id="INVALID_MFN"),
        pytest.param(lambda s: s.frames[9] << 12 | 0x63 | 1 << 3, -EINVAL, id="PWT"),
        pytest.param(lambda s: s.frames[9] << 12 | 0x63 | 1 << 4, -EINVAL, id="PCD"),
        pytest.param(lambda s: s.frames[9] << 12 | 0x63 | 1 << 7, -EINVAL, id="PAT"),
        pytest.param(lambda s: s.frames[9] << 12 | 0x63 | 1 << 8, 0, id="GLOBAL"),
        pytest.param(lambda s: s.frames[9] << 12 | 0x63 | 1 << 62, 0, id="available bit 62"),
        pytest.param(lambda s: 0x1234_5678_9ABC_DEF0 & ~1, 0, id="anything not present"),
    ],
)
def test_l1_entry(scene: Scene, value: object, result: int) -> None:
    new = value(scene)  # type: ignore[operator]
    old = scene.entry(20)
    assert scene.guest.mmu_update((scene.at(scene.l1, 20), new)) == result
    if result:
        assert scene.entry(20) == old
    scene.holds()


def test_kernel_entry_reads_back_with_user_and_mark(scene: Scene) -> None:
    value = scene.frames[9] << 12 | KERNEL_DATA
    assert scene.guest.mmu_update((scene.at(scene.l1, 20), value)) == 0
    assert scene.entry(20) == value | GUEST_KERNEL | 4


def test_user_entry_reads_back_global(scene: Scene) -> None:
    value = scene.frames[9] << 12 | 0x67
    assert scene.guest.mmu_update((scene.at(scene.l1, 20), value)) == 0
    assert scene.entry(20) == value | GLOBAL


def test_accessed_and_dirty_are_kept_on_request(scene: Scene) -> None:
    assert scene.guest.mmu_update((scene.at(scene.l1, 20) | 2, scene.frames[20] << 12 | 0x3)) == 0
    assert scene.entry(20) & 0x60 == 0x60
    assert scene.guest.mmu_update((scene.at(scene.l1, 20), scene.frames[20] << 12 | 0x3)) == 0
    assert scene.entry(20) & 0x60 == 0


def test_machine_to_phys(scene: Scene) -> None:
    assert scene.guest.mmu_update((scene.frames[9] << 12 | 1, 0x1234)) == 0
    assert scene.world.m2p.get(scene.frames[9]) == 0x1234
    assert scene.guest.mmu_update((scene.other.frames[9] << 12 | 1, 0x1234)) == -EINVAL
    assert scene.guest.mmu_update((2304 << 12 | 1, 0x1234)) == -EINVAL


def test_unknown_command(scene: Scene) -> None:
    assert scene.guest.mmu_update((scene.at(scene.l1, 20) | 4, 0)) == -ENOSYS


def test_an_ordinary_page_is_written(scene: Scene) -> None:
    assert scene.guest.mmu_update((scene.frames[9] << 12 | 0x18, 0xABCD)) == 0
    assert scene.world.memory.q[(scene.frames[9] << 9) + 3] == 0xABCD
    assert scene.guest.mmu_update((scene.other.frames[9] << 12, 1)) == -EINVAL
    scene.holds()


def test_done_counter_of_a_partial_request(scene: Scene) -> None:
    good, bad = (scene.at(scene.l1, 20), 0), (scene.at(scene.l1, 21), scene.other.frames[0] << 12 | 0x61)
    done = ARGUMENTS + 0x800
    assert scene.guest.mmu_update(good, good, bad, good, done=done) == -EBUSY
    assert scene.guest.vcpu.space.read32(done) == 2
    assert scene.entry(20) == 0
    scene.holds()


def test_long_requests_are_restarted(scene: Scene) -> None:
    count = 3000
    at = scene.guest.pass_bytes(pack("<QQ", scene.at(scene.l1, 20), 0) * count)
    done = ARGUMENTS + 0xF000
    assert scene.world.call(scene.guest.vcpu, "mmu_update", at, count, done, 0x7FF0) == 0
    assert scene.guest.vcpu.space.read32(done) == count


def test_bad_pointers(scene: Scene) -> None:
    call, vcpu = scene.world.call, scene.guest.vcpu
    assert call(vcpu, "mmu_update", 0xFFFF_8000_0000_0000, 1, 0, 0x7FF0) == -EFAULT
    assert call(vcpu, "mmu_update", 0x1000, 1, 0, 0x7FF0) == -EFAULT
    assert call(vcpu, "mmu_update", 0x1000, 0, 0, 0x7FF0) == 0
    assert call(vcpu, "mmuext_op", 0x1000, 1, 0, 0x7FF0) == -EFAULT
    assert call(vcpu, "mmu_update", scene.domain.va(2), 0x7FFF_FFFF, 0, 0x7FF0) in {-EFAULT, -EINVAL}


def test_foreign_domains(scene: Scene) -> None:
    request = (scene.at(scene.l1, 20), scene.other.frames[3] << 12 | 0x61)
    assert scene.guest.mmu_update(request, foreign=2) == -EPERM
    assert scene.guest.mmu_update(request, foreign=9) == -ESRCH
    assert scene.guest.mmu_update(request, foreign=1) == -ESRCH
    assert scene.guest.mmu_update(request, foreign=3 << 16 | 0x7FF0) == -EPERM
    assert scene.guest.mmu_update(request, foreign=12 << 16 | 0x7FF0) == -ESRCH
    assert scene.guest.mmu_update((request[0], 0x200000 << 12 | 0x61), foreign=0x7FF1) == -EPERM
    assert scene.guest.extended(xen.MMUEXT_TLB_FLUSH_LOCAL, foreign=2) == -EPERM
    assert scene.guest.extended(xen.MMUEXT_TLB_FLUSH_LOCAL, foreign=0x7FF1) == -EPERM
    assert scene.guest.extended(xen.MMUEXT_TLB_FLUSH_LOCAL, foreign=9) == -ESRCH
    scene.holds()


@pytest.mark.parametrize("slot", [256, 257, 260, 271])
def test_xen_slots_are_not_the_guests(scene: Scene, slot: int) -> None:
    l3 = scene.domain.tables[1]
    assert scene.guest.mmu_update((scene.at(scene.domain.root, slot), l3 << 12 | 0x67)) == -EINVAL
    assert scene.guest.mmu_update((scene.at(scene.domain.root, slot), 0)) == -EINVAL


@pytest.mark.parametrize("bit", [3, 4, 7, 8])
def test_table_entries_take_no_cache_superpage_or_global_bits(scene: Scene, bit: int) -> None:
    assert scene.guest.mmu_update((scene.at(scene.l2, 3), scene.l1 << 12 | 0x67 | 1 << bit)) == -EINVAL


def test_a_second_reference_to_an_l1(scene: Scene) -> None:
    before = scene.world.frames.type_count(scene.l1)
    assert scene.guest.mmu_update((scene.at(scene.l2, 3), scene.l1 << 12 | 0x63)) == 0
    assert scene.world.entry(scene.l2, 3) == scene.l1 << 12 | 0x67
    assert scene.world.frames.type_count(scene.l1) == before + 1
    assert scene.guest.mmu_update((scene.at(scene.l2, 3), 0)) == 0
    scene.holds()


def test_tables_above_flush_every_core(scene: Scene) -> None:
    """What was present may have been used; an entry where nothing was changes no translation."""
    cores = scene.world.cores
    running = [core.index for core in scene.domain.memory.cores]
    assert running
    for entry, times in ((scene.l1 << 12 | 0x67, 0), (scene.l1 << 12 | 0x27, 1), (0, 1), (0, 0)):
        flushes = [core.flushes for core in cores]
        assert scene.guest.mmu_update((scene.at(scene.l2, 3), entry)) == 0
        assert [cores[index].flushes - flushes[index] for index in running] == [times] * len(running)


def test_linear_page_tables(scene: Scene) -> None:
    """A table may name itself or one of its level, read-only and one step deep."""
    update, l2 = scene.guest.mmu_update, scene.l2
    assert update((scene.at(l2, 5), l2 << 12 | 0x63)) == -EINVAL
    assert update((scene.at(l2, 5), l2 << 12 | 0x61)) == 0
    second = scene.table(30)
    assert scene.guest.extended(xen.MMUEXT_PIN_L2_TABLE, second) == 0
    assert update((scene.at(second, 5), l2 << 12 | 0x63)) == -EINVAL
    assert update((scene.at(second, 5), l2 << 12 | 0x61)) == 0
    assert update((scene.at(l2, 6), second << 12 | 0x61)) == -EINVAL
    third = scene.table(31)
    assert scene.guest.extended(xen.MMUEXT_PIN_L2_TABLE, third) == 0
    assert update((scene.at(l2, 6), third << 12 | 0x61)) == -EINVAL, "it is itself named by another"
    assert update((scene.at(third, 6), second << 12 | 0x61)) == -EINVAL, "it names another"
    scene.holds()
    assert scene.guest.extended(xen.MMUEXT_UNPIN_TABLE, second) == 0
    scene.holds()
    assert update((scene.at(l2, 6), second << 12 | 0x61)) == 0
    assert scene.world.frames.type_of(second) == L1_TABLE


def test_pin_and_unpin(scene: Scene) -> None:
    table = scene.table(30)
    assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == 0
    assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == -EINVAL
    assert scene.guest.extended(xen.MMUEXT_PIN_L2_TABLE, table) == -EINVAL
    assert scene.guest.mmu_update((scene.at(scene.l1, 30), table << 12 | 0x63)) == -EBUSY
    scene.holds()
    assert scene.guest.extended(xen.MMUEXT_UNPIN_TABLE, table) == 0
    assert scene.guest.extended(xen.MMUEXT_UNPIN_TABLE, table) == -EINVAL
    assert scene.guest.mmu_update((scene.at(scene.l1, 30), table << 12 | 0x63)) == 0
    assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == -EINVAL
    assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, scene.other.frames[2]) == -EINVAL
    assert scene.guest.extended(xen.MMUEXT_UNPIN_TABLE, scene.other.root) == -EINVAL
    scene.holds()


@pytest.mark.parametrize("present", [3, 60, 511])
def test_a_bad_entry_stops_validation_and_leaves_nothing(scene: Scene, present: int) -> None:
    """The same by the entry-by-entry way and by the bulk way."""
    table = scene.table(30)
    for slot in range(present):
        scene.world.memory.store64(scene.at(table, slot), scene.frames[slot % 28] << 12 | 0x67)
    scene.world.memory.store64(scene.at(table, present), scene.other.frames[0] << 12 | 0x61)
    assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == -EBUSY
    scene.holds()
    scene.world.memory.store64(scene.at(table, present), 0)
    assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == 0
    assert scene.world.entry(table, 0) == scene.frames[0] << 12 | 0x67 | GLOBAL
    scene.holds()
    assert scene.guest.extended(xen.MMUEXT_UNPIN_TABLE, table) == 0
    scene.holds()


def test_new_roots(scene: Scene) -> None:
    vcpu, core = scene.guest.vcpu, scene.guest.vcpu.core
    root = scene.table(30)
    assert scene.guest.extended(xen.MMUEXT_NEW_USER_BASEPTR, root) == 0
    assert (vcpu.user_root, core.parked_flushes) == (root, 1)
    assert scene.world.entry(root, 256) == 0
    assert scene.world.entry(root, 260) == scene.domain.memory.perdomain_entry
    scene.holds()
    assert scene.guest.extended(xen.MMUEXT_NEW_USER_BASEPTR, 0) == 0
    assert scene.guest.extended(xen.MMUEXT_NEW_BASEPTR, root) == 0
    assert (vcpu.kernel_root, core.root, vcpu.space.root) == (root, root << 12, root << 12)
    assert scene.world.entry(root, 256) == scene.world.slots.m2p_entry
    scene.holds()
    assert scene.guest.extended(xen.MMUEXT_NEW_BASEPTR, scene.domain.root) == 0
    assert scene.guest.extended(xen.MMUEXT_NEW_BASEPTR, scene.l2) == -EINVAL
    assert scene.guest.extended(xen.MMUEXT_NEW_BASEPTR, scene.other.root) == -EINVAL
    assert scene.world.frames.type_count(root) == 0
    scene.holds()


def test_m2p_strict_hides_the_table_from_user_roots(scene: Scene) -> None:
    scene.domain.memory.m2p_strict = True
    root = scene.table(30)
    assert scene.guest.extended(xen.MMUEXT_PIN_L4_TABLE, root) == 0
    assert scene.world.entry(root, 256) == scene.world.slots.m2p_entry
    assert scene.guest.extended(xen.MMUEXT_NEW_USER_BASEPTR, root) == 0
    assert scene.world.entry(root, 256) == 0


@pytest.mark.parametrize(
    ("command", "result"),
    [
        (xen.MMUEXT_FLUSH_CACHE, -EACCES),
        (xen.MMUEXT_FLUSH_CACHE_GLOBAL, -EINVAL),
        (xen.MMUEXT_MARK_SUPER, -EOPNOTSUPP),
        (xen.MMUEXT_UNMARK_SUPER, -EOPNOTSUPP),
        (14, -ENOSYS),
        (21, -ENOSYS),
        (xen.MMUEXT_TLB_FLUSH_LOCAL, 0),
        (xen.MMUEXT_TLB_FLUSH_ALL, 0),
        (xen.MMUEXT_INVLPG_ALL, 0),
    ],
)
def test_other_commands(scene: Scene, command: int, result: int) -> None:
    assert scene.guest.extended(command, scene.domain.va(3)) == result


def test_flush_by_vcpu_bitmap(scene: Scene) -> None:
    mask = scene.guest.pass_bytes(pack("<Q", 0b10), 0x400)
    before = [core.flushes for core in scene.world.cores]
    assert scene.guest.extended(xen.MMUEXT_TLB_FLUSH_MULTI, 0, mask) == 0
    assert [core.flushes - was for core, was in zip(scene.world.cores, before, strict=True)] == [0, 1]
    assert scene.guest.extended(xen.MMUEXT_INVLPG_MULTI, scene.domain.va(3), mask) == 0
    assert scene.world.cores[1].pages[-1] == scene.domain.va(3)
    assert scene.guest.extended(xen.MMUEXT_TLB_FLUSH_MULTI, 0, 0x1000) == -EINVAL


def test_clear_and_copy_page(scene: Scene) -> None:
    scene.world.memory.fill(scene.frames[5] << 12, 4096, 0x5A)
    assert scene.guest.extended(xen.MMUEXT_COPY_PAGE, scene.frames[6], scene.frames[5]) == 0
    assert scene.world.memory.read(scene.frames[6] << 12, 4096) == b"\x5a" * 4096
    assert scene.guest.extended(xen.MMUEXT_CLEAR_PAGE, scene.frames[6]) == 0
    assert scene.world.memory.read(scene.frames[6] << 12, 4096) == bytes(4096)
    assert scene.guest.extended(xen.MMUEXT_CLEAR_PAGE, scene.l1) == -EINVAL
    assert scene.guest.extended(xen.MMUEXT_COPY_PAGE, scene.l1, scene.frames[5]) == -EINVAL
    assert scene.guest.extended(xen.MMUEXT_COPY_PAGE, scene.frames[6], scene.other.frames[5]) == -EINVAL
    scene.holds()


def test_update_va_mapping(scene: Scene) -> None:
    guest, va = scene.guest, scene.domain.va(20)
    core = guest.vcpu.core
    assert guest.update_va_mapping(va, scene.frames[9] << 12 | 0x63, xen.UVMF_INVLPG) == 0
    assert core.pages[-1] == va
    flushes = core.flushes
    assert guest.update_va_mapping(va, 0, xen.UVMF_TLB_FLUSH | xen.UVMF_ALL) == 0
    assert core.flushes == flushes + 1
    assert guest.update_va_mapping(0x4000_0000, 0, 0) == -EINVAL
    assert guest.update_va_mapping(0xFFFF_8000_0000_0000, 0, 0) == -EINVAL
    assert guest.update_va_mapping(va, scene.l1 << 12 | 0x63, 0) == -EBUSY
    assert guest.update_va_mapping(va, 0, xen.UVMF_INVLPG | 0x1000) == -EFAULT
    call, vcpu = scene.world.call, guest.vcpu
    assert call(vcpu, "update_va_mapping_otherdomain", va, 0, 0, 2) == -EPERM
    assert call(vcpu, "update_va_mapping_otherdomain", va, 0, 0, 9) == -ESRCH
    assert call(vcpu, "update_va_mapping_otherdomain", va, 0, 0, 0x7FF0) == 0
    scene.holds()


def test_a_type_change_flushes_only_cores_that_ran_since(scene: Scene) -> None:
    guest, world = scene.guest, scene.world
    core = guest.vcpu.core
    table = scene.table(30)
    releases = core.releases(table)
    assert guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == 0
    assert core.releases(table) == releases + 1, "the writable mapping was dropped since the last flush"
    assert guest.extended(xen.MMUEXT_UNPIN_TABLE, table) == 0
    assert guest.mmu_update((scene.at(scene.l1, 30), table << 12 | 0x63)) == 0
    assert guest.mmu_update((scene.at(scene.l1, 30), table << 12 | 0x61)) == 0
    for each in world.cores:
        world.shootdown.core(each)
    releases = core.releases(table)
    assert guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == 0
    assert core.releases(table) == releases
    assert world.shootdown.filtered > 0


def test_a_table_done_in_bulk_stamps_and_flushes_too(scene: Scene) -> None:
    guest, world, frames = scene.guest, scene.world, scene.frames
    core = guest.vcpu.core
    table, former = scene.table(30), scene.table(31)
    for slot in range(100):
        world.memory.store64(
            scene.at(table, slot), (former if slot == 50 else frames[slot % 28]) << 12 | 0x67
        )
    world.shootdown.core(core)
    assert guest.extended(xen.MMUEXT_PIN_L1_TABLE, former) == 0
    assert guest.extended(xen.MMUEXT_UNPIN_TABLE, former) == 0
    releases = core.releases(former)
    assert guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == 0
    assert core.releases(former) == releases + 1, "a former table became writable"
    scene.holds()
    world.shootdown.core(core)
    assert guest.extended(xen.MMUEXT_UNPIN_TABLE, table) == 0
    assert world.frames.stamps[former] == world.shootdown.clock
    scene.holds()


class TestPae:
    """A 32-bit guest's rules."""

    @pytest.fixture
    def scene(self) -> Scene:
        return Scene(pv32=True)

    def test_entries_are_not_adjusted(self, scene: Scene) -> None:
        value = scene.frames[9] << 12 | KERNEL_DATA
        assert scene.guest.mmu_update((scene.at(scene.l1, 20), value)) == 0
        assert scene.entry(20) == value

    def test_last_root_slot_is_fixed(self, scene: Scene) -> None:
        root, l2 = scene.domain.root, scene.domain.tables[1]
        assert scene.guest.mmu_update((scene.at(root, 3), 0)) == -EINVAL
        assert scene.guest.mmu_update((scene.at(root, 0), 0)) == 0
        assert scene.guest.mmu_update((scene.at(root, 0), l2 << 12 | 0x101)) == -EINVAL
        assert scene.guest.mmu_update((scene.at(root, 0), l2 << 12 | 1)) == 0
        assert scene.world.entry(root, 0) == l2 << 12 | 7
        scene.holds()

    def test_xen_part_of_the_last_l2(self, scene: Scene) -> None:
        last = scene.domain.tables[4]
        assert scene.guest.mmu_update((scene.at(last, 428), 0)) == -EPERM
        assert scene.guest.mmu_update((scene.at(last, 427), 0)) == 0
        assert scene.world.entry(last, 428) == scene.world.slots.compat_entries[0]

    def test_root_without_its_last_slot(self, scene: Scene) -> None:
        assert scene.guest.extended(xen.MMUEXT_PIN_L3_TABLE, scene.table(30)) == -EINVAL
        scene.holds()

    def test_last_l2_is_not_shared(self, scene: Scene) -> None:
        root = scene.table(30)
        scene.world.memory.store64(scene.at(root, 3), scene.domain.tables[4] << 12 | 1)
        assert scene.guest.extended(xen.MMUEXT_PIN_L3_TABLE, root) == -EINVAL
        assert scene.world.entry(root, 3) == scene.domain.tables[4] << 12 | 1
        scene.holds()

    def test_pin_l4_is_ignored(self, scene: Scene) -> None:
        assert scene.guest.extended(xen.MMUEXT_PIN_L4_TABLE, scene.frames[9]) == 0
        assert scene.world.frames.type_of(scene.frames[9]) == WRITABLE

    def test_types(self, scene: Scene) -> None:
        assert scene.world.frames.type_of(scene.domain.tables[4]) == L2_TABLE
        assert scene.guest.update_va_mapping(scene.domain.va(9), 0, xen.UVMF_INVLPG) == 0
        scene.holds()
