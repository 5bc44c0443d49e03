"""Permissions of a node: an owner with everybody else's rights, then exceptions by domain.

Written `r7`, `w7`, `b7`, `n7`: read, write, both, none. The first entry names the owner, who always has every
right, and what domains not listed get.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from firmware.store.errors import StoreError

NONE: Final = 0
READ: Final = 1
WRITE: Final = 2
OWNER: Final = 4
ALL: Final = READ | WRITE | OWNER

_LETTERS: Final = {"n": NONE, "r": READ, "w": WRITE, "b": READ | WRITE}
_NAMES: Final = {access: letter for letter, access in _LETTERS.items()}
_TEXT: Final = re.compile(r"([nrwb])([0-9]{1,10})")


class Permission(NamedTuple):
    """One entry; `ignored` when its domain did not exist when it was set."""

    domid: int
    access: int
    ignored: bool = False

    def __str__(self) -> str:
        return f"{_NAMES[self.access]}{self.domid}"


Permissions = tuple[Permission, ...]


def parse(texts: Iterable[str]) -> Permissions:
    """Read the wire form; StoreError EINVAL when an entry is malformed or there is none."""
    entries = []
    for text in texts:
        match = _TEXT.fullmatch(text)
        if match is None:
            raise StoreError("EINVAL")
        entries.append(Permission(int(match[2]), _LETTERS[match[1]]))
    if not entries:
        raise StoreError("EINVAL")
    return tuple(entries)


def resolve(entries: Sequence[Permission], exists: Callable[[int], bool]) -> Permissions:
    """Mark entries of domains that do not exist; StoreError ENOENT when the owner is one of them."""
    if not exists(entries[0].domid):
        raise StoreError("ENOENT")
    return tuple(Permission(entry.domid, entry.access, not exists(entry.domid)) for entry in entries)


def granted(permissions: Permissions, domids: Sequence[int]) -> int:
    """The rights an unprivileged client has that speaks for `domids` (itself, and its target if it has
    one).
    """
    owner = permissions[0]
    if owner.domid in domids:
        return ALL
    for entry in permissions[1:]:
        if entry.domid in domids and not entry.ignored:
            return entry.access
    return owner.access
