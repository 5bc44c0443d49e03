"""Requests as blkif.h lays them out, in both of its layouts, read from the one copy that was made of them."""

from __future__ import annotations

import struct
from typing import Final

from firmware.abi.io_blkif import (
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
    blkif_request,
    blkif_request_discard,
    blkif_request_indirect,
    blkif_request_segment,
)
from firmware.abi.io_protocols import XEN_IO_PROTO_ABI_X86_32, XEN_IO_PROTO_ABI_X86_64
from firmware.abi.layout import Variant
from machine.memory import FRAME_SIZE

MOST_INDIRECT: Final = 256
"""Segments of an indirect request at most (MAX_INDIRECT_SEGMENTS of Linux' xen-blkback)."""
SEGMENT_SIZE: Final = blkif_request_segment.w64.size
SEGMENTS_IN_FRAME: Final = FRAME_SIZE // SEGMENT_SIZE
"""In a page of an indirect request's (SEGS_PER_INDIRECT_FRAME)."""
SECTORS_IN_FRAME: Final = FRAME_SIZE // 512
SEGMENT: Final = struct.Struct("<IBBxx")
"""blkif_request_segment: grant reference, first sector, last sector."""

Segment = tuple[int, int, int]


class Dialect:
    """How the guests of one width lay requests out. The codecs' values are the header's fields in order."""

    __slots__ = ("discard", "grefs", "grefs_at", "head", "indirect", "request", "segments_at")

    def __init__(self, wide: bool) -> None:
        self.request = blkif_request.of(wide)
        indirect = blkif_request_indirect.of(wide)
        self.segments_at = self.request.offset["seg"]
        self.head = _codec("BBH", self.request)
        """operation, nr_segments, handle, id, sector_number"""
        self.discard = struct.Struct(_codec("BBH", blkif_request_discard.of(wide)).format + "Q")
        """operation, flag, handle, id, sector_number, nr_sectors"""
        self.indirect = _codec("BBH", indirect)
        """operation, indirect_op, nr_segments, id, sector_number"""
        self.grefs_at = indirect.offset["indirect_grefs"]
        self.grefs = struct.Struct(f"<{BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST}I")

    def segments(self, raw: bytes, count: int) -> list[Segment]:
        """The segments of a direct request: (reference, first sector, last sector)."""
        return list(SEGMENT.iter_unpack(raw[self.segments_at : self.segments_at + count * SEGMENT_SIZE]))


def _codec(first: str, variant: Variant) -> struct.Struct:
    """The two bytes and the half-word at the front, then `id` and `sector_number`."""
    return struct.Struct(f"<{first}{variant.offset['id'] - 4}xQQ")


DIALECTS: Final = {
    XEN_IO_PROTO_ABI_X86_64: Dialect(wide=True),
    XEN_IO_PROTO_ABI_X86_32: Dialect(wide=False),
}
"""By the name that a frontend gives as its `protocol`."""


def valid(segments: list[Segment]) -> int:
    """The sectors of these segments together; 0 when one is not inside its page."""
    total = 0
    for _, first, last in segments:
        if last >= SECTORS_IN_FRAME or last < first:
            return 0
        total += last - first + 1
    return total
