"""nmi.h: NMI callbacks and reasons."""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, ulong

XEN_NMIREASON_io_error: Final = 1 << 0
XEN_NMIREASON_pci_serr: Final = 1 << 1
XEN_NMIREASON_unknown: Final = 1 << 2

XENNMI_register_callback: Final = 0
XENNMI_unregister_callback: Final = 1

xennmi_callback: Final = Layout("xennmi_callback", [("handler_address", ulong), ("pad", ulong)])
