"""What a disk holds after a crash, and a guest's workload that says what it was promised to find there."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path
from typing import Final

from machine.disk import SECTOR, Medium
from machine.disk.medium import Views
from tests.support.programs import require_e2fsprogs
from tools import disk_image

SEED: Final = random.Random(11).randbytes(64 << 10)
SYNCS: Final = b"""
cd ${1:-/data/work}
n=0
while :; do
    dd if=/data/seed of=new bs=512 skip=$((n * 7 % 60)) count=$((n * 5 % 40 + 1)) conv=fsync || break
    mv new f$n
    echo line $n >> log
    [ $((n % 4)) = 3 ] && rm f$((n - 3))
    sync log . || break
    echo synced $n
    n=$((n + 1))
done
echo failed at $n
"""
"""Each turn makes a file, renames it, appends to another, removes an older one now and then, and tells when
all that is on the disk.
"""


def build(image: Path, mib: int = 32) -> None:
    """A root file system with the workload in /data/syncs.sh."""
    disk_image.build(image, mib, {"data/syncs.sh": SYNCS, "data/seed": SEED, "data/work/log": b""})


def synced(console: str) -> int:
    """The last turn that was on the disk, as the guest said it; -1 for none."""
    found = re.findall(r"^synced (\d+)$", console[: console.rfind("\n") + 1], re.MULTILINE)
    return int(found[-1]) if found else -1


def check(image: Path, last: int, scratch: Path) -> None:
    """The journal repairs the image, and everything up to turn `last` is there."""
    programs = require_e2fsprogs()
    for how, good in (("-p", (0, 1)), ("-n", (0,))):
        run = [programs["e2fsck"], "-f", how, str(image)]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        assert done.returncode in good, done.stdout
    scratch.mkdir()
    subprocess.run([programs["debugfs"], "-R", f"rdump /data/work {scratch}", str(image)],
                   capture_output=True, check=True)
    work = scratch / "work"
    for n in range(last + 1):
        path = work / f"f{n}"
        if n % 4 == 0 and n + 3 <= last:
            assert not path.exists(), path
        elif n % 4 != 0 or n + 3 > last + 1:
            begin = n * 7 % 60 * SECTOR
            assert path.read_bytes() == SEED[begin : begin + (n * 5 % 40 + 1) * SECTOR], path
    lines = (work / "log").read_text().splitlines()
    assert lines[: last + 1] == [f"line {n}" for n in range(last + 1)]


class CrashDisk(Medium):
    """An image in memory. What was not flushed has landed or not when it crashes, sector by sector."""

    __slots__ = ("_flushed", "_now", "_unflushed", "flushes")

    def __init__(self, data: bytes) -> None:
        self._now = bytearray(data)
        self._flushed = bytearray(data)
        self._unflushed: dict[int, None] = {}
        self.sectors = len(data) // SECTOR
        self.read_only = False
        self.flushes = 0

    def read_into(self, sector: int, views: Views) -> None:
        at = sector * SECTOR
        for view in views:
            view[:] = self._now[at : at + view.nbytes]
            at += view.nbytes

    def write_from(self, sector: int, views: Views) -> None:
        data = b"".join(views)
        self._now[sector * SECTOR : sector * SECTOR + len(data)] = data
        self._unflushed.update(dict.fromkeys(range(sector, sector + len(data) // SECTOR)))

    def discard(self, sector: int, sectors: int) -> None:
        self.write_from(sector, [memoryview(bytes(sectors * SECTOR))])

    def flush(self) -> None:
        self.flushes += 1
        for sector in self._unflushed:
            self._land(self._flushed, sector)
        self._unflushed.clear()

    def close(self) -> None:
        """Nothing is kept."""

    def crash(self, chance: random.Random) -> bytes:
        """What the disk holds if the power fails now."""
        left = bytearray(self._flushed)
        for sector in self._unflushed:
            if chance.random() < 0.5:
                self._land(left, sector)
        return bytes(left)

    def _land(self, image: bytearray, sector: int) -> None:
        begin = sector * SECTOR
        image[begin : begin + SECTOR] = self._now[begin : begin + SECTOR]
