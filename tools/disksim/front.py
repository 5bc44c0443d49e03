"""Front: a frontend of a virtual disk that the host plays, in a domain that does not run."""

from __future__ import annotations

import struct
from itertools import count
from typing import Final

from firmware.abi import io_blkif as blkif
from firmware.abi import io_xenbus as xenbus
from firmware.abi.grant_table import GTF_permit_access
from firmware.disk.requests import MOST_INDIRECT, SEGMENT
from firmware.domain.domain import Domain
from firmware.events import BACKEND_DOMAIN, State
from firmware.memory.frames import WRITABLE
from machine.memory import FRAME_SHIFT, FRAME_SIZE
from xenpy.guest import Guest
from xenpy.system import System

HEADER: Final = blkif.blkif_sring.w64.offset["ring"]
LAST_SECTOR: Final = 7
"""Of a page."""
REQUEST: Final = struct.Struct("<BBH4xQQ")
"""blkif_request up to its segments: operation, nr_segments, handle, id, sector_number."""
INDIRECT: Final = struct.Struct("<BBH4xQQHxxI")
"""blkif_request_indirect: operation, indirect_op, nr_segments, id, sector_number, handle, the first page."""
_FIRST_REF: Final = 8
"""Those below are the toolstack's (GNTTAB_NR_RESERVED_ENTRIES)."""
_LATER_NS: Final = 60_000_000_000


class Front:
    """The driver of `vdev` of a guest, with `buffers` pages of data."""

    def __init__(self, system: System, guest: Guest, buffers: int, *, vdev: int = 51712) -> None:
        hypervisor = system.hypervisor
        self._domain: Domain = hypervisor.lifecycle.domains[guest.id]
        self._memory = system.machine.memory
        self._clock = system.machine.clock
        self._store = system.hypervisor.store
        self._home = f"/local/domain/{guest.id}/device/vbd/{vdev}"
        frames = hypervisor.memory.frames
        self._table = hypervisor.memory.grants.table(self._domain.memory)
        self._free = [mfn for mfn in frames.owned_by(guest.id) if frames.type_of(mfn) == WRITABLE]
        self._refs = count(_FIRST_REF)
        mfn, self._ring_ref = self._page()
        self._ring = mfn << FRAME_SHIFT
        self.buffers = [self._page() for _ in range(buffers)]
        self._produced = self._consumed = 0
        self.entries = 1 << ((FRAME_SIZE - HEADER) // blkif.blkif_request.w64.size).bit_length() - 1
        self._tables: dict[tuple[int, int], int] = {}

    def connect(self, *, persistent: bool) -> None:
        """As Linux' blkfront does it."""
        self._memory.write(self._ring, struct.pack("<4I", 0, 1, 0, 1) + bytes(HEADER - 16))
        events = self._domain.events
        self._port = int(events.allocate())
        port = events.ports[self._port]
        port.state, port.remote_domain = State.UNBOUND, BACKEND_DOMAIN
        for name, value in (
            ("ring-ref", self._ring_ref), ("event-channel", self._port),
            ("feature-persistent", int(persistent)), ("state", xenbus.XenbusStateInitialised),
            ("state", xenbus.XenbusStateConnected),
        ):
            self._store.write(f"{self._home}/{name}", str(value))
        self._store.settle()

    def put(self, operation: int, sector: int, pages: int, first: int = 0) -> None:
        """A request for whole pages, into the buffers from `first` on; with indirect segments when it takes
        more than a direct request has.
        """
        if pages <= blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST:
            data = REQUEST.pack(operation, pages, 0, self._produced, sector) + b"".join(
                SEGMENT.pack(ref, 0, LAST_SECTOR) for _, ref in self.buffers[first : first + pages])
        else:
            data = INDIRECT.pack(blkif.BLKIF_OP_INDIRECT, operation, pages, self._produced, sector, 0,
                                 self._segments(first, pages))
        size = blkif.blkif_request.w64.size
        self._memory.write(self._ring + HEADER + self._produced % self.entries * size, data)
        self._produced += 1

    def publish(self) -> None:
        """Show the back end what was put."""
        self._memory.store32(self._ring, self._produced & 0xFFFF_FFFF)

    def kick(self) -> None:
        """Notify it."""
        consumer = self._domain.events.ports[self._port].consumer
        assert consumer is not None
        consumer()

    def work(self) -> None:
        """Let the disks come to their end."""
        clock = self._clock
        end = clock.now + _LATER_NS
        while (due := clock.next()) is not None and due <= end:
            clock.advance(due)

    def collect(self) -> int:
        """How many responses there are; RuntimeError for one that is not okay."""
        produced = self._memory.d[(self._ring >> 2) + 2]
        found = 0
        while self._consumed & 0xFFFF_FFFF != produced:
            at = self._ring + HEADER + self._consumed % self.entries * blkif.blkif_request.w64.size
            _, _, status = struct.unpack("<QBxh", self._memory.read(at, 12))
            if status != blkif.BLKIF_RSP_OKAY:
                raise RuntimeError(f"the back end responds {status}")
            self._consumed += 1
            found += 1
        self._memory.store32(self._ring + 12, self._consumed + 1 & 0xFFFF_FFFF)
        return found

    def _segments(self, first: int, pages: int) -> int:
        """The reference of a page with the segments of these buffers."""
        assert pages <= MOST_INDIRECT
        ref = self._tables.get((first, pages))
        if ref is None:
            mfn, ref = self._page()
            used = self.buffers[first : first + pages]
            data = b"".join(SEGMENT.pack(each, 0, LAST_SECTOR) for _, each in used)
            self._memory.write(mfn << FRAME_SHIFT, data)
            self._tables[first, pages] = ref
        return ref

    def _page(self) -> tuple[int, int]:
        """A frame and its grant."""
        mfn, ref = self._free.pop(), next(self._refs)
        if not self._table.grow(ref // (FRAME_SIZE // 8) + 1):
            raise MemoryError("the grant table is full")
        self._table.store_entry(ref, GTF_permit_access | BACKEND_DOMAIN << 16, mfn)
        return mfn, ref
