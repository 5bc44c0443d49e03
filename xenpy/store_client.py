"""A client of a store behind a socket: of a machine's `StoreSocket`, or of a real xenstored."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

from firmware.abi import io_xs_wire as xs
from firmware.store.wire import Framer, Message, ProtocolError, encode, strings
from xenpy.errors import BadInputError, reason_of
from xenpy.store import StoreKeyError

PATIENCE_S: Final = 60.0
"""How long an answer may take: a machine looks at its socket between slices."""
NO_MACHINE: Final = "is a machine running with --store-socket there?"


class StoreClient:
    """One connection. Requests that fail are StoreKeyErrors, a connection that breaks a BadInputError.

    A context manager. Inside `transaction` all requests belong to it.
    """

    __slots__ = ("_events", "_framer", "_path", "_serial", "_socket", "_transaction")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._framer = Framer()
        self._events: deque[str] = deque()
        self._serial = 0
        self._transaction = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise BadInputError(f"{path}: {reason_of(error)}; {NO_MACHINE}") from error

    def __enter__(self) -> StoreClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._socket.close()

    def read(self, path: str) -> bytes:
        """A node's value."""
        return self._ask(xs.XS_READ, path, encode(_latin(path)))

    def children(self, path: str) -> list[str]:
        """The names of a node's children; of a node with very many, in parts."""
        try:
            return _texts(self._ask(xs.XS_DIRECTORY, path, encode(_latin(path))))
        except StoreKeyError as error:
            if error.name != "E2BIG":
                raise
        return self._parts(path)

    def permissions(self, path: str) -> list[str]:
        """A node's permissions: n0, r1."""
        return strings(self._ask(xs.XS_GET_PERMS, path, encode(_latin(path))))

    def write(self, path: str, value: bytes) -> None:
        """Set a value."""
        self._ask(xs.XS_WRITE, path, encode(_latin(path)) + value)

    def rm(self, path: str) -> None:
        """Remove a node and all below it."""
        self._ask(xs.XS_RM, path, encode(_latin(path)))

    def chmod(self, path: str, permissions: list[str]) -> None:
        """Replace a node's permissions."""
        self._ask(xs.XS_SET_PERMS, path, encode(_latin(path), *permissions))

    def watch(self, path: str) -> None:
        """From now on `next_event` tells of changes at or below a node."""
        self._ask(xs.XS_WATCH, path, encode(_latin(path), "watch"))

    def next_event(self) -> str | None:
        """Wait for the next change: its path; None when the other end has gone."""
        self._socket.settimeout(None)
        while not self._events:
            if self._receive() is None:
                return None
        return self._events.popleft()

    def transaction(self, action: Callable[[], None]) -> None:
        """Do `action` as one change, again until nobody else changed the same meanwhile."""
        while True:
            answer = self._ask(xs.XS_TRANSACTION_START, "", b"\0")
            if not answer[:-1].isdigit():
                raise self._no_store()
            self._transaction = int(answer[:-1])
            try:
                action()
            except StoreKeyError:
                self._ask(xs.XS_TRANSACTION_END, "", encode("F"))
                self._transaction = 0
                raise
            try:
                self._ask(xs.XS_TRANSACTION_END, "", encode("T"))
            except StoreKeyError as error:
                if error.name != "EAGAIN":
                    raise
            else:
                return
            finally:
                self._transaction = 0

    def _parts(self, path: str) -> list[str]:
        """A long list of children: each part says with which generation of the node it goes."""
        data = generation = b""
        while not data.endswith(b"\0\0"):
            request = encode(_latin(path), str(len(data)))
            seen, _, part = self._ask(xs.XS_DIRECTORY_PART, path, request).partition(b"\0")
            if generation and seen != generation:
                data = b""
            else:
                data += part
            generation = seen
            if data == b"\0":
                return []
        return _texts(data[:-1])

    def _ask(self, kind: int, path: str, payload: bytes) -> bytes:
        if len(payload) > xs.XENSTORE_PAYLOAD_MAX:
            raise StoreKeyError(path, "E2BIG")
        self._serial += 1
        transaction = 0 if kind == xs.XS_WATCH else self._transaction
        self._send(Message(kind, self._serial, transaction, payload).pack())
        while True:
            message = self._receive()
            if message is None:
                raise BadInputError(f"{self._path}: the machine has ended")
            if message.kind == xs.XS_ERROR:
                raise StoreKeyError(path, self._first(message))
            if message.kind != xs.XS_WATCH_EVENT:
                return message.payload

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise BadInputError(f"{self._path}: the machine has ended") from error

    def _receive(self) -> Message | None:
        """The next message, None at the end; events are also kept for `next_event`."""
        message = None
        try:
            while message is None:
                piece = self._socket.recv(self._framer.wanted)
                if not piece:
                    return None
                message = self._framer.feed(piece)
        except TimeoutError as error:
            raise BadInputError(f"{self._path}: no answer in {PATIENCE_S:.0f} s") from error
        except ConnectionError:
            return None
        except (OSError, ProtocolError) as error:
            raise self._no_store() from error
        if message.kind == xs.XS_WATCH_EVENT:
            self._events.append(_name(self._first(message)))
        return message

    def _first(self, message: Message) -> str:
        """The first text of a message, which must have one."""
        texts = strings(message.payload)
        if not texts:
            raise self._no_store()
        return texts[0]

    def _no_store(self) -> BadInputError:
        return BadInputError(f"{self._path}: what answers there is no store")


def _latin(path: str) -> str:
    """A path of the command line as the bytes it was typed as."""
    return path.encode("utf-8", "surrogateescape").decode("latin-1")


def _name(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "surrogateescape")


def _texts(payload: bytes) -> list[str]:
    return [_name(text) for text in strings(payload)]
