"""Messages of the store: a header of four words and a payload (`xsd_sockmsg` in io/xs_wire.h)."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from firmware.abi import io_xs_wire as xs

_HEADER: Final = xs.xsd_sockmsg.w64.codec
_NUMBER: Final = re.compile(r"\s*([+-]?[0-9]{1,20})")


class ProtocolError(Exception):
    """A message announces more payload than the protocol allows; where the next one starts is unknown."""


class Message(NamedTuple):
    """One request, reply or event."""

    kind: int
    request: int
    transaction: int
    payload: bytes

    def pack(self) -> bytes:
        """The bytes on the ring."""
        return _HEADER.pack(self.kind, self.request, self.transaction, len(self.payload)) + self.payload


class Framer:
    """Puts messages together from pieces of any size; never holds more than one."""

    __slots__ = ("_buffer", "wanted")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.wanted: int = _HEADER.size
        """Bytes missing until the next step; never 0."""

    def feed(self, piece: bytes) -> Message | None:
        """Take up to `wanted` bytes; the message they complete, if any. ProtocolError: see there."""
        buffer = self._buffer
        buffer += piece
        self.wanted -= len(piece)
        if self.wanted:
            return None
        kind, request, transaction, length = _HEADER.unpack_from(buffer)
        if length > xs.XENSTORE_PAYLOAD_MAX:
            raise ProtocolError
        self.wanted = _HEADER.size + length - len(buffer)
        if self.wanted:
            return None
        message = Message(kind, request, transaction, bytes(buffer[_HEADER.size :]))
        self.clear()
        return message

    def clear(self) -> None:
        """Forget a message begun."""
        self._buffer.clear()
        self.wanted = _HEADER.size


def strings(payload: bytes) -> list[str]:
    """The strings of a payload that end with a nul; what follows the last nul does not count."""
    return payload.decode("latin-1").split("\0")[:-1]


def number(text: str) -> int:
    """What C's `atoi`, taken as an unsigned 32-bit number, makes of a text: 0 when it is none."""
    match = _NUMBER.match(text)
    return int(match[1]) & 0xFFFF_FFFF if match else 0


def encode(*texts: str) -> bytes:
    """Texts as a payload, a nul after each."""
    return "".join(f"{text}\0" for text in texts).encode("latin-1")
