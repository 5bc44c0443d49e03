"""Injected faults: where they happen, what lands, and that a seed repeats them."""

from __future__ import annotations

import contextlib
import errno
import random
from pathlib import Path
from typing import Any

import pytest

from machine.disk import SECTOR, Disk, DiskRequest, Operation, RawFile, Spinning, WriteCache
from machine.faults import (
    DISK_FLUSH,
    DISK_POWER,
    DISK_READ,
    DISK_SLOW,
    DISK_TORN,
    DISK_WRITE,
    Fault,
    FaultError,
    Faults,
    PowerCut,
)
from tests.machine.disk.rig import QUICK_FOLDER, Rig
from tests.machine.rig import Rig as Cores


def rig(*faults: Fault, seed: int = 1, **options: Any) -> Rig:
    return Rig(faults=Faults(seed, faults), name="xvda", **options)


def test_a_bad_range_fails_reads_that_touch_it() -> None:
    disk = rig(Fault(DISK_READ, first=100, last=109))
    disk.medium.write(90, b"x" * 40 * SECTOR)
    errors = []
    for sector, sectors in ((90, 10), (90, 11), (109, 1), (110, 5), (95, 30)):
        disk.memory.fill(0, 40 * SECTOR, 7)
        request = disk.submit(Operation.READ, sector, sectors, ((0, sectors * SECTOR),))
        disk.run()
        errors.append(request.error)
        assert disk.memory.read(0, SECTOR) == (b"\7" if request.error else b"x") * SECTOR
    assert errors == [0, errno.EIO, errno.EIO, 0, errno.EIO]
    assert disk.write(100, bytes(512)).error == 0
    assert disk.disk.counters.errors == 3


def test_a_failed_write_lands_nowhere() -> None:
    disk = rig(Fault(DISK_WRITE, times=2))
    assert disk.write(5, b"x" * 512).error == errno.EIO
    discard = disk.submit(Operation.DISCARD, 0, 8, ())
    disk.run()
    assert discard.error == errno.EIO
    assert disk.medium.read(5, 1) == bytes(512)
    assert disk.write(5, b"x" * 512).error == 0
    assert disk.medium.read(5, 1) == b"x" * 512


def test_a_torn_write_lands_from_the_front() -> None:
    disk = rig(Fault(DISK_TORN))
    seen = set()
    for index in range(100):
        first = index * 10
        disk.memory.fill(0x1000, 6 * SECTOR, 9)
        disk.memory.fill(0x8000, 2 * SECTOR, 9)
        pieces = ((0x1000, 6 * SECTOR), (0x8000, 2 * SECTOR))
        request = disk.submit(Operation.WRITE, first, 8, pieces)
        disk.run()
        assert request.error == errno.EIO
        found = disk.medium.read(first, 10)
        landed = found.count(9) // SECTOR
        assert found == b"\t" * landed * SECTOR + bytes((10 - landed) * SECTOR)
        seen.add(landed)
    assert seen == set(range(8))


def test_a_failed_flush_promises_nothing(tmp_path: Path) -> None:
    disk = rig(Fault(DISK_FLUSH, times=1), medium=WriteCache(RawFile.create(tmp_path / "i", 100)))
    disk.write(1, b"x" * 512)
    answers = []
    for _ in range(2):
        flush = disk.submit(Operation.FLUSH, 0, 0, ())
        disk.run()
        answers.append((flush.error, (tmp_path / "i").read_bytes()[512:1024] == b"x" * 512))
    assert answers == [(errno.EIO, False), (0, True)]
    disk.disk.close()


def test_a_slow_request_takes_longer_and_holds_up_the_queue() -> None:
    plain, slow = rig(), rig(Fault(DISK_SLOW, after=1, times=1, delay_ns=70_000_000))
    for disk in (plain, slow):
        for sector in (0, 1000, 2000):
            disk.submit(Operation.READ, sector, 1, ((0, 512),))
        disk.run()
    assert slow.done[0].finished == plain.done[0].finished
    assert slow.done[1].finished == plain.done[1].finished + 70_000_000
    assert slow.done[2].started == slow.done[1].finished
    assert [request.error for request in slow.done] == [0, 0, 0]


def test_the_power_fails_once_and_the_machine_stops(tmp_path: Path) -> None:
    disk = rig(Fault(DISK_POWER, after=2), medium=WriteCache(RawFile.create(tmp_path / "i", 100)))
    disk.write(0, b"a" * 512)
    flush = disk.submit(Operation.FLUSH, 0, 0, ())
    disk.run()
    assert flush.error == 0
    with pytest.raises(PowerCut, match=r"^The power failed in <WRITE of 8 sectors at 8> of disk 'xvda'\.$"):
        disk.write(8, b"b" * 4096)
    disk.disk.close()
    after = (tmp_path / "i").read_bytes()
    assert after[:512] == b"a" * 512
    assert set(after[8 * 512 : 16 * 512]) <= {0, ord("b")}


