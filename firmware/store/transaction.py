"""Transactions: reads see one state of each node, writes are private until the end, a conflict answers
EAGAIN.

A node is copied on first touch. At the end every node that was read must still have the generation it was
read with; then all private nodes become the tree's at once. So a transaction that commits is as if it had run
alone at its end.
"""

from __future__ import annotations

from typing import NamedTuple

from firmware.store.errors import StoreError
from firmware.store.permissions import Permissions
from firmware.store.quota import KEEPER
from firmware.store.tree import ABSENT, Node, Tree


class Change(NamedTuple):
    """A committed change to announce: its path, whether watches must name it exactly, the permissions it
    had.
    """

    path: str
    exact: bool
    permissions: Permissions | None


class _Touched:
    """One node this transaction knows: its private copy, and what its copy was made from."""

    __slots__ = ("exact", "fire", "generation", "modified", "node", "permissions")

    def __init__(self, node: Node | None) -> None:
        self.node = node
        self.generation = ABSENT if node is None else node.generation
        self.permissions = None if node is None else node.permissions
        self.modified = False
        self.fire = False
        self.exact = False


class Transaction:
    """One transaction of the domain `domid`; it is a `View`."""

    def __init__(self, tree: Tree, domid: int) -> None:
        self._tree = tree
        self._domid = domid
        self._touched: dict[str, _Touched] = {}
        self._counts: dict[int, int] = {}
        self._memory = 0
        self.failed = False

    def get(self, path: str) -> Node | None:
        """The node as this transaction sees it; StoreError ENOSPC when it has touched too many."""
        return self._touch(path).node

    def put(self, path: str, node: Node, *, checked: bool = True) -> None:
        """Store a node privately; StoreError ENOMEM, when `checked`, at the memory limit of the client's
        domain.
        """
        touched = self._touch(path)
        node = node._replace(generation=self._tree.next_generation())
        self._charge(path, node, checked)
        self._charge(path, touched.node, False, -1)
        touched.node = node
        touched.modified = True

    def delete(self, path: str) -> None:
        """Take a node away privately."""
        touched = self._touch(path)
        self._charge(path, touched.node, False, -1)
        touched.node = None
        touched.modified = True

    def count_nodes(self, domid: int, change: int) -> None:
        """Book nodes gained or lost; they count when the transaction commits."""
        self._counts[domid] = self._counts.get(domid, 0) + change

    def fail(self) -> None:
        """Never commit: the end will answer ENOMEM."""
        self.failed = True

    def announce(self, path: str, exact: bool) -> None:
        """Remember that watches must hear of `path` after the commit."""
        touched = self._touch(path)
        touched.fire = True
        touched.exact = exact

    def commit(self) -> list[Change]:
        """Make all changes the tree's; what to announce, in order of first touch.

        StoreError ENOMEM after a refused change, ENOSPC over a quota of nodes, EAGAIN on a conflict; in all
        cases nothing has changed and the transaction is over.
        """
        tree, ledger = self._tree, self._tree.ledger
        self.discard()
        if self.failed:
            raise StoreError("ENOMEM")
        for domid, change in self._counts.items():
            account = ledger.accounts.get(domid)
            if domid != KEEPER and account is not None and account.nodes + change >= ledger.quota.nodes:
                raise StoreError("ENOSPC")
        for path, touched in self._touched.items():
            node = tree.get(path)
            if touched.generation != (ABSENT if node is None else node.generation):
                raise StoreError("EAGAIN")
        changes = []
        for path, touched in self._touched.items():
            if not touched.modified:
                continue
            if touched.node is not None:
                tree.put(path, touched.node, checked=False)
            elif tree.get(path) is not None:
                tree.delete(path)
            if touched.fire:
                changes.append(Change(path, touched.exact, touched.permissions))
        for domid, change in self._counts.items():
            ledger.count_nodes(domid, change)
        return changes

    def discard(self) -> None:
        """Give back what the private copies took."""
        self._tree.ledger.charge(self._domid, -self._memory, checked=False)
        self._memory = 0

    def _touch(self, path: str) -> _Touched:
        touched = self._touched.get(path)
        if touched is None:
            if self._domid != KEEPER and len(self._touched) >= self._tree.ledger.quota.transaction_nodes:
                self.failed = True
                raise StoreError("ENOSPC")
            node = self._tree.get(path)
            self._charge(path, node, True)
            touched = self._touched[path] = _Touched(node)
        return touched

    def _charge(self, path: str, node: Node | None, checked: bool, sign: int = 1) -> None:
        if node is None:
            return
        amount = sign * (len(path) + node.size)
        try:
            self._tree.ledger.charge(self._domid, amount, checked=checked)
        except StoreError:
            self.failed = True
            raise
        self._memory += amount
