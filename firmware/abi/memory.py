"""memory.h: a domain's memory reservation, the machine-to-physical table, the memory map.

Operations only tools may use have their numbers here; structures are those a PV guest passes.
"""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, packed_u64, ptr, u16, u32, u64, ulong, xen_pfn

XENMEM_increase_reservation: Final = 0
XENMEM_decrease_reservation: Final = 1
XENMEM_populate_physmap: Final = 6

# xen_memory_reservation.mem_flags, above the address bits and the node.
XENMEMF_populate_on_demand: Final = 1 << 16
XENMEMF_exact_node_request: Final = 1 << 17
XENMEMF_vnode: Final = 1 << 18

XENMEM_exchange: Final = 11
XENMEM_maximum_ram_page: Final = 2
XENMEM_current_reservation: Final = 3
XENMEM_maximum_reservation: Final = 4
XENMEM_maximum_gpfn: Final = 14
XENMEM_machphys_mfn_list: Final = 5
XENMEM_machphys_compat_mfn_list: Final = 25
XENMEM_machphys_mapping: Final = 12

XENMAPSPACE_shared_info: Final = 0
XENMAPSPACE_grant_table: Final = 1
XENMAPSPACE_gmfn: Final = 2
XENMAPSPACE_gmfn_range: Final = 3
XENMAPSPACE_gmfn_foreign: Final = 4
XENMAPSPACE_dev_mmio: Final = 5

XENMEM_add_to_physmap: Final = 7

XENMAPIDX_grant_table_status: Final = 0x80000000

XENMEM_add_to_physmap_batch: Final = 23
XENMEM_remove_from_physmap: Final = 15
XENMEM_memory_map: Final = 9
XENMEM_machine_memory_map: Final = 10
XENMEM_set_memory_map: Final = 13
XENMEM_set_pod_target: Final = 16
XENMEM_get_pod_target: Final = 17
XENMEM_get_sharing_freed_pages: Final = 18
XENMEM_get_sharing_shared_pages: Final = 19
XENMEM_paging_op: Final = 20
XENMEM_access_op: Final = 21
XENMEM_sharing_op: Final = 22
XENMEM_claim_pages: Final = 24
XENMEM_reserved_device_memory_map: Final = 27
XENMEM_RDM_ALL: Final = 1
XENMEM_acquire_resource: Final = 28
XENMEM_resource_ioreq_server: Final = 0
XENMEM_resource_grant_table: Final = 1
XENMEM_resource_vmtrace_buf: Final = 2
XENMEM_resource_grant_table_id_shared: Final = 0
XENMEM_resource_grant_table_id_status: Final = 1
XENMEM_resource_ioreq_server_frame_bufioreq: Final = 0
XENMEM_get_vnumainfo: Final = 26

xen_memory_reservation: Final = Layout("xen_memory_reservation", [
    ("extent_start", ptr), ("nr_extents", ulong), ("extent_order", u32), ("mem_flags", u32), ("domid", u16),
])

# `in_` is the header's `in`.
xen_memory_exchange: Final = Layout("xen_memory_exchange", [
    ("in_", xen_memory_reservation), ("out", xen_memory_reservation), ("nr_exchanged", ulong),
])

xen_memory_domain: Final = Layout("xen_memory_domain", [("domid", u16)])

xen_machphys_mfn_list: Final = Layout("xen_machphys_mfn_list", [
    ("max_extents", u32), ("extent_start", ptr), ("nr_extents", u32),
])

xen_machphys_mapping: Final = Layout("xen_machphys_mapping", [
    ("v_start", ulong), ("v_end", ulong), ("max_mfn", ulong),
])

xen_add_to_physmap: Final = Layout("xen_add_to_physmap", [
    ("domid", u16), ("size", u16), ("space", u32), ("idx", ulong), ("gpfn", xen_pfn),
])

# u is foreign_domid for XENMAPSPACE_gmfn_foreign, else zero.
xen_add_to_physmap_batch: Final = Layout("xen_add_to_physmap_batch", [
    ("domid", u16), ("space", u16), ("size", u16), ("u", u16), ("idxs", ptr), ("gpfns", ptr), ("errs", ptr),
])

xen_remove_from_physmap: Final = Layout("xen_remove_from_physmap", [("domid", u16), ("gpfn", xen_pfn)])

xen_memory_map: Final = Layout("xen_memory_map", [("nr_entries", u32), ("buffer", ptr)])

xen_foreign_memory_map: Final = Layout("xen_foreign_memory_map", [("domid", u16), ("map", xen_memory_map)])

xen_pod_target: Final = Layout("xen_pod_target", [
    ("target_pages", u64), ("tot_pages", u64), ("pod_cache_pages", u64), ("pod_entries", u64),
    ("domid", u16),
])

xen_mem_acquire_resource: Final = Layout("xen_mem_acquire_resource", [
    ("domid", u16), ("type", u16), ("id", u32), ("nr_frames", u32), ("pad", u32), ("frame", u64),
    ("frame_list", ptr),
])

xen_vmemrange: Final = Layout("xen_vmemrange", [("start", u64), ("end", u64), ("flags", u32), ("nid", u32)])

xen_vnuma_topology_info: Final = Layout(
    "xen_vnuma_topology_info",
    [
        ("domid", u16), ("pad", u16), ("nr_vnodes", u32), ("nr_vcpus", u32), ("nr_vmemranges", u32),
        ("vdistance", ptr), ("vcpu_to_vnode", ptr), ("vmemrange", ptr),
    ],
    [
        ("domid", u16), ("pad", u16), ("nr_vnodes", u32), ("nr_vcpus", u32), ("nr_vmemranges", u32),
        ("vdistance", ptr), ("pad1", u32), ("vcpu_to_vnode", ptr), ("pad2", u32), ("vmemrange", ptr),
        ("pad3", u32),
    ],
)

# hvm/e820.h: one entry of the memory map, packed to 20 bytes.
E820_RAM: Final = 1
E820_RESERVED: Final = 2
E820_ACPI: Final = 3
E820_NVS: Final = 4
E820_UNUSABLE: Final = 5
e820entry: Final = Layout("e820entry", [("addr", packed_u64), ("size", packed_u64), ("type", u32)])

def XENMEMF_get_address_bits(mem_flags: int) -> int:
    """How many address bits the frames may have; 0 is any."""
    return mem_flags & 0xFF

def XENMEMF_get_node(mem_flags: int) -> int:
    """The node to allocate from; 255 is any."""
    return ((mem_flags >> 8) - 1) & 0xFF
