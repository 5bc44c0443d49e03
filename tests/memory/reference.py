"""The reference model: what every count must be, recounted from the page tables, one entry at a time.

Nothing here looks at the model's counts. It starts from what holds references by itself (pins, vCPUs' roots,
descriptor tables, grants' device mappings, Xen's shares, the owner's own references) and follows the tables
down.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from firmware.abi.grant_table import GNTMAP_device_map, GNTMAP_host_map, GNTMAP_readonly
from firmware.memory.frames import ALLOCATED, XEN_HEAP
from tests.memory.world import PlainDomain, World

PRESENT, RW = 1, 2
ADDRESS = ((1 << 52) - 1) & ~0xFFF
WRITABLE, DESCRIPTORS = 7, 5
XEN_SLOTS = range(256, 272)
LINEAR_FLAGS = 0x8000_0000_0000_0063
"""Of a root's entry for itself: nothing a guest can reach."""
COMPAT_FIRST_XEN_SLOT = 428


@dataclass
class Ledger:
    """What the test itself knows: tables pinned, as which level; frames held besides, as what."""

    pins: dict[int, int] = field(default_factory=dict)
    holds: list[tuple[int, int | None]] = field(default_factory=list)


@dataclass
class Recount:
    """References by frame, type references by frame and type, and the tables found on the way."""

    references: Counter[int] = field(default_factory=Counter)
    types: dict[int, Counter[int]] = field(default_factory=dict)
    tables: dict[int, int] = field(default_factory=dict)

    def hold(self, mfn: int, kind: int | None = None) -> None:
        self.references[mfn] += 1
        if kind is not None:
            self.types.setdefault(mfn, Counter())[kind] += 1


def recount(world: World, ledger: Ledger) -> Recount:
    """All references there should be."""
    result = Recount()
    flags = world.frames.counts
    for domain in world.domains.values():
        for mfn in world.frames.owned_by(domain.id):
            if flags[mfn] & ALLOCATED:
                result.references[mfn] += 1
            if flags[mfn] & XEN_HEAP:
                result.types.setdefault(mfn, Counter())[WRITABLE] += 1
    for mfn, level in ledger.pins.items():
        _table(world, result, mfn, level)
    for mfn, kind in ledger.holds:
        result.hold(mfn, kind)
    for mfn, (end, held) in world.frames.partial.items():
        _table(world, result, mfn, world.frames.type_of(mfn), end)
        if held:
            result.hold((world.entry(mfn, end) & ADDRESS) >> 12)
    result.references.update(world.frames.lost)
    for mfn in world.types.unfinished.values():
        result.hold(mfn)
    for domain in world.domains.values():
        _domain(world, result, domain)
    return result


def _domain(world: World, result: Recount, domain: PlainDomain) -> None:
    area = world.descriptors.area(domain.id)
    for vcpu in domain.all:
        for root in (vcpu.kernel_root, vcpu.user_root):
            if root:
                _table(world, result, root, 3 if domain.pv32 else 4)
        for mfn in vcpu.gdt_frames:
            result.hold(mfn, DESCRIPTORS)
        for page in range(16):
            frame = area.ldt_page(vcpu.id, page)
            if frame is not None:
                result.hold(frame, DESCRIPTORS)
    table = world.grants.table(domain.memory)
    for mapping in table.mappings:
        if mapping is not None and mapping.flags & GNTMAP_device_map:
            source = world.grants.table(world.domains[mapping.domid].memory)
            mfn = source.active[mapping.ref].mfn
            result.hold(mfn, None if mapping.flags & GNTMAP_readonly else WRITABLE)


def _table(world: World, result: Recount, mfn: int, level: int, end: int = 512) -> None:
    """One reference to a table of `level`; its entries below `end` are followed the first time it is met."""
    result.hold(mfn, level)
    if mfn in result.tables:
        return
    result.tables[mfn] = level
    domain = world.domains[world.frames.owners[mfn] - 1]
    slots = 4 if domain.pv32 and level == 3 else 512
    if domain.pv32 and level == 2 and is_xen_l2(world, result, mfn):
        slots = COMPAT_FIRST_XEN_SLOT
    slots = min(slots, end)
    for slot, entry in enumerate(world.memory.words[mfn << 9 : (mfn << 9) + slots].tolist()):
        if not entry & PRESENT or (level == 4 and slot in XEN_SLOTS):
            continue
        target = (entry & ADDRESS) >> 12
        if level == 1:
            result.hold(target, WRITABLE if entry & RW else None)
        elif target != mfn:
            _table(world, result, target, level if is_linear(world, result, target, level) else level - 1)


