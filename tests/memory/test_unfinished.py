"""Tables whose check failed half way: taken apart at once, but for those Xen forgets below a slot 0."""

from __future__ import annotations

import pytest

from firmware.abi import xen
from firmware.abi.errno import EBUSY, EINVAL, EPERM, ESRCH
from firmware.memory.frames import L2_TABLE, NONE, PARTIAL
from firmware.memory.owner import DOMID_IO
from tests.memory.test_mmu import Scene

TABLE = 0x67
NO_FRAME = 0xFF_FFFF_F000
WRITABLE_ENTRY = 0x63


class Towers(Scene):
    """Tables of all levels to be: the L2 names the L1 first, and further on no frame at all."""

    def __init__(self) -> None:
        super().__init__()
        self.new_l1, self.new_l2, self.new_l3, self.new_l4 = (self.table(pfn) for pfn in (40, 41, 42, 43))
        self.put(self.new_l2, 0, self.new_l1 << 12 | TABLE)
        self.put(self.new_l2, 4, NO_FRAME | TABLE)

    def put(self, table: int, slot: int, entry: int) -> None:
        assert self.guest.mmu_update((self.at(table, slot), entry)) == 0

    def pin(self, level: int, mfn: int) -> int:
        return self.guest.extended(xen.MMUEXT_PIN_L1_TABLE + level - 1, mfn)

    def map_writable(self, pfn: int) -> int:
        return self.guest.mmu_update((self.at(self.l1, pfn), self.frames[pfn] << 12 | WRITABLE_ENTRY))

    def lose(self) -> None:
        """The L2 fails further on, the L3 for it in its first slot, the L4 for that in another."""
        self.put(self.new_l3, 0, self.new_l2 << 12 | TABLE)
        self.put(self.new_l4, 2, self.new_l3 << 12 | TABLE)
        assert self.pin(4, self.new_l4) == -EINVAL


@pytest.fixture
def towers() -> Towers:
    return Towers()


def test_a_table_that_fails_is_a_page_again(towers: Towers) -> None:
    assert towers.pin(2, towers.new_l2) == -EINVAL
    towers.holds()
    assert towers.map_writable(41) == 0
    assert towers.map_writable(40) == 0
    towers.holds()


def test_tables_that_fail_below_a_later_slot_are_pages_again(towers: Towers) -> None:
    towers.put(towers.new_l3, 7, towers.new_l2 << 12 | TABLE)
    towers.put(towers.new_l4, 2, towers.new_l3 << 12 | TABLE)
    assert towers.pin(4, towers.new_l4) == -EINVAL
    towers.holds()
    assert [towers.map_writable(pfn) for pfn in (40, 41, 42, 43)] == [0, 0, 0, 0]
    towers.holds()


def test_a_table_below_a_first_slot_stays_half_checked(towers: Towers) -> None:
    towers.lose()
    towers.holds()
    types = towers.world.types.types
    assert types[towers.new_l2] & PARTIAL
    assert [towers.map_writable(pfn) for pfn in (40, 41, 42, 43)] == [-EBUSY, -EBUSY, 0, 0]
    assert towers.pin(1, towers.new_l2) == -EINVAL
    assert towers.guest.mmu_update((towers.at(towers.new_l2, 4), 0)) == -EINVAL
    towers.holds()


def test_checking_it_again_goes_on_where_it_failed(towers: Towers) -> None:
    towers.lose()
    assert towers.pin(2, towers.new_l2) == -EINVAL
    towers.holds()
    assert towers.world.frames.type_count(towers.new_l2) == 0
    assert [towers.map_writable(pfn) for pfn in (40, 41)] == [0, 0]
    towers.holds()


def test_when_what_was_wrong_is_right_the_check_succeeds(towers: Towers) -> None:
    spare = towers.table(44)
    towers.put(towers.new_l2, 4, spare << 12 | TABLE)
    assert towers.pin(2, spare) == 0
    towers.lose()
    assert towers.guest.extended(xen.MMUEXT_UNPIN_TABLE, spare) == 0
    assert towers.pin(2, towers.new_l2) == 0
    towers.holds()
    assert towers.world.frames.type_of(towers.new_l2) == L2_TABLE
    assert towers.guest.extended(xen.MMUEXT_UNPIN_TABLE, towers.new_l2) == 0
    assert towers.map_writable(40) == 0
    towers.holds()


def test_a_dead_domain_gives_it_back(towers: Towers) -> None:
    towers.lose()
    types, frames = towers.world.types.types, towers.world.frames
    towers.world.destroy(towers.domain)
    assert not frames.lost
    assert not frames.partial
    assert types[towers.new_l2] & 7 == NONE
    assert not frames.owned_by(towers.domain.id)


def test_an_unknown_owner_of_pages_is_counted_as_nothing_done(towers: Towers) -> None:
    at = towers.guest.pass_bytes(b"\7\0\0\0", 0x400)
    request = (towers.at(towers.l1, 20), 0)
    assert towers.guest.mmu_update(request, foreign=0x1234, done=at) == -ESRCH
    assert towers.guest.vcpu.space.read(at, 4) == bytes(4)


def test_an_unknown_owner_of_tables_is_not_counted(towers: Towers) -> None:
    at = towers.guest.pass_bytes(b"\7\0\0\0", 0x400)
    request = (towers.at(towers.l1, 20), 0)
    assert towers.guest.mmu_update(request, foreign=0x1235 << 16 | xen.DOMID_SELF, done=at) == -ESRCH
    assert towers.guest.vcpu.space.read(at, 4) == b"\7\0\0\0"


@pytest.mark.parametrize("entry", [0, 0xFEC0_0000 | TABLE])
def test_device_memory_is_not_mapped_by_address(towers: Towers, entry: int) -> None:
    va = towers.domain.va(20)
    result = towers.world.call(
        towers.guest.vcpu, "update_va_mapping_otherdomain", va, entry, 0, DOMID_IO
    )
    assert result == -EPERM
