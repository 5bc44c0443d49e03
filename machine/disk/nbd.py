"""NbdClient: reads an export of a Network Block Device server over a socket.

Only what reading needs: fixed newstyle negotiation, NBD_OPT_GO for the default export, simple replies.
Numbers and names are those of the NBD project's doc/proto.md; all of them big-endian.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from .medium import Views

NBD_MAGIC: Final = 0x4E42444D41474943
OPTION_MAGIC: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
REPLY_MAGIC: Final = 0x67446698
FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2
OPT_GO: Final = 7
REP_ACK: Final = 1
REP_INFO: Final = 3
INFO_EXPORT: Final = 0
CMD_READ: Final = 0
CMD_DISCONNECT: Final = 2
_MOST_READ: Final = 1 << 25
"""Bytes of one request that every server takes."""
_MOST_OPTION: Final = 1 << 16
_MOST_VIEWS: Final = 1024
_GREETING: Final = struct.Struct(">QQH")
_OPTION: Final = struct.Struct(">IQII IH")
"""Client flags; IHAVEOPT, option, length of the rest; length of the export's name, number of questions."""
_OPTION_REPLY: Final = struct.Struct(">QIII")
_EXPORT: Final = struct.Struct(">HQH")
_REQUEST: Final = struct.Struct(">IHHQQI")
_REPLY: Final = struct.Struct(">IIQ")


class NbdClient:
    """`size`: bytes of the export. What the server does wrong is an OSError."""

    __slots__ = ("_cookie", "_socket", "size")

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._cookie = 0
        self.size = self._negotiate()

    def _negotiate(self) -> int:
        magic, option, flags = _GREETING.unpack(self._receive(_GREETING.size))
        if magic != NBD_MAGIC or option != OPTION_MAGIC or not flags & FIXED_NEWSTYLE:
            raise _broken("greeting")
        flags &= FIXED_NEWSTYLE | NO_ZEROES
        self._socket.sendall(_OPTION.pack(flags, OPTION_MAGIC, OPT_GO, 6, 0, 0))
        size = -1
        while True:
            magic, option, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            if magic != OPTION_REPLY_MAGIC or option != OPT_GO or length > _MOST_OPTION:
                raise _broken("answer to an option")
            data = self._receive(length)
            if kind == REP_ACK and size >= 0:
                return size
            if kind != REP_INFO:
                raise _broken(f"answer {kind:#x} to an option")
            if length == _EXPORT.size and data[:2] == INFO_EXPORT.to_bytes(2, "big"):
                _, size, _ = _EXPORT.unpack(data)

    def read_into(self, offset: int, views: Views) -> None:
        """Fill the views from byte `offset` on."""
        part: list[memoryview] = []
        length = 0
        for view in views:
            if part and (length + view.nbytes > _MOST_READ or len(part) == _MOST_VIEWS):
                self._read(offset, length, part)
                offset += length
                part, length = [], 0
            part.append(view)
            length += view.nbytes
        if part:
            self._read(offset, length, part)

    def _read(self, offset: int, length: int, views: list[memoryview]) -> None:
        self._cookie += 1
        self._socket.sendall(_REQUEST.pack(REQUEST_MAGIC, 0, CMD_READ, self._cookie, offset, length))
        magic, error, cookie = _REPLY.unpack(self._receive(_REPLY.size))
        if magic != REPLY_MAGIC or cookie != self._cookie:
            raise _broken("reply")
        if error:
            raise OSError(errno.EIO, f"the block server answered error {error}")
        for view in views:
            self._fill(view)

    def close(self) -> None:
        """Say good-bye."""
        try:
            self._socket.sendall(_REQUEST.pack(REQUEST_MAGIC, 0, CMD_DISCONNECT, 0, 0, 0))
        except OSError:
            pass  # It has gone before us.
        finally:
            self._socket.close()

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        self._fill(memoryview(data))
        return bytes(data)

    def _fill(self, view: memoryview) -> None:
        while view.nbytes:
            got = self._socket.recv_into(view)
            if not got:
                raise OSError(errno.EIO, "the block server hung up")
            view = view[got:]


def _broken(what: str) -> OSError:
    return OSError(errno.EIO, f"the block server's {what} makes no sense")