def is_linear(world: World, result: Recount, target: int, level: int) -> bool:
    """Whether an entry of a level's table names a table of the same level (which has its own references
    elsewhere).
    """
    known = result.tables.get(target)
    return known == level if known is not None else world.frames.type_of(target) == level


def is_xen_l2(world: World, result: Recount, mfn: int) -> bool:
    """Whether a PAE L2 table sits in slot 3 of some root met so far."""
    return any(
        level == 3 and (world.entry(root, 3) & ADDRESS) >> 12 == mfn for root, level in result.tables.items()
    )


def check(world: World, ledger: Ledger) -> None:
    """Every count as recounted, no forbidden mapping, no frame lost, no TLB entry that is a hole."""
    result = recount(world, ledger)
    _check_counts(world, result)
    _check_mappings(world, result)
    _check_frames(world)
    _check_tlbs(world)


def _check_counts(world: World, result: Recount) -> None:
    frames = world.frames
    owned = {mfn for number in world.domains for mfn in frames.owned_by(number)}
    assert result.tables.keys() <= owned
    for mfn in owned:
        where = world.types.describe(mfn)
        assert frames.references(mfn) == result.references[mfn], (
            f"{where}: {result.references[mfn]} references counted"
        )
        kinds = result.types.get(mfn, Counter())
        assert len(kinds) <= 1, f"{where}: used as {dict(kinds)}"
        assert frames.type_count(mfn) == kinds.total(), f"{where}: {dict(kinds)} counted"
        if kinds:
            assert frames.type_of(mfn) in kinds, f"{where}: {dict(kinds)} counted"


def _granted(world: World) -> set[tuple[int, int, bool]]:
    """(domain, frame, may write) of every host mapping of a grant."""
    return {
        (
            domain.id,
            world.grants.table(world.domains[mapping.domid].memory).active[mapping.ref].mfn,
            not mapping.flags & GNTMAP_readonly,
        )
        for domain in world.domains.values()
        for mapping in world.grants.table(domain.memory).mappings
        if mapping is not None and mapping.flags & GNTMAP_host_map
    }


def _check_mappings(world: World, result: Recount) -> None:
    """Writable means: an ordinary frame of one's own, or one granted for writing. Xen's slots hold what Xen
    put there.
    """
    frames = world.frames
    granted = _granted(world)
    for mfn, level in result.tables.items():
        owner = frames.owner_of(mfn)
        assert owner in world.domains
        domain = world.domains[owner]
        if level == 4 and mfn not in frames.partial:
            slots = [world.entry(mfn, slot) for slot in XEN_SLOTS]
            assert slots[0] in {0, world.slots.m2p_entry}
            assert slots[4] == domain.memory.perdomain_entry
            assert slots[2] == mfn << 12 | LINEAR_FLAGS
            assert not slots[1]
            assert not slots[3]
            assert not any(slots[5:])
        if level != 1:
            continue
        for entry in world.memory.words[mfn << 9 : (mfn + 1) << 9].tolist():
            if entry & PRESENT:
                target = (entry & ADDRESS) >> 12
                mine = frames.owner_of(target) == owner
                assert (
                    mine or (owner, target, bool(entry & RW)) in granted or (owner, target, True) in granted
                )
                if entry & RW:
                    assert frames.type_of(target) == WRITABLE
                    assert target not in result.tables


def _check_frames(world: World) -> None:
    frames, heap = world.frames, world.heap
    owned = Counter(frames.owner_array.tolist())
    shared = Counter(frames.owner_array[(frames.count_array & XEN_HEAP).nonzero()[0]].tolist())
    for domain in world.domains.values():
        owner = domain.memory
        assert owned[owner.tag] - shared[owner.tag] == owner.pages
    assert owned[0] == heap.free == sum(end - start for start, end in heap.runs())
    domains = sum(domain.memory.pages for domain in world.domains.values())
    assert heap.free + heap.xen + heap.cached + domains == heap.total


def _check_tlbs(world: World) -> None:
    """A translation may be stale, but it never lets a guest write a table, or see a frame that became
    another's.
    """
    frames = world.frames
    granted = _granted(world)
    for core in world.cores:
        running = [domain for domain in world.domains.values() if core in domain.memory.cores]
        for (_, page), (mfn, writable) in core.tlb.items():
            assert running, f"core {core.index} holds page {page:#x} of nobody"
            where = f"core {core.index} and {world.types.describe(mfn)}"
            if writable:
                assert frames.type_count(mfn) == 0 or frames.type_of(mfn) == WRITABLE, where
            owner = frames.owner_of(mfn)
            assert owner is None or any(
                owner == domain.id
                or (domain.id, mfn, True) in granted
                or (not writable and (domain.id, mfn, False) in granted)
                or mfn in world.grants.table(domain.memory).frames
                for domain in running
            ), where
