from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata

import pytest

from xenpy import doctor
from xenpy.doctor import Level

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_this_host_is_fit(xenpy: Run) -> None:
    result = xenpy("doctor")
    assert result.returncode == 0, result.stdout
    lines = result.stdout.decode().splitlines()
    assert any(line.startswith("ok    Unicorn build") for line in lines)
    assert lines[-1] == "xenpy can run here"


def levels() -> dict[str, Level]:
    return {finding.subject: finding.level for finding in doctor.findings()}


def test_what_is_missing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "capstone":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "MEMORY_MIB", 1 << 40)
    found = levels()
    assert found["capstone"] is Level.BAD
    assert found["numpy"] is Level.GOOD
    assert found["memory"] is Level.LESS
    assert found["qemu-system-x86_64"] is Level.LESS


def test_something_bad_is_a_failure(monkeypatch: pytest.MonkeyPatch,
                                    capfd: pytest.CaptureFixture[str]) -> None:
    from machine import machine
    from machine.engine import UnsupportedEngine

    def refuse(config: object) -> None:
        raise UnsupportedEngine("another build")

    monkeypatch.setattr(machine, "Machine", refuse)
    assert doctor.report() == 2
    said = capfd.readouterr().out
    assert "BAD   Unicorn build        another build. Supported builds: " in said
    assert said.endswith("xenpy cannot run here: mend what is BAD\n")
