"""Debian's stock kernel on an ext4 root over its own blkfront, and GRUB; the host checks the images."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from firmware.disk.extents import Extent
from machine.disk import Disk, Flash, RawFile
from tests.disk.linux import attach, command, content, debian, domain_of, fsck, machine
from tests.support.guests import require_guest
from tests.support.programs import require_e2fsprogs
from tools import disk_image

pytestmark = pytest.mark.guest

GUEST_HOME = "/root"
FILES = 60
CHURN = b"""
set -e
cd
tar xf tree.tar
dd if=/dev/urandom of=big bs=64k count=96 2>/dev/null
turn=0
while [ $turn -lt 3 ]; do
    cp -a tree copy$turn
    for name in copy$turn/*/*0.bin; do mv $name $name.old; done
    rm -r copy$turn/2
    tar cf - copy$turn | tar xf - -C /mnt
    turn=$((turn + 1))
done
rm -r copy0
sync
echo 3 > /proc/sys/vm/drop_caches
dd if=big of=/mnt/big bs=300k 2>/dev/null
find tree copy1 copy2 big -type f | sort | xargs sha256sum > sums
cmp big /mnt/big
sync
echo churned
"""


def tree() -> tuple[bytes, dict[str, bytes]]:
    """A tar archive and the files in it."""
    chance = random.Random(7)
    files = {
        f"tree/{number % 4}/{number}.bin": chance.randbytes(chance.choice((0, 1, 511, 4096, 5000, 70_000)))
        for number in range(FILES)
    }
    archive = io.BytesIO()
    with tarfile.open(None, "w", archive) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue(), files


def check_files(image: Path, files: dict[str, bytes]) -> None:
    """Every file has the sum that the guest wrote down, and the contents that it should have."""
    lines = content(image, f"{GUEST_HOME}/sums").decode().splitlines()
    sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    expected = {
        **files,
        **{
            name.replace("tree/", f"copy{turn}/").replace("0.bin", "0.bin.old"): data
            for turn in (1, 2) for name, data in files.items() if not name.startswith("tree/2/")
        },
    }
    assert set(sums) == {*expected, "big"}
    for name, data in expected.items():
        assert sums[name] == hashlib.sha256(data).hexdigest(), name
        assert content(image, f"{GUEST_HOME}/{name}") == data, name
    big = content(image, f"{GUEST_HOME}/big")
    assert len(big) == 96 << 16
    assert hashlib.sha256(big).hexdigest() == sums["big"]
    assert content(image, "/mnt/big") == big


WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "a large ring, no kept grants": {
        "cmdline": "blkfront.max_ring_page_order=4 blkfront.feature_persistent=0 "
                   "blkfront.max_indirect_segments=128"},
    "two queues on a spinning disk": {"vcpus": 2, "cmdline": "blkfront.max_ring_page_order=1"},
}


@pytest.mark.parametrize("way", WAYS)
def test_linux_lives_on_its_disk_and_leaves_it_clean(way: str, tmp_path: Path) -> None:
    require_e2fsprogs()
    require_guest("disk.cpio")
    image = tmp_path / "root.ext4"
    archive, files = tree()
    disk_image.build(image, 64, {"root/tree.tar": archive, "root/churn.sh": CHURN})
    with machine(image, spinning="spinning" in way, cpus=2) as (system, disk):
        guest = debian(system, **WAYS[way])
        backend = attach(system, guest, "xvda", disk)
        guest.console.expect(r"root on /dev/xvda", within=120)
        domain = domain_of(system, guest)
        store = system.hypervisor.store
        front = f"/local/domain/{guest.id}/device/vbd/51712"
        if "large" in way:
            assert store.read(f"{front}/ring-page-order") == b"4"
            assert store.read(f"{front}/feature-persistent") == b"0"
        if "queues" in way:
            assert store.read(f"{front}/multi-queue-num-queues") == b"2"
        assert "churned" in command(guest, "sh ~/churn.sh")
        guest.console.send("poweroff\n")
        system.run(within=100)
        assert guest.ended
        assert backend.statistics.errors == 0
        assert backend.statistics.flushes > 0
        assert backend.grants_in_use == 0
        assert system.hypervisor.memory.grants.table(domain.memory).active == {}
        system.hypervisor.destroy_domain(domain)
    fsck(image)
    check_files(image, files)


def test_disks_come_and_go_while_linux_runs(tmp_path: Path) -> None:
    require_e2fsprogs()
    require_guest("disk.cpio")
    image, other, plain = tmp_path / "root.ext4", tmp_path / "data.ext4", tmp_path / "plain"
    disk_image.build(image, 32)
    disk_image.build(other, 32, {"hello": b"from the second disk\n"})
    plain.write_bytes(bytes(range(256)) * 2 * 4096)
    with machine(image) as (system, disk):
        parts = system.machine
        second = Disk(parts.clock, parts.memory, RawFile.open(other), Flash(), name="data")
        third = Disk(parts.clock, parts.memory, RawFile.open(plain), Flash(), name="plain")
        guest = debian(system)
        attach(system, guest, "xvda", disk)
        guest.console.expect(r"root on /dev/xvda", within=120)
        domain = domain_of(system, guest)
        for turn in range(2):
            backend = attach(system, guest, "xvdb", second)
            assert command(guest, "usleep 100000; mount -t ext4 /dev/xvdb /mnt; cat /mnt/hello") == (
                "from the second disk")
            assert command(guest, f"echo {turn} >> /mnt/turns; umount /mnt") == ""
            assert not system.hypervisor.detach_disk(domain, "xvdb")
            assert command(guest, "usleep 100000; ls /dev/xvdb || echo gone").endswith("gone")
            assert backend.grants_in_use == 0
            assert [found.disk.name for found in system.hypervisor.disks.of(domain)] == ["xvda"]
        attach(system, guest, "xvdc", third, readonly=True, extents=(Extent(4000, 96), Extent(1, 1)))
        digest = hashlib.sha256(bytes(range(256)) * 2 * 97).hexdigest()
        assert command(guest, "usleep 100000; sha256sum < /dev/xvdc").split()[0] == digest
        assert command(guest, "cat /sys/block/xvdc/ro /sys/block/xvdc/size").split() == ["1", "97"]
        assert command(guest, "dd if=/dev/zero of=/dev/xvdc count=1 2>/dev/null || echo refused") == "refused"
        guest.console.send("poweroff\n")
        system.run(within=100)
        second.close()
        third.close()
    assert plain.read_bytes() == bytes(range(256)) * 2 * 4096
    fsck(image)
    fsck(other)
    assert content(other, "/turns") == b"0\n1\n"


@pytest.mark.parametrize(("image", "protocol"), [
    ("grub-x86_64-xen.bin", b"x86_64-abi"), ("grub-i386-xen.bin", b"x86_32-abi"),
])
def test_grub_reads_a_disk_over_its_own_driver(image: str, protocol: bytes, tmp_path: Path) -> None:
    require_e2fsprogs()
    path = tmp_path / "disk.ext4"
    disk_image.build(path, 16, {"etc/motd": b"greetings from the disk\n"})
    with machine(path) as (system, disk):
        guest = system.add_domain(require_guest(image))
        attach(system, guest, "xvda", disk, readonly=True)
        guest.console.expect(r"grub> $", within=100)
        front = f"/local/domain/{guest.id}/device/vbd/51712"
        assert system.hypervisor.store.read(f"{front}/protocol") == protocol
        guest.console.send("cat (xen/xvda)/etc/motd\n")
        guest.console.expect("greetings from the disk", within=100)


def test_grub_loads_linux_from_the_disk_and_hands_it_over(tmp_path: Path) -> None:
    require_e2fsprogs()
    image = tmp_path / "root.ext4"
    disk_image.build(image, 64, {
        "boot/vmlinuz": require_guest("vmlinuz").read_bytes(),
        "boot/disk.cpio": require_guest("disk.cpio").read_bytes(), "etc/motd": b"greetings from the disk\n",
    })
    with machine(image) as (system, disk):
        guest = system.add_domain(require_guest("grub-x86_64-xen.bin"), memory=256)
        backend = attach(system, guest, "xvda", disk)
        console = guest.console
        for line in (
            "cat (xen/xvda)/etc/motd", "linux (xen/xvda)/boot/vmlinuz console=hvc0 quiet root=/dev/xvda",
            "initrd (xen/xvda)/boot/disk.cpio", "boot",
        ):
            console.expect(r"grub> $", within=100)
            console.send(f"{line}\n")
        assert "greetings from the disk" in console.text
        console.expect(r"root on /dev/xvda", within=120)
        digest = hashlib.sha256(require_guest("vmlinuz").read_bytes()).hexdigest()
        assert command(guest, "sha256sum /boot/vmlinuz").split()[0] == digest
        console.send("poweroff\n")
        system.run(within=100)
        assert backend.statistics.errors == 0
        assert backend.grants_in_use == 0
    fsck(image)


