"""The back end of one virtual disk: its nodes in the store, its states, and the rings of its frontend.

What is offered and in which order is as in Linux' xen-blkback (xenbus.c) and blkif.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from firmware.abi import errno
from firmware.abi.io_protocols import XEN_IO_PROTO_ABI_X86_64
from firmware.disk.channel import Channel
from firmware.disk.client import Client
from firmware.disk.held import HeldGrants
from firmware.disk.phases import ConnectError, Phases, number
from firmware.disk.queue import RequestQueue, Statistics
from firmware.disk.requests import DIALECTS, MOST_INDIRECT, Dialect
from firmware.disk.ring import BackRing, RingOverflowError
from firmware.disk.vbd import VirtualDisk
from firmware.domain.domain import Domain
from firmware.memory.backend_grants import BackendGrants
from firmware.store.errors import StoreError
from firmware.store.store import Store
from machine.disk import SECTOR, DiskRequest
from machine.memory import MachineMemory

MOST_RING_ORDER: Final = 4
"""Rings have up to 1 << 4 pages (XENBUS_MAX_RING_GRANT_ORDER)."""
MOST_QUEUES: Final = 4
"""Rings a frontend may have for one device."""


class Grants(Protocol):
    """Who gives access to a domain's grants."""

    def __call__(self, domain: Domain) -> BackendGrants: ...


class DiskQueue(Protocol):
    """Where requests go: a disk's scheduler, perhaps with the buffer cache in front of it."""

    def add(self, client: Client) -> None: ...
    def remove(self, client: Client) -> None: ...
    def submit(self, client: Client, request: DiskRequest) -> None: ...


