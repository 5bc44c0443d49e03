"""What every policy has in common, of CPUs or of disks: parameters of its own, a share for each domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

from firmware.sched.parameters import Parameter, ParameterError, Value, checked, defaults


class Tunable:
    """`settings` are the policy's own parameters, as `SETTINGS` declares them; `SHARES` those of a domain."""

    name: ClassVar[str]
    SETTINGS: ClassVar[Sequence[Parameter]] = ()
    SHARES: ClassVar[Sequence[Parameter]] = ()

    def __init__(self, settings: Mapping[str, Value] | None = None) -> None:
        self.settings: dict[str, Value] = defaults(self.SETTINGS)
        self.settings.update(checked(self.name, self.SETTINGS, settings or {}))
        self.shares: dict[tuple[int, int | None], dict[str, Value]] = {}
        """By domain, and by vCPU where one has a share of its own."""

    def number(self, name: str) -> int:
        """A setting that is a number."""
        return int(self.settings[name])

    def tune(self, values: Mapping[str, Value], now: int) -> None:
        """Change parameters of the policy while it runs. ParameterError says what is wrong, and nothing has
        changed then.
        """
        new = {**self.settings, **checked(self.name, self.SETTINGS, values)}
        self.admit_settings(new)
        self.settings = new
        self.tuned(now)

    def admit_settings(self, values: Mapping[str, Value]) -> None:
        """Raise ParameterError when these settings, each in its range, do not go together."""

    def tuned(self, now: int) -> None:
        """`settings` have changed."""

    def domain_share(self, domain: int) -> dict[str, Value]:
        """The parameters of a domain by its id."""
        found = self.shares.get((domain, None))
        if found is None:
            found = self.shares[domain, None] = defaults(self.SHARES)
        return found

    def forget_domain(self, domain: int) -> None:
        """The domain is gone: so are its parameters."""
        for key in [key for key in self.shares if key[0] == domain]:
            del self.shares[key]


Made = TypeVar("Made", bound=Tunable)


class Registry(dict[str, type[Made]]):
    """The policies of one kind by their names: a policy enters itself, as a decorator of its class."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def enter(self, made: type[Made]) -> type[Made]:
        """Register a class under its name."""
        self[made.name] = made
        return made

    def find(self, name: str) -> type[Made]:
        """The class of that name. ParameterError names those there are."""
        found = self.get(name)
        if found is None:
            raise ParameterError(f"there is no {self._kind} {name!r}: there are {', '.join(sorted(self))}")
        return found
