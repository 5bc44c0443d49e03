"""Scenery: two domains on three cores for random operations, and the frames worth naming there."""

from __future__ import annotations

from tests.memory.guest_model import Guest
from tests.memory.reference import Ledger
from tests.memory.world import PlainDomain, World

FRAMES = 2304


class Scenery:
    """The world, what is known of it beside the frame table, and the guests."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(FRAMES, 3)
        self.ledger = Ledger()
        self.guests: list[Guest] = []

    def occupy(self, index: int) -> None:
        """Exactly one vCPU runs on a core."""
        core = self.world.cores[index]
        guest = next((guest for guest in self.guests if guest.vcpu.core is core), None)
        if guest is not None:
            self.world.schedule(guest.vcpu, core)

    def guest(self, who: int) -> Guest:
        guest = self.guests[who % len(self.guests)]
        core = guest.vcpu.core
        if guest.vcpu.domain.memory not in self.world.shootdown._running[core.index]:
            self.world.schedule(guest.vcpu, core)
        return guest

    def frame(self, domain: PlainDomain, pick: int) -> int:
        """One of the domain's tables, one of its frames, another's, Xen's, one nobody has, or none."""
        if pick < 16:
            return domain.tables[pick % len(domain.tables)]
        if pick < 56:
            return domain.frames[(pick - 16) % len(domain.frames)]
        other = next(other for other in self.world.domains.values() if other is not domain)
        choices = [
            other.frames[3],
            other.tables[-1],
            0x105,
            5,
            self.world.heap.runs()[-1][1] - 1,
            FRAMES,
            (1 << 40) - 1,
            self.world.grants.table(domain.memory).frames[0],
        ]
        return choices[pick - 56]

    def tables_of(self, domain: PlainDomain, level: int) -> list[int]:
        frames = self.world.frames
        return [
            mfn
            for mfn in frames.owned_by(domain.id)
            if frames.type_of(mfn) == level and frames.type_count(mfn)
        ]
