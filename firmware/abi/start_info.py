"""xen.h: what a PV guest finds when it starts: the start-of-day structure, its flags, the module list."""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, chars, u32, ulong, xen_pfn

MAX_GUEST_CMDLINE: Final = 1024
"""Bytes of start_info.cmd_line, the terminating zero included."""

# start_info.flags
SIF_PRIVILEGED: Final = 1 << 0
SIF_INITDOMAIN: Final = 1 << 1
SIF_MULTIBOOT_MOD: Final = 1 << 2
SIF_MOD_START_PFN: Final = 1 << 3
SIF_VIRT_P2M_4TOOLS: Final = 1 << 4
SIF_PM_MASK: Final = 0xff00

# The console as an unprivileged guest gets it (the domU member of the header's union).
start_info_console: Final = Layout("start_info_console", [("mfn", xen_pfn), ("evtchn", u32)])

start_info: Final = Layout("start_info", [
    ("magic", chars(32)), ("nr_pages", ulong), ("shared_info", ulong), ("flags", u32),
    ("store_mfn", xen_pfn), ("store_evtchn", u32), ("console", start_info_console), ("pt_base", ulong),
    ("nr_pt_frames", ulong), ("mfn_list", ulong), ("mod_start", ulong), ("mod_len", ulong),
    ("cmd_line", chars(MAX_GUEST_CMDLINE)), ("first_p2m_pfn", ulong), ("nr_p2m_frames", ulong),
])

xen_multiboot_mod_list: Final = Layout("xen_multiboot_mod_list", [
    ("mod_start", u32), ("mod_end", u32), ("cmdline", u32), ("pad", u32),
])
