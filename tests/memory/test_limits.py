"""Rules of descriptors, memory_op and guest pointers that the plain cases do not reach, one at a time."""

from __future__ import annotations

from struct import pack

import pytest

from firmware.abi import memory as mem
from firmware.abi import xen
from firmware.abi.errno import EFAULT, EINVAL, EPERM
from firmware.hypercalls import GuestFault
from firmware.memory.frames import L1_TABLE, SEGMENT_DESCRIPTORS
from firmware.memory.perdomain import GDT_PAGES
from firmware.memory.segment import checked
from tests.memory.guest_model import SELF
from tests.memory.test_mmu import Scene
from tests.memory.world import ARGUMENTS

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


class TestDescriptors:
    def test_a_32_bit_guests_gate(self) -> None:
        assert checked(0x0000_EC00_E019_1234, True) == 0x0000_8C00_E01B_1234, (
            "its level is the selector's now"
        )
        assert checked(0x0000_8C1F_E019_1234, True) == 0x0000_8C1F_E019_1234, "parameters are allowed"
        assert checked(0x0000_8C20_E019_1234, True) is None

    def test_whole_tables(self, scene: Scene) -> None:
        table = scene.table(30)
        scene.world.memory.store64(scene.at(table, 4), RING0_CODE)
        assert scene.guest.set_gdt([table], 512) == 0
        assert scene.world.entry(table, 4) == RING0_CODE | 3 << 45

    def test_gdt_entries_before_pointers(self, scene: Scene) -> None:
        call, vcpu = scene.world.call, scene.guest.vcpu
        assert call(vcpu, "set_gdt", 0x1000, 14 * 512 + 1) == -EINVAL
        assert scene.world.descriptors.install_gdt(vcpu, [], 14 * 512 + 1) == -EINVAL

    def test_an_old_gdt_is_gone(self, scene: Scene) -> None:
        guest, world = scene.guest, scene.world
        first, second = scene.table(30), scene.table(31)
        area = world.descriptors.area(1)

        def shown(page: int) -> int:
            return int(world.memory.q[area._slot(0, page) >> 3] >> 12 & 0xFF_FFFF)

        empty, reserved = shown(0), shown(GDT_PAGES)
        assert empty != reserved
        assert world.memory.read(empty << 12, 4096) == bytes(4096)
        assert guest.set_gdt([first, second], 1024) == 0
        assert (shown(0), shown(1)) == (first, second)
        assert guest.set_gdt([second], 512) == 0
        assert (shown(0), shown(1)) == (second, empty)
        assert world.frames.type_count(first) == 0
        assert guest.set_gdt([second, scene.frames[9]], 1024) == -EINVAL
        assert world.frames.type_count(second) == 1
        scene.holds()

    def test_update_descriptor_keeps_counts(self, scene: Scene) -> None:
        mfn = scene.frames[9]
        assert scene.guest.update_va_mapping(scene.domain.va(9), 0, 0) == 0
        assert scene.world.call(scene.guest.vcpu, "update_descriptor", mfn << 12, RING0_CODE) == 0
        assert scene.world.frames.type_count(mfn) == 0
        assert scene.world.frames.references(mfn) == 1
        scene.holds()

    def test_ldt_pages(self, scene: Scene) -> None:
        guest, world = scene.guest, scene.world
        table = scene.table(30)
        map_page, vcpu = world.descriptors.map_ldt_page, guest.vcpu
        assert guest.extended(xen.MMUEXT_SET_LDT, scene.domain.va(29), 1024) == 0
        assert not map_page(vcpu, 0), "it is mapped writable"
        assert map_page(vcpu, 0x1000)
        assert not map_page(vcpu, 0x1000), "a second time"
        assert world.frames.type_count(table) == 1
        scene.holds()
        assert guest.extended(xen.MMUEXT_SET_LDT, scene.domain.va(28), 512) == 0
        assert world.descriptors.area(1).ldt_page(0, 1) is None
        assert not map_page(vcpu, 0x2000), "beyond the limit"
        scene.table(29)
        assert not map_page(vcpu, 0x1000), "there is a page, but it is beyond the limit"
        assert guest.mmu_update((scene.at(scene.l1, 28), scene.entry(30) & ~1)) == 0
        assert not map_page(vcpu, 0), "not present"
        assert guest.mmu_update((scene.at(scene.l1, 28), scene.l1 << 12 | 0x61)) == 0
        assert not map_page(vcpu, 0), "a page table"
        assert world.frames.type_of(scene.l1) == L1_TABLE
        bad = scene.table(31)
        world.memory.store64(scene.at(bad, 3), BAD_DESCRIPTOR)
        assert guest.mmu_update((scene.at(scene.l1, 28), bad << 12 | 0x61)) == 0
        assert not map_page(vcpu, 0), "a descriptor that is none"
        assert world.frames.type_of(bad) != SEGMENT_DESCRIPTORS
        scene.holds()


