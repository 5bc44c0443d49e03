"""io/xs_wire.h: xenstore's messages and the ring page they travel through."""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, chars, u32

# xsd_sockmsg.type (20 is unused)
XS_CONTROL: Final = 0
XS_DIRECTORY: Final = 1
XS_READ: Final = 2
XS_GET_PERMS: Final = 3
XS_WATCH: Final = 4
XS_UNWATCH: Final = 5
XS_TRANSACTION_START: Final = 6
XS_TRANSACTION_END: Final = 7
XS_INTRODUCE: Final = 8
XS_RELEASE: Final = 9
XS_GET_DOMAIN_PATH: Final = 10
XS_WRITE: Final = 11
XS_MKDIR: Final = 12
XS_RM: Final = 13
XS_SET_PERMS: Final = 14
XS_WATCH_EVENT: Final = 15
XS_ERROR: Final = 16
XS_IS_DOMAIN_INTRODUCED: Final = 17
XS_RESUME: Final = 18
XS_SET_TARGET: Final = 19
XS_RESET_WATCHES: Final = 21
XS_DIRECTORY_PART: Final = 22
XS_TYPE_COUNT: Final = 23
XS_INVALID: Final = 0xffff

XS_WRITE_NONE: Final = b"NONE"
XS_WRITE_CREATE: Final = b"CREATE"
XS_WRITE_CREATE_EXCL: Final = b"CREATE|EXCL"

# The errors a reply may name, as strings.
XSD_ERRORS: Final = (
    "EINVAL", "EACCES", "EEXIST", "EISDIR", "ENOENT", "ENOMEM", "ENOSPC", "EIO", "ENOTEMPTY", "ENOSYS",
    "EROFS", "EBUSY", "EAGAIN", "EISCONN", "E2BIG", "EPERM",
)

# The fields of a watch event.
XS_WATCH_PATH: Final = 0
XS_WATCH_TOKEN: Final = 1

XENSTORE_RING_SIZE: Final = 1024
XENSTORE_PAYLOAD_MAX: Final = 4096
XENSTORE_ABS_PATH_MAX: Final = 3072
XENSTORE_REL_PATH_MAX: Final = 2048
XENSTORE_SERVER_FEATURE_RECONNECTION: Final = 1
XENSTORE_SERVER_FEATURE_ERROR: Final = 2
XENSTORE_CONNECTED: Final = 0
XENSTORE_RECONNECT: Final = 1
XENSTORE_ERROR_NONE: Final = 0
XENSTORE_ERROR_COMM: Final = 1
XENSTORE_ERROR_RINGIDX: Final = 2
XENSTORE_ERROR_PROTO: Final = 3

xsd_sockmsg: Final = Layout("xsd_sockmsg", [("type", u32), ("req_id", u32), ("tx_id", u32), ("len", u32)])

xenstore_domain_interface: Final = Layout("xenstore_domain_interface", [
    ("req", chars(XENSTORE_RING_SIZE)), ("rsp", chars(XENSTORE_RING_SIZE)), ("req_cons", u32),
    ("req_prod", u32), ("rsp_cons", u32), ("rsp_prod", u32), ("server_features", u32), ("connection", u32),
    ("error", u32),
])
