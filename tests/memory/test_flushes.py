"""Flushes: which cores, when, and before what. A core here remembers what it was asked."""

from __future__ import annotations

from struct import pack

import pytest

from firmware.abi import grant_table as gnt
from firmware.abi import xen
from firmware.abi.errno import EBUSY
from firmware.memory.owner import MemoryOwner
from firmware.memory.shootdown import FEW, Shootdown
from tests.memory.guest_model import Guest
from tests.memory.test_mmu import Scene
from tests.memory.world import PlainCore


@pytest.fixture
def scene() -> Scene:
    return Scene()


def counts(scene: Scene) -> list[int]:
    return [core.flushes for core in scene.world.cores]


def since(scene: Scene, before: list[int]) -> list[int]:
    return [core.flushes - was for core, was in zip(scene.world.cores, before, strict=True)]


def releases(scene: Scene, mfn: int) -> list[int]:
    return [core.releases(mfn) for core in scene.world.cores]


def let_go(scene: Scene, mfn: int, before: list[int]) -> list[int]:
    return [now - was for now, was in zip(releases(scene, mfn), before, strict=True)]


class TestShootdown:
    @pytest.fixture
    def cores(self) -> list[PlainCore]:
        return [PlainCore(0), PlainCore(1)]

    def test_only_cores_that_ran_the_owner(self, cores: list[PlainCore]) -> None:
        shootdown, owner = Shootdown(cores), MemoryOwner(1)
        shootdown.owner(owner)
        assert [core.flushes for core in cores] == [0, 0]
        shootdown.enter(cores[1], owner)
        shootdown.owner(owner)
        assert [core.flushes for core in cores] == [0, 1]
        shootdown.leave(cores[1])
        shootdown.owner(owner)
        assert [core.flushes for core in cores] == [0, 1]

    def test_a_stamp_of_the_same_tick_counts(self, cores: list[PlainCore]) -> None:
        """A translation made after the flush, and the type's end, may both lie in one tick of the clock."""
        shootdown, owner = Shootdown(cores), MemoryOwner(1)
        shootdown.enter(cores[0], owner)
        shootdown.core(cores[0])
        stamp = shootdown.clock
        shootdown.older(owner, stamp)
        assert cores[0].flushes == 2
        shootdown.older(owner, stamp)
        assert cores[0].flushes == 2, "flushed since"
        stamp = shootdown.clock
        shootdown.everyone(stamp)
        assert cores[0].flushes == 3
        shootdown.everyone(stamp)
        assert [core.flushes for core in cores] == [3, 0]

    def test_few_frames_are_dropped_one_by_one(self, cores: list[PlainCore]) -> None:
        """Nothing else of the TLB goes, and the clock stands still: it counts whole flushes."""
        shootdown, owner = Shootdown(cores), MemoryOwner(1)
        for core in cores:
            shootdown.enter(core, owner)
            core.tlb = {(bank, page): (page % 3, True) for bank in (0, 1) for page in range(6)}
        stamp = shootdown.clock
        shootdown.older(owner, stamp, 1, 2)
        shootdown.everyone(stamp, 1, 2)
        assert (shootdown.clock, shootdown.flushes) == (stamp, 0)
        assert [core.flushes for core in cores] == [0, 0]
        assert [core.dropped for core in cores] == [[1, 2, 1, 2]] * 2
        assert {entry for core in cores for entry in core.tlb.values()} == {(0, True)}
        assert shootdown.frame_flushes == 8

    def test_many_frames_are_one_flush(self, cores: list[PlainCore]) -> None:
        shootdown, owner = Shootdown(cores), MemoryOwner(1)
        shootdown.enter(cores[0], owner)
        shootdown.older(owner, shootdown.clock, *range(FEW + 1))
        assert (cores[0].flushes, cores[0].dropped, shootdown.clock) == (1, [], 2)

    def test_frames_with_code_take_a_flush(self, cores: list[PlainCore]) -> None:
        """Blocks of theirs may be found without a look at the TLB."""
        shootdown, owner = Shootdown(cores), MemoryOwner(1)
        shootdown.enter(cores[0], owner)
        cores[0].code = {7}
        shootdown.older(owner, shootdown.clock, 6, 7, 8)
        assert (cores[0].flushes, cores[0].dropped) == (1, [6])


