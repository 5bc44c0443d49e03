"""Debian on a disk, through the command: what was synced is there however the command ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.guests import require_guest
from tests.support.programs import require_e2fsprogs
from tools import disk_image

pytestmark = pytest.mark.guest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    require_e2fsprogs()
    require_guest("disk.cpio")
    path = tmp_path / "root.ext4"
    disk_image.build(path, 32)
    return path


def boot() -> list[object]:
    return ["boot", require_guest("vmlinuz"), "--ramdisk", require_guest("disk.cpio"), "--memory", "192",
            "--cmdline", "console=hvc0 quiet root=/dev/xvda", "--within", "200"]


def content(image: Path, path: str) -> bytes:
    run = [require_e2fsprogs()["debugfs"], "-R", f"cat {path}", str(image)]
    return subprocess.run(run, capture_output=True, check=True).stdout


def fsck(image: Path) -> None:
    run = [require_e2fsprogs()["e2fsck"], "-f", "-p", str(image)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout


def test_a_root_disk_and_an_overlay(xenpy: Run, image: Path, tmp_path: Path) -> None:
    before, stats = image.read_bytes(), tmp_path / "stats.json"
    overlay = ("--disk", f"vdev=xvda,overlay={tmp_path / 'changes'},target={image}")
    result = xenpy(*boot(), *overlay, "--stats", stats, "--disk-sched", "cello", "--disk-share", "weight=7",
                   "--input", "echo one > /mnt/x", "--input", "poweroff")
    assert result.returncode == 0, (result.stdout[-2000:], result.stderr)
    disk, = json.loads(stats.read_text())["disks"]
    assert disk["scheduler"] == "cello"
    assert disk["errors"] == disk["guests"][0]["errors"] == 0
    assert disk["guests"][0]["writes"] > 0
    assert disk["flushes"] > 0
    result = xenpy(*boot(), *overlay, "--input", "cat /mnt/x", "--until", "^one$")
    assert result.returncode == 0, (result.stdout[-2000:], result.stderr)
    assert image.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_was_synced_is_there_after_a_signal(image: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "xenpy", *map(str, boot()), "--disk", f"{image},,xvda",
               "--input", "echo synced > /mnt/x; sync; echo now; while :; do echo more >> /mnt/y; done"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == b"now":
                break
        process.send_signal(number)
        _, said = process.communicate(timeout=100)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), said
    fsck(image)
    assert content(image, "/mnt/x") == b"synced\n"


def test_a_power_cut(xenpy: Run, image: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    result = xenpy(*boot(), "--disk", f"{image},,xvda,write-cache", "--stats", stats, "--seed", 5,
                   "--disk-fault", "disk.power:device=xvda,after=700,times=1",
                   "--input", "echo synced > /mnt/x; sync; n=0; while :; do echo $n > /mnt/$n; "
                              "sync; n=$((n+1)); done")
    assert result.returncode == 1, (result.stdout[-2000:], result.stderr)
    assert b"The power failed in <" in result.stderr
    assert json.loads(stats.read_text())["faults"][0]["fired"] == 1
    fsck(image)
    assert content(image, "/mnt/x") == b"synced\n"


def test_errors_reach_the_guest_as_errors(xenpy: Run, image: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(bytes(1 << 20))
    result = xenpy(*boot(), "--disk", f"{image},,xvda", "--disk", f"{data},,xvdb",
                   "--disk-fault", "disk.read:device=xvdb,sectors=512-519",
                   "--input", "dd if=/dev/xvdb of=/dev/null bs=4k skip=8 count=8 && echo fine",
                   "--input", "dd if=/dev/xvdb of=/dev/null bs=4k skip=64 count=1 || echo refused",
                   "--input", "poweroff")
    assert result.returncode == 0, (result.stdout[-2000:], result.stderr)
    lines = result.stdout.decode().splitlines()
    assert "fine" in lines
    assert "refused" in lines
    assert any("I/O error" in line for line in lines)
