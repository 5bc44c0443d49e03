"""What the fixed workload prints (`tools/workload/init`): its steps by the host's clock, and its answers."""

from __future__ import annotations

import re
from typing import Final

from tools.bench.process import Line

MARK: Final = re.compile(r"MARK (?P<name>.+) uptime=[0-9.]+$")

STEPS: Final[tuple[tuple[str, str | None, str], ...]] = (
    ("userspace up", None, "userspace up"),
    ("sha256", "sha256 begin", "sha256 end"),
    ("shell loop", "shloop begin", "shloop end"),
    ("200 forks", "forks begin", "forks end"),
    ("pipes", "pipes begin", "pipes end"),
    ("procsum", "procsum begin", "procsum end"),
    ("all done", None, "all done"),
)
"""A step, the mark it starts at (None: the start of the process), the mark it ends at."""

ANSWERS: Final = (
    "3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351  -",
    "shloop s=46914",
    "pipes n=950",
)
"""Lines of a correct run: sha256 of 64 MiB of zeros, a sum of shell arithmetic, lines counted by grep."""


class WorkloadError(Exception):
    """The workload did not run as it must; the text says what is missing."""


def steps(lines: list[Line]) -> dict[str, float]:
    """Host seconds of each step. Raises WorkloadError when a mark or an answer is missing."""
    marks: dict[str, float] = {}
    for line in lines:
        if match := MARK.search(line.text):
            marks.setdefault(match["name"], line.seconds)
    printed = {line.text.rpartition("\r")[2] for line in lines}
    missing = [answer for answer in ANSWERS if answer not in printed]
    missing += [name for _, *ends in STEPS for name in ends if name is not None and name not in marks]
    if missing:
        raise WorkloadError(f"the workload did not print {missing[0]!r}")
    return {step: marks[end] - (marks[begin] if begin is not None else 0.0) for step, begin, end in STEPS}
