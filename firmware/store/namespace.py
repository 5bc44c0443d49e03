"""Reading and changing nodes with the rights of a client: the semantics of xenstored, on any view of the
tree.
"""

from __future__ import annotations

from typing import NamedTuple

from firmware.store import path as paths
from firmware.store.client import Client
from firmware.store.errors import ErrorName, StoreError
from firmware.store.permissions import OWNER, WRITE, Permission, Permissions
from firmware.store.transaction import Transaction
from firmware.store.tree import Node, Tree, View
from firmware.store.watch import Announcer


class Session(NamedTuple):
    """One request's surroundings: who asks, in which transaction if any."""

    client: Client
    transaction: Transaction | None


class Namespace:
    """The tree with rights, quotas and announcements. All paths are absolute and valid (`Client.resolve`)."""

    def __init__(self, tree: Tree, announcer: Announcer) -> None:
        self._tree = tree
        self._announcer = announcer

    def find(self, session: Session, path: str, need: int) -> Node:
        """The node, if the client has the rights `need`.

        StoreError ENOENT or EACCES; who may not use the nearest existing parent only ever learns EACCES.
        """
        view = self._view(session)
        node = view.get(path)
        problem: ErrorName = "ENOENT"
        if node is not None:
            if session.client.rights(node.permissions) & need == need:
                return node
            problem = "EACCES"
        above, found = path, None
        while found is None:
            above = paths.parent(above)
            found = view.get(above)
        raise StoreError(problem if session.client.rights(found.permissions) & need else "EACCES")

    def write(self, session: Session, path: str, data: bytes) -> None:
        """Set a value, making the node and its parents where they are missing."""
        try:
            node = self.find(session, path, WRITE)
        except StoreError as error:
            if error.name != "ENOENT":
                raise
            node = self._create(session, path, data)
        else:
            node = node._replace(data=data)
            self._store(session, self._view(session), path, node)
        self._announce(session, path, node)

    def make(self, session: Session, path: str) -> None:
        """Make a node, and its parents, unless it is there."""
        try:
            self.find(session, path, WRITE)
        except StoreError as error:
            if error.name != "ENOENT":
                raise
            self._announce(session, path, self._create(session, path, b""))

    def remove(self, session: Session, path: str) -> None:
        """Remove a node and all below it; no error when it is missing and its parent is there."""
        view = self._view(session)
        try:
            self.find(session, path, WRITE)
        except StoreError as error:
            if error.name == "ENOENT" and view.get(paths.parent(path)) is not None:
                return
            raise
        if path == "/":
            raise StoreError("EINVAL")
        self._remove_tree(session, view, path)
        above = paths.parent(path)
        parent = view.get(above)
        if parent is not None:
            children = tuple(name for name in parent.children if name != paths.leaf(path))
            view.put(above, parent._replace(children=children), checked=False)

    def set_permissions(self, session: Session, path: str, permissions: Permissions) -> None:
        """Replace a node's permissions; only its owner may, and only the privileged may change the owner
        (EPERM).
        """
        node = self.find(session, path, WRITE | OWNER)
        if not session.client.privileged and permissions[0].domid != node.owner:
            raise StoreError("EPERM")
        view = self._view(session)
        changed = node._replace(permissions=permissions)
        self._store(session, view, path, changed)
        view.count_nodes(node.owner, -1)
        view.count_nodes(changed.owner, 1)
        self._announce(session, path, changed, before=node.permissions)

    def forget_domain(self, keeper: Client, domid: int) -> None:
        """A domain is gone: its nodes go too, and so do permissions that name it."""
        session = Session(keeper, None)
        owned = [path for path, node in self._tree.nodes.items() if node.owner == domid]
        for path in owned:
            if path != "/" and self._tree.get(path) is not None:
                self.remove(session, path)
        for path, node in list(self._tree.nodes.items()):
            if any(entry.domid == domid for entry in node.permissions):
                owner, *others = node.permissions
                if owner.domid == domid:
                    owner = Permission(keeper.domid, owner.access)
                kept = (owner, *(entry for entry in others if entry.domid != domid))
                self._tree.put(path, node._replace(permissions=kept), checked=False)

    def check(self) -> None:
        """Every node has its parent and every name its node; StoreError EIO when not."""
        nodes = self._tree.nodes
        named = {paths.join(path, name) for path, node in nodes.items() for name in node.children}
        if named != nodes.keys() - {"/"} or sum(len(node.children) for node in nodes.values()) != len(named):
            raise StoreError("EIO")

    def _view(self, session: Session) -> View:
        return self._tree if session.transaction is None else session.transaction

    def _announce(self, session: Session, path: str, node: Node, *, exact: bool = False,
                  before: Permissions | None = None) -> None:
        if session.transaction is None:
            self._announcer.changed(path, node, exact=exact, before=before)
        else:
            session.transaction.announce(path, exact)

    def _store(self, session: Session, view: View, path: str, node: Node, *, checked: bool = True) -> None:
        if checked and not session.client.privileged and node.size >= session.client.ledger.quota.node_bytes:
            view.fail()
            raise StoreError("ENOSPC")
        view.put(path, node, checked=checked and not session.client.privileged)

    def _create(self, session: Session, path: str, data: bytes) -> Node:
        client, view = session.client, self._view(session)
        missing = [path]
        parent = view.get(above := paths.parent(path))
        while parent is None:
            missing.append(above)
            parent = view.get(above := paths.parent(above))
        existing, existing_path = parent, above
        permissions = parent.permissions
        if not client.privileged:
            permissions = (Permission(client.domid, permissions[0].access), *permissions[1:])
        made: list[tuple[str, Node]] = []
        for position, name in enumerate(missing):
            below = (paths.leaf(missing[position - 1]),) if position else ()
            made.append((name, Node(b"" if position else data, below, permissions, 0)))
        stored: list[str] = []
        try:
            for name, node in made:
                _check_count(client)
                self._store(session, view, name, node)
                stored.append(name)
                view.count_nodes(node.owner, 1)
            children = (*existing.children, paths.leaf(missing[-1]))
            self._store(session, view, existing_path, existing._replace(children=children))
        except StoreError:
            for name in stored:
                view.delete(name)
                view.count_nodes(made[0][1].owner, -1)
                view.fail()
            raise
        return made[0][1]

    def _remove_tree(self, session: Session, view: View, root: str) -> None:
        for path, node in self._post_order(view, root):
            view.delete(path)
            self._announce(session, path, node, exact=path != root)
            view.count_nodes(node.owner, -1)

    @staticmethod
    def _post_order(view: View, root: str) -> list[tuple[str, Node]]:
        order: list[tuple[str, Node]] = []
        stack = [root]
        while stack:
            path = stack.pop()
            node = view.get(path)
            if node is None:
                continue
            order.append((path, node))
            stack.extend(paths.join(path, name) for name in node.children)
        order.reverse()
        return order


def _check_count(client: Client) -> None:
    if not client.privileged and client.account.nodes >= client.ledger.quota.nodes:
        raise StoreError("ENOSPC")