class TestTypeChanges:
    def test_what_another_cpu_stores_until_the_flush_is_checked(self, scene: Scene) -> None:
        """The flush ends its last chance to write; only then may the contents be looked at (XSA-401)."""
        table, core, world = scene.table(30), scene.world.cores[1], scene.world
        flush = core.flush_frame

        def racing(mfn: int) -> bool:
            world.memory.store64(scene.at(table, 3), scene.other.frames[0] << 12 | 0x67)
            return flush(mfn)

        core.flush_frame = racing  # type: ignore[method-assign]
        assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == -EBUSY
        assert world.entry(table, 3) == scene.other.frames[0] << 12 | 0x67
        scene.holds()

    @pytest.mark.parametrize("entries", [3, 100])
    def test_every_core_that_may_hold_a_translation(self, scene: Scene, entries: int) -> None:
        """One entry or a whole table of them drops the last type references: both stamp."""
        guest, world = scene.guest, scene.world
        victim, table = scene.frames[9], scene.table(30)
        for slot in range(entries):
            world.memory.store64(scene.at(table, slot), victim << 12 | 0x67)
        assert guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == 0
        assert guest.mmu_update((scene.at(scene.l1, 9), victim << 12 | 0x61)) == 0
        for core in world.cores:
            world.shootdown.core(core)
        assert guest.extended(xen.MMUEXT_UNPIN_TABLE, table) == 0
        before = releases(scene, victim)
        assert guest.extended(xen.MMUEXT_PIN_L1_TABLE, victim) == 0
        assert let_go(scene, victim, before) == [1, 1]
        scene.holds()

    def test_bulk_takes_the_youngest_stamp(self, scene: Scene) -> None:
        guest, world = scene.guest, scene.world
        old, young, table = scene.table(28), scene.table(29), scene.table(30)
        for slot in range(100):
            mfn = (old, young)[slot] if slot < 2 else scene.frames[slot % 20]
            world.memory.store64(scene.at(table, slot), mfn << 12 | 0x67)
        for former in (old, young):
            for core in world.cores:
                world.shootdown.core(core)
            assert guest.extended(xen.MMUEXT_PIN_L1_TABLE, former) == 0
            assert guest.extended(xen.MMUEXT_UNPIN_TABLE, former) == 0
        assert guest.extended(xen.MMUEXT_PIN_L2_TABLE, scene.table(31)) == 0
        stamps = world.frames.stamps
        stamps[young], stamps[old] = world.shootdown.clock, 0
        before = releases(scene, young)
        assert guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == 0
        assert let_go(scene, young, before) == [1, 1]
        scene.holds()


class TestRoots:
    def test_the_same_root_again_flushes(self, scene: Scene) -> None:
        before = counts(scene)
        assert scene.guest.extended(xen.MMUEXT_NEW_BASEPTR, scene.domain.root) == 0
        assert since(scene, before) == [1, 0]

    def test_a_new_root_drops_the_ldt(self, scene: Scene) -> None:
        table, root = scene.table(30), scene.table(31)
        guest, descriptors = scene.guest, scene.world.descriptors
        assert guest.extended(xen.MMUEXT_SET_LDT, scene.domain.va(30), 512) == 0
        assert descriptors.map_ldt_page(guest.vcpu, 0)
        assert guest.extended(xen.MMUEXT_PIN_L4_TABLE, root) == 0
        assert guest.extended(xen.MMUEXT_NEW_BASEPTR, root) == 0
        assert descriptors.area(1).ldt_page(0, 0) is None
        assert scene.world.frames.type_count(table) == 0
        scene.holds()

    def test_old_roots_are_let_go(self, scene: Scene) -> None:
        root, guest, frames = scene.table(30), scene.guest, scene.world.frames
        assert guest.extended(xen.MMUEXT_NEW_USER_BASEPTR, root) == 0
        assert frames.type_count(root) == 1
        assert guest.extended(xen.MMUEXT_NEW_USER_BASEPTR, 0) == 0
        assert frames.type_count(root) == 0
        assert guest.vcpu.core.parked_flushes == 2


