"""What a guest may take of the store: xenstored's limits, and the account each domain has."""

from __future__ import annotations

from dataclasses import dataclass

from firmware.store.errors import StoreError

KEEPER = 0
"""The domain that owns the store itself; no limit holds for it."""


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits for one unprivileged domain, with xenstored's defaults."""

    nodes: int = 1000
    watches: int = 128
    transactions: int = 10
    node_bytes: int = 2048
    permissions: int = 5
    transaction_nodes: int = 1024
    outstanding: int = 20
    path: int = 2048
    memory: int = 2 * 1024 * 1024 + 512 * 1024


class Account:
    """What one domain uses: nodes it owns, watches, unread replies, bytes in all."""

    __slots__ = ("domid", "memory", "nodes", "outstanding", "watches")

    def __init__(self, domid: int) -> None:
        self.domid = domid
        self.nodes = 0
        self.watches = 0
        self.outstanding = 0
        self.memory = 0


class Ledger:
    """The accounts of all domains that exist, by domain id."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.accounts: dict[int, Account] = {KEEPER: Account(KEEPER)}

    def exists(self, domid: int) -> bool:
        """True when the store knows the domain."""
        return domid in self.accounts

    def open(self, domid: int) -> Account:
        """The account of `domid`, made when it has none."""
        account = self.accounts.get(domid)
        if account is None:
            account = self.accounts[domid] = Account(domid)
        return account

    def close(self, domid: int) -> None:
        """Forget a domain."""
        self.accounts.pop(domid, None)

    def charge(self, domid: int, amount: int, *, checked: bool) -> None:
        """Book `amount` bytes; StoreError ENOMEM when `checked` and the domain would be at its limit."""
        account = self.accounts.get(domid)
        if account is None:
            return
        total = account.memory + amount
        if checked and domid != KEEPER and total >= self.quota.memory:
            raise StoreError("ENOMEM")
        account.memory = total

    def count_nodes(self, domid: int, change: int) -> None:
        """Book nodes gained or lost by their owner."""
        account = self.accounts.get(domid)
        if account is not None:
            account.nodes += change
