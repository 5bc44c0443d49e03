"""version.h: what Xen tells about itself."""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, array, chars, u8, u32, ulong

XENVER_version: Final = 0
XENVER_extraversion: Final = 1
XEN_EXTRAVERSION_LEN: Final = 16
XENVER_compile_info: Final = 2
XENVER_capabilities: Final = 3
XEN_CAPABILITIES_INFO_LEN: Final = 1024
XENVER_changeset: Final = 4
XEN_CHANGESET_INFO_LEN: Final = 64
XENVER_platform_parameters: Final = 5
XENVER_get_features: Final = 6
XENVER_pagesize: Final = 7
XENVER_guest_handle: Final = 8
XENVER_commandline: Final = 9
XENVER_build_id: Final = 10
XEN_COMMANDLINE_LEN: Final = 1024
XEN_DOMAIN_HANDLE_LEN: Final = 16

xen_compile_info: Final = Layout("xen_compile_info", [
    ("compiler", chars(64)), ("compile_by", chars(16)), ("compile_domain", chars(32)),
    ("compile_date", chars(32)),
])

xen_platform_parameters: Final = Layout("xen_platform_parameters", [("virt_start", ulong)])

xen_feature_info: Final = Layout("xen_feature_info", [("submap_idx", u32), ("submap", u32)])

# buf follows, `len` bytes of it.
xen_build_id: Final = Layout("xen_build_id", [("len", u32), ("buf", array(u8, 0))])
