"""Which virtual disks which domains have: attaching, detaching, and the end of a domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from firmware.disk import policies  # noqa: F401  registers them
from firmware.disk.backend import BlockBackend, DiskQueue
from firmware.disk.cache import BufferCache
from firmware.disk.cache_queue import CachedQueue
from firmware.disk.scheduler import DiskScheduler
from firmware.disk.vbd import VirtualDisk
from firmware.domain.domain import Domain
from firmware.memory.backend_grants import BackendGrants
from firmware.memory.floor import MemoryFloor
from firmware.store import path as paths
from firmware.store.errors import StoreError
from firmware.store.permissions import NONE, READ, Permission
from firmware.store.quota import KEEPER
from firmware.store.store import Store
from machine.clock import Clock
from machine.disk import Disk
from machine.memory import MachineMemory

_INITIALISING: Final = 1


class DiskError(Exception):
    """A disk that cannot be attached or detached, in one sentence."""


class Disks:
    """The virtual disks of all domains, and the queue of each emulated disk."""

    def __init__(
        self,
        memory: MachineMemory,
        clock: Clock,
        floor: MemoryFloor,
        store: Store,
        log: Callable[[str], None],
        cache: BufferCache | None = None,
    ) -> None:
        self._memory = memory
        self._clock = clock
        self._floor = floor
        self._store = store
        self._log = log
        self._cache = cache
        self._schedulers: dict[Disk, DiskScheduler] = {}
        self._queues: dict[Disk, DiskQueue] = {}
        self._backends: dict[tuple[int, int], BlockBackend] = {}

    def scheduler(self, disk: Disk) -> DiskScheduler:
        """The queue in front of an emulated disk. It stays when no domain uses the disk."""
        found = self._schedulers.get(disk)
        if found is None:
            found = self._schedulers[disk] = DiskScheduler(disk, self._clock)
        return found

    def queue(self, disk: Disk) -> DiskQueue:
        """The way to an emulated disk: its scheduler, behind the buffer cache if there is one."""
        found = self._queues.get(disk)
        if found is None:
            scheduler = self.scheduler(disk)
            found = scheduler if self._cache is None else CachedQueue(self._cache, scheduler)
            self._queues[disk] = found
        return found

    def disk(self, domain: Domain, number: int) -> VirtualDisk | None:
        """A domain's disk by its device number."""
        backend = self._backends.get((domain.id, number))
        return None if backend is None else backend.disk

    def of(self, domain: Domain) -> list[BlockBackend]:
        """A domain's disks, in the order in which they were attached."""
        return [backend for backend in self._backends.values() if backend.domain is domain]

    def find(self, domain: Domain, name: str) -> BlockBackend | None:
        """A domain's disk by its name or number."""
        for backend in self.of(domain):
            if name in (backend.disk.name, str(backend.disk.number)):
                return backend
        return None

    def check(self, disks: Sequence[VirtualDisk], domain: Domain | None = None) -> None:
        """DiskError when these cannot all be attached to a domain, a new one if none is given."""
        numbers = {backend.disk.number for backend in self.of(domain)} if domain is not None else set()
        used = [backend.disk for backend in self._backends.values()]
        for disk in disks:
            if disk.number in numbers:
                raise DiskError(f"there are two disks {disk.name}: give each another name")
            clash = next((other for other in used if disk.clashes(other)), None)
            if clash is not None and not disk.shared:
                raise DiskError(
                    f"disk {disk.name} uses sectors of {disk.disk.name or 'a disk'} that {clash.name} uses "
                    "too, and one of them may write there: make both read-only, or say that they are shared"
                )
            numbers.add(disk.number)
            used.append(disk)

    def attach(self, domain: Domain, disk: VirtualDisk) -> BlockBackend:
        """Offer a disk to a domain, which may be running. DiskError when it cannot be (see `check`)."""
        if domain.state.ended:
            raise DiskError(f"domain {domain.name!r} has ended")
        self.check((disk,), domain)
        frontend = f"{paths.home(domain.id)}/device/vbd/{disk.number}"
        backend = f"{paths.home(KEEPER)}/backend/vbd/{domain.id}/{disk.number}"
        made = BlockBackend(
            domain, disk, self.queue(disk.disk), self._store, self._memory,
            frontend=frontend, backend=backend, grants=self._grants, on_gone=self._gone, log=self._log,
        )
        self._backends[domain.id, disk.number] = made
        self._write_nodes(made)
        made.open()
        return made

    def detach(self, domain: Domain, name: str, *, force: bool = False) -> bool:
        """Take a disk away. Whether it is gone already: a running guest lets go of it first, unless forced.

        DiskError when there is none of that name.
        """
        backend = self.find(domain, name)
        if backend is None:
            raise DiskError(f"domain {domain.name!r} has no disk {name}")
        if force:
            backend.kill()
            self._gone(backend)
        else:
            backend.phases.take_offline()
        return (domain.id, backend.disk.number) not in self._backends

    def ended(self, domain: Domain) -> None:
        """A domain has ended: its requests are carried out, and then its disks let go of its memory."""
        for backend in self.of(domain):
            backend.stop()

    def destroyed(self, domain: Domain) -> None:
        """A domain is about to be destroyed: its disks let go of its memory now."""
        for backend in self.of(domain):
            backend.kill()
            self._gone(backend)

    def _grants(self, domain: Domain) -> BackendGrants:
        return BackendGrants(self._floor.grants, self._floor.types, domain.memory)

    def _gone(self, backend: BlockBackend) -> None:
        """Its nodes go."""
        disk = backend.disk
        del self._backends[backend.domain.id, disk.number]
        phases = backend.phases
        self._remove(phases.frontend)
        self._remove(self._libxl(backend))
        for place in (phases.backend, phases.error):
            self._remove(place)
            self._remove(place.rpartition("/")[0], only_empty=True)

    def _remove(self, place: str, *, only_empty: bool = False) -> None:
        """Remove a directory, which may be gone already."""
        try:
            if not (only_empty and self._store.directory(place)):
                self._store.rm(place)
        except StoreError as error:
            if error.name != "ENOENT":
                raise

    @staticmethod
    def _libxl(backend: BlockBackend) -> str:
        return f"/libxl/{backend.domain.id}/device/vbd/{backend.disk.number}"

    def _write_nodes(self, made: BlockBackend) -> None:
        """Both directories, laid out and owned as libxl does (libxl_disk.c, libxl_device.c)."""
        disk, domid = made.disk, made.domain.id
        frontend, backend = made.phases.frontend, made.phases.backend
        private = {"frontend": frontend, "backend": backend}
        self._directory(self._libxl(made), (Permission(KEEPER, NONE),), private)
        self._directory(backend, (Permission(KEEPER, NONE), Permission(domid, READ)), {
            "frontend": frontend, "params": disk.disk.name, "frontend-id": domid, "online": 1,
            "removable": int(disk.cdrom), "bootable": 1, "state": _INITIALISING, "dev": disk.name,
            "type": "phy", "mode": "r" if disk.read_only else "w", "device-type": disk.device_type,
            "discard-enable": int(disk.discard), "hotplug-status": "connected",
        })
        self._directory(frontend, (Permission(domid, NONE), Permission(KEEPER, READ)), {
            "backend": backend, "backend-id": KEEPER, "state": _INITIALISING, "virtual-device": disk.number,
            "device-type": disk.device_type,
        })

    def _directory(
        self, place: str, permissions: tuple[Permission, ...], nodes: Mapping[str, str | int]
    ) -> None:
        store = self._store
        store.mkdir(place)
        store.set_permissions(place, permissions)
        for name, value in nodes.items():
            store.write(f"{place}/{name}", str(value))