class TestReservation:
    def request(self, scene: Scene, command: int, **fields: int) -> int:
        place = scene.guest.pass_bytes(pack("<4Q", 0, 0, 0, 0), 0x100)
        layout = mem.xen_memory_reservation.w64
        at = scene.guest.pass_bytes(
            layout.pack(**{"extent_start": place, "nr_extents": 1, "domid": SELF} | fields)
        )
        return scene.world.call(scene.guest.vcpu, "memory_op", command, at)

    @pytest.fixture
    def roomy(self, scene: Scene) -> Scene:
        scene.domain.memory.maximum += 16
        return scene

    @pytest.mark.parametrize("command", [mem.XENMEM_increase_reservation, mem.XENMEM_populate_physmap])
    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({"nr_extents": 1 << 30, "extent_start": 0}, id="too many"),
            pytest.param({"domid": 2}, id="another domain"),
            pytest.param({"extent_start": XEN_ADDRESS}, id="a list in Xen"),
            pytest.param({"mem_flags": 12}, id="no address width"),
            pytest.param({"mem_flags": 20}, id="an address width without free frames"),
            pytest.param({"extent_order": 10}, id="too large"),
            pytest.param({"extent_order": 5}, id="beyond the allowance"),
        ],
    )
    def test_what_gets_nothing(self, roomy: Scene, command: int, fields: dict[str, int]) -> None:
        pages, free = roomy.domain.memory.pages, roomy.world.heap.free
        assert self.request(roomy, command, **fields) == 0
        assert (roomy.domain.memory.pages, roomy.world.heap.free) == (pages, free)

    def test_what_gets_something(self, roomy: Scene) -> None:
        assert self.request(roomy, mem.XENMEM_increase_reservation, extent_order=2) == 1
        assert roomy.domain.memory.pages == 68
        roomy.holds()

    def test_a_large_extent_is_not_given_up_either(self, scene: Scene) -> None:
        """Not even its first frames."""
        first = scene.frames[10]
        scene.guest.pass_bytes(pack("<Q", first), 0x100)
        references = scene.world.frames.references(first)
        assert self.request_kept(scene, extent_order=10) == 0
        assert scene.world.frames.references(first) == references

    def request_kept(self, scene: Scene, **fields: int) -> int:
        """A decrease of what is listed already."""
        layout = mem.xen_memory_reservation.w64
        values = {"extent_start": ARGUMENTS + 0x100, "nr_extents": 1, "domid": SELF} | fields
        at = scene.guest.pass_bytes(layout.pack(**values))
        return scene.world.call(scene.guest.vcpu, "memory_op", mem.XENMEM_decrease_reservation, at)

    def test_a_long_memory_map(self, scene: Scene) -> None:
        layout = mem.xen_foreign_memory_map.w64
        at = scene.guest.pass_bytes(
            layout.pack(domid=SELF, map={"nr_entries": 1025, "buffer": ARGUMENTS + 0x100})
        )
        assert scene.world.call(scene.guest.vcpu, "memory_op", mem.XENMEM_set_memory_map, at) == -EINVAL

    def test_runs_of_used_frames_are_cleared_and_flushed(self, roomy: Scene) -> None:
        """As single frames are."""
        guest, world = roomy.guest, roomy.world
        assert self.request(roomy, mem.XENMEM_increase_reservation, extent_order=2) == 1
        first = guest.extent(0)
        world.memory.fill(first << 12, 4 * 4096, 0x77)
        assert guest.reservation(mem.XENMEM_decrease_reservation, [first], order=2) == 1
        flushes = [core.flushes for core in world.cores]
        taken = world.heap.run(4, 4, first + 4)
        while taken is not None and taken != first:
            taken = world.heap.run(4, 4, first + 4)
        assert taken == first
        world.heap.assign(roomy.other.memory, first, 4)
        assert world.memory.read(first << 12, 4 * 4096) == bytes(4 * 4096)
        assert all(core.flushes > was for core, was in zip(world.cores, flushes, strict=True))

    def test_runs_below_a_frame(self, scene: Scene) -> None:
        heap = scene.world.heap
        start = heap.runs()[0][0]
        assert heap.run(2, 1, start + 1) is None
        assert heap.run(2, 1, start + 2) == start
        assert heap.runs()[0][0] >= start + 2


