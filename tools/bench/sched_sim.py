"""CPU schedulers on the simulator: placement, stealing, warp, deadlines, latency among many, gangs.

The mechanism and the policies are the firmware's own; virtual time only.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from typing import Final

from firmware.sched.parameters import ParameterError, Value
from tools.bench import plot
from tools.bench.report import Report
from tools.schedsim import Simulator
from tools.schedsim.crowd import crowd
from tools.schedsim.result import co_run, neglect, worst_skew
from tools.schedsim.watching import Decisions
from tools.schedsim.workloads import barrier_team, hog, lock_team, periodic, random_mix, sleeper

Say = Callable[[str], None]
Settings = Mapping[str, Value]

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000
TICK: Final = 10 * MS
TOPOLOGIES: Final = ("1x1x1", "1x2x1", "1x2x2", "2x2x2", "2x4x2", "4x8x2")
STEALERS: Final = ("rrobin", "credit", "credit2", "bvt")
SWEEP: Final = SECOND // 2
WATCHED: Final = 1_000_000
WATCHED_VCPUS: Final = 24
WATCHED_PINNED: Final = 0.6
SKEW: Final = 3 * MS
SMT_CORES: Final = 8
REBALANCE: Final = 2 * TICK
RT_SETS: Final = 40
MANY: Final = 128
SLICES_MS: Final = (5, 10, 30, 50)
SLICED: Final[tuple[tuple[str, Callable[[int], Settings]], ...]] = (
    ("rrobin", lambda ms: {"slice_ms": ms}), ("bvt", lambda ms: {"ctx_allow_us": 1000 * ms}),
    ("credit", lambda ms: {"tslice_ms": ms}),
)
"""Policies whose slice can be set, and how."""
LATENCY_RUN: Final = 40 * SECOND


def measure(report: Report, rounds: int, say: Say) -> None:
    """All of it; `rounds` does not matter where time is virtual."""
    del rounds
    _idling(report, say)
    _watched(report, say)
    _spreading(report, say)
    _warp(report, say)
    _deadlines(report, say)
    _latency_among_many(report, say)
    _gangs(report, say)
    _skew(report, say)


def _idling(report: Report, say: Say) -> None:
    worst, found = 0, {}
    for policy in STEALERS:
        for topology in TOPOLOGIES:
            say(f"sched: random loads on {topology} under {policy}")
            chance = random.Random(f"{policy} {topology}")
            simulator = Simulator(topology, policy, log=True, seed=1)
            crowd(simulator, chance.randrange(1, 2 * simulator.topology.cpus + 3), chance)
            simulator.run(SWEEP)
            assert simulator.log is not None
            found[f"{policy} {topology}"] = neglect(simulator.log) / MS
            worst = max(worst, neglect(simulator.log))
    report.numbers["idle beside work, ms"] = found
    report.promise("longest a CPU idled while somebody could have run there", TICK / MS, worst / MS, "ms")


def _watched(report: Report, say: Say) -> None:
    """Every theft and every decision, with many that may not run everywhere."""
    decisions = astray = thefts = far = 0
    for policy in STEALERS:
        simulator = Simulator("2x4x2", policy, seed=8)
        crowd(simulator, WATCHED_VCPUS, random.Random(policy), WATCHED_PINNED)
        seen = Decisions(simulator)
        wanted = WATCHED // len(STEALERS)
        say(f"sched: {wanted} decisions with pins under {policy}")
        simulator.run(3600 * SECOND, until=lambda: seen.count >= wanted)  # noqa: B023
        decisions, thefts = decisions + seen.count, thefts + seen.thefts
        astray, far = astray + len(seen.astray), far + len(seen.far)
    report.numbers["watched"] = {"decisions": decisions, "thefts": thefts}
    report.promise_least("sibling work taken first, % of thefts", 100,
                         100 * (1 - far / thefts) if thefts else 0)
    report.promise("pins violated in 10^6 decisions", 0, astray)


def _spreading(report: Report, say: Say) -> None:
    fewest = SMT_CORES
    for policy in STEALERS:
        say(f"sched: {SMT_CORES} hogs on {SMT_CORES} cores of two threads under {policy}")
        simulator = Simulator(f"1x{SMT_CORES}x2", policy, seed=2)
        for _ in range(SMT_CORES):
            simulator.domain([hog])
        simulator.run(REBALANCE)
        running = [simulator.scheduler.running(core) for core in range(2 * SMT_CORES)]
        cores = {core // 2 for core, vcpu in enumerate(running) if vcpu is not None}
        fewest = min(fewest, len(cores))
    report.promise_least(f"cores used by {SMT_CORES} hogs, two threads a core", SMT_CORES, fewest)


def _warp(report: Report, say: Say) -> None:
    found = {}
    for title, share in (("plain", {}), ("warped", {"warpback": True, "warpvalue": 1000})):
        say(f"sched: BVT, a sleeper among hogs, {title}")
        simulator = Simulator("1x1x1", "bvt", seed=3)
        sleeping = simulator.domain([sleeper(500 * US, 20 * MS, 0.3)], share)[0]
        for _ in range(8):
            simulator.domain([hog])
        simulator.run(10 * SECOND)
        found[title] = statistics.fmean(sleeping.latencies) / MS
    report.numbers["BVT wake-to-run, ms"] = found
    report.promise("BVT: a warped sleeper's wake-to-run latency", TICK / MS, found["warped"], "ms")
    report.promise("the same, in parts of the unwarped one's", 1.0, found["warped"] / found["plain"])
    say("sched: BVT, a domain that abuses its warp")
    simulator = Simulator("1x1x1", "bvt", seed=4)
    abuse = {"warpback": True, "warpvalue": 1_000_000, "warpl_ms": 50, "warpu_ms": 1000}
    greedy = simulator.domain([hog], abuse)[0]
    others = [simulator.domain([hog])[0] for _ in range(3)]
    simulator.run(20 * SECOND)
    fair = (greedy.work + sum(task.work for task in others)) / 4
    report.promise("BVT: what a domain that abuses warp has, in parts of its share", 1.05, greedy.work / fair)


def _deadlines(report: Report, say: Say) -> None:
    missed = admitted = 0
    chance = random.Random(5)
    for number in range(RT_SETS):
        policy = ("rtds", "atropos")[number % 2]
        simulator = Simulator(chance.choice(("1x1x1", "1x2x1", "1x4x1")), policy, seed=number)
        late: list[int] = []
        for _ in range(8):
            period, part = chance.choice((5, 10, 20, 50)) * MS, chance.uniform(0.05, 0.5)
            run = int(period * part)
            budget = "budget_us" if policy == "rtds" else "slice_us"
            share: dict[str, Value] = {"period_us": period // US, budget: run // US + 1}
            if policy == "rtds":
                share["extratime"] = False
            try:
                simulator.domain([periodic(run - 100 * US, period, late)], share)
            except ParameterError:
                continue
            admitted += 1
        say(f"sched: deadlines of a random set under {policy}, {number + 1} of {RT_SETS}")
        simulator.run(2 * SECOND)
        missed += len(late)
    report.numbers["real-time vCPUs admitted"] = admitted
    report.promise(f"deadlines missed by {admitted} admitted vCPUs, RTDS and Atropos", 0, missed)


def _latency_among_many(report: Report, say: Say) -> None:
    drawn: dict[str, tuple[list[float], list[float]]] = {}
    for policy, slice_of in SLICED:
        mean, deviation, lost = [], [], []
        for slice_ms in SLICES_MS:
            say(f"sched: a mostly idle domain among {MANY} busy ones, {slice_ms} ms slices, under {policy}")
            simulator = Simulator("1x2x1", policy, slice_of(slice_ms), seed=6)
            busy = [simulator.domain([hog])[0] for _ in range(MANY)]
            idle = simulator.domain([sleeper(200 * US, 100 * MS, 0.5)])[0]
            simulator.run(LATENCY_RUN)
            mean.append(statistics.fmean(idle.latencies) / MS)
            deviation.append(statistics.pstdev(idle.latencies) / MS)
            done = sum(task.work for task in busy) + idle.work
            lost.append((1 - done / (2 * LATENCY_RUN)) * 100)
        slices = [float(slice_ms) for slice_ms in SLICES_MS]
        drawn[f"{policy}, mean"] = slices, mean
        drawn[f"{policy}, deviation"] = slices, deviation
        report.growth[f"129th domain, mean wake latency, ms, by slice in ms, {policy}"] = dict(
            zip(SLICES_MS, mean, strict=True))
        report.growth[f"129th domain, its deviation, ms, by slice in ms, {policy}"] = dict(
            zip(SLICES_MS, deviation, strict=True))
        report.growth[f"129th domain, throughput lost, %, by slice in ms, {policy}"] = dict(
            zip(SLICES_MS, lost, strict=True))
    path = plot.lines("sched-129", f"A mostly idle domain among {MANY} busy ones (SOSP 2003, figure 6)",
                      "slice, ms", "wake-to-run latency, ms", drawn)
    say(f"wrote {path}")


def _gangs(report: Report, say: Say) -> None:
    for number, form in enumerate(("strict", "relaxed", "balance"), start=1):
        say(f"sched: three gangs of three on four CPUs, {form}")
        simulator = Simulator("1x4x1", "gang", {"form": form}, log=True, bare=True, seed=7)
        gangs = [simulator.domain([hog] * 3) for _ in range(2)]
        gangs += [simulator.domain(lock_team(3, 10_000)), simulator.domain(barrier_team(3, 10_000))]
        simulator.run(2 * SECOND)
        assert simulator.log is not None
        together = [co_run(simulator.log.runs, [task.vcpu for task in gang]) for gang in gangs]
        busy = sum(run.end - run.start for run in simulator.log.runs) / (4 * 2 * SECOND)
        report.numbers[f"gang {form}"] = {"co-run": together, "fragmentation": 1 - busy}
        if form == "strict":
            report.promise_least("strict gangs: part of the time together", 1.0, min(together[:2]))
        report.growth.setdefault("CPU time lost to fragmentation, %: strict 1, relaxed 2, balance 3", {})[
            number] = (1 - busy) * 100


def _skew(report: Report, say: Say) -> None:
    say("sched: the skew of a relaxed gang among others")
    simulator = Simulator("1x4x1", "gang", {"form": "relaxed"}, log=True, bare=True, seed=8)
    simulator.domain([random_mix(15 * MS, 5 * MS)] * 7, {"gang": False})
    team = simulator.domain([hog] * 4, {"skew_us": SKEW // US})
    simulator.run(SECOND // 2)
    assert simulator.log is not None
    skew = worst_skew(simulator.log, [task.vcpu for task in team])
    report.promise("skew of a relaxed gang, threshold and one tick", (SKEW + TICK) / MS, skew / MS, "ms")
