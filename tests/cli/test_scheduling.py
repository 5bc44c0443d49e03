"""Scheduling from the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_the_command(xenpy: Run, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    result = xenpy("boot", "builtin:smp", "--vcpus", "4", "--topology", "1x2x2",
                   "--sched", "rrobin:slice_ms=5", "--affinity", "0-3,^2", "--sched-trace", str(path))
    assert result.returncode == 0, result.stderr
    tracks = {entry["tid"] for entry in json.loads(path.read_text())["traceEvents"] if entry["pid"] == 1}
    assert 2 not in tracks
    listing = xenpy("schedulers")
    assert listing.returncode == 0
    assert b"slice_ms" in listing.stdout


@pytest.mark.parametrize(("arguments", "said"), [
    (["--sched", "x"], b"no scheduler 'x'"), (["--sched", "rrobin:x"], b"not like"),
    (["--sched", "rrobin:slice_ms=ten"], b"whole number"), (["--share", "weight"], b"not like"),
    (["--share", "weight=1"], b"no parameter 'weight'"), (["--affinity", "4"], b"there are no CPUs 4"),
    (["--affinity", "x"], b"written like"), (["--smt-factor", "0"], b"smt-factor"),
    (["--sched-trace", "a.png"], b"a.png"), (["--sched-trace", "/nowhere/a.txt"], b"/nowhere/a.txt"),
])
def test_bad_options(xenpy: Run, arguments: list[str], said: bytes) -> None:
    result = xenpy("boot", "builtin:hello", *arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert b"Traceback" not in result.stderr
    assert result.stderr.count(b"\n") == 1
