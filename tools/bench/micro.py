"""Microseconds per trap: the processor time of 2N rounds less that of N, over N.

One thread does it all and nothing is waited for: this is the wall time of a host with nothing else to do.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tools.bench import process
from tools.bench.loops import LOOPS

COUNT: Final = 100_000
LIMIT_S: Final = 120.0

IRET_INSIDE: Final = frozenset({"syscall", "page fault"})
"""Loops whose round is a bounce and an iret; the bounce is what is left without the iret."""

NAMES: Final = {"hypercall": "hypercall round trip", "iret": "iret", "syscall": "syscall bounce",
                "page fault": "page fault bounce"}


class LoopError(Exception):
    """A loop did not come to its end."""


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    """Microseconds by name, the median of `rounds` rounds. Raises LoopError."""
    each: dict[str, list[float]] = {name: [] for name in LOOPS}
    with tempfile.TemporaryDirectory(prefix="xenpy-bench-") as scratch:
        place = Path(scratch)
        images = {}
        for name, build in LOOPS.items():
            for count in (COUNT, 2 * COUNT):
                images[name, count] = place / f"{name.replace(' ', '-')}-{count}.elf"
                images[name, count].write_bytes(build(count))
        for turn in range(1, rounds + 1):
            say(f"traps {turn}/{rounds}")
            for name, found in each.items():
                once = _seconds(images[name, COUNT])
                twice = _seconds(images[name, 2 * COUNT])
                found.append((twice - once) / COUNT * 1e6)
    return bounces({name: statistics.median(found) for name, found in each.items()})


def bounces(loops: dict[str, float]) -> dict[str, float]:
    """The costs by the names of the report: the iret inside a loop is taken off."""
    return {NAMES[name]: us - (loops["iret"] if name in IRET_INSIDE else 0.0) for name, us in loops.items()}


def _seconds(image: Path) -> float:
    done = process.run(process.xenpy("boot", str(image), "--memory", "16"), LIMIT_S)
    if done.status != 0 or "done" not in (line.text for line in done.lines):
        raise LoopError(f"{image.stem}: {done.why()}")
    return done.cpu_seconds
