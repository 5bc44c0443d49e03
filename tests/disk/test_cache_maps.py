"""block_cache_op: cached blocks in page tables, every refusal, and what takes them away."""

from __future__ import annotations

import random
from typing import cast

import pytest

from firmware.abi import block_cache as abi
from firmware.abi import xen
from firmware.abi.errno import (
    EAGAIN,
    EBUSY,
    EFAULT,
    EINVAL,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    EOPNOTSUPP,
    ERANGE,
)
from firmware.abi.grant_table import (
    GNTMAP_host_map,
    GNTST_general_error,
    GNTTABOP_map_grant_ref,
    GNTTABOP_unmap_and_replace,
    GTF_permit_access,
    gnttab_map_grant_ref,
    gnttab_unmap_and_replace,
)
from firmware.disk.extents import Extent
from firmware.domain.domain import Domain
from firmware.memory.frames import L1_TABLE, SEGMENT_DESCRIPTORS, WRITABLE
from firmware.memory.owner import DOMID_COW
from firmware.memory.pte import ADDRESS, DIRTY, NO_EXECUTE, PRESENT, RW, USER
from tests.disk.cache_setting import BLOCKS, CALL, SECTORS, VDEV, Setting, image
from tests.disk.cache_world import Layer
from tests.memory.world import ARGUMENTS


@pytest.mark.parametrize("pv32", [False, True])
@pytest.mark.parametrize("flags", [0, abi.BLKCACHE_contains_pte, abi.BLKCACHE_application_map])
def test_a_block_is_mapped_and_unmapped(pv32: bool, flags: int) -> None:
    setting = Setting(pv32=pv32)
    old = (setting.entry(0) & ADDRESS) >> 12
    references = setting.world.frames.references(old)
    assert setting.map(0, 7, flags=flags) == 0
    assert setting.shown(0) == setting.block(7)
    assert setting.map(1, 7) == 0
    assert setting.entry(0) & ADDRESS == setting.entry(1) & ADDRESS
    assert setting.entry(0) & NO_EXECUTE
    if pv32:
        assert bool(setting.entry(0) & USER) == bool(flags & abi.BLKCACHE_application_map)
    assert setting.world.frames.references(old) == references - 1
    setting.touch(0)
    tables = flags & abi.BLKCACHE_contains_pte
    assert setting.unmap(0, flags=tables) == 0
    assert setting.entry(0) == 0
    assert not setting.vcpu(0).core.tlb
    assert setting.unmap(0, flags=tables) == -ENOENT
    assert setting.shown(1) == setting.block(7)
    assert not setting.virqs(0)


