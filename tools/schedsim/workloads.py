"""Workloads in the literature's kinds, for `Simulator.domain`: one for a vCPU, a list for a team."""

from __future__ import annotations

from collections.abc import Iterator

from tools.schedsim.commands import FOREVER, Block, Command, Run, Sleep, Wake, Yield
from tools.schedsim.sync import Barrier, SpinLock
from tools.schedsim.task import Task, Workload


def hog(task: Task) -> Iterator[Command]:
    """Computes for ever."""
    while True:
        yield Run(FOREVER)


def job(ns: int) -> Workload:
    """Computes for so long, and ends."""

    def work(task: Task) -> Iterator[Command]:
        yield Run(ns)

    return work


def sleeper(run_ns: int, sleep_ns: int, jitter: float = 0.0) -> Workload:
    """Computes a little, sleeps a little; each time by up to `jitter` of it longer or shorter."""

    def vary(task: Task, ns: int) -> int:
        return ns if not jitter else max(1, round(ns * task.random.uniform(1 - jitter, 1 + jitter)))

    def work(task: Task) -> Iterator[Command]:
        while True:
            yield Run(vary(task, run_ns))
            yield Sleep(vary(task, sleep_ns))

    return work


def periodic(run_ns: int, period_ns: int, missed: list[int] | None = None) -> Workload:
    """A real-time job: so much work in each period, by its end. Lateness, in ns, goes to `missed`."""

    def work(task: Task) -> Iterator[Command]:
        release = task.now
        while True:
            yield Run(run_ns)
            release += period_ns
            now = task.now
            if now < release:
                yield Sleep(release - now)
            elif missed is not None and now > release:
                missed.append(now - release)

    return work


def yielder(run_ns: int = 1_000) -> Workload:
    """A yield storm."""

    def work(task: Task) -> Iterator[Command]:
        while True:
            yield Run(run_ns)
            yield Yield()

    return work


def random_mix(longest_run: int, longest_sleep: int, yields: float = 0.1) -> Workload:
    """Runs, sleeps and yields of random length."""

    def work(task: Task) -> Iterator[Command]:
        draw = task.random
        while True:
            yield Run(draw.randrange(1, longest_run))
            if draw.random() < yields:
                yield Yield()
            else:
                yield Sleep(draw.randrange(1, longest_sleep))

    return work


def lock_team(members: int, rounds: int, outside_ns: int = 50_000, inside_ns: int = 5_000,
              *, tickets: bool = False) -> list[Workload]:
    """One lock, short critical sections; each member goes in `rounds` times."""
    shared = SpinLock(tickets=tickets)

    def work(task: Task) -> Iterator[Command]:
        for _ in range(rounds):
            yield Run(outside_ns)
            yield from shared.acquire(task)
            yield Run(inside_ns)
            yield from shared.release(task)

    return [work] * members


def barrier_team(members: int, rounds: int, work_ns: int = 500_000) -> list[Workload]:
    """Bulk synchronous: everybody computes, everybody waits for everybody, by spinning."""
    barrier = Barrier(members)

    def work(task: Task) -> Iterator[Command]:
        for _ in range(rounds):
            yield Run(work_ns)
            yield from barrier.wait()

    return [work] * members


def echo(pairs: int, think_ns: int, work_ns: int = 20_000) -> list[Workload]:
    """`pairs` of a client that thinks, asks and sleeps until it is answered, and a server that answers."""
    def client(number: int) -> Workload:
        def work(task: Task) -> Iterator[Command]:
            while True:
                yield Sleep(think_ns)
                yield Wake(task.team[2 * number + 1])
                yield Block()

        return work

    def server(number: int) -> Workload:
        def work(task: Task) -> Iterator[Command]:
            while True:
                yield Block()
                yield Run(work_ns)
                yield Wake(task.team[2 * number])

        return work

    return [make(number) for number in range(pairs) for make in (client, server)]