class TestExchange:
    def exchange(self, scene: Scene, source: dict[str, int], target: dict[str, int], done: int = 0) -> int:
        fields = {"extent_start": ARGUMENTS + 0x100, "nr_extents": 1, "domid": SELF}
        outs = fields | {"extent_start": ARGUMENTS + 0x200}
        layout = mem.xen_memory_exchange.w64
        at = scene.guest.pass_bytes(layout.pack(in_=fields | source, out=outs | target, nr_exchanged=done))
        return scene.world.call(scene.guest.vcpu, "memory_op", mem.XENMEM_exchange, at)

    @pytest.fixture
    def scene(self) -> Scene:
        """Frames 10 to 13 are mapped nowhere and listed as what is given."""
        scene = Scene()
        for pfn in range(10, 14):
            assert scene.guest.update_va_mapping(scene.domain.va(pfn), 0, 0) == 0
        scene.guest.pass_bytes(pack("<4Q", *scene.frames[10:14]), 0x100)
        scene.guest.pass_bytes(pack("<4Q", 10, 11, 12, 13), 0x200)
        return scene

    @pytest.mark.parametrize(
        ("source", "target", "done", "result"),
        [
            pytest.param({}, {}, 0, 0, id="good"),
            pytest.param({"nr_extents": 2}, {}, 0, -EINVAL, id="two for one"),
            pytest.param({}, {}, 2, -EINVAL, id="more done than there are"),
            pytest.param({}, {"domid": 2}, 0, -EINVAL, id="two domains"),
            pytest.param({"domid": 2}, {"domid": 2}, 0, -EPERM, id="another domain"),
            pytest.param({"extent_order": 10}, {"extent_order": 10}, 0, -EPERM, id="too large"),
            pytest.param({}, {"mem_flags": 12}, 0, -12, id="no address width"),
            pytest.param({"extent_start": XEN_ADDRESS}, {}, 0, -EFAULT, id="given list in Xen"),
            pytest.param({}, {"extent_start": XEN_ADDRESS}, 0, -EFAULT, id="wanted list in Xen"),
            pytest.param(
                {"nr_extents": 1 << 63, "extent_order": 1},
                {"nr_extents": 1 << 63, "extent_order": 1},
                0,
                -EINVAL,
                id="overflow",
            ),
        ],
    )
    def test_arguments(
        self, scene: Scene, source: dict[str, int], target: dict[str, int], done: int, result: int
    ) -> None:
        assert self.exchange(scene, source, target, done) == result
        assert (scene.world.frames.owner_of(scene.frames[10]) is None) is (result == 0)
        assert scene.domain.memory.pages == 64
        scene.holds()

    def test_a_node_that_is_not_there(self, scene: Scene) -> None:
        flags = mem.XENMEMF_exact_node_request | 2 << 8
        assert self.exchange(scene, {}, {"mem_flags": flags}) == -EINVAL
        scene.holds()

    def test_a_bad_frame_among_good_ones(self, scene: Scene) -> None:
        scene.guest.pass_bytes(pack("<2Q", scene.frames[10], scene.frames[20]), 0x100)
        assert self.exchange(scene, {"nr_extents": 2}, {"extent_order": 1}) == -EINVAL
        assert scene.world.frames.owner_of(scene.frames[10]) == 1
        scene.holds()

    def test_when_memory_runs_out(self, scene: Scene) -> None:
        heap = scene.world.heap
        while heap.free > 1:
            heap.run(1)
        scene.guest.pass_bytes(pack("<Q", scene.frames[10]), 0x100)
        assert self.exchange(scene, {"extent_order": 1}, {"nr_extents": 2}) == -12
        assert heap.free == 1
        assert scene.world.frames.owner_of(scene.frames[10]) == 1
        assert scene.domain.memory.pages == 64


