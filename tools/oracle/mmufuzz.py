"""What real Xen answers the guest `mmufuzz` as an unprivileged domain: the data of the differential test.

The data is one text, packed: a header, then for each seed a line `@seed N` and the guest's console.
"""
from __future__ import annotations

import lzma
from pathlib import Path
from typing import Final

import guests
from tools.oracle import domu
from tools.oracle.qemu import CPU, End, OracleError, Result
from tools.oracle.record import VERSION, qemu_version

SEEDS: Final = range(200)
OPERATIONS: Final = 250
PLACE: Final = Path(__file__).parents[2] / "tests" / "memory" / "differential" / "answers.xz"
MARK: Final = "@seed "
TIMEOUT_S: Final = 60
"""Seconds of its own clock one guest may take."""


def cmdline(seed: int) -> str:
    """The guest's command line for a seed."""
    return f"seed={seed} ops={OPERATIONS}"


def load(path: Path = PLACE) -> dict[int, list[str]]:
    """The consoles real Xen gave, by seed: lines."""
    answers: dict[int, list[str]] = {}
    for section in lzma.decompress(path.read_bytes()).decode().split(MARK)[1:]:
        seed, *lines = section.splitlines()
        answers[int(seed)] = lines
    return answers


def run(seeds: range = SEEDS) -> dict[int, Result]:
    """Run the guest on real Xen with each seed, all in one boot of a dom0. Raises OracleError."""
    guest = guests.GUESTS["mmufuzz"]
    image = guest.build()
    jobs = {f"seed{seed}": domu.Job(image, cmdline(seed), guest.vcpus) for seed in seeds}
    results = domu.run(jobs, timeout=TIMEOUT_S)
    for name, result in results.items():
        if result.end is not End.POWEROFF or not result.console.endswith(guest.expected + "\n"):
            raise OracleError(f"mmufuzz, {name}, did not run to its end: {result.end.value}")
    return {seed: results[f"seed{seed}"] for seed in seeds}


def record(seeds: range = SEEDS, path: Path = PLACE) -> Path:
    """Run the guest on real Xen with each seed and keep what it printed. Raises OracleError."""
    results = run(seeds)
    xen = VERSION.search(next(iter(results.values())).log)
    header = (
        f"# What the guest `mmufuzz` prints on real Xen 4.17 ({xen[1] if xen else 'unknown'})\n"
        f"# as a domU under QEMU {'.'.join(map(str, qemu_version()))}, -accel tcg -cpu {CPU}.\n"
        "# Made by `python -m tools.oracle mmufuzz`; not to be edited.\n"
    )
    parts = [header]
    parts += [f"{MARK}{seed}\n{result.console}" for seed, result in results.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress("".join(parts).encode(), preset=9))
    return path
