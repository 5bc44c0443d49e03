"""The policies that steal, each with settings for tests."""

from __future__ import annotations

from collections.abc import Mapping

from firmware.sched.parameters import Value

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000

POLICIES: tuple[tuple[str, Mapping[str, Value]], ...] = (
    ("rrobin", {}), ("credit", {}),
    ("credit2", {}), ("credit2", {"runqueue": "core"}), ("credit2", {"runqueue": "cpu"}),
    ("rtds", {"overhead_us": 0}),
)
"""Those that steal, with their settings."""
NAMES = [" ".join((name, *map(str, settings.values()))) for name, settings in POLICIES]
