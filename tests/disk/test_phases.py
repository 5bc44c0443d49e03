"""A virtual disk's states: connecting, closing, reconnecting, attaching, detaching, the end of its domain."""

from __future__ import annotations

from typing import Any

import pytest

from firmware.abi import io_blkif as blkif
from firmware.abi import io_xenbus as xenbus
from firmware.disk.attach import DiskError
from firmware.disk.extents import Extent
from firmware.disk.vbd import VirtualDisk
from firmware.domain.domain import Domain
from firmware.events import State
from machine.disk import SECTOR
from tests.disk.frontend import OKAY, Frontend
from tests.disk.rig import Rig

READ, WRITE = blkif.BLKIF_OP_READ, blkif.BLKIF_OP_WRITE
INIT_WAIT, CONNECTED = xenbus.XenbusStateInitWait, xenbus.XenbusStateConnected
CLOSING, CLOSED = xenbus.XenbusStateClosing, xenbus.XenbusStateClosed


def one(**options: Any) -> tuple[Rig, Domain, Frontend]:
    rig = Rig()
    domain = rig.domain()
    disk, _ = rig.disk()
    rig.attach(domain, disk, **options)
    return rig, domain, Frontend(rig, domain)


def test_a_domain_finds_its_disk_in_the_store_as_libxl_writes_it() -> None:
    rig, _, front = one()
    assert rig.store.directory("/local/domain/1/device/vbd") == ("51712",)
    nodes = {name: rig.node(f"{front.base}/{name}") for name in rig.store.directory(front.base)}
    assert nodes == {
        "backend": "/local/domain/0/backend/vbd/1/51712", "backend-id": "0", "state": "1",
        "virtual-device": "51712", "device-type": "disk",
    }
    nodes = {name: rig.node(f"{front.backend}/{name}") for name in rig.store.directory(front.backend)}
    assert nodes == {
        "frontend": front.base, "params": "disk of 2048", "frontend-id": "1", "online": "1", "removable": "0",
        "bootable": "1", "state": "2", "dev": "xvda", "type": "phy", "mode": "w", "device-type": "disk",
        "discard-enable": "1", "hotplug-status": "connected", "feature-max-indirect-segments": "256",
        "multi-queue-max-queues": "4", "max-ring-page-order": "4",
    }
    assert [str(entry) for entry in rig.store.permissions(front.base)] == ["n1", "r0"]
    assert [str(entry) for entry in rig.store.permissions(front.backend)] == ["n0", "r1"]
    assert [str(entry) for entry in rig.store.permissions(f"{front.backend}/state")] == ["n0", "r1"]


def test_what_the_disk_is_stands_there_when_it_is_connected() -> None:
    rig, _, front = one()
    front.connect()
    wanted = {
        "feature-flush-cache": "1", "feature-barrier": "1", "feature-persistent": "1", "feature-discard": "1",
        "discard-granularity": "512", "discard-alignment": "0", "discard-secure": "0", "sectors": "2048",
        "info": "0", "sector-size": "512", "physical-sector-size": "512", "state": "4",
    }
    assert {name: rig.node(f"{front.backend}/{name}") for name in wanted} == wanted


def test_a_frontend_closes_and_another_takes_over() -> None:
    rig, domain, front = one()
    before = rig.counts(domain)
    for data in (b"\1", b"\2"):
        front.connect()
        assert front.fill(0, data * SECTOR) == [OKAY]
        port = domain.events.ports[front.rings[0].port]
        assert port.state == State.INTERDOMAIN
        front.state(CLOSING)
        assert rig.backend_state(domain) == CLOSING
        front.state(CLOSED)
        assert rig.backend_state(domain) == CLOSED
        assert port.state == State.UNBOUND
        assert port.remote_domain == 0
        assert rig.counts(domain) == before
        front.state(xenbus.XenbusStateInitialising)
        assert rig.backend_state(domain) == INIT_WAIT
        front = Frontend(rig, domain, free=front.free, refs=front.refs)
    front.connect()
    assert front.read(0, 1) == b"\2" * SECTOR


def test_closing_waits_for_what_is_in_flight() -> None:
    rig, domain, front = one()
    before = rig.counts(domain)
    front.connect()
    (mfn, ref), ring = front.buffer(b"\7" * 4096), front.rings[0]
    front.send(front.request(WRITE, 0, [(ref, 0, 7)]))
    front.close()
    assert rig.backend_state(domain) == CLOSING
    assert rig.counts(domain)[mfn][0] == before[mfn][0] + 1
    front.state(xenbus.XenbusStateInitialising)
    assert rig.backend_state(domain) == CLOSING
    rig.run()
    assert rig.backend_state(domain) == INIT_WAIT, "ready for the frontend that came back meanwhile"
    assert rig.counts(domain) == before
    assert len(ring.responses()) == 1
    front.connect()
    assert front.read(0, 8) == b"\7" * 4096


