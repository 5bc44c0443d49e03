"""The options' types: what a value must be, and the sentence said when it is not."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

import click

from xenpy.errors import BadInputError
from xenpy.typing_in import keys_of
from xenpy.watch import compile_pattern

if TYPE_CHECKING:
    from machine.faults import Fault
    from machine.topology import Topology
    from xenpy.diskspec import DiskSpec

MAX_CPUS: Final = 256
"""What `machine.topology` allows; that module loads the whole machine, and `--help` must not."""
MAX_VCPUS: Final = 128
"""What the interface of a PV guest has room for."""
MIN_MEMORY_MIB: Final = 4
MAX_MEMORY_MIB: Final = 65536


class Seconds(click.ParamType[float]):
    """A positive, finite number of seconds."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A float, from text or as it is."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            self.fail(f"{value!r} is no positive number of seconds.", param, ctx)
        return seconds


class Pattern(click.ParamType[re.Pattern[str]]):
    """A regular expression."""

    name = "regex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None,
                ) -> re.Pattern[str]:
        """The compiled pattern."""
        try:
            return value if isinstance(value, re.Pattern) else compile_pattern(value)
        except BadInputError as error:
            self.fail(str(error), param, ctx)


class Keys(click.ParamType[bytes]):
    """A line to type, with escapes."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """The keys as bytes."""
        try:
            return value if isinstance(value, bytes) else keys_of(value)
        except BadInputError as error:
            self.fail(str(error), param, ctx)


class Settings(click.ParamType[dict[str, str]]):
    """Parameters written NAME=VALUE,NAME=VALUE."""

    name = "settings"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None,
                ) -> dict[str, str]:
        """The words before and after each `=`; whether they mean anything is for the scheduler to say."""
        if isinstance(value, dict):
            return value
        found = {}
        for part in value.split(","):
            name, equals, text = part.partition("=")
            if not equals or not name.strip() or not text.strip():
                self.fail(f"{value!r} is not like weight=512,cap=50.", param, ctx)
            found[name.strip()] = text.strip()
        return found


class SchedulerChoice(click.ParamType[tuple[str, dict[str, str]]]):
    """A scheduler, with parameters if any: NAME or NAME:PARAMETER=VALUE,..."""

    name = "scheduler"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None,
                ) -> tuple[str, dict[str, str]]:
        """Its name and the parameters' words."""
        if isinstance(value, tuple):
            return value
        name, colon, rest = value.partition(":")
        return name, Settings().convert(rest, param, ctx) if colon else {}


class DiskChoice(click.ParamType["DiskSpec"]):
    """A disk in the words of xl-disk-configuration."""

    name = "disk"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DiskSpec:
        """What the words say."""
        from xenpy.diskspec import DiskSpec

        try:
            return value if isinstance(value, DiskSpec) else DiskSpec.parse(value)
        except BadInputError as error:
            self.fail(str(error), param, ctx)


class CacheSize(click.ParamType[int]):
    """How large the disks' cache is: on, off, or MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """MiB."""
        from firmware.hypervisor import CACHE_MIB

        words = {"on": CACHE_MIB, "off": 0}
        if isinstance(value, int):
            return value
        if value in words:
            return words[value]
        if not value.isdecimal() or not 0 < int(value) <= MAX_MEMORY_MIB:
            self.fail(f"{value!r} is not on, off, or 1 to {MAX_MEMORY_MIB} MiB.", param, ctx)
        return int(value)


class FaultChoice(click.ParamType["Fault"]):
    """A fault of a disk: POINT or POINT:NAME=VALUE,..."""

    name = "fault"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Fault:
        """The fault, if there is such a one."""
        from machine.faults import Fault, FaultError

        try:
            return value if isinstance(value, Fault) else Fault.parse(value)
        except FaultError as error:
            self.fail(str(error), param, ctx)


class Shape(click.ParamType["Topology"]):
    """A topology: sockets x cores x threads."""

    name = "SxCxT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Topology:
        """The topology, if a machine can have it."""
        from machine.topology import Topology

        try:
            return value if isinstance(value, Topology) else Topology.parse(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
