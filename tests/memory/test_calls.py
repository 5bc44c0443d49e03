"""Descriptors, memory_op, grants, stores to tables and guest pointers, one rule at a time."""

from __future__ import annotations

from struct import pack

import pytest

from firmware.abi import grant_table as gnt
from firmware.abi import memory as mem
from firmware.abi import xen
from firmware.abi.errno import EACCES, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH
from firmware.hypercalls import GuestFault
from firmware.memory.frames import L1_TABLE, SEGMENT_DESCRIPTORS
from firmware.memory.segment import checked
from tests.memory.guest_model import SELF, Guest
from tests.memory.test_mmu import Scene
from tests.memory.world import ARGUMENTS

FLAT_CODE = 0x00AF_FB00_0000_FFFF


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def neighbour(scene: Scene) -> Guest:
    """The other domain's side of a grant."""
    return Guest(scene.world, scene.other.all[0], scene.ledger)


class TestDescriptors:
    @pytest.mark.parametrize(
        ("descriptor", "pv32", "stored"),
        [
            pytest.param(0, False, 0, id="null"),
            pytest.param(0x0000_0200_0000_0000, False, 0x0000_0200_0000_0000, id="not present"),
            pytest.param(
                0x00AF_9B00_0000_FFFF, False, 0x00AF_FB00_0000_FFFF, id="ring 0 code becomes ring 3"
            ),
            pytest.param(0x00CF_9300_0000_FFFF, True, 0x00CF_B300_0000_FFFF, id="ring 0 data becomes ring 1"),
            pytest.param(0x00AF_FB00_0000_FFFF, True, None, id="long code for a 32-bit guest"),
            pytest.param(0x00C0_FB00_0000_67FF, True, 0x00C0_FB00_0000_67FF, id="small segment"),
            pytest.param(0x00CF_FB00_0000_67FF, True, 0x00CF_FB00_0000_FFFF, id="flat into Xen"),
            pytest.param(0x0000_8900_0000_0067, False, None, id="task state segment"),
            pytest.param(0x0000_8E00_E033_0000, False, None, id="interrupt gate"),
            pytest.param(0x0000_EC00_E033_1234, False, 0x0000_8C00_E033_1234, id="call gate loses its level"),
            pytest.param(0x0000_EC00_E010_1234, False, None, id="call gate into Xen's segments"),
            pytest.param(0x0000_EC01_E033_1234, False, None, id="call gate with parameters"),
            pytest.param(0x0000_8000_0000_0000, False, 0x0000_E000_0000_0000, id="type 0"),
        ],
    )
    def test_check(self, descriptor: int, pv32: bool, stored: int | None) -> None:
        assert checked(descriptor, pv32) == stored

    def test_set_gdt(self, scene: Scene) -> None:
        table = scene.table(30)
        assert scene.guest.set_gdt([table], 512) == 0
        assert scene.world.frames.type_of(table) == SEGMENT_DESCRIPTORS
        area = scene.world.descriptors.area(1)
        assert area.gdt_address(1) == 0xFFFF_8200_0002_0000
        assert scene.guest.mmu_update((scene.at(scene.l1, 30), table << 12 | 0x63)) < 0
        assert scene.guest.set_gdt([scene.frames[9]], 512) == -EINVAL
        assert scene.guest.set_gdt([scene.other.frames[3]], 512) == -EINVAL
        assert scene.guest.set_gdt([], 14 * 512 + 1) == -EINVAL
        assert scene.world.call(scene.guest.vcpu, "set_gdt", 0x1000, 512) == -EFAULT
        scene.holds()
        assert scene.guest.set_gdt([], 0) == 0
        assert scene.world.frames.type_count(table) == 0
        scene.holds()

    def test_update_descriptor(self, scene: Scene) -> None:
        table = scene.table(30)
        assert scene.guest.set_gdt([table], 512) == 0

        def update(at: int, value: int) -> int:
            return scene.world.call(scene.guest.vcpu, "update_descriptor", at, value)

        assert update(table << 12 | 8, 0x00AF_9B00_0000_FFFF) == 0
        assert scene.world.entry(table, 1) == FLAT_CODE
        assert update(table << 12 | 4, FLAT_CODE) == -EINVAL
        assert update(table << 12 | 8, 0x0000_8900_0000_0067) == -EINVAL
        assert update(scene.l1 << 12 | 8, FLAT_CODE) == -EINVAL
        assert update(scene.other.frames[3] << 12 | 8, FLAT_CODE) == -EINVAL
        assert update(1 << 60, FLAT_CODE) == -EINVAL
        assert update(scene.frames[9] << 12 | 8, FLAT_CODE) == 0
        scene.holds()

    def test_a_bad_descriptor_keeps_a_frame_from_being_a_gdt(self, scene: Scene) -> None:
        table = scene.table(30)
        scene.world.memory.store64(scene.at(table, 4), 0x0000_8900_0000_0067)
        assert scene.guest.set_gdt([table], 8) == -EINVAL
        scene.holds()

    def test_ldt_pages_come_on_demand(self, scene: Scene) -> None:
        table = scene.table(30)
        va, descriptors = scene.domain.va(30), scene.world.descriptors
        assert scene.guest.extended(xen.MMUEXT_SET_LDT, va, 512) == 0
        assert descriptors.map_ldt_page(scene.guest.vcpu, 0)
        assert scene.world.frames.type_of(table) == SEGMENT_DESCRIPTORS
        assert not descriptors.map_ldt_page(scene.guest.vcpu, 0x1000)
        scene.holds()
        assert scene.guest.extended(xen.MMUEXT_SET_LDT, scene.domain.va(64), 512) == 0
        assert scene.world.frames.type_count(table) == 0
        assert not descriptors.map_ldt_page(scene.guest.vcpu, 0)
        assert scene.guest.extended(xen.MMUEXT_SET_LDT, va + 8, 512) == -EINVAL
        assert scene.guest.extended(xen.MMUEXT_SET_LDT, va, 8193) == -EINVAL
        assert scene.guest.extended(xen.MMUEXT_SET_LDT, 0xFFFF_8000_0000_0000, 1) == -EINVAL
        scene.holds()


