"""The emulated disks of a system: what they hold, how long they take, and whose request goes next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from firmware.disk.extents import Extent
from firmware.disk.scheduler import DEFAULT_POLICY
from firmware.disk.vbd import VirtualDisk
from firmware.sched.parameters import ParameterError, Value
from machine.disk import (
    SECTOR,
    Disk,
    Flash,
    Medium,
    MediumError,
    Model,
    RawFile,
    Spinning,
    WriteCache,
    open_medium,
)
from machine.faults import Fault, FaultError, Faults
from xenpy.diskspec import DiskSpec
from xenpy.errors import BadInputError

if TYPE_CHECKING:
    from firmware.disk.scheduler import DiskScheduler
    from firmware.hypervisor import Hypervisor
    from xenpy.guest import Guest

MODELS: Final[dict[str, Callable[[int], Model]]] = {"flash": lambda _: Flash(), "spinning": Spinning}
"""What a disk can be: its model, made for so many sectors."""
DEFAULT_MODEL: Final = "flash"
MIB: Final = 1 << 20

DiskLike = str | DiskSpec | VirtualDisk
"""How a disk for a guest is given: xl's words, the same parsed, or what `EmulatedDisk.use` returns."""


@contextmanager
def told() -> Iterator[None]:
    """What the storeys below say of wrong disks, as BadInputError."""
    try:
        yield
    except (MediumError, FaultError, ParameterError) as error:
        raise BadInputError(str(error).rstrip(".")) from error


class EmulatedDisk:
    """One disk of the machine. Any number of domains may use it, or parts of it (`use`)."""

    __slots__ = ("_hypervisor", "device", "key", "model")

    def __init__(self, hypervisor: Hypervisor, device: Disk, model: str,
                 key: tuple[object, ...] | None = None) -> None:
        self._hypervisor = hypervisor
        self.device = device
        """The machine's part: counters, `busy_ns`, `seeks`."""
        self.model = model
        self.key = key
        """What it was opened as, when further uses of the same image are to find it."""

    def __repr__(self) -> str:
        return f"<EmulatedDisk {self.name} {self.model} {self.scheduler}>"

    @property
    def name(self) -> str:
        """What faults and messages call it."""
        return self.device.name

    @property
    def sectors(self) -> int:
        """Its size, in sectors of 512 bytes."""
        return self.device.sectors

    def use(self, vdev: str, *, read_only: bool = False, extents: Sequence[tuple[int, int]] = (),
            cdrom: bool = False, discard: bool = True, shared: bool = False) -> VirtualDisk:
        """The disk, or ranges of it (first sector, sectors), as a guest's `vdev`: for `System.add_domain` and
        `Guest.attach_disk`. `shared`: others may use the same sectors. Raises BadInputError.
        """
        parts = tuple(Extent(*extent) for extent in extents)
        try:
            return VirtualDisk(vdev, self.device, read_only=read_only, extents=parts or None, cdrom=cdrom,
                               discard=discard, shared=shared)
        except ValueError as error:
            raise BadInputError(f"disk {vdev}: {error}") from error

    @property
    def scheduler(self) -> str:
        """The policy that decides whose request goes next."""
        return self._queue.policy.name

    @property
    def settings(self) -> dict[str, Value]:
        """The policy's parameters."""
        return dict(self._queue.policy.settings)

    def set_scheduler(self, name: str, **settings: Value) -> None:
        """Have another policy decide from now on. Raises ParameterError."""
        self._queue.set_policy(name, settings)

    def tune(self, **values: Value) -> None:
        """Change the policy's parameters while it runs: `tune(interval_ms=200)`. Raises ParameterError."""
        self._queue.tune(values)

    def share(self, guest: Guest) -> dict[str, Value]:
        """What a guest gets of the disk, in the policy's parameters: weight, class, deadline, ..."""
        return dict(self._queue.policy.domain_share(guest.id))

    def set_share(self, guest: Guest, **values: Value) -> None:
        """Change what a guest gets of the disk, while it runs: `set_share(guest, weight=400)`. Raises
        ParameterError.
        """
        self._queue.set_share(guest.id, values)

    @property
    def idle(self) -> bool:
        """No request is on its way."""
        return self.device.in_flight == 0

    def stats(self) -> dict[str, Any]:
        """Its counters by name; times in virtual ns."""
        counters, device = self.device.counters, self.device
        return {
            "name": self.name, "model": self.model, "scheduler": self.scheduler, "sectors": self.sectors,
            "busy_ns": device.busy_ns, "seeks": device.seeks,
            **{name: getattr(counters, name) for name in type(counters).__slots__},
        }

    @property
    def _queue(self) -> DiskScheduler:
        return self._hypervisor.disks.scheduler(self.device)


