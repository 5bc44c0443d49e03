"""CPU schedulers with guests on the emulated machine: shares, caps, gangs, speed-up. Virtual time only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from firmware.sched.control import Scheduling
from firmware.sched.parameters import Value
from tools.bench import plot
from tools.bench.report import Report
from tools.bench.sched_debian import hash_speedup
from xenpy import System
from xenpy.guest import Guest

Say = Callable[[str], None]
Settings = Mapping[str, Value]

PERCENT: Final = 100.0
MICRO: Final = 1e6
REPORT: Final = r"(\d+) (?:times|rounds), (\d+) us\n"
"""How many rounds all vCPUs of a guest did together, and how long it took."""
ENDLESS: Final = 1 << 40
MIB: Final = 16
"""Memory of each of our own guests."""
WEIGHTS: Final = range(1, 9)
SHARE_RUN_S: Final = 2.0
SHARE_ERROR: Final = 2.0
"""Percent of its share by which a domain may miss it."""
FINE_NS: Final = 5_000
"""vCPUs that wait for each other in loops see each other this late."""
GANG_CPUS: Final = 4
GANG_GAIN: Final = 2.0
WITHIN: Final = 5.0
MP_EFFICIENCY: Final = 0.9
MP_ROUNDS: Final = 16
HASH_SPEEDUP: Final = 3.6

BVT_WEIGHT: Final = 840
"""Divided by weights 1 to 8 without a rest: BVT's mcu_advance is the inverse of the weight."""
SHARED: Final[tuple[tuple[str, Settings, Callable[[int], Settings]], ...]] = (
    ("credit", {"tslice_ms": 5}, lambda weight: {"weight": 256 * weight}),
    ("credit2", {}, lambda weight: {"weight": 256 * weight}),
    ("bvt", {"ctx_allow_us": 1000}, lambda weight: {"mcu_advance": BVT_WEIGHT // weight}),
    ("atropos", {}, lambda weight: {"period_us": 100_000, "slice_us": 2_500 * weight,
                                                    "latency_us": 100_000, "xtratime": False}),
    ("rtds", {"overhead_us": 0}, lambda weight: {"period_us": 100_000, "budget_us": 2_500 * weight,
                                                 "extratime": False}),
)
"""Policies that divide by weight, and what a weight is called there."""

UNGANGED: Final = "credit"
GANGS: Final[tuple[tuple[str, str, Settings], ...]] = (
    ("credit", "credit", {}), ("rrobin", "rrobin", {}), ("gang strict", "gang", {"form": "strict"}),
    ("gang relaxed", "gang", {"form": "relaxed"}), ("gang balance", "gang", {"form": "balance"}),
)
TEAM_MS: Final = 300
"""How long each team works. Longer than any policy's turn."""
TEAMS: Final = {
    "locks": ("locks", "work=1000 held=200"),
    "barriers": ("barriers", "work=10000"),
    "strangers": ("barriers", "work=10000 apart=1"),
}
"""Guests and their command lines; strangers are barriers that nobody waits at."""


def measure(report: Report, rounds: int, say: Say) -> None:
    """All of it; `rounds` does not matter where time is virtual."""
    del rounds
    _shares(report, say)
    _caps(report, say)
    _gangs(report, say)
    _speedup(report, say)


def _running(guests: Sequence[Guest]) -> list[int]:
    return [guest.runstates()["running"] for guest in guests]


def _shares(report: Report, say: Say) -> None:
    wanted = [weight / sum(WEIGHTS) for weight in WEIGHTS]
    drawn: dict[str, Sequence[float]] = {"what the weights say": wanted}
    for policy, settings, share in SHARED:
        say(f"sched: eight hogs of weights 1 to 8 under {policy}")
        with System(scheduler=policy, settings=settings) as system:
            guests = [system.add_domain("builtin:hog", name=f"w{weight}", memory=MIB,
                                        scheduling=Scheduling(share(weight))) for weight in WEIGHTS]
            system.run(within=SHARE_RUN_S)
            ran = _running(guests)
        drawn[policy] = [ns / sum(ran) for ns in ran]
        error = max(abs(had / mine - 1) for had, mine in zip(drawn[policy], wanted, strict=True)) * PERCENT
        report.promise(f"error of a hog's share over {SHARE_RUN_S:g} s, {policy}", SHARE_ERROR, error, "%")
    report.numbers["shares"] = drawn
    path = plot.lines("sched-shares", "Eight hogs of weights 1 to 8 (SOSP 2003, figure 5)", "weight",
                      "part of the CPU", {name: (list(WEIGHTS), values) for name, values in drawn.items()})
    say(f"wrote {path}")


def _caps(report: Report, say: Say) -> None:
    worst, found = 0.0, {}
    for policy in ("credit", "credit2"):
        for cap in (25, 50, 75):
            say(f"sched: a hog capped at {cap} % under {policy}")
            with System(cpus=2, scheduler=policy) as system:
                guest = system.add_domain("builtin:hog", memory=MIB, scheduling=Scheduling({"cap": cap}))
                system.run(within=SHARE_RUN_S)
                had = guest.runstates()["running"] / system.now_ns * PERCENT
            found[f"{policy}, {cap} %"] = had
            worst = max(worst, abs(had / cap - 1) * PERCENT)
    report.numbers["caps"] = found
    report.promise("error of a cap", SHARE_ERROR, worst, "%")


def _gangs(report: Report, say: Say) -> None:
    found: dict[str, dict[str, float]] = {}
    for title, policy, settings in GANGS:
        found[title] = {}
        for team, (guest, cmdline) in TEAMS.items():
            say(f"sched: two teams of {GANG_CPUS} ({team}) on {GANG_CPUS} CPUs under {title}")
            found[title][team] = _team(policy, settings, guest, f"{cmdline} rounds={ENDLESS} time={TEAM_MS}")
    report.numbers["rounds of two teams a virtual second"] = found
    gang, loose = found["gang strict"], found[UNGANGED]
    report.promise_least(f"spinlock team, strict gang in parts of {UNGANGED}", GANG_GAIN,
                         gang["locks"] / loose["locks"])
    report.promise("bulk-synchronous team, strict gang, slower than strangers with the same work", WITHIN,
                   (gang["strangers"] / gang["barriers"] - 1) * PERCENT, "%")
    report.promise(f"independent work, strict gang, slower than {UNGANGED}", WITHIN,
                   (loose["strangers"] / gang["strangers"] - 1) * PERCENT, "%")
    best = {team: max(rates[team] for rates in found.values()) for team in TEAMS}
    path = plot.bars("sched-gangs", "Two teams of four on four CPUs", "rounds, in parts of the best",
                     list(TEAMS), {title: [rates[team] / best[team] for team in TEAMS]
                                   for title, rates in found.items()})
    say(f"wrote {path}")


def _team(policy: str, settings: Settings, guest: str, cmdline: str) -> float:
    """Rounds a virtual second of two such teams together."""
    with System(cpus=GANG_CPUS, scheduler=policy, settings=settings, quantum_ns=FINE_NS) as system:
        teams = [
            system.add_domain(f"builtin:{guest}", name=name, memory=MIB, vcpus=GANG_CPUS, cmdline=cmdline)
            for name in ("one", "two")
        ]
        system.run(within=60)
        return sum(_reported(team, REPORT)[0] / _reported(team, REPORT)[1] for team in teams) * MICRO


def _reported(guest: Guest, pattern: str) -> list[int]:
    """The numbers of its report."""
    found = re.search(pattern, guest.console.text)
    if found is None:
        raise RuntimeError(f"{guest!r} has not finished")
    return [int(number) for number in found.groups()]


def _speedup(report: Report, say: Say) -> None:
    elapsed: dict[int, int] = {}
    for cpus in (1, 2, 4, 8):
        say(f"sched: a parallel guest on {cpus} CPUs")
        with System(cpus=cpus, scheduler=UNGANGED) as system:
            guest = system.add_domain("builtin:hog", memory=MIB, vcpus=cpus,
                                      cmdline=f"rounds={MP_ROUNDS // cpus}")
            system.run(within=60)
            elapsed[cpus] = _reported(guest, REPORT)[1]
    speedup = {cpus: elapsed[1] / us for cpus, us in elapsed.items()}
    report.numbers["speed-up"] = speedup
    report.promise_least("speed-up of a parallel guest, a core, up to 8", MP_EFFICIENCY,
                         min(gain / cpus for cpus, gain in speedup.items()))
    report.promise_least("four hash jobs in Debian, 4 vCPUs against 1", HASH_SPEEDUP, hash_speedup(say))
    path = plot.lines("sched-speedup", "An embarrassingly parallel guest", "CPUs", "speed-up", {
        "ideal": (list(speedup), [float(cpus) for cpus in speedup]),
        "measured": (list(speedup), list(speedup.values())),
    })
    say(f"wrote {path}")
