"""A socket on which a running machine answers for its xenstore, in xenstored's own messages.

`xenpy store` talks to it, and so do the tools of other people: `XENSTORED_PATH=SOCKET xenstore-ls`. Nobody
waits for anybody: the run loop looks at it between slices of the machine. Only its owner may open it.
"""

from __future__ import annotations

import os
import select
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.errors import BadInputError, reason_of

if TYPE_CHECKING:
    from firmware.store.store import Store
    from firmware.store.visitor import Visitor

MOST_VISITORS: Final = 32
"""More are sent away at once."""
LOOK_S: Final = 0.005
"""Host time between two looks while the machine runs."""
A_LOOK: Final = 4096
"""Bytes of requests taken from one visitor at one look: the machine is to go on under any flood."""
OWNER_ONLY: Final = 0o177


class StreamPipe:
    """A connected socket as the store sees it. `over`: it was closed, or broke."""

    __slots__ = ("_inbox", "_left", "over", "socket")

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self.socket = connected
        self.over = False
        self._inbox = b""
        self._left = 0

    @property
    def reconnecting(self) -> bool:
        """Never: a program that begins anew opens another connection."""
        return False

    def open(self) -> None:
        """A stream is open as it is."""

    def reset(self) -> None:
        """Nothing of a stream can begin anew."""

    def fail(self, error: int) -> None:
        """The other end breaks the protocol: it is sent away."""
        self.over = True

    def allow(self, count: int) -> None:
        """Take up to `count` more bytes of requests."""
        self._left = count

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes that have come and are allowed."""
        if not self._inbox and self._left > 0 and not self.over:
            try:
                self._inbox = self.socket.recv(self._left)
                self.over = not self._inbox
            except BlockingIOError:
                return b""
            except OSError:
                self.over = True
            self._left -= len(self._inbox)
        piece, self._inbox = self._inbox[:limit], self._inbox[limit:]
        return piece

    def write(self, data: bytes) -> int:
        """Send what the other end has room for."""
        if self.over:
            return 0
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.over = True
            return 0


class StoreSocket:
    """The socket at `path`, made here and removed by `close`. BadInputError when it cannot be made."""

    __slots__ = ("_listener", "_next_look", "_path", "_poll", "_store", "_visitors")

    def __init__(self, path: Path, store: Store) -> None:
        self._path = path
        self._store = store
        self._visitors: dict[int, tuple[StreamPipe, Visitor]] = {}
        self._next_look = 0.0
        self._listener = _listen(path)
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)

    @property
    def descriptors(self) -> list[int]:
        """What to wait for besides: somebody wants something when one of these can be read."""
        return [self._listener.fileno(), *self._visitors]

    def look(self) -> None:
        """Serve whoever has something to say, if the last look is long enough ago."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._serve(0)

    def wait(self, seconds: float) -> None:
        """Wait up to so much host time for somebody, and serve them."""
        self._serve(round(seconds * 1000))

    def close(self) -> None:
        """Send everybody away and remove the socket."""
        for number in list(self._visitors):
            self._drop(number)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _serve(self, timeout_ms: int) -> None:
        for number, _ in self._poll.poll(timeout_ms):
            if number == self._listener.fileno():
                self._accept()
            else:
                self._visitors[number][0].allow(A_LOOK)
        for number, (pipe, visitor) in list(self._visitors.items()):
            visitor.service()
            self._store.settle()
            if pipe.over or visitor.overrun:
                self._drop(number)
            else:
                self._poll.modify(number, select.POLLIN | (select.POLLOUT if visitor.pending else 0))

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except OSError:
            return
        if len(self._visitors) >= MOST_VISITORS:
            connected.close()
            return
        pipe = StreamPipe(connected)
        self._visitors[connected.fileno()] = pipe, self._store.visit(pipe)
        self._poll.register(connected, select.POLLIN)
        pipe.allow(A_LOOK)

    def _drop(self, number: int) -> None:
        pipe, visitor = self._visitors.pop(number)
        self._poll.unregister(number)
        self._store.leave(visitor)
        pipe.socket.close()


def _listen(path: Path) -> socket.socket:
    """A listening socket that only its owner may open. One that nobody answers any more is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink(missing_ok=True)
        # Made with its permissions: there is no moment in which others could open it.
        mask = os.umask(OWNER_ONLY)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(MOST_VISITORS)
        listener.setblocking(False)
    except (OSError, ValueError) as error:
        listener.close()
        why = reason_of(error) if isinstance(error, OSError) else str(error)
        raise BadInputError(f"--store-socket {path}: {why}; name a socket that is not there yet") from error
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
