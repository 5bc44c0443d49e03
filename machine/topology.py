"""Topology: sockets, cores and threads of the machine."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CPUS = 256


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
        if not 0 <= cpu < self.cpus:
            raise ValueError(f"no CPU {cpu} in {self}")
        core, thread = divmod(cpu, self.threads)
        socket, core = divmod(core, self.cores)
        return socket, core, thread

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
