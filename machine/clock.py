"""Clock: virtual time in nanoseconds and the events on it."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

END_OF_TIME = (1 << 63) - 1
"""Nothing happens after this: virtual time stays within what a core's 64-bit counters hold."""


class Event:
    """Something that happens at `when`. `callback(argument)` is called once, unless cancelled before."""

    __slots__ = ("argument", "callback", "cancelled", "when")

    def __init__(self, when: int, callback: Callable[[Any], None], argument: Any) -> None:
        self.when = when
        self.callback = callback
        self.argument = argument
        self.cancelled = False

    def cancel(self) -> None:
        """It will not happen. Harmless when it already has."""
        self.cancelled = True


class Clock:
    """`now`: the machine's time, never going back; events due by then have fired.

    `epoch`: wall-clock ns at virtual 0.
    Events due at the same time fire in the order in which they were made.
    """

    __slots__ = ("_queue", "_sequence", "earlier", "epoch", "fired", "now")

    def __init__(self, epoch: int = 0) -> None:
        self.now = 0
        self.epoch = epoch
        self.fired = 0
        self._queue: list[tuple[int, int, Event]] = []
        self._sequence = 0
        self.earlier: Callable[[int], None] | None = None

    @property
    def wall(self) -> int:
        """Wall-clock ns since 1970 at `now`."""
        return self.epoch + self.now

    def at(self, when_ns: int, callback: Callable[[Any], None], argument: Any = None) -> Event:
        """Have `callback(argument)` called at `when_ns` (at once, in virtual time, when that has passed)."""
        event = Event(when_ns, callback, argument)
        if when_ns > END_OF_TIME:
            return event
        self._sequence += 1
        heapq.heappush(self._queue, (when_ns, self._sequence, event))
        if self.earlier is not None and self._queue[0][2] is event:
            self.earlier(when_ns)
        return event

    def next(self) -> int | None:
        """When the next event is due."""
        queue = self._queue
        while queue:
            when, _, event = queue[0]
            if not event.cancelled:
                return when
            heapq.heappop(queue)
        return None

    def advance(self, to_ns: int) -> None:
        """Fire what is due by then, in order, with `now` at each event's time; then `now` is `to_ns`."""
        queue = self._queue
        while queue and queue[0][0] <= to_ns:
            when, _, event = heapq.heappop(queue)
            if event.cancelled:
                continue
            event.cancelled = True
            self.now = max(self.now, when)
            self.fired += 1
            event.callback(event.argument)
        self.now = max(self.now, to_ns)

    def pending(self) -> list[Event]:
        """Events that have not fired, in order."""
        return [event for _, _, event in sorted(self._queue, key=lambda row: row[:2]) if not event.cancelled]
