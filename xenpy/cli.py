"""The command `xenpy`: the guard around its commands.

Whatever happens inside, the terminal gets one line and the shell one of the exit statuses of `xenpy.errors`:
never a traceback, never a half-closed pipe's complaint. Everything else is loaded inside the guard, so that
`--help` is quick and the earliest ctrl-C is caught.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # what typing has, without loading it
if TYPE_CHECKING:
    from collections.abc import Sequence

REPORT_HINT = "please report it with this file and the image"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (the process's own when None); its exit status."""
    try:
        status = _guarded(list(sys.argv[1:] if arguments is None else arguments))
        if arguments is None:
            _ignore_interrupts()
    except KeyboardInterrupt:
        from xenpy.errors import ExitStatus

        return say("interrupted", ExitStatus.INTERRUPTED)
    return status


def say(message: str, status: int) -> int:
    """One line on stderr, whatever state it is in; `status` again."""
    try:  # noqa: SIM105 - contextlib is not loaded yet
        os.write(2, f"xenpy: {' '.join(message.split())}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass
    return status


def _guarded(arguments: list[str]) -> int:
    from xenpy.errors import ExitStatus, XenpyError

    try:
        _require_stdout()
        from xenpy.commands import run

        return run(arguments)
    except XenpyError as error:
        return say(str(error), error.status)
    except MemoryError:
        return say("the host has not enough memory; try a smaller --memory", ExitStatus.FAULT)
    except Exception as error:  # noqa: BLE001 - the last guard: whatever it is becomes a report
        return say(_fault(error, arguments), ExitStatus.FAULT)


def _ignore_interrupts() -> None:
    """The work is done: a ctrl-C while the interpreter shuts down has nothing left to stop."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _require_stdout() -> None:
    """A descriptor 1 that is closed would be given to the next file opened: refuse it first."""
    from xenpy.errors import BadInputError, reason_of

    try:
        os.fstat(1)
    except OSError as error:
        raise BadInputError(f"stdout: {reason_of(error)}; redirect it to a file or to /dev/null") from error


def _fault(error: Exception, arguments: list[str]) -> str:
    """Put the traceback of a fault of ours into a file; the line that says so."""
    import platform
    import shlex
    import tempfile
    import traceback

    from xenpy import __version__
    from xenpy.errors import reason_of

    what = f"internal fault: {type(error).__name__}: {error}"
    text = "".join([
        f"xenpy {__version__}, Python {platform.python_version()}, {platform.platform()}\n",
        f"command: xenpy {shlex.join(arguments)}\n\n",
        *traceback.format_exception(error),
    ])
    try:
        with tempfile.NamedTemporaryFile("w", prefix="xenpy-fault-", suffix=".txt", delete=False) as file:
            file.write(text)
    except OSError as failure:
        return f"{what}; its details could not be written ({reason_of(failure)}); set TMPDIR and run it again"
    return f"{what}; details are in {file.name}; {REPORT_HINT}"
