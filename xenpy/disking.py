"""How the command line says which disks a guest has, and what is done with their requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from firmware.disk.policy import disk_policy_by_name
from firmware.disk.scheduler import DEFAULT_POLICY
from firmware.hypervisor import CACHE_MIB
from firmware.sched.parameters import Value, parsed
from machine.faults import Fault
from xenpy.disks import told
from xenpy.diskspec import DiskSpec
from xenpy.errors import BadInputError

if TYPE_CHECKING:
    from xenpy.guest import Guest
    from xenpy.system import System


@dataclass(frozen=True)
class DiskRequest:
    """The guest's disks, in the words of the command line."""

    specs: tuple[DiskSpec, ...] = ()
    policy: str = DEFAULT_POLICY
    settings: Mapping[str, str] = field(default_factory=dict)
    share: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    cache: int = CACHE_MIB
    cache_calls: bool = False

    @classmethod
    def of(cls, specs: tuple[DiskSpec, ...], policy: tuple[str, Mapping[str, str]] | None,
           share: Mapping[str, str] | None, faults: tuple[Fault, ...], cache: int | None = None, *,
           cache_calls: bool = False) -> DiskRequest:
        """From the options, None where one was not given. Raises BadInputError."""
        for option, given in (("--disk-sched", policy), ("--disk-share", share), ("--disk-fault", faults),
                              ("--disk-cache", cache is not None)):
            if given and not specs:
                raise BadInputError(f"{option} is about disks, and there is no --disk")
        names = [spec.vdev for spec in specs]
        for fault in faults:
            if fault.device and fault.device not in names:
                raise BadInputError(f"--disk-fault {fault.point}: there is no disk {fault.device!r} to go "
                                    f"wrong: there are {', '.join(names)}")
        name, settings = policy or (DEFAULT_POLICY, {})
        if cache_calls and cache == 0:
            raise BadInputError("--disk-cache-calls: there is no cache to call with --disk-cache off")
        return cls(specs, name, settings, share or {}, faults, CACHE_MIB if cache is None else cache,
                   cache_calls)

    def parsed_settings(self) -> dict[str, Value]:
        """The policy's parameters as values. Raises BadInputError."""
        with told():
            return parsed(self.policy, disk_policy_by_name(self.policy).SETTINGS, self.settings)

    def set_shares(self, system: System, guest: Guest) -> None:
        """Give the guest its share of every disk it has. Raises BadInputError."""
        if not self.share:
            return
        with told():
            for disk in system.disks:
                values = parsed(disk.scheduler, disk_policy_by_name(disk.scheduler).SHARES, self.share)
                disk.set_share(guest, **values)
