"""io/protocols.h: whose structures a device's ring is made of."""
from __future__ import annotations

from typing import Final

XEN_IO_PROTO_ABI_X86_32: Final = "x86_32-abi"
XEN_IO_PROTO_ABI_X86_64: Final = "x86_64-abi"