def test_no_request_is_taken_while_it_closes() -> None:
    rig, _, front = one()
    front.connect()
    (_, ref), ring = front.buffer(), front.rings[0]
    front.send(front.request(READ, 0, [(ref, 0, 7)]))
    front.close()
    front.send(front.request(READ, 0, [(ref, 0, 7)]))
    rig.run()
    assert len(ring.responses()) == 1


def test_attaching_to_a_running_domain_and_detaching() -> None:
    rig, domain, front = one()
    front.connect()
    disk, _ = rig.disk(4096)
    second = rig.attach(domain, disk, "xvdb")
    other = Frontend(rig, domain, 51728, free=front.free, refs=front.refs)
    other.connect()
    assert other.fill(4000, b"\5" * SECTOR) == [OKAY]
    assert [backend.disk.name for backend in rig.disks.of(domain)] == ["xvda", "xvdb"]
    assert not rig.disks.detach(domain, "xvdb")
    assert rig.backend_state(domain, 51728) == CLOSING
    assert rig.node(f"{other.backend}/online") == "0"
    other.close()
    assert rig.backend_state(domain, 51728) is None
    assert rig.store.directory("/local/domain/1/device/vbd") == ("51712",)
    assert rig.node("/libxl/1/device/vbd/51728/backend") is None
    assert second.grants_in_use == 0
    assert front.fill(0, b"\6" * SECTOR) == [OKAY]
    with pytest.raises(DiskError, match="has no disk xvdb"):
        rig.disks.detach(domain, "xvdb")
    rig.attach(domain, disk, "xvdb")
    again = Frontend(rig, domain, 51728, free=front.free, refs=front.refs)
    again.connect()
    assert again.read(4000, 1) == b"\5" * SECTOR


def test_a_disk_nobody_uses_is_detached_at_once() -> None:
    rig, domain, front = one()
    assert rig.disks.detach(domain, "51712")
    assert rig.disks.of(domain) == []
    assert rig.backend_state(domain) is None
    front.state(xenbus.XenbusStateInitialised)
    assert rig.disks.of(domain) == []


def test_a_disk_taken_by_force_lets_go_of_everything_while_requests_are_in_flight() -> None:
    rig, domain, front = one()
    before = rig.counts(domain)
    front.connect(persistent=True)
    buffers = [front.buffer(b"\0" * 4096) for _ in range(12)]
    front.send(*(front.request(READ, 0, [(ref, 0, 7)]) for _, ref in buffers))
    rig.run(0)
    assert rig.disks.detach(domain, "xvda", force=True)
    assert rig.counts(domain) == before
    assert rig.floor.grants.table(domain.memory).active == {}
    for mfn, _ in buffers:
        rig.memory.fill(mfn << 12, 4096, 0xEE)
    rig.run()
    assert all(rig.memory.read(mfn << 12, 4096) == b"\xee" * 4096 for mfn, _ in buffers)


BAD_OFFERS = {
    "no ring": ({"event-channel": "9"}, "2 reading {}/ring-ref"),
    "no port": ({"ring-ref": "8"}, "2 reading {}/event-channel"),
    "ring-ref is no number": ({"ring-ref": "x", "event-channel": "9"}, "22 reading {}/ring-ref"),
    "ring-ref too large": ({"ring-ref": "99999999999", "event-channel": "9"}, "22 reading {}/ring-ref"),
    "ring-ref not granted": (
        {"ring-ref": "7", "event-channel": "9"}, "22 mapping ring-ref 7: grant status -1"),
    "ring-ref beyond the table": (
        {"ring-ref": "4294967295", "event-channel": "9"}, "22 mapping ring-ref 4294967295: grant status -3"),
    "port not there": (
        {"event-channel": "60"}, "22 mapping event channel: port 60 is not one that waits for domain 0"),
    "port beyond all": (
        {"event-channel": "4294967295"},
        "22 mapping event channel: port 4294967295 is not one that waits for domain 0"),
    "unknown protocol": ({"protocol": "arm-abi"}, "38 unknown fe protocol arm-abi"),
    "too many pages": ({"ring-page-order": "5"}, "22 requested ring page order 5 exceed max:4"),
    "pages that are missing": ({"ring-page-order": "2"}, "2 reading {}/ring-ref1"),
    "a page that is not granted": (
        {"ring-page-order": "1", "ring-ref1": "7"}, "22 mapping ring-ref 7: grant status -1"),
    "no queues": (
        {"multi-queue-num-queues": "0"}, "38 guest requested 0 queues, exceeding the maximum of 4."),
    "too many queues": (
        {"multi-queue-num-queues": "5"}, "38 guest requested 5 queues, exceeding the maximum of 4."),
}


