"""Domains with memory, grants, ports and a store, and emulated disks in memory; no processor."""

from __future__ import annotations

from typing import Any, cast

from firmware.disk.attach import Disks
from firmware.disk.backend import BlockBackend
from firmware.disk.vbd import VirtualDisk
from firmware.domain.domain import Domain, DomainState
from firmware.domain.vcpu import VCpu
from firmware.events import EventChannelOps, EventChannels
from firmware.memory.floor import MemoryFloor
from firmware.memory.frames import COUNT_SHIFT, WRITABLE
from firmware.memory.owner import MemoryOwner
from firmware.store.boot import Boot, populate
from firmware.store.store import Store
from machine.clock import Clock
from machine.disk import SECTOR, Disk, DiskRequest, Head, Medium, Operation
from machine.memory import MachineMemory
from tests.memory.world import PlainCore

MIB = 1 << 20
FIRST_FREE = 16
TIME_NS = 100_000
"""What a request takes of the steady disk."""


class Ram(Medium):
    """A medium in memory. `fail` is the errno of every transfer, 0 for none."""

    def __init__(self, sectors: int, *, read_only: bool = False) -> None:
        self.data = bytearray(sectors * SECTOR)
        self.sectors = sectors
        self.read_only = read_only
        self.fail = 0
        self.flushed = bytes(self.data)

    def read_into(self, sector: int, views: Any) -> None:
        self._check()
        at = sector * SECTOR
        for view in views:
            view[:] = self.data[at : at + view.nbytes]
            at += view.nbytes

    def write_from(self, sector: int, views: Any) -> None:
        self._check()
        data = b"".join(views)
        self.data[sector * SECTOR : sector * SECTOR + len(data)] = data

    def flush(self) -> None:
        self._check()
        self.flushed = bytes(self.data)

    def discard(self, sector: int, sectors: int) -> None:
        self._check()
        self.data[sector * SECTOR : (sector + sectors) * SECTOR] = bytes(sectors * SECTOR)

    def close(self) -> None:
        pass

    def _check(self) -> None:
        if self.fail:
            raise OSError(self.fail, "injected")


class Steady:
    """A disk for which every request takes the same time, several at once."""

    name = "steady"

    def __init__(self, depth: int = 8, concurrent: int = 4) -> None:
        self.depth = depth
        self.concurrent = concurrent

    def head(self) -> Head:
        return Head()

    def service(self, request: DiskRequest, head: Head, now: int) -> int:
        return TIME_NS

    def reach(self, request: DiskRequest, head: Head, now: int) -> int:
        return 0

    def worst(self, operation: Operation, sectors: int) -> int:
        return TIME_NS


class WatchedMemory:
    """Machine memory as a disk uses it: a frame that data comes to or from must be held at that moment."""

    def __init__(self, memory: MachineMemory, floor: MemoryFloor) -> None:
        self._memory = memory
        self._floor = floor
        self.size = memory.size

    def receive(self, pieces: Any, fill: Any) -> None:
        self._check(pieces, writing=True)
        self._memory.receive(pieces, fill)

    def views(self, pieces: Any) -> Any:
        self._check(pieces, writing=False)
        return self._memory.views(pieces)

    def _check(self, pieces: Any, *, writing: bool) -> None:
        frames = self._floor.frames
        for paddr, length in pieces:
            for mfn in range(paddr >> 12, (paddr + length - 1 >> 12) + 1):
                assert frames.owner_of(mfn) is not None, f"the disk touches frame {mfn:#x}, which is free"
                assert frames.references(mfn), f"the disk touches frame {mfn:#x}, which nobody holds"
                if writing:
                    assert frames.type_of(mfn) == WRITABLE, frames.types[mfn]
                    assert frames.type_count(mfn), f"frame {mfn:#x} is not held for writing"


class Rig:
    """A machine's memory, clock and store, with `Disks` on them."""

    def __init__(self, mib: int = 32) -> None:
        self.clock = Clock()
        self.memory = MachineMemory(mib * MIB)
        self.domains: dict[int, Domain] = {}
        self.floor = MemoryFloor(self.memory, [PlainCore(0)], FIRST_FREE, cast(Any, self))
        self.store = Store()
        self.log: list[str] = []
        self.disks = Disks(self.memory, self.clock, self.floor, self.store, self.log.append)
        self.ports = EventChannelOps(cast(Any, self))

    def by_id(self, number: int) -> Domain | None:
        return self.domains.get(number)

    def unblock(self, vcpu: VCpu) -> None:
        raise AssertionError("no vCPU waits here")

    def disk(self, sectors: int = 2048, *, depth: int = 8, read_only: bool = False) -> tuple[Disk, Ram]:
        ram = Ram(sectors, read_only=read_only)
        memory = cast(Any, WatchedMemory(self.memory, self.floor))
        return Disk(self.clock, memory, ram, Steady(depth), name=f"disk of {sectors}"), ram

    def domain(self, number: int = 1, pages: int = 256, *, pv32: bool = False) -> Domain:
        domain = Domain(number, f"d{number}", pv32=pv32, handle=bytes(16), image=cast(Any, None))
        owner = domain.memory = MemoryOwner(number, pv32=pv32, maximum=pages)
        self.floor.add_domain(cast(Any, domain))
        self.floor.heap.allocate(owner, pages)
        shared = self.floor.heap.xen_frame()
        domain.shared_info = shared << 12
        vcpu = VCpu(domain, 0)
        vcpu.info = domain.shared_info
        domain.vcpus.append(vcpu)
        domain.events = EventChannels(domain, self.memory, cast(Any, self))
        populate(self.store, Boot(number, domain.name, 1, pages * 4, pages * 4, 1, 1, 2, 2))
        domain.state = DomainState.RUNNING
        self.domains[number] = domain
        self.floor.grants.table(owner)
        return domain

    def attach(self, domain: Domain, disk: Disk, name: str = "xvda", **options: Any) -> BlockBackend:
        return self.disks.attach(domain, VirtualDisk(name, disk, **options))

    def end(self, domain: Domain) -> None:
        """What the hypervisor does when a domain crashes."""
        domain.state = DomainState.CRASH
        self.disks.ended(domain)

    def destroy(self, domain: Domain) -> None:
        """What the hypervisor does with a domain that has ended."""
        self.disks.destroyed(domain)
        self.store.remove_domain(domain.id)
        self.floor.remove_domain(cast(Any, domain))
        self.floor.heap.release_xen(domain.shared_info >> 12)
        del self.domains[domain.id]

    def run(self, ns: int = 100 * TIME_NS) -> None:
        self.clock.advance(self.clock.now + ns)

    def counts(self, domain: Domain) -> dict[int, tuple[int, int]]:
        """References and type references of all frames of a domain."""
        frames = self.floor.frames
        return {
            mfn: (int(frames.counts[mfn]) >> COUNT_SHIFT, int(frames.types[mfn]) >> COUNT_SHIFT)
            for mfn in frames.owned_by(domain.id)
        }

    def node(self, path: str) -> str | None:
        return self.store.read(path).decode() if self._there(path) else None

    def _there(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        return (parent == "" or self._there(parent)) and name in self.store.directory(parent or "/")

    def backend_state(self, domain: Domain, number: int = 51712) -> int | None:
        text = self.node(f"/local/domain/0/backend/vbd/{domain.id}/{number}/state")
        return None if text is None else int(text)

