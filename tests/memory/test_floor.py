"""The floor as a whole: frames held for Xen's own writes, roots of new vCPUs, the end of a domain."""

from __future__ import annotations

import pytest

from firmware.abi.errno import EINVAL
from firmware.memory.floor import MemoryFloor
from firmware.memory.frames import WRITABLE
from firmware.memory.owner import MemoryOwner
from tests.memory.world import FIRST_FREE, PlainCore, PlainDomain, PlainMemory, PlainVCpu, ScratchSpace

PAGES = 64


class Setting:
    """A floor with one domain of two vCPUs, its frames plain."""

    def __init__(self, *, pv32: bool = False) -> None:
        memory = PlainMemory(2304)
        self.cores = [PlainCore(0), PlainCore(1)]
        self.floor = MemoryFloor(memory, self.cores, FIRST_FREE, self)
        self.owner = MemoryOwner(1, pv32=pv32, maximum=PAGES, vcpus=2)
        self.domain = PlainDomain(1, self.owner)
        self.free = self.floor.heap.free
        self.floor.add_domain(self.domain)
        self.frames = self.floor.heap.allocate(self.owner, PAGES)
        for index, core in enumerate(self.cores):
            vcpu = PlainVCpu(index, self.domain, core, ScratchSpace(memory, self.owner, 0))
            self.domain.all.append(vcpu)
        self.first, self.second = self.domain.all

    def by_id(self, domid: int) -> PlainDomain | None:
        return self.domain if domid == 1 else None

    def entry(self, mfn: int, slot: int) -> int:
        return int(self.floor.types.memory.q[(mfn << 9) + slot])


@pytest.fixture
def setting() -> Setting:
    return Setting()


def test_a_held_frame_is_no_table_and_not_given_away(setting: Setting) -> None:
    floor, mfn = setting.floor, setting.frames[3]
    assert floor.take_info_frame(setting.first, mfn) == 0
    assert floor.frames.type_of(mfn) == WRITABLE
    assert floor.types.pin(mfn, setting.owner, 1) == -EINVAL
    floor.types.drop_own_reference(mfn)
    assert floor.frames.owner_of(mfn) == 1, "Xen still writes it"
    assert floor.types.steal(mfn, setting.owner) == -EINVAL
    for other in (2304, 1 << 40, 0x105):
        assert floor.take_info_frame(setting.first, other) == -EINVAL
    assert floor.types.pin(setting.frames[4], setting.owner, 1) == 0
    assert floor.take_info_frame(setting.first, setting.frames[4]) == -EINVAL, "a table"
    floor.remove_domain(setting.domain)
    assert floor.frames.owner_of(mfn) is None
    assert floor.heap.free == setting.free


def test_roots_of_a_new_vcpu(setting: Setting) -> None:
    floor, root, user = setting.floor, setting.frames[3], setting.frames[4]
    assert floor.start_root(setting.first, root) == 0
    assert (setting.first.kernel_root, setting.first.space.root) == (root, root << 12)
    assert floor.frames.type_count(root) == 2, "pinned and loaded"
    assert floor.take_root(setting.second, root, kernel=True) == 0
    assert floor.frames.type_count(root) == 3
    assert setting.entry(root, 256) == floor.slots.m2p_entry
    floor.give_root(root)
    assert floor.frames.type_count(root) == 2
    assert floor.take_root(setting.second, 1 << 30, kernel=True) == -EINVAL
    assert floor.types.pin(setting.frames[5], setting.owner, 1) == 0
    assert floor.take_root(setting.second, setting.frames[5], kernel=True) == -EINVAL
    assert floor.take_root(setting.second, user, kernel=False) == 0
    assert setting.entry(user, 256) == 0
    setting.owner.m2p_strict = True
    assert floor.types.pin(setting.frames[6], setting.owner, 4) == 0
    assert setting.entry(setting.frames[6], 256) == floor.slots.m2p_entry
    assert floor.take_root(setting.second, setting.frames[6], kernel=False) == 0
    assert setting.entry(setting.frames[6], 256) == 0


def test_everything_comes_back(setting: Setting) -> None:
    """Roots, descriptor tables, pins, held frames, the per-domain area."""
    floor, frames = setting.floor, setting.frames
    assert floor.start_root(setting.first, frames[3]) == 0
    for vcpu in (setting.first, setting.second):
        assert floor.take_root(vcpu, frames[4], kernel=False) == 0
        vcpu.user_root = frames[4]
    assert floor.set_gdt(setting.first, [frames[5]], 512) == 0
    assert floor.set_gdt(setting.second, [frames[5], frames[6]], 1024) == 0
    assert floor.set_gdt(setting.second, [], 14 * 512 + 1) == -EINVAL
    assert floor.types.pin(frames[7], setting.owner, 1) == 0
    assert floor.hold(setting.domain, frames[8]) == 0
    floor.remove_domain(setting.domain)
    assert setting.first.kernel_root == setting.second.user_root == 0
    assert floor.heap.free == setting.free
    assert floor.frames.owned_by(1) == []
    assert not (floor.frames.count_array[floor.frames.owner_array == 0] >> 8).any()


def test_names_of_frames(setting: Setting) -> None:
    floor, frames = setting.floor, setting.frames
    listed = [*frames[:4], frames[9], frames[8]]
    floor.name_frames(listed)
    assert [floor.m2p.get(mfn) for mfn in listed] == list(range(6))


def test_xens_own_descriptors(setting: Setting) -> None:
    assert setting.floor.reserved(0xE033, False) == 0x00AF_FB00_0000_FFFF
    assert setting.floor.reserved(0xE030, False) == 0x00AF_FB00_0000_FFFF
    assert setting.floor.reserved(0xE019, True) == 0x00CF_BB00_0000_FFFF
    assert setting.floor.reserved(0xE008, False) is None
    assert setting.floor.reserved(0xE019, False) is None


def test_there_is_no_ldt_at_first(setting: Setting) -> None:
    assert setting.floor.ldt_frame(setting.first, 0) is None