class Shelf:
    """All emulated disks of a system, with the faults they have."""

    def __init__(self, hypervisor: Hypervisor, seed: int, faults: Sequence[Fault | str]) -> None:
        self._hypervisor = hypervisor
        with told():
            chosen = [Fault.parse(fault) if isinstance(fault, str) else fault for fault in faults]
        self.faults = Faults(seed, chosen)
        self.disks: list[EmulatedDisk] = []

    def add(self, target: str | Path | None, *, format: str = "raw",  # noqa: A002 - xl's word
            size: int | None = None, model: str | Model = DEFAULT_MODEL, name: str | None = None,
            read_only: bool = False, snapshot: bool = False, overlay: str | Path | None = None,
            write_cache: bool = False, scheduler: str = DEFAULT_POLICY,
            settings: Mapping[str, Value] | None = None,
            key: tuple[object, ...] | None = None) -> EmulatedDisk:
        """See `System.add_disk`."""
        if isinstance(model, str) and model not in MODELS:
            raise BadInputError(f"there is no disk model {model!r}: there are {', '.join(MODELS)}")
        if (target is None) == (size is None):
            raise BadInputError("a disk is either an image that exists or a temporary one with a size in MiB")
        with told():
            medium: Medium
            if size is not None:
                medium = RawFile.temporary(size * MIB // SECTOR)
            else:
                medium = open_medium(format, str(target), read_only=read_only, snapshot=snapshot,
                                     overlay=overlay)
            if write_cache and not medium.read_only:
                medium = WriteCache(medium)
            machine = self._hypervisor.machine
            kind = model if isinstance(model, str) else model.name
            chosen = MODELS[model](medium.sectors) if isinstance(model, str) else model
            device = Disk(machine.clock, machine.memory, medium, chosen,
                          self.faults if self.faults.injections else None,
                          name or (Path(target).name if target is not None else f"disk{len(self.disks)}"))
            made = EmulatedDisk(self._hypervisor, device, kind, key)
            try:
                self._hypervisor.disks.scheduler(device).set_policy(scheduler, settings)
            except ParameterError:
                device.close()
                raise
        self.disks.append(made)
        return made

    @contextmanager
    def uses(self, wanted: Sequence[DiskLike], scheduler: str = DEFAULT_POLICY,
             settings: Mapping[str, Value] | None = None) -> Iterator[tuple[VirtualDisk, ...]]:
        """The disks as a guest is to see them. Images are opened where that has not been done; what was
        opened is closed again when the block fails.
        """
        before = len(self.disks)
        specs = [DiskSpec.parse(each) if isinstance(each, str) else each for each in wanted]
        writable = {_key(spec) for spec in specs if isinstance(spec, DiskSpec) and not spec.read_only}
        try:
            yield tuple(
                each if isinstance(each, VirtualDisk)
                else self._use(each, _key(each) in writable, scheduler, settings) for each in specs
            )
        except BaseException:
            for disk in self.disks[before:]:
                disk.device.close()
            del self.disks[before:]
            raise

    def _use(self, spec: DiskSpec, writable: bool, scheduler: str,
             settings: Mapping[str, Value] | None) -> VirtualDisk:
        key = _key(spec)
        found = None if spec.snapshot else next((disk for disk in self.disks if disk.key == key), None)
        if found is None:
            policy = spec.scheduler or scheduler
            found = self.add(
                spec.target, format=spec.format, model=spec.model or DEFAULT_MODEL, name=spec.vdev,
                read_only=not writable, snapshot=spec.snapshot, overlay=spec.overlay,
                write_cache=spec.write_cache, scheduler=policy,
                settings=settings if policy == scheduler else None, key=key)
        else:
            self._same(spec, found)
        return found.use(spec.vdev, read_only=spec.read_only, extents=spec.extents, cdrom=spec.cdrom,
                         discard=spec.discard, shared=spec.shared)

    @staticmethod
    def _same(spec: DiskSpec, disk: EmulatedDisk) -> None:
        """One image is one disk: what is said of it again must be the same."""
        for what, said, there in (("model", spec.model, disk.model),
                                  ("sched", spec.scheduler, disk.scheduler)):
            if said is not None and said != there:
                raise BadInputError(f"disk {spec.vdev}: {spec.target} is already a disk of {what}={there}, "
                                    f"and one image is one disk: leave {what}={said} out")
        if disk.device.read_only and not spec.read_only:
            raise BadInputError(f"disk {spec.vdev}: {spec.target} is already used, to be only read: "
                                "say access=ro, or access=rw where it was named first")

    def close(self) -> None:
        """Flush and close every disk. BadInputError, when all are closed, for one that lost data."""
        failure: MediumError | None = None
        for disk in self.disks:
            try:
                disk.device.close()
            except MediumError as error:
                failure = failure or error
        self.disks.clear()
        if failure is not None:
            raise BadInputError(str(failure).rstrip(".")) from failure

    def stats(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The counters of the disks, with those of each domain's virtual disks; and of the faults."""
        disks = []
        for disk in self.disks:
            guests = [
                {"domain": domain.id, "vdev": backend.disk.name, "in_flight": backend.in_flight,
                 **{name: getattr(backend.statistics, name) for name in type(backend.statistics).__slots__}}
                for domain in self._hypervisor.lifecycle.domains.values()
                for backend in self._hypervisor.disks.of(domain) if backend.disk.disk is disk.device
            ]
            disks.append({**disk.stats(), "guests": guests})
        faults = [{"point": each.fault.point, "device": each.fault.device, "fitted": each.fitted,
                   "fired": each.fired} for each in self.faults.injections]
        return disks, faults

    def cache_stats(self) -> dict[str, int]:
        """The counters of the disks' cache, in blocks of 4 KiB; nothing when there is none, or no disk."""
        cache = self._hypervisor.cache
        if cache is None or not self.disks:
            return {}
        counted = {name: getattr(cache.statistics, name) for name in type(cache.statistics).__slots__}
        return {"limit": cache.limit, "cached": cache.blocks.size, **counted}


def _key(spec: DiskSpec | VirtualDisk) -> tuple[object, ...]:
    if isinstance(spec, VirtualDisk):
        return ()
    overlay = None if spec.overlay is None else _place(spec.overlay)
    return spec.format, _place(spec.target), overlay, spec.write_cache, spec.snapshot


def _place(path: str | Path) -> str:
    """Where a path leads. One that leads nowhere stays as it is: opening it tells why."""
    try:
        return str(Path(path).resolve())
    except (OSError, RuntimeError, ValueError):
        return str(path)
