"""`xenpy doctor`: can this host run xenpy, and what would make it better?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Final

from xenpy.errors import ExitStatus
from xenpy.output import show

PYTHON: Final = (3, 11)
MEMORY_MIB: Final = 512
"""What a small Linux guest and xenpy itself want together."""
SMALLEST: Final = 4 << 20
"""Bytes of the machine built for the self-test."""
LIBRARIES: Final = ("unicorn", "keystone-engine", "capstone", "numpy", "click", "zstandard",
                    "lz4")
TOOLS: Final = (
    ("apt-get", "fetches GRUB, a Debian kernel and busybox for the guest tests"),
    ("dpkg-deb", "unpacks them"),
    ("qemu-nbd", "reads qcow2 images"),
    ("mke2fs", "makes disk images for the guest tests"),
    ("qemu-system-x86_64", "runs the same guests on real Xen, to compare"),
)


class Level(Enum):
    """How a check came out."""

    GOOD = "ok"
    LESS = "less"
    """It works, with something missing or slower."""
    BAD = "BAD"
    """xenpy cannot run."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    subject: str
    level: Level
    text: str


def report() -> int:
    """Print every finding; DONE when nothing is BAD."""
    worst = ExitStatus.DONE
    for finding in findings():
        show(f"{finding.level.value:<5} {finding.subject:<20} {finding.text}\n")
        if finding.level is Level.BAD:
            worst = ExitStatus.BAD_INPUT
    fine = worst is ExitStatus.DONE
    show("xenpy can run here\n" if fine else "xenpy cannot run here: mend what is BAD\n")
    return worst


def findings() -> Iterator[Finding]:
    """Run the checks in order."""
    yield _host()
    yield _python()
    yield from _libraries()
    yield _engine()
    yield _memory()
    for tool, purpose in TOOLS:
        yield _tool(tool, purpose)


def _host() -> Finding:
    system, processor = platform.system(), platform.machine()
    text = f"{system} on {processor}"
    if (system, processor) == ("Linux", "x86_64"):
        return Finding("host", Level.GOOD, text)
    return Finding("host", Level.LESS, f"{text}; tested on Linux on x86_64 only")


def _python() -> Finding:
    text = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info < PYTHON:
        return Finding("Python", Level.BAD, f"{text}; needs {PYTHON[0]}.{PYTHON[1]} or newer")
    if sys.implementation.name != "cpython":
        return Finding("Python", Level.BAD, f"{text}; needs CPython: native code calls back through ctypes")
    return Finding("Python", Level.GOOD, text)


def _libraries() -> Iterator[Finding]:
    for name in LIBRARIES:
        try:
            yield Finding(name, Level.GOOD, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, Level.BAD, f"not installed; pip install {name}")


def _engine() -> Finding:
    """Build the smallest machine: its engine tests the private layout of the loaded Unicorn."""
    subject = "Unicorn build"
    try:
        from machine.machine import Machine, MachineConfig
        from machine.topology import Topology

        machine = Machine(MachineConfig(topology=Topology(1, 1, 1), memory=SMALLEST))
    except (ImportError, OSError, RuntimeError) as error:
        return Finding(subject, Level.BAD, " ".join(str(error).split()))
    machine.close()
    return Finding(subject, Level.GOOD, "self-test passed")


def _memory() -> Finding:
    try:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) >> 10
    except (OSError, ValueError):
        return Finding("memory", Level.LESS, "this host does not say how much is free")
    if available < MEMORY_MIB:
        return Finding("memory", Level.LESS, f"{available} MiB free; a Linux guest wants {MEMORY_MIB}")
    return Finding("memory", Level.GOOD, f"{available} MiB free")


def _tool(name: str, purpose: str) -> Finding:
    place = shutil.which(name)
    if place:
        return Finding(name, Level.GOOD, place)
    return Finding(name, Level.LESS, f"not installed; {purpose}")
