"""The guard around the commands: what an exception becomes."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from xenpy import cli, commands
from xenpy.errors import BadInputError


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def run(arguments: list[str]) -> int:
        raise error

    return run


def test_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                         capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(commands, "run", raising(ZeroDivisionError("by\nzero")))
    assert cli.main(["boot", "a b"]) == 4
    (report,) = tmp_path.iterdir()
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == (f"xenpy: internal fault: ZeroDivisionError: by zero; details are in {report}; "
                        f"{cli.REPORT_HINT}\n")
    text = report.read_text()
    assert "command: xenpy boot 'a b'" in text
    assert "Traceback (most recent call last):" in text
    assert text.startswith("xenpy 0.")


def test_a_fault_that_cannot_be_reported(monkeypatch: pytest.MonkeyPatch,
                                         capfd: pytest.CaptureFixture[str]) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    monkeypatch.setattr(commands, "run", raising(ZeroDivisionError("oh")))
    assert cli.main(["demo"]) == 4
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "(No space left on device); set TMPDIR" in said


@pytest.mark.parametrize(("error", "status", "said"), [
    (KeyboardInterrupt(), 130, "xenpy: interrupted\n"),
    (MemoryError(), 4, "xenpy: the host has not enough memory; try a smaller --memory\n"),
    (BadInputError("x: no\nsuch file"), 2, "xenpy: x: no such file\n"),
])
def test_other_ends(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: BaseException,
                    status: int, said: str) -> None:
    monkeypatch.setattr(commands, "run", raising(error))
    assert cli.main([]) == status
    assert capfd.readouterr().err == said


def test_versions_agree() -> None:
    import tomllib

    from xenpy import __version__

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == __version__


def test_the_limits_agree() -> None:
    from firmware.hypervisor import MOST_VCPUS
    from machine.topology import MAX_CPUS
    from xenpy import options

    assert options.MAX_CPUS == MAX_CPUS
    assert options.MAX_VCPUS == MOST_VCPUS