class TestDescriptorTables:
    def test_set_gdt(self, scene: Scene) -> None:
        table, before = scene.table(30), counts(scene)
        assert scene.guest.set_gdt([], 0) == 0
        assert since(scene, before) == [1, 0]
        assert scene.guest.set_gdt([table], 512) == 0
        before = counts(scene)
        assert scene.guest.set_gdt([], 0) == 0
        assert since(scene, before) == [1, 0]

    def test_set_ldt(self, scene: Scene) -> None:
        scene.table(30)
        guest = scene.guest
        assert guest.extended(xen.MMUEXT_SET_LDT, scene.domain.va(30), 512) == 0
        before = counts(scene)
        assert guest.extended(xen.MMUEXT_SET_LDT, 0, 0) == 0
        assert since(scene, before) == [0, 0], "none of it was in use"
        assert guest.extended(xen.MMUEXT_SET_LDT, scene.domain.va(30), 512) == 0
        assert scene.world.descriptors.map_ldt_page(guest.vcpu, 0)
        before = counts(scene)
        assert guest.extended(xen.MMUEXT_SET_LDT, 0, 0) == 0
        assert since(scene, before) == [1, 0]


class TestUpdates:
    @pytest.mark.parametrize(
        ("flags", "flushes", "pages"),
        [
            (xen.UVMF_NONE, [0, 0], [0, 0]),
            (xen.UVMF_TLB_FLUSH | xen.UVMF_LOCAL, [1, 0], [0, 0]),
            (xen.UVMF_TLB_FLUSH | xen.UVMF_ALL, [1, 1], [0, 0]),
            (xen.UVMF_INVLPG | xen.UVMF_LOCAL, [0, 0], [1, 0]),
            (xen.UVMF_INVLPG | xen.UVMF_ALL, [0, 0], [1, 1]),
        ],
    )
    def test_update_va_mapping(self, scene: Scene, flags: int, flushes: list[int], pages: list[int]) -> None:
        before, seen = counts(scene), [len(core.pages) for core in scene.world.cores]
        assert scene.guest.update_va_mapping(scene.domain.va(20), 0, flags) == 0
        assert since(scene, before) == flushes
        assert [len(core.pages) - was for core, was in zip(scene.world.cores, seen, strict=True)] == pages

    @pytest.mark.parametrize("kind", [xen.UVMF_TLB_FLUSH, xen.UVMF_INVLPG])
    def test_update_va_mapping_of_some(self, scene: Scene, kind: int) -> None:
        va = scene.domain.va(20)
        mask = scene.guest.pass_bytes(pack("<Q", 0b11), 0x400)
        before, seen = counts(scene), [len(core.pages) for core in scene.world.cores]
        assert scene.guest.update_va_mapping(va, 0, kind | mask) == 0
        assert since(scene, before) == ([1, 1] if kind == xen.UVMF_TLB_FLUSH else [0, 0])
        done = [len(core.pages) - was for core, was in zip(scene.world.cores, seen, strict=True)]
        assert done == ([0, 0] if kind == xen.UVMF_TLB_FLUSH else [1, 1])

    @pytest.mark.parametrize(
        ("command", "flushes", "pages"),
        [
            (xen.MMUEXT_TLB_FLUSH_LOCAL, [1, 0], [0, 0]),
            (xen.MMUEXT_TLB_FLUSH_ALL, [1, 1], [0, 0]),
            (xen.MMUEXT_TLB_FLUSH_MULTI, [1, 1], [0, 0]),
            (xen.MMUEXT_INVLPG_LOCAL, [0, 0], [1, 0]),
            (xen.MMUEXT_INVLPG_ALL, [0, 0], [1, 1]),
            (xen.MMUEXT_INVLPG_MULTI, [0, 0], [1, 1]),
        ],
    )
    def test_commands(self, scene: Scene, command: int, flushes: list[int], pages: list[int]) -> None:
        mask = scene.guest.pass_bytes(pack("<Q", 0b11), 0x400)
        before, seen = counts(scene), [len(core.pages) for core in scene.world.cores]
        assert scene.guest.extended(command, scene.domain.va(20), mask) == 0
        assert since(scene, before) == flushes
        assert [len(core.pages) - was for core, was in zip(scene.world.cores, seen, strict=True)] == pages


