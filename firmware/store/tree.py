"""The tree: immutable nodes by path, each with the generation of its last change.

A node is replaced, never changed, so a reference to one is a snapshot of it.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from firmware.store.permissions import NONE, Permission, Permissions
from firmware.store.quota import KEEPER, Ledger

ABSENT: Final = -1
"""The generation of a node that does not exist."""

_RECORD: Final = 24
"""Bytes xenstored keeps per node besides its contents (`xs_tdb_record_hdr`), part of what quotas measure."""
_RECORD_PERMISSION: Final = 8


class Node(NamedTuple):
    """A value, the names of the children in order of creation, and the permissions."""

    data: bytes
    children: tuple[str, ...]
    permissions: Permissions
    generation: int

    @property
    def owner(self) -> int:
        """The domain that owns the node."""
        return self.permissions[0].domid

    @property
    def size(self) -> int:
        """Bytes, as quotas measure them."""
        names = sum(map(len, self.children)) + len(self.children)
        return _RECORD + _RECORD_PERMISSION * len(self.permissions) + len(self.data) + names


class View(Protocol):
    """Nodes as one client sees them: the tree itself, or a transaction on it."""

    def get(self, path: str) -> Node | None:
        """The node at `path`, or None."""

    def put(self, path: str, node: Node, *, checked: bool = True) -> None:
        """Store a node; its generation is set here. StoreError ENOMEM, when `checked`, at the memory
        limit.
        """

    def delete(self, path: str) -> None:
        """Take a node away (its parent's list of children is the caller's business)."""

    def count_nodes(self, domid: int, change: int) -> None:
        """Book nodes gained or lost by their owner."""

    def fail(self) -> None:
        """A change was refused half-way: what this view holds must never be committed."""


class Tree:
    """All nodes, the generation counter, and who pays for what."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.nodes: dict[str, Node] = {}
        self._generation = 0
        keeper = (Permission(KEEPER, NONE),)
        for path, children in (("/", ("tool",)), ("/tool", ("xenstored",)), ("/tool/xenstored", ())):
            self.put(path, Node(b"", children, keeper, ABSENT))

    def next_generation(self) -> int:
        """A number no node and no transaction has had."""
        self._generation += 1
        return self._generation

    def get(self, path: str) -> Node | None:
        """The node at `path`, or None."""
        return self.nodes.get(path)

    def put(self, path: str, node: Node, *, checked: bool = True) -> None:
        """Store a node under a new generation; StoreError ENOMEM, when `checked`, at its owner's memory
        limit.
        """
        old = self.nodes.get(path)
        charge = self.ledger.charge
        if old is not None:
            charge(old.owner, -len(path) - old.size, checked=False)
        try:
            charge(node.owner, len(path) + node.size, checked=checked)
        except Exception:
            if old is not None:
                charge(old.owner, len(path) + old.size, checked=False)
            raise
        self.nodes[path] = node._replace(generation=self.next_generation())

    def delete(self, path: str) -> None:
        """Take a node away."""
        old = self.nodes.pop(path)
        self.ledger.charge(old.owner, -len(path) - old.size, checked=False)

    def count_nodes(self, domid: int, change: int) -> None:
        """Book nodes gained or lost by their owner."""
        self.ledger.count_nodes(domid, change)

    def fail(self) -> None:
        """Changes to the tree itself are never half done: nothing to remember."""
