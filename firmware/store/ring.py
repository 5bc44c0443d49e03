"""The page a guest shares with the store: two rings of bytes and their indices (`xenstore_domain_interface`).

The guest may write anything at any place of the page at any time; each index is read once and checked before
use.
"""

from __future__ import annotations

from typing import Final, Protocol

from firmware.abi import io_xs_wire as xs

_LAYOUT: Final = xs.xenstore_domain_interface.w64.offset
_SIZE: Final = xs.XENSTORE_RING_SIZE
_MASK: Final = _SIZE - 1
_U32: Final = 0xFFFF_FFFF
_EMPTY: Final = b"\xff" * _SIZE
"""Rings are left full of a message type that is guaranteed never to be one (XS_INVALID)."""

FEATURES: Final = xs.XENSTORE_SERVER_FEATURE_RECONNECTION | xs.XENSTORE_SERVER_FEATURE_ERROR


class Memory(Protocol):
    """What a ring needs of the machine's memory: views to read, functions to write."""

    @property
    def b(self) -> memoryview:
        """All bytes."""

    @property
    def d(self) -> memoryview:
        """All 32-bit words."""

    def write(self, paddr: int, data: bytes | memoryview, /) -> None:
        """Store bytes."""

    def store32(self, paddr: int, value: int, /) -> None:
        """Store an aligned word."""


class RingError(Exception):
    """The guest's indices make no sense: more than a ring full."""


class SharedRing:
    """The rings in the page at machine address `paddr`."""

    __slots__ = ("_memory", "_paddr", "_words")

    def __init__(self, memory: Memory, paddr: int) -> None:
        self._memory = memory
        self._paddr = paddr
        self._words = {name: (paddr + offset) >> 2 for name, offset in _LAYOUT.items()}

    def open(self) -> None:
        """Say what this server can do and that it is there."""
        self._set("server_features", FEATURES)
        self._set("error", xs.XENSTORE_ERROR_NONE)
        self._set("connection", xs.XENSTORE_CONNECTED)

    def reset(self) -> None:
        """Empty both rings and say so: the end of a reconnection."""
        for index in ("req_cons", "req_prod", "rsp_cons", "rsp_prod"):
            self._set(index, 0)
        for ring in ("req", "rsp"):
            self._memory.write(self._paddr + _LAYOUT[ring], _EMPTY)
        self.open()

    def fail(self, error: int) -> None:
        """Tell the guest why it is no longer served (XENSTORE_ERROR_*)."""
        self._set("error", error)

    @property
    def reconnecting(self) -> bool:
        """True when the guest asks to begin anew."""
        return self._get("connection") != xs.XENSTORE_CONNECTED

    def read(self, limit: int) -> bytes:
        """Take up to `limit` bytes of requests; RingError."""
        consumer = self._get("req_cons")
        count = min(self._used(consumer, self._get("req_prod")), limit)
        if not count:
            return b""
        start, at = self._paddr + _LAYOUT["req"], consumer & _MASK
        first = min(count, _SIZE - at)
        data = bytes(self._memory.b[start + at : start + at + first])
        if first < count:
            data += bytes(self._memory.b[start : start + count - first])
        self._set("req_cons", consumer + count)
        return data

    def write(self, data: bytes) -> int:
        """Append as much of `data` to the replies as there is room for; how much that was. RingError."""
        producer = self._get("rsp_prod")
        count = min(_SIZE - self._used(self._get("rsp_cons"), producer), len(data))
        if not count:
            return 0
        start, at = self._paddr + _LAYOUT["rsp"], producer & _MASK
        first = min(count, _SIZE - at)
        self._memory.write(start + at, data[:first])
        if first < count:
            self._memory.write(start, data[first:count])
        self._set("rsp_prod", producer + count)
        return count

    @staticmethod
    def _used(consumer: int, producer: int) -> int:
        used = (producer - consumer) & _U32
        if used > _SIZE:
            raise RingError
        return used

    def _get(self, name: str) -> int:
        return int(self._memory.d[self._words[name]])

    def _set(self, name: str, value: int) -> None:
        self._memory.store32(self._words[name] << 2, value & _U32)
