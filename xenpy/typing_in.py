"""What `--input` types, and when.

Each TEXT is typed as a line, one after the other. The next one is typed when the guest waits: it has said
something, its input ring is empty, nothing has come from its console for a while, and all its vCPUs were
blocked at each of the last looks. A guest that never blocks (a boot loader polls for keys) gets its line
after a longer silence, and one that sleeps and does not read gets no more. All of it is virtual time: the
same command types at the same moment in every run.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from xenpy.errors import BadInputError

LOOK_NS: Final = 20_000_000
"""Virtual time between two looks at the guest."""
IDLE_LOOKS: Final = 15
"""Looks in a row that must find the guest silent and blocked (0.3 s)."""
SILENT_LOOKS: Final = 75
"""Looks in a row that must find it silent when it is busy (1.5 s)."""

UNREAD_LOOKS: Final = 3000
"""Looks in a row that find it blocked on unread input before the typist gives up (60 s)."""

_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.)|$)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "e": "\x1b", "b": "\b", "0": "\0", "\\": "\\"}
_NO_NEWLINE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\c$")


def keys_of(text: str) -> bytes:
    r"""The keys of one `--input TEXT`: `\n \r \t \e \b \0 \\ \xHH` as in C, UTF-8, and a line feed unless it
    ends in `\c`. BadInputError for any other escape.
    """
    ending = "\n"
    if _NO_NEWLINE.search(text):
        text, ending = text[:-2], ""
    keys = bytearray()
    at = 0
    for match in _ESCAPE.finditer(text):
        keys += text[at:match.start()].encode("utf-8", "surrogateescape")
        at = match.end()
        if match[1]:
            keys.append(int(match[1], 16))
        elif match[2] in _ESCAPES:
            keys += _ESCAPES[match[2]].encode()
        else:
            raise BadInputError(f"--input {text!r}: {match[0]!r} is no escape; write \\\\ for a backslash")
    keys += text[at:].encode("utf-8", "surrogateescape")
    return bytes(keys) + ending.encode()


class Keyboard(Protocol):
    """A console as the typist uses it."""

    said: int
    """Bytes it has said since the beginning."""

    @property
    def unread(self) -> int:
        """Bytes typed that the guest has not read yet."""

    def send(self, keys: bytes) -> None:
        """Type keys."""


class Typist:
    """Types the lines of `--input`; call `look` every `LOOK_NS` of virtual time."""

    __slots__ = ("_asleep", "_blocked", "_console", "_lines", "_said", "_silent", "_unread")

    def __init__(self, console: Keyboard, asleep: Callable[[], bool], lines: Sequence[bytes]) -> None:
        self._console = console
        self._asleep = asleep
        self._lines = deque(lines)
        self._said = 0
        self._silent = 0
        self._blocked = 0
        self._unread = 0

    @property
    def left(self) -> int:
        """How many lines have not been typed."""
        return len(self._lines)

    def look(self) -> bool:
        """Type the next line if the guest waits for one; whether to look again."""
        console = self._console
        said = console.said
        waiting = self._asleep()
        if said != self._said or not said or console.unread:
            self._unread = self._unread + 1 if waiting and said == self._said else 0
            self._said, self._silent, self._blocked = said, 0, 0
            return self._unread < UNREAD_LOOKS
        self._unread = 0
        self._silent += 1
        self._blocked = self._blocked + 1 if waiting else 0
        if self._blocked >= IDLE_LOOKS or self._silent >= SILENT_LOOKS:
            console.send(self._lines.popleft())
            self._silent = self._blocked = 0
        return bool(self._lines)
