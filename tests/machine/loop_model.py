"""The run loop as a slow model: scans of all cores, blocks counted one by one. It shares nothing with
`machine.machine`. Its guests only spin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

BLOCK_NS = 10
SHIFT = 10
LONGEST_CHUNK = 65_535
LONGEST_SLICE_NS = 10_000_000


class Script:
    """What is decided in a run: the nth question has the same answer for the machine and for the model."""

    def __init__(self, seed: int, cpus: int, longest_ns: int) -> None:
        self._random = Random(seed)
        self.longest_ns = longest_ns
        self.wakes = sorted(
            (self._random.randrange(100_000), self._random.randrange(cpus)) for _ in range(10 * cpus)
        )
        self.lazy = self._random.choice((0.02, 0.3, 0.7))
        self.charging = self._random.choice((0.0, 0.2))

    def decide(self) -> tuple[int | None, int]:
        """Of one dispatch: the slice in ns or None, and a charge."""
        random = self._random
        charge = random.randrange(3000) if random.random() < self.charging else 0
        if random.random() < self.lazy:
            return None, charge
        return random.randint(1, self.longest_ns), charge


@dataclass
class ModelCore:
    now: int = 0
    blocks: int = 0
    idle_ns: int = 0
    idle: bool = False
    busy: bool = False


@dataclass
class Model:
    """`trace`: core and time of each dispatch; `rates`: those that slices had."""

    script: Script
    cpus: int
    threads: int
    factor: float
    quantum_ns: int
    cores: list[ModelCore] = field(init=False)
    trace: list[tuple[int, int]] = field(default_factory=list)
    rates: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.cores = [ModelCore() for _ in range(self.cpus)]

    def run(self, deadline: int) -> None:
        wakes = list(self.script.wakes)
        while True:
            waiting = [number for number, core in enumerate(self.cores) if not core.idle]
            if not waiting and not wakes:
                return
            first = min(waiting, key=lambda number: (self.cores[number].now, number)) if waiting else None
            now = wakes[0][0] if first is None else self.cores[first].now
            if now > deadline or (first is not None and now == deadline):
                return
            if first is None or (wakes and wakes[0][0] <= now):
                while wakes and wakes[0][0] <= now:
                    self._wake(*wakes.pop(0))
                continue
            self._dispatch(first, waiting, wakes, deadline)

    def _wake(self, when: int, number: int) -> None:
        core = self.cores[number]
        if core.idle:
            core.idle, core.busy = False, True
            core.idle_ns += max(0, when - core.now)
            core.now = max(core.now, when)

    def _dispatch(self, first: int, waiting: list[int], wakes: list[tuple[int, int]], deadline: int) -> None:
        core = self.cores[first]
        self.trace.append((first, core.now))
        granted, charge = self.script.decide()
        core.now += charge
        if granted is None:
            core.idle, core.busy = True, False
            return
        ends = [core.now + min(granted, LONGEST_SLICE_NS), deadline]
        ends += [when for when, _ in wakes[:1]]
        ends += [self.cores[number].now + self.quantum_ns for number in waiting if number != first]
        core.busy = True
        near = range(first - first % self.threads, first - first % self.threads + self.threads)
        shared = any(self.cores[number].busy for number in near if number != first)
        rate = round((BLOCK_NS << SHIFT) / (self.factor if shared else 1))
        self.rates.add(rate)
        execute(core, rate, min(ends))


def execute(core: ModelCore, rate: int, end: int) -> None:
    """Blocks until the time is there, a chunk at a time."""
    while core.now < end:
        begin, blocks = core.now, 0
        while core.now < end and blocks < LONGEST_CHUNK:
            blocks += 1
            core.now = begin + (blocks * rate >> SHIFT)
        core.blocks += blocks
