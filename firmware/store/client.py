"""A client: whoever sends requests, with its rights, watches and transactions."""

from __future__ import annotations

from abc import ABC, abstractmethod

from firmware.abi.io_xs_wire import XENSTORE_ABS_PATH_MAX
from firmware.store import path as paths
from firmware.store import permissions as perms
from firmware.store import watch as watches
from firmware.store.errors import StoreError
from firmware.store.permissions import Permissions
from firmware.store.quota import KEEPER, Account, Ledger
from firmware.store.transaction import Transaction
from firmware.store.tree import Tree
from firmware.store.watch import Watch

_TRANSACTION_LIMIT = 1 << 32


class Client(ABC):
    """What the store knows of the domain at the other end."""

    def __init__(self, domid: int, tree: Tree) -> None:
        self.domid = domid
        self.privileged = domid == KEEPER
        self.home = paths.home(domid)
        self.ledger: Ledger = tree.ledger
        self.account: Account = tree.ledger.open(domid)
        self.watches: list[Watch] = []
        self.transactions: dict[int, Transaction] = {}
        self._tree = tree
        self._next_transaction = 1
        self._speaks_for: tuple[int, ...] = (domid,)

    @abstractmethod
    def event(self, path: str, token: str) -> None:
        """Queue a watch event; one too long, or beyond the client's memory limit, is dropped."""

    def rights(self, permissions: Permissions) -> int:
        """The rights this client has on a node."""
        return perms.ALL if self.privileged else perms.granted(permissions, self._speaks_for)

    def set_target(self, domid: int) -> None:
        """From now on this client also has the rights of `domid` (a device model for its guest)."""
        self._speaks_for = (self.domid, domid)

    def resolve(self, path: str) -> str:
        """The absolute form of a node path; StoreError EINVAL when it is not valid."""
        path = paths.absolute(path, self.home)
        limit = XENSTORE_ABS_PATH_MAX if self.privileged else self.ledger.quota.path
        if not paths.valid(path, limit):
            raise StoreError("EINVAL")
        return path

    def start_transaction(self) -> int:
        """Begin a transaction; its number. StoreError ENOSPC over the quota."""
        if not self.privileged and len(self.transactions) > self.ledger.quota.transactions:
            raise StoreError("ENOSPC")
        number = self._next_transaction
        while number in self.transactions:
            number = number % (_TRANSACTION_LIMIT - 1) + 1
        self._next_transaction = number % (_TRANSACTION_LIMIT - 1) + 1
        self.transactions[number] = Transaction(self._tree, self.domid)
        return number

    def transaction(self, number: int) -> Transaction | None:
        """The running transaction `number`, None for 0; StoreError ENOENT when there is none such."""
        if number == 0:
            return None
        found = self.transactions.get(number)
        if found is None:
            raise StoreError("ENOENT")
        return found

    def reset(self) -> None:
        """Drop all watches and transactions."""
        watches.clear(self)
        for transaction in self.transactions.values():
            transaction.discard()
        self.transactions.clear()
