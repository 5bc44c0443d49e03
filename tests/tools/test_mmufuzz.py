"""The differential test's data: written and read back; a guest that did not end is not recorded."""
from __future__ import annotations

from pathlib import Path

import pytest

import guests
from tools.oracle import End, OracleError, Result, domu, mmufuzz

LOG = "(XEN) Xen version 4.17.7 (Debian 4.17.7-1) (someone) (gcc) debug=n\n"


def answer(monkeypatch: pytest.MonkeyPatch, end: End) -> None:
    """Stand in for real Xen: the console says which command line it was."""
    def run(jobs: dict[str, domu.Job], **_: object) -> dict[str, Result]:
        last = guests.GUESTS["mmufuzz"].expected
        console = "{}\n0 u -22 =!-1\n" + last + "\n"
        return {name: Result(console.format(job.cmdline), end, LOG) for name, job in jobs.items()}
    monkeypatch.setattr(domu, "run", run)
    monkeypatch.setattr(mmufuzz, "qemu_version", lambda: (10, 0, 2))


def test_what_is_recorded_is_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer(monkeypatch, End.POWEROFF)
    kept = mmufuzz.record(range(3), tmp_path / "folder" / "answers.xz")
    assert mmufuzz.load(kept) == {
        seed: [f"seed={seed} ops=250", "0 u -22 =!-1", "mmufuzz: done"] for seed in range(3)
    }


def test_the_same_answers_are_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer(monkeypatch, End.POWEROFF)
    first = mmufuzz.record(range(3), tmp_path / "first").read_bytes()
    assert mmufuzz.record(range(3), tmp_path / "second").read_bytes() == first


def test_a_guest_that_crashed_is_not_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer(monkeypatch, End.CRASH)
    with pytest.raises(OracleError, match="seed0, did not run to its end: crashed"):
        mmufuzz.record(range(3), tmp_path / "answers.xz")
    assert not (tmp_path / "answers.xz").exists()
