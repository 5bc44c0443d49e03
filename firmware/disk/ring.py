"""The back end's side of a blkif ring: io/ring.h's indices, io/blkif.h's entries.

The pages are the guest's, who may write them at any time: an index is read once and checked, a request is
copied once and only the copy is looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from firmware.abi.io_blkif import blkif_request, blkif_sring
from firmware.abi.layout import Variant
from machine.memory import FRAME_SHIFT, FRAME_SIZE, MachineMemory

INDEX_MASK: Final = (1 << 32) - 1
_HEADER: Final = blkif_sring.w64.offset["ring"]
_REQ_PROD: Final = blkif_sring.w64.offset["req_prod"] >> 2
_REQ_EVENT: Final = blkif_sring.w64.offset["req_event"]
_RSP_PROD: Final = blkif_sring.w64.offset["rsp_prod"]
_RSP_EVENT: Final = blkif_sring.w64.offset["rsp_event"] >> 2
_RESPONSE: Final = struct.Struct("<QBxh")
"""blkif_response; the 64-bit one has four bytes of padding more, which are left alone."""


class RingOverflowError(Exception):
    """The frontend says it has produced more requests than the ring has entries."""


def _power_below(count: int) -> int:
    return 1 << count.bit_length() - 1


class BackRing:
    """A ring in the machine frames `frames`, with entries of `request`'s size (BACK_RING_ATTACH).

    It goes on from the response index the ring holds. RingOverflowError when its indices cannot be.
    """

    __slots__ = ("_at", "_base", "_memory", "_size", "_whole", "entries", "req_cons", "rsp_prod")

    def __init__(
        self, memory: MachineMemory, frames: Sequence[int], request: Variant = blkif_request.w64
    ) -> None:
        self._memory = memory
        self._base = frames[0] << FRAME_SHIFT
        self._size = request.size
        self.entries = _power_below((len(frames) * FRAME_SIZE - _HEADER) // self._size)
        self._at: list[tuple[tuple[int, int], ...]] = [
            _places(frames, _HEADER + index * self._size, self._size) for index in range(self.entries)
        ]
        self._whole = [places[0][0] if len(places) == 1 else -1 for places in self._at]
        self.rsp_prod = memory.d[self._base + _RSP_PROD >> 2]
        self.req_cons = self.rsp_prod
        self.unconsumed()

    def unconsumed(self) -> int:
        """How many requests wait. RingOverflowError beyond what the ring holds
        (RING_REQUEST_PROD_OVERFLOW).
        """
        produced = self._memory.d[(self._base >> 2) + _REQ_PROD]
        ahead = produced - self.rsp_prod & INDEX_MASK
        if ahead > self.entries:
            raise RingOverflowError(f"bogus ring requests ({produced} - {self.rsp_prod} = {ahead})")
        waiting = produced - self.req_cons & INDEX_MASK
        return waiting if waiting <= self.entries else 0

    def take(self) -> bytes:
        """A copy of the next request."""
        index = self.req_cons & self.entries - 1
        self.req_cons = self.req_cons + 1 & INDEX_MASK
        memory = self._memory
        at = self._whole[index]
        if at >= 0:
            return bytes(memory.b[at : at + self._size])
        return b"".join(bytes(memory.b[place : place + length]) for place, length in self._at[index])

    def respond(self, ident: int, operation: int, status: int) -> bool:
        """Put a response and publish it; whether the frontend is to be notified
        (RING_PUSH_RESPONSES_AND_CHECK_NOTIFY).
        """
        index = self.rsp_prod & self.entries - 1
        data = _RESPONSE.pack(ident, operation, status)
        memory, base = self._memory, self._base
        for place, length in self._at[index]:
            memory.write(place, data[:length])
            data = data[length:]
            if not data:
                break
        new = self.rsp_prod = self.rsp_prod + 1 & INDEX_MASK
        memory.store32(base + _RSP_PROD, new)
        return memory.d[(base >> 2) + _RSP_EVENT] == new

    def final_check(self) -> bool:
        """Ask to be notified of the next request; whether some wait already
        (RING_FINAL_CHECK_FOR_REQUESTS).
        """
        if self.unconsumed():
            return True
        self._memory.store32(self._base + _REQ_EVENT, self.req_cons + 1 & INDEX_MASK)
        return self.unconsumed() > 0


def _places(frames: Sequence[int], offset: int, size: int) -> tuple[tuple[int, int], ...]:
    """Where a piece of the ring lies in machine memory: (address, length), more where frames do not touch."""
    places: list[tuple[int, int]] = []
    while size:
        part = min(size, FRAME_SIZE - offset % FRAME_SIZE)
        address = (frames[offset >> FRAME_SHIFT] << FRAME_SHIFT) + offset % FRAME_SIZE
        if places and places[-1][0] + places[-1][1] == address:
            places[-1] = (places[-1][0], places[-1][1] + part)
        else:
            places.append((address, part))
        offset += part
        size -= part
    return tuple(places)
