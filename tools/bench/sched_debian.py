"""Four hash jobs in Debian on one CPU and on four: the speed-up of a real multiprocessor guest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from tools.guests_cache import guest_path
from xenpy import System

CPUS: Final = 4
MEMORY_MIB: Final = 256
FILE_MIB: Final = 24
WITHIN_S: Final = 120.0
PROMPT: Final = r"/ # "
PREPARE: Final = f"dd if=/dev/zero of=/f bs=1M count={FILE_MIB} 2>/dev/null; echo pre''pared\n"
JOBS: Final = "for i in 1 2 3 4; do sha256sum /f >/dev/null & done; wait; echo all''done\n"
"""The quotes keep the echo of the typed line from looking like the answer."""


def hash_speedup(say: Callable[[str], None]) -> float:
    """How many times as fast four jobs are on four vCPUs of four CPUs as on one of one."""
    times = []
    for cpus in (1, CPUS):
        say(f"sched: four hash jobs in Debian on {cpus} CPUs")
        times.append(_jobs(cpus))
    return times[0] / times[1]


def _jobs(cpus: int) -> int:
    """Virtual ns from the line that starts the jobs to the last one's end."""
    with System(cpus=cpus, scheduler="credit") as system:
        guest = system.add_domain(fetched("vmlinuz"), ramdisk=fetched("shell.cpio"), memory=MEMORY_MIB,
                                  vcpus=cpus, cmdline="console=hvc0")
        console = guest.console
        console.expect(PROMPT, within=WITHIN_S)
        console.send(PREPARE)
        console.expect("^prepared", within=WITHIN_S)
        console.expect(PROMPT, within=WITHIN_S)
        began = system.now_ns
        console.send(JOBS)
        console.expect("^alldone", within=WITHIN_S)
        return system.now_ns - began


def fetched(name: str) -> Path:
    """A real guest's file. Raises OSError when it is not there."""
    path = guest_path(name)
    if path is None:
        raise OSError(f"{name} is not in the cache of guests: run make fetch")
    return path
