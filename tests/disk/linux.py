"""Debian's stock kernel with disks, asked by its shell; what the host's own tools say of its images."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from firmware.disk.backend import BlockBackend
from firmware.domain.domain import Domain
from machine.disk import Disk, Flash, Model, RawFile, Spinning
from tests.support.guests import require_guest
from tests.support.programs import require_e2fsprogs
from xenpy.guest import Guest
from xenpy.system import System


@contextmanager
def machine(image: Path, *, spinning: bool = False, cpus: int = 1) -> Iterator[tuple[System, Disk]]:
    """A system and a disk of this image."""
    with System(cpus=cpus) as system:
        parts, medium = system.machine, RawFile.open(image)
        model: Model = Spinning(medium.sectors) if spinning else Flash()
        disk = Disk(parts.clock, parts.memory, medium, model, name=image.name)
        yield system, disk
        disk.close()


def attach(system: System, guest: Guest, name: str, disk: Disk, **options: Any) -> BlockBackend:
    return system.hypervisor.attach_disk(domain_of(system, guest), name, disk, **options)


def domain_of(system: System, guest: Guest) -> Domain:
    return system.hypervisor.lifecycle.domains[guest.id]


def debian(system: System, cmdline: str = "", **options: Any) -> Guest:
    return system.add_domain(
        require_guest("vmlinuz"), memory=256, cmdline=f"console=hvc0 quiet root=/dev/xvda {cmdline}",
        ramdisk=require_guest("disk.cpio"), **options)


def command(guest: Guest, line: str) -> str:
    """What a shell command says."""
    guest.console.send(f"echo begin$((1 + 1)); {line}; echo status=$?.\n")
    said = guest.console.expect(r"(?s)^begin2$(.*?)^status=(\d+)\.", within=300)
    assert said[2] == "0", said[0]
    return str(said[1]).strip()


def fsck(image: Path) -> None:
    run = [require_e2fsprogs()["e2fsck"], "-f", "-n", str(image)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def content(image: Path, path: str) -> bytes:
    """A file of an image as the host's own reader of ext4 sees it."""
    run = [require_e2fsprogs()["debugfs"], "-R", f"cat {path}", str(image)]
    return subprocess.run(run, capture_output=True, check=True).stdout
