"""Disks from the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def test_a_disk_in_the_statistics(xenpy: Run, image: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    result = xenpy(
        "boot", "builtin:hello", "--disk", f"format=raw, vdev=xvda, access=rw, target={image}",
        "--disk", f"{tmp_path}/other.img,,xvdb,r,model=spinning,sched=batch",
        "--disk-sched", "cello:share=bytes", "--disk-fault", "disk.read:device=xvda", "--stats", stats)
    assert result.returncode == 2
    assert b"other.img cannot be opened" in result.stderr
    (tmp_path / "other.img").write_bytes(bytes(512))
    result = xenpy(
        "boot", "builtin:hello", "--disk", f"format=raw, vdev=xvda, access=rw, target={image}",
        "--disk", f"{tmp_path}/other.img,,xvdb,r,model=spinning,sched=batch",
        "--disk-sched", "cello:share=bytes", "--disk-fault", "disk.read:device=xvda", "--stats", stats)
    assert result.returncode == 0, result.stderr
    found = json.loads(stats.read_text())
    assert [(disk["name"], disk["model"], disk["scheduler"], disk["sectors"]) for disk in found["disks"]] == [
        ("xvda", "flash", "cello", 2048), ("xvdb", "spinning", "batch", 1)]
    assert found["disks"][0]["guests"][0]["vdev"] == "xvda"
    assert found["faults"] == [{"point": "disk.read", "device": "xvda", "fitted": 0, "fired": 0}]
    listing = xenpy("schedulers").stdout.decode()
    assert "interval_ms" in listing
    assert "--disk-share" in listing


DISK = "IMAGE,,xvda"


@pytest.mark.parametrize(("arguments", "said"), [
    (["--disk", "IMAGE"], "vdev is missing"),
    (["--disk", "vdev=xvda"], "target is missing"),
    (["--disk", "vdev=hdc,cdrom"], "empty CD-ROM"),
    (["--disk", "IMAGE,,sdq"], "sdq"),
    (["--disk", "IMAGE,,xvda,rx"], "access is one of"),
    (["--disk", "IMAGE,qed,xvda"], "format is one of raw, qcow2"),
    (["--disk", "IMAGE,,xvda,rw,more"], "one word too many"),
    (["--disk", "IMAGE,,xvda,sript=x"], "sript= is not known"),
    (["--disk", "IMAGE,,xvda,script=x"], "no program is run"),
    (["--disk", "IMAGE,,xvda,backend=dom3"], "not by another domain"),
    (["--disk", "IMAGE,,xvda,model=tape"], "no disk model 'tape'"),
    (["--disk", "IMAGE,,xvda,sched=deadline"], "no disk scheduler 'deadline'"),
    (["--disk", "IMAGE,,xvda,extents=1-2"], "FIRST+SECTORS"),
    (["--disk", "IMAGE,,xvda,extents=2047+2"], "not inside the disk"),
    (["--disk", "IMAGE,,xvda,overlay=/nowhere/o"], "/nowhere/o cannot be created"),
    (["--disk", "/nowhere/x,,xvda"], "/nowhere/x cannot be opened"),
    (["--disk", "/,,xvda"], "is a directory"),
    (["--disk", "/dev/null,,xvda"], "neither a file nor a block device"),
    (["--disk", DISK, "--disk", DISK], "two disks xvda"),
    (["--disk", DISK, "--disk", "IMAGE,,xvdb"], "uses too"),
    (["--disk", DISK, "--disk", "IMAGE,,xvdb,model=spinning"], "one image is one disk"),
    (["--disk-sched", "cello"], "--disk-sched is about disks"),
    (["--disk-share", "weight=3"], "--disk-share is about disks"),
    (["--disk-fault", "disk.read"], "--disk-fault is about disks"),
    (["--disk-cache", "off"], "--disk-cache is about disks"),
    (["--disk", DISK, "--disk-cache", "-1"], "-1"),
    (["--disk", DISK, "--disk-cache", "x"], "is not on, off"),
    (["--disk", DISK, "--disk-cache", "off", "--disk-cache-calls"], "no cache to call"),
    (["--disk", DISK, "--disk-sched", "x"], "no disk scheduler 'x'"),
    (["--disk", DISK, "--disk-sched", "cello:x=1"], "no parameter 'x'"),
    (["--disk", DISK, "--disk-share", "weight=3"], "no parameter 'weight'"),
    (["--disk", DISK, "--disk-sched", "cello", "--disk-share", "weight=0"], "1 to 65535"),
    (["--disk", DISK, "--disk-fault", "disk.melt"], "no fault 'disk.melt'"),
    (["--disk", DISK, "--disk-fault", "disk.read:device=xvdz"], "no disk 'xvdz'"),
])
def test_bad_options(xenpy: Run, image: Path, arguments: list[str], said: str) -> None:
    result = xenpy("boot", "builtin:hello", *(each.replace("IMAGE", str(image)) for each in arguments))
    text = result.stderr.decode()
    assert result.returncode == 2, text
    assert said in text
    assert text.count("\n") == 1
    assert image.read_bytes() == bytes(1 << 20)


def test_an_image_that_leads_to_itself(xenpy: Run, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    result = xenpy("boot", "builtin:hello", "--disk", f"{loop},,xvda")
    assert result.returncode == 2, result.stderr
    assert b"cannot be opened: too many levels of symbolic links" in result.stderr


def test_an_image_in_use(xenpy: Run, image: Path) -> None:
    import fcntl

    with image.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = xenpy("boot", "builtin:hello", "--disk", f"{image},,xvda")
    assert result.returncode == 2
    assert b"in use" in result.stderr


def test_parts_of_one_image_and_an_overlay(xenpy: Run, image: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "changes"
    stats = tmp_path / "stats.json"
    for _ in range(2):
        result = xenpy("boot", "builtin:hello", "--stats", stats,
                       "--disk", f"vdev=xvda,overlay={overlay},extents=0+8:100+8,target={image}",
                       "--disk", f"vdev=xvdb,overlay={overlay},extents=16+8,target={image}",
                       "--disk", f"vdev=xvdc,snapshot,target={image}")
        assert result.returncode == 0, result.stderr
        disks = json.loads(stats.read_text())["disks"]
        assert [len(disk["guests"]) for disk in disks] == [2, 1]
    assert overlay.exists()
