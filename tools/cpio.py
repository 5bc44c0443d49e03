"""A writer for the archive Linux unpacks as its first file system: cpio, "newc" variant.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. The bytes depend on the entries
only: times and owners are 0, inode numbers count up.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"070701"
TRAILER: Final = "TRAILER!!!"
ALIGNMENT: Final = 4
"""Names and contents end on a multiple of this."""


@dataclass(frozen=True)
class Entry:
    """One file: `mode` with its type bits, the contents (a link's target for a link), a device's numbers."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, permissions: int = 0o755) -> Entry:
    """An entry for a directory."""
    return Entry(name, stat.S_IFDIR | permissions)


def file(name: str, data: bytes, permissions: int = 0o644) -> Entry:
    """An entry for a regular file."""
    return Entry(name, stat.S_IFREG | permissions, data)


def symlink(name: str, target: str) -> Entry:
    """An entry for a symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """An entry for a character device."""
    return Entry(name, stat.S_IFCHR | permissions, device=(major, minor))


def archive(entries: list[Entry]) -> bytes:
    """The whole archive. Directories come before what is in them; raises ValueError when one is missing."""
    known = {""}
    out = bytearray()
    for inode, entry in enumerate(entries, 1):
        if entry.name.rpartition("/")[0] not in known:
            raise ValueError(f"{entry.name}: its directory comes later or not at all")
        if entry.name in known:
            raise ValueError(f"{entry.name} is there twice")
        known.add(entry.name)
        _append(out, inode, entry)
    _append(out, 0, Entry(TRAILER, 0))
    return bytes(out)


def _append(out: bytearray, inode: int, entry: Entry) -> None:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    out += MAGIC
    for value in fields:
        if not 0 <= value <= 0xFFFF_FFFF:
            raise ValueError(f"{entry.name}: {value} does not fit the format's 32 bits")
        out += b"%08X" % value
    for part in (name, entry.data):
        out += part
        out += bytes(-len(out) % ALIGNMENT)