def test_a_power_cut_stops_a_running_machine() -> None:
    with Cores("x: jmp x") as cores:
        machine = cores.machine
        disk = Disk(machine.clock, machine.memory, RawFile.temporary(8), Spinning(8),
                    Faults(1, [Fault(DISK_POWER)]))
        done: list[DiskRequest] = []
        disk.submit(DiskRequest(Operation.READ, 0, 1, ((0, 512),), done.append))
        with pytest.raises(PowerCut):
            machine.run(deadline_ns=1_000_000_000)
        assert machine.clock.now < 100_000_000
        assert done == []


def test_power_cuts_at_every_write_keep_what_was_flushed() -> None:
    for cut_at in range(40):
        below = RawFile.temporary(64, QUICK_FOLDER)
        medium = WriteCache(below)
        disk = rig(Fault(DISK_POWER, after=cut_at), medium=medium, seed=cut_at)
        rng = random.Random(5)
        flushed = [0] * 64
        current = [0] * 64
        with contextlib.suppress(PowerCut):
            for number in range(1, 60):
                if number % 5 == 0:
                    flush = disk.submit(Operation.FLUSH, 0, 0, ())
                    disk.run()
                    assert flush.error == 0
                    flushed = list(current)
                    continue
                first = rng.randrange(56)
                for index in range(first, first + 8):
                    current[index] = number
                disk.write(first, bytes([number]) * 4096)
        assert len(disk.done) == cut_at, "the power did fail, then"
        found = below.read(0, 64)
        for sector in range(64):
            data = found[sector * 512 : (sector + 1) * 512]
            assert len(set(data)) == 1, "sectors are whole"
            assert data[0] >= flushed[sector]
            assert data[0] <= max(current[sector], flushed[sector])


def test_a_fault_is_its_devices_own() -> None:
    disk = rig(Fault(DISK_READ, device="xvdb"))
    disk.read(0, 1)
    disk = rig(Fault(DISK_READ, device="xvda"))
    request = disk.submit(Operation.READ, 0, 1, ((0, 512),))
    disk.run()
    assert request.error == errno.EIO


def outcomes(seed: int, *faults: Fault) -> list[int]:
    disk = rig(*faults, seed=seed)
    return [disk.write(index, bytes(512)).error for index in range(200)]


def test_a_seed_repeats_its_faults() -> None:
    fault = Fault(DISK_WRITE, probability=0.25)
    first = outcomes(1, fault)
    assert first == outcomes(1, fault)
    assert first != outcomes(2, fault)
    assert 25 < first.count(errno.EIO) < 80


def test_another_fault_does_not_move_the_first() -> None:
    fault = Fault(DISK_WRITE, probability=0.25)
    assert outcomes(1, fault) == outcomes(1, fault, Fault(DISK_SLOW, probability=0.5), Fault(DISK_READ))


def test_after_and_times() -> None:
    errors = outcomes(1, Fault(DISK_WRITE, after=3, times=2))
    assert [index for index, error in enumerate(errors) if error] == [3, 4]


def test_an_abandoned_request_meets_no_fault() -> None:
    faults = Faults(1, [Fault(DISK_WRITE)])
    disk = Rig(faults=faults)
    request = DiskRequest(Operation.WRITE, 0, 1, ((0, 512),), disk.done.append, "me")
    disk.disk.submit(request)
    disk.disk.abandon("me")
    disk.run()
    assert faults.injections[0].fitted == 0


@pytest.mark.parametrize(("text", "fault"), [
    ("disk.read", Fault(DISK_READ)),
    ("disk.read:sectors=7", Fault(DISK_READ, first=7, last=7)),
    ("disk.torn:device=xvda,sectors=7-90,probability=0.5,after=3,times=4",
     Fault(DISK_TORN, "xvda", 7, 90, 0.5, 3, 4)),
    ("disk.slow:delay_ns=5", Fault(DISK_SLOW, delay_ns=5)),
])
def test_faults_that_someone_types(text: str, fault: Fault) -> None:
    assert Fault.parse(text) == fault


@pytest.mark.parametrize("text", [
    "", "disk", "disk.boom", "disk.read:", "disk.read:x", "disk.read:color=red", "disk.read:sectors=a",
    "disk.read:sectors=9-3", "disk.read:probability=2", "disk.read:probability=nan", "disk.read:after=-1",
    "disk.read:times=x", "disk.read:sectors=",
])
def test_faults_that_cannot_be(text: str) -> None:
    if text == "disk.read:":
        assert Fault.parse(text) == Fault(DISK_READ)
        return
    with pytest.raises(FaultError, match=r"\.$"):
        Fault.parse(text)
