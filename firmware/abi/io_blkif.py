"""io/blkif.h: requests and responses of virtual block devices, and the ring they travel through."""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Kind, Layout, array, chars, s16, u8, u16, u32, u64, union

BLKIF_OP_READ: Final = 0
BLKIF_OP_WRITE: Final = 1
BLKIF_OP_WRITE_BARRIER: Final = 2
BLKIF_OP_FLUSH_DISKCACHE: Final = 3
BLKIF_OP_RESERVED_1: Final = 4
BLKIF_OP_DISCARD: Final = 5
BLKIF_OP_INDIRECT: Final = 6

BLKIF_MAX_SEGMENTS_PER_REQUEST: Final = 11
BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: Final = 8
BLKIF_DISCARD_SECURE: Final = 1 << 0

BLKIF_RSP_EOPNOTSUPP: Final = -2
BLKIF_RSP_ERROR: Final = -1
BLKIF_RSP_OKAY: Final = 0

VDISK_CDROM: Final = 0x1
VDISK_REMOVABLE: Final = 0x2
VDISK_READONLY: Final = 0x4

blkif_request_segment: Final = Layout("blkif_request_segment", [
    ("gref", u32), ("first_sect", u8), ("last_sect", u8),
])

blkif_request: Final = Layout("blkif_request", [
    ("operation", u8), ("nr_segments", u8), ("handle", u16), ("id", u64), ("sector_number", u64),
    ("seg", array(blkif_request_segment, BLKIF_MAX_SEGMENTS_PER_REQUEST)),
])

blkif_request_discard: Final = Layout("blkif_request_discard", [
    ("operation", u8), ("flag", u8), ("handle", u16), ("id", u64), ("sector_number", u64),
    ("nr_sectors", u64),
])

_INDIRECT: Final[list[tuple[str, Kind]]] = [
    ("operation", u8), ("indirect_op", u8), ("nr_segments", u16), ("id", u64), ("sector_number", u64),
    ("handle", u16), ("indirect_grefs", array(u32, BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST)),
]
blkif_request_indirect: Final = Layout("blkif_request_indirect", _INDIRECT, [*_INDIRECT, ("pad", u64)])

blkif_response: Final = Layout("blkif_response", [("id", u64), ("operation", u8), ("status", s16)])

# io/ring.h, DEFINE_RING_TYPES(blkif, ...): the entries go on to the end of the ring's pages.
blkif_sring: Final = Layout("blkif_sring", [
    ("req_prod", u32), ("req_event", u32), ("rsp_prod", u32), ("rsp_event", u32), ("pvt", chars(4)),
    ("pad", chars(44)), ("ring", array(union(req=blkif_request, rsp=blkif_response), 1)),
])
