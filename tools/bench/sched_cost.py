"""What scheduling costs the host: a decision among so many vCPUs, a switch, the machine's run loop."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Final

from tools.bench import plot
from tools.bench.report import Report
from tools.bench.sched_debian import MEMORY_MIB, PROMPT, WITHIN_S, fetched
from tools.schedsim import POLICIES, Simulator
from tools.schedsim.workloads import hog
from xenpy import System

Say = Callable[[str], None]

SIZES: Final = (1, 16, 64, 256, 1024, 4096)
HELD: Final = 256
"""The number of runnable vCPUs for which the limit is."""
DECISIONS: Final = 2000
DECISION_US: Final = 15.0
SWITCH_US: Final = 10.0
LOOP_PERCENT: Final = 3.0
SWITCHES: Final = 4000
MS: Final = 1_000_000
SHARES: Final[dict[str, dict[str, Any]]] = {
    "rtds": {"period_us": 1_000_000, "budget_us": 10, "extratime": True},
    "atropos": {"period_us": 1_000_000, "slice_us": 10, "latency_us": 1_000_000},
}
"""What lets a policy with reservations admit thousands."""
SETTINGS: Final[dict[str, dict[str, Any]]] = {"rtds": {"overhead_us": 0}}


def measure(report: Report, rounds: int, say: Say) -> None:
    """All of it, the medians of so many rounds."""
    _decisions(report, rounds, say)
    _switch(report, rounds, say)
    _loop(report, say)


def _decisions(report: Report, rounds: int, say: Say) -> None:
    grown: dict[str, tuple[list[float], list[float]]] = {}
    for policy in POLICIES:
        name = "rrobin" if policy == "roundrobin" else policy
        found = {}
        for size in SIZES:
            say(f"sched: a decision among {size} runnable vCPUs under {name}")
            found[size] = min(_decision(name, size) for _ in range(rounds))
        grown[name] = list(found), list(found.values())
        report.growth[f"a decision under {name}, us, by runnable vCPUs"] = found
        report.promise(f"a decision with {HELD} runnable vCPUs, {name}", DECISION_US, found[HELD], "us")
    path = plot.lines("sched-cost", "Host time of a decision", "runnable vCPUs", "us", grown, log=True)
    say(f"wrote {path}")


def _decision(policy: str, size: int) -> float:
    """Mean us of one pick, with whoever ran queued again."""
    simulator = Simulator("1x4x1", policy, SETTINGS.get(policy), bare=True)
    for _ in range(size):
        simulator.domain([hog], SHARES.get(policy))
    simulator.run(20 * MS)
    made: Any = simulator.policy
    real, spent, count = made.pick, 0, 0

    def pick(core: int, now: int, current: Any) -> Any:
        nonlocal spent, count
        began = perf_counter_ns()
        choice = real(core, now, current)
        spent += perf_counter_ns() - began
        count += 1
        return choice

    made.pick = pick
    simulator.run(60_000 * MS, until=lambda: count >= DECISIONS)
    return spent / max(1, count) / 1000


def _switch(report: Report, rounds: int, say: Say) -> None:
    say("sched: a vCPU switch on the emulated machine")
    medians = []
    for _ in range(rounds):
        with System(scheduler="rrobin", settings={"slice_ms": 1}) as system:
            for name in ("one", "two"):
                system.add_domain("builtin:hog", name=name, memory=16)
            system.run(within=0.05)
            scheduler: Any = system.hypervisor.scheduler
            real = scheduler._switch
            times: list[int] = []

            def switch(core: Any, vcpu: Any, real: Any = real, times: list[int] = times) -> None:
                began = perf_counter_ns()
                real(core, vcpu)
                times.append(perf_counter_ns() - began)

            scheduler._switch = switch
            system.run(within=1.0)
            medians.append(statistics.median(times) / 1000)
    report.promise("a vCPU switch", SWITCH_US, min(medians), "us")


def _loop(report: Report, say: Say) -> None:
    say("sched: the run loop's part of Debian's boot")
    with System(profile=True) as system:
        guest = system.add_domain(fetched("vmlinuz"), ramdisk=fetched("shell.cpio"), memory=MEMORY_MIB,
                                  cmdline="console=hvc0")
        guest.console.expect(PROMPT, within=WITHIN_S)
        counters = system.machine.counters
        loop = counters.run_ns - counters.slice_ns - counters.dispatch_ns - counters.event_ns
        report.numbers["run loop ns"] = {"run": counters.run_ns, "slices": counters.slice_ns,
                                         "dispatch": counters.dispatch_ns, "events": counters.event_ns}
    report.promise("the run loop's part of Debian's boot", LOOP_PERCENT, loop / counters.run_ns * 100, "%")
