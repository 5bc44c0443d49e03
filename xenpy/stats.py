"""The numbers of a run, as `--stats` writes them and tests read them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stats:
    """Counters since the machine was built. All but `wall_s` and `python_share` are the same in every run.

    `blocks` is the number of basic blocks executed on all cores; `python_share` the part of `wall_s` spent
    outside translated code, from 0 to 1 (None when the system was not to keep host times); `hypercalls` and
    `traps` count by name.
    """

    blocks: int
    virtual_ns: int
    wall_s: float
    python_share: float | None
    tlb_flushes: int
    switches: int
    hypercalls: dict[str, int] = field(default_factory=dict)
    traps: dict[str, int] = field(default_factory=dict)
    block_hash: str | None = None
    """Hash over the address of every block executed by every core in order, if that was asked for."""
    disks: list[dict[str, Any]] = field(default_factory=list)
    """Of each emulated disk its counters, and under `guests` those of each virtual disk."""
    disk_cache: dict[str, int] = field(default_factory=dict)
    """Of the disks' cache, in blocks of 4 KiB: its limit, what it holds, hits, misses, ..."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    """Of each fault that was asked for how many requests fitted, and how often it happened."""

    def json(self, status: int, why: str) -> str:
        """They as JSON, with the exit status and the reason of the end."""
        row = asdict(self)
        for name in ("block_hash", "disks", "disk_cache", "faults"):
            if not row[name]:
                del row[name]
        row["wall_s"] = round(self.wall_s, 6)
        row["python_share"] = None if self.python_share is None else round(self.python_share, 4)
        row["exit"] = status
        row["exit_reason"] = why
        return json.dumps(row, indent=2) + "\n"
