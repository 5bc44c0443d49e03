"""grant_table.h: grant entries of version 1 and 2, and the operations on them."""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, ptr, s16, u16, u32, u64, xen_pfn

GNTTAB_NR_RESERVED_ENTRIES: Final = 8
GNTTAB_RESERVED_CONSOLE: Final = 0
GNTTAB_RESERVED_XENSTORE: Final = 1

GTF_invalid: Final = 0
GTF_permit_access: Final = 1 << 0
GTF_accept_transfer: Final = 2
GTF_transitive: Final = 3
GTF_type_mask: Final = 3

GTF_readonly: Final = 1 << 2
GTF_reading: Final = 1 << 3
GTF_writing: Final = 1 << 4
GTF_PWT: Final = 1 << 5
GTF_PCD: Final = 1 << 6
GTF_PAT: Final = 1 << 7
GTF_sub_page: Final = 1 << 8
GTF_transfer_committed: Final = 1 << 2
GTF_transfer_completed: Final = 1 << 3

GNTTABOP_map_grant_ref: Final = 0
GNTTABOP_unmap_grant_ref: Final = 1
GNTTABOP_setup_table: Final = 2
GNTTABOP_dump_table: Final = 3
GNTTABOP_transfer: Final = 4
GNTTABOP_copy: Final = 5
GNTTABOP_query_size: Final = 6
GNTTABOP_unmap_and_replace: Final = 7
GNTTABOP_set_version: Final = 8
GNTTABOP_get_status_frames: Final = 9
GNTTABOP_get_version: Final = 10
GNTTABOP_swap_grant_ref: Final = 11
GNTTABOP_cache_flush: Final = 12

GNTCOPY_source_gref: Final = 1 << 0
GNTCOPY_dest_gref: Final = 1 << 1

GNTTAB_CACHE_CLEAN: Final = 1 << 0
GNTTAB_CACHE_INVAL: Final = 1 << 1
GNTTAB_CACHE_SOURCE_GREF: Final = 1 << 31

GNTMAP_device_map: Final = 1 << 0
GNTMAP_host_map: Final = 1 << 1
GNTMAP_readonly: Final = 1 << 2
GNTMAP_application_map: Final = 1 << 3
GNTMAP_contains_pte: Final = 1 << 4
GNTMAP_guest_avail_mask: Final = 0xffff0000

GNTST_okay: Final = 0
GNTST_general_error: Final = -1
GNTST_bad_domain: Final = -2
GNTST_bad_gntref: Final = -3
GNTST_bad_handle: Final = -4
GNTST_bad_virt_addr: Final = -5
GNTST_bad_dev_addr: Final = -6
GNTST_no_device_space: Final = -7
GNTST_permission_denied: Final = -8
GNTST_bad_page: Final = -9
GNTST_bad_copy_arg: Final = -10
GNTST_address_too_big: Final = -11
GNTST_eagain: Final = -12
GNTST_no_space: Final = -13

grant_entry_v1: Final = Layout("grant_entry_v1", [("flags", u16), ("domid", u16), ("frame", u32)])

# Version 2: one of three forms in 16 bytes, told by flags; the status words are a table of their own.
grant_entry_v2_full_page: Final = Layout("grant_entry_v2_full_page", [
    ("flags", u16), ("domid", u16), ("pad0", u32), ("frame", u64),
])

grant_entry_v2_sub_page: Final = Layout("grant_entry_v2_sub_page", [
    ("flags", u16), ("domid", u16), ("page_off", u16), ("length", u16), ("frame", u64),
])

grant_entry_v2_transitive: Final = Layout("grant_entry_v2_transitive", [
    ("flags", u16), ("domid", u16), ("trans_domid", u16), ("pad0", u16), ("gref", u32),
])

gnttab_map_grant_ref: Final = Layout("gnttab_map_grant_ref", [
    ("host_addr", u64), ("flags", u32), ("ref", u32), ("dom", u16), ("status", s16), ("handle", u32),
    ("dev_bus_addr", u64),
])

gnttab_unmap_grant_ref: Final = Layout("gnttab_unmap_grant_ref", [
    ("host_addr", u64), ("dev_bus_addr", u64), ("handle", u32), ("status", s16),
])

gnttab_setup_table: Final = Layout("gnttab_setup_table", [
    ("dom", u16), ("nr_frames", u32), ("status", s16), ("frame_list", ptr),
])

gnttab_dump_table: Final = Layout("gnttab_dump_table", [("dom", u16), ("status", s16)])

gnttab_transfer: Final = Layout("gnttab_transfer", [
    ("mfn", xen_pfn), ("domid", u16), ("ref", u32), ("status", s16),
])

# u is the frame (gmfn), or the grant reference in its low 32 bits.
gnttab_copy_ptr: Final = Layout("gnttab_copy_ptr", [("u", xen_pfn), ("domid", u16), ("offset", u16)])

gnttab_copy: Final = Layout("gnttab_copy", [
    ("source", gnttab_copy_ptr), ("dest", gnttab_copy_ptr), ("len", u16), ("flags", u16), ("status", s16),
])

gnttab_query_size: Final = Layout("gnttab_query_size", [
    ("dom", u16), ("nr_frames", u32), ("max_nr_frames", u32), ("status", s16),
])

gnttab_unmap_and_replace: Final = Layout("gnttab_unmap_and_replace", [
    ("host_addr", u64), ("new_addr", u64), ("handle", u32), ("status", s16),
])

gnttab_set_version: Final = Layout("gnttab_set_version", [("version", u32)])

gnttab_get_status_frames: Final = Layout("gnttab_get_status_frames", [
    ("nr_frames", u32), ("dom", u16), ("status", s16), ("frame_list", ptr),
])

gnttab_get_version: Final = Layout("gnttab_get_version", [("dom", u16), ("pad", u16), ("version", u32)])

gnttab_swap_grant_ref: Final = Layout("gnttab_swap_grant_ref", [
    ("ref_a", u32), ("ref_b", u32), ("status", s16),
])

# a is dev_bus_addr, or the grant reference in its low 32 bits.
gnttab_cache_flush: Final = Layout("gnttab_cache_flush", [
    ("a", u64), ("offset", u16), ("length", u16), ("op", u32),
])
