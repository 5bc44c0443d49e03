"""What a simulation leaves behind: who ran where and when, and sums and proofs over that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from firmware.domain.vcpu import VCpu


class Ran(NamedTuple):
    """One vCPU on one logical CPU without a break."""

    vcpu: VCpu
    core: int
    start: int
    end: int


class Waited(NamedTuple):
    """Runnable without running; it then ran on `core`."""

    vcpu: VCpu
    core: int
    start: int
    end: int


class Idled(NamedTuple):
    """Nobody on a logical CPU. `waiting`: who could have run there when it fell idle."""

    core: int
    start: int
    end: int
    waiting: tuple[VCpu, ...]


@dataclass(slots=True)
class Log:
    """The records of a simulation, in the order in which they ended."""

    runs: list[Ran]
    waits: list[Waited]
    idles: list[Idled]


def busy_together(runs: Iterable[Ran], vcpus: Sequence[VCpu]) -> list[int]:
    """Ns during which exactly 0, 1, 2 ... of these ran (0 counts only between the first and the last)."""
    members = set(vcpus)
    edges: list[tuple[int, int]] = []
    for run in runs:
        if run.vcpu in members:
            edges += ((run.start, 1), (run.end, -1))
    edges.sort()
    times = [0] * (len(vcpus) + 1)
    count = last = 0
    for when, step in edges:
        if count or last:
            times[count] += when - last
        count += step
        last = when
    return times


def co_run(runs: Iterable[Ran], vcpus: Sequence[VCpu]) -> float:
    """The part of the time any of these ran during which all of them did."""
    times = busy_together(runs, vcpus)
    some = sum(times[1:])
    return times[-1] / some if some else 1.0


def neglect(log: Log) -> int:
    """The longest time for which a logical CPU idled while somebody waited who could have run there."""
    worst = 0
    waits = sorted(log.waits, key=lambda wait: wait.start)
    for idle in log.idles:
        for wait in waits:
            if wait.start >= idle.end:
                break
            if wait.end > idle.start and wait.vcpu.hard_affinity >> idle.core & 1:
                worst = max(worst, min(wait.end, idle.end) - max(wait.start, idle.start))
    return worst


def worst_skew(log: Log, vcpus: Sequence[VCpu]) -> int:
    """By how much one of these hogs has ever led the slowest: progress is what they ran, and a lead is
    largest at the end of a run.
    """
    worst = 0
    mine = {vcpu: [run for run in log.runs if run.vcpu is vcpu] for vcpu in vcpus}
    for vcpu, runs in mine.items():
        for when in [run.end for run in runs]:
            had = {who: sum(max(0, min(run.end, when) - run.start) for run in theirs)
                   for who, theirs in mine.items()}
            worst = max(worst, had[vcpu] - min(had.values()))
    return worst
