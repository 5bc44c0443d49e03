"""How many requests of a guest xenstore answers in a second of host time, through the guest's own ring.

A request is in the ring of a real domain when the clock starts; it stops when the reply is there and the
guest has been notified. One request at a time, as Linux' xenbus driver sends them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Final

from firmware.abi import io_xs_wire as xs
from firmware.store.connection import Connection
from firmware.store.ring import SharedRing
from firmware.store.store import Store
from firmware.store.wire import Message, encode
from machine.memory import FRAME_SHIFT, MachineMemory
from tools.bench.report import Report
from xenpy.system import System

COUNT: Final = 20_000
OPERATIONS: Final = 20_000.0
"""A second of host time, at least, of the mix."""
NODES: Final = 64
WATCHES: Final = 16
_LAYOUT: Final = xs.xenstore_domain_interface.w64.offset
_MASK: Final = xs.XENSTORE_RING_SIZE - 1

Requests = Iterator[tuple[int, int, bytes]]
"""Kind, transaction, payload."""


class Ring:
    """The guest's end of its ring."""

    def __init__(self, memory: MachineMemory, frame: int, connection: Connection, store: Store) -> None:
        self._memory = memory
        self._base = frame << FRAME_SHIFT
        self._connection = connection
        self._store = store
        self.spent = 0.0
        """Processor seconds in which requests were served: the host has other work, too."""

    def ask(self, kind: int, transaction: int, payload: bytes) -> bytes:
        """One request and what comes back."""
        data = Message(kind, 1, transaction, payload).pack()
        producer = self._word("req_prod")
        for at, byte in enumerate(data, producer):
            self._memory.store8(self._base + _LAYOUT["req"] + (at & _MASK), byte)
        self._memory.store32(self._base + _LAYOUT["req_prod"], producer + len(data) & 0xFFFF_FFFF)
        begun = time.thread_time()
        self._connection.service()
        self._store.settle()
        self.spent += time.thread_time() - begun
        consumer, produced = self._word("rsp_cons"), self._word("rsp_prod")
        start = self._base + _LAYOUT["rsp"]
        answer = bytes(self._memory.b[start + (at & _MASK)] for at in range(consumer, produced))
        self._memory.store32(self._base + _LAYOUT["rsp_cons"], produced)
        return answer

    def _word(self, name: str) -> int:
        return int(self._memory.d[(self._base + _LAYOUT[name]) >> 2])


def reads() -> Requests:
    """Each node in turn."""
    return cycle([(xs.XS_READ, 0, encode(f"data/{number}")) for number in range(NODES)])


def writes() -> Requests:
    """A value for each node in turn."""
    return cycle([(xs.XS_WRITE, 0, encode(f"data/{number}") + b"some value") for number in range(NODES)])


def lists() -> Requests:
    """The children of the node that has them all, and of one that has few."""
    return cycle([(xs.XS_DIRECTORY, 0, encode("data")), (xs.XS_DIRECTORY, 0, encode("device"))])


def mixed() -> Requests:
    """What drivers do: many reads, some writes, lists and permissions, a transaction now and then."""
    number = 0
    while True:
        for step in range(16):
            number = (number + 7) % NODES
            yield xs.XS_READ, 0, encode(f"data/{number}")
            if step % 3 == 0:
                yield xs.XS_WRITE, 0, encode(f"data/{number}") + b"4"
            if step % 8 == 0:
                yield xs.XS_DIRECTORY, 0, encode("data")
                yield xs.XS_GET_PERMS, 0, encode(f"data/{number}")
        yield xs.XS_TRANSACTION_START, 0, b"\0"
        for each in range(4):
            yield xs.XS_WRITE, -1, encode(f"data/{each}") + b"5"
            yield xs.XS_READ, -1, encode(f"data/{each}")
        yield xs.XS_TRANSACTION_END, -1, encode("T")


KINDS: Final[dict[str, Callable[[], Requests]]] = {
    "read": reads, "write": writes, "directory": lists, "mixed": mixed,
}


def measure(report: Report, rounds: int, say: Callable[[str], None]) -> None:
    """Operations a second, the median of `rounds` rounds."""
    found: dict[str, list[float]] = {name: [] for name in KINDS}
    with System(memory=64) as system:
        guest = system.add_domain("builtin:hello", memory=8)
        store = system.hypervisor.store
        connection = store.clients[guest.id]
        assert isinstance(connection, Connection)
        assert isinstance(connection.ring, SharedRing)
        frame = int(system.store.read(f"/local/domain/{guest.id}/store/ring-ref"))
        ring = Ring(system.machine.memory, frame, connection, store)
        for number in range(NODES):
            ring.ask(xs.XS_WRITE, 0, encode(f"data/{number}") + b"value")
        for number in range(WATCHES):
            ring.ask(xs.XS_WATCH, 0, encode(f"device/{number}", "token"))
        for turn in range(1, rounds + 1):
            say(f"store {turn}/{rounds}")
            for name, requests in KINDS.items():
                found[name].append(_once(ring, requests()))
    medians = {name: statistics.median(each) for name, each in found.items()}
    report.numbers["store operations/s"] = medians
    for name, rate in medians.items():
        report.promise_least(f"xenstore through the ring, {name}", OPERATIONS, rate, "/s")


def _once(ring: Ring, requests: Requests) -> float:
    ring.spent = 0.0
    transaction = 0
    for kind, running, payload in islice(requests, COUNT):
        answer = ring.ask(kind, transaction if running else 0, payload)
        if kind == xs.XS_TRANSACTION_START:
            transaction = int(answer[xs.xsd_sockmsg.w64.size:-1])
    return COUNT / ring.spent
