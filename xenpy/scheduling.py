"""How the command line says what is scheduled how, and `xenpy schedulers`: the policies' parameters."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from firmware.disk import policies as disk_policies
from firmware.disk.policy import DISK_POLICIES
from firmware.disk.scheduler import DEFAULT_POLICY
from firmware.sched import policies
from firmware.sched.control import Scheduling, cpu_list
from firmware.sched.parameters import Parameter, ParameterError, Value, parsed
from firmware.sched.policy import POLICIES, policy_by_name
from firmware.sched.tunable import Tunable
from machine.machine import SMT_FACTOR
from xenpy.errors import BadInputError, ExitStatus
from xenpy.output import show
from xenpy.schedule import check_path
from xenpy.system import DEFAULT_SCHEDULER


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ParameterError as error:
        raise BadInputError(str(error)) from error


@dataclass(frozen=True)
class SchedulingRequest:
    """How the guest is to be scheduled, in the words of the command line."""

    policy: str = DEFAULT_SCHEDULER
    settings: Mapping[str, str] = field(default_factory=dict)
    share: Mapping[str, str] = field(default_factory=dict)
    affinity: str | None = None
    smt_factor: float = SMT_FACTOR
    trace: Path | None = None

    @classmethod
    def of(cls, policy: tuple[str, Mapping[str, str]] | None, share: Mapping[str, str] | None,
           affinity: str | None, smt_factor: float | None, trace: Path | None) -> SchedulingRequest:
        """From the options, None where one was not given."""
        name, settings = policy or (DEFAULT_SCHEDULER, {})
        return cls(name, settings, share or {}, affinity, SMT_FACTOR if smt_factor is None else smt_factor,
                   None if trace is None else check_path(trace))

    def parsed_settings(self) -> dict[str, Value]:
        """The policy's parameters as values. Raises BadInputError."""
        with _told():
            return parsed(self.policy, policy_by_name(self.policy).SETTINGS, self.settings)

    def wanted(self, cpus: int) -> Scheduling:
        """What the guest is to get on a machine with so many logical CPUs. Raises BadInputError."""
        with _told():
            share = parsed(self.policy, policy_by_name(self.policy).SHARES, self.share)
            return Scheduling(share, hard=None if self.affinity is None else cpu_list(self.affinity, cpus))


LISTS: Final[tuple[tuple[str, Mapping[str, type[Tunable]], str, tuple[str, str]], ...]] = (
    ("Schedulers of CPUs", POLICIES, DEFAULT_SCHEDULER, ("--sched", "--share")),
    ("Schedulers of disks", DISK_POLICIES, DEFAULT_POLICY, ("--disk-sched", "--disk-share")),
)
"""Title, policies, which is used when nothing is said, and the options for its parameters and shares."""
REGISTERED: Final = (policies, disk_policies)
"""Importing these has filled the registries."""


def show_all() -> int:
    """Print every policy with its parameters; the exit status."""
    from rich.console import Console
    from rich.table import Table

    text = io.StringIO()
    console = Console(file=text, highlight=False, width=110)
    for title, registry, usual, options in LISTS:
        console.print(f"[bold]{title}[/]\n")
        for name, made in sorted(registry.items()):
            default = " (unless you say otherwise)" if name == usual else ""
            console.print(f"{name}{default}: {_purpose(made)}")
            table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
            for option, parameters in zip(options, (made.SETTINGS, made.SHARES), strict=True):
                for row in _rows(parameters):
                    table.add_row(f"  {option}", *row)
            if table.row_count:
                console.print(table)
            console.print()
    show(text.getvalue())
    return ExitStatus.DONE


def _purpose(made: type[Tunable]) -> str:
    text = sys.modules[made.__module__].__doc__ or ""
    return " ".join(text.split("\n\n")[0].split())


def _rows(parameters: Sequence[Parameter]) -> Iterator[tuple[str, str, str, str]]:
    for parameter in parameters:
        default, span = str(parameter.default), f"{parameter.lowest} to {parameter.highest}"
        if parameter.choices:
            span = " | ".join(parameter.choices)
        elif isinstance(parameter.default, bool):
            default, span = "on" if parameter.default else "off", "on | off"
        yield parameter.name, f"{default} {parameter.unit}".strip(), span, parameter.meaning
