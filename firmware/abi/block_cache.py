"""The hypercall of the buffer cache, which Xen does not have: its number is one that xen.h leaves to the
architecture (__HYPERVISOR_arch_6) and x86 does not use. Structures are the same for guests of both widths.

See docs/disks.md for what the operations do.
"""
from __future__ import annotations

from typing import Final

from .layout import Layout, u32, u64

__HYPERVISOR_block_cache_op: Final = 54

BLKCACHEOP_info: Final = 0
BLKCACHEOP_query: Final = 1
BLKCACHEOP_map: Final = 2
BLKCACHEOP_unmap: Final = 3

BLKCACHE_application_map: Final = 1 << 0
"""Map for user mode as well; 64-bit kernels reach such pages too."""
BLKCACHE_contains_pte: Final = 1 << 1
"""host_addr is the machine address of the L1 entry, not a virtual address."""

BLKCACHE_absent: Final = 0
BLKCACHE_cached: Final = 1
BLKCACHE_pending: Final = 2
"""The block is being read or written."""

VIRQ_BLKCACHE: Final = 22
"""VIRQ_ARCH_6: mappings of this domain have gone."""

blkcache_info: Final = Layout("blkcache_info", [
    ("block_size", u32), ("virq", u32), ("quota", u32), ("mapped", u32),
])
blkcache_query: Final = Layout("blkcache_query", [
    ("vdev", u32), ("state", u32), ("block", u64),
])
blkcache_map: Final = Layout("blkcache_map", [
    ("vdev", u32), ("flags", u32), ("block", u64), ("host_addr", u64),
])
blkcache_unmap: Final = Layout("blkcache_unmap", [
    ("flags", u32), ("pad", u32), ("host_addr", u64),
])