class TestGrants:
    @pytest.fixture
    def neighbour(self, scene: Scene) -> Guest:
        return Guest(scene.world, scene.other.all[0], scene.ledger)

    def test_unmapping_flushes_before_the_frame_is_let_go(self, scene: Scene, neighbour: Guest) -> None:
        mfn, va, frames = scene.other.frames[3], scene.domain.va(20), scene.world.frames
        neighbour.grant(8, 1, mfn, gnt.GTF_permit_access)
        status, handle = scene.guest.map_grant(2, 8, gnt.GNTMAP_host_map, va)
        assert status == gnt.GNTST_okay
        held = frames.references(mfn), frames.type_count(mfn)
        found: list[tuple[int, int]] = []
        for core in scene.world.cores:
            core.flush = lambda: found.append((frames.references(mfn), frames.type_count(mfn)))  # type: ignore[method-assign]
        assert scene.guest.unmap_grant(handle, va) == gnt.GNTST_okay
        assert found == [held, held]
        assert (frames.references(mfn), frames.type_count(mfn)) == (held[0] - 1, held[1] - 1)

    def test_a_transfer_flushes(self, scene: Scene, neighbour: Guest) -> None:
        mfn = scene.frames[9]
        assert scene.guest.update_va_mapping(scene.domain.va(9), 0, 0) == 0
        neighbour.grant(8, 1, 0x77, gnt.GTF_accept_transfer)
        scene.other.memory.maximum += 1
        before = counts(scene)
        fields = {"mfn": mfn, "domid": 2, "ref": 8}
        answer = scene.guest.grant_op(gnt.GNTTABOP_transfer, gnt.gnttab_transfer, **fields)
        assert answer["status"] == gnt.GNTST_okay
        assert since(scene, before) == [1, 1]


class TestReuse:
    def test_a_freed_frame_may_still_be_translated(self, scene: Scene) -> None:
        guest, world, mfn = scene.guest, scene.world, scene.frames[9]
        guest.touch(scene.domain.va(9), True)
        for core in world.cores:
            world.shootdown.core(core)
        assert guest.update_va_mapping(scene.domain.va(9), mfn << 12 | 0x61, xen.UVMF_NONE) == 0
        assert guest.reservation(1, [mfn]) == 1
        world.frames.stamps[mfn] = 0
        assert guest.update_va_mapping(scene.domain.va(9), 0, xen.UVMF_NONE) == 0
        assert world.frames.owner_of(mfn) is None
        before = releases(scene, mfn)
        assert world.heap.run(1) == mfn
        world.heap.assign(scene.other.memory, mfn, 1)
        assert let_go(scene, mfn, before) == [1, 1]

    def test_a_frame_of_xens_too(self, scene: Scene) -> None:
        world = scene.world
        mfn = world.heap.xen_frame()
        for core in world.cores:
            world.shootdown.core(core)
        world.frames.stamps[mfn] = 0
        world.heap.release_xen(mfn)
        before = releases(scene, mfn)
        while (taken := world.heap.run(1)) != mfn:
            assert taken is not None
        world.heap.assign(scene.other.memory, mfn, 1)
        assert let_go(scene, mfn, before) == [1, 1]

    def test_frames_that_go_in_bulk_are_stamped(self, scene: Scene) -> None:
        guest, world = scene.guest, scene.world
        table, victim = scene.table(30), scene.frames[9]
        for slot in range(100):
            world.memory.store64(scene.at(table, slot), victim << 12 | 0x67)
        assert guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == 0
        assert guest.update_va_mapping(scene.domain.va(9), 0, 0) == 0
        world.frames.stamps[victim] = 0
        assert guest.extended(xen.MMUEXT_UNPIN_TABLE, table) == 0
        assert world.frames.stamps[victim] == world.shootdown.clock

    def test_a_run_of_frames(self, scene: Scene) -> None:
        world = scene.world
        first = world.heap.run(4, 4)
        assert first is not None
        world.heap.assign(scene.domain.memory, first, 4)
        for core in world.cores:
            world.shootdown.core(core)
        for mfn in range(first, first + 4):
            world.types.drop_own_reference(mfn)
        before = counts(scene)
        assert world.heap.run(4, 4) == first
        world.heap.assign(scene.other.memory, first, 4)
        assert since(scene, before) == [1, 1]

    def test_a_new_page_of_the_machine_to_phys_table(self, scene: Scene) -> None:
        """Where guests saw the page all share they see another from now on."""
        world = scene.world
        assert not world.m2p.wide.there(2048)
        before = counts(scene)
        world.m2p.set(2048, 7)
        assert all(done > 0 for done in since(scene, before))
        before = counts(scene)
        world.m2p.set(2049, 7)
        assert since(scene, before) == [0, 0]
