"""A process that has pytest loaded and runs tests in children of its own: so each run starts at once.

One request a line on its standard input, one answer a line on its standard output, both JSON. Nothing of the
project is loaded here, so that every child finds the sources as they are then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile

import hypothesis.stateful  # noqa: F401
import numpy as np  # noqa: F401
import pytest

LOADED = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
"""That hypothesis is loaded already is meant."""


def run(arguments: list[str], limit: int, *, compiled: bool) -> tuple[int, str]:
    """pytest's exit code (or a negative signal number) and output; SIGALRM after `limit` seconds."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            signal.alarm(limit)
            sys.dont_write_bytecode = not compiled
            code = int(pytest.ExitCode.INTERNAL_ERROR)
            try:
                code = int(pytest.main([*arguments, *LOADED]))
            finally:
                sys.stdout.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return code, output.read().decode(errors="replace")


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        code, output = run(request["arguments"], request["limit"], compiled=request["compiled"])
        sys.stdout.write(json.dumps({"code": code, "output": output}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
