"""Whatever goes wrong with Debian's disk: what fsync acknowledged is there, and errors are errors."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from firmware.abi.sched import SHUTDOWN_poweroff
from machine.disk import Disk, Flash
from tests.disk import crash
from tests.disk.linux import attach, debian, domain_of
from tests.support.guests import require_guest
from tests.support.programs import require_e2fsprogs
from xenpy.guest import Guest
from xenpy.system import Reason, System

pytestmark = pytest.mark.guest

MILLISECOND = 1_000_000


@pytest.fixture
def image(tmp_path: Path) -> Path:
    require_e2fsprogs()
    require_guest("disk.cpio")
    path = tmp_path / "root.ext4"
    crash.build(path)
    return path


def start(guest: Guest) -> None:
    guest.console.expect(r"root on /dev/xvda", within=120)
    guest.console.send("sh /data/syncs.sh 2>/dev/null\n")
    guest.console.expect(r"^synced 0$", within=60)


def run_for(system: System, ns: int) -> None:
    end = system.now_ns + ns
    system.run(until=lambda: system.now_ns >= end, within=60)


def crashes(image: Path, scratch: Path, moments: int, seed: int) -> None:
    chance = random.Random(seed)
    with System() as system:
        parts, medium = system.machine, crash.CrashDisk(image.read_bytes())
        disk = Disk(parts.clock, parts.memory, medium, Flash(), name="crash")
        guest = debian(system)
        attach(system, guest, "xvda", disk)
        start(guest)
        before = -1
        for moment in range(moments):
            run_for(system, chance.randrange(2 * MILLISECOND, 90 * MILLISECOND))
            last = crash.synced(guest.console.text)
            image.write_bytes(medium.crash(chance))
            crash.check(image, last, scratch / str(moment))
            assert last >= before
            before = last
        assert before > moments // 4
        assert medium.flushes > before


def test_what_fsync_acknowledged_is_there_after_a_crash_at_any_moment(image: Path, tmp_path: Path) -> None:
    crashes(image, tmp_path, 12, 1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_crashes_at_many_moments(seed: int, image: Path, tmp_path: Path) -> None:
    crashes(image, tmp_path, 100, 100 + seed)


POWER_FAILS = "the power fails in the middle of a write"
WAYS = ("killed", "killed, then its disk's power fails", POWER_FAILS)


@pytest.mark.parametrize("way", WAYS)
def test_what_fsync_acknowledged_outlives_its_domain(way: str, image: Path, tmp_path: Path) -> None:
    chance = random.Random(way)
    faults = ["disk.power:device=root.ext4,after=400,times=1"] if way == POWER_FAILS else []
    with System(faults=faults, seed=5) as system:
        disk = system.add_disk(image, write_cache="power" in way)
        guest = debian(system, disks=[disk.use("xvda")])
        mine, = guest.disks
        start(guest)
        if way == POWER_FAILS:
            assert system.run(within=60).reason is Reason.POWER
        else:
            run_for(system, chance.randrange(400 * MILLISECOND, 800 * MILLISECOND))
            assert system.run(until=lambda: mine.in_flight > 0, within=60).reason is Reason.CONDITION
            domain = domain_of(system, guest)
            system.hypervisor.lifecycle.shutdown(domain, SHUTDOWN_poweroff)
            system.hypervisor.destroy_domain(domain)
            system.run(within=10)
            assert disk.idle
            assert disk.device.counters.abandoned > 0
            if "power" in way:
                disk.device.medium.power_cut(chance)
        last = crash.synced(guest.console.text)
    assert last >= 2
    crash.check(image, last, tmp_path / "found")