@pytest.mark.parametrize("name", BAD_OFFERS)
def test_an_offer_that_is_no_good_is_said_in_the_store_and_nothing_is_held(name: str) -> None:
    rig, domain, front = one()
    before = rig.counts(domain)
    nodes, message = BAD_OFFERS[name]
    mfn = front.page()
    offer = {"event-channel": front.port(), **nodes}
    if name not in ("no ring", "pages that are missing"):
        offer = {"ring-ref": front.grant(mfn), **offer}
    if name == "no port":
        del offer["event-channel"]
    if "ring-page-order" in nodes:
        offer |= {"ring-ref0": front.grant(mfn)}
    for node, value in offer.items():
        rig.store.write(f"{front.base}/{node}", str(value))
    front.state(xenbus.XenbusStateInitialised)
    assert rig.backend_state(domain) == CLOSING
    error = rig.node("/local/domain/0/error/backend/vbd/1/51712/error")
    assert error == message.format(front.base)
    assert rig.counts(domain) == before
    front.state(CLOSED)
    assert rig.backend_state(domain) == CLOSED
    for node in offer:
        rig.store.rm(f"{front.base}/{node}")
    front.state(xenbus.XenbusStateInitialising)
    front.connect()
    assert front.fill(0, b"\1" * SECTOR) == [OKAY]


def test_a_port_made_for_another_domain_is_refused() -> None:
    rig, domain, front = one()
    number = front.port()
    domain.events.ports[number].remote_domain = 5
    front.write(ring_ref=front.grant(front.page()), event_channel=number)
    front.state(xenbus.XenbusStateInitialised)
    assert rig.backend_state(domain) == CLOSING
    assert domain.events.ports[number].state is State.UNBOUND


def test_when_the_second_of_two_queues_is_no_good_the_first_is_let_go_of() -> None:
    rig, domain, front = one()
    before = rig.counts(domain)
    front.write(multi_queue_num_queues=2)
    port = front.port()
    rig.store.write(f"{front.base}/queue-0/ring-ref", str(front.grant(front.page())))
    rig.store.write(f"{front.base}/queue-0/event-channel", str(port))
    front.state(xenbus.XenbusStateInitialised)
    assert rig.backend_state(domain) == CLOSING
    assert rig.counts(domain) == before
    assert domain.events.ports[port].state is State.UNBOUND


def test_a_ring_whose_indices_cannot_be_is_refused() -> None:
    rig, domain, front = one()
    before = rig.counts(domain)
    mfn = front.page()
    rig.memory.store32(mfn << 12, 100)
    front.write(ring_ref=front.grant(mfn), event_channel=front.port())
    front.state(xenbus.XenbusStateInitialised)
    assert rig.backend_state(domain) == CLOSING
    assert rig.counts(domain) == before


@pytest.mark.parametrize("state", [*range(10), (1 << 32) - 1, 1 << 80, "", "x"])
def test_any_state_a_frontend_writes(state: object) -> None:
    rig, domain, front = one()
    front.rig.store.write(f"{front.base}/state", str(state))
    assert rig.backend_state(domain) in (INIT_WAIT, CLOSING, CLOSED)
    front.state(CLOSED)
    front.state(xenbus.XenbusStateInitialising)
    assert rig.backend_state(domain) == INIT_WAIT
    front.connect()
    front.rig.store.write(f"{front.base}/state", str(state))
    front.state(CLOSED)
    front.state(xenbus.XenbusStateInitialising)
    front = Frontend(rig, domain, free=front.free, refs=front.refs)
    front.connect()
    assert front.fill(0, b"\1" * SECTOR) == [OKAY]


def test_a_frontend_that_removes_its_directory_closes() -> None:
    rig, domain, front = one()
    before = rig.counts(domain)
    front.connect()
    rig.store.rm(front.base)
    assert rig.backend_state(domain) == CLOSED
    assert rig.counts(domain) == before