class BlockBackend:
    """One virtual disk of a domain. `on_gone` is called when it was detached and the guest has let go."""

    __slots__ = (
        "_client",
        "_grants",
        "_log",
        "_memory",
        "_on_gone",
        "_queues",
        "_scheduler",
        "_store",
        "_uses",
        "disk",
        "domain",
        "phases",
        "statistics",
    )

    def __init__(
        self,
        domain: Domain,
        disk: VirtualDisk,
        scheduler: DiskQueue,
        store: Store,
        memory: MachineMemory,
        *,
        frontend: str,
        backend: str,
        grants: Grants,
        on_gone: Callable[[BlockBackend], None],
        log: Callable[[str], None],
    ) -> None:
        self.domain = domain
        self.disk = disk
        self.statistics = Statistics()
        self.phases = Phases(store, frontend, backend, self)
        self._store = store
        self._memory = memory
        self._scheduler = scheduler
        self._client = Client(f"{domain.name} {disk.name}", domain.id)
        self._grants = grants
        self._uses: BackendGrants | None = None
        self._on_gone = on_gone
        self._log = log
        self._queues: list[tuple[RequestQueue, list[int]]] = []
        """The rings in use, with the references of their pages."""

    def __repr__(self) -> str:
        return f"<BlockBackend {self._client.name}>"

    def open(self) -> None:
        """Offer the disk to the domain."""
        base = self.phases.backend
        for node, value in (
            ("feature-max-indirect-segments", MOST_INDIRECT),
            ("multi-queue-max-queues", MOST_QUEUES),
            ("max-ring-page-order", MOST_RING_ORDER),
        ):
            self._store.write(f"{base}/{node}", str(value))
        self._scheduler.add(self._client)
        self.phases.open()

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered."""
        return sum(queue.in_flight for queue, _ in self._queues)

    @property
    def grants_in_use(self) -> int:
        """Uses of the domain's grants that have not ended, the rings' own included."""
        return self._uses.uses if self._uses is not None else 0

    @property
    def halted(self) -> str:
        """What the frontend did wrong so that a ring of it is no longer served; "" while all is well."""
        return next((queue.halted for queue, _ in self._queues if queue.halted), "")

    def stop(self) -> None:
        """The domain runs no more: what is in flight goes on, then everything is let go of."""
        self.phases.stop()
        if self.disconnect():
            self.phases.drained()

    def kill(self) -> None:
        """Let go of everything now; the disk forgets what it was to do."""
        self.phases.stop()
        self._scheduler.remove(self._client)
        for queue, _ in self._queues:
            queue.cancel()
        self._let_go()

    # What the states do (phases.Device)

    def connect(self) -> None:
        """Take up the frontend's rings, and say what the disk is."""
        frontend = self.phases.frontend
        try:
            uses = self._uses = self._grants(self.domain)
        except MemoryError:
            raise ConnectError(errno.ENOMEM, "no memory for the grant table") from None
        dialect = self._dialect()
        persistent = self.disk.persistent and number(self._store, f"{frontend}/feature-persistent", 0) != 0
        count = number(self._store, f"{frontend}/multi-queue-num-queues", 1)
        if not 1 <= count <= MOST_QUEUES:
            raise ConnectError(
                errno.ENOSYS, f"guest requested {count} queues, exceeding the maximum of {MOST_QUEUES}."
            )
        references = self._reference_names()
        places = [frontend] if count == 1 else [f"{frontend}/queue-{index}" for index in range(count)]
        for place in places:
            self._connect_ring(place, references, dialect, HeldGrants(uses, persistent=persistent))
        self._publish()

    def disconnect(self) -> bool:
        """Stop taking requests; when none is in flight, let go of rings and grants."""
        for queue, _ in self._queues:
            queue.stop()
        if self.in_flight:
            return False
        self._let_go()
        return True

    def gone(self) -> None:
        """Detached, and closed on both ends."""
        self.kill()
        self._on_gone(self)

    def _dialect(self) -> Dialect:
        try:
            protocol = self._store.read(f"{self.phases.frontend}/protocol").decode("latin-1")
        except StoreError:
            protocol = XEN_IO_PROTO_ABI_X86_64
        dialect = DIALECTS.get(protocol)
        if dialect is None:
            raise ConnectError(errno.ENOSYS, f"unknown fe protocol {protocol}")
        return dialect

    def _reference_names(self) -> list[str]:
        """The nodes that hold the references of a ring's pages."""
        order = number(self._store, f"{self.phases.frontend}/ring-page-order", -1)
        if order < 0:
            return ["ring-ref"]
        if order > MOST_RING_ORDER:
            raise ConnectError(
                errno.EINVAL, f"requested ring page order {order} exceed max:{MOST_RING_ORDER}"
            )
        return [f"ring-ref{index}" for index in range(1 << order)]

    def _connect_ring(self, place: str, references: list[str], dialect: Dialect, held: HeldGrants) -> None:
        store = self._store
        port = number(store, f"{place}/event-channel")
        refs = [number(store, f"{place}/{name}") for name in references]
        frames = self._ring_frames(refs)
        try:
            ring = BackRing(self._memory, frames, dialect.request)
        except RingOverflowError as error:
            self._give(refs)
            raise ConnectError(errno.EIO, f"mapping ring-ref: {error}") from None
        queue = RequestQueue(
            self.disk, self._memory, ring, dialect, held,
            submit=self._submit, idle=self._idle, halt=self._halted, statistics=self.statistics,
        )
        try:
            channel = Channel(self.domain.events, port, queue.serve)
        except ValueError as error:
            self._give(refs)
            raise ConnectError(errno.EINVAL, f"mapping event channel: {error}") from None
        self._queues.append((queue, refs))
        queue.open(channel)
        queue.serve()

    def _ring_frames(self, refs: list[int]) -> list[int]:
        assert self._uses is not None
        frames: list[int] = []
        for ref in refs:
            mfn = self._uses.take(ref, readonly=False)
            if mfn < 0:
                self._give(refs[: len(frames)])
                raise ConnectError(errno.EINVAL, f"mapping ring-ref {ref}: grant status {mfn}")
            frames.append(mfn)
        return frames

    def _give(self, refs: list[int]) -> None:
        assert self._uses is not None
        for ref in refs:
            self._uses.give(ref, readonly=False)

    def _let_go(self) -> None:
        for queue, refs in self._queues:
            queue.close()
            self._give(refs)
        self._queues.clear()

    def _publish(self) -> None:
        """What the frontend wants to know of the disk (connect() of xen-blkback)."""
        disk = self.disk
        nodes = {"feature-flush-cache": 1, "feature-barrier": 1}
        if disk.discard:
            nodes |= {
                "discard-granularity": SECTOR, "discard-alignment": 0, "discard-secure": 0,
                "feature-discard": 1,
            }
        nodes |= {
            "feature-persistent": int(disk.persistent),
            "sectors": disk.sectors,
            "info": disk.info,
            "sector-size": SECTOR,
            "physical-sector-size": SECTOR,
        }
        for node, value in nodes.items():
            self._store.write(f"{self.phases.backend}/{node}", str(value))

    # Between the rings and the disk

    def _halted(self, reason: str) -> None:
        self._log(f"{self._client.name}: {reason}, its ring is no longer served")

    def _submit(self, request: DiskRequest) -> None:
        self._scheduler.submit(self._client, request)

    def _idle(self) -> None:
        if not self.in_flight:
            self._let_go()
            self.phases.drained()
