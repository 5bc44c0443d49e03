"""A blkfront of the tests' own: rings, grants, and requests made by hand, good and bad."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from firmware.abi import io_blkif as blkif
from firmware.abi import io_xenbus as xenbus
from firmware.abi.grant_table import GTF_permit_access, GTF_readonly
from firmware.domain.domain import Domain
from firmware.events import State
from firmware.memory.frames import XEN_HEAP
from tests.disk.rig import Rig

FRAME = 4096
HEADER = 64
SEGMENT_FIELDS = ("gref", "first_sect", "last_sect")
OKAY, ERROR, UNSUPPORTED = blkif.BLKIF_RSP_OKAY, blkif.BLKIF_RSP_ERROR, blkif.BLKIF_RSP_EOPNOTSUPP
Segment = tuple[int, int, int]
"""Grant reference, first and last sector."""


@dataclass(frozen=True)
class Response:
    ident: int
    operation: int
    status: int


class FrontRing:
    """The frontend's half of one ring."""

    def __init__(self, front: Frontend, pages: int) -> None:
        self.front = front
        self.frames = [front.page() for _ in range(pages)]
        self.refs = [front.grant(mfn) for mfn in self.frames]
        self.size = front.layout.size
        self.entries = 1 << ((pages * FRAME - HEADER) // self.size).bit_length() - 1
        self.req_prod = self.rsp_cons = 0
        self.port = front.port()
        self.put(0, struct.pack("<4I", 0, 1, 0, 1) + bytes(HEADER - 16))

    def put(self, offset: int, data: bytes) -> None:
        for at, length in self._places(offset, len(data)):
            self.front.rig.memory.write(at, data[:length])
            data = data[length:]

    def get(self, offset: int, length: int) -> bytes:
        memory = self.front.rig.memory
        return b"".join(memory.read(at, part) for at, part in self._places(offset, length))

    def _places(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        while length:
            part = min(length, FRAME - offset % FRAME)
            yield (self.frames[offset >> 12] << 12) + offset % FRAME, part
            offset, length = offset + part, length - part

    def index(self, word: int) -> int:
        return int.from_bytes(self.get(word * 4, 4), "little")

    def push(self, request: bytes) -> None:
        self.put(HEADER + self.req_prod % self.entries * self.size, request)
        self.req_prod = self.req_prod + 1 & 0xFFFF_FFFF

    def publish(self, produced: int | None = None) -> bool:
        """Make the requests visible; whether the back end asked to be told."""
        old, new = self.index(0), self.req_prod if produced is None else produced
        self.put(0, struct.pack("<I", new))
        return (new - self.index(1) & 0xFFFF_FFFF) < (new - old & 0xFFFF_FFFF)

    def kick(self) -> None:
        port = self.front.domain.events.ports[self.port]
        if port.consumer is not None:
            port.consumer()

    def responses(self) -> list[Response]:
        found = []
        if self.index(2) - self.rsp_cons & 0xFFFF_FFFF > self.entries:
            self.rsp_cons = self.index(2)
        while self.rsp_cons != self.index(2):
            at = HEADER + self.rsp_cons % self.entries * self.size
            found.append(Response(*struct.unpack("<QBxh", self.get(at, 12))))
            self.rsp_cons = self.rsp_cons + 1 & 0xFFFF_FFFF
        self.put(12, struct.pack("<I", self.rsp_cons + 1 & 0xFFFF_FFFF))
        return found


@dataclass
class Frontend:
    """The driver of one virtual disk in one domain."""

    rig: Rig
    domain: Domain
    number: int = 51712
    protocol: str | None = None
    free: list[int] = field(default_factory=list)
    refs: Iterable[int] = field(default_factory=lambda: count(8))

    def __post_init__(self) -> None:
        self.layout = blkif.blkif_request.of(self.protocol != "x86_32-abi")
        self.base = f"/local/domain/{self.domain.id}/device/vbd/{self.number}"
        self.backend = f"/local/domain/0/backend/vbd/{self.domain.id}/{self.number}"
        frames = self.rig.floor.frames
        owned = frames.owned_by(self.domain.id)
        self.free = self.free or [mfn for mfn in owned if not frames.counts[mfn] & XEN_HEAP]
        self.rings: list[FrontRing] = []
        self.idents = count(1)
        self.persistent = False

    # Pages, grants, ports

    def page(self) -> int:
        return self.free.pop()

    def grant(self, mfn: int, *, readonly: bool = False, ref: int | None = None, domid: int = 0) -> int:
        """Let domain 0 use a frame."""
        ref = next(iter(self.refs)) if ref is None else ref
        table = self.rig.floor.grants.table(self.domain.memory)
        assert table.grow(ref // 512 + 1)
        flags = GTF_permit_access | (GTF_readonly if readonly else 0)
        table.store_entry(ref, flags | domid << 16, mfn)
        return ref

    def revoke(self, ref: int) -> None:
        self.rig.floor.grants.table(self.domain.memory).store_entry(ref, 0, 0)

    def buffer(self, data: bytes = b"", *, readonly: bool = False) -> tuple[int, int]:
        """A page with these bytes, granted: (frame, reference). What is kept mapped must be writable."""
        mfn = self.page()
        readonly = readonly and not self.persistent
        self.rig.memory.write(mfn << 12, data.ljust(FRAME, b"\0")[:FRAME])
        return mfn, self.grant(mfn, readonly=readonly)

    def port(self) -> int:
        events = self.domain.events
        number: int = events.allocate()
        events.ports[number].state = State.UNBOUND
        events.ports[number].remote_domain = 0
        return number

    # The store

    def state(self, value: int) -> None:
        self.rig.store.write(f"{self.base}/state", str(value))

    def write(self, **nodes: object) -> None:
        for name, value in nodes.items():
            self.rig.store.write(f"{self.base}/{name.replace('_', '-')}", str(value))

    def connect(
        self, *, pages: int = 1, queues: int = 1, persistent: bool = False, order: bool = False
    ) -> None:
        """As Linux' blkfront does it."""
        self.rings = [FrontRing(self, pages) for _ in range(queues)]
        if order or pages > 1:
            self.write(ring_page_order=pages.bit_length() - 1)
        if queues > 1:
            self.write(multi_queue_num_queues=queues)
        for index, ring in enumerate(self.rings):
            place = f"{self.base}/queue-{index}" if queues > 1 else self.base
            names = [f"ring-ref{page}" for page in range(pages)] if order or pages > 1 else ["ring-ref"]
            for name, ref in zip(names, ring.refs, strict=True):
                self.rig.store.write(f"{place}/{name}", str(ref))
            self.rig.store.write(f"{place}/event-channel", str(ring.port))
        if self.protocol is not None:
            self.write(protocol=self.protocol)
        self.persistent = persistent
        self.write(feature_persistent=int(persistent))
        self.state(xenbus.XenbusStateInitialised)
        self.state(xenbus.XenbusStateConnected)

    def close(self) -> None:
        self.state(xenbus.XenbusStateClosing)
        self.state(xenbus.XenbusStateClosed)

    # Requests

    def request(self, operation: int, sector: int, segments: Sequence[Segment], ident: int | None = None,
                *, count: int | None = None) -> bytes:
        return bytes(self.layout.pack(
            operation=operation, nr_segments=len(segments) if count is None else count, handle=0,
            id=next(self.idents) if ident is None else ident, sector_number=sector,
            seg=[dict(zip(SEGMENT_FIELDS, segment, strict=True)) for segment in segments],
        ))

    def discard(self, sector: int, sectors: int, ident: int | None = None) -> bytes:
        layout = blkif.blkif_request_discard.of(self.protocol != "x86_32-abi")
        return bytes(layout.pack(
            operation=blkif.BLKIF_OP_DISCARD, id=next(self.idents) if ident is None else ident,
            sector_number=sector, nr_sectors=sectors,
        ))

    def indirect(self, operation: int, sector: int, segments: Sequence[Segment], ident: int | None = None,
                 *, count: int | None = None, pages: Sequence[int] | None = None) -> bytes:
        layout = blkif.blkif_request_indirect.of(self.protocol != "x86_32-abi")
        if pages is None:
            table = b"".join(struct.pack("<IBBxx", *segment) for segment in segments)
            parts = [table[at : at + FRAME] for at in range(0, len(table), FRAME)] or [b""]
            pages = [self.buffer(part, readonly=True)[1] for part in parts]
        return bytes(layout.pack(
            operation=blkif.BLKIF_OP_INDIRECT, indirect_op=operation,
            nr_segments=len(segments) if count is None else count,
            id=next(self.idents) if ident is None else ident, sector_number=sector,
            indirect_grefs=(*pages, *[0] * (8 - len(pages))),
        ))

    def send(self, *requests: bytes, ring: int = 0) -> None:
        """Push requests and notify the back end if it asked for it."""
        mine = self.rings[ring]
        for request in requests:
            mine.push(request)
        if mine.publish():
            mine.kick()

    def ask(self, *requests: bytes, ring: int = 0) -> list[int]:
        """Send, let the disk work, and the statuses of the responses, oldest first."""
        self.send(*requests, ring=ring)
        self.rig.run()
        return [response.status for response in self.rings[ring].responses()]

    def read(self, sector: int, sectors: int) -> bytes:
        """Sectors through the ring, up to 88 of them."""
        buffers = [self.buffer() for _ in range(-(-sectors // 8))]
        segments = [(ref, 0, min(7, sectors - 8 * at - 1)) for at, (_, ref) in enumerate(buffers)]
        assert self.ask(self.request(blkif.BLKIF_OP_READ, sector, segments)) == [OKAY]
        data = b"".join(self.rig.memory.read(mfn << 12, FRAME) for mfn, _ in buffers)
        self.free += [mfn for mfn, _ in buffers]
        return data[: sectors * 512]

    def fill(self, sector: int, data: bytes) -> list[int]:
        """Write whole sectors through the ring, up to 88 of them."""
        pages = [data[at : at + FRAME] for at in range(0, len(data), FRAME)]
        buffers = [self.buffer(page, readonly=True) for page in pages]
        segments = [
            (ref, 0, len(page) // 512 - 1) for (_, ref), page in zip(buffers, pages, strict=True)
        ]
        statuses = self.ask(self.request(blkif.BLKIF_OP_WRITE, sector, segments))
        self.free += [mfn for mfn, _ in buffers]
        return statuses
