"""What bad input gets: status 2, one line that names the culprit, and no traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def one_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """The only line on stderr of a run that was refused."""
    assert result.returncode == 2, result.stderr.decode()
    assert not result.stdout
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("xenpy: ")
    return lines[0]


@pytest.mark.parametrize(("arguments", "said"), [
    (["boot"], "IMAGE"),
    (["boot", "a", "b"], r"\(b\)"),
    (["bot"], "bot"),
    (["boot", "--frob", "x"], "--frob"),
    (["--frob"], "--frob"),
    (["boot", "--vcpus", "0", "x"], "--vcpus.* 0 "),
    (["boot", "--vcpus", "1000", "x"], "--vcpus.* 1000 "),
    (["boot", "--vcpus", "two", "x"], "--vcpus.*two"),
    (["boot", "--cpus", "0", "x"], "--cpus.* 0 "),
    (["boot", "--cpus", "257", "x"], "--cpus.* 257 "),
    (["boot", "--memory", "3", "x"], "--memory.* 3 "),
    (["boot", "--memory", "65537", "x"], "--memory.* 65537 "),
    (["boot", "--memory", "-1", "x"], "--memory.* -1 "),
    (["boot", "--topology", "2xtwo", "x"], "2xtwo"),
    (["boot", "--topology", "0x1x1", "x"], "0x1x1"),
    (["boot", "--topology", "16x16x2", "x"], "16x16x2 has 512 CPUs; a machine has 1 to 256"),
    (["boot", "--topology", "1x1x1x1", "x"], "1x1x1x1"),
    (["boot", "--topology", "1x2x1", "--cpus", "2", "x"], "--cpus and --topology"),
    (["boot", "--seed", "x", "x"], "--seed"),
    (["boot", "--until", "(", "x"], "--until.*regular expression"),
    (["boot", "--input", "\\q", "x"], "--input.*escape"),
    (["boot", "--within", "0", "x"], "--within"),
    (["boot", "--within", "nan", "x"], "--within"),
    (["boot", "--wall", "inf", "x"], "--wall"),
    (["boot", "--wall", "-1", "x"], "--wall"),
    (["boot", "--wall", "soon", "x"], "--wall"),
    (["boot", "--wall"], "--wall"),
    (["boot", ""], "folder"),
    (["boot", "builtin:"], "no such guest"),
    (["boot", "builtin:nobody"], "builtin:nobody.*hello"),
    (["boot", "/nowhere/kernel"], "/nowhere/kernel: there is no such file"),
    (["boot", "/"], "/: it is a folder"),
    (["boot", "builtin:hello", "--ramdisk", "/nowhere/initrd"], "/nowhere/initrd: No such file"),
    (["boot", "builtin:hello", "--ramdisk", "/"], "/: it is a folder"),
    (["boot", "builtin:hello", "--log", "/nowhere/log"], "--log /nowhere/log: No such file"),
    (["boot", "builtin:hello", "--log", "/"], "--log /: Is a directory"),
    (["boot", "builtin:hello", "--stats", "/nowhere/stats"], "--stats /nowhere/stats: No such file"),
    (["boot", "builtin:hello", "--stats", "/"], "--stats /: Is a directory"),
    (["demo", "x"], r"\(x\)"),
    (["guests", "--frob"], "--frob"),
])
def test_refused(xenpy: Run, arguments: list[str], said: str) -> None:
    assert re.search(said, one_line(xenpy(*arguments)))


def test_no_command_shows_the_help(xenpy: Run) -> None:
    result = xenpy()
    assert result.returncode == 2
    assert b"Usage: xenpy" in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["boot", "--help"], ["demo", "-h"]])
def test_help(xenpy: Run, arguments: list[str]) -> None:
    result = xenpy(*arguments)
    assert result.returncode == 0
    assert result.stdout.startswith(b"Usage: xenpy")
    assert not result.stderr


def test_version(xenpy: Run) -> None:
    from xenpy import __version__

    result = xenpy("--version")
    assert (result.returncode, result.stdout) == (0, f"xenpy {__version__}\n".encode())


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, xenpy.cli; xenpy.cli.main(['boot', '--help']);"
        "print([m for m in ('unicorn', 'numpy', 'keystone', 'capstone', 'elftools', 'firmware', 'machine')"
        " if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.splitlines()[-1] == b"[]"


@pytest.mark.parametrize("contents", [
    b"\x7f", b"\x7fELF", b"\x7fELF\x02\x01\x01" + bytes(57), b"MZ" + bytes(1000), b"#!/bin/sh\n", bytes(4096),
    b"\x7fELF\x02\x01\x01" + b"\xff" * 4096,
])
def test_an_image_that_is_none(xenpy: Run, tmp_path: Path, contents: bytes) -> None:
    image = tmp_path / "kernel"
    image.write_bytes(contents)
    assert str(image) in one_line(xenpy("boot", image))


def test_empty_files(xenpy: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert f"{empty}: it is empty" in one_line(xenpy("boot", empty))
    assert f"{empty}: it is empty" in one_line(xenpy("boot", "builtin:hello", "--ramdisk", empty))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_files(xenpy: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    secret.chmod(0)
    assert f"{secret}: it may not be read" in one_line(xenpy("boot", secret))


def test_a_ramdisk_larger_than_the_memory(xenpy: Run, tmp_path: Path) -> None:
    disk = tmp_path / "initrd"
    disk.touch()
    os.truncate(disk, 9 << 20)
    line = one_line(xenpy("boot", "builtin:hello", "--memory", 8, "--ramdisk", disk))
    assert str(disk) in line
    assert "8 MiB" in line


def test_an_endless_image(xenpy: Run) -> None:
    assert "/dev/zero: it is a device or a pipe" in one_line(xenpy("boot", "/dev/zero"))
    line = one_line(xenpy("boot", "builtin:hello", "--memory", 8, "--ramdisk", "/dev/zero"))
    assert "/dev/zero: it is larger than the 8 MiB" in line


def test_stdout_closed_from_the_start(xenpy: Run) -> None:
    result = xenpy("boot", "builtin:hello", stdout=None, preexec_fn=lambda: os.close(1))
    assert result.returncode == 2
    assert result.stderr.startswith(b"xenpy: stdout: ")
    assert b"Traceback" not in result.stderr


def test_a_help_nobody_reads(xenpy: Run) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = xenpy("boot", "--help", stdout=writer)
    os.close(writer)
    assert result.returncode == 2
    assert result.stderr.startswith(b"xenpy: stdout: ")
    assert result.stderr.count(b"\n") == 1


def test_a_full_disk_under_stdout(xenpy: Run) -> None:
    with Path("/dev/full").open("wb") as full:
        result = xenpy("guests", stdout=full)
    assert result.returncode == 2
    assert b"No space left" in result.stderr
    assert result.stderr.count(b"\n") == 1
