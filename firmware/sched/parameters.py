"""The parameters of scheduling policies: each with its unit, default and range, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Value = int | bool | str
"""What a parameter can be."""


class ParameterError(Exception):
    """A parameter, share or set of CPUs that cannot be, in one sentence."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: a number from `lowest` to `highest` in `unit`, one of `choices`, or (with a `default` of
    True or False) a switch.
    """

    name: str
    default: Value
    meaning: str
    unit: str = ""
    lowest: int = 0
    highest: int = (1 << 63) - 1
    choices: tuple[str, ...] = ()

    def check(self, policy: str, value: Value) -> Value:
        """The value itself; ParameterError when it cannot be."""
        whose = f"scheduler {policy!r}: {self.name}"
        if self.choices:
            if value not in self.choices:
                raise ParameterError(f"{whose} is one of {', '.join(self.choices)}, not {value!r}")
            return value
        if isinstance(self.default, bool):
            if value not in (0, 1):
                raise ParameterError(f"{whose} is on (1) or off (0), not {value!r}")
            return bool(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ParameterError(f"{whose} is a whole number, not {value!r}")
        if not self.lowest <= value <= self.highest:
            unit = f" {self.unit}" if self.unit else ""
            raise ParameterError(f"{whose} is {self.lowest} to {self.highest}{unit}, not {value}")
        return value

    def parse(self, policy: str, text: str) -> Value:
        """The value from what someone typed."""
        if self.choices:
            return self.check(policy, text)
        if isinstance(self.default, bool):
            return self.check(policy, SWITCH.get(text.lower(), text))
        try:
            return self.check(policy, int(text, 0))
        except ValueError:
            return self.check(policy, text)


SWITCH: Final = {"on": True, "yes": True, "true": True, "1": True,
                 "off": False, "no": False, "false": False, "0": False}


def defaults(table: Sequence[Parameter]) -> dict[str, Value]:
    """Each parameter's default by its name."""
    return {parameter.name: parameter.default for parameter in table}


def checked(policy: str, table: Sequence[Parameter], values: Mapping[str, Value]) -> dict[str, Value]:
    """The values, each checked. ParameterError for one out of range or that the policy does not have."""
    known = {parameter.name: parameter for parameter in table}
    for name in values:
        if name not in known:
            there = ", ".join(known) or "none"
            raise ParameterError(f"scheduler {policy!r} has no parameter {name!r} there: it has {there}")
    return {name: known[name].check(policy, value) for name, value in values.items()}


def parsed(policy: str, table: Sequence[Parameter], words: Mapping[str, str]) -> dict[str, Value]:
    """The values that someone typed. ParameterError as in `checked`."""
    known = {parameter.name: parameter for parameter in table}
    return checked(policy, table, {
        name: known[name].parse(policy, word) if name in known else word for name, word in words.items()
    })
