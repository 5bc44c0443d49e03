"""LDT pages stay mapped when nothing of the guest's shows them any more, and keep their type.

Xen can unmap them then, but only when built for it (CONFIG_PV_LDT_PAGING), which is not the default; the real
one the attack guests ran on does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from firmware.abi import grant_table as gnt
from firmware.abi import xen
from firmware.abi.errno import EBUSY, EINVAL
from tests.memory.guest_model import Guest
from tests.memory.test_mmu import Scene

LDT, GDT, OTHER = 10, 12, 14
READ_ONLY = 0x61


class Tables(Scene):
    """Both vCPUs have page LDT as their LDT, mapped; the first has page GDT as its GDT."""

    def __init__(self) -> None:
        super().__init__()
        self.second = Guest(self.world, self.domain.all[1], self.ledger)
        for pfn in (LDT, GDT, OTHER):
            self.table(pfn)
        assert self.guest.set_gdt([self.frames[GDT]], 100) == 0
        for guest in (self.guest, self.second):
            assert guest.extended(xen.MMUEXT_SET_LDT, self.domain.va(LDT), 100) == 0
            assert self.world.descriptors.map_ldt_page(guest.vcpu, 0)

    def mapped(self) -> list[bool]:
        area = self.world.descriptors.area(self.domain.id)
        return [area.ldt_page(vcpu.id, 0) is not None for vcpu in self.domain.all]

    def full_table(self) -> int:
        """An L1 table of many entries, one of them a read-only one of the LDT's page; in use."""
        new = self.table(30)
        for slot in range(40):
            self.world.memory.store64(self.at(new, slot), self.frames[OTHER] << 12 | READ_ONLY)
        self.world.memory.store64(self.at(new, 7), self.frames[LDT] << 12 | READ_ONLY)
        assert self.guest.extended(xen.MMUEXT_PIN_L1_TABLE, new) == 0
        return new


@pytest.fixture
def tables() -> Tables:
    return Tables()


def one(tables: Tables, pfn: int) -> int:
    return tables.guest.mmu_update((tables.at(tables.l1, pfn), 0))


def several(tables: Tables, pfn: int) -> int:
    return tables.guest.mmu_update((tables.at(tables.l1, 40), 0), (tables.at(tables.l1, pfn), 0))


def by_address(tables: Tables, pfn: int) -> int:
    return tables.guest.update_va_mapping(tables.domain.va(pfn), 0, 0)


def by_store(tables: Tables, pfn: int) -> int:
    tables.domain.vm_assist = 1 << xen.VMASST_TYPE_writable_pagetables
    va = tables.domain.va(tables.frames.index(tables.l1)) + pfn * 8
    return 0 if tables.guest.store_to_table(va, 0) else -1


def by_grant(tables: Tables, pfn: int) -> int:
    source = Guest(tables.world, tables.other.all[0], tables.ledger)
    source.grant(9, tables.domain.id, tables.other.frames[5], gnt.GTF_permit_access)
    status, _ = tables.guest.map_grant(tables.other.id, 9, gnt.GNTMAP_host_map, tables.domain.va(pfn))
    return status


@pytest.mark.parametrize("pfn", [LDT, GDT])
@pytest.mark.parametrize("unmap", [one, several, by_address, by_store, by_grant])
def test_unmapping_a_descriptor_table_leaves_the_ldts(
    tables: Tables, unmap: Callable[[Any, int], int], pfn: int
) -> None:
    assert unmap(tables, pfn) == 0
    assert tables.mapped() == [True, True]
    assert tables.world.frames.type_count(tables.frames[LDT]) == 2
    assert tables.guest.mmu_update((tables.at(tables.l1, 41), tables.frames[pfn] << 12 | 0x63)) == -EBUSY
    tables.holds()


def test_a_table_with_such_an_entry_taken_apart(tables: Tables) -> None:
    assert tables.guest.extended(xen.MMUEXT_UNPIN_TABLE, tables.full_table()) == 0
    assert tables.mapped() == [True, True]
    tables.holds()


def test_a_new_page_is_mapped_from_what_is_shown_then(tables: Tables) -> None:
    """What set_ldt drops comes back only if the guest's tables show it."""
    assert one(tables, LDT) == 0
    for guest in (tables.guest, tables.second):
        assert guest.extended(xen.MMUEXT_SET_LDT, tables.domain.va(LDT), 200) == 0
        assert not tables.world.descriptors.map_ldt_page(guest.vcpu, 0)
    assert tables.mapped() == [False, False]
    assert tables.guest.mmu_update((tables.at(tables.l1, 41), tables.frames[LDT] << 12 | 0x63)) == 0
    tables.holds()


def test_a_32_bit_guest_may_name_xens_part_and_gets_nothing_of_it() -> None:
    scene = Scene(pv32=True)
    for base in (0xF580_0000, 0xFC00_0000, 0xFFFF_F000):
        assert scene.guest.extended(xen.MMUEXT_SET_LDT, base, 8192) == 0
        assert not scene.world.descriptors.map_ldt_page(scene.guest.vcpu, 0)
        assert not scene.world.descriptors.map_ldt_page(scene.guest.vcpu, 0xF000)
    assert scene.guest.extended(xen.MMUEXT_SET_LDT, 0xFFFF_F001, 1) == -EINVAL
