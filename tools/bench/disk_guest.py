"""Sequential reads of Debian with `dd`, on xenpy and on QEMU alone with virtio-blk, taking turns.

Both get the same kernel, initramfs, root file system and image, which the host keeps in memory. What counts
is the processor time of the process from mark to mark: the host has other work, too.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tools import disk_image, guests_cache
from tools.bench import process
from tools.bench.marks import MARK, WorkloadError
from tools.bench.report import MIB, Report
from tools.oracle import qemu

LEAST: Final = 60.0
"""MB (10^6 bytes) a second of host time."""
READ_MIB: Final = 192
ROOT_MIB: Final = 32
MEMORY_MIB: Final = 256
LIMIT_S: Final = 90.0
XENPY: Final = "xenpy"
BARE: Final = "QEMU TCG, virtio-blk"
STEPS: Final = {
    "direct": f"dd if=$disk of=/dev/null bs=1M count={READ_MIB} iflag=direct",
    "through the page cache": f"dd if=$disk of=/dev/null bs=1M count={READ_MIB}",
}
CPU_FIELDS: Final = slice(11, 13)
"""utime and stime among the fields behind the name in /proc/PID/stat (proc(5))."""


@dataclass
class Contender:
    """One way to run it: its command, and MB/s by step of each run."""

    name: str
    command: list[str]
    runs: list[dict[str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def measure(report: Report, rounds: int, say: Callable[[str], None]) -> None:
    """Each contender once a round; the medians count."""
    with tempfile.TemporaryDirectory(prefix="xenpy-bench-") as scratch:
        found = _contenders(Path(scratch))
        for turn in range(1, rounds + 1):
            for contender in found:
                say(f"disk guest {turn}/{rounds}: {contender.name}")
                _once(contender)
    medians = {
        it.name: {step: statistics.median(run[step] for run in it.runs) for step in STEPS}
        for it in found if it.runs
    }
    report.failures += [f"{it.name}: {it.failures[0]}" for it in found if it.failures]
    report.numbers["dd MB/s"] = medians
    mine, other = medians.get(XENPY), medians.get(BARE)
    if mine is None:
        return
    for step, rate in mine.items():
        report.promise_least(f"dd in Debian, {step}", LEAST, rate, "MB/s")
        if other is not None:
            report.notes.append(
                f"dd in Debian, {step}: {rate:.0f} MB/s, {BARE}: {other[step]:.0f} MB/s, "
                f"ratio {rate / other[step]:.2f}")


def _script() -> bytes:
    lines = ["disk=/dev/xvdb", "[ -b /dev/vdb ] && disk=/dev/vdb", "dd if=$disk of=/dev/null bs=1M count=32"]
    for step, command in STEPS.items():
        lines += ["echo 3 > /proc/sys/vm/drop_caches"]
        lines += [f"echo MARK {step} begin uptime=0", command, f"echo MARK {step} end uptime=0"]
    return "\n".join((*lines, "sync", "poweroff -f", "")).encode()


def _contenders(scratch: Path) -> list[Contender]:
    """Who can run here. Raises FileNotFoundError when the guests have not been fetched."""
    kernel, ramdisk = guests_cache.guest_path("vmlinuz"), guests_cache.guest_path("disk.cpio")
    if kernel is None or ramdisk is None:
        raise FileNotFoundError("the guests have not been fetched: run `make fetch`")
    root, image = scratch / "root.ext4", scratch / "image"
    try:
        disk_image.build(root, ROOT_MIB, {"root/start": _script()})
    except disk_image.ImageError as error:
        raise OSError(str(error)) from error
    some = random.Random(1).randbytes(MIB)
    with image.open("wb") as file:
        for _ in range(READ_MIB):
            file.write(some)
    found = [Contender(XENPY, process.xenpy(
        "boot", str(kernel), "--ramdisk", str(ramdisk), "--memory", str(MEMORY_MIB), "--cmdline",
        "console=hvc0 quiet root=/dev/xvda", "--disk", f"vdev=xvda,snapshot,target={root}",
        "--disk", f"vdev=xvdb,access=ro,target={image}"))]
    if shutil.which(qemu.QEMU):
        found.append(Contender(BARE, [
            qemu.QEMU, "-accel", "tcg", "-m", str(MEMORY_MIB), "-cpu", qemu.CPU, "-nodefaults", "-no-reboot",
            "-display", "none", "-serial", "stdio", "-kernel", str(kernel), "-initrd", str(ramdisk),
            "-append", "console=ttyS0 quiet root=/dev/vda",
            "-drive", f"file={root},format=raw,if=virtio,snapshot=on",
            "-drive", f"file={image},format=raw,if=virtio,readonly=on"]))
    return found


def _once(contender: Contender) -> None:
    times: dict[str, float] = {}
    said = b""

    def watch(pid: int, data: bytes) -> None:
        nonlocal said
        *lines, said = (said + data).split(b"\n")
        for line in lines:
            if match := MARK.search(line.decode(errors="replace").rstrip("\r")):
                times.setdefault(match["name"], cpu_seconds(pid))

    done = process.run(contender.command, LIMIT_S, watch=watch)
    if done.status != 0:
        contender.failures.append(done.why())
        return
    try:
        contender.runs.append(rates(times))
    except WorkloadError as error:
        contender.failures.append(str(error))


def rates(times: dict[str, float]) -> dict[str, float]:
    """MB/s by step, from the processor seconds at the marks. WorkloadError when one is missing."""
    missing = [name for step in STEPS for name in (f"{step} begin", f"{step} end") if name not in times]
    if missing:
        raise WorkloadError(f"the guest did not say {missing[0]!r}")
    seconds = {step: max(times[f"{step} end"] - times[f"{step} begin"], 1e-3) for step in STEPS}
    return {step: READ_MIB * MIB / 1e6 / each for step, each in seconds.items()}


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processors so far."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    ticks = sum(map(int, stat.rpartition(")")[2].split()[CPU_FIELDS]))
    return ticks / os.sysconf("SC_CLK_TCK")
