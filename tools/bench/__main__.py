"""`python -m tools.bench [--rounds N] [--only PART]... [--output FILE]`: see the package.

Exit status 0 when all was measured and every promise is kept, 1 when not, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rich.console import Console

from tools.bench import (
    boot,
    cost,
    determinism,
    disk_cache,
    disk_cost,
    disk_guest,
    disk_shares,
    memory,
    memory_loops,
    micro,
    sched_cost,
    sched_guests,
    sched_sim,
    store,
)
from tools.bench.report import MIB, Report

Say = Callable[[str], None]

USERSPACE_UP: Final = 0.7
ALL_DONE: Final = 1.0
"""Most that xenpy may take, in parts of what Xen under QEMU takes."""
PYTHON_SHARE: Final = 0.30
HYPERCALL_US: Final = 4.0
BOUNCE_US: Final = 6.0
HELLO_S: Final = 1.0
HELP_S: Final = 0.2
OVERHEAD_MIB: Final = 150.0
"""Resident memory beyond what the guest touched; hello touches next to nothing."""
SINGLE_US: Final = 6.0
BATCH_US: Final = 1.5
PIN_US: Final = 60.0
DOMAIN_MS: Final = 150.0
FORK_MS: Final = 8.0
VALIDATION: Final = 5.0
"""Percent of a boot."""


def boots(report: Report, rounds: int, say: Say) -> None:
    """Boot times against QEMU."""
    contenders = boot.measure(rounds, say)
    for it in contenders:
        # One run of the others may fail; ours may not.
        if it.failures and (it.name == boot.XENPY or not it.runs):
            report.failures.append(f"{it.name}: {it.failures[0]}")
    report.steps = {it.name: it.median() for it in contenders if it.runs}
    report.numbers["boot runs"] = {it.name: it.runs for it in contenders}
    mine, reference = report.steps.get(boot.XENPY), report.steps.get(boot.XEN)
    if mine and reference:
        for step, limit in (("userspace up", USERSPACE_UP), ("all done", ALL_DONE)):
            report.promise(f"{step}, in parts of {boot.XEN}", limit, mine[step] / reference[step])
    elif boot.XEN not in [it.name for it in contenders]:
        report.failures.append(f"{boot.XEN}: QEMU and Debian's packages are not here")
    if contenders[0].stats:
        report.numbers["boot stats"] = contenders[0].stats[-1]
        share = max(float(stats["python_share"]) for stats in contenders[0].stats)
        report.promise("Python's share of the boot's wall time", PYTHON_SHARE, share)
    if used := contenders[0].resident:
        report.numbers["boot resident"] = vars(used)
        report.promise("resident memory of the boot beyond what the guest touched", OVERHEAD_MIB,
                       used.rest / MIB, "MiB")


def traps(report: Report, rounds: int, say: Say) -> None:
    """Microseconds per trap."""
    measured = micro.measure(rounds, say)
    report.numbers["traps us"] = measured
    for name, us in measured.items():
        report.promise(name, HYPERCALL_US if name.startswith("hypercall") else BOUNCE_US, us, "us")


def starts(report: Report, rounds: int, say: Say) -> None:
    """Seconds and memory of small commands."""
    measured = cost.measure(rounds, say)
    report.numbers["starts"] = measured
    report.promise("xenpy --help", HELP_S, measured["help"][0], "s")
    report.promise("xenpy boot builtin:hello, end to end", HELLO_S, measured["hello"][0], "s")
    for name in ("hello", "hello in 4 GiB"):
        report.promise(f"resident memory, {name}", OVERHEAD_MIB, measured[name][1] / MIB, "MiB")


def tables(report: Report, rounds: int, say: Say) -> None:
    """What page tables cost, and how it grows."""
    found = memory.measure(rounds, say)
    report.numbers["memory"] = vars(found) | {"validation": found.validation}
    report.growth = {
        "pin and unpin of an L1 table, us, by its entries": found.pin_us,
        "pin of all tables of a domain, ms, by its MiB": found.domain_ms,
        "fork, exec and exit, ms, by vCPUs": found.fork_ms,
    }
    report.promise("mmu_update of one entry", SINGLE_US, found.single_us, "us")
    report.promise(f"mmu_update, an entry of {memory_loops.BATCH}", BATCH_US, found.batch_us, "us")
    report.promise("pin and unpin of a full L1 table", PIN_US, found.pin_us[memory_loops.ENTRIES], "us")
    report.promise("pin of all tables of a 1 GiB domain", DOMAIN_MS, found.domain_ms[1024], "ms")
    report.promise("fork, exec and exit of a small process", FORK_MS, found.fork_ms[1], "ms")
    report.promise("validation's part of Debian's boot", VALIDATION, found.validation * 100, "%")


def sameness(report: Report, rounds: int, say: Say) -> None:
    """Equal runs are equal; `rounds` does not matter here."""
    del rounds
    measured = determinism.measure(say)
    report.numbers["fingerprints"] = {vcpus: [vars(it) for it in found] for vcpus, found in measured.items()}
    for vcpus, found in measured.items():
        report.promise(f"different outcomes of equal boots, {vcpus} vCPUs", 1, len(set(found)))


PARTS: Final[dict[str, Callable[[Report, int, Say], None]]] = {
    "boot": boots, "traps": traps, "starts": starts, "memory": tables, "sameness": sameness,
    "disk-cache": disk_cache.measure, "disk-cost": disk_cost.measure, "disk-guest": disk_guest.measure,
    "disk-shares": disk_shares.measure, "sched-sim": sched_sim.measure,
    "sched-guests": sched_guests.measure, "sched-cost": sched_cost.measure,
    "store": store.measure,
}
USUAL: Final = ("boot", "traps", "starts", "memory", "sameness")
"""What is measured when nothing is named."""
ERRORS: Final = (OSError, micro.LoopError, cost.CommandError, determinism.RunError)


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit status."""
    parser = argparse.ArgumentParser("bench", description="Measure what the specification promises.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (median counts)")
    parser.add_argument("--only", action="append", choices=sorted(PARTS), help="only this part")
    parser.add_argument("--output", type=Path, default=Path("bench-results.json"), help="the JSON's file")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    progress = Console(stderr=True)
    report = Report()

    def say(text: str) -> None:
        progress.print(text, markup=False, highlight=False)

    try:
        for name in options.only or USUAL:
            try:
                PARTS[name](report, options.rounds, say)
            except ERRORS as error:
                report.failures.append(f"{name}: {error}")
        report.print(Console(width=None if sys.stdout.isatty() else 140))
        report.write(options.output)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except OSError as error:
        say(f"{options.output}: {error.strerror}")
        return 1
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
