"""The blkif back end: what a frontend hands over, what is held of its memory and for how long."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

ATTACH: Final = "firmware/disk/attach.py"
BACKEND: Final = "firmware/disk/backend.py"
CHANNEL: Final = "firmware/disk/channel.py"
EXTENTS: Final = "firmware/disk/extents.py"
GRANTS: Final = "firmware/memory/backend_grants.py"
HELD: Final = "firmware/disk/held.py"
PHASES: Final = "firmware/disk/phases.py"
QUEUE: Final = "firmware/disk/queue.py"
REQUESTS: Final = "firmware/disk/requests.py"
RING: Final = "firmware/disk/ring.py"
TRANSFER: Final = "firmware/disk/transfer.py"
VBD: Final = "firmware/disk/vbd.py"
TESTS: Final = "tests/disk/"

AREA: Final = Area(
    "block back end",
    tuple(f"{TESTS}test_{name}.py" for name in ("backend", "phases", "vdev", "hostile")),
    (
        Mutant("ring: more requests than entries", RING, "if ahead > self.entries:", "if False:"),
        Mutant("ring: a producer behind the consumer", RING,
               "return waiting if waiting <= self.entries else 0", "return waiting"),
        Mutant("ring: whether to notify", RING,
               "return memory.d[(base >> 2) + _RSP_EVENT] == new", "return True"),
        Mutant("ring: asks for the next notification", RING,
               "self._memory.store32(self._base + _REQ_EVENT, self.req_cons + 1 & INDEX_MASK)", "pass"),
        Mutant("ring: entries across frames", RING,
               "if places and places[-1][0] + places[-1][1] == address:", "if places:"),
        Mutant("segment: inside its page", REQUESTS, "last >= SECTORS_IN_FRAME or ", ""),
        Mutant("segment: not backwards", REQUESTS, " or last < first", ""),
        Mutant("request: eleven segments", QUEUE,
               "        if count > blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST:\n"
               "            self._refuse(ident, operation)\n        else:", "        if True:"),
        Mutant("barrier: eleven segments", QUEUE,
               "        if count > blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST:\n"
               "            self._refuse(ident, operation)\n            return\n", ""),
        Mutant("indirect: reads and writes only", QUEUE, "operation not in INDIRECT_WRITES or ", ""),
        Mutant("indirect: as many as are offered", QUEUE, " or count > MOST_INDIRECT", ""),
        Mutant("indirect: its pages are given back", QUEUE, "            self._held.give(held)\n", ""),
        Mutant("the virtual disk's end", QUEUE, "or (sectors and sector + sectors > disk.sectors)", ""),
        Mutant("a read-only disk", QUEUE, "or (writes and disk.read_only)", ""),
        Mutant("a request of nothing", QUEUE, "(not sectors and (segments or not flushes))", "False"),
        Mutant("discard: the virtual disk's end", QUEUE, "or sector + sectors > disk.sectors or not sectors",
               "or not sectors"),
        Mutant("discard: a read-only disk", QUEUE, "if disk.read_only or sector + sectors",
               "if sector + sectors"),
        Mutant("what was mapped before a refusal is given back", QUEUE,
               "                self._release(held)\n                return None, ()",
               "                return None, ()"),
        Mutant("what a request used is given back", QUEUE,
               "        self._release(transfer.held)\n        status =", "        status ="),
        Mutant("data into memory needs a writable grant", QUEUE, "self._map(segments, readonly=writes)",
               "self._map(segments, readonly=True)"),
        Mutant("a barrier waits", QUEUE, "if self._transfers:\n            self._transfers[barrier] = None",
               "if False:\n            self._transfers[barrier] = None"),
        Mutant("a barrier holds back", QUEUE, "while self._barrier is None and (", "while ("),
        Mutant("the frontend is asked again after a barrier", QUEUE,
               "self._barrier = None\n            self.serve()",
               "self._barrier = None\n            if self._ring.unconsumed():\n                self.serve()"),
        Mutant("a stopped queue takes nothing", QUEUE, "if self.stopped or self.halted:", "if self.halted:"),
        Mutant("cancelled: what is in flight is given back", QUEUE,
               "            self._release(transfer.held)\n        self._transfers.clear()",
               "        self._transfers.clear()"),
        Mutant("cancelled: no answer comes later", TRANSFER,
               "        if self.cancelled:\n            return\n", ""),
        Mutant("a stage ends with its last request", TRANSFER,
               "        if self._outstanding:\n            return\n", ""),
        Mutant("after an error nothing more is done", TRANSFER,
               "if self.error or self._next", "if self._next"),
        Mutant("kept grants have a bound", HELD, "(len(self._kept) < self._limit or self._evict())", "True"),
        Mutant("a kept grant in use is not given twice", HELD, "if held is not None and not held.busy:",
               "if held is not None:"),
        Mutant("kept grants are let go of", HELD,
               "        for held in self._kept.values():\n"
               "            self._grants.give(held.ref, readonly=False)\n",
               ""),
        Mutant("evicted grants are let go of", HELD,
               "                self._grants.give(ref, readonly=False)\n", ""),
        Mutant("grants: a reference is held", GRANTS,
               "held = types.get_page(mfn, self._owner)", "held = True"),
        Mutant("grants: no page table for writing", GRANTS,
               "if held and not readonly and types.get_type(mfn, WRITABLE):", "if False:"),
        Mutant("grants: released when refused", GRANTS,
               "            table.release(ref, active, readonly=readonly)\n            return GNTST",
               "            return GNTST"),
        Mutant("grants: uses are counted", GRANTS,
               "            active.host_write += 1\n", "            pass\n"),
        Mutant("channel: a port made for the back end", CHANNEL,
               " or port.remote_domain != BACKEND_DOMAIN", ""),
        Mutant("channel: an unbound port", CHANNEL, "port.state is not State.UNBOUND or ", ""),
        Mutant("channel: a port that is there", CHANNEL, "if number < len(events.ports) else None", ""),
        Mutant("channel: nobody else's port is raised", CHANNEL,
               "        if self.connected:\n            self._events.raise_port(self.number)",
               "        self._events.raise_port(self.number)"),
        Mutant("channel: nobody else's port is unbound", CHANNEL,
               "        if self.connected:\n            port =",
               "        if True:\n            port ="),
        Mutant("extents: inside the disk", EXTENTS, "first + length > capacity", "False"),
        Mutant("extents: apart", EXTENTS, "if before.sector + before.sectors > after.sector:", "if False:"),
        Mutant("connect: the ring's size", BACKEND, "if order > MOST_RING_ORDER:", "if False:"),
        Mutant("connect: how many queues", BACKEND, "if not 1 <= count <= MOST_QUEUES:", "if False:"),
        Mutant("connect: the frames of a ring refused are given back", BACKEND,
               "                self._give(refs[: len(frames)])\n", ""),
        Mutant("connect: the frames of a ring without a port are given back", BACKEND,
               "            self._give(refs)\n            raise ConnectError(errno.EINVAL",
               "            raise ConnectError(errno.EINVAL"),
        Mutant("connect: what came before a failure is given back", PHASES,
               "            self._device.disconnect()\n            self._fail(error)",
               "            self._fail(error)"),
        Mutant("close: not while something is in flight", BACKEND,
               "        if self.in_flight:\n            return False\n", ""),
        Mutant("close: the ring's pages", BACKEND,
               "            self._give(refs)\n        self._queues.clear()",
               "        self._queues.clear()"),
        Mutant("close: the kept grants", QUEUE, "        self._held.clear()\n", ""),
        Mutant("kill: the disk lets go first", BACKEND, "        self._scheduler.remove(self._client)\n", ""),
        Mutant("ends: nothing is taken any more", ATTACH,
               "            backend.stop()\n", "            pass\n"),
        Mutant("two writers of the same sectors", VBD,
               "and self.extents.overlaps(other.extents)", "and False"),
        Mutant("a read-only medium", VBD, "read_only or cdrom or disk.read_only", "read_only or cdrom"),
    ),
)
