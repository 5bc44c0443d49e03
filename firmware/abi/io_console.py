"""io/console.h: the ring page of a PV console.

Indices run freely; a position is the index modulo the ring's size.
"""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, chars, u32

INPUT_RING_SIZE: Final = 1024
OUTPUT_RING_SIZE: Final = 2048

# `in_` is the header's `in`: bytes to the guest; `out`: bytes from it.
xencons_interface: Final = Layout("xencons_interface", [
    ("in_", chars(INPUT_RING_SIZE)), ("out", chars(OUTPUT_RING_SIZE)), ("in_cons", u32), ("in_prod", u32),
    ("out_cons", u32), ("out_prod", u32),
])
