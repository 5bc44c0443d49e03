"""Topology: sockets, cores and threads of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

MAX_CPUS = 256


@cache
def _beside(cpu: int, threads: int) -> tuple[int, ...]:
    first = cpu - cpu % threads
    return tuple(other for other in range(first, first + threads) if other != cpu)


@dataclass(frozen=True, slots=True)
class Topology:
    """`sockets` packages of `cores` cores of `threads` threads. CPUs are numbered threads first."""

    sockets: int = 1
    cores: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        if min(self.sockets, self.cores, self.threads) < 1 or self.cpus > MAX_CPUS:
            raise ValueError(f"topology {self} has {self.cpus} CPUs; a machine has 1 to {MAX_CPUS}")

    @property
    def cpus(self) -> int:
        """Logical CPUs."""
        return self.sockets * self.cores * self.threads

    def position(self, cpu: int) -> tuple[int, int, int]:
        """Socket, core in it, thread in it."""
        core, thread = divmod(self._known(cpu), self.threads)
        socket, core = divmod(core, self.cores)
        return socket, core, thread

    def siblings(self, cpu: int) -> tuple[int, ...]:
        """The other threads of its core, in order."""
        return _beside(self._known(cpu), self.threads)

    def core_of(self, cpu: int) -> int:
        """Its core, counted through the machine."""
        return self._known(cpu) // self.threads

    def socket_of(self, cpu: int) -> int:
        """Its socket."""
        return self._known(cpu) // (self.threads * self.cores)

    def _known(self, cpu: int) -> int:
        if not 0 <= cpu < self.cpus:
            raise ValueError(f"no CPU {cpu} in {self}")
        return cpu

    @classmethod
    def parse(cls, text: str) -> Topology:
        """`SOCKETSxCORESxTHREADS`, `CORESxTHREADS` or `CORES`; ValueError otherwise."""
        parts = text.strip().lower().split("x")
        if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
            raise ValueError(f"topology {text!r} is not like 2x4x2 (sockets x cores x threads)")
        numbers = [int(part) for part in parts]
        if len(numbers) == 1:
            return cls(1, numbers[0], 1)
        if len(numbers) == 2:
            return cls(1, *numbers)
        return cls(*numbers)

    def __str__(self) -> str:
        return f"{self.sockets}x{self.cores}x{self.threads}"
