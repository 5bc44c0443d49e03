"""The hypercall page: one 32-byte stub per hypercall number, which a guest calls instead of trapping by
itself.

Source: Xen 4.17 fills it so for ring-3 (64-bit) and ring-1 (32-bit) kernels. The stub of iret never
returns: the guest jumps to it with a frame on its stack.
"""
from __future__ import annotations

from typing import Final

from firmware.abi import xen

STUB_SIZE: Final = 32
PAGE_SIZE: Final = 4096
FILLER: Final = 0xCC
"""int3, between stubs and after them."""
IRET: Final = xen.HYPERCALL_NUMBERS["iret"]

PUSH_RCX, POP_RCX, PUSH_RAX = b"\x51", b"\x59", b"\x50"
PUSH_R11, POP_R11 = b"\x41\x53", b"\x41\x5b"
MOV_EAX, SYSCALL, INT_82, RET = b"\xb8", b"\x0f\x05", b"\xcd\x82", b"\xc3"


def _stub64(number: int) -> bytes:
    call = MOV_EAX + number.to_bytes(4, "little") + SYSCALL
    if number == IRET:
        return PUSH_RCX + PUSH_R11 + PUSH_RAX + call
    return PUSH_RCX + PUSH_R11 + call + POP_R11 + POP_RCX + RET


def _stub32(number: int) -> bytes:
    call = MOV_EAX + number.to_bytes(4, "little") + INT_82
    return PUSH_RAX + call if number == IRET else call + RET


def hypercall_page(width: int) -> bytes:
    """The 4096 bytes for guests of one width (64 or 32)."""
    stub = _stub64 if width == 64 else _stub32
    filler = bytes([FILLER])
    return b"".join(stub(number).ljust(STUB_SIZE, filler) for number in range(PAGE_SIZE // STUB_SIZE))
