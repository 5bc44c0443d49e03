"""What the arguments of the integrity test's actions are drawn from: valid, odd and hostile values."""

from __future__ import annotations

from firmware.abi import grant_table as gnt
from firmware.abi import xen
from tests.memory import samplers as draw

GOOD = 0x63
FLAGS = draw.sampled_from(
    [
        0,
        0x61,
        0x63,
        0x65,
        0x67,
        0x61,
        0x63,
        0x65,
        0x67,
        0x1,
        0x61,
        0x63,
        0x67,
        0x65,
        0x21,
        0x23,
        0x163,
        0x66,
        0x7,
        GOOD | 1 << 63,
        GOOD | 1 << 52,
        0x67 | 1 << 9,
        0xE3,
        0x7B,
        GOOD | 1 << 62,
    ]
)
SLOT = draw.sampled_from([0, 1, 2, 3, 4, 5, 7, 20, 36, 37, 38, 39, 255, 256, 260, 272, 273, 427, 428, 511])
PICK = draw.integers(0, 63)
WHO = draw.integers(0, 3)
COMMANDS = draw.sampled_from(
    [
        xen.MMUEXT_PIN_L1_TABLE,
        xen.MMUEXT_PIN_L2_TABLE,
        xen.MMUEXT_PIN_L3_TABLE,
        xen.MMUEXT_PIN_L4_TABLE,
        xen.MMUEXT_UNPIN_TABLE,
        xen.MMUEXT_UNPIN_TABLE,
        xen.MMUEXT_NEW_BASEPTR,
        xen.MMUEXT_NEW_USER_BASEPTR,
        xen.MMUEXT_CLEAR_PAGE,
        xen.MMUEXT_TLB_FLUSH_LOCAL,
        xen.MMUEXT_TLB_FLUSH_ALL,
        xen.MMUEXT_INVLPG_ALL,
        xen.MMUEXT_INVLPG_LOCAL,
        xen.MMUEXT_MARK_SUPER,
        99,
    ]
)
GRANT_FLAGS = draw.sampled_from(
    [
        gnt.GTF_permit_access,
        gnt.GTF_permit_access | gnt.GTF_readonly,
        gnt.GTF_invalid,
        gnt.GTF_accept_transfer,
        gnt.GTF_permit_access | gnt.GTF_sub_page,
    ]
)
MAP_FLAGS = draw.sampled_from(
    [
        gnt.GNTMAP_host_map,
        gnt.GNTMAP_host_map | gnt.GNTMAP_readonly,
        gnt.GNTMAP_device_map,
        gnt.GNTMAP_device_map | gnt.GNTMAP_host_map,
        0,
        gnt.GNTMAP_device_map | gnt.GNTMAP_readonly,
        gnt.GNTMAP_host_map | gnt.GNTMAP_contains_pte,
    ]
)
