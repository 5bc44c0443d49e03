"""The options' types: what a value must be, and the sentence said when it is not."""

from __future__ import annotations

import math
import re
from typing import Any, Final

import click

from xenpy.errors import BadInputError
from xenpy.typing_in import keys_of
from xenpy.watch import compile_pattern


class Seconds(click.ParamType):
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


class Pattern(click.ParamType):
    """A regular expression."""

    name = "regex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> re.Pattern[str]:
        """The compiled pattern."""
        try:
            return value if isinstance(value, re.Pattern) else compile_pattern(value)
        except BadInputError as error:
            self.fail(str(error), param, ctx)


class Keys(click.ParamType):
    """A line to type, with escapes."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """The keys as bytes."""
        try:
            return value if isinstance(value, bytes) else keys_of(value)
        except BadInputError as error:
            self.fail(str(error), param, ctx)


class Shape(click.ParamType):
    """A topology: sockets x cores x threads."""

    name = "SxCxT"
    _form = re.compile(r"[1-9]\d{0,2}x[1-9]\d{0,2}x[1-9]\d{0,2}")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, when it has the form and no more CPUs than a machine can have."""
        if not self._form.fullmatch(value):
            self.fail(f"{value!r} is not sockets x cores x threads; two sockets of four cores are 2x4x1.", param, ctx)
        cpus = math.prod(int(part) for part in value.split("x"))
        if cpus > MAX_CPUS:
            self.fail(f"{value!r} has {cpus} CPUs; a machine has at most {MAX_CPUS}.", param, ctx)
        return str(value)


MAX_CPUS: Final = 128
MAX_VCPUS: Final = 128
MIN_MEMORY_MIB: Final = 4
MAX_MEMORY_MIB: Final = 65536
