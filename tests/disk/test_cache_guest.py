"""The guest that knows the cache, on a whole machine; what it shows, and what others see of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from firmware.disk.client import Client
from machine.disk import DiskRequest, Operation
from xenpy.errors import BadInputError
from xenpy.guest import Guest
from xenpy.system import Reason, System

BLOCKS = 1024


class Neighbour:
    """Somebody else who uses the guest's disk."""

    def __init__(self, system: System, guest: Guest) -> None:
        hypervisor = system.hypervisor
        self.system = system
        self.memory = hypervisor.memory
        self.frame = self.memory.heap.xen_frame()
        domain = hypervisor.lifecycle.domains[guest.id]
        self.disk = hypervisor.disks.of(domain)[0].disk.disk
        self.queue = hypervisor.disks.queue(self.disk)
        self.client = Client("neighbour", 77)
        self.queue.add(self.client)
        self.done: list[DiskRequest] = []

    def transfer(self, operation: Operation, sector: int, data: bytes = bytes(4096)) -> None:
        self.system.machine.memory.write(self.frame << 12, data)
        request = DiskRequest(operation, sector, 8, ((self.frame << 12, 4096),), self.done.append)
        before = len(self.done)
        self.queue.submit(self.client, request)
        outcome = self.system.run(until=lambda: len(self.done) > before, within=10)
        assert outcome.reason is Reason.CONDITION
        assert not request.error


def block(seed: int) -> bytes:
    return random.Random(seed).randbytes(4096)


def word(data: bytes) -> str:
    return f"{int.from_bytes(data[:8], 'little'):#x}"


def test_a_guest_maps_blocks_that_others_read(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(block(1) + bytes((BLOCKS - 1) * 4096))
    with System(memory=64) as system:
        guest = system.add_domain(
            "builtin:blockcache", memory=16, disks=[f"format=raw, vdev=xvda, target={image}"],
            cache_calls=True)
        other = Neighbour(system, guest)
        other.transfer(Operation.READ, 0)
        guest.console.expect("^watching$")
        text = guest.console.text
        assert "virq: 0\ninfo: 0\nblocks of 4096 bytes\nmap: 0\n" in text.replace("\r", "")
        assert f"block 0: {word(block(1))}" in text
        assert "written: 0 error 0x3" in text
        other.transfer(Operation.WRITE, 0, block(2))
        guest.console.expect("^gone: events 1$")
        other.transfer(Operation.READ, 0)
        guest.console.expect(f"^block 0: {word(block(2))}$")
        guest.console.expect("^watching$")
        cache = system.hypervisor.cache
        assert cache is not None
        limit = cache.limit
        cache.set_limit(0)
        guest.console.expect("^gone: events 2$")
        cache.set_limit(limit)
        other.transfer(Operation.READ, 0)
        guest.console.expect("^unmap: 0$")
        guest.console.expect("^shown: 0$")
        guest.console.expect("^unmap again: -2$")
        guest.console.expect("^blockcache: done$")


@pytest.mark.parametrize("cache", [0, 16])
def test_a_domain_that_was_not_made_for_it_sees_plain_xen(cache: int, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(BLOCKS * 4096))
    with System(memory=32, disk_cache=cache) as system:
        guest = system.add_domain(
            "builtin:blockcache", memory=16, disks=[f"format=raw, vdev=xvda, target={image}"],
            cache_calls=not cache)
        guest.console.expect("^info: -38$")


def test_all_free_memory_builds_a_domain_while_the_cache_is_full(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(BLOCKS * 4096))
    with System(memory=64) as system:
        guest = system.add_domain(
            "builtin:hello", memory=16, disks=[f"format=raw, vdev=xvda, target={image}"])
        other = Neighbour(system, guest)
        for number in range(BLOCKS):
            request = DiskRequest(
                Operation.READ, number * 8, 8, ((other.frame << 12, 4096),), other.done.append)
            other.queue.submit(other.client, request)
        system.run(until=lambda: len(other.done) == BLOCKS, within=60)
        heap = system.hypervisor.memory.heap
        assert heap.cached == BLOCKS
        most = heap.available // 256
        with pytest.raises(BadInputError, match="free"):
            system.add_domain("builtin:hello", memory=most + 1)
        assert heap.cached == BLOCKS
        system.add_domain("builtin:hello", memory=most - 1)
        assert heap.cached < BLOCKS
        assert system.hypervisor.cache is not None
        assert system.hypervisor.cache.statistics.reclaimed == BLOCKS - heap.cached