class TestReservation:
    def test_numbers(self, scene: Scene) -> None:
        at = scene.guest.pass_bytes(pack("<H", SELF))
        call, vcpu = scene.world.call, scene.guest.vcpu
        assert call(vcpu, "memory_op", mem.XENMEM_current_reservation, at) == 64
        assert call(vcpu, "memory_op", mem.XENMEM_maximum_reservation, at) == 64
        assert call(vcpu, "memory_op", mem.XENMEM_maximum_ram_page, 0) == 2304
        assert call(vcpu, "memory_op", mem.XENMEM_current_reservation, 0x1000) == -EFAULT
        at = scene.guest.pass_bytes(pack("<H", 2))
        assert call(vcpu, "memory_op", mem.XENMEM_current_reservation, at) == -EPERM
        at = scene.guest.pass_bytes(pack("<H", 7))
        assert call(vcpu, "memory_op", mem.XENMEM_current_reservation, at) == -ESRCH
        assert call(vcpu, "memory_op", 63, at) == -ENOSYS
        assert call(vcpu, "memory_op", mem.XENMEM_machine_memory_map, at) == -EPERM
        assert call(vcpu, "memory_op", mem.XENMEM_add_to_physmap, scene.guest.pass_bytes(bytes(32))) == -ESRCH
        at = scene.guest.pass_bytes(mem.xen_add_to_physmap.w64.pack(domid=SELF))
        assert call(vcpu, "memory_op", mem.XENMEM_add_to_physmap, at) == -EACCES

    def test_memory_map(self, scene: Scene) -> None:
        at = scene.guest.pass_bytes(mem.xen_memory_map.w64.pack(nr_entries=5, buffer=ARGUMENTS + 0x100))
        assert scene.world.call(scene.guest.vcpu, "memory_op", mem.XENMEM_memory_map, at) == 0
        assert scene.guest.vcpu.space.read32(at) == 1
        entry = mem.e820entry.w64.unpack(scene.guest.vcpu.space.read(ARGUMENTS + 0x100, 20))
        assert tuple(entry) == (0, 64 << 12, mem.E820_RAM)

    def test_balloon(self, scene: Scene) -> None:
        guest, world, mfn = scene.guest, scene.world, scene.frames[9]
        world.memory.fill(mfn << 12, 4096, 0x77)
        assert guest.reservation(mem.XENMEM_decrease_reservation, [mfn]) == 1
        assert world.frames.references(mfn) == 1, "still mapped"
        assert guest.reservation(mem.XENMEM_decrease_reservation, [mfn]) == 1, (
            "Xen finds its own reference gone"
        )
        assert guest.update_va_mapping(scene.domain.va(9), 0, xen.UVMF_INVLPG) == 0
        assert world.frames.owner_of(mfn) is None
        assert world.m2p.get(mfn) == (1 << 64) - 1
        assert guest.reservation(mem.XENMEM_decrease_reservation, [mfn]) == 0
        scene.holds()
        assert guest.reservation(mem.XENMEM_populate_physmap, [0x99]) == 1
        new = guest.extent(0)
        assert world.m2p.get(new) == 0x99
        assert world.memory.read(new << 12, 4096) == bytes(4096)
        assert guest.reservation(mem.XENMEM_populate_physmap, [0x9A]) == 0, "no allowance left"
        scene.holds()

    def test_a_frame_is_cleared_before_it_is_reused(self, scene: Scene) -> None:
        guest, world = scene.guest, scene.world
        first = scene.frames[9]
        world.memory.fill(first << 12, 4096, 0x77)
        assert guest.update_va_mapping(scene.domain.va(9), 0, 0) == 0
        assert guest.reservation(mem.XENMEM_decrease_reservation, [first]) == 1
        taken = world.heap.run(1)
        assert taken == first
        releases = world.cores[0].releases(first)
        world.heap.assign(scene.other.memory, first, 1)
        assert world.memory.read(first << 12, 4096) == bytes(4096)
        assert world.cores[0].releases(first) > releases, "the old owner may still have had a translation"

    def test_orders_and_foreign_domains(self, scene: Scene) -> None:
        guest = scene.guest
        assert guest.reservation(mem.XENMEM_decrease_reservation, [scene.frames[4]], order=10) == 0
        assert guest.reservation(mem.XENMEM_decrease_reservation, [scene.other.frames[4]], domid=2) == 0
        assert (
            guest.reservation(mem.XENMEM_decrease_reservation, [scene.frames[4], scene.other.frames[4]]) == 1
        )
        assert guest.reservation(mem.XENMEM_decrease_reservation, [1 << 40]) == 0
        scene.holds()

    def test_exchange(self, scene: Scene) -> None:
        guest = scene.guest
        old = [scene.frames[10], scene.frames[11]]
        assert guest.exchange(old, [10], 0, 1) == -EINVAL, "both are mapped"
        for pfn in (10, 11):
            assert guest.update_va_mapping(scene.domain.va(pfn), 0, 0) == 0
        assert guest.exchange(old, [10], 0, 1) == 0
        new = int.from_bytes(guest.vcpu.space.read(ARGUMENTS + 0x800, 8), "little")
        assert new % 2 == 0
        assert [scene.world.m2p.get(new), scene.world.m2p.get(new + 1)] == [10, 11]
        assert scene.domain.memory.pages == 64
        assert guest.exchange([scene.other.frames[3]], [3]) == -EINVAL
        assert guest.exchange([5], [3]) == -EINVAL
        assert guest.exchange([scene.frames[12]], [3], 10, 10) == -EPERM
        scene.holds()


