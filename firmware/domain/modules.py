"""Several modules for a guest in one: the list that SIF_MULTIBOOT_MOD announces.

Source: xen.h, xen_multiboot_mod_list: descriptors at the start, ended by an empty one; addresses count from
the start.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from firmware.abi.start_info import xen_multiboot_mod_list

PAGE_SIZE: Final = 4096
_ROW: Final = xen_multiboot_mod_list.w64


@dataclass(frozen=True)
class Module:
    """One module: its bytes, and its command line without a terminating zero."""

    data: bytes
    cmdline: bytes = b""


def pack_modules(modules: Sequence[Module]) -> bytes:
    """All modules as one, each page-aligned. `mod_end` is a module's last byte."""
    texts = [module.cmdline + b"\0" for module in modules]
    text_at = _ROW.size * (len(modules) + 1)
    data_at = _page_up(text_at + sum(map(len, texts)))
    rows, bodies = [], []
    for module, text in zip(modules, texts, strict=True):
        rows.append(_ROW.pack(mod_start=data_at, mod_end=data_at + len(module.data) - 1, cmdline=text_at))
        body = module.data.ljust(max(_page_up(len(module.data)), PAGE_SIZE), b"\0")
        bodies.append(body)
        text_at += len(text)
        data_at += len(body)
    head = b"".join([*rows, _ROW.pack(), *texts])
    return head.ljust(_page_up(len(head)), b"\0") + b"".join(bodies)


def _page_up(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE
