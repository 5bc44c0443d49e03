"""LDT pages are unmapped when a read-only mapping of a descriptor table goes: of all vCPUs, and flushed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from firmware.abi import grant_table as gnt
from firmware.abi import xen
from firmware.abi.errno import EINVAL
from firmware.memory.frames import SEGMENT_DESCRIPTORS
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
        self.flushed = [core.flushes for core in self.world.cores]

    def mapped(self) -> list[bool]:
        area = self.world.descriptors.area(self.domain.id)
        return [area.ldt_page(vcpu.id, 0) is not None for vcpu in self.domain.all]

    def flushes(self) -> list[bool]:
        pairs = zip(self.world.cores, self.flushed, strict=True)
        return [core.flushes > before for core, before in pairs]

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
def test_unmapping_a_descriptor_table_unmaps_the_ldts(
    tables: Tables, unmap: Callable[[Any, int], int], pfn: int
) -> None:
    assert tables.mapped() == [True, True]
    assert unmap(tables, pfn) == 0
    assert tables.mapped() == [False, False]
    assert tables.flushes() == [True, True]
    assert tables.world.frames.type_count(tables.frames[LDT]) == 0
    assert not tables.world.types.ldt_users
    tables.holds()


def test_a_32_bit_guest_may_name_xens_part_and_gets_nothing_of_it() -> None:
    scene = Scene(pv32=True)
    for base in (0xF580_0000, 0xFC00_0000, 0xFFFF_F000):
        assert scene.guest.extended(xen.MMUEXT_SET_LDT, base, 8192) == 0
        assert not scene.world.descriptors.map_ldt_page(scene.guest.vcpu, 0)
        assert not scene.world.descriptors.map_ldt_page(scene.guest.vcpu, 0xF000)
    assert scene.guest.extended(xen.MMUEXT_SET_LDT, 0xFFFF_F001, 1) == -EINVAL


def test_it_is_mapped_again_while_it_is_shown(tables: Tables) -> None:
    assert one(tables, GDT) == 0
    assert tables.world.descriptors.map_ldt_page(tables.guest.vcpu, 0)
    assert tables.mapped() == [True, False]
    assert one(tables, LDT) == 0
    assert not tables.world.descriptors.map_ldt_page(tables.guest.vcpu, 0)
    tables.holds()


def test_a_table_with_such_an_entry_taken_apart(tables: Tables) -> None:
    new = tables.full_table()
    assert tables.mapped() == [True, True]
    assert tables.guest.extended(xen.MMUEXT_UNPIN_TABLE, new) == 0
    assert tables.mapped() == [False, False]
    tables.holds()


def test_other_mappings_leave_it_alone(tables: Tables) -> None:
    assert one(tables, OTHER) == 0
    assert one(tables, 20) == 0
    assert one(tables, tables.frames.index(tables.l2)) == 0
    frame = tables.frames[LDT] << 12
    assert tables.guest.mmu_update((tables.at(tables.l1, LDT), frame | READ_ONLY | 1 << 63)) == 0
    assert tables.mapped() == [True, True]
    assert tables.flushes() == [False, False]


def test_a_descriptor_table_no_longer_in_use_leaves_it_alone(tables: Tables) -> None:
    assert tables.guest.set_gdt([], 0) == 0
    assert one(tables, GDT) == 0
    assert tables.mapped() == [True, True]
    tables.holds()


def test_another_domains_mapping_leaves_it_alone(tables: Tables) -> None:
    """A grant of the LDT's page, mapped read-only by the other domain, which then maps something over it."""
    tables.guest.grant(9, tables.other.id, tables.frames[LDT], gnt.GTF_permit_access | gnt.GTF_readonly)
    stranger = Guest(tables.world, tables.other.all[0], tables.ledger)
    tables.world.schedule(stranger.vcpu, tables.world.cores[1])
    flags = gnt.GNTMAP_host_map | gnt.GNTMAP_readonly
    status, _ = stranger.map_grant(tables.domain.id, 9, flags, tables.other.va(6))
    assert status == 0
    assert tables.world.frames.type_of(tables.frames[LDT]) == SEGMENT_DESCRIPTORS
    assert stranger.update_va_mapping(tables.other.va(6), 0, 0) == 0
    assert tables.mapped() == [True, True]
