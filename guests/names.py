"""What a name in a guest's source stands for: constants and structure offsets of Xen's public headers.

`SHUTDOWN_poweroff` is a header's constant, `start_info.flags` the offset of a field in the layout of the
guest's width, `sizeof(evtchn_send)` a structure's size. The one source is `firmware.abi`.
"""
from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Final

from firmware.abi.layout import Layout

HEADERS: Final = (
    "errno", "features", "elfnote", "xen", "arch_x86", "start_info", "version", "sched", "vcpu",
    "event_channel", "memory", "grant_table", "physdev", "callback", "nmi", "io_console",
    "block_cache",
)
"""The headers guests use. Where two define one name, the first wins."""

NARROW_HEADERS: Final = ("arch_x86_32", *HEADERS)
"""The same for 32-bit guests: selectors and addresses of their own come first."""

_TOKEN: Final = re.compile(r"sizeof\((\w+)\)|(?<![\w.$])([A-Za-z_]\w*(?:\.[a-z]\w*)*)")


@cache
def _headers(width: int) -> tuple[ModuleType, ...]:
    names = HEADERS if width == 64 else NARROW_HEADERS
    return tuple(import_module(f"firmware.abi.{header}") for header in names)


@cache
def value(name: str, width: int = 64) -> int | None:
    """The number a name stands for; None if no header knows it (then it is the source's own symbol)."""
    structure, _, field = name.partition(".")
    for header in _headers(width):
        found = getattr(header, structure, None)
        if field and isinstance(found, Layout):
            return found.of(width == 64).offset.get(field)
        if not field and isinstance(found, int):
            return found
    return None


@cache
def size(structure: str, width: int = 64) -> int:
    """Bytes of a structure in the layout of that width. Raises KeyError for an unknown one."""
    for header in _headers(width):
        found = getattr(header, structure, None)
        if isinstance(found, Layout):
            return found.of(width == 64).size
    raise KeyError(structure)


def _number(match: re.Match[str], width: int) -> str:
    if match[1]:
        return str(size(match[1], width))
    name = match[2]
    if not ("_" in name or "." in name or name.isupper()):
        return name  # an instruction, a register, a directive or a plain label
    number = value(name, width)
    return name if number is None else str(number)


def resolve(source: str, width: int = 64) -> str:
    """The source with every name of a header replaced by its number."""
    return _TOKEN.sub(lambda match: _number(match, width), source)
