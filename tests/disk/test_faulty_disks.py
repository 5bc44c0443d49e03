"""Debian on disks that fail: errors are errors in the guest, and everything else goes on."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from machine.disk import SECTOR
from tests.disk import crash
from tests.disk.linux import command, content, debian, fsck
from tests.support.guests import require_guest
from tests.support.programs import require_e2fsprogs
from tools import disk_image
from xenpy.guest import Guest
from xenpy.system import System

pytestmark = pytest.mark.guest

SECOND = 1_000_000_000


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """A root file system, and another with /data/victim and an empty /data/work."""
    require_e2fsprogs()
    require_guest("disk.cpio")
    root, data = tmp_path / "root.ext4", tmp_path / "data.ext4"
    crash.build(root)
    disk_image.build(data, 16, {"data/victim": crash.SEED, "data/work/log": b""})
    return root, data


def asked(image: Path, request: str) -> str:
    run = [require_e2fsprogs()["debugfs"], "-R", request, str(image)]
    return subprocess.run(run, capture_output=True, check=True, text=True).stdout


def sectors(image: Path, path: str) -> tuple[int, int]:
    """The first and last sector of a file's second half, which is in one piece."""
    size = re.search(r"^Block size: +(\d+)$", asked(image, "stats -h"), re.MULTILINE)
    assert size is not None
    blocks = [int(number) for number in asked(image, f"blocks {path}").split()]
    half = blocks[len(blocks) // 2 :]
    assert half == list(range(half[0], half[0] + len(half)))
    each = int(size[1]) // SECTOR
    return half[0] * each, (half[-1] + 1) * each - 1


def fired(system: System) -> int:
    """How often the fault happened."""
    return int(system.stats().faults[0]["fired"])


@contextmanager
def running(images: tuple[Path, Path], fault: str) -> Iterator[tuple[System, Guest]]:
    """Debian with the second image on /mnt, which has this fault."""
    root, data = images
    with System(faults=[fault], seed=3) as system:
        good, bad = system.add_disk(root), system.add_disk(data, name="bad")
        guest = debian(system, disks=[good.use("xvda"), bad.use("xvdb")])
        guest.console.expect(r"root on /dev/xvda", within=120)
        assert command(guest, "mount -t ext4 /dev/xvdb /mnt && cd /mnt/data") == ""
        yield system, guest
        assert fired(system) > 0
        guest.console.send("poweroff\n")
        system.run(within=100)
        assert guest.ended
    fsck(root)


def test_a_file_that_cannot_be_read(images: tuple[Path, Path]) -> None:
    first, last = sectors(images[1], "/data/victim")
    with running(images, f"disk.read:device=bad,sectors={first}-{last}") as (_, guest):
        half = len(crash.SEED) // 2
        said = command(guest, f"dd if=victim of=/tmp/had bs={half} || echo refused")
        assert "Input/output error" in said
        assert "refused" in said
        assert command(guest, f"cmp -n {half} /tmp/had /data/seed") == ""
        assert "I/O error, dev xvdb, sector" in command(guest, "dmesg")
        assert command(guest, "echo well > other && sync other; cd /; umount /mnt") == ""
    fsck(images[1])
    assert content(images[1], "/data/victim") == crash.SEED
    assert content(images[1], "/data/other") == b"well\n"


def test_a_file_that_cannot_be_written(images: tuple[Path, Path]) -> None:
    first, last = sectors(images[1], "/data/victim")
    with running(images, f"disk.write:device=bad,sectors={first}-{last}") as (_, guest):
        said = command(guest, "dd if=/dev/zero of=victim bs=64k count=1 conv=notrunc,fsync || echo refused")
        assert "Input/output error" in said
        assert "refused" in said
        log = command(guest, "dmesg")
        assert "I/O error, dev xvdb, sector" in log
        assert "lost async page write" in log or "EXT4-fs warning" in log
        assert command(guest, "echo well > other && sync other; cd /; umount /mnt") == ""
    fsck(images[1])
    half = len(crash.SEED) // 2
    assert content(images[1], "/data/victim")[half:] == crash.SEED[half:]
    assert content(images[1], "/data/other") == b"well\n"


@pytest.mark.parametrize("fault", ["disk.flush:after=9,times=1", "disk.torn:probability=0.03"])
def test_a_disk_that_loses_writes(fault: str, images: tuple[Path, Path], tmp_path: Path) -> None:
    with running(images, fault.replace(":", ":device=bad,")) as (_, guest):
        guest.console.send("sh /data/syncs.sh /mnt/data/work 2>/dev/null\n")
        guest.console.expect(r"^failed at (\d+)$", within=600)
        last = crash.synced(guest.console.text)
        command(guest, "cd /; umount /mnt")
    assert last >= 0
    crash.check(images[1], last, tmp_path / "found")


def test_a_disk_that_takes_its_time(images: tuple[Path, Path]) -> None:
    with running(images, f"disk.slow:device=bad,probability=0.5,delay_ns={3 * SECOND}") as (system, guest):
        before = system.now_ns
        copies = "for n in 1 2 3 4 5; do cp victim copy$n; sync copy$n; done"
        assert command(guest, f"{copies}; cd /; umount /mnt") == ""
        assert fired(system) > 3
        assert system.now_ns - before > 3 * SECOND
    fsck(images[1])
    for number in range(1, 6):
        assert content(images[1], f"/data/copy{number}") == crash.SEED