def test_what_is_refused() -> None:
    setting = Setting(extents=(Extent(8, 32), Extent(104, 4), Extent(166, 16)))
    table = setting.entry_at(0, 0)
    other = setting.entry_at(1, 0)
    frame = setting.domains[0].frames[3] << 12
    pte = abi.BLKCACHE_contains_pte
    for wanted, command, fields in (
        (-EINVAL, abi.BLKCACHEOP_map, {"flags": 4, "host_addr": setting.va(0, 0)}),
        (-EINVAL, abi.BLKCACHEOP_map, {"flags": 1 << 31, "host_addr": setting.va(0, 0)}),
        (-ENODEV, abi.BLKCACHEOP_map, {"vdev": 51728, "host_addr": setting.va(0, 0)}),
        (-ERANGE, abi.BLKCACHEOP_map, {"block": 6, "host_addr": setting.va(0, 0)}),
        (-ERANGE, abi.BLKCACHEOP_map, {"block": (1 << 64) - 1, "host_addr": setting.va(0, 0)}),
        (-EOPNOTSUPP, abi.BLKCACHEOP_map, {"block": 4, "host_addr": setting.va(0, 0)}),
        (-EOPNOTSUPP, abi.BLKCACHEOP_map, {"block": 5, "host_addr": setting.va(0, 0)}),
        (-EINVAL, abi.BLKCACHEOP_map, {"host_addr": 0x7000_0000_0000}),
        (-EINVAL, abi.BLKCACHEOP_map, {"host_addr": 0xFFFF_8300_0000_0000}),
        (-EINVAL, abi.BLKCACHEOP_map, {"host_addr": 0x8000_0000_0000_0000}),
        (-EINVAL, abi.BLKCACHEOP_map, {"flags": pte, "host_addr": table + 4}),
        (-EINVAL, abi.BLKCACHEOP_map, {"flags": pte, "host_addr": other}),
        (-EINVAL, abi.BLKCACHEOP_map, {"flags": pte, "host_addr": frame}),
        (-EINVAL, abi.BLKCACHEOP_map, {"flags": pte, "host_addr": 0}),
        (-EINVAL, abi.BLKCACHEOP_map, {"flags": pte, "host_addr": setting.world.memory.size}),
        (-EINVAL, abi.BLKCACHEOP_map, {"flags": pte, "host_addr": (1 << 64) - 8}),
        (-EINVAL, abi.BLKCACHEOP_unmap, {"flags": 1, "host_addr": setting.va(0, 0)}),
        (-EINVAL, abi.BLKCACHEOP_unmap, {"pad": 1, "host_addr": setting.va(0, 0)}),
        (-EINVAL, abi.BLKCACHEOP_unmap, {"flags": pte, "host_addr": other}),
        (-ENOENT, abi.BLKCACHEOP_unmap, {"host_addr": setting.va(0, 0)}),
        (-ENODEV, abi.BLKCACHEOP_query, {"vdev": 0}),
        (-ERANGE, abi.BLKCACHEOP_query, {"vdev": VDEV, "block": 6}),
    ):
        full = {"vdev": VDEV} | fields if command == abi.BLKCACHEOP_map else fields
        assert setting.call(0, command, **full) == wanted, fields
    assert setting.map(0, 3) == 0
    assert setting.shown(0) == setting.block(4)
    vcpu = setting.vcpu(0)
    for command in range(4):
        assert setting.world.call(vcpu, CALL, command, 0x7000_0000_0000) == -EFAULT
    for command in (4, 99, 0xFFFF_FFFF):
        assert setting.world.call(vcpu, CALL, command, ARGUMENTS) == -ENOSYS


def test_only_domains_made_for_it_have_it() -> None:
    setting = Setting()
    assert setting.map(0, 1) == 0
    setting.world.ops.forget(cast(Domain, setting.domains[0]))
    assert setting.entry(0) == 0
    assert setting.map(0, 1) == -ENOSYS
    assert "hypercall 54 (block_cache_op) is not there: -ENOSYS" in setting.world.log
    assert setting.map(1, 1) == 0


def test_a_block_that_is_not_there_is_to_be_read() -> None:
    setting = Setting()
    setting.world.cache.shrink(1000)
    states = []

    def query() -> None:
        assert setting.call(0, abi.BLKCACHEOP_query, vdev=VDEV, block=2) == 0
        states.append(setting.vcpu(0).space.read32(ARGUMENTS + 4))

    query()
    assert setting.map(0, 2) == -ENOENT
    setting.world.read(setting.queue(1), setting.clients[1], 16, 8, setting.domains[1].frames[40])
    query()
    assert setting.map(0, 2) == -EAGAIN
    setting.world.run()
    query()
    assert setting.map(0, 2) == 0
    setting.write(0, 2)
    query()
    assert setting.map(0, 2) == -EAGAIN
    assert states == [abi.BLKCACHE_absent, abi.BLKCACHE_pending, abi.BLKCACHE_cached, abi.BLKCACHE_pending]


