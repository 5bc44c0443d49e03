"""Signals that ask a run to end. They are noted and looked at between slices of the machine.

An exception raised in the middle of a trap would unwind through native frames; a flag cannot.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final

from xenpy.errors import StoppedError

WORDS: Final = {
    signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal hung up",
}


class Stops:
    """While entered, SIGINT, SIGTERM and SIGHUP only set `requested`; leaving puts the old handlers back."""

    __slots__ = ("_old", "requested")

    def __init__(self) -> None:
        self._old: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}
        self.requested: signal.Signals | None = None

    def __enter__(self) -> Stops:
        for number in WORDS:
            self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 traceback: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number)

    def check(self) -> None:
        """Raise StoppedError if a signal came; its status is 128 + the signal's number."""
        if self.requested is not None:
            raise StoppedError(WORDS[self.requested], self.requested)
