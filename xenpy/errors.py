"""What a run can end with: the exit statuses of the command, and the errors that carry one."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class ExitStatus(IntEnum):
    """Exit statuses of the command `xenpy`; 128 + n follows the shell's custom for signal n."""

    DONE = 0
    """The guest powered off (or rebooted, or suspended), or `--until` matched, or the user detached."""
    CRASHED = 1
    """The guest crashed."""
    BAD_INPUT = 2
    """Bad usage, a bad image, or a file that cannot be read or written."""
    LIMIT = 3
    """A time limit, or a guest that waits for something that will never come."""
    FAULT = 4
    """A fault of xenpy itself."""
    INTERRUPTED = 130
    """Ctrl-C."""


SIGNALLED: Final = 128
"""Added to a signal's number, the exit status of a command that it ended."""


class XenpyError(Exception):
    """One line for the person at the keyboard. Everything xenpy raises on purpose derives from it."""

    status: int = ExitStatus.FAULT


class BadInputError(XenpyError):
    """What was given cannot be used; the message names it, says why, and gives the remedy if there is one."""

    status = ExitStatus.BAD_INPUT


class ExpectTimeoutError(XenpyError):
    """`Console.expect` saw the time pass, or the guest end, without a match; shows the console's end."""

    status = ExitStatus.LIMIT


class StoppedError(XenpyError):
    """A signal asked the run to end."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = SIGNALLED + number


def reason_of(error: OSError) -> str:
    """The operating system's reason in one phrase: "No such file or directory"."""
    return error.strerror or str(error)
