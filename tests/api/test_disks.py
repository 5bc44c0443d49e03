"""Disks in the API: opened, shared, scheduled, faulty, attached and detached while a guest runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from firmware.disk.extents import Extent
from firmware.sched.parameters import ParameterError
from machine.disk import RawFile
from machine.faults import Fault
from tests.cli import kernels
from xenpy import System
from xenpy.diskspec import DiskSpec
from xenpy.errors import BadInputError

Machine = Callable[..., System]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.mark.parametrize("text", [
    "IMAGE,raw,xvda,rw", "IMAGE,,xvda", "IMAGE,,xvda,w", " IMAGE,raw, xvda, rw", "IMAGE,,xvda,,",
    "format=raw, vdev=xvda, access=rw, target=IMAGE", "vdev=xvda,target=IMAGE", "raw:IMAGE,xvda,w",
    "tap:aio:IMAGE,xvda,w", "phy:IMAGE,xvda,w", "IMAGE,vdev=xvda", ",raw,xvda,rw,target=IMAGE",
    "devtype=disk,backendtype=qdisk,direct-io-safe,trusted,specification=xen,vdev=xvda,target=IMAGE",
])
def test_words_that_mean_the_same(text: str) -> None:
    assert DiskSpec.parse(text) == DiskSpec("IMAGE", "xvda")


@pytest.mark.parametrize(("text", "spec"), [
    ("/i.iso,,hdc,cdrom", DiskSpec("/i.iso", "hdc", cdrom=True, read_only=True)),
    ("/i.iso,raw,hdc,devtype=cdrom", DiskSpec("/i.iso", "hdc", cdrom=True, read_only=True)),
    ("raw:/i.iso,hdc:cdrom,ro", DiskSpec("/i.iso", "hdc", cdrom=True, read_only=True)),
    ("vdev=xvdb,no-discard,access=ro,target=a,b=c ",
     DiskSpec("a,b=c ", "xvdb", read_only=True, discard=False)),
    ("x,qcow2,sda1,snapshot", DiskSpec("x", "sda1", format="qcow2", snapshot=True)),
    ("x,,51712,overlay=o,model=spinning,sched=cello,write-cache,shared,extents=0+8:16+8",
     DiskSpec("x", "xvda", overlay="o", model="spinning", scheduler="cello", write_cache=True, shared=True,
              extents=(Extent(0, 8), Extent(16, 8)))),
])
def test_words(text: str, spec: DiskSpec) -> None:
    assert DiskSpec.parse(text) == spec


@pytest.mark.parametrize("text", [
    "", ",", "IMAGE", "vdev=xvda", "IMAGE,raw,xvda,rw,rw", "IMAGE,raw,xvda,format=raw", "IMAGE,,xvda,=x",
    "IMAGE,vhd,xvda", "iscsi:IMAGE,xvda,w", "vdev=xvda,vdev=xvdb,target=x", "IMAGE,,xvda,untrusted",
    "IMAGE,,xvda,colo", "IMAGE,,xvda,specification=virtio", "IMAGE,,xvda,backendtype=standalone",
    "IMAGE,,xvda,snapshot,overlay=x", "IMAGE,,xvda,extents=1", "IMAGE,,xvda:tape", "IMAGE,,xvda,no-such=1",
])
def test_words_that_mean_nothing(text: str) -> None:
    with pytest.raises(BadInputError, match=r"^disk "):
        DiskSpec.parse(text)


def test_one_disk_for_many_guests(machine: Machine, image: Path) -> None:
    system = machine(memory=128)
    disk = system.add_disk(image, model="spinning", scheduler="cello", settings={"share": "bytes"})
    guests = [
        system.add_domain(kernels.sleep_forever(), memory=8, disks=[disk.use("xvda", extents=[(at, 8)])])
        for at in (0, 8, 16)
    ]
    assert [guest.disks[0].sectors for guest in guests] == [8, 8, 8]
    assert (disk.scheduler, disk.settings["share"], disk.model) == ("cello", "bytes", "spinning")
    disk.set_share(guests[1], weight=300)
    assert [disk.share(guest)["weight"] for guest in guests] == [100, 300, 100]
    disk.tune(interval_ms=200)
    assert disk.settings["interval_ms"] == 200
    with pytest.raises(ParameterError, match="weigh"):
        disk.set_share(guests[1], weigh=3)
    disk.set_scheduler("batch", batch=4)
    assert disk.settings["batch"] == 4
    with pytest.raises(ParameterError, match="there is no disk scheduler"):
        disk.set_scheduler("elevator")
    disk.set_scheduler("cello")
    assert [row["domain"] for row in system.stats().disks[0]["guests"]] == [1, 2, 3]
    with pytest.raises(BadInputError, match="uses too"):
        guests[0].attach_disk(disk.use("xvdb", extents=[(4, 8)]))
    shared = guests[0].attach_disk(disk.use("xvdb", extents=[(4, 8)], shared=True))
    assert shared.state == "waiting for the guest"
    with pytest.raises(BadInputError, match="not inside"):
        disk.use("xvdc", extents=[(2047, 2)])
    with pytest.raises(BadInputError, match="xvd"):
        disk.use("floppy")


def test_attach_and_detach(machine: Machine, image: Path, tmp_path: Path) -> None:
    system = machine(memory=128)
    guest = system.add_domain(kernels.sleep_forever(), memory=8)
    assert guest.disks == []
    made = guest.attach_disk(f"format=raw, vdev=xvda, access=rw, target={image}")
    assert (made.vdev, made.state, made.read_only, made.halted, made.in_flight) == (
        "xvda", "waiting for the guest", False, "", 0)
    assert made.statistics.reads == 0
    with pytest.raises(BadInputError, match="two disks xvda"):
        guest.attach_disk(f"{image},,xvda")
    with pytest.raises(BadInputError, match="no disk xvdb"):
        guest.detach_disk("xvdb")
    assert guest.detach_disk("xvda")
    assert guest.disks == []
    guest.attach_disk(f"{image},,xvda")
    assert guest.detach_disk("xvda", force=True)
    assert [disk.name for disk in system.disks] == ["xvda"]
    # What could not be attached is not left open.
    other = tmp_path / "other.img"
    other.write_bytes(bytes(4096))
    with pytest.raises(BadInputError, match="not inside"):
        guest.attach_disk(f"{other},,xvdb,extents=8+1")
    with pytest.raises(BadInputError, match="machine has"):
        system.add_domain("builtin:hello", memory=4000, disks=[f"{other},,xvda"])
    RawFile.open(other).close()
    with pytest.raises(BadInputError, match="in use"), System() as second:
        second.add_disk(image)
    assert len(system.disks) == 1


def test_media(machine: Machine, image: Path, tmp_path: Path) -> None:
    system = machine(memory=64)
    assert system.add_disk(size=3).sectors == 6144
    snapshots = [system.add_disk(image, snapshot=True, name=name) for name in ("one", "two")]
    assert [disk.device.read_only for disk in snapshots] == [False, False]
    overlay = system.add_disk(image, overlay=tmp_path / "o", write_cache=True)
    assert overlay.name == "disk.img"
    for wrong, said in (
        ({"target": image, "model": "tape"}, "no disk model"), ({"target": image, "format": "vmdk"}, "vmdk"),
        ({}, "either"), ({"target": image, "size": 1}, "either"), ({"size": 0}, "1 to"),
        ({"target": image, "snapshot": True, "overlay": "x"}, "either"),
        ({"target": image, "snapshot": True, "scheduler": "x"}, "no disk scheduler"),
        ({"target": image, "snapshot": True, "scheduler": "cello", "settings": {"queue": 0}}, "1 to 1024"),
    ):
        with pytest.raises(BadInputError, match=said):
            system.add_disk(**wrong)
    assert len(system.disks) == 4


def test_a_name_that_no_file_has(machine: Machine) -> None:
    with pytest.raises(BadInputError, match="cannot be opened: embedded null byte"):
        machine().add_disk("one\0two")


def test_faults_and_the_cache(machine: Machine) -> None:
    with pytest.raises(BadInputError, match="no fault"):
        machine(faults=["disk.melt"])
    system = machine(memory=64, faults=["disk.read:device=a,times=2", Fault("disk.flush")], disk_cache=2)
    system.add_disk(size=1, name="a")
    stats = system.stats()
    assert [(row["point"], row["device"]) for row in stats.faults] == [("disk.read", "a"), ("disk.flush", "")]
    assert stats.disk_cache["limit"] == 512
    system.resize_disk_cache(1)
    assert system.stats().disk_cache["limit"] == 256
    with pytest.raises(ValueError, match="no cache"):
        machine(memory=64, disk_cache=0).resize_disk_cache(1)
