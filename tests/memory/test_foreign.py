"""memory_op commands for translated guests and tools: what Xen 4.17 answers an unprivileged PV guest."""

from __future__ import annotations

from struct import pack

import pytest

from firmware.abi import memory as mem
from firmware.abi import xen
from firmware.abi.errno import EACCES, EDOM, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from tests.memory.guest_model import SELF
from tests.memory.test_mmu import Scene
from tests.memory.world import ARGUMENTS

ME, NEIGHBOUR, NOBODY = 1, 2, 77
BAD = 0xFFFF_8300_0000_0000
BAD32 = 0xFFFF_F000
DONE = 1 << 6
"""One extent done before, as a command's upper bits say it."""


@pytest.fixture(params=[False, True], ids=["64-bit", "32-bit"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(pv32=request.param)


def ask(scene: Scene, command: int, data: bytes = b"") -> int:
    return scene.world.call(scene.guest.vcpu, "memory_op", command, scene.guest.pass_bytes(data))


def at(scene: Scene, command: int, address: int) -> int:
    return scene.world.call(scene.guest.vcpu, "memory_op", command, address)


def layout(scene: Scene, name: str, **fields: object) -> bytes:
    variants = getattr(mem, name)
    data: bytes = (variants.w32 if scene.guest.pv32 else variants.w64).pack(**fields)
    return data


@pytest.mark.parametrize(
    ("domid", "answer"), [(ME, -EPERM), (NEIGHBOUR, -EINVAL), (NOBODY, -ESRCH), (SELF, -ESRCH)]
)
@pytest.mark.parametrize("operation", [0, 1, 99])
def test_access(scene: Scene, domid: int, answer: int, operation: int) -> None:
    assert ask(scene, mem.XENMEM_access_op, pack("<BBH28x", operation, 0, domid)) == answer


def test_access_reads_its_argument_in_full(scene: Scene) -> None:
    assert at(scene, mem.XENMEM_access_op, BAD32 if scene.guest.pv32 else BAD) == -EFAULT
    end = ARGUMENTS + 0x1_0000
    size = 24 if scene.guest.pv32 else 32
    assert at(scene, mem.XENMEM_access_op, end - size) == -ESRCH
    assert at(scene, mem.XENMEM_access_op, end - size + 1) == -EFAULT


@pytest.mark.parametrize("command", [8, 20, 22, 29, 63])
def test_what_is_not_built_in(scene: Scene, command: int) -> None:
    assert ask(scene, command) == -ENOSYS
    assert at(scene, command, BAD32) == -ENOSYS


@pytest.mark.parametrize(
    "command", [mem.XENMEM_get_sharing_freed_pages, mem.XENMEM_get_sharing_shared_pages]
)
def test_nothing_is_shared(scene: Scene, command: int) -> None:
    assert ask(scene, command) == 0
    assert ask(scene, command | DONE) == -ENOSYS


@pytest.mark.parametrize(
    "command", [mem.XENMEM_machphys_mfn_list, mem.XENMEM_machphys_compat_mfn_list]
)
def test_the_m2p_lists_are_not_restarted(scene: Scene, command: int) -> None:
    list_of_none = layout(scene, "xen_machphys_mfn_list", extent_start=ARGUMENTS + 64)
    assert ask(scene, command, list_of_none) == 0
    assert ask(scene, command | DONE, list_of_none) == -ENOSYS


def test_reserved_device_memory(scene: Scene) -> None:
    form = "<III4x" if scene.guest.pv32 else "<IIQ8x"
    command = mem.XENMEM_reserved_device_memory_map
    request = pack(form, mem.XENMEM_RDM_ALL, 3, ARGUMENTS)
    assert ask(scene, command, request) == 0
    answer = pack(form, mem.XENMEM_RDM_ALL, 0, ARGUMENTS)
    assert scene.guest.vcpu.space.read(ARGUMENTS, len(request)) == answer
    assert ask(scene, command, pack(form, 0, 0, 0)) == 0
    assert ask(scene, command, pack(form, 2, 0, 0)) == -EINVAL
    bad = BAD32 if scene.guest.pv32 else BAD
    assert ask(scene, command, pack(form, 2, 1, bad)) == -EFAULT
    assert at(scene, command, bad) == -EFAULT
    assert ask(scene, command | DONE, request) == -EINVAL


@pytest.mark.parametrize(
    ("domid", "answer"), [(ME, -EOPNOTSUPP), (SELF, -EOPNOTSUPP), (NEIGHBOUR, -EPERM), (NOBODY, -ESRCH)]
)
def test_virtual_nodes(scene: Scene, domid: int, answer: int) -> None:
    command = mem.XENMEM_get_vnumainfo
    assert ask(scene, command, layout(scene, "xen_vnuma_topology_info", domid=domid)) == answer
    assert ask(scene, command, layout(scene, "xen_vnuma_topology_info", domid=domid, pad=1)) == -EINVAL
    assert ask(scene, command | DONE, layout(scene, "xen_vnuma_topology_info", domid=domid)) == -EINVAL


@pytest.mark.parametrize(
    ("domid", "answer"), [(ME, -EPERM), (SELF, -ESRCH), (NEIGHBOUR, -EPERM), (NOBODY, -ESRCH)]
)
def test_resources(scene: Scene, domid: int, answer: int) -> None:
    command = mem.XENMEM_acquire_resource
    assert ask(scene, command, layout(scene, "xen_mem_acquire_resource", domid=domid, nr_frames=1)) == answer
    for bad in ({"pad": 1}, {"frame": 1 << 32}, {"frame": 0xFFFF_FFFF, "nr_frames": 1}):
        assert ask(scene, command, layout(scene, "xen_mem_acquire_resource", domid=domid, **bad)) == -EINVAL


@pytest.mark.parametrize(
    ("domid", "answer"), [(ME, -EPERM), (SELF, -EINVAL), (NEIGHBOUR, -EPERM), (NOBODY, -EINVAL)]
)
def test_claims(scene: Scene, domid: int, answer: int) -> None:
    command = mem.XENMEM_claim_pages
    assert ask(scene, command, layout(scene, "xen_memory_reservation", domid=domid, nr_extents=5)) == answer
    for bad in ({"extent_start": 8}, {"extent_order": 1}, {"mem_flags": 1}):
        request = layout(scene, "xen_memory_reservation", domid=domid, **bad)
        assert ask(scene, command, request) == -EINVAL
    assert ask(scene, command | DONE, layout(scene, "xen_memory_reservation", domid=domid)) == -EINVAL


@pytest.mark.parametrize("command", [mem.XENMEM_set_pod_target, mem.XENMEM_get_pod_target])
def test_populate_on_demand(scene: Scene, command: int) -> None:
    assert ask(scene, command, layout(scene, "xen_pod_target", domid=SELF)) == -EINVAL
    assert ask(scene, command, layout(scene, "xen_pod_target", domid=NOBODY)) == -ESRCH


def test_the_machines_map_is_domain_0s(scene: Scene) -> None:
    assert at(scene, mem.XENMEM_machine_memory_map, BAD32) == -EPERM


def test_physmap(scene: Scene) -> None:
    for name, command in (
        ("xen_add_to_physmap", mem.XENMEM_add_to_physmap),
        ("xen_add_to_physmap_batch", mem.XENMEM_add_to_physmap_batch),
        ("xen_remove_from_physmap", mem.XENMEM_remove_from_physmap),
    ):
        assert ask(scene, command, layout(scene, name, domid=SELF)) == -EACCES
        assert ask(scene, command, layout(scene, name, domid=NEIGHBOUR)) == -EACCES
        assert ask(scene, command, layout(scene, name, domid=NOBODY)) == -ESRCH
    far = 0x1_0000 << 6
    foreign = layout(scene, "xen_add_to_physmap", domid=SELF, space=mem.XENMAPSPACE_gmfn_foreign)
    assert ask(scene, mem.XENMEM_add_to_physmap, foreign) == -ENOSYS
    assert ask(scene, mem.XENMEM_add_to_physmap | far, foreign) == -EDOM
    ranged = layout(scene, "xen_add_to_physmap_batch", domid=SELF, space=mem.XENMAPSPACE_gmfn_range)
    assert ask(scene, mem.XENMEM_add_to_physmap_batch, ranged) == -EOPNOTSUPP
    assert ask(scene, mem.XENMEM_add_to_physmap_batch | far, ranged) == -EDOM
    assert ask(scene, mem.XENMEM_remove_from_physmap | DONE, ranged) == -EINVAL


@pytest.mark.parametrize(("said", "highest"), [(0, 0), (1, 0), (0x1_2345, 0x1_2344)])
def test_the_highest_frame_is_what_the_guest_says(scene: Scene, said: int, highest: int) -> None:
    scene.domain.shared_info = scene.frames[9] << 12
    variants = xen.shared_info
    offset = (variants.w32 if scene.guest.pv32 else variants.w64).offset["arch"]
    scene.world.memory.write((scene.frames[9] << 12) + offset, said.to_bytes(8, "little"))
    request = layout(scene, "xen_memory_domain", domid=SELF)
    assert ask(scene, mem.XENMEM_maximum_gpfn, request) == highest
    assert ask(scene, mem.XENMEM_maximum_gpfn | DONE, request) == -EINVAL


@pytest.mark.parametrize(
    ("flags", "done"),
    [
        (0, 1),
        (mem.XENMEMF_populate_on_demand, 0),
        (mem.XENMEMF_exact_node_request | 2 << 8, 0),
        (mem.XENMEMF_exact_node_request | 2 << 8 | mem.XENMEMF_vnode, 1),
        (2 << 8, 1),
        (12, 0),
        (63, 1),
    ],
)
def test_flags_of_a_reservation(scene: Scene, flags: int, done: int) -> None:
    guest = scene.guest
    mfn = scene.frames[40]
    assert guest.update_va_mapping(scene.domain.va(40), 0, 2) == 0
    assert guest.reservation(mem.XENMEM_decrease_reservation, [mfn]) == 1
    extents = guest.pass_bytes(pack("<Q", 40), 0x100)
    request = layout(
        scene, "xen_memory_reservation", extent_start=extents, nr_extents=1, mem_flags=flags, domid=SELF
    )
    assert ask(scene, mem.XENMEM_populate_physmap, request) == done
    if not done:
        on_demand = int(bool(flags & mem.XENMEMF_populate_on_demand))
        assert ask(scene, mem.XENMEM_increase_reservation, request) == on_demand
    scene.holds()
