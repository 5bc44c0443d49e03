"""What of a process is in the host's memory, split into its guest's memory and the rest.

Source: Linux, Documentation/filesystems/proc.rst, /proc/PID/smaps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KIB: Final = 1024
_MAPPING: Final = re.compile(r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<mode>\S{4}) ")


@dataclass(frozen=True)
class Resident:
    """Bytes in the host's memory: of the guest's machine memory, and of everything else."""

    guest: int
    rest: int


def split(smaps: Iterable[str], memory: int) -> Resident:
    """Out of the lines of smaps: machine memory is what is writable, not executable, and large enough.

    (Unicorn's buffer for translated code is as large, but executable.)
    """
    guest = rest = 0
    machine = False
    for line in smaps:
        if match := _MAPPING.match(line):
            size = int(match["end"], 16) - int(match["start"], 16)
            machine = match["mode"].startswith("rw-") and size >= memory
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) * KIB
            if machine:
                guest += resident
            else:
                rest += resident
    return Resident(guest, rest)


def look(pid: int, memory: int) -> Resident | None:
    """A running process now; None where the host does not tell."""
    try:
        return split(Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines(), memory)
    except OSError:
        return None
