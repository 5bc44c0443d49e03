"""The store as text, printed as xenstore-ls and its friends print it (Xen 4.17, tools/xenstore)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Protocol

WIDTH: Final = 80
"""Columns of a line when stdout is no terminal."""
MARGIN: Final = 2
"""Columns of a terminal that are left free."""
PERMISSIONS_AT: Final = 60
"""The column in which permissions begin, when the line is shorter."""
TAG: Final = len(' = "..."')
MOST_CONTROL: Final = 0o10
"""Characters below are written in octal, others that cannot be printed in hexadecimal."""
_PRINTABLE: Final = range(ord(" "), ord("~") + 1)
_NAMED: Final = {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r", ord("\\"): "\\\\"}
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.)|$)", re.DOTALL)
_LETTERS: Final = {"t": "\t", "n": "\n", "r": "\r"}


class Nodes(Protocol):
    """A store that can be read."""

    def children(self, path: str) -> list[str]:
        """The names of a node's children."""

    def read(self, path: str) -> bytes:
        """A node's value."""

    def permissions(self, path: str) -> list[str]:
        """A node's permissions: n0, r1."""


def escaped(value: bytes) -> str:
    """A value with everything that cannot be printed written as an escape."""
    return "".join(map(_shown, value))


def _shown(byte: int) -> str:
    if byte in _NAMED:
        return _NAMED[byte]
    if byte in _PRINTABLE:
        return chr(byte)
    return f"\\{byte:03o}" if byte < MOST_CONTROL else f"\\x{byte:02x}"


def unescaped(text: str) -> bytes:
    """The value that was written with escapes."""
    def plain(match: re.Match[str]) -> str:
        if match[1] or match[2]:
            return chr((int(match[1], 16) if match[1] else int(match[2], 8)) & 0xFF)
        return _LETTERS.get(match[3], match[3] or "")

    data = text.encode("utf-8", "surrogateescape").decode("latin-1")
    return _ESCAPE.sub(plain, data).encode("latin-1")


def listing(nodes: Nodes, path: str, *, full: bool = False, permissions: bool = False,
            width: int = WIDTH) -> Iterator[str]:
    """The lines of xenstore-ls for everything below a node: `full` with whole paths (-f), and with
    permissions (-p). A node that goes away meanwhile is left out.
    """
    # By hand, not by recursion: a guest makes nodes as deep as it likes.
    open_nodes = [(path.rstrip("/") + "/", iter(nodes.children(path)))]
    while open_nodes:
        base, names = open_nodes[-1]
        name = next(names, None)
        if name is None:
            open_nodes.pop()
            continue
        try:
            value, children = nodes.read(base + name), nodes.children(base + name)
            owners = ",".join(nodes.permissions(base + name)) if permissions else ""
        except KeyError:
            continue
        title = base + name if full else " " * (len(open_nodes) - 1) + name
        yield _line(title, value, owners, full=full, width=width)
        open_nodes.append((f"{base}{name}/", iter(children)))


def _line(title: str, value: bytes, owners: str, *, full: bool, width: int) -> str:
    if not full:
        room = width - TAG
        title = title[:max(room, 0)]
        if width < len(title) + len(value) + TAG:
            line = f'{title} = "{escaped(value)[:max(room - len(title), 0)]}\\..."'
            return f"{line}  ({owners})" if owners else line
    line = f'{title} = "{escaped(value)}"'
    if not owners:
        return line
    line += " "
    if not full:
        while len(line) < min(PERMISSIONS_AT, width):
            line += "." if len(line) % 2 else " "
    return f"{line}  ({owners})"
