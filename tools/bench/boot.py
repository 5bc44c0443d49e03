"""The same kernel and workload on xenpy, on Xen under QEMU and on QEMU alone, taking turns."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tools import guests_cache
from tools.bench import marks, process, resident
from tools.bench.resident import Resident
from tools.oracle import qemu

MEMORY_MIB: Final = 512
LIMIT_S: Final = 180.0
LAST_MARK: Final = b"MARK all done"
ARGUMENTS: Final = "console=hvc0"

XENPY: Final = "xenpy"
XEN: Final = "QEMU TCG + Xen 4.17"
BARE: Final = "QEMU TCG"


@dataclass
class Contender:
    """One way to boot the workload: its command, and every run's steps in host seconds."""

    name: str
    command: list[str]
    runs: list[dict[str, float]] = field(default_factory=list)
    stats: list[dict[str, Any]] = field(default_factory=list)
    resident: Resident | None = None
    """Of the last run, when the workload was done."""
    failures: list[str] = field(default_factory=list)
    """Why runs gave no result."""

    def median(self) -> dict[str, float]:
        """Median of each step; empty when no run came to its end."""
        if not self.runs:
            return {}
        return {step: statistics.median(run[step] for run in self.runs) for step in self.runs[0]}


def contenders(stats: Path) -> list[Contender]:
    """Who can run here. Raises FileNotFoundError when the guests have not been fetched."""
    kernel, packed, ramdisk = map(_needed, ("vmlinux", "vmlinuz", "workload.cpio"))
    found = [Contender(XENPY, process.xenpy(
        "boot", str(kernel), "--ramdisk", str(ramdisk), "--memory", str(MEMORY_MIB), "--vcpus", "1",
        "--cmdline", ARGUMENTS, "--stats", str(stats)))]
    if qemu.missing() is None:
        modules = ((kernel, ARGUMENTS), (ramdisk, ""))
        found.append(Contender(XEN, qemu.command(qemu.Setup("", modules, MEMORY_MIB, 1))))
    if shutil.which(qemu.QEMU):
        # QEMU alone starts no PV ELF: it gets the packed image, and that includes unpacking it in the guest.
        found.append(Contender(BARE, [
            qemu.QEMU, "-accel", "tcg", "-m", str(MEMORY_MIB), "-cpu", qemu.CPU, "-nodefaults", "-no-reboot",
            "-display", "none", "-serial", "stdio", "-kernel", str(packed), "-initrd", str(ramdisk),
            "-append", "console=ttyS0"]))
    return found


def _needed(name: str) -> Path:
    path = guests_cache.guest_path(name)
    if path is None:
        raise FileNotFoundError(f"{name} has not been fetched: run `make fetch`")
    return path


def measure(rounds: int, say: Callable[[str], None]) -> list[Contender]:
    """Let every contender run once a round. Xen under QEMU stalls now and then: a failed run ends nothing."""
    with tempfile.TemporaryDirectory(prefix="xenpy-bench-") as scratch:
        stats = Path(scratch) / "stats.json"
        found = contenders(stats)
        for turn in range(1, rounds + 1):
            for contender in found:
                say(f"boot {turn}/{rounds}: {contender.name}")
                _once(contender, stats if contender.name == XENPY else None)
    return found


def _once(contender: Contender, stats: Path | None) -> None:
    def watch(pid: int, data: bytes) -> None:
        if LAST_MARK in data:
            contender.resident = resident.look(pid, MEMORY_MIB << 20)

    done = process.run(contender.command, LIMIT_S, watch=watch)
    if done.status != 0:
        contender.failures.append(done.why())
        return
    try:
        contender.runs.append(marks.steps(done.lines))
        if stats is not None:
            contender.stats.append(json.loads(stats.read_text(encoding="utf-8")))
    except (marks.WorkloadError, OSError, ValueError) as error:
        contender.failures.append(str(error))
