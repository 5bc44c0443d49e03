"""A frontend that does anything at all, beside one that works: only the first one's device suffers."""

from __future__ import annotations

import os
import random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from firmware.abi import io_blkif as blkif
from firmware.abi import io_xenbus as xenbus
from firmware.abi.io_protocols import XEN_IO_PROTO_ABI_X86_32
from firmware.disk.extents import Extent
from firmware.memory.frames import ALLOCATED, L1_TABLE, XEN_HEAP
from machine.disk import SECTOR
from tests.disk.frontend import OKAY, Frontend
from tests.disk.rig import TIME_NS, Rig

HALF = 1024
"""Sectors of each domain's part of the one disk."""
PAGES = 160
REFS = range(8, 72)
SECTORS = st.sampled_from((0, 1, 100, HALF - 8, HALF - 1, HALF, 2 * HALF, (1 << 32) - 1, (1 << 64) - 1))
CHANCE = st.integers(0, (1 << 32) - 1).map(random.Random)


class Hostile(RuleBasedStateMachine):
    """Domain 1 is hostile, domain 2 works; both use one disk."""

    @initialize()
    def begin(self) -> None:
        self.rig = Rig(16)
        self.disk, self.ram = self.rig.disk(2 * HALF, depth=4)
        good = self.rig.domain(2, 64)
        self.rig.attach(good, self.disk, extents=(Extent(HALF, HALF),))
        self.good = Frontend(self.rig, good)
        self.good.connect(persistent=True)
        self.known = bytearray(HALF * SECTOR)
        self.free = self.rig.floor.heap.free
        self.number = 2
        self.appear()

    def appear(self) -> None:
        """A fresh hostile domain."""
        self.number += 1
        self.domain = self.rig.domain(self.number, PAGES, pv32=self.number % 2 == 0)
        self.before = self.rig.counts(self.domain)
        self.tables: list[int] = []
        self.backend = self.rig.attach(self.domain, self.disk, extents=(Extent(0, HALF),))
        self.driver()
        for ref in REFS:
            self.front.grant(self.pages[ref % len(self.pages)], ref=ref)
        self.connect(1, 1, self.number % 3 == 0)

    def driver(self) -> None:
        protocol = XEN_IO_PROTO_ABI_X86_32 if self.domain.pv32 else None
        frames = self.rig.floor.frames
        owned = [mfn for mfn in frames.owned_by(self.domain.id) if not frames.counts[mfn] & XEN_HEAP]
        refs = iter(range(100, 500))
        self.front = Frontend(self.rig, self.domain, protocol=protocol, refs=refs, free=owned)
        self.pages = owned[:64]

    # What a hostile guest does

    def connect(self, pages: int, queues: int, persistent: bool) -> None:
        self.front.state(xenbus.XenbusStateInitialising)
        for node in ("ring-page-order", "multi-queue-num-queues"):
            self.rig.store.rm(f"{self.front.base}/{node}")
        self.driver()
        self.front.connect(pages=pages, queues=queues, persistent=persistent)

    @rule(pages=st.sampled_from((1, 2, 4)), queues=st.integers(1, 3), persistent=st.booleans())
    def start_anew(self, pages: int, queues: int, persistent: bool) -> None:
        if not self.attached:
            self.backend = self.rig.attach(self.domain, self.disk, extents=(Extent(0, HALF),))
        self.front.close()
        self.rig.run()
        self.connect(pages, queues, persistent)

    @rule(chance=CHANCE, count=st.integers(1, 24))
    def grant(self, chance: random.Random, count: int) -> None:
        """Grants of all kinds: good ones, read-only ones, to others, of others' frames, of no frame."""
        others = (self.good.free[0], self.rig.memory.frames + 7, 0, 5)
        for ref in chance.sample(REFS, count):
            mfn = chance.choice(self.pages) if chance.random() < 0.8 else chance.choice(others)
            domid = chance.choice((0, 0, 0, 0, 2))
            self.front.grant(mfn, readonly=chance.random() < 0.2, ref=ref, domid=domid)

    @rule(chance=CHANCE)
    def revoke(self, chance: random.Random) -> None:
        for ref in chance.sample(REFS, 8):
            self.front.revoke(ref)

    @rule(chance=CHANCE, sector=SECTORS, count=st.integers(1, 40))
    def requests(self, chance: random.Random, sector: int, count: int) -> None:
        """Requests with a little of everything wrong, or nothing."""
        ring = chance.choice(self.front.rings)
        ring.responses()
        for _ in range(count):
            if ring.req_prod - ring.rsp_cons & 0xFFFF_FFFF < ring.entries:
                ring.push(self.one(chance, sector))
        ring.publish()
        ring.kick()

    @rule(chance=CHANCE, sector=SECTORS)
    def requests_and_then(self, chance: random.Random, sector: int) -> None:
        """Something happens to them while they are in flight."""
        self.requests(chance, sector, 20)
        self.rig.run(TIME_NS // 2)
        chance.choice((self.revoke, self.give_up_frames, self.scribble, self.change_its_mind))(chance)

    def one(self, chance: random.Random, sector: int) -> bytes:
        front = self.front
        kind = chance.random()
        sector = sector if chance.random() < 0.5 else chance.randrange(HALF)
        if kind < 0.1:
            return chance.randbytes(front.layout.size)
        if kind < 0.2:
            return front.discard(sector, chance.choice((0, 1, 8, HALF, (1 << 64) - 1)))
        segments = [self.segment(chance) for _ in range(chance.choice((0, 1, 1, 2, 5, 11)))]
        if kind < 0.4:
            table = chance.choice(self.pages)
            if table not in self.tables:
                self.rig.memory.write(table << 12, chance.randbytes(64))
            return front.indirect(
                chance.choice((0, 1, 1, 2, 6)), sector, [], count=chance.choice((1, 2, 30, 256, 257, 60000)),
                pages=[chance.choice(REFS)])
        operation = chance.choice((
            blkif.BLKIF_OP_READ, blkif.BLKIF_OP_READ, blkif.BLKIF_OP_WRITE, blkif.BLKIF_OP_WRITE,
            blkif.BLKIF_OP_WRITE_BARRIER, blkif.BLKIF_OP_FLUSH_DISKCACHE, 4, 7, 255))
        wrong = chance.choice((12, 200, 255)) if chance.random() < 0.1 else None
        return front.request(operation, sector, segments, count=wrong)

    @staticmethod
    def segment(chance: random.Random) -> tuple[int, int, int]:
        if chance.random() < 0.1:
            ref = chance.choice((0, 7, 513, 1 << 31, (1 << 32) - 1))
            return ref, chance.randrange(256), chance.randrange(256)
        return chance.choice(REFS), chance.choice((0, 0, 0, 5)), chance.choice((7, 7, 7, 0, 8))

    @rule(chance=CHANCE, jump=st.sampled_from((-33, -1, 1, 32, 33, 600, 1 << 31)))
    def lie_about_indices(self, chance: random.Random, jump: int) -> None:
        ring = chance.choice(self.front.rings)
        ring.publish(ring.req_prod + jump & 0xFFFF_FFFF)
        ring.put(8, chance.randbytes(8))
        ring.kick()

    @rule(chance=CHANCE)
    def scribble(self, chance: random.Random) -> None:
        ring = chance.choice(self.front.rings)
        ring.put(chance.randrange(0, 3000), chance.randbytes(900))

    @rule(chance=CHANCE)
    def give_up_frames(self, chance: random.Random) -> None:
        """As decrease_reservation does: a frame in use stays until its last use ends."""
        frames = self.rig.floor.frames
        for mfn in chance.sample(self.pages, 3):
            if frames.owner_of(mfn) == self.domain.id and frames.counts[mfn] & ALLOCATED:
                self.before.pop(mfn)
                self.rig.floor.types.drop_own_reference(mfn)

    @rule(chance=CHANCE)
    def make_a_page_table(self, chance: random.Random) -> None:
        frames, types = self.rig.floor.frames, self.rig.floor.types
        mfn = chance.choice(self.pages)
        if frames.owner_of(mfn) == self.domain.id and frames.counts[mfn] & ALLOCATED and (
            not frames.type_count(mfn) and len(self.tables) < 8
        ):
            self.rig.memory.fill(mfn << 12, 4096)
            assert types.get_page_and_type(mfn, self.domain.memory, L1_TABLE) == 0
            self.tables.append(mfn)

    @rule(chance=CHANCE)
    def change_its_mind(self, chance: random.Random) -> None:
        """States in any order, its directory removed, its port closed."""
        what = chance.randrange(14)
        if what < 10:
            self.front.state(what)
        elif what == 10:
            self.rig.store.rm(self.front.base)
        elif what == 11:
            self.rig.ports.close(self.domain, chance.choice(self.front.rings).port)
        else:
            self.front.close()

    # What else happens

    @rule(ns=st.sampled_from((1, TIME_NS // 2, TIME_NS, 40 * TIME_NS)))
    def time_passes(self, ns: int) -> None:
        self.rig.run(ns)

    @rule(error=st.sampled_from((0, 0, 5, 28)))
    def the_disk_fails(self, error: int) -> None:
        """For a moment, for whoever has requests in flight; the neighbour has none."""
        self.ram.fail = error
        self.rig.run(TIME_NS)
        self.ram.fail = 0

    @rule(force=st.booleans())
    def detach_and_attach_again(self, force: bool) -> None:
        if self.attached:
            self.rig.disks.detach(self.domain, "xvda", force=force)
        if not self.attached:
            self.backend = self.rig.attach(self.domain, self.disk, extents=(Extent(0, HALF),))

    @property
    def attached(self) -> bool:
        return self.rig.disks.find(self.domain, "xvda") is not None

    @rule(chance=CHANCE, ended_before=st.booleans())
    def die(self, chance: random.Random, ended_before: bool) -> None:
        """Its requests in flight are the disk's no more; every frame it had is free again."""
        self.requests(chance, 0, 20)
        for mfn in self.tables:
            self.rig.floor.types.put_page_and_type(mfn)
        self.rig.end(self.domain)
        if ended_before:
            self.rig.run()
            self.nothing_is_held()
        self.rig.destroy(self.domain)
        assert self.rig.floor.heap.free == self.free
        self.appear()

    @rule(chance=CHANCE, sector=st.integers(0, HALF - 88), count=st.integers(1, 88))
    def the_neighbour_works(self, chance: random.Random, sector: int, count: int) -> None:
        data = chance.randbytes(count * SECTOR)
        self.known[sector * SECTOR : (sector + count) * SECTOR] = data
        assert self.good.fill(sector, data) == [OKAY]
        first = chance.randrange(HALF - 88)
        assert self.good.read(first, 88) == self.known[first * SECTOR :][: 88 * SECTOR]

    def nothing_is_held(self) -> None:
        assert self.backend.grants_in_use == 0
        assert self.rig.floor.grants.table(self.domain.memory).active == {}
        counts = self.rig.counts(self.domain)
        for mfn, (references, _) in self.before.items():
            assert counts[mfn][0] == references, hex(mfn)

    @invariant()
    def the_neighbour_s_sectors_are_its_own(self) -> None:
        if hasattr(self, "known"):
            assert self.ram.data[HALF * SECTOR :] == self.known

    def teardown(self) -> None:
        if not hasattr(self, "known"):
            return
        for mfn in self.tables:
            self.rig.floor.types.put_page_and_type(mfn)
        self.rig.run()
        for backend in self.rig.disks.of(self.domain):
            backend.stop()
        self.rig.run()
        self.nothing_is_held()
        assert self.good.read(0, 88) == self.known[: 88 * SECTOR]


SOAK = bool(os.environ.get("XENPY_SOAK"))
Hostile.TestCase.settings = settings(
    max_examples=2000 if SOAK else 60, stateful_step_count=40, deadline=None, derandomize=not SOAK,
    suppress_health_check=list(HealthCheck),
)
TestHostileFrontend: Any = Hostile.TestCase
