"""What starting costs: seconds to help and to the end of the smallest guest, resident memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Final

from tools.bench import process

LIMIT_S: Final = 60.0

COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "help": ("--help",),
    "hello": ("boot", "builtin:hello"),
    "hello in 4 GiB": ("boot", "builtin:hello", "--memory", "4096"),
}


class CommandError(Exception):
    """A command did not end well."""


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, tuple[float, int]]:
    """Median seconds and the largest resident bytes of each command. Raises CommandError."""
    runs: dict[str, list[process.Run]] = {name: [] for name in COMMANDS}
    for turn in range(1, rounds + 1):
        say(f"start {turn}/{rounds}")
        for name, arguments in COMMANDS.items():
            done = process.run(process.xenpy(*arguments), LIMIT_S)
            if done.status != 0:
                raise CommandError(f"xenpy {' '.join(arguments)}: {done.why()}")
            runs[name].append(done)
    return {name: (statistics.median(run.seconds for run in found), max(run.peak_rss for run in found))
            for name, found in runs.items()}
