"""The user's terminal while a guest has it: raw, and given back whatever happens."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import termios
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final

ESCAPE: Final = 0x1D
"""Ctrl-], as in `xl console` and telnet."""
READ_SIZE: Final = 4096

_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6
"""Indices into what `termios.tcgetattr` returns."""


class Terminal:
    """A terminal in raw mode: every key goes to the guest, save the escape key. A context manager.

    The old modes come back on leaving, at interpreter exit, and by `restore`, which a signal handler may
    call.
    """

    __slots__ = ("_descriptor", "_old", "detached")

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._old: list[Any] | None = None
        self.detached = False
        """The escape key was pressed, or the terminal hung up."""

    def __enter__(self) -> Terminal:
        self._old = termios.tcgetattr(self._descriptor)
        atexit.register(self.restore)
        termios.tcsetattr(self._descriptor, termios.TCSANOW, _raw(self._old))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.restore()

    @property
    def raw(self) -> bool:
        """Whether it is in raw mode now: a line feed alone does not return the carriage."""
        return self._old is not None

    def restore(self) -> None:
        """Give the terminal its old modes back. Safe at any time and any number of times."""
        old, self._old = self._old, None
        if old is not None:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(self._descriptor, termios.TCSANOW, old)
            atexit.unregister(self.restore)

    def keys(self, timeout: float | None = 0.0, others: Sequence[int] = ()) -> bytes:
        """The keys pressed; waits up to `timeout` host seconds for the first (None: for ever), or until one
        of the other descriptors can be read.
        """
        if self.detached or self._descriptor not in select.select([self._descriptor, *others], [], [],
                                                                  timeout)[0]:
            return b""
        try:
            data = os.read(self._descriptor, READ_SIZE)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        end = data.find(ESCAPE)
        self.detached = end >= 0 or not data
        return data if end < 0 else data[:end]


def _raw(modes: list[Any]) -> list[Any]:
    """`modes` made raw, as cfmakeraw(3) does."""
    raw = list(modes)
    raw[_IFLAG] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR
                     | termios.IGNCR | termios.ICRNL | termios.IXON)
    raw[_OFLAG] &= ~termios.OPOST
    raw[_CFLAG] = (raw[_CFLAG] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
    raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[_CC] = list(modes[_CC])
    raw[_CC][termios.VMIN] = 1
    raw[_CC][termios.VTIME] = 0
    return raw


class Pacer:
    """Makes a guest's idle time last: `sleep 1` takes a second, and a busy guest runs free.

    The idle time that passed since the last call, less the host time that passed, is what the host still
    owes. The guest cannot see any of it: its clock is the virtual one.
    """

    __slots__ = ("_busy_ns", "_debt", "_host", "_now", "_virtual")

    def __init__(self, virtual_ns: int, busy_ns: int, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._virtual = virtual_ns
        self._busy_ns = busy_ns
        self._host = now()
        self._debt = 0.0

    def owed(self, virtual_ns: int, busy_ns: int) -> float:
        """Host seconds to wait, given the virtual time and how much of it was work, both so far."""
        host = self._now()
        idle = max(0, (virtual_ns - self._virtual) - (busy_ns - self._busy_ns))
        self._debt = max(0.0, self._debt + idle / 1e9 - (host - self._host))
        self._virtual, self._busy_ns, self._host = virtual_ns, busy_ns, host
        return self._debt
