"""Domain 0's end of an event channel that a frontend has made for its device."""

from __future__ import annotations

from collections.abc import Callable

from firmware.events import BACKEND_DOMAIN, EventChannels, State


class Channel:
    """The guest's port `number`, connected: its notifications call `consumer`. ValueError when the port was
    not made for domain 0.

    The guest may close its end, and use the port for something else: then nothing is sent any more.
    """

    __slots__ = ("_consumer", "_events", "number")

    def __init__(self, events: EventChannels, number: int, consumer: Callable[[], None]) -> None:
        port = events.ports[number] if number < len(events.ports) else None
        if port is None or port.state is not State.UNBOUND or port.remote_domain != BACKEND_DOMAIN:
            raise ValueError(f"port {number} is not one that waits for domain {BACKEND_DOMAIN}")
        self._events = events
        self._consumer = consumer
        self.number = number
        port.state = State.INTERDOMAIN
        port.remote_port = number
        port.consumer = consumer

    @property
    def connected(self) -> bool:
        """Whether the guest's end is still ours."""
        return self._events.ports[self.number].consumer == self._consumer

    def notify(self) -> None:
        """Raise the guest's port."""
        if self.connected:
            self._events.raise_port(self.number)

    def close(self) -> None:
        """Let go: the guest's port is unbound again, as Xen leaves it."""
        if self.connected:
            port = self._events.ports[self.number]
            port.state = State.UNBOUND
            port.remote_port = 0
            port.consumer = None
