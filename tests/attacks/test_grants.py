"""Two domains that work together by grants: what one has let go of by itself does not stay in its TLB."""
from __future__ import annotations

from struct import pack

from firmware.abi import grant_table as abi
from firmware.memory.frames import L1_TABLE
from tests.memory.test_mmu import Scene
from tests.memory.world import ARGUMENTS

REF = 9


def mapped(scene: Scene) -> tuple[int, int]:
    """The other domain has a frame of ours mapped for writing, and in its TLB: the frame, its entry."""
    world, victim = scene.world, scene.frames[20]
    accomplice = scene.other.all[0]
    world.schedule(accomplice, world.cores[-1])
    assert scene.guest.mmu_update((scene.at(scene.l1, 20), 0)) == 0
    world.grants.seed(scene.domain.memory, REF, scene.other.id, victim)
    at = scene.other.tables[-1] << 12 | 30 * 8
    accomplice.space.scratch[:32] = abi.gnttab_map_grant_ref.w64.pack(
        host_addr=at, flags=abi.GNTMAP_host_map | abi.GNTMAP_contains_pte, ref=REF, dom=scene.domain.id
    )
    assert world.grants.grant_table_op(accomplice, abi.GNTTABOP_map_grant_ref, ARGUMENTS, 1) == 0
    assert world.memory.q[at >> 3] & 3 == 3
    accomplice.core.tlb[0, 30] = victim, True
    return victim, at


def test_an_entry_of_a_grant_taken_away_by_hand_is_flushed_before_the_frame_becomes_a_table() -> None:
    scene = Scene()
    victim, at = mapped(scene)
    accomplice = scene.other.all[0]
    accomplice.space.scratch[:16] = pack("<QQ", at, 0)
    assert scene.world.mmu.mmu_update(accomplice, ARGUMENTS, 1, 0, 0x7FF0) == 0
    assert (0, 30) in accomplice.core.tlb
    assert scene.world.types.get_page_and_type(victim, scene.domain.memory, L1_TABLE) == 0
    assert (0, 30) not in accomplice.core.tlb