class TestGrants:
    def test_setup_and_size(self, scene: Scene) -> None:
        answer = scene.guest.grant_op(gnt.GNTTABOP_query_size, gnt.gnttab_query_size, dom=SELF)
        assert (answer["result"], answer["status"], answer["nr_frames"], answer["max_nr_frames"]) == (
            0,
            0,
            1,
            64,
        )
        place = ARGUMENTS + 0x100
        answer = scene.guest.grant_op(
            gnt.GNTTABOP_setup_table, gnt.gnttab_setup_table, dom=SELF, nr_frames=4, frame_list=place
        )
        assert (answer["result"], answer["status"]) == (0, 0)
        frame = scene.guest.vcpu.space.read64(place + 24)
        assert scene.guest.update_va_mapping(scene.domain.va(20), frame << 12 | 0x63, 0) == 0
        assert scene.guest.extended(xen.MMUEXT_PIN_L1_TABLE, frame) == -EINVAL
        scene.holds()
        op = scene.guest.grant_op
        assert op(gnt.GNTTABOP_setup_table, gnt.gnttab_setup_table, dom=SELF, nr_frames=65)["status"] == -1
        assert op(gnt.GNTTABOP_setup_table, gnt.gnttab_setup_table, dom=2, nr_frames=1)["status"] == -8
        assert op(gnt.GNTTABOP_setup_table, gnt.gnttab_setup_table, dom=9, nr_frames=1)["status"] == -2
        assert (
            scene.world.call(scene.guest.vcpu, "grant_table_op", gnt.GNTTABOP_setup_table, place, 2)
            == -EINVAL
        )
        assert scene.world.call(scene.guest.vcpu, "grant_table_op", 99, place, 1) == -ENOSYS
        assert scene.world.call(scene.guest.vcpu, "grant_table_op", 0, place, 1 << 31) == -EINVAL

    def test_map_and_unmap(self, scene: Scene, neighbour: Guest) -> None:
        mfn, va = scene.other.frames[3], scene.domain.va(20)
        neighbour.grant(8, 1, mfn, gnt.GTF_permit_access)
        assert scene.guest.map_grant(2, 8, 0, va)[0] == gnt.GNTST_bad_gntref
        assert scene.guest.map_grant(9, 8, gnt.GNTMAP_host_map, va)[0] == gnt.GNTST_bad_domain
        assert scene.guest.map_grant(2, 9999, gnt.GNTMAP_host_map, va)[0] == gnt.GNTST_bad_gntref
        assert scene.guest.map_grant(2, 9, gnt.GNTMAP_host_map, va)[0] == gnt.GNTST_general_error
        status, handle = scene.guest.map_grant(2, 8, gnt.GNTMAP_host_map, va)
        assert status == gnt.GNTST_okay
        assert scene.entry(20) >> 12 & 0xFF_FFFF == mfn
        assert scene.world.grants.table(scene.other.memory).status(8) == gnt.GTF_reading | gnt.GTF_writing
        scene.holds()
        assert neighbour.mmu_update((scene.at(scene.other.tables[-1], 3), mfn << 12 | 0x61)) == 0
        assert neighbour.extended(xen.MMUEXT_PIN_L1_TABLE, mfn) == -EINVAL, "the other may write it"
        assert scene.guest.unmap_grant(handle, scene.domain.va(21)) == gnt.GNTST_general_error
        assert scene.guest.unmap_grant(handle, va) == gnt.GNTST_okay
        assert scene.guest.unmap_grant(handle, va) == gnt.GNTST_bad_handle
        assert scene.entry(20) == 0
        assert scene.world.grants.table(scene.other.memory).status(8) == 0
        assert neighbour.extended(xen.MMUEXT_PIN_L1_TABLE, mfn) == 0
        scene.holds()

    def test_a_read_only_grant(self, scene: Scene, neighbour: Guest) -> None:
        neighbour.grant(8, 1, scene.other.frames[3], gnt.GTF_permit_access | gnt.GTF_readonly)
        va = scene.domain.va(20)
        assert scene.guest.map_grant(2, 8, gnt.GNTMAP_host_map, va)[0] == gnt.GNTST_general_error
        status, handle = scene.guest.map_grant(2, 8, gnt.GNTMAP_host_map | gnt.GNTMAP_readonly, va)
        assert status == gnt.GNTST_okay
        assert not scene.entry(20) & 2
        scene.holds()
        assert scene.guest.unmap_grant(handle, va) == gnt.GNTST_okay
        scene.holds()

    def test_host_and_device_are_two_references(self, scene: Scene, neighbour: Guest) -> None:
        mfn, va = scene.other.frames[3], scene.domain.va(20)
        neighbour.grant(8, 1, mfn, gnt.GTF_permit_access)
        status, handle = scene.guest.map_grant(2, 8, gnt.GNTMAP_host_map | gnt.GNTMAP_device_map, va)
        assert status == gnt.GNTST_okay
        assert scene.world.frames.references(mfn) == 4
        assert scene.guest.unmap_grant(handle, va) == gnt.GNTST_okay
        assert scene.world.frames.references(mfn) == 3
        scene.holds()
        assert scene.guest.unmap_grant(handle, 0, 0x1000) == gnt.GNTST_bad_dev_addr
        assert scene.guest.unmap_grant(handle, 0, mfn << 12) == gnt.GNTST_okay
        scene.holds()

    def test_a_pte_by_its_machine_address(self, scene: Scene, neighbour: Guest) -> None:
        neighbour.grant(8, 1, scene.other.frames[3], gnt.GTF_permit_access)
        flags = gnt.GNTMAP_host_map | gnt.GNTMAP_contains_pte
        at = scene.at(scene.l1, 20)
        assert scene.guest.map_grant(2, 8, flags, at + 4)[0] == gnt.GNTST_general_error
        assert scene.guest.map_grant(2, 8, flags, scene.at(scene.l2, 20))[0] == gnt.GNTST_general_error
        assert (
            scene.guest.map_grant(2, 8, flags, scene.at(scene.other.tables[-1], 20))[0]
            == gnt.GNTST_general_error
        )
        scene.holds()
        status, handle = scene.guest.map_grant(2, 8, flags, at)
        assert status == gnt.GNTST_okay
        scene.holds()
        assert scene.guest.unmap_grant(handle, at) == gnt.GNTST_okay
        scene.holds()

    def test_unmap_and_replace(self, scene: Scene, neighbour: Guest) -> None:
        neighbour.grant(8, 1, scene.other.frames[3], gnt.GTF_permit_access)
        va = scene.domain.va(20)
        status, handle = scene.guest.map_grant(2, 8, gnt.GNTMAP_host_map, va)
        assert status == gnt.GNTST_okay
        moved = scene.entry(21)
        answer = scene.guest.grant_op(
            gnt.GNTTABOP_unmap_and_replace,
            gnt.gnttab_unmap_and_replace,
            host_addr=va,
            new_addr=scene.domain.va(21),
            handle=handle,
        )
        assert answer["status"] == gnt.GNTST_okay
        assert (scene.entry(20), scene.entry(21)) == (moved, 0)
        scene.holds()

    def test_the_granter_dies_while_mapped(self, scene: Scene, neighbour: Guest) -> None:
        mfn, world = scene.other.frames[3], scene.world
        neighbour.grant(8, 1, mfn, gnt.GTF_permit_access)
        assert scene.guest.map_grant(2, 8, gnt.GNTMAP_host_map, scene.domain.va(20))[0] == gnt.GNTST_okay
        world.destroy(scene.other)
        assert world.frames.owner_of(mfn) == 2
        world.destroy(scene.domain)
        assert world.frames.owner_of(mfn) is None
        assert world.heap.free + world.heap.xen == world.heap.total

    def test_copy(self, scene: Scene, neighbour: Guest) -> None:
        mfn = scene.other.frames[3]
        scene.world.memory.write(mfn << 12 | 16, b"from afar")
        neighbour.grant(8, 1, mfn, gnt.GTF_permit_access | gnt.GTF_readonly)

        def copy(length: int, source: dict[str, int], dest: dict[str, int], flags: int) -> int:
            fields = {"len": length, "flags": flags, "source": source, "dest": dest}
            return scene.guest.grant_op(gnt.GNTTABOP_copy, gnt.gnttab_copy, **fields)["status"]

        far, near = {"u": 8, "domid": 2, "offset": 16}, {"u": scene.frames[9], "domid": SELF, "offset": 8}
        assert copy(9, far, near, gnt.GNTCOPY_source_gref) == gnt.GNTST_okay
        assert scene.world.memory.read(scene.frames[9] << 12 | 8, 9) == b"from afar"
        assert copy(9, near, far, gnt.GNTCOPY_dest_gref) == gnt.GNTST_general_error
        assert copy(9, far, near, 0) == gnt.GNTST_permission_denied
        assert copy(4096, far, near, gnt.GNTCOPY_source_gref) == gnt.GNTST_bad_copy_arg
        assert copy(9, far, {**near, "u": scene.l1}, gnt.GNTCOPY_source_gref) == gnt.GNTST_general_error
        assert copy(9, far, {**near, "u": mfn}, gnt.GNTCOPY_source_gref) == gnt.GNTST_bad_page
        assert copy(9, {**far, "u": 99999}, near, gnt.GNTCOPY_source_gref) == gnt.GNTST_bad_gntref
        assert scene.world.grants.table(scene.other.memory).status(8) == 0
        scene.holds()

    def test_version_2(self, scene: Scene, neighbour: Guest) -> None:
        op = neighbour.grant_op
        assert op(gnt.GNTTABOP_set_version, gnt.gnttab_set_version, version=3)["result"] == -EINVAL
        assert op(gnt.GNTTABOP_set_version, gnt.gnttab_set_version, version=2)["version"] == 2
        assert op(gnt.GNTTABOP_get_version, gnt.gnttab_get_version, dom=SELF)["version"] == 2
        table = scene.world.grants.table(scene.other.memory)
        mfn = scene.other.frames[3]
        table.store_entry(8, gnt.GTF_permit_access | 1 << 16, mfn)
        status, handle = scene.guest.map_grant(2, 8, gnt.GNTMAP_host_map, scene.domain.va(20))
        assert status == gnt.GNTST_okay
        assert table.status(8) == gnt.GTF_reading | gnt.GTF_writing
        assert table.words(8)[0] & 0xFFFF == gnt.GTF_permit_access
        assert op(gnt.GNTTABOP_set_version, gnt.gnttab_set_version, version=1)["result"] < 0
        assert scene.guest.unmap_grant(handle, scene.domain.va(20)) == gnt.GNTST_okay
        table.store_entry(8, gnt.GTF_permit_access | gnt.GTF_sub_page | 1 << 16 | 64 << 32 | 16 << 48, mfn)
        assert (
            scene.guest.map_grant(2, 8, gnt.GNTMAP_host_map, scene.domain.va(20))[0]
            == gnt.GNTST_general_error
        )
        scene.holds()

    def test_transfer(self, scene: Scene, neighbour: Guest) -> None:
        guest, mfn = scene.guest, scene.frames[9]

        def send(ref: int) -> int:
            fields = {"mfn": mfn, "domid": 2, "ref": ref}
            return guest.grant_op(gnt.GNTTABOP_transfer, gnt.gnttab_transfer, **fields)["status"]

        assert send(8) == gnt.GNTST_bad_page, "mapped"
        assert guest.update_va_mapping(scene.domain.va(9), 0, 0) == 0
        neighbour.grant(8, 1, 0x77, gnt.GTF_accept_transfer)
        scene.other.memory.maximum += 1
        assert send(8) == gnt.GNTST_okay
        assert scene.world.frames.owner_of(mfn) == 2
        assert scene.world.m2p.get(mfn) == 0x77
        low, frame = scene.world.grants.table(scene.other.memory).words(8)
        assert (low & 0xFFFF, frame) == (gnt.GTF_accept_transfer | 12, mfn)
        assert send(8) == gnt.GNTST_bad_page
        scene.holds()