@pytest.mark.parametrize("layered", [False, True])
def test_a_write_takes_a_block_away_from_those_who_see_it_written(layered: bool) -> None:
    base = image("base")
    setting = Setting(*([Layer(base), Layer(base)] if layered else [image()]))
    before = base.data[:4096] if layered else setting.block(0)
    assert setting.map(0, 0) == setting.map(1, 0) == setting.map(1, 1, 1) == 0
    setting.touch(0)
    setting.touch(1)
    setting.write(0, 0)
    assert setting.entry(0) == 0
    assert setting.virqs(0) == [abi.VIRQ_BLKCACHE]
    assert (0, setting.va(0, 0) >> 12) not in setting.vcpu(0).core.tlb
    if layered:
        assert setting.shown(1) == before
        assert not setting.virqs(1)
    else:
        assert setting.entry(1) == 0
        assert not setting.vcpu(1).core.tlb
    assert setting.entry(1, 1)
    setting.write(1, 9)
    assert setting.shown(1, 1) == bytes(base.data[4096:8192] if layered else setting.block(1))
    setting.world.run()
    setting.check()


def test_a_place_that_the_guest_uses_otherwise_is_left_alone() -> None:
    setting = Setting()
    own = setting.domains[0].frames[5] << 12 | PRESENT | RW | USER
    assert setting.map(0, 7) == 0
    assert setting.set(0, 0, own) == 0
    setting.write(1, 7)
    assert setting.entry(0) & (ADDRESS | PRESENT) == own & (ADDRESS | PRESENT)
    assert not setting.virqs(0)


def test_all_memory_comes_back_from_those_who_map_it() -> None:
    setting = Setting(limit=128)
    world = setting.world
    for block in range(20):
        assert setting.map(0, block, block) == 0
        setting.touch(0, block)
    owner = world.owner(9)
    available = world.heap.available
    taken = world.heap.allocate(owner, available)
    assert len(taken) == available
    assert world.heap.free == world.heap.cached == 0
    assert not setting.vcpu(0).core.tlb
    assert not any(setting.entry(0, block) for block in range(20))
    assert setting.virqs(0)
    setting.check()
    assert all(world.content(mfn) == bytes(4096) for mfn in taken)


def test_mapped_blocks_stay_while_others_make_room() -> None:
    setting = Setting(limit=BLOCKS)
    assert setting.map(0, 3) == 0
    more = image()
    queue = setting.world.queue(more)
    client = setting.world.attach(setting.domains[1], queue)
    for sector in range(0, SECTORS, 8):
        setting.world.read(queue, client, sector, 8, setting.domains[1].frames[40])
        setting.world.run()
    setting.check()
    assert setting.shown(0) == setting.block(3)
    assert setting.world.cache.blocks.size == BLOCKS


