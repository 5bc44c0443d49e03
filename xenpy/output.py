"""Where a run's words go: the guest's console to stdout, everything else to stderr, both to a log file."""

from __future__ import annotations

import io
import os
import select
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

from xenpy.errors import BadInputError, reason_of

ATOMIC: Final = 4096
"""A pipe that select(2) calls writable takes this much without blocking (PIPE_BUF)."""
LONGEST_LINE: Final = 4096
"""A console line longer than this is logged in pieces."""
PATIENCE_S: Final = 0.2
"""How long to wait for a reader before looking at the signals again."""


class ConsoleSink:
    """Bytes to a descriptor as they are. A failure is noted, to look at between slices: no exception in a
    trap.
    """

    __slots__ = ("_descriptor", "_give_up", "_gone", "failure")

    def __init__(self, descriptor: int, give_up: Callable[[], bool]) -> None:
        self._descriptor = descriptor
        self._give_up = give_up
        self._gone = False
        self.failure: OSError | None = None

    def write(self, data: bytes) -> None:
        """Write all of it, unless it fails or `give_up` turns true while its reader keeps it waiting.

        After either nothing more is written.
        """
        if self._gone:
            return
        left = memoryview(data)
        try:
            while left:
                if select.select([], [self._descriptor], [], PATIENCE_S)[1]:
                    left = left[os.write(self._descriptor, left[:ATOMIC]):]
                elif self._give_up():
                    self._gone = True
                    return
        except OSError as error:
            self.failure = error
            self._gone = True

    def check(self) -> None:
        """Raise BadInputError if a write has failed."""
        if self.failure is not None:
            raise BadInputError(f"stdout: {reason_of(self.failure)}") from self.failure


def show(text: str) -> None:
    """Write a command's own words to stdout; BadInputError when that cannot be."""
    sink = ConsoleSink(1, lambda: False)
    sink.write(text.encode("utf-8", "surrogateescape"))
    sink.check()


def open_output(path: Path, option: str) -> io.FileIO:
    """Open a file that an option names for writing, before the run; BadInputError when that cannot be."""
    try:
        return io.FileIO(path, "w")
    except (OSError, ValueError) as error:
        why = reason_of(error) if isinstance(error, OSError) else str(error)
        raise BadInputError(f"{option} {path}: {why}; name a file that can be written") from error


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of it, at once: nothing is left to fail when the file is closed. Raises OSError."""
    left = memoryview(data)
    while left:
        left = left[file.write(left):]


class RunLog:
    """A log of the run: each console line and each message with its virtual time in seconds.

    Two runs of one machine give the same log, byte for byte. A context manager. A failure is noted and
    raised at the end.
    """

    __slots__ = ("_failure", "_file", "_lines", "_now", "_path")

    def __init__(self, path: Path, now_ns: Callable[[], int]) -> None:
        self._path = path
        self._file = open_output(path, "--log")
        self._now = now_ns
        self._lines: dict[str, bytearray] = {}
        self._failure: OSError | None = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def console(self, guest: str, data: bytes) -> None:
        """More of a guest's console; whole lines are logged when they end."""
        line = self._lines.setdefault(guest, bytearray())
        line += data
        if b"\n" in data or len(line) > LONGEST_LINE:
            *whole, rest = line.split(b"\n")
            if len(rest) > LONGEST_LINE:
                whole.append(rest)
                rest = bytearray()
            self._lines[guest] = rest
            for text in whole:
                self._write(guest, text)

    def message(self, text: str) -> None:
        """A line of the hypervisor or of xenpy."""
        for line in text.splitlines():
            self._write("xenpy", line.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Log unfinished lines and close the file; BadInputError when some of it could not be written."""
        for guest, rest in self._lines.items():
            if rest:
                self._write(guest, rest)
        self._lines.clear()
        self._file.close()
        if self._failure is not None:
            raise BadInputError(f"--log {self._path}: {reason_of(self._failure)}") from self._failure

    def _write(self, source: str, line: bytes | bytearray) -> None:
        text = line.decode("utf-8", "backslashreplace").rstrip("\r")
        if self._failure is None:
            try:
                write_all(self._file, f"[{self._now() / 1e9:13.6f}] {source}: {text}\n".encode())
            except OSError as error:
                self._failure = error
