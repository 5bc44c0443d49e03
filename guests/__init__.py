"""PV kernels of our own, assembled when asked for: they run here and, unchanged, on real Xen.

`GUESTS` names them all; `build(name)` gives the bytes of one ELF image.
"""
from __future__ import annotations

from guests.registry import GUESTS, RECORDED, Guest, build

__all__ = ["GUESTS", "RECORDED", "Guest", "build"]
