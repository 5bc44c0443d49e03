"""The nodes a PV guest finds when it boots, laid out and owned as libxl does (libxl_create.c,
libxl_dom.c).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from firmware.store import path as paths
from firmware.store.permissions import NONE, READ, Permission
from firmware.store.quota import KEEPER
from firmware.store.store import Store

_CONSOLE_LIMIT: Final = 1048576
"""Bytes of output xenconsoled keeps per console (LIBXL_XENCONSOLE_LIMIT)."""

_CONNECTED: Final = 4
"""XenbusStateConnected: the console's back end is there from the start."""

_READ_ONLY: Final = ("cpu", "memory", "device", "control")
_GUEST_OWNED: Final = (
    "control/shutdown", "control/feature-poweroff", "control/feature-reboot", "control/feature-suspend",
    "control/sysrq", "device/suspend/event-channel", "data", "drivers", "feature", "attr", "error",
)
_PLATFORM: Final = (
    "control/platform-feature-multiprocessor-suspend", "control/platform-feature-xs_reset_watches",
)


@dataclass(frozen=True, slots=True)
class Boot:
    """What the builder knows of a new domain. Memory in KiB; frames are the guest's machine frames."""

    domid: int
    name: str
    vcpus: int
    memory_kib: int
    maximum_kib: int
    store_frame: int
    store_port: int
    console_frame: int
    console_port: int
    seed: int = 0
    online: int | None = None
    kernel: str = ""
    ramdisk: str = ""
    command_line: str = ""


def domain_uuid(domid: int, seed: int) -> str:
    """The UUID of a domain: a function of its number and the machine's seed."""
    digest = hashlib.sha256(f"xenpy domain {domid} of {seed}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def populate(store: Store, boot: Boot) -> None:
    """Make the domain known to the store and write its nodes; what an earlier domain of this number left is
    removed.
    """
    domid = boot.domid
    home, vm, libxl = paths.home(domid), f"/vm/{domain_uuid(domid, boot.seed)}", f"/libxl/{domid}"
    read_only = (Permission(KEEPER, NONE), Permission(domid, READ))
    own = (Permission(domid, NONE),)
    secret = (Permission(KEEPER, NONE),)
    store.add_domain(domid)
    for stale in (home, vm, libxl):
        _make(store, stale, secret)
        store.rm(stale)
    _make(store, home, read_only)
    _make(store, vm, read_only)
    _make(store, libxl, secret)
    _make(store, f"{libxl}/device", secret)
    for name in _READ_ONLY:
        _make(store, f"{home}/{name}", read_only)
    for name in _GUEST_OWNED:
        _make(store, f"{home}/{name}", own)
    _write(store, libxl, {"type": "pv"})
    _write(store, vm, {
        "name": boot.name, "uuid": domain_uuid(domid, boot.seed), "image/ostype": "linux",
        "image/kernel": boot.kernel, "image/ramdisk": boot.ramdisk, "image/cmdline": boot.command_line,
    })
    online = boot.vcpus if boot.online is None else boot.online
    _write(store, home, {
        "vm": vm, "name": boot.name, "domid": domid,
        "memory/static-max": boot.maximum_kib, "memory/target": boot.memory_kib, "memory/videoram": 0,
        "store/port": boot.store_port, "store/ring-ref": boot.store_frame,
        **{f"cpu/{vcpu}/availability": "online" if vcpu < online else "offline" for vcpu in
        range(boot.vcpus)}, **dict.fromkeys(_PLATFORM, 1),
    })
    _console(store, boot, read_only)


def _console(store: Store, boot: Boot, read_only: Sequence[Permission]) -> None:
    home, domid = paths.home(boot.domid), boot.domid
    backend = f"{paths.home(KEEPER)}/backend/console/{domid}/0"
    _make(store, f"{home}/console", read_only)
    _make(store, backend, read_only)
    _write(store, backend, {
        "frontend": f"{home}/console", "frontend-id": domid, "online": 1, "state": _CONNECTED, "protocol":
        "vt100",
    })
    _write(store, f"{home}/console", {
        "backend": backend, "backend-id": KEEPER, "limit": _CONSOLE_LIMIT, "type": "xenconsoled",
        "output": "pty", "tty": "", "port": boot.console_port, "ring-ref": boot.console_frame,
    })


def _make(store: Store, path: str, entries: Sequence[Permission]) -> None:
    store.mkdir(path)
    store.set_permissions(path, entries)


def _write(store: Store, base: str, values: dict[str, str | int]) -> None:
    for name, value in values.items():
        store.write(f"{base}/{name}", str(value))
