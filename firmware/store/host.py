"""The store as the firmware's own side uses it: as domain 0, without a ring, with callbacks for watches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from firmware.store.client import Client
from firmware.store.quota import KEEPER
from firmware.store.tree import Tree

WatchCallback = Callable[[str], None]
"""Gets the path that changed."""

_BURST: Final = 100_000
"""Events one settling may run; callbacks that set each other off for longer are a fault of the firmware."""


class HostClient(Client):
    """Domain 0's own client. Its events wait in a queue until whoever changed the tree has finished."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(KEEPER, tree)
        self._callbacks: dict[str, WatchCallback] = {}
        self._queue: deque[tuple[str, str]] = deque()
        self._numbers = 0

    def event(self, path: str, token: str) -> None:
        """Queue a call of the watch's callback."""
        self._queue.append((path, token))

    def token(self, callback: WatchCallback) -> str:
        """A token under which `callback` will be called."""
        self._numbers += 1
        token = str(self._numbers)
        self._callbacks[token] = callback
        return token

    def forget(self, token: str) -> None:
        """The watch is gone: events still queued for it are not delivered."""
        del self._callbacks[token]

    def deliver(self) -> None:
        """Call the callbacks of all queued events, including those the callbacks cause."""
        for _ in range(_BURST):
            if not self._queue:
                return
            path, token = self._queue.popleft()
            callback = self._callbacks.get(token)
            if callback is not None:
                callback(path)
        raise RuntimeError("watch callbacks of the firmware keep setting each other off")