def test_a_guest_may_close_its_port_while_requests_are_in_flight() -> None:
    rig, domain, front = one()
    front.connect()
    _, ref = front.buffer()
    number = front.rings[0].port
    front.send(front.request(READ, 0, [(ref, 0, 7)]))
    assert rig.ports.close(domain, number) == 0
    domain.events.ports[number].state = State.IPI
    rig.run()
    assert not domain.events.is_pending(number), "the port means something else now"
    front.close()
    assert domain.events.ports[number].state is State.IPI


def test_a_domain_that_ends_has_its_requests_carried_out_and_then_let_go_of() -> None:
    rig, domain, front = one()
    before = rig.counts(domain)
    front.connect(persistent=True)
    _, ref = front.buffer(b"\x55" * 4096)
    front.send(front.request(WRITE, 0, [(ref, 0, 7)]))
    rig.end(domain)
    assert rig.counts(domain) != before
    rig.run()
    assert rig.counts(domain) == before
    assert rig.backend_state(domain) == CLOSED
    with pytest.raises(DiskError, match="has ended"):
        rig.attach(domain, rig.disk()[0], "xvdb")
    rig.destroy(domain)
    assert rig.backend_state(domain) is None


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("depth", [1, 8])
def test_a_domain_destroyed_in_flight_gives_back_every_frame(persistent: bool, depth: int) -> None:
    rig = Rig()
    disk, ram = rig.disk(depth=depth)
    neighbour = rig.domain(2)
    rig.attach(neighbour, disk, "xvdb", extents=(Extent(1024, 1024),))
    other = Frontend(rig, neighbour, 51728)
    other.connect()
    free = rig.floor.heap.free
    domain = rig.domain(1)
    rig.attach(domain, disk, extents=(Extent(0, 1024),))
    front = Frontend(rig, domain)
    front.connect(persistent=persistent)
    ram.data[:SECTOR] = b"\x33" * SECTOR
    buffers = [front.buffer() for _ in range(20)]
    front.send(*(front.request(READ, 0, [(ref, 0, 7)]) for _, ref in buffers))
    _, mine = other.buffer(b"\x77" * 4096)
    other.send(other.request(WRITE, 8, [(mine, 0, 7)]))
    rig.end(domain)
    rig.destroy(domain)
    assert rig.floor.heap.free == free
    fresh = rig.domain(3)
    frames = [mfn for mfn, _ in buffers if rig.floor.frames.owner_of(mfn) == 3]
    assert frames
    rig.run()
    assert all(not any(rig.memory.read(mfn << 12, 4096)) for mfn in frames), "another's frames by now"
    assert [response.status for response in other.rings[0].responses()] == [OKAY]
    assert ram.data[(1024 + 8) * SECTOR] == 0x77
    assert rig.counts(fresh)
    assert rig.log == []


def test_names_and_sectors_are_not_given_twice() -> None:
    rig, domain, _ = one()
    disk, _ = rig.disk()
    with pytest.raises(DiskError, match="two disks xvda"):
        rig.attach(domain, disk)
    rig.attach(domain, disk, "xvdb", extents=(Extent(0, 100),))
    with pytest.raises(DiskError, match="too, and one of them may write"):
        rig.attach(domain, disk, "xvdc", extents=(Extent(500, 10), Extent(99, 2)), read_only=True)
    rig.attach(domain, disk, "xvdc", extents=(Extent(100, 100),))
    rig.attach(domain, disk, "xvdd", extents=(Extent(50, 100),), shared=True)
    image, _ = rig.disk(read_only=True)
    rig.attach(domain, image, "xvde")
    rig.attach(domain, image, "xvdf")
    with pytest.raises(DiskError, match="two disks"):
        rig.disks.check([VirtualDisk("xvda", image), VirtualDisk("xvda", image)])


def test_many_disks_of_many_domains() -> None:
    rig = Rig(64)
    fronts = []
    for number in range(1, 65):
        domain = rig.domain(number, 48)
        disk, _ = rig.disk(64)
        rig.attach(domain, disk)
        front = Frontend(rig, domain)
        front.connect()
        fronts.append(front)
    for at, front in enumerate(fronts):
        _, ref = front.buffer(bytes([at + 1]) * 4096)
        front.send(front.request(WRITE, 0, [(ref, 0, 7)]))
    rig.run()
    assert [front.rings[0].responses()[0].status for front in fronts] == [OKAY] * 64
    assert [front.read(1, 1)[0] for front in fronts] == list(range(1, 65))
    for front in fronts:
        rig.end(front.domain)
        rig.destroy(front.domain)
    assert rig.store.directory("/local/domain/0/backend/vbd") == ()
