"""A console as text to search: decoded, line ends made plain, matched across the borders of chunks."""

from __future__ import annotations

import codecs
import re
from typing import Final

from xenpy.errors import BadInputError

KEPT: Final = 1 << 20
"""Characters kept for searching. What is older can no longer be matched."""
SLACK: Final = 1 << 18
"""How far past `KEPT` the text may grow before its start is dropped, so that dropping is rare."""


def compile_pattern(pattern: str, what: str = "the pattern") -> re.Pattern[str]:
    """Compile a user's regular expression; `^` and `$` are the ends of lines. BadInputError names `what`."""
    try:
        return re.compile(pattern, re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadInputError(f"{what} {pattern!r} is no regular expression: {error}") from error


class ConsoleText:
    """What a console has said so far, as text, and how much of it a search has used up.

    UTF-8 is decoded as it comes, bytes that are none become U+FFFD, and a carriage return in front of a line
    feed is dropped (consoles send both), so that `$` means what it looks like.
    """

    __slots__ = ("_decoder", "_held", "_start", "_text", "dropped")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._text = ""
        self._start = 0
        self.dropped = 0
        """Characters dropped from the start of the text since the beginning."""

    @property
    def text(self) -> str:
        """The text kept, oldest first."""
        return self._text

    def append(self, data: bytes) -> None:
        """More of the console's bytes."""
        fresh = self._held + self._decoder.decode(data)
        self._held = "\r" if fresh.endswith("\r") else ""
        self._text += fresh.removesuffix("\r").replace("\r\n", "\n")
        surplus = len(self._text) - KEPT
        if surplus > SLACK:
            self._text = self._text[surplus:]
            self._start = max(0, self._start - surplus)
            self.dropped += surplus

    def search(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """The first match after the last match found; what comes before its end is used up."""
        match = pattern.search(self._text, self._start)
        if match is not None:
            self._start = match.end()
        return match

    def tail(self, lines: int = 10) -> str:
        """The last lines, for a message."""
        return "\n".join(self._text.rstrip("\n").split("\n")[-lines:])


class Watch:
    """Waits for one pattern on a console that speaks in chunks; searches only when something new was said."""

    __slots__ = ("_pattern", "_seen", "match", "text")

    def __init__(self, text: ConsoleText, pattern: re.Pattern[str]) -> None:
        self.text = text
        self._pattern = pattern
        self._seen = -1
        self.match: re.Match[str] | None = None

    def __call__(self) -> bool:
        """Whether the pattern has matched."""
        if self.match is None:
            length = self.text.dropped + len(self.text.text)
            if length != self._seen:
                self._seen = length
                self.match = self.text.search(self._pattern)
        return self.match is not None
