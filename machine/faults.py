"""Faults: what goes wrong in the machine, at named points, reproducibly from a seed.

A device asks at each point whether something goes wrong there. Each fault draws from a generator of its own,
so that one more of them does not move the others.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

DISK_READ: Final = "disk.read"
"""The read ends with EIO; no data moves."""
DISK_WRITE: Final = "disk.write"
"""The write ends with EIO; nothing of it lands."""
DISK_TORN: Final = "disk.torn"
"""The write ends with EIO; some of its first sectors landed."""
DISK_FLUSH: Final = "disk.flush"
"""The flush ends with EIO; nothing is promised."""
DISK_SLOW: Final = "disk.slow"
"""The request, whatever it is, takes `delay_ns` longer."""
DISK_POWER: Final = "disk.power"
"""The power fails as this request finishes: some first sectors of a write have landed, what the drive had not
been told to flush may be lost, and PowerCut stops the machine.
"""

POINTS: Final = (DISK_READ, DISK_WRITE, DISK_TORN, DISK_FLUSH, DISK_SLOW, DISK_POWER)
_DELAY_NS: Final = 1_000_000_000
_LAST: Final = (1 << 63) - 1


class FaultError(Exception):
    """A fault that cannot be, in one sentence for the user."""


class PowerCut(Exception):
    """The power of the emulated machine failed, as a fault asked for."""


@dataclass(frozen=True, slots=True)
class Fault:
    """At `point` of `device` (any, when empty), for what touches one of `first` to `last` (sectors of a disk;
    a request that touches none, such as a flush, always fits): with `probability`, not for the `after` first
    that fit, and at most `times` times.
    """

    point: str
    device: str = ""
    first: int = 0
    last: int = _LAST
    probability: float = 1.0
    after: int = 0
    times: int = _LAST
    delay_ns: int = _DELAY_NS

    def __post_init__(self) -> None:
        if self.point not in POINTS:
            raise FaultError(f"There is no fault {self.point!r}: there are {', '.join(POINTS)}.")
        if not 0.0 <= self.probability <= 1.0:
            raise FaultError(f"The probability of {self.point} is 0 to 1, not {self.probability}.")
        if min(self.first, self.after, self.times, self.delay_ns) < 0 or self.last < self.first:
            raise FaultError(f"The numbers of {self.point} are not negative, and its sectors go upwards.")

    @classmethod
    def parse(cls, text: str) -> Fault:
        """`POINT` or `POINT:NAME=VALUE,...` with device, sectors (A or A-B), probability, after, times,
        delay_ns. FaultError when it is not like that.
        """
        point, _, rest = text.partition(":")
        fields: dict[str, str] = {}
        for part in filter(None, rest.split(",")):
            name, equals, value = part.partition("=")
            if not equals or name not in _FIELDS:
                raise FaultError(f"{part!r} in fault {text!r} is not NAME=VALUE, of {', '.join(_FIELDS)}.")
            fields[name] = value
        first, dash, last = fields.get("sectors", f"0-{_LAST}").partition("-")
        try:
            return cls(
                point, fields.get("device", ""), int(first), int(last if dash else first),
                float(fields.get("probability", 1.0)), int(fields.get("after", 0)),
                int(fields.get("times", _LAST)), int(fields.get("delay_ns", _DELAY_NS)))
        except ValueError as error:
            raise FaultError(f"The fault {text!r} has a number that is none.") from error


_FIELDS: Final = ("device", "sectors", "probability", "after", "times", "delay_ns")


class Injection:
    """A fault and what has come of it: `fitted` requests, `fired` times."""

    __slots__ = ("_random", "fault", "fired", "fitted")

    def __init__(self, fault: Fault, seed: str) -> None:
        self.fault = fault
        self.fitted = 0
        self.fired = 0
        self._random = random.Random(seed)

    def fires(self, device: str, first: int, length: int) -> bool:
        """Whether it happens now. Moves its generator only when everything else fits."""
        fault = self.fault
        if fault.device and fault.device != device:
            return False
        if length and (first > fault.last or first + length <= fault.first):
            return False
        self.fitted += 1
        if self.fitted <= fault.after or self.fired >= fault.times:
            return False
        if fault.probability < 1.0 and self._random.random() >= fault.probability:
            return False
        self.fired += 1
        return True

    def below(self, limit: int) -> int:
        """A number from 0 to below the limit, from the fault's own generator."""
        return self._random.randrange(limit)

    @property
    def random(self) -> random.Random:
        """The fault's own generator."""
        return self._random


class Faults:
    """The faults of one machine. `injections` are in the order given."""

    __slots__ = ("_points", "injections")

    def __init__(self, seed: int, faults: Iterable[Fault]) -> None:
        self.injections = [Injection(fault, f"{seed} {index} {fault.point}")
                           for index, fault in enumerate(faults)]
        self._points: dict[str, list[Injection]] = {}
        for injection in self.injections:
            self._points.setdefault(injection.fault.point, []).append(injection)

    def at(self, point: str, device: str, first: int = 0, length: int = 0) -> Injection | None:
        """The first fault that happens here to `length` sectors from `first`; all of them are asked."""
        fired = None
        for injection in self._points.get(point, ()):
            if injection.fires(device, first, length) and fired is None:
                fired = injection
        return fired
