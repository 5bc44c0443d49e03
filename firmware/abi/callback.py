"""callback.h: the entry points a guest registers."""
from __future__ import annotations

from typing import Final

from firmware.abi.arch_x86_32 import xen_callback
from firmware.abi.layout import Layout, u16, ulong

CALLBACKTYPE_event: Final = 0
CALLBACKTYPE_failsafe: Final = 1
CALLBACKTYPE_syscall: Final = 2
CALLBACKTYPE_sysenter_deprecated: Final = 3
CALLBACKTYPE_nmi: Final = 4
CALLBACKTYPE_sysenter: Final = 5
CALLBACKTYPE_syscall32: Final = 7

CALLBACKF_mask_events: Final = 1 << 0

CALLBACKOP_register: Final = 0
CALLBACKOP_unregister: Final = 1

callback_register: Final = Layout(
    "callback_register",
    [
        ("type", u16), ("flags", u16), ("address", ulong),
    ],
    [
        ("type", u16), ("flags", u16), ("address", xen_callback),
    ],
)

callback_unregister: Final = Layout("callback_unregister", [("type", u16), ("unused", u16)])
