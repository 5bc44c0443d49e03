"""The xenstore of a machine for tests and scripts: read, change and watch it as domain 0, print it as
xenstore-ls does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from firmware.store import permissions as perms
from firmware.store.errors import StoreError
from firmware.store.store import Store, WatchHandle
from xenpy.store_text import listing

REASONS = {
    "EINVAL": "that is no path, or no value, of the store",
    "EACCES": "that is not allowed",
    "EEXIST": "it is there already",
    "ENOENT": "there is no such node",
    "ENOSPC": "that is more than the store holds for one domain",
    "EAGAIN": "somebody else has changed it meanwhile",
    "E2BIG": "that is more than one message holds",
}
"""xenstore's error names in words."""


class StoreKeyError(KeyError):
    """A request of the store that failed. `name` is xenstore's name of the error: ENOENT, EINVAL, ..."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(path)
        self.path = path
        self.name = name

    def __str__(self) -> str:
        return f"{self.path}: {REASONS.get(self.name, self.name)}"


@contextmanager
def _about(path: str) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise StoreKeyError(path, error.name) from error


class StoreView:
    """A running machine's store. Paths that are relative start from /local/domain/0. What fails is a
    StoreKeyError.
    """

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, path: str) -> bytes:
        """A node's value."""
        with _about(path):
            return self._store.read(path)

    def children(self, path: str = "/") -> list[str]:
        """The names of a node's children, oldest first."""
        with _about(path):
            return list(self._store.directory(path))

    def exists(self, path: str) -> bool:
        """Whether there is such a node."""
        try:
            self._store.read(path)
        except StoreError:
            return False
        return True

    def ls(self, path: str = "/", *, full: bool = False, permissions: bool = False) -> str:
        """Everything below a node, as xenstore-ls prints it: `full` with whole paths (-f), and with
        permissions (-p).
        """
        return "".join(f"{line}\n" for line in listing(self, path, full=full, permissions=permissions))

    def write(self, path: str, value: str | bytes) -> None:
        """Set a node's value; the node and its parents are made where they are missing."""
        with _about(path):
            self._store.write(path, value)

    def mkdir(self, path: str) -> None:
        """Make a node, unless it is there."""
        with _about(path):
            self._store.mkdir(path)

    def rm(self, path: str) -> None:
        """Remove a node and all below it."""
        with _about(path):
            self._store.rm(path)

    def permissions(self, path: str) -> list[str]:
        """A node's permissions, its owner first: n0, r1."""
        with _about(path):
            return [str(entry) for entry in self._store.permissions(path)]

    def chmod(self, path: str, *permissions: str) -> None:
        """Replace a node's permissions: `chmod(path, "n1", "r0")`."""
        with _about(path):
            self._store.set_permissions(path, perms.parse(permissions))

    def watch(self, path: str, callback: Callable[[str], None]) -> WatchHandle:
        """Call `callback(changed path)` now and for every change at or below a node, or for the special
        events @introduceDomain and @releaseDomain.
        """
        with _about(path):
            return self._store.watch(path, callback)

    def unwatch(self, handle: WatchHandle) -> None:
        """End a watch."""
        with _about(handle.path):
            self._store.unwatch(handle)


def permissions_of(words: Sequence[str]) -> list[str]:
    """Permissions as xenstore-chmod takes them, checked: n0, r1, w2, b3. StoreKeyError."""
    with _about(" ".join(words)):
        return [str(entry) for entry in perms.parse(words)]
