"""A visitor: a program of the operator's that talks to the store as domain 0, in the same messages as guests.

It comes by a stream (xenstored has a socket for it), is privileged, and is bounded in what it may leave
unread: the machine goes on whatever it does. What would take a domain's connection away is refused.
"""

from __future__ import annotations

from typing import Final

from firmware.store.client import Client
from firmware.store.connection import Connection, Pipe
from firmware.store.errors import StoreError
from firmware.store.namespace import Namespace
from firmware.store.operations import Service
from firmware.store.quota import KEEPER
from firmware.store.tree import Tree
from firmware.store.watch import Announcer

MOST_REPLIES: Final = 64
"""Unread messages beyond which no more requests are taken."""
MOST_EVENTS: Final = 4096
"""Unread messages beyond which a visitor is sent away."""
MOST_TRANSACTIONS: Final = 64
MOST_WATCHES: Final = 1024
"""Watches beyond which it is, too."""


class _Guarded:
    """The store as a visitor may use it: which domains are served is not its business."""

    __slots__ = ("_service",)

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def namespace(self) -> Namespace:
        return self._service.namespace

    @property
    def announcer(self) -> Announcer:
        return self._service.announcer

    @property
    def clients(self) -> dict[int, Client]:
        return self._service.clients

    def exists(self, domid: int) -> bool:
        return self._service.exists(domid)

    def attach(self, domid: int, port: int) -> None:
        raise StoreError("EACCES")

    def release(self, domid: int) -> None:
        raise StoreError("EACCES")


class Visitor(Connection):
    """One program over its pipe. `overrun`: it has left so much unread that it is to be sent away."""

    def __init__(self, tree: Tree, pipe: Pipe, service: Service) -> None:
        self.overrun = False
        super().__init__(KEEPER, tree, pipe, _Guarded(service), _nothing)

    def event(self, path: str, token: str) -> None:
        if len(self._queue) >= MOST_EVENTS:
            self.overrun = True
        else:
            super().event(path, token)

    def start_transaction(self) -> int:
        if len(self.transactions) >= MOST_TRANSACTIONS:
            raise StoreError("ENOSPC")
        return super().start_transaction()

    def _receive(self) -> bool:
        if len(self.watches) > MOST_WATCHES:
            self.overrun = True
        return not self.overrun and len(self._queue) < MOST_REPLIES and super()._receive()


def _nothing() -> None:
    """A pipe needs no notice."""
