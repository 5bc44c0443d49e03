"""The measured numbers beside what is promised: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

MIB: Final = 1 << 20


@dataclass(frozen=True)
class Promise:
    """A number that must not be exceeded; with `at_least`, one that must be reached."""

    name: str
    limit: float
    measured: float
    unit: str
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """The measured number is within the limit."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass
class Report:
    """Everything one run of the benchmark found."""

    promises: list[Promise] = field(default_factory=list)
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    """Contender -> step -> median host seconds."""
    growth: dict[str, dict[int, float]] = field(default_factory=dict)
    """What is measured -> what it grows with -> the number."""
    numbers: dict[str, Any] = field(default_factory=dict)
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    """The host's load before anything was measured: programs that shared the processors with us."""
    notes: list[str] = field(default_factory=list)
    """Sentences that are printed below the tables."""
    failures: list[str] = field(default_factory=list)
    """Sentences about what could not be measured."""

    def promise(self, name: str, limit: float, measured: float, unit: str = "") -> None:
        """Hold a measured number against its limit."""
        self.promises.append(Promise(name, limit, measured, unit))

    def promise_least(self, name: str, limit: float, measured: float, unit: str = "") -> None:
        """Hold a measured number against what it has to reach."""
        self.promises.append(Promise(name, limit, measured, unit, at_least=True))

    @property
    def good(self) -> bool:
        """All was measured, every promise is kept."""
        return not self.failures and all(promise.kept for promise in self.promises)

    def write(self, path: Path) -> None:
        """Write the JSON form."""
        content = {
            "host": {"cpu": cpu_model(), "cpus": os.cpu_count(), "load": self.load,
                     "python": platform.python_version(), "system": platform.platform()},
            "steps": self.steps,
            "numbers": self.numbers,
            "promises": [asdict(promise) | {"kept": promise.kept} for promise in self.promises],
            "failures": self.failures,
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def print(self, console: Console) -> None:
        """Print the tables."""
        if self.steps:
            console.print(steps_table(self.steps))
        if self.promises:
            console.print(promises_table(self.promises))
        for name, numbers in self.growth.items():
            each = ", ".join(f"{size}: {number:.2f}" for size, number in numbers.items())
            console.print(f"{name}: {each}", markup=False, highlight=False)
        for note in self.notes:
            console.print(note, markup=False, highlight=False)
        console.print(f"on {cpu_model()}, {os.cpu_count()} CPUs, load {self.load:.1f} at the start",
                      markup=False, highlight=False)
        for failure in self.failures:
            console.print(f"not measured: {failure}", markup=False, highlight=False)


def steps_table(steps: Mapping[str, Mapping[str, float]]) -> Table:
    """Steps down, contenders across, then the first one's ratio to each other."""
    names = list(steps)
    table = Table(title="Debian and the fixed workload, host seconds (medians)", title_justify="left")
    table.add_column("step")
    for name in names:
        table.add_column(name, justify="right")
    for name in names[1:]:
        table.add_column(f"{names[0]} / {name}", justify="right")
    for step, seconds in steps[names[0]].items():
        others = [steps[name][step] for name in names[1:]]
        table.add_row(step, *(f"{value:.2f}" for value in (seconds, *others)),
                      *(f"{seconds / other:.2f}" for other in others))
    return table


def promises_table(promises: list[Promise]) -> Table:
    """One row a promise."""
    table = Table(title="Promises", title_justify="left")
    for column in ("what", "measured", "limit", ""):
        table.add_column(column, justify="left" if column == "what" else "right")
    for promise in promises:
        verdict = "kept" if promise.kept else "[bold red]broken[/]"
        table.add_row(promise.name, f"{promise.measured:.2f} {promise.unit}".strip(),
                      f"{'>=' if promise.at_least else '<='} {promise.limit:g} {promise.unit}".strip(),
                      verdict)
    return table


def cpu_model() -> str:
    """What the host calls its processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