def test_a_mapping_that_the_guest_took_away_holds_nothing() -> None:
    setting = Setting(limit=BLOCKS)
    for block in range(BLOCKS // 2):
        assert setting.map(0, block, 50) == setting.map(0, block, block) == 0
    assert setting.map(1, BLOCKS - 1) == -ENOMEM
    for block in range(4, 30):
        assert setting.set(0, block, 0) == 0
    assert setting.map(1, BLOCKS - 1) == 0


def test_blocks_that_are_not_mapped_any_more_make_room() -> None:
    setting = Setting()
    world = setting.world
    for block in range(12):
        assert setting.map(0, block, block) == 0
    world.cache.set_limit(12)
    assert world.cache.blocks.pinned == 12
    world.heap.allocate(world.owner(9), world.heap.free)
    more = image()
    queue = world.queue(more)
    client = world.attach(setting.domains[1], queue)
    world.read(queue, client, 0, 8, setting.domains[1].frames[40])
    world.run()
    assert world.cache.find(more, 0) is None
    assert setting.set(0, 3, 0) == 0
    world.read(queue, client, 0, 8, setting.domains[1].frames[40])
    world.run()
    assert world.cache.find(more, 0) is not None
    assert world.cache.find(setting.media[0], 3) is None
    setting.check()


def test_quotas_hold() -> None:
    setting = Setting(limit=BLOCKS)
    setting.world.cache.quota = 4
    assert [setting.map(0, block, block) for block in range(5)] == [0, 0, 0, 0, -ENOSPC]
    assert setting.map(1, 9) == 0
    assert setting.set(0, 2, 0) == 0
    assert setting.map(0, 9, 5) == 0
    assert setting.map(0, 10, 6) == -ENOSPC
    assert setting.call(0, abi.BLKCACHEOP_info) == 0
    info = abi.blkcache_info.w64.unpack(setting.vcpu(0).space.read(ARGUMENTS, 16))
    assert tuple(info) == (4096, xen.VIRQ_ARCH_6, 4, 4)
    setting.world.cache.quota = 100
    results = [setting.map(0, block, block) for block in range(12, 60)]
    assert set(results) == {0, -ENOMEM}
    assert setting.world.cache.blocks.pinned == BLOCKS // 2


def test_no_other_call_makes_moves_or_widens_a_mapping() -> None:
    setting = Setting()
    world, vcpu, domain = setting.world, setting.vcpu(0), setting.domains[0]
    assert setting.map(0, 7) == 0
    entry = setting.entry(0)
    mfn = (entry & ADDRESS) >> 12
    owner = domain.memory
    for made in (entry, entry | RW, entry & ~RW, entry | USER):
        assert setting.set(0, 1, made) == -EBUSY
    assert setting.set(0, 0, entry | RW) == -EBUSY
    assert setting.set(0, 0, entry | DIRTY) == 0
    for domid in (DOMID_COW, 2, 0x7FF0):
        vcpu.space.write(ARGUMENTS, xen.mmu_update.w64.pack(ptr=setting.entry_at(0, 1), val=entry))
        assert world.call(vcpu, "mmu_update", ARGUMENTS, 1, 0, domid) < 0
        setting.check()
    for kind in (L1_TABLE, SEGMENT_DESCRIPTORS, WRITABLE):
        assert world.types.get_page_and_type(mfn, owner, kind) < 0
        assert world.types.get_type(mfn, kind) < 0
    assert world.types.steal(mfn, owner) == -EINVAL
    table = world.grants.table(owner)
    table.store_entry(9, GTF_permit_access | 2 << 16, mfn)
    setting.vcpu(1).space.write(ARGUMENTS, gnttab_map_grant_ref.w64.pack(
        host_addr=setting.va(1, 5), flags=GNTMAP_host_map, ref=9, dom=1))
    assert world.call(setting.vcpu(1), "grant_table_op", GNTTABOP_map_grant_ref, ARGUMENTS, 1) == 0
    assert gnttab_map_grant_ref.w64.unpack(
        setting.vcpu(1).space.read(ARGUMENTS, gnttab_map_grant_ref.w64.size)).status < 0
    with pytest.raises(Exception, match="EFAULT"):
        vcpu.space.write(setting.va(0, 0), b"x")
    setting.check()


def test_a_grant_s_place_is_not_taken_by_a_block() -> None:
    setting = Setting()
    world, vcpu = setting.world, setting.vcpu(0)
    given = setting.domains[1].frames[6]
    world.grants.table(setting.domains[1].memory).store_entry(9, GTF_permit_access | 1 << 16, given)
    vcpu.space.write(ARGUMENTS, gnttab_map_grant_ref.w64.pack(
        host_addr=setting.va(0, 5), flags=GNTMAP_host_map, ref=9, dom=2))
    assert world.call(vcpu, "grant_table_op", GNTTABOP_map_grant_ref, ARGUMENTS, 1) == 0
    handle = gnttab_map_grant_ref.w64.unpack(
        vcpu.space.read(ARGUMENTS, gnttab_map_grant_ref.w64.size)).handle
    assert setting.map(0, 7) == 0
    layout = gnttab_unmap_and_replace.w64
    vcpu.space.write(ARGUMENTS, layout.pack(
        host_addr=setting.va(0, 5), new_addr=setting.va(0, 0), handle=handle))
    assert world.call(vcpu, "grant_table_op", GNTTABOP_unmap_and_replace, ARGUMENTS, 1) == 0
    assert layout.unpack(vcpu.space.read(ARGUMENTS, layout.size)).status == GNTST_general_error
    assert setting.shown(0) == setting.block(7)
    setting.write(1, 7)
    assert setting.entry(0) == 0


def test_a_table_that_goes_lets_go_of_its_blocks() -> None:
    setting = Setting()
    world = setting.world
    assert setting.map(0, 7) == setting.map(0, 7, 1) == setting.map(1, 7) == 0
    mfn = (setting.entry(0) & ADDRESS) >> 12
    assert world.frames.references(mfn) == 4
    domain = setting.domains[0]
    world.destroy(domain)
    assert world.frames.references(mfn) == 2
    world.ops.forget(cast(Domain, domain))
    setting.check()
    assert [mapping.domain.id for mapping in world.cache.mappings.all()] == [2]


def test_detaching_a_disk_takes_its_blocks() -> None:
    setting = Setting()
    assert setting.map(0, 7) == setting.map(1, 8) == 0
    setting.queue(0).remove(setting.clients[0])
    assert setting.entry(0) == 0
    assert setting.shown(1) == setting.block(8)
    setting.check()


def test_whoever_had_a_frame_before_cannot_write_the_block_in_it() -> None:
    setting = Setting()
    world = setting.world
    world.cache.shrink(1000)
    hog = world.owner(9)
    world.heap.allocate(hog, world.heap.free)
    mfn = setting.domains[0].frames[5]
    setting.touch(0, 5)
    assert (mfn, True) in setting.vcpu(0).core.tlb.values()
    assert setting.set(0, 5, 0) == 0
    world.types.drop_own_reference(mfn)
    assert world.heap.free == 1
    world.read(setting.queue(1), setting.clients[1], 0, 8, setting.domains[1].frames[40])
    assert world.cache.filling == 1
    assert not setting.vcpu(0).core.tlb
    world.run()
    assert world.cache.blocks.at(mfn).number == 0
    setting.check()


def test_whoever_had_a_block_before_does_not_see_the_next_in_its_frame() -> None:
    setting = Setting()
    world = setting.world
    assert setting.map(0, 3) == 0
    world.cache.set_limit(8)
    world.heap.allocate(world.owner(9), world.heap.free)
    setting.touch(0)
    mfn = (setting.entry(0) & ADDRESS) >> 12
    assert setting.set(0, 0, 0) == 0
    assert setting.unmap(0) == -ENOENT
    chance = random.Random(3)
    frames = set()
    while world.cache.find(setting.media[0], 3) is not None:
        assert setting.vcpu(0).core.tlb
        place = chance.choice([block for block in range(16) if block != 3])
        world.read(setting.queue(1), setting.clients[1], place * 8, 8, setting.domains[1].frames[40])
        frames = {fill.frames[0] for fill in world.cache.fills()}
        world.run()
    assert world.cache.statistics.evicted
    assert frames == {mfn}
    assert not setting.vcpu(0).core.tlb
    setting.check()


@pytest.mark.parametrize("wide", [False, True])
def test_the_interface_is_the_same_for_guests_of_both_widths(wide: bool) -> None:
    layouts = (abi.blkcache_info, abi.blkcache_query, abi.blkcache_map, abi.blkcache_unmap)
    assert [layout.of(wide).size for layout in layouts] == [16, 16, 24, 16]
    assert abi.blkcache_map.of(wide).offset == {"vdev": 0, "flags": 4, "block": 8, "host_addr": 16}
    assert abi.blkcache_unmap.of(wide).offset == {"flags": 0, "pad": 4, "host_addr": 8}
    assert abi.blkcache_query.of(wide).offset == {"vdev": 0, "state": 4, "block": 8}
    assert abi.__HYPERVISOR_block_cache_op == xen.__HYPERVISOR_arch_6
    assert abi.VIRQ_BLKCACHE == xen.VIRQ_ARCH_6
