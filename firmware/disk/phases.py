"""The states of a device's back end, as frontends expect them (io/xenbus.h; blkif.h, "STATE DIAGRAMS").

Each end keeps its state in the store and watches the other's. The order is that of Linux' xen-blkback:
the back end waits in InitWait, connects when the frontend is Initialised, closes after it, and is ready again
when the frontend that was Closed starts anew, be it another driver on the same device.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

from firmware.abi import errno
from firmware.abi import io_xenbus as xenbus
from firmware.store.errors import StoreError
from firmware.store.store import Store, WatchHandle

_UNSIGNED: Final = re.compile(rb"\s*\+?([0-9]{1,20})")
"""What a frontend's number is read by, which is what scanf's %u takes."""
LARGEST: Final = (1 << 32) - 1


class ConnectError(Exception):
    """The frontend's offer cannot be used: an errno, and a sentence for the store's error node."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.errno = number


class Device(Protocol):
    """What the states are of."""

    def connect(self) -> None:
        """Take up the frontend's offer and publish what the device is; ConnectError when it is no good."""

    def disconnect(self) -> bool:
        """Let go of the frontend; False while something is in flight: `Phases.drained` is called later."""

    def gone(self) -> None:
        """The device was taken offline and both ends are closed."""


def number(store: Store, path: str, default: int | None = None) -> int:
    """A number that a frontend wrote. ConnectError when it is missing, without a default, or is none."""
    try:
        text = store.read(path)
    except StoreError:
        if default is not None:
            return default
        raise ConnectError(errno.ENOENT, f"reading {path}") from None
    match = _UNSIGNED.match(text)
    value = int(match[1]) if match is not None else LARGEST + 1
    if value > LARGEST:
        if default is not None:
            return default
        raise ConnectError(errno.EINVAL, f"reading {path}")
    return value


class Phases:
    """The back end's states. `frontend` and `backend` are the device's two directories in the store."""

    __slots__ = ("_device", "_on_state", "_store", "_watch", "backend", "frontend", "state")

    def __init__(self, store: Store, frontend: str, backend: str, device: Device) -> None:
        self._store = store
        self._device = device
        self._watch: WatchHandle | None = None
        self.frontend = frontend
        self.backend = backend
        self.state = xenbus.XenbusStateInitialising
        self._on_state: dict[int, Callable[[], None]] = {
            xenbus.XenbusStateUnknown: self._frontend_closed,
            xenbus.XenbusStateInitialising: self._frontend_initialising,
            xenbus.XenbusStateInitialised: self._frontend_ready,
            xenbus.XenbusStateConnected: self._frontend_ready,
            xenbus.XenbusStateClosing: self._frontend_closing,
            xenbus.XenbusStateClosed: self._frontend_closed,
        }

    def open(self) -> None:
        """The device is there: wait for the frontend."""
        self._switch(xenbus.XenbusStateInitWait)
        self._watch = self._store.watch(f"{self.frontend}/state", self._frontend_changed)

    def stop(self) -> None:
        """No longer follow the frontend."""
        if self._watch is not None:
            self._store.unwatch(self._watch)
            self._watch = None

    def take_offline(self) -> None:
        """Ask the frontend to let go of the device, as a toolstack does that detaches it."""
        self._store.write(f"{self.backend}/online", "0")
        if self.state in (xenbus.XenbusStateInitWait, xenbus.XenbusStateClosed):
            self._switch(xenbus.XenbusStateClosed)
            self._device.gone()
        else:
            self._switch(xenbus.XenbusStateClosing)

    def drained(self) -> None:
        """What was in flight when the device was to disconnect has ended."""
        self._close()
        if self._watch is not None:
            self._follow()

    @property
    def online(self) -> bool:
        """Whether the device is to stay when the frontend closes."""
        try:
            return self._store.read(f"{self.backend}/online") == b"1"
        except StoreError:
            return False

    @property
    def error(self) -> str:
        """The directory in which the store says what went wrong."""
        place, _, name = self.backend.partition("/backend/")
        return f"{place}/error/backend/{name}"

    def _switch(self, state: int) -> None:
        if state != self.state:
            self.state = state
            self._store.write(f"{self.backend}/state", str(state))

    def _frontend_changed(self, _path: str) -> None:
        if self._watch is not None:
            self._follow()

    def _follow(self) -> None:
        state = number(self._store, f"{self.frontend}/state", xenbus.XenbusStateUnknown)
        follow = self._on_state.get(state)
        if follow is None:
            self._fail(ConnectError(errno.EINVAL, f"saw state {state} at frontend"))
        else:
            follow()

    def _frontend_initialising(self) -> None:
        if self.state == xenbus.XenbusStateClosed and self.online:
            self._switch(xenbus.XenbusStateInitWait)

    def _frontend_ready(self) -> None:
        if self.state == xenbus.XenbusStateConnected or not self.online:
            return
        if not self._device.disconnect():
            return
        try:
            self._device.connect()
        except ConnectError as error:
            self._device.disconnect()
            self._fail(error)
            return
        self._switch(xenbus.XenbusStateConnected)

    def _frontend_closing(self) -> None:
        self._switch(xenbus.XenbusStateClosing)

    def _frontend_closed(self) -> None:
        if self._device.disconnect():
            self._close()

    def _close(self) -> None:
        self._switch(xenbus.XenbusStateClosed)
        if not self.online:
            self._device.gone()

    def _fail(self, error: ConnectError) -> None:
        """Say what is wrong where administrators look, and close (xenbus_dev_fatal)."""
        self._store.write(f"{self.error}/error", f"{error.errno} {error}")
        self._switch(xenbus.XenbusStateClosing)
