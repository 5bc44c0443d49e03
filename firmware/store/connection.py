"""A guest's connection: requests from its ring, replies and events queued for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from firmware.abi import io_xs_wire as xs
from firmware.store import operations
from firmware.store.client import Client
from firmware.store.errors import StoreError
from firmware.store.ring import RingError
from firmware.store.tree import Tree
from firmware.store.wire import Framer, Message, ProtocolError, encode

_SMALL: Final = 80
"""Replies up to this payload are sent even over the memory limit, or an error could not be told."""


class Pipe(Protocol):
    """What carries the bytes: a domain's `SharedRing`, or a program's stream."""

    @property
    def reconnecting(self) -> bool:
        """The other end begins anew."""

    def open(self) -> None:
        """Say that somebody listens."""

    def reset(self) -> None:
        """Begin anew."""

    def fail(self, error: int) -> None:
        """Say that nobody listens any more, and why (XENSTORE_ERROR_*)."""

    def read(self, limit: int, /) -> bytes:
        """Up to `limit` bytes of requests, none when there are none; RingError."""

    def write(self, data: bytes, /) -> int:
        """Send what there is room for; how much that was. RingError."""


class _Outgoing:
    """A queued message, less what the ring has taken already."""

    __slots__ = ("data", "event", "sent", "size")

    def __init__(self, data: bytes, event: bool) -> None:
        self.data = data
        self.size = len(data)
        self.sent = 0
        self.event = event


class Connection(Client):
    """One domain over its `Pipe`.

    The queue is bounded: with too many unread replies no more requests are taken, the same event is queued
    only once, and beyond the memory limit events are dropped and requests wait.
    """

    def __init__(self, domid: int, tree: Tree, ring: Pipe, service: operations.Service,
                 notify: Callable[[], None]) -> None:
        super().__init__(domid, tree)
        self.ring = ring
        self.notify = notify
        self.ignored = False
        """The guest broke the protocol; only a reconnection brings it back."""
        self._service = service
        self._framer = Framer()
        self._queue: deque[_Outgoing] = deque()
        self._events: set[bytes] = set()
        ring.open()

    @property
    def pending(self) -> bool:
        """True when something is queued for the guest."""
        return bool(self._queue)

    def service(self) -> bool:
        """Take requests and give replies as far as both rings allow; True when anything moved.

        The guest has then been notified, as xenstored does it: room for requests is news, too.
        """
        moved = self._move()
        if moved:
            self.notify()
        return moved

    def _move(self) -> bool:
        moved = False
        try:
            if self.ring.reconnecting:
                self.disconnect()
                self.ring.reset()
                self.ignored = False
                moved = True
            while not self.ignored and (self._send() or self._receive()):
                moved = True
        except RingError:
            self._ignore(xs.XENSTORE_ERROR_RINGIDX)
            return True
        except ProtocolError:
            self._ignore(xs.XENSTORE_ERROR_PROTO)
            return True
        return moved

    def event(self, path: str, token: str) -> None:
        """Queue a watch event, unless the same one waits already."""
        payload = encode(path, token)
        if self.ignored or len(payload) > xs.XENSTORE_PAYLOAD_MAX:
            return
        special = path.startswith("@")
        if not special and payload in self._events:
            return
        data = Message(xs.XS_WATCH_EVENT, 0, 0, payload).pack()
        try:
            self.ledger.charge(self.domid, len(data), checked=True)
        except StoreError:
            return
        self._events.add(payload)
        self._queue.append(_Outgoing(data, True))

    def disconnect(self) -> None:
        """Drop watches, transactions, what is queued and a request half received."""
        self.reset()
        while self._queue:
            self._drop()
        self._framer.clear()

    def _reply(self, message: Message) -> None:
        data = message.pack()
        try:
            self.ledger.charge(self.domid, len(data), checked=len(message.payload) > _SMALL)
        except StoreError as error:
            data = message._replace(kind=xs.XS_ERROR, payload=encode(error.name)).pack()
            self.ledger.charge(self.domid, len(data), checked=False)
        self.account.outstanding += 1
        self._queue.append(_Outgoing(data, False))

    def _send(self) -> bool:
        if not self._queue:
            return False
        head = self._queue[0]
        count = self.ring.write(head.data[head.sent :])
        head.sent += count
        if head.sent == head.size:
            self._drop()
        return count > 0

    def _receive(self) -> bool:
        if not self.privileged:
            quota, account = self.ledger.quota, self.account
            if account.outstanding >= quota.outstanding or account.memory >= quota.memory:
                return False
        piece = self.ring.read(self._framer.wanted)
        if not piece:
            return False
        message = self._framer.feed(piece)
        if message is not None:
            operations.perform(self._service, self, message, self._reply)
        return True

    def _drop(self) -> None:
        head = self._queue.popleft()
        self.ledger.charge(self.domid, -head.size, checked=False)
        if head.event:
            self._events.discard(head.data[xs.xsd_sockmsg.w64.size :])
        else:
            self.account.outstanding -= 1

    def _ignore(self, error: int) -> None:
        self.ignored = True
        self.disconnect()
        self.ring.fail(error)
