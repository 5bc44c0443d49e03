"""The blkif back end against a frontend made by hand: every operation, every layout, every refusal."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from firmware.abi import io_blkif as blkif
from firmware.abi import io_xenbus as xenbus
from firmware.abi import xen
from firmware.abi.io_protocols import XEN_IO_PROTO_ABI_X86_32, XEN_IO_PROTO_ABI_X86_64
from firmware.disk.backend import BlockBackend
from firmware.disk.extents import Extent
from firmware.disk.held import MOST_PERSISTENT, HeldGrants
from firmware.disk.transfer import Transfer
from firmware.memory.backend_grants import BackendGrants
from firmware.memory.frames import L1_TABLE
from machine.disk import SECTOR, DiskRequest, Operation
from tests.disk.frontend import ERROR, FRAME, OKAY, UNSUPPORTED, Frontend
from tests.disk.rig import TIME_NS, Ram, Rig

READ, WRITE = blkif.BLKIF_OP_READ, blkif.BLKIF_OP_WRITE
FLUSH, BARRIER = blkif.BLKIF_OP_FLUSH_DISKCACHE, blkif.BLKIF_OP_WRITE_BARRIER
PATTERN = random.Random(1).randbytes(300 * FRAME)
PENDING = xen.shared_info.w64.offset["evtchn_pending"]
CONNECTING = ("pages", "queues", "persistent", "order")


def made(rig: Rig, protocol: str | None = None, *, sectors: int = 2048, depth: int = 8,
         **options: Any) -> tuple[Frontend, BlockBackend, Ram]:
    """A connected frontend, its back end, and the medium."""
    connecting = {name: options.pop(name) for name in CONNECTING if name in options}
    disk, ram = rig.disk(sectors, depth=depth)
    domain = rig.domain(1, 512, pv32=protocol == XEN_IO_PROTO_ABI_X86_32)
    backend = rig.attach(domain, disk, **options)
    front = Frontend(rig, domain, protocol=protocol)
    front.connect(**connecting)
    assert rig.backend_state(domain) == xenbus.XenbusStateConnected
    return front, backend, ram


@pytest.mark.parametrize("protocol", [None, XEN_IO_PROTO_ABI_X86_64, XEN_IO_PROTO_ABI_X86_32])
@pytest.mark.parametrize("pages", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("neighbours", [False, True])
def test_data_goes_both_ways_in_every_layout_and_ring_size(
    protocol: str | None, pages: int, neighbours: bool
) -> None:
    rig = Rig()
    disk, ram = rig.disk()
    domain = rig.domain(pv32=protocol == XEN_IO_PROTO_ABI_X86_32)
    rig.attach(domain, disk)
    front = Frontend(rig, domain, protocol=protocol)
    front.free.sort(reverse=neighbours)
    front.connect(pages=pages)
    for turn in range(3 * front.rings[0].entries // 2):
        sector, part = turn * 88 % 1900, PATTERN[turn % 7 * 512 :][: 20 * SECTOR]
        assert front.fill(sector, part) == [OKAY]
        assert ram.data[sector * SECTOR :][: len(part)] == part
    assert front.fill(100, PATTERN[: 88 * SECTOR]) == [OKAY]
    assert front.read(100, 88) == PATTERN[: 88 * SECTOR]


@pytest.mark.parametrize("protocol", [XEN_IO_PROTO_ABI_X86_64, XEN_IO_PROTO_ABI_X86_32])
def test_parts_of_pages_are_read_and_written(protocol: str) -> None:
    front, _, ram = made(Rig(), protocol)
    ram.data[:] = PATTERN[: len(ram.data)]
    (first, one), (second, two) = front.buffer(b"\xee" * FRAME), front.buffer(b"\xdd" * FRAME)
    assert front.ask(front.request(READ, 7, [(one, 3, 3), (two, 6, 7)])) == [OKAY]
    memory = front.rig.memory
    assert memory.read(first << 12, FRAME) == b"\xee" * 1536 + PATTERN[7 * 512 : 8 * 512] + b"\xee" * 2048
    assert memory.read(second << 12, FRAME) == b"\xdd" * 3072 + PATTERN[8 * 512 : 10 * 512]
    assert front.ask(front.request(WRITE, 2046, [(one, 2, 3)])) == [OKAY]
    assert ram.data[2046 * 512 :] == b"\xee" * 512 + PATTERN[7 * 512 : 8 * 512]


@pytest.mark.parametrize("protocol", [XEN_IO_PROTO_ABI_X86_64, XEN_IO_PROTO_ABI_X86_32])
@pytest.mark.parametrize("persistent", [False, True])
def test_indirect_requests_carry_up_to_256_segments(protocol: str, persistent: bool) -> None:
    front, backend, ram = made(Rig(), protocol, sectors=4096, persistent=persistent)
    buffers = [front.buffer(PATTERN[at * FRAME : (at + 1) * FRAME]) for at in range(256)]
    segments = [(ref, 0, 7) for _, ref in buffers]
    front.send(front.indirect(WRITE, 5, segments, 99))
    front.rig.run()
    [response] = front.rings[0].responses()
    assert (response.ident, response.operation, response.status) == (99, WRITE, OKAY)
    assert ram.data[5 * 512 : 5 * 512 + 256 * FRAME] == PATTERN[: 256 * FRAME]
    for mfn, _ in buffers:
        front.rig.memory.fill(mfn << 12, FRAME)
    assert front.ask(front.indirect(READ, 5, segments[::-1])) == [OKAY]
    assert front.rig.memory.read(buffers[-1][0] << 12, FRAME) == PATTERN[:FRAME]
    front.close()
    assert backend.grants_in_use == 0


@pytest.mark.parametrize("protocol", [XEN_IO_PROTO_ABI_X86_64, XEN_IO_PROTO_ABI_X86_32])
def test_discard_and_flush(protocol: str) -> None:
    front, backend, ram = made(Rig(), protocol)
    assert front.fill(0, PATTERN[: 40 * SECTOR]) == [OKAY]
    assert ram.flushed[:SECTOR] == bytes(SECTOR)
    assert front.ask(front.discard(3, 30), front.request(FLUSH, 0, [])) == [OKAY, OKAY]
    assert ram.data[: 40 * SECTOR] == PATTERN[: 3 * 512] + bytes(30 * 512) + PATTERN[33 * 512 : 40 * 512]
    front.rig.run()
    assert ram.flushed[:SECTOR] == PATTERN[:SECTOR]
    counted = backend.statistics
    assert (counted.writes, counted.flushes, counted.discards, counted.errors) == (1, 1, 1, 0)


def test_a_flush_with_data_writes_after_it() -> None:
    front, _, ram = made(Rig())
    _, ref = front.buffer(PATTERN[:FRAME])
    assert front.ask(front.request(FLUSH, 8, [(ref, 0, 7)])) == [OKAY]
    assert ram.data[8 * 512 : 16 * 512] == PATTERN[:FRAME]
    assert ram.flushed[8 * 512 : 16 * 512] == bytes(FRAME)


def test_after_a_flush_that_failed_nothing_is_written() -> None:
    front, _, ram = made(Rig())
    _, ref = front.buffer(PATTERN[:FRAME])
    ram.fail = errno.EIO
    front.send(front.request(FLUSH, 8, [(ref, 0, 7)]))
    front.rig.run(TIME_NS)
    ram.fail = 0
    front.rig.run()
    assert [response.status for response in front.rings[0].responses()] == [ERROR]
    assert not any(ram.data)


def test_a_barrier_waits_for_what_was_before_and_holds_back_what_comes_after() -> None:
    front, _, ram = made(Rig())
    one, two, three = (front.buffer(bytes([value]) * FRAME)[1] for value in (1, 2, 3))
    front.send(
        front.request(WRITE, 0, [(one, 0, 7)], 1), front.request(BARRIER, 4, [(two, 0, 7)], 2),
        front.request(WRITE, 8, [(three, 0, 7)], 3),
    )
    ring = front.rings[0]
    seen = []
    for _ in range(6):
        front.rig.run(TIME_NS)
        seen.append(([response.ident for response in ring.responses()], ram.data[::2048].hex()[:8]))
    assert seen == [
        ([1], "01010000"), ([], "01010000"), ([], "01020200"), ([2], "01020200"), ([3], "01020303"),
        ([], "01020303"),
    ]
    assert ram.flushed[4 * 512] == 2
    for _ in range(3):
        assert front.ask(front.request(BARRIER, 0, [])) == [OKAY], "nothing was asked for after a barrier"


def test_what_a_disk_cannot_do_is_an_error_and_the_disk_goes_on() -> None:
    front, backend, ram = made(Rig())
    ram.fail = errno.EIO
    _, ref = front.buffer()
    requests = [
        front.request(READ, 0, [(ref, 0, 7)]), front.request(WRITE, 0, [(ref, 0, 7)]),
        front.request(FLUSH, 0, []), front.request(BARRIER, 0, [(ref, 0, 0)]), front.discard(0, 8),
    ]
    assert front.ask(*requests) == [ERROR] * 5
    ram.fail = 0
    assert front.ask(*requests) == [OKAY] * 5
    assert backend.statistics.errors == 5


def bad_requests(front: Frontend) -> dict[str, bytes]:
    """Requests that must be refused, each for one reason; the disk has 2048 sectors."""
    readable = front.grant(front.page(), readonly=True)
    good = front.buffer()[1]
    table = front.page()
    front.rig.memory.fill(table << 12, FRAME)
    assert front.rig.floor.types.get_page_and_type(table, front.domain.memory, L1_TABLE) == 0
    stranger = front.rig.floor.heap.xen_frame()
    beyond = front.rig.memory.frames + 5
    segment = (good, 0, 7)
    indirect = front.buffer(bytes([0]) * FRAME, readonly=True)[1]
    return {
        "no segments": front.request(READ, 0, []),
        "more segments than there are": front.request(READ, 0, [segment] * 11, count=12),
        "255 segments": front.request(WRITE, 0, [segment], count=255),
        "12 segments in a barrier": front.request(BARRIER, 0, [segment] * 11, count=12),
        "12 segments in a flush": front.request(FLUSH, 0, [segment] * 11, count=12),
        "last sector beyond the page": front.request(READ, 0, [(good, 0, 8)]),
        "last sector 255": front.request(READ, 0, [(good, 0, 255)]),
        "last before first": front.request(READ, 0, [(good, 4, 3)]),
        "one bad among good": front.request(READ, 0, [segment, (good, 7, 0), segment]),
        "beyond the disk": front.request(READ, 2041, [segment]),
        "far beyond the disk": front.request(READ, 1 << 63, [segment]),
        "the sum overflows": front.request(WRITE, (1 << 64) - 4, [segment]),
        "no such reference": front.request(READ, 0, [(0xFFFF_FFFF, 0, 7)]),
        "beyond the table": front.request(READ, 0, [(front.rig.floor.grants.table(
            front.domain.memory).entries, 0, 7)]),
        "reference not granted": front.request(READ, 0, [(7, 0, 7)]),
        "granted to another domain": front.request(READ, 0, [(front.grant(front.page(), domid=9), 0, 7)]),
        "only readable, to be read into": front.request(READ, 0, [(readable, 0, 7)]),
        "a page table, to be read into": front.request(READ, 0, [(front.grant(table), 0, 7)]),
        "another's frame": front.request(WRITE, 0, [(front.grant(stranger), 0, 7)]),
        "no frame at all": front.request(WRITE, 0, [(front.grant(beyond), 0, 7)]),
        "the last of several cannot be had": front.request(WRITE, 0, [segment, segment, (7, 0, 7)]),
        "discard beyond the disk": front.discard(2040, 9),
        "discard whose sum overflows": front.discard(8, (1 << 64) - 1),
        "indirect without segments": front.indirect(READ, 0, [], count=0),
        "indirect with 257 segments": front.indirect(READ, 0, [(good, 0, 0)] * 257),
        "indirect with 65535 segments": front.indirect(READ, 0, [segment], count=65535),
        "indirect of no page": front.indirect(READ, 0, [segment], pages=[7]),
        "indirect with segments of nothing": front.indirect(WRITE, 0, [segment] * 3, pages=[indirect]),
        "indirect discard": front.indirect(blkif.BLKIF_OP_DISCARD, 0, [segment]),
        "indirect flush": front.indirect(FLUSH, 0, [segment]),
        "indirect indirect": front.indirect(blkif.BLKIF_OP_INDIRECT, 0, [segment]),
        "indirect beyond the disk": front.indirect(WRITE, 2040, [segment] * 2),
    }


@pytest.mark.parametrize("protocol", [XEN_IO_PROTO_ABI_X86_64, XEN_IO_PROTO_ABI_X86_32])
@pytest.mark.parametrize("persistent", [False, True])
def test_bad_requests_are_refused_and_leave_nothing(protocol: str, persistent: bool) -> None:
    front, backend, ram = made(Rig(), protocol, persistent=persistent)
    requests = bad_requests(front)
    ram.data[:] = PATTERN[: len(ram.data)]
    before, uses = front.rig.counts(front.domain), backend.grants_in_use
    outcome = {name: front.ask(request) for name, request in requests.items()}
    assert {name: got for name, got in outcome.items() if got != [ERROR]} == {}
    assert ram.data == PATTERN[: len(ram.data)]
    assert backend.in_flight == 0
    if not persistent:
        assert front.rig.counts(front.domain) == before
        assert backend.grants_in_use == uses
        assert list(front.rig.floor.grants.table(front.domain.memory).active) == front.rings[0].refs
    assert front.fill(0, PATTERN[:FRAME]) == [OKAY]
    assert backend.statistics.errors == len(requests)


def test_a_page_table_can_be_written_to_the_disk() -> None:
    front, _, _ = made(Rig())
    table = front.page()
    front.rig.memory.fill(table << 12, FRAME)
    assert front.rig.floor.types.get_page_and_type(table, front.domain.memory, L1_TABLE) == 0
    assert front.ask(front.request(WRITE, 0, [(front.grant(table, readonly=True), 0, 7)])) == [OKAY]


@pytest.mark.parametrize("operation", [blkif.BLKIF_OP_RESERVED_1, 7, 99, 255])
def test_unknown_operations_are_not_supported(operation: int) -> None:
    front, _, _ = made(Rig())
    front.send(front.request(operation, 0, [], 1234))
    [response] = front.rings[0].responses()
    assert (response.ident, response.operation, response.status) == (1234, operation, UNSUPPORTED)


def test_a_read_only_disk_refuses_all_that_writes() -> None:
    front, _, ram = made(Rig(), read_only=True)
    _, ref = front.buffer(b"\1" * FRAME)
    assert front.ask(
        front.request(WRITE, 0, [(ref, 0, 7)]), front.request(BARRIER, 0, [(ref, 0, 7)]),
        front.request(FLUSH, 0, []), front.discard(0, 8), front.indirect(WRITE, 0, [(ref, 0, 7)]),
        front.request(READ, 0, [(ref, 0, 7)]),
    ) == [ERROR] * 5 + [OKAY]
    assert not any(ram.data)
    assert front.rig.node(f"{front.backend}/info") == str(blkif.VDISK_READONLY)
    assert front.rig.node(f"{front.backend}/feature-discard") is None
    assert front.rig.node(f"{front.backend}/mode") == "r"


def test_without_discard_it_is_not_supported() -> None:
    front, _, _ = made(Rig(), discard=False)
    assert front.ask(front.discard(0, 8)) == [UNSUPPORTED]


def test_extents_make_one_disk_of_ranges() -> None:
    extents = (Extent(1000, 10), Extent(10, 3), Extent(500, 2), Extent(20, 100))
    front, _, ram = made(Rig(), extents=extents)
    data = PATTERN[: 60 * SECTOR]
    assert front.fill(5, data) == [OKAY]
    for virtual, real, length in ((5, 1005, 5), (10, 10, 3), (13, 500, 2), (15, 20, 50)):
        at = (virtual - 5) * SECTOR
        assert ram.data[real * SECTOR :][: length * SECTOR] == data[at : at + length * SECTOR]
    assert sum(byte != 0 for byte in ram.data) == sum(byte != 0 for byte in data)
    assert front.read(5, 60) == data
    assert front.ask(front.discard(9, 7)) == [OKAY]
    assert front.read(5, 60) == data[: 4 * 512] + bytes(7 * 512) + data[11 * 512 :]
    _, ref = front.buffer()
    assert front.ask(front.request(READ, 114, [(ref, 0, 0)])) == [OKAY]
    assert front.ask(front.request(READ, 115, [(ref, 0, 0)])) == [ERROR]


@pytest.mark.parametrize("persistent", [False, True])
def test_grants_are_held_while_the_disk_works_and_no_longer(persistent: bool) -> None:
    front, backend, _ = made(Rig(), persistent=persistent)
    before = front.rig.counts(front.domain)
    (one, reading), (two, writing) = front.buffer(), front.buffer(readonly=not persistent)
    table = front.rig.floor.grants.table(front.domain.memory)
    front.send(front.request(READ, 0, [(reading, 0, 7)]), front.request(WRITE, 0, [(writing, 0, 7)]))
    held = front.rig.counts(front.domain)
    assert held[one] == (before[one][0] + 1, 1)
    assert held[two] == (before[two][0] + 1, int(persistent))
    assert table.status(reading) == 0x18
    front.rig.run()
    assert front.rig.counts(front.domain) == (held if persistent else before)
    assert backend.grants_in_use == (3 if persistent else 1)
    assert table.status(reading) == (0x18 if persistent else 0)
    front.close()
    assert backend.grants_in_use == 0
    after = front.rig.counts(front.domain)
    assert {mfn: count for mfn, count in after.items() if count[1] and mfn in front.free} == {}
    assert table.active == {}


def test_persistent_grants_are_kept_up_to_a_bound_and_the_oldest_goes() -> None:
    front, backend, _ = made(Rig(64), persistent=True)
    mfn = front.page()
    refs = [front.grant(mfn) for _ in range(100)]
    table = front.rig.floor.grants.table(front.domain.memory)
    frames = [front.page() for _ in range(12)]
    for turn in range(110):
        refs += [front.grant(frames[turn % 12]) for _ in range(10)]
    for at in range(0, len(refs), 10):
        front.ask(front.request(READ, 0, [(ref, 0, 0) for ref in refs[at : at + 10]]))
    assert backend.grants_in_use == MOST_PERSISTENT + 1
    assert table.active.keys() - set(front.rings[0].refs) == set(refs[-MOST_PERSISTENT:])
    front.close()
    assert backend.grants_in_use == 0


def test_a_kept_grant_that_makes_room_stays_held_for_a_second_user() -> None:
    rig = Rig()
    front = Frontend(rig, rig.domain())
    uses = BackendGrants(rig.floor.grants, rig.floor.types, front.domain.memory)
    held = HeldGrants(uses, persistent=True, limit=1)
    (_, one), (_, two) = front.buffer(), front.buffer()
    first, second = held.take(one, readonly=False), held.take(one, readonly=False)
    assert first is not None
    assert second is not None
    held.give(first)
    third = held.take(two, readonly=False)
    assert third is not None
    assert uses.uses == 2, "the second user's and the new one"
    held.give(second)
    held.give(third)
    assert uses.uses == held.kept == 1
    held.clear()
    assert uses.uses == 0


def test_a_cancelled_transfer_says_nothing_more() -> None:
    ended: list[Transfer] = []
    transfer = Transfer(1, READ, [], lambda request: None, ended.append)
    request = DiskRequest(Operation.FLUSH, 0, 0, (), transfer.done)
    transfer.stage(request)
    transfer.start()
    transfer.cancel()
    transfer.done(request)
    assert ended == []


def test_one_grant_twice_in_a_persistent_request() -> None:
    front, backend, _ = made(Rig(), persistent=True)
    _, ref = front.buffer()
    for _ in range(3):
        assert front.ask(front.request(READ, 0, [(ref, 0, 3), (ref, 4, 7), (ref, 0, 0)])) == [OKAY]
        assert backend.grants_in_use == 2


def test_notifications_follow_the_ring_s_rules() -> None:
    front, _, _ = made(Rig())
    events, ring = front.domain.events, front.rings[0]
    _, ref = front.buffer()
    memory, word = front.rig.memory, front.domain.shared_info + PENDING + (ring.port >> 3)

    def pending() -> bool:
        was: bool = events.is_pending(ring.port)
        memory.store8(word, memory.b[word] & ~(1 << (ring.port & 7)))
        return was

    pending()
    front.send(*(front.request(READ, 0, [(ref, 0, 0)]) for _ in range(3)))
    front.rig.run(TIME_NS)
    assert pending()
    front.rig.run()
    assert not pending()
    assert len(ring.responses()) == 3
    ring.put(12, (ring.rsp_cons + 2).to_bytes(4, "little"))
    for told in (False, True):
        front.send(front.request(READ, 0, [(ref, 0, 0)]))
        front.rig.run()
        assert pending() is told, "the frontend asked to hear of the second response"
    ring.responses()
    ring.push(front.request(READ, 0, [(ref, 0, 0)]))
    assert ring.publish(), "the back end slept and asked for the next request"
    ring.kick()
    front.rig.run()
    assert pending()


def test_a_ring_beyond_its_size_is_no_longer_served() -> None:
    front, backend, _ = made(Rig())
    ring = front.rings[0]
    _, ref = front.buffer()
    front.send(front.request(READ, 0, [(ref, 0, 0)]))
    ring.publish(ring.req_prod + 33)
    ring.kick()
    assert "bogus ring requests" in backend.halted
    assert len(front.rig.log) == 1
    front.rig.run()
    assert len(ring.responses()) == 1, "what was taken before is answered"
    ring.publish()
    ring.kick()
    assert front.rig.log[1:] == []
    front.close()
    assert backend.grants_in_use == 0
    front.state(xenbus.XenbusStateInitialising)
    front.connect()
    assert front.fill(0, PATTERN[:FRAME]) == [OKAY]


def test_a_producer_that_goes_back_gives_nothing_to_take() -> None:
    front, backend, _ = made(Rig())
    ring = front.rings[0]
    _, ref = front.buffer()
    front.send(*(front.request(READ, 0, [(ref, 0, 0)]) for _ in range(3)))
    ring.publish(ring.req_prod - 2)
    ring.kick()
    assert backend.in_flight == 3
    assert not backend.halted
    ring.publish()
    front.rig.run()
    assert [response.status for response in ring.responses()] == [OKAY] * 3


@pytest.mark.parametrize("jump", [-1, -5, 33, 1 << 31, (1 << 32) - 1])
def test_any_producer_index_harms_only_its_device(jump: int) -> None:
    rig = Rig()
    front, _, _ = made(rig)
    other = Frontend(rig, rig.domain(2))
    disk, _ = rig.disk()
    rig.attach(other.domain, disk)
    other.connect()
    front.rings[0].publish(front.rings[0].req_prod + jump & 0xFFFF_FFFF)
    front.rings[0].kick()
    rig.run()
    assert other.fill(3, PATTERN[: 30 * 512]) == [OKAY]
    assert other.read(3, 30) == PATTERN[: 30 * 512]


def test_several_queues_work_side_by_side() -> None:
    front, backend, ram = made(Rig(), queues=4, pages=2)
    refs = [front.buffer(bytes([number + 1]) * FRAME)[1] for number in range(4)]
    for number, ref in enumerate(refs):
        front.send(front.request(WRITE, 8 * number, [(ref, 0, 7)], number), ring=number)
    assert backend.in_flight == 4
    front.rig.run()
    assert [[response.ident for response in ring.responses()] for ring in front.rings] == [[0], [1], [2], [3]]
    assert ram.data[: 4 * FRAME : FRAME] == b"\1\2\3\4"
    front.close()
    assert backend.grants_in_use == 0
