"""Emulated stores to L1 tables: who, where, what, and everything that can go wrong under way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from firmware.abi import grant_table as gnt
from firmware.abi import xen
from firmware.memory.ptwr import EFLAGS_TF, FAULT_FETCH, FAULT_PRESENT, FAULT_RESERVED, FAULT_WRITE
from tests.memory.guest_model import Guest
from tests.memory.test_mmu import Scene

STORE = FAULT_PRESENT | FAULT_WRITE


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.domain.vm_assist = 1 << xen.VMASST_TYPE_writable_pagetables
    return scene


@pytest.fixture
def slot(scene: Scene) -> int:
    """Where the guest sees the entry that maps its frame 20."""
    return scene.domain.va(scene.frames.index(scene.l1)) + 20 * 8


def stored(scene: Scene, slot: int, offset: int, word: int, size: int = 8) -> None:
    """The processor stores into the page it is shown."""
    mfn, _ = scene.guest.vcpu.core.tlb[0, slot >> 12]
    scene.world.memory.write((mfn << 12) + (slot & 0xFFF) + offset, word.to_bytes(8, "little")[:size])


def two_words(scene: Scene, slot: int) -> None:
    stored(scene, slot, 0, 0)
    stored(scene, slot, 8, 0)


class TestBegin:
    @pytest.mark.parametrize(
        "error",
        [
            0,
            FAULT_PRESENT,
            FAULT_WRITE,
            STORE | FAULT_RESERVED,
            STORE | FAULT_FETCH,
            FAULT_PRESENT | FAULT_FETCH,
        ],
    )
    def test_other_faults(self, scene: Scene, slot: int, error: int) -> None:
        assert not scene.world.ptwr.begin(scene.guest.vcpu, slot, error)
        assert not scene.world.ptwr.pending(scene.guest.vcpu)

    def test_user_mode(self, scene: Scene, slot: int) -> None:
        scene.guest.vcpu.in_kernel = False
        assert not scene.world.ptwr.begin(scene.guest.vcpu, slot, STORE)

    def test_without_the_assist(self, scene: Scene, slot: int) -> None:
        scene.domain.vm_assist = ~(1 << xen.VMASST_TYPE_writable_pagetables)
        assert not scene.world.ptwr.begin(scene.guest.vcpu, slot, STORE)

    @pytest.mark.parametrize("level", [2, 3, 4])
    def test_tables_above(self, scene: Scene, level: int) -> None:
        table = scene.domain.tables[4 - level]
        va = scene.domain.va(scene.frames.index(table))
        assert not scene.world.ptwr.begin(scene.guest.vcpu, va, STORE)

    def test_pages_and_former_tables(self, scene: Scene) -> None:
        va, table = scene.domain.va(30), scene.table(30)
        begin, vcpu = scene.world.ptwr.begin, scene.guest.vcpu
        assert not begin(vcpu, va, STORE), "a page shown read-only"
        assert not begin(vcpu, scene.domain.va(9), STORE), "a page shown writable"
        assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, table) == 0
        assert begin(vcpu, va, STORE)
        scene.world.ptwr.cancel(vcpu)
        assert scene.guest.extended(xen.MMUEXT_UNPIN_TABLE, table) == 0
        assert not begin(vcpu, va, STORE)

    def test_another_domains_table(self, scene: Scene) -> None:
        """Shown through a read-only grant."""
        table = scene.other.tables[-1]
        Guest(scene.world, scene.other.all[0], scene.ledger).grant(
            8, 1, table, gnt.GTF_permit_access | gnt.GTF_readonly
        )
        va = scene.domain.va(22)
        status, _ = scene.guest.map_grant(2, 8, gnt.GNTMAP_host_map | gnt.GNTMAP_readonly, va)
        assert status == gnt.GNTST_okay
        assert not scene.world.ptwr.begin(scene.guest.vcpu, va, STORE)

    def test_an_entry_that_shows_nothing(self, scene: Scene, slot: int) -> None:
        """The fault says the page was there; its entry says by now that it is not."""
        index = scene.frames.index(scene.l1)
        assert scene.guest.mmu_update((scene.at(scene.l1, index), scene.l1 << 12 | 0x60)) == 0
        assert not scene.world.ptwr.begin(scene.guest.vcpu, slot, STORE)


class TestFinish:
    @pytest.fixture
    def begun(self, scene: Scene, slot: int) -> Scene:
        assert scene.world.ptwr.begin(scene.guest.vcpu, slot, STORE)
        return scene

    @pytest.mark.parametrize(
        ("change", "done"),
        [
            pytest.param(lambda s, at: stored(s, at, 0, 0), True, id="the word"),
            pytest.param(lambda s, at: stored(s, at, 0, s.frames[9] << 12 | 0x63), True, id="another value"),
            pytest.param(lambda s, at: None, True, id="nothing"),
            pytest.param(lambda s, at: stored(s, at, 8, 0), False, id="another word"),
            pytest.param(two_words, False, id="two words"),
            pytest.param(lambda s, at: stored(s, at, 0, s.l1 << 12 | 0x63), False, id="a writable table"),
            pytest.param(
                lambda s, at: stored(s, at, 0, s.other.frames[3] << 12 | 0x61), False, id="another's"
            ),
            pytest.param(lambda s, at: stored(s, at, 0, s.frames[9] << 12 | 0xE3), False, id="PAT"),
        ],
    )
    def test_what_was_stored(
        self, begun: Scene, slot: int, change: Callable[[Scene, int], None], done: bool
    ) -> None:
        core, old = begun.guest.vcpu.core, begun.entry(20)
        neighbour = begun.entry(21)
        change(begun, slot)
        assert begun.world.ptwr.finish(begun.guest.vcpu) is done
        assert begun.entry(21) == neighbour
        assert core.loaded == ([] if done else [core.state])
        assert done or begun.entry(20) == old
        assert (0, slot >> 12) not in core.tlb
        assert not begun.world.ptwr.pending(begun.guest.vcpu)
        assert begun.world.ptwr.finish(begun.guest.vcpu) is False, "there is none under way"
        begun.holds()

    @pytest.mark.parametrize(
        ("offset", "size", "done"),
        [
            (0, 8, True),
            (0, 4, True),
            (4, 4, True),
            (2, 2, True),
            (7, 1, True),
            (2, 4, False),
            (1, 2, False),
        ],
    )
    def test_alignment(self, scene: Scene, slot: int, offset: int, size: int, done: bool) -> None:
        """An entry that is not present may hold anything."""
        assert scene.guest.mmu_update((scene.at(scene.l1, 20), 0)) == 0
        assert scene.world.ptwr.begin(scene.guest.vcpu, slot + offset, STORE)
        stored(scene, slot, offset, 0xFEFE_FEFE_FEFE_FEFE, size)
        assert scene.world.ptwr.finish(scene.guest.vcpu) is done
        expected = (0xFEFE_FEFE_FEFE_FEFE & (1 << size * 8) - 1) << offset * 8
        assert scene.entry(20) == (expected if done else 0)

    def test_another_cpu_was_quicker(self, begun: Scene, slot: int) -> None:
        """Its value stays, and the instruction runs again."""
        core = begun.guest.vcpu.core
        stored(begun, slot, 0, begun.frames[9] << 12 | 0x63)
        assert begun.guest.mmu_update((begun.at(begun.l1, 20), begun.frames[11] << 12 | 0x67)) == 0
        assert begun.world.ptwr.finish(begun.guest.vcpu) is True
        assert core.loaded == [core.state]
        assert begun.entry(20) >> 12 & 0xFF_FFFF == begun.frames[11]
        begun.holds()

    def test_the_table_went_away(self, begun: Scene, slot: int) -> None:
        index = begun.frames.index(begun.l1)
        stored(begun, slot, 0, 0)
        assert begun.guest.mmu_update((begun.at(begun.l1, index), begun.l2 << 12 | 0x61)) == 0
        old = begun.entry(20)
        assert begun.world.ptwr.finish(begun.guest.vcpu) is False
        assert begun.entry(20) == old
        begun.holds()

    @pytest.mark.parametrize("stepping", [False, True])
    def test_the_guests_own_single_step(self, scene: Scene, slot: int, stepping: bool) -> None:
        core = scene.guest.vcpu.core
        core.flags = EFLAGS_TF if stepping else 0
        assert scene.world.ptwr.begin(scene.guest.vcpu, slot, STORE)
        assert core.stepping
        stored(scene, slot, 0, 0)
        assert scene.world.ptwr.finish(scene.guest.vcpu) is True
        assert core.stepping is stepping

    def test_a_second_page(self, begun: Scene, slot: int) -> None:
        """A store across two pages is none that Xen carries out."""
        core = begun.guest.vcpu.core
        assert not begun.world.ptwr.begin(begun.guest.vcpu, slot + 4096, STORE)
        assert core.loaded == [core.state]
        assert not begun.world.ptwr.pending(begun.guest.vcpu)
        assert not core.stepping

    def test_another_vcpus_store(self, begun: Scene) -> None:
        assert begun.world.ptwr.pending(begun.domain.all[0])
        assert not begun.world.ptwr.pending(begun.domain.all[1])
        assert begun.world.ptwr.finish(begun.domain.all[1]) is False
