"""Watches: who hears of a change, under which name, in which order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from firmware.store import path as paths
from firmware.store.errors import StoreError
from firmware.store.permissions import NONE, READ, Permission, Permissions
from firmware.store.quota import KEEPER
from firmware.store.tree import Node, Tree

if TYPE_CHECKING:
    from firmware.store.client import Client

INTRODUCED: Final = "@introduceDomain"
RELEASED: Final = "@releaseDomain"


class Watch:
    """One watch: the absolute path, the token it reports, and the base that relative ones leave out."""

    __slots__ = ("base", "path", "token")

    def __init__(self, path: str, token: str, base: str) -> None:
        self.path = path
        self.token = token
        self.base = base

    def shown(self, path: str) -> str:
        """How an event on `path` names it: as the watch was set, absolute or relative."""
        return path[len(self.base) + 1 :] if self.base else path

    @property
    def size(self) -> int:
        """Bytes, as quotas measure them."""
        return len(self.path) + len(self.token)


def add(client: Client, path: str, token: str) -> Watch:
    """Set a watch; StoreError EINVAL for a bad path, EEXIST for the same one again, E2BIG over the quota."""
    quota = client.ledger.quota
    base = ""
    if path.startswith(paths.SPECIAL):
        if len(path) > quota.path:
            raise StoreError("EINVAL")
    else:
        base = "" if path.startswith("/") else client.home
        path = client.resolve(path)
    if any(watch.path == path and watch.token == token for watch in client.watches):
        raise StoreError("EEXIST")
    account = client.account
    if not client.privileged and account.watches > quota.watches:
        raise StoreError("E2BIG")
    watch = Watch(path, token, base)
    client.ledger.charge(client.domid, watch.size, checked=True)
    account.watches += 1
    client.watches.append(watch)
    return watch


def remove(client: Client, path: str, token: str) -> None:
    """Take a watch away; StoreError ENOENT when there is none such."""
    path = paths.absolute(path, client.home)
    for watch in client.watches:
        if watch.path == path and watch.token == token:
            client.watches.remove(watch)
            _forget(client, watch)
            return
    raise StoreError("ENOENT")


def clear(client: Client) -> None:
    """Take all watches of a client away."""
    for watch in client.watches:
        _forget(client, watch)
    client.watches.clear()


def _forget(client: Client, watch: Watch) -> None:
    client.account.watches -= 1
    client.ledger.charge(client.domid, -watch.size, checked=False)


class Announcer:
    """Sends changes to the watches of all clients."""

    def __init__(self, tree: Tree, clients: dict[int, Client]) -> None:
        self._tree = tree
        self._clients = clients
        keeper: Permissions = (Permission(KEEPER, NONE),)
        self.special: dict[str, Permissions] = {INTRODUCED: keeper, RELEASED: keeper}

    def changed(self, path: str, node: Node | None, *, exact: bool = False,
                before: Permissions | None = None) -> None:
        """Tell every client that may know.

        `node` is the node as it is, or was before its removal; `before`, the permissions it had, lets a
        client hear that it lost access. With `exact` only watches on `path` itself match (parts of a removed
        subtree).
        """
        for client in self._clients.values():
            if not client.watches or not self._permitted(client, path, node, before):
                continue
            for watch in client.watches:
                if watch.path == path or (not exact and paths.is_child(path, watch.path)):
                    client.event(watch.shown(path), watch.token)

    def special_event(self, name: str) -> None:
        """Tell every client that may know of an event of the store itself."""
        permissions = self.special[name]
        for client in self._clients.values():
            if client.watches and client.rights(permissions) & READ:
                for watch in client.watches:
                    if watch.path == name:
                        client.event(name, watch.token)

    def _permitted(self, client: Client, path: str, node: Node | None, before: Permissions | None) -> bool:
        return any(client.rights(permissions) & READ for permissions in self._relevant(path, node, before))

    def _relevant(self, path: str, node: Node | None, before: Permissions | None) -> Iterable[Permissions]:
        if before is not None:
            yield before
        node = node if node is not None else self._tree.get(path)
        if node is None:
            return
        yield node.permissions
        parent = self._tree.get(paths.parent(path))
        if parent is not None:
            yield parent.permissions