class TestStores:
    """Direct stores to L1 tables."""

    @pytest.fixture
    def slot(self, scene: Scene) -> int:
        """Where the guest sees the entry that maps its frame 20."""
        scene.domain.vm_assist = 1 << xen.VMASST_TYPE_writable_pagetables
        return scene.domain.va(scene.frames.index(scene.l1)) + 20 * 8

    def test_without_the_assist_it_faults(self, scene: Scene, slot: int) -> None:
        scene.domain.vm_assist = 0
        assert scene.guest.store_to_table(slot, 0) is None

    def test_a_store_is_checked_and_adjusted(self, scene: Scene, slot: int) -> None:
        assert scene.guest.store_to_table(slot, scene.frames[9] << 12 | 0x63) is True
        assert scene.entry(20) == scene.frames[9] << 12 | 0x63 | 1 << 52 | 4
        scene.holds()
        assert scene.guest.store_to_table(slot, 0, 1) is True
        assert not scene.entry(20) & 1
        scene.holds()

    def test_a_bad_store_is_undone(self, scene: Scene, slot: int) -> None:
        old = scene.entry(20)
        core = scene.guest.vcpu.core
        assert scene.guest.store_to_table(slot, scene.l1 << 12 | 0x63) is False
        assert core.loaded == [core.state]
        assert scene.entry(20) == old
        assert not core.stepping
        scene.holds()

    def test_only_l1_tables(self, scene: Scene, slot: int) -> None:
        assert scene.guest.store_to_table(scene.domain.va(scene.frames.index(scene.l2)), 0) is None
        assert scene.guest.store_to_table(scene.domain.va(9), 0) is None
        assert scene.guest.store_to_table(0xFFFF_8000_0000_0000, 0) is None
        scene.guest.vcpu.in_kernel = False
        assert scene.guest.store_to_table(slot, 0) is None

    def test_misaligned(self, scene: Scene, slot: int) -> None:
        old = scene.entry(20)
        assert scene.guest.store_to_table(slot + 2, 0xFFFF_FFFF, 4) is False
        assert scene.entry(20) == old

    def test_cancelled(self, scene: Scene, slot: int) -> None:
        ptwr, vcpu = scene.world.ptwr, scene.guest.vcpu
        old = scene.entry(20)
        assert ptwr.begin(vcpu, slot, 3)
        assert ptwr.pending(vcpu)
        ptwr.cancel(vcpu)
        assert not ptwr.pending(vcpu)
        assert not vcpu.core.stepping
        assert (0, slot >> 12) not in vcpu.core.tlb
        assert scene.entry(20) == old


