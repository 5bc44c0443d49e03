"""The trace: a ring of fixed-size records under Xen's event numbers (trace.h), and the registry of events.

Off, it costs a test of one flag where something could be recorded.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

WORDS: Final = 8
"""64-bit words of a record: time, event | core << 32, and six numbers of the event's own."""
EXTRA: Final = WORDS - 2
DEFAULT_RECORDS: Final = 65_536

EVENTS: dict[int, EventKind] = {}
"""The registry: what each event is called and what its numbers mean."""


class EventKind(NamedTuple):
    """An event: its name in trace.h without TRC_, and the names of its numbers."""

    name: str
    fields: tuple[str, ...]


class Record(NamedTuple):
    """One record: virtual ns, event number, logical CPU, the event's numbers."""

    when: int
    event: int
    core: int
    values: tuple[int, ...]


def event(number: int, name: str, *fields: str) -> int:
    """Register an event; its number."""
    EVENTS[number] = EventKind(name, fields)
    return number


class Trace:
    """The ring. `on`: whether anything is recorded. When full, the oldest records go, and are counted."""

    __slots__ = ("_at", "_ring", "_written", "on", "records")

    def __init__(self, records: int = DEFAULT_RECORDS) -> None:
        self.on = False
        self.records = records
        self._ring = array("Q")
        self._at = self._written = 0

    def start(self) -> None:
        """Record from now on."""
        if not self._ring:
            self._ring = array("Q", bytes(8 * WORDS * self.records))
        self.on = True

    def stop(self) -> None:
        """Record nothing more; what there is stays."""
        self.on = False

    def record(self, number: int, core: int, when: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0,
               e: int = 0, f: int = 0) -> None:
        """One record. Only to be called while `on`; numbers are not negative."""
        ring, at = self._ring, self._at
        ring[at] = when
        ring[at + 1] = number | core << 32
        ring[at + 2] = a
        ring[at + 3] = b
        ring[at + 4] = c
        ring[at + 5] = d
        ring[at + 6] = e
        ring[at + 7] = f
        at += WORDS
        self._at = 0 if at == len(ring) else at
        self._written += 1

    @property
    def lost(self) -> int:
        """Records that the ring no longer holds."""
        return max(0, self._written - self.records)

    def __len__(self) -> int:
        return min(self._written, self.records)

    def __iter__(self) -> Iterator[Record]:
        """The records, oldest first."""
        ring, size = self._ring, len(self._ring)
        at = self._at if self._written > self.records else 0
        for _ in range(len(self)):
            number = ring[at + 1] & 0xFFFF_FFFF
            kind = EVENTS.get(number)
            count = EXTRA if kind is None else len(kind.fields)
            yield Record(ring[at], number, ring[at + 1] >> 32, tuple(ring[at + 2:at + 2 + count]))
            at = (at + WORDS) % size
