"""One ring of a virtual disk: takes requests, checks them, has them carried out, responds.

What is refused, and how, is as in Linux' xen-blkback (drivers/block/xen-blkback/blkback.c).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from firmware.abi import io_blkif as blkif
from firmware.abi.errno import EOPNOTSUPP
from firmware.disk.channel import Channel
from firmware.disk.held import Held, HeldGrants
from firmware.disk.requests import (
    MOST_INDIRECT,
    SEGMENT,
    SEGMENT_SIZE,
    SEGMENTS_IN_FRAME,
    Dialect,
    Segment,
    valid,
)
from firmware.disk.ring import BackRing, RingOverflowError
from firmware.disk.transfer import Pieces, Transfer, split
from firmware.disk.vbd import VirtualDisk
from machine.disk import DiskRequest, Operation
from machine.memory import FRAME_SHIFT, MachineMemory

SECTOR_SHIFT: Final = 9
WRITES: Final = {
    blkif.BLKIF_OP_READ: False,
    blkif.BLKIF_OP_WRITE: True,
    blkif.BLKIF_OP_WRITE_BARRIER: True,
    blkif.BLKIF_OP_FLUSH_DISKCACHE: True,
}
"""Direct operations, and whether a disk that is only read refuses them."""
INDIRECT_WRITES: Final = {blkif.BLKIF_OP_READ: False, blkif.BLKIF_OP_WRITE: True}
FLUSHES: Final = (blkif.BLKIF_OP_WRITE_BARRIER, blkif.BLKIF_OP_FLUSH_DISKCACHE)


class Statistics:
    """Requests of one virtual disk since it was attached, as xen-blkback counts them, and how many failed."""

    __slots__ = ("discards", "errors", "flushes", "reads", "sectors_read", "sectors_written", "writes")

    def __init__(self) -> None:
        self.reads = self.writes = self.flushes = self.discards = self.errors = 0
        self.sectors_read = self.sectors_written = 0


class RequestQueue:
    """A connected ring. `submit` takes requests for the real disk. `idle` is called when, while the queue is
    stopped, the last of its requests ends; `halt` once, with the reason, when the frontend breaks the rules.
    """

    __slots__ = (
        "_barrier",
        "_channel",
        "_dialect",
        "_disk",
        "_halt",
        "_held",
        "_idle",
        "_memory",
        "_operations",
        "_ring",
        "_statistics",
        "_submit",
        "_transfers",
        "halted",
        "stopped",
    )

    def __init__(
        self,
        disk: VirtualDisk,
        memory: MachineMemory,
        ring: BackRing,
        dialect: Dialect,
        held: HeldGrants,
        *,
        submit: Callable[[DiskRequest], None],
        idle: Callable[[], None],
        halt: Callable[[str], None],
        statistics: Statistics,
    ) -> None:
        self._disk = disk
        self._memory = memory
        self._ring = ring
        self._dialect = dialect
        self._held = held
        self._submit = submit
        self._idle = idle
        self._halt = halt
        self._statistics = statistics
        self._channel: Channel | None = None
        self._transfers: dict[Transfer, None] = {}
        self._barrier: Transfer | None = None
        """Nothing more is taken until this one is done."""
        self.halted = ""
        """Why no more requests are taken, when the frontend broke the ring's rules."""
        self.stopped = False
        self._operations: dict[int, Callable[[bytes], None]] = {
            **dict.fromkeys(WRITES, self._direct),
            blkif.BLKIF_OP_WRITE_BARRIER: self._barriers,
            blkif.BLKIF_OP_INDIRECT: self._indirect,
            blkif.BLKIF_OP_DISCARD: self._discard,
        }

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered."""
        return len(self._transfers)

    @property
    def held(self) -> HeldGrants:
        """The grants in use."""
        return self._held

    def open(self, channel: Channel) -> None:
        """From now on the frontend is notified."""
        self._channel = channel

    def serve(self) -> None:
        """Take and begin what the frontend has produced."""
        if self.stopped or self.halted:
            return
        ring, operations = self._ring, self._operations
        try:
            # When nothing is left the frontend is asked to tell of the next request, also after a barrier.
            while self._barrier is None and (ring.unconsumed() or ring.final_check()):
                raw = ring.take()
                operations.get(raw[0], self._unknown)(raw)
        except RingOverflowError as error:
            self.halted = str(error)
            self._halt(self.halted)

    def stop(self) -> None:
        """Take no more requests; those begun go on."""
        self.stopped = True

    def cancel(self) -> None:
        """The disk has let go of all requests: give back what they use, answer nothing."""
        self.stop()
        for transfer in self._transfers:
            transfer.cancel()
            self._release(transfer.held)
        self._transfers.clear()

    def close(self) -> None:
        """Nothing is in flight: let go of the grants that are kept, and of the event channel."""
        self._held.clear()
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    # Requests

    def _direct(self, raw: bytes) -> None:
        operation, count, _, ident, sector = self._dialect.head.unpack_from(raw)
        if count > blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST:
            self._refuse(ident, operation)
        else:
            self._begin(self._transfer(ident, operation, sector, self._dialect.segments(raw, count)))

    def _barriers(self, raw: bytes) -> None:
        """A barrier waits for all that came before it; what comes after waits for the barrier."""
        operation, count, _, ident, sector = self._dialect.head.unpack_from(raw)
        if count > blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST:
            self._refuse(ident, operation)
            return
        barrier = self._transfer(ident, operation, sector, self._dialect.segments(raw, count))
        if barrier is None:
            return
        if count:
            barrier.stage(DiskRequest(Operation.FLUSH, 0, 0, (), barrier.done))
        self._barrier = barrier
        if self._transfers:
            self._transfers[barrier] = None
        else:
            self._begin(barrier)

    def _indirect(self, raw: bytes) -> None:
        _, operation, count, ident, sector = self._dialect.indirect.unpack_from(raw)
        if operation not in INDIRECT_WRITES or count > MOST_INDIRECT:
            self._refuse(ident, operation)
            return
        refs = self._dialect.grefs.unpack_from(raw, self._dialect.grefs_at)
        segments = self._indirect_segments(refs, count)
        if segments is None:
            self._refuse(ident, operation)
        else:
            self._begin(self._transfer(ident, operation, sector, segments))

    def _indirect_segments(self, refs: tuple[int, ...], count: int) -> list[Segment] | None:
        """The segments in the guest's pages, copied once; None when a page cannot be had."""
        segments: list[Segment] = []
        for ref in refs[: -(-count // SEGMENTS_IN_FRAME)]:
            held = self._held.take(ref, readonly=True)
            if held is None:
                return None
            here = min(count - len(segments), SEGMENTS_IN_FRAME)
            address = held.mfn << FRAME_SHIFT
            segments += SEGMENT.iter_unpack(bytes(self._memory.b[address : address + here * SEGMENT_SIZE]))
            self._held.give(held)
        return segments

    def _transfer(self, ident: int, operation: int, sector: int, segments: list[Segment]) -> Transfer | None:
        """Make ready a request that moves data, or a flush; None when it was refused."""
        disk = self._disk
        sectors = valid(segments)
        flushes = operation in FLUSHES
        writes = WRITES[operation]
        if (
            (not sectors and (segments or not flushes))
            or (writes and disk.read_only)
            or (sectors and sector + sectors > disk.sectors)
        ):
            self._refuse(ident, operation)
            return None
        held, pieces = self._map(segments, readonly=writes)
        if held is None:
            self._refuse(ident, operation)
            return None
        statistics = self._statistics
        if flushes:
            statistics.flushes += 1
        elif writes:
            statistics.writes += 1
            statistics.sectors_written += sectors
        else:
            statistics.reads += 1
            statistics.sectors_read += sectors
        transfer = Transfer(ident, operation, held, self._submit, self._finished)
        if flushes:
            transfer.stage(DiskRequest(Operation.FLUSH, 0, 0, (), transfer.done))
        if sectors:
            kind = Operation.WRITE if writes else Operation.READ
            transfer.stage(*(
                DiskRequest(kind, extent.sector, extent.sectors, part, transfer.done)
                for extent, part in split(pieces, disk.extents.resolve(sector, sectors))
            ))
        return transfer

    def _map(self, segments: list[Segment], *, readonly: bool) -> tuple[list[Held] | None, Pieces]:
        """Take the segments' grants: what is held, and the memory in order. None when one cannot be had."""
        held: list[Held] = []
        pieces: list[tuple[int, int]] = []
        take = self._held.take
        for ref, first, last in segments:
            grant = take(ref, readonly=readonly)
            if grant is None:
                self._release(held)
                return None, ()
            held.append(grant)
            address = (grant.mfn << FRAME_SHIFT) + (first << SECTOR_SHIFT)
            pieces.append((address, last - first + 1 << SECTOR_SHIFT))
        return held, tuple(pieces)

    def _discard(self, raw: bytes) -> None:
        operation, _, _, ident, sector, sectors = self._dialect.discard.unpack_from(raw)
        disk = self._disk
        if disk.read_only or sector + sectors > disk.sectors or not sectors:
            self._refuse(ident, operation)
            return
        if not disk.discard:
            self._respond(ident, operation, blkif.BLKIF_RSP_EOPNOTSUPP)
            return
        transfer = Transfer(ident, operation, [], self._submit, self._finished)
        transfer.stage(*(
            DiskRequest(Operation.DISCARD, extent.sector, extent.sectors, (), transfer.done)
            for extent in disk.extents.resolve(sector, sectors)
        ))
        self._statistics.discards += 1
        self._begin(transfer)

    def _unknown(self, raw: bytes) -> None:
        operation, _, _, ident, _ = self._dialect.head.unpack_from(raw)
        self._respond(ident, operation, blkif.BLKIF_RSP_EOPNOTSUPP)

    # The way back

    def _begin(self, transfer: Transfer | None) -> None:
        if transfer is not None:
            self._transfers[transfer] = None
            transfer.start()

    def _finished(self, transfer: Transfer) -> None:
        """The disk has done all of a request, or failed."""
        del self._transfers[transfer]
        self._release(transfer.held)
        status = blkif.BLKIF_RSP_OKAY
        if transfer.error == EOPNOTSUPP:
            status = blkif.BLKIF_RSP_EOPNOTSUPP
        elif transfer.error:
            self._statistics.errors += 1
            status = blkif.BLKIF_RSP_ERROR
        self._respond(transfer.ident, transfer.operation, status)
        barrier = self._barrier
        if barrier is transfer:
            self._barrier = None
            self.serve()
        elif barrier is not None and not barrier.started and len(self._transfers) == 1:
            barrier.start()
        if self.stopped and not self._transfers:
            self._idle()

    def _release(self, held: list[Held]) -> None:
        give = self._held.give
        for grant in held:
            give(grant)

    def _refuse(self, ident: int, operation: int) -> None:
        self._statistics.errors += 1
        self._respond(ident, operation, blkif.BLKIF_RSP_ERROR)

    def _respond(self, ident: int, operation: int, status: int) -> None:
        if self._ring.respond(ident, operation, status) and self._channel is not None:
            self._channel.notify()