class TestPointers:
    def test_what_may_be_named(self, scene: Scene) -> None:
        allowed = scene.guest.vcpu.space.allowed
        assert [allowed(at) for at in (0, (1 << 47) - 1, 0xFFFF_8800_0000_0000, (1 << 64) - 1)] == [True] * 4
        assert [allowed(at) for at in (1 << 47, XEN_ADDRESS, 0xFFFF_87FF_FFFF_FFFF, 1 << 63)] == [False] * 4

    def test_xens_slots_are_not_read(self, scene: Scene) -> None:
        """They are in the guest's root, but not for the hypervisor on its behalf."""
        with pytest.raises(GuestFault):
            scene.guest.vcpu.space.read(0xFFFF_8200_0000_0000, 8)

    def test_lists_outside_are_refused_even_when_empty(self, scene: Scene) -> None:
        call, vcpu = scene.world.call, scene.guest.vcpu
        assert call(vcpu, "mmu_update", XEN_ADDRESS, 0, 0, SELF) == -EFAULT
        assert call(vcpu, "mmuext_op", XEN_ADDRESS, 0, 0, SELF) == -EFAULT
        assert call(vcpu, "grant_table_op", 0, XEN_ADDRESS, 0) == -EFAULT

    def test_pages_outside_are_not_flushed(self, scene: Scene) -> None:
        guest = scene.guest
        for command in (xen.MMUEXT_INVLPG_LOCAL, xen.MMUEXT_INVLPG_ALL):
            assert guest.extended(command, XEN_ADDRESS) == 0
        mask = guest.pass_bytes(pack("<Q", 1), 0x400)
        assert guest.extended(xen.MMUEXT_INVLPG_MULTI, XEN_ADDRESS, mask) == 0
        assert XEN_ADDRESS not in [*scene.world.cores[0].pages, *scene.world.cores[1].pages]

    def test_pages_that_are_not_neighbours(self, scene: Scene) -> None:
        """Each part of an access goes through its own entry, remembered or not."""
        space, va = scene.guest.vcpu.space, scene.domain.va(20)
        first, second = scene.frames[9], scene.frames[3]
        for slot, mfn in ((20, first), (21, second)):
            assert scene.guest.mmu_update((scene.at(scene.l1, slot), mfn << 12 | 0x67)) == 0
        for text in (b"across two pages", b"behind its back!"):
            space.write(va + 4090, text)
            assert space.read(va + 4090, 16) == text
            assert scene.world.memory.read(first << 12 | 4090, 6) == text[:6]
            assert scene.world.memory.read(second << 12, 10) == text[6:]

    def test_rights_of_what_is_remembered(self, scene: Scene) -> None:
        space, va = scene.guest.vcpu.space, scene.domain.va(20)
        space.write(va, b"x")
        assert space.translate(va, True) == scene.frames[20] << 12
        assert scene.guest.mmu_update((scene.at(scene.l1, 20), scene.frames[20] << 12 | 0x61)) == 0
        for _ in range(2):
            with pytest.raises(GuestFault):
                space.write(va, b"x")
            with pytest.raises(GuestFault):
                space.translate(va, True)
        assert space.translate(va, False) == scene.frames[20] << 12
        assert scene.guest.mmu_update((scene.at(scene.l1, 20), 0)) == 0
        for access in (space.read64, lambda at: space.read(at, 1), lambda at: space.translate(at, False)):
            with pytest.raises(GuestFault):
                access(va)

    def test_rights_of_the_tables_above(self, scene: Scene) -> None:
        space, va = scene.guest.vcpu.space, scene.domain.va(20)
        assert scene.guest.mmu_update((scene.at(scene.l2, 0), scene.l1 << 12 | 0x61)) == 0
        with pytest.raises(GuestFault):
            space.write(va, b"x")
        assert space.read(va, 1) == b"\0"
        for _ in range(2):
            with pytest.raises(GuestFault):
                space.write(va, b"x")
        assert scene.guest.mmu_update((scene.at(scene.l2, 0), scene.l1 << 12 | 0x66)) == 0
        with pytest.raises(GuestFault):
            space.read(va, 1)

    def test_a_new_root_has_its_own_tables_and_rights(self, scene: Scene) -> None:
        guest, space, va = scene.guest, scene.guest.vcpu.space, scene.domain.va(20)
        slot, l3 = scene.domain.base >> 39 & 511, scene.domain.tables[1]
        roots = scene.table(30), scene.table(31)
        scene.world.memory.store64(scene.at(roots[1], slot), l3 << 12 | 0x61)
        for root in roots:
            assert guest.extended(xen.MMUEXT_PIN_L4_TABLE, root) == 0
        space.write(va, b"x")
        assert guest.extended(xen.MMUEXT_NEW_BASEPTR, roots[1]) == 0
        with pytest.raises(GuestFault):
            space.write(va, b"y")
        assert space.read(va, 1) == b"x"
        assert guest.extended(xen.MMUEXT_NEW_BASEPTR, roots[0]) == 0
        with pytest.raises(GuestFault):
            space.read(va, 1)
