"""The store: who is served, and the host side's own access as domain 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from firmware.store import permissions as perms
from firmware.store import watch as watches
from firmware.store.client import Client
from firmware.store.connection import Connection, Pipe
from firmware.store.errors import StoreError
from firmware.store.host import HostClient, WatchCallback
from firmware.store.namespace import Namespace, Session
from firmware.store.quota import KEEPER, Ledger, Quota
from firmware.store.transaction import Transaction
from firmware.store.tree import Tree
from firmware.store.visitor import Visitor
from firmware.store.watch import INTRODUCED, RELEASED, Announcer

Attach = Callable[[int, int], None]
"""Called for an INTRODUCE on the wire with domain id and event channel port: it calls `Store.introduce`."""


class WatchHandle(NamedTuple):
    """What `Store.watch` gives, for `Store.unwatch`."""

    path: str
    token: str


class Store:
    """The tree, the clients and, as methods, what domain 0 may do.

    The methods raise StoreError with xenstore's error names. Watch callbacks run, and guests get their
    events, when the outermost call is done. A guest's connection is served by `Connection.service`, called
    when the guest signals its event channel, followed by `settle` for everybody the requests concerned.
    """

    def __init__(self, quota: Quota | None = None, attach: Attach | None = None) -> None:
        self._ledger = Ledger(quota if quota is not None else Quota())
        self._tree = Tree(self._ledger)
        self._host = HostClient(self._tree)
        self._attach = attach
        self._depth = 0
        self.clients: dict[int, Client] = {KEEPER: self._host}
        self.announcer = Announcer(self._tree, self.clients)
        self.namespace = Namespace(self._tree, self.announcer)
        self._session = Session(self._host, None)
        self._visitors = 0

    def exists(self, domid: int) -> bool:
        """True for a domain the store knows."""
        return self._ledger.exists(domid)

    def add_domain(self, domid: int) -> None:
        """A domain is being made: from now on permissions may name it."""
        self._ledger.open(domid)

    def introduce(self, domid: int, ring: Pipe, notify: Callable[[], None]) -> Connection:
        """Serve a domain over its ring; `notify` signals its event channel. Again for the same domain: a
        fresh start.
        """
        with self._settled():
            old = self.clients.get(domid)
            if old is self._host:
                raise StoreError("EINVAL")
            if isinstance(old, Connection):
                old.disconnect()
            connection = Connection(domid, self._tree, ring, self, notify)
            self.clients[domid] = connection
            if old is None:
                self.announcer.special_event(INTRODUCED)
        return connection

    def visit(self, pipe: Pipe) -> Visitor:
        """Serve a program of the operator's, as domain 0, until `leave`."""
        self._visitors += 1
        visitor = Visitor(self._tree, pipe, self)
        # No domain has this number, and no message can say it.
        self.clients[-self._visitors] = visitor
        return visitor

    def leave(self, visitor: Visitor) -> None:
        """A visitor has gone: so have its watches and transactions."""
        visitor.disconnect()
        for number, client in list(self.clients.items()):
            if client is visitor:
                del self.clients[number]

    def attach(self, domid: int, port: int) -> None:
        """Serve a domain because an INTRODUCE says so; StoreError EINVAL when nobody here can."""
        if self._attach is None:
            raise StoreError("EINVAL")
        self._attach(domid, port)

    def release(self, domid: int) -> None:
        """Stop serving a domain that lives on; StoreError ENOENT when it is not served."""
        with self._settled():
            connection = self.clients.get(domid)
            if not isinstance(connection, Connection):
                raise StoreError("ENOENT")
            connection.disconnect()
            del self.clients[domid]
            self.announcer.special_event(RELEASED)

    def remove_domain(self, domid: int) -> None:
        """A domain is gone: its connection, its nodes and its rights go too."""
        with self._settled():
            if domid in self.clients:
                self.release(domid)
            self.namespace.forget_domain(self._host, domid)
            self._ledger.close(domid)

    def domain_stopped(self, domid: int) -> None:
        """A domain crashed or shut down but still exists: whoever watches @releaseDomain hears of it."""
        if domid in self.clients:
            with self._settled():
                self.announcer.special_event(RELEASED)

    def read(self, path: str, transaction: Transaction | None = None) -> bytes:
        """The value of a node."""
        return self.namespace.find(Session(self._host, transaction), self._host.resolve(path),
        perms.READ).data

    def directory(self, path: str, transaction: Transaction | None = None) -> tuple[str, ...]:
        """The names of a node's children, oldest first."""
        return self.namespace.find(Session(self._host, transaction), self._host.resolve(path),
        perms.READ).children

    def permissions(self, path: str) -> perms.Permissions:
        """The permissions of a node."""
        return self.namespace.find(self._session, self._host.resolve(path), perms.READ).permissions

    def write(self, path: str, value: bytes | str, transaction: Transaction | None = None) -> None:
        """Set the value of a node, making it and its parents where missing."""
        data = value.encode() if isinstance(value, str) else value
        with self._settled():
            self.namespace.write(Session(self._host, transaction), self._host.resolve(path), data)

    def mkdir(self, path: str, transaction: Transaction | None = None) -> None:
        """Make a node unless it is there."""
        with self._settled():
            self.namespace.make(Session(self._host, transaction), self._host.resolve(path))

    def rm(self, path: str, transaction: Transaction | None = None) -> None:
        """Remove a node and all below it."""
        with self._settled():
            self.namespace.remove(Session(self._host, transaction), self._host.resolve(path))

    def set_permissions(self, path: str, entries: Sequence[perms.Permission]) -> None:
        """Replace the permissions of a node; the first entry names the owner. ENOENT when there is no such
        domain.
        """
        permissions = perms.resolve(entries, self.exists)
        with self._settled():
            self.namespace.set_permissions(self._session, self._host.resolve(path), permissions)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction, committed at the end of the block; StoreError EAGAIN then means: nothing changed,
        try again.
        """
        transaction = Transaction(self._tree, KEEPER)
        try:
            yield transaction
        except BaseException:
            transaction.discard()
            raise
        with self._settled():
            for change in transaction.commit():
                self.announcer.changed(change.path, None, exact=change.exact, before=change.permissions)

    def watch(self, path: str, callback: WatchCallback) -> WatchHandle:
        """Call `callback(changed path)` now and for every change at or below `path` (or for a special
        event).
        """
        token = self._host.token(callback)
        with self._settled():
            try:
                watch = watches.add(self._host, path, token)
            except StoreError:
                self._host.forget(token)
                raise
            self._host.event(watch.shown(watch.path), token)
        return WatchHandle(path, token)

    def unwatch(self, handle: WatchHandle) -> None:
        """End a watch; its callback will not be called again."""
        watches.remove(self._host, handle.path, handle.token)
        self._host.forget(handle.token)

    def settle(self) -> None:
        """Run the callbacks that are due and move what is queued for guests; guests that got something are
        notified.
        """
        with self._settled():
            pass

    @contextmanager
    def _settled(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
            if self._depth == 1:
                self._deliver()
        finally:
            self._depth -= 1

    def _deliver(self) -> None:
        again = True
        while again:
            self._host.deliver()
            again = False
            for client in list(self.clients.values()):
                if isinstance(client, Connection) and client.pending and client.service():
                    again = True
