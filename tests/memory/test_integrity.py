"""Two domains do whatever they like, 10,000 times; after every step the counts are those of the reference
model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from firmware.abi import grant_table as gnt
from firmware.abi import memory as mem
from firmware.abi import xen
from firmware.memory.frames import PINNED
from firmware.memory.types import STEP
from tests.memory import samplers as draw
from tests.memory.arguments import COMMANDS, FLAGS, GOOD, GRANT_FLAGS, MAP_FLAGS, PICK, SLOT, WHO
from tests.memory.guest_model import SELF, Guest
from tests.memory.reference import Ledger, check
from tests.memory.scenery import Scenery
from tests.memory.world import PlainDomain, PlainVCpu

PAGES = 40
EXAMPLES, STEPS = (10_000, 100) if os.environ.get("XENPY_SOAK") else (100, 100)

ACTIONS: list[tuple[Callable[..., None], dict[str, draw.Sampler]]] = []


def action(**samplers: draw.Sampler) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a method one of the things the guests do, with arguments drawn so."""

    def enter(method: Callable[..., None]) -> Callable[..., None]:
        ACTIONS.append((method, samplers))
        return method

    return enter


class Integrity(Scenery, RuleBasedStateMachine):
    """The machine under test, and the hostile guests on it."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = Random(0)

    @initialize(
        vcpus=st.tuples(st.integers(1, 4), st.integers(1, 2)),
        narrow=st.booleans(),
        step=st.sampled_from([1, 30, STEP]),
    )
    def domains(self, vcpus: tuple[int, int], narrow: bool, step: int) -> None:
        self.world.types.step = step
        self.world.between = self.between
        for number, count in enumerate(vcpus, 1):
            domain = self.world.domain(number, PAGES, count, pv32=narrow and number == 2, maximum=PAGES + 4)
            domain.vm_assist = 1 << xen.VMASST_TYPE_writable_pagetables
            self.ledger.pins[domain.root] = 3 if domain.pv32 else 4
            self.guests += [Guest(self.world, vcpu, self.ledger) for vcpu in domain.all]
        for core in self.world.cores:
            self.occupy(core.index)

    @action(
        who=WHO, table=PICK, slot=SLOT, pick=PICK, flags=FLAGS, mode=draw.sampled_from([0, 0, 0, 1, 2, 3, 4])
    )
    def update(self, who: int, table: int, slot: int, pick: int, flags: int, mode: int) -> None:
        guest = self.guest(who)
        domain = guest.vcpu.domain
        at = self.frame(domain, table) << 12 | slot * 8 | mode
        guest.mmu_update((at, self.frame(domain, pick) << 12 | flags))

    @action(
        who=WHO,
        table=draw.integers(0, 15),
        slots=draw.lists(SLOT, min_size=2, max_size=6),
        pick=PICK,
        flags=FLAGS,
    )
    def update_batch(self, who: int, table: int, slots: list[int], pick: int, flags: int) -> None:
        guest = self.guest(who)
        domain = guest.vcpu.domain
        at = self.frame(domain, table) << 12
        guest.mmu_update(
            *(
                (at | slot * 8, self.frame(domain, (pick + n) % 64) << 12 | flags)
                for n, slot in enumerate(slots)
            )
        )

    @action(
        who=WHO,
        pfn=draw.integers(0, PAGES - 1),
        pick=PICK,
        flags=FLAGS,
        flush=draw.sampled_from([0, 1, 2, 3, 5, 6, 0x1001]),
    )
    def update_mapping(self, who: int, pfn: int, pick: int, flags: int, flush: int) -> None:
        guest = self.guest(who)
        domain = guest.vcpu.domain
        guest.update_va_mapping(domain.va(pfn), self.frame(domain, pick) << 12 | flags, flush)

    @action(who=WHO, command=COMMANDS, pick=PICK)
    def extended(self, who: int, command: int, pick: int) -> None:
        guest = self.guest(who)
        domain = guest.vcpu.domain
        if guest.pv32 and command == xen.MMUEXT_NEW_USER_BASEPTR:
            return
        guest.extended(command, self.frame(domain, pick), domain.frames[2])

    @action(who=WHO, pfn=draw.integers(0, PAGES - 1), slot=SLOT, pick=PICK, flags=FLAGS)
    def scribble(self, who: int, pfn: int, slot: int, pick: int, flags: int) -> None:
        guest = self.guest(who)
        domain = guest.vcpu.domain
        guest.scribble(domain.va(pfn) + slot * 8, self.frame(domain, pick) << 12 | flags)

    @action(
        who=WHO,
        level=draw.integers(1, 4),
        pfn=draw.integers(2, 30),
        content=draw.lists(draw.tuples(SLOT, PICK, FLAGS), max_size=6),
        pin=draw.booleans(),
    )
    def new_table(
        self, who: int, level: int, pfn: int, content: list[tuple[int, int, int]], pin: bool
    ) -> None:
        """Make a page table as a kernel does: fill a frame, map it read-only, pin it or hang it into a
        table above.
        """
        guest = self.guest(who)
        domain = guest.vcpu.domain
        mfn, va = domain.frames[pfn], domain.va(pfn)
        guest.update_va_mapping(va, mfn << 12 | GOOD, 2)
        below = self.tables_of(domain, level - 1)
        for slot, pick, flags in content:
            target = below[pick % len(below)] if below and level > 1 else self.frame(domain, pick)
            guest.scribble(va + slot * 8, target << 12 | flags)
        if domain.pv32 and level == 3:
            for slot in range(4):
                guest.scribble(va + slot * 8, domain.tables[1 + slot] << 12 | 1 if slot < 3 else 0)
        guest.update_va_mapping(va, mfn << 12 | 0x61, 0 if content else 2)
        if pin:
            guest.extended(level - 1, mfn)
        else:
            above = self.tables_of(domain, level + 1) or [domain.root]
            slot = content[0][0] if content else 1
            guest.mmu_update((above[pfn % len(above)] << 12 | slot * 8, mfn << 12 | 0x67))

    @action(
        who=WHO,
        pfns=draw.lists(draw.integers(2, 30), min_size=5, max_size=9),
        slots=draw.lists(SLOT, min_size=3, max_size=5),
        top=draw.integers(2, 4),
        odd=draw.sampled_from([0, 0, 0, 0x61, 0x1E7]),
        end=draw.integers(0, 2),
    )
    def tower(self, who: int, pfns: list[int], slots: list[int], top: int, odd: int, end: int) -> None:
        """Tables of several levels, each naming all of the level below: pinned, unpinned, or put in another
        and taken out again; enough to be interrupted.
        """
        guest = self.guest(who)
        domain = guest.vcpu.domain
        frames = {domain.frames[pfn]: domain.va(pfn) for pfn in pfns}
        levels: list[list[int]] = [[] for _ in range(top)]
        for number, (mfn, va) in enumerate(frames.items()):
            guest.update_va_mapping(va, mfn << 12 | 0x61, 2)
            levels[number * top // len(frames)].append(mfn)
        for level, below in zip(levels[1:], levels, strict=False):
            for mfn in level:
                for slot, target in zip(slots, below, strict=False):
                    guest.mmu_update((mfn << 12 | slot * 8, target << 12 | 0x67))
        head = levels[-1][0]
        if odd:
            guest.mmu_update((head << 12 | 510 * 8, head << 12 | odd))
        if end < 2 or top == 4 or guest.pv32:
            if guest.extended(top - 1, head) == 0 and end:
                guest.extended(xen.MMUEXT_UNPIN_TABLE, head)
            return
        above = self.tables_of(domain, top + 1)
        if above:
            at = above[0] << 12 | slots[0] * 8
            guest.mmu_update((at, head << 12 | 0x67), (at, 0))

    @action(who=WHO, level=draw.integers(1, 4), pick=PICK, root=draw.booleans())
    def unpin_or_root(self, who: int, level: int, pick: int, root: bool) -> None:
        """Unpin, or load as a root, a frame that really is such a table."""
        guest = self.guest(who)
        domain = guest.vcpu.domain
        if root:
            tables = self.tables_of(domain, guest.root_level())
            command = xen.MMUEXT_NEW_BASEPTR if pick & 1 or guest.pv32 else xen.MMUEXT_NEW_USER_BASEPTR
        else:
            tables = [
                mfn for mfn in self.tables_of(domain, level) if mfn in self.ledger.pins and mfn != domain.root
            ]
            command = xen.MMUEXT_UNPIN_TABLE
        if tables:
            guest.extended(command, tables[pick % len(tables)])

    @action(who=WHO, level=draw.integers(1, 4), pick=PICK, slot=SLOT, flags=FLAGS)
    def update_table(self, who: int, level: int, pick: int, slot: int, flags: int) -> None:
        """Update an entry of a table of one level to name a table of the level below, or itself, or its
        like.
        """
        guest = self.guest(who)
        domain = guest.vcpu.domain
        tables = self.tables_of(domain, level)
        targets = self.tables_of(domain, level - 1) + tables if level > 1 else domain.frames
        if tables and targets:
            at = tables[pick % len(tables)]
            guest.mmu_update((at << 12 | slot * 8, targets[(pick * 7 + slot) % len(targets)] << 12 | flags))

    @action(who=WHO, pfn=draw.integers(0, PAGES - 1), write=draw.booleans())
    def touch(self, who: int, pfn: int, write: bool) -> None:
        guest = self.guest(who)
        guest.touch(guest.vcpu.domain.va(pfn), write)

    @action(
        who=WHO,
        table=draw.integers(0, 3),
        slot=SLOT,
        pick=PICK,
        flags=FLAGS,
        size=draw.sampled_from([1, 4, 8]),
    )
    def store_to_table(self, who: int, table: int, slot: int, pick: int, flags: int, size: int) -> None:
        guest = self.guest(who)
        domain = guest.vcpu.domain
        pfn = domain.frames.index(domain.tables[-1 - table % len(domain.tables)])
        guest.store_to_table(domain.va(pfn) + slot * 8, self.frame(domain, pick) << 12 | flags, size)

    @action(who=WHO, core=draw.integers(0, 2))
    def move(self, who: int, core: int) -> None:
        guest = self.guests[who % len(self.guests)]
        self.world.schedule(guest.vcpu, self.world.cores[core])

    @action(who=WHO, picks=draw.lists(PICK, max_size=3), entries=draw.integers(0, 8000))
    def gdt(self, who: int, picks: list[int], entries: int) -> None:
        guest = self.guest(who)
        frames = [self.frame(guest.vcpu.domain, pick) for pick in picks]
        guest.set_gdt(frames, min(entries, len(frames) * 512))

    @action(
        who=WHO,
        pick=PICK,
        slot=SLOT,
        value=draw.sampled_from([0, 0x00CFFB000000FFFF, 0x0000EC00E0330000, 0x8200 << 32]),
    )
    def descriptor(self, who: int, pick: int, slot: int, value: int) -> None:
        guest = self.guest(who)
        at = self.frame(guest.vcpu.domain, pick) << 12 | slot * 8
        if guest.pv32:
            self.world.descriptors.update_descriptor(
                guest.vcpu, at & 0xFFFF_FFFF, at >> 32, value & 0xFFFF_FFFF, value >> 32
            )
        else:
            self.world.call(guest.vcpu, "update_descriptor", at, value)

    @action(
        who=WHO,
        pfn=draw.integers(0, PAGES - 1),
        entries=draw.sampled_from([0, 100, 512, 1024, 8193]),
        page=draw.integers(0, 2),
    )
    def ldt(self, who: int, pfn: int, entries: int, page: int) -> None:
        guest = self.guest(who)
        guest.extended(xen.MMUEXT_SET_LDT, guest.vcpu.domain.va(pfn), entries)
        self.world.descriptors.map_ldt_page(guest.vcpu, page << 12)

    @action(who=WHO, picks=draw.lists(PICK, min_size=1, max_size=3), order=draw.sampled_from([0, 0, 1, 10]))
    def decrease(self, who: int, picks: list[int], order: int) -> None:
        guest = self.guest(who)
        frames = [self.frame(guest.vcpu.domain, pick) & 0xFFFF_FFFF for pick in picks]
        guest.reservation(mem.XENMEM_decrease_reservation, frames, order)

    @action(who=WHO, count=draw.integers(1, 5), order=draw.sampled_from([0, 0, 1, 2]), fill=draw.booleans())
    def increase(self, who: int, count: int, order: int, fill: bool) -> None:
        guest = self.guest(who)
        command = mem.XENMEM_populate_physmap if fill else mem.XENMEM_increase_reservation
        done = guest.reservation(command, list(range(count)), order)
        guest.vcpu.domain.frames += [guest.extent(index) for index in range(done)]

    @action(
        who=WHO,
        picks=draw.lists(PICK, min_size=1, max_size=2),
        sizes=draw.sampled_from([(0, 0), (0, 1), (1, 0)]),
    )
    def exchange(self, who: int, picks: list[int], sizes: tuple[int, int]) -> None:
        guest = self.guest(who)
        frames = [self.frame(guest.vcpu.domain, pick) & 0xFFFF_FFFF for pick in picks]
        wanted = (len(frames) << sizes[0]) >> sizes[1]
        if wanted:
            guest.exchange(frames, list(range(wanted)), *sizes)

    @action(who=WHO, ref=draw.integers(8, 11), pick=PICK, flags=GRANT_FLAGS)
    def grant(self, who: int, ref: int, pick: int, flags: int) -> None:
        guest = self.guest(who)
        guest.grant(ref, 3 - guest.vcpu.domain.id, self.frame(guest.vcpu.domain, pick) & 0xFFFF_FFFF, flags)

    @action(
        who=WHO,
        ref=draw.integers(8, 12),
        flags=MAP_FLAGS,
        pfn=draw.integers(0, PAGES - 1),
        own=draw.booleans(),
    )
    def map_grant(self, who: int, ref: int, flags: int, pfn: int, own: bool) -> None:
        guest = self.guest(who)
        domain = guest.vcpu.domain
        address = domain.va(pfn)
        if flags & gnt.GNTMAP_contains_pte:
            address = domain.tables[-1] << 12 | pfn * 8
        guest.map_grant(domain.id if own else 3 - domain.id, ref, flags, address)

    @action(
        who=WHO,
        ref=draw.integers(8, 11),
        pfn=draw.integers(2, 30),
        at=draw.integers(2, 30),
        flags=MAP_FLAGS,
        readonly=draw.booleans(),
    )
    def share(self, who: int, ref: int, pfn: int, at: int, flags: int, readonly: bool) -> None:
        """One domain grants a frame, the other maps it."""
        guest = self.guest(who)
        other = next(other for other in self.guests if other.vcpu.domain is not guest.vcpu.domain)
        kind = gnt.GTF_permit_access | (gnt.GTF_readonly if readonly else 0)
        if ref not in self.world.grants.table(other.vcpu.domain.memory).active:
            other.grant(ref, guest.vcpu.domain.id, other.vcpu.domain.frames[pfn], kind)
        self.map_at(guest, other.vcpu.domain, ref, flags, at)

    def map_at(self, guest: Guest, source: PlainDomain, ref: int, flags: int, pfn: int) -> None:
        domain = guest.vcpu.domain
        address = domain.tables[-1] << 12 | pfn * 8 if flags & gnt.GNTMAP_contains_pte else domain.va(pfn)
        guest.map_grant(source.id, ref, flags, address)

    @action(who=WHO, handle=PICK, pfn=draw.integers(0, PAGES - 1), right=draw.booleans(), bus=draw.booleans())
    def unmap_grant(self, who: int, handle: int, pfn: int, right: bool, bus: bool) -> None:
        guest = self.guest(who)
        domain = guest.vcpu.domain
        mine = self.world.grants.table(domain.memory)
        live = [number for number, mapping in enumerate(mine.mappings) if mapping is not None]
        if not live:
            guest.unmap_grant(handle, domain.va(pfn), 0)
            return
        number = live[handle % len(live)]
        mapping = mine.mappings[number]
        assert mapping is not None
        mfn = self.world.grants.table(self.world.domains[mapping.domid].memory).active[mapping.ref].mfn
        slot = pfn
        if right:
            table = self.world.memory.words[domain.tables[-1] << 9 : (domain.tables[-1] + 1) << 9].tolist()
            slot = next((slot for slot, entry in enumerate(table) if entry >> 12 & 0xFF_FFFF_FFFF == mfn), 0)
        address = (
            domain.tables[-1] << 12 | slot * 8 if mapping.flags & gnt.GNTMAP_contains_pte else domain.va(slot)
        )
        if not mapping.flags & gnt.GNTMAP_contains_pte:
            guest.touch(address, bus)
        guest.unmap_grant(number, address, mfn << 12 if bus else 0)

    @action(who=WHO, ref=draw.integers(8, 11), pfn=draw.integers(2, 30))
    def give(self, who: int, ref: int, pfn: int) -> None:
        """A transfer the receiver asked for, after balloon room was made."""
        guest = self.guest(who)
        domain = guest.vcpu.domain
        other = next(other for other in self.guests if other.vcpu.domain is not domain)
        mfn = domain.frames[pfn]
        other.grant(ref, domain.id, 77, gnt.GTF_accept_transfer)
        guest.update_va_mapping(domain.va(pfn), 0, 2)
        answer = guest.grant_op(
            gnt.GNTTABOP_transfer, gnt.gnttab_transfer, mfn=mfn, domid=other.vcpu.domain.id, ref=ref
        )
        if answer["status"] == gnt.GNTST_okay:
            other.vcpu.domain.frames.append(mfn)

    @action(who=WHO, pfn=draw.integers(2, 30), back=draw.booleans())
    def balloon(self, who: int, pfn: int, back: bool) -> None:
        """A page given up as Linux does it: unmapped, then decreased; perhaps taken back."""
        guest = self.guest(who)
        domain = guest.vcpu.domain
        guest.update_va_mapping(domain.va(pfn), 0, 2)
        guest.reservation(mem.XENMEM_decrease_reservation, [domain.frames[pfn] & 0xFFFF_FFFF])
        if back and guest.reservation(mem.XENMEM_populate_physmap, [pfn]) == 1:
            domain.frames[pfn] = guest.extent(0)
            guest.update_va_mapping(domain.va(pfn), domain.frames[pfn] << 12 | GOOD, 2)

    @action(who=WHO, pick=PICK, ref=draw.integers(8, 11))
    def transfer(self, who: int, pick: int, ref: int) -> None:
        guest = self.guest(who)
        domain = guest.vcpu.domain
        mfn = self.frame(domain, pick) & 0xFFFF_FFFF
        answer = guest.grant_op(
            gnt.GNTTABOP_transfer, gnt.gnttab_transfer, mfn=mfn, domid=3 - domain.id, ref=ref
        )
        if answer["status"] == gnt.GNTST_okay:
            self.world.domains[3 - domain.id].frames.append(mfn)

    @action(
        who=WHO,
        source=PICK,
        ref=draw.integers(8, 11),
        pick=PICK,
        length=draw.sampled_from([0, 8, 4096, 4097]),
    )
    def copy(self, who: int, source: int, ref: int, pick: int, length: int) -> None:
        guest = self.guest(who)
        domain = guest.vcpu.domain
        guest.grant_op(
            gnt.GNTTABOP_copy,
            gnt.gnttab_copy,
            len=length,
            flags=gnt.GNTCOPY_source_gref,
            source={"u": ref, "domid": 3 - domain.id},
            dest={"u": self.frame(domain, pick) & 0xFFFF_FFFF, "domid": SELF},
        )

    @action(who=WHO, version=draw.integers(0, 3))
    def version(self, who: int, version: int) -> None:
        if version != 2 or who == 3:
            self.guest(who).grant_op(gnt.GNTTABOP_set_version, gnt.gnttab_set_version, version=version)

    @rule(number=st.integers(0, len(ACTIONS) - 1), seed=st.integers(0, (1 << 32) - 1))
    def act(self, number: int, seed: int) -> None:
        """One of the actions, its arguments drawn from `seed`."""
        self.rng.seed(seed)
        self.do(number)

    def do(self, number: int) -> None:
        method, samplers = ACTIONS[number]
        rng = self.rng
        method(self, **{name: sampler(rng) for name, sampler in samplers.items()})

    def between(self, vcpu: PlainVCpu) -> None:
        """A call of `vcpu` was interrupted: somebody acts, perhaps this vCPU's own event handler."""
        self.holds_within()
        if self.rng.random() < 0.3:
            arguments = bytes(vcpu.space.scratch)
            self.do(self.rng.randrange(len(ACTIONS)))
            self.holds_within()
            vcpu.space.scratch[:] = arguments
        if vcpu.domain.memory not in self.world.shootdown._running[vcpu.core.index]:
            self.world.schedule(vcpu, vcpu.core)

    def holds_within(self) -> None:
        """In the middle of an unpin the ledger does not know of it yet."""
        words = self.world.types.types
        pins = {mfn: level for mfn, level in self.ledger.pins.items() if words[mfn] & PINNED}
        check(self.world, Ledger(pins, self.ledger.holds))

    @invariant()
    def holds(self) -> None:
        if self.guests:
            check(self.world, self.ledger)

    def teardown(self) -> None:
        """Both domains die: every frame comes back."""
        if not self.guests:
            return
        for domain in list(self.world.domains.values()):
            self.world.destroy(domain)
        frames, heap = self.world.frames, self.world.heap
        assert heap.free + heap.xen == heap.total
        assert not (frames.count_array[frames.owner_array == 0] >> 8).any()


Integrity.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
TestIntegrity = Integrity.TestCase
