"""Disk schedulers side by side on the emulated disk: shares, transactions beside a hog, latency, deadlines.

Everything here is virtual time: the numbers are the same on every host.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from firmware.disk.client import Client
from firmware.sched.parameters import ParameterError, Value
from machine.disk import Flash
from tools.bench import plot
from tools.bench.report import Report
from tools.disksim.rig import Rig
from tools.disksim.workloads import MILLISECOND, Backlog, Periodic, Stream, Transactions

BACKLOG_WEIGHTS: Final = (1, 2, 4, 8)
INTERVALS: Final = 20
INTERVAL: Final = 500 * MILLISECOND
OLTP_DOMAINS: Final = 8
OLTP_RUN: Final = 60_000 * MILLISECOND
LATENCY_RUN: Final = 60_000 * MILLISECOND
DEADLINE_RUN: Final = 10_000 * MILLISECOND
DEADLINE_SETS: Final = 60
PERCENT: Final = 100
SHARE_ERROR: Final = 5.0
"""Percent of its share by which a domain may miss it (issue of the disks; SOSP 2003, figure 5: 4 %)."""
LATENCY_RATIO: Final = 2.0


def measure(report: Report, rounds: int, say: Callable[[str], None]) -> None:
    """All of it; `rounds` does not matter where time is virtual."""
    del rounds
    _backlogged(report, say)
    _transactions(report, say)
    _latency(report, say)
    _deadlines(report, say)


def _worst(parts: list[float], weights: list[int]) -> float:
    """The largest error of a share, in percent of what it should be."""
    one = sum(parts) / sum(weights)
    return max(abs(part / one / mine - 1) for part, mine in zip(parts, weights, strict=True)) * PERCENT


def _backlogged(report: Report, say: Callable[[str], None]) -> None:
    weights = list(BACKLOG_WEIGHTS)
    for share in ("time", "bytes"):
        drawn = {"what the weights say": [weight / sum(weights) for weight in weights]}
        for policy in ("cello", "batch"):
            say(f"disk: weights 1:2:4:8, backlogged, by {share}, under {policy}")
            rig = Rig(policy, {"share": share} if policy == "cello" else None)
            clients = [rig.client({"weight": weight} if policy == "cello" else None) for weight in weights]
            for number, client in enumerate(clients):
                Backlog(rig, client, number, sectors=(8,) if number % 2 else (64, 128), writes=0.2)
            rig.run(INTERVAL)
            before = [_had(client, share) for client in clients]
            rig.run(INTERVALS * INTERVAL)
            parts = [_had(client, share) - was for client, was in zip(clients, before, strict=True)]
            drawn[policy] = [part / sum(parts) for part in parts]
            if policy == "cello":
                report.promise(f"error of a backlogged domain's share, by {share}", SHARE_ERROR,
                               _worst(parts, weights), "%")
            report.numbers[f"shares by {share}, {policy}"] = drawn[policy]
        path = plot.bars(f"disk-shares-{share}", f"Backlogged domains, shares by {share}", "part of the disk",
                         [f"weight {weight}" for weight in weights], drawn)
        say(f"wrote {path}")


def _had(client: Client, share: str) -> float:
    return client.time if share == "time" else client.bytes


def _transactions(report: Report, say: Callable[[str], None]) -> None:
    weights = list(range(1, OLTP_DOMAINS + 1))
    drawn = {"what the weights say": [float(weight) for weight in weights]}
    for policy in ("batch", "cello"):
        say(f"disk: eight transaction domains of weights 1 to 8 beside a hog, under {policy}")
        rig = Rig(policy)
        shares: list[dict[str, Value] | None] = [
            {"weight": 100 * weight, "class": "interactive"} if policy == "cello" else None
            for weight in weights
        ]
        clients = [rig.client(share) for share in shares]
        for number, client in enumerate(clients):
            Transactions(rig, client, number)
        Stream(rig, rig.client())
        rig.run(OLTP_RUN)
        parts = [float(client.time) for client in clients]
        drawn[policy] = [part / sum(parts) * sum(weights) for part in parts]
        error = _worst(parts, weights)
        report.numbers[f"transactions, {policy}"] = {"shares": drawn[policy], "error percent": error}
        if policy == "cello":
            report.promise("error of a transaction domain's share, Cello", SHARE_ERROR, error, "%")
        else:
            report.promise_least("the same, batch round robin: does not follow", 2 * SHARE_ERROR, error, "%")
    path = plot.lines("disk-oltp", "Transactions beside a streaming hog (SOSP 2003, figure 5)", "weight",
                      "share of the eight, in weights", {name: (weights, ys) for name, ys in drawn.items()})
    say(f"wrote {path}")


def _latency(report: Report, say: Callable[[str], None]) -> None:
    found: dict[str, float] = {}
    for name, policy, hogs in (("alone", "cello", 0), ("Cello, one hog", "cello", 1),
                               ("Cello, three hogs", "cello", 3), ("batch, one hog", "batch", 1)):
        say(f"disk: an interactive domain's latency, {name}")
        rig = Rig(policy)
        share: dict[str, Value] = {"class": "interactive", "weight": 400}
        client = rig.client(share if policy == "cello" else None)
        workload = Transactions(rig, client, 1, think=20 * MILLISECOND)
        for _ in range(hogs):
            Stream(rig, rig.client())
        rig.run(LATENCY_RUN)
        ordered = sorted(workload.latencies)
        found[name] = ordered[len(ordered) * 99 // PERCENT] / MILLISECOND
    report.numbers["interactive p99 ms"] = found
    report.promise("interactive 99th percentile beside a hog, in parts of that alone", LATENCY_RATIO,
                   found["Cello, one hog"] / found["alone"])
    path = plot.bars("disk-latency", "99th percentile of an interactive domain", "ms", list(found),
                     {"latency": list(found.values())})
    say(f"wrote {path}")


def _deadlines(report: Report, say: Callable[[str], None]) -> None:
    say(f"disk: deadlines of {DEADLINE_SETS} random real-time sets")
    chance = random.Random(1)
    admitted = refused = missed = done = idle = 0
    for number in range(DEADLINE_SETS):
        model = Flash() if number % 3 == 2 else None
        rig = Rig("cello", {"chunk_kib": chance.choice((16, 32, 64))}, model=model)
        tasks = []
        for _ in range(chance.randrange(2, 7)):
            deadline, kib = chance.choice((10, 40, 60, 100, 200, 400, 1000)), chance.choice((4, 16, 64))
            client = rig.client()
            try:
                rig.scheduler.set_share(client.domain, {"class": "realtime", "deadline_ms": deadline,
                                                        "request_kib": kib})
            except ParameterError:
                refused += 1
                continue
            admitted += 1
            tasks.append(Periodic(rig, client, chance.randrange(1 << 30), period=deadline * MILLISECOND,
                                  deadline=deadline * MILLISECOND, sectors=2 * kib, writes=0.5))
        Transactions(rig, rig.client({"class": "interactive"}), 7, think=0)
        Stream(rig, rig.client())
        rig.run(DEADLINE_RUN)
        missed += sum(task.missed for task in tasks)
        done += sum(len(task.latencies) for task in tasks)
        idle += rig.clock.now - rig.disk.busy_ns
    report.numbers["deadlines"] = {
        "admitted": admitted, "refused": refused, "requests": done, "missed": missed,
    }
    report.promise(f"deadlines missed, of {done} requests of {admitted} admitted domains", 0, missed)
    report.promise("time the disk was idle with work queued", 0, idle, "ns")