class TestGuestSpace:
    def test_rights(self, scene: Scene) -> None:
        space, va = scene.guest.vcpu.space, scene.domain.va(20)
        space.write(va + 4090, b"across two pages")
        assert space.read(va + 4090, 16) == b"across two pages"
        assert scene.guest.update_va_mapping(va, scene.frames[20] << 12 | 0x21, 0) == 0
        with pytest.raises(GuestFault):
            space.write(va, b"x")
        assert space.read(va, 1) is not None
        assert scene.guest.update_va_mapping(va, 0, 0) == 0
        for address in (va, 0x1000, 1 << 47, 0xFFFF_8000_0000_0000, 0xFFFF_8200_0000_0000, (1 << 64) - 4):
            with pytest.raises(GuestFault):
                space.read(address, 8)

    def test_accessed_and_dirty(self, scene: Scene) -> None:
        space, va = scene.guest.vcpu.space, scene.domain.va(20)
        assert scene.guest.mmu_update((scene.at(scene.l1, 20), scene.frames[20] << 12 | 0x3)) == 0
        space.read(va, 8)
        assert scene.entry(20) & 0x60 == 0x20
        space.write(va, b"x")
        assert scene.entry(20) & 0x60 == 0x60

    def test_tables_remembered_are_forgotten_when_they_change(self, scene: Scene) -> None:
        space, va = scene.guest.vcpu.space, scene.domain.va(20)
        space.write64(va, 0x1234)
        assert space.read64(va) == 0x1234
        assert scene.guest.mmu_update((scene.at(scene.l2, 0), 0)) == 0
        with pytest.raises(GuestFault):
            space.read64(va)

    def test_types(self, scene: Scene) -> None:
        assert scene.world.frames.type_of(scene.l1) == L1_TABLE
