"""Checks and destructions of page tables that are interrupted: what is left half way, and how it goes on."""

from __future__ import annotations

from struct import pack

import pytest

from firmware.abi import xen
from firmware.abi.errno import EBUSY, EFAULT, EINVAL
from firmware.hypercalls import CONTINUE
from firmware.memory.frames import (
    L1_TABLE,
    L2_TABLE,
    L3_TABLE,
    L4_TABLE,
    PARTIAL,
    PINNED,
    VALIDATED,
    WRITABLE,
)
from firmware.memory.requests import PREEMPTED
from firmware.memory.types import STEP
from firmware.memory.validate import INTERRUPTED
from firmware.memory.xen_slots import COMPAT_FIRST_XEN_SLOT
from tests.memory.guest_model import SELF, Guest
from tests.memory.reference import Ledger, check
from tests.memory.test_mmu import Scene
from tests.memory.world import PlainVCpu, World

TABLE = 0x67
NO_FRAME = 0xFF_FFFF_F000
RIGHT = {1: L1_TABLE, 2: L2_TABLE, 3: L3_TABLE, 4: L4_TABLE}


class Forest(Scene):
    """An L4 to be: two L3s of two L2s of two L1s each. Every call is interrupted as soon as it can be."""

    def __init__(self, *, pv32: bool = False) -> None:
        super().__init__(pv32=pv32)
        pfns = iter(range(20, 40))
        self.second = Guest(self.world, self.domain.all[1], self.ledger)
        self.l1s = [self.table(next(pfns)) for _ in range(8)]
        self.l2s = [self.table(next(pfns)) for _ in range(4)]
        self.l3s = [self.table(next(pfns)) for _ in range(2)]
        self.l4 = self.table(next(pfns))
        for number, mfn in enumerate(self.l1s):
            self.put(self.l2s[number // 2], 1 + number % 2 * 8, mfn)
        if not pv32:
            for number, mfn in enumerate(self.l2s):
                self.put(self.l3s[number // 2], number % 2 * 9, mfn)
            for number, mfn in enumerate(self.l3s):
                self.put(self.l4, number * 7, mfn)
        self.world.types.step = 1
        self.states: list[list[int]] = []
        self.world.between = self.between
        self.meddle = 0

    def put(self, table: int, slot: int, target: int, flags: int = TABLE) -> None:
        assert self.guest.mmu_update((self.at(table, slot), target << 12 | flags)) == 0

    def between(self, vcpu: PlainVCpu) -> None:
        self.states.append([self.world.types.types[mfn] for mfn in self.tables()])
        self.holds()

    def holds(self) -> None:
        """The ledger learns of an unpin when its call ends, and that may have begun to take effect."""
        words = self.world.types.types
        pins = {mfn: level for mfn, level in self.ledger.pins.items() if words[mfn] & PINNED}
        check(self.world, Ledger(pins, self.ledger.holds))

    def tables(self) -> list[int]:
        return [*self.l1s, *self.l2s, *self.l3s, self.l4]

    def pin(self, level: int, mfn: int, guest: Guest | None = None) -> int:
        return (guest or self.guest).extended(xen.MMUEXT_PIN_L1_TABLE + level - 1, mfn)

    def unpin(self, mfn: int) -> int:
        return self.guest.extended(xen.MMUEXT_UNPIN_TABLE, mfn)

    def writable(self, mfn: int, guest: Guest | None = None) -> int:
        pfn = self.frames.index(mfn)
        return (guest or self.guest).mmu_update((self.at(self.l1, pfn), mfn << 12 | 0x63))

    def are(self, tables: list[int], level: int) -> bool:
        frames = self.world.frames
        return all(frames.type_count(mfn) and frames.type_of(mfn) == RIGHT[level] for mfn in tables)

    def gone(self) -> bool:
        frames = self.world.frames
        return not any(frames.type_count(mfn) for mfn in self.tables()) and not frames.partial

    def at_restart(self, number: int, act: object) -> None:
        """Do `act` when a call is restarted for the given time."""
        count = [0]
        record = self.between

        def between(vcpu: PlainVCpu) -> None:
            record(vcpu)
            count[0] += 1
            if count[0] == number:
                self.world.between = record
                act()  # type: ignore[operator]
                self.holds()
                self.world.between = between

        self.world.between = between


@pytest.fixture
def forest() -> Forest:
    return Forest()


def test_a_pin_goes_on_table_by_table(forest: Forest) -> None:
    assert forest.pin(4, forest.l4) == 0
    assert forest.world.restarts >= 6
    levels = (forest.l1s, forest.l2s, forest.l3s, [forest.l4])
    assert all(forest.are(tables, level) for level, tables in enumerate(levels, 1))
    assert not forest.world.frames.partial
    checked = [[word >= 256 and word & 7 == L1_TABLE for word in state[:8]] for state in forest.states]
    assert all(state == sorted(state, reverse=True) for state in checked)
    assert len({sum(state) for state in checked}) >= 6
    assert any(word & PARTIAL and not word & VALIDATED for state in forest.states for word in state)
    forest.holds()


def test_an_unpin_takes_apart_the_last_entries_first(forest: Forest) -> None:
    assert forest.pin(4, forest.l4) == 0
    forest.states.clear()
    before = forest.world.restarts
    assert forest.unpin(forest.l4) == 0
    assert forest.world.restarts - before >= 6
    assert forest.gone()
    left = [[bool(word >> 8) for word in state[:8]] for state in forest.states]
    assert all(state == sorted(state, reverse=True) for state in left)
    assert [forest.writable(mfn) for mfn in forest.tables()] == [0] * 15
    forest.holds()


@pytest.mark.parametrize("step", range(5, 100, 4))
def test_parts_of_any_length(forest: Forest, step: int) -> None:
    forest.world.types.step = step
    forest.put(forest.l3s[0], 100, forest.l3s[1], 0x61)
    forest.put(forest.l3s[1], 100, forest.l3s[1], 0x61)
    for table in (forest.l4, *forest.l3s):
        assert forest.pin(4 if table == forest.l4 else 3, table) in (0, -EINVAL)
        forest.holds()
        if table in forest.ledger.pins:
            assert forest.unpin(table) == 0
    assert forest.gone()
    forest.holds()


def test_an_unpinned_table_is_no_pinned_one_while_it_is_taken_apart(forest: Forest) -> None:
    assert forest.pin(4, forest.l4) == 0
    answers: list[int] = []
    forest.at_restart(2, lambda: answers.append(forest.second.extended(xen.MMUEXT_UNPIN_TABLE, forest.l4)))
    assert forest.unpin(forest.l4) == 0
    assert answers == [-EINVAL]
    forest.holds()


@pytest.mark.parametrize("number", range(1, 7))
def test_a_half_checked_table_is_mapped_by_nobody_for_writing(forest: Forest, number: int) -> None:
    answers: list[int] = []
    partial: list[int] = []

    def attack() -> None:
        partial.extend(forest.world.frames.partial)
        answers.extend(forest.writable(mfn, forest.second) for mfn in forest.world.frames.partial)
        answers.extend(forest.second.mmu_update((forest.at(mfn, 3), 0)) for mfn in partial)

    forest.at_restart(number, attack)
    assert forest.pin(4, forest.l4) == 0
    assert partial
    assert answers == [-EBUSY] * len(partial) + [-EINVAL] * len(partial)
    forest.holds()


@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize("number", range(1, 9))
def test_another_vcpu_finishes_the_check(forest: Forest, level: int, number: int) -> None:
    """What one vCPU left half checked, another pins: the first goes on behind it."""
    chosen = (forest.l2s, forest.l3s, [forest.l4])[level - 2][0]
    answers: list[int] = []
    forest.at_restart(number, lambda: answers.append(forest.pin(level, chosen, forest.second)))
    assert forest.pin(4, forest.l4) == (-EINVAL if answers and level == 4 else 0)
    assert answers in ([0], [])
    forest.world.between = forest.between
    assert forest.are([forest.l4], 4)
    forest.holds()
    for mfn in {chosen, forest.l4} & forest.ledger.pins.keys():
        assert forest.unpin(mfn) == 0
    assert forest.gone()
    forest.holds()


@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize("number", range(1, 9))
def test_another_vcpu_uses_what_is_being_taken_apart(forest: Forest, level: int, number: int) -> None:
    """A table half taken apart is checked again from there; what drops it afterwards leaves it alone."""
    chosen = (forest.l2s, forest.l3s, [forest.l4])[level - 2][1 if level < 4 else 0]
    answers: list[int] = []
    assert forest.pin(4, forest.l4) == 0
    forest.at_restart(number, lambda: answers.append(forest.pin(level, chosen, forest.second)))
    assert forest.unpin(forest.l4) == 0
    if answers:
        assert answers == [0]
        assert forest.are([chosen], level)
        forest.holds()
        assert forest.unpin(chosen) == 0
    assert forest.gone()
    forest.holds()


def test_another_vcpu_finishes_and_ends_it(forest: Forest) -> None:
    """Half checked by one, pinned and unpinned by another: the first starts that table again."""

    def both() -> None:
        assert forest.pin(2, forest.l2s[0], forest.second) == 0
        assert forest.second.extended(xen.MMUEXT_UNPIN_TABLE, forest.l2s[0]) == 0

    forest.at_restart(1, both)
    assert forest.pin(4, forest.l4) == 0
    assert forest.are(forest.l2s, 2)
    forest.holds()


def test_a_root_is_changed_step_by_step(forest: Forest) -> None:
    vcpu = forest.domain.all[1]
    second = forest.second
    for slot in (273, 274):
        forest.put(forest.l4, slot, (forest.world.entry(forest.domain.root, 273) & 0xFFFFFFFFFF000) >> 12)
    assert second.extended(xen.MMUEXT_NEW_BASEPTR, forest.l4) == 0
    assert vcpu.kernel_root == forest.l4
    forest.holds()
    assert second.extended(xen.MMUEXT_NEW_BASEPTR, forest.domain.root) == 0
    assert vcpu.kernel_root == forest.domain.root
    assert forest.gone()
    forest.holds()


def test_a_user_root_is_changed_step_by_step(forest: Forest) -> None:
    assert forest.guest.extended(xen.MMUEXT_NEW_USER_BASEPTR, forest.l4) == 0
    before = forest.world.restarts
    assert forest.guest.extended(xen.MMUEXT_NEW_USER_BASEPTR, 0) == 0
    assert forest.world.restarts > before
    assert forest.gone()
    forest.holds()


def test_a_write_to_cr3_is_tried_again(forest: Forest) -> None:
    vcpu, mmu = forest.domain.all[0], forest.world.mmu
    answers: list[int] = []
    for root in (forest.l4, forest.domain.root):
        while True:
            answers.append(mmu.load_root(vcpu, root))
            forest.holds()
            if not answers[-1]:
                break
        assert vcpu.kernel_root == root
    assert answers.count(INTERRUPTED) >= 10
    assert forest.gone()


def test_a_write_to_cr3_that_is_refused_is_not_tried_again(forest: Forest) -> None:
    vcpu, mmu = forest.domain.all[0], forest.world.mmu
    forest.put(forest.l4, 9, NO_FRAME >> 12)
    for _ in range(100):
        answer = mmu.load_root(vcpu, forest.l4)
        forest.holds()
        if answer != INTERRUPTED:
            break
    assert answer == -EINVAL
    assert forest.world.types.unfinished
    assert mmu.load_root(vcpu, forest.domain.root) in (0, INTERRUPTED)
    while mmu.load_root(vcpu, forest.domain.root):
        forest.holds()
    assert forest.gone()


def test_a_new_vcpus_root_is_checked_step_by_step(forest: Forest) -> None:
    types, owner = forest.world.types, forest.domain.memory
    answers: list[int] = []
    while not answers or answers[-1] == INTERRUPTED:
        answers.append(types.take_table(forest.l4, owner, L4_TABLE, 1))
        forest.ledger.holds = [] if answers[-1] else [(forest.l4, None)]
        if answers[-1]:
            forest.holds()
    assert answers[-1] == 0
    assert len(answers) >= 7
    types.give_up(forest.l4)
    assert forest.gone()
    forest.ledger.holds = []
    forest.put(forest.l4, 9, NO_FRAME >> 12)
    while types.take_table(forest.l4, owner, L4_TABLE, 1) == INTERRUPTED:
        forest.holds()
    assert forest.gone()
    assert not types.unfinished
    forest.holds()


@pytest.mark.parametrize("slot", [3, 9])
def test_an_entry_is_stored_when_its_table_has_been_checked(forest: Forest, slot: int) -> None:
    root = forest.domain.root
    seen: list[int] = []
    forest.at_restart(2, lambda: seen.append(forest.world.entry(root, slot)))
    done = forest.guest.pass_bytes(bytes(4), 0x400)
    request = (forest.at(root, slot), forest.l3s[0] << 12 | TABLE)
    assert forest.guest.mmu_update(request, request, done=done) == 0
    assert seen == [0]
    assert forest.guest.vcpu.space.read(done, 4) == b"\2\0\0\0"
    forest.states.clear()
    assert forest.guest.mmu_update((forest.at(root, slot), 0), (forest.at(root, 4), 0), done=done) == 0
    assert forest.states
    assert forest.guest.vcpu.space.read(done, 4) == b"\2\0\0\0"
    assert forest.gone()
    forest.holds()


def test_what_fails_late_is_taken_apart_and_then_answered(forest: Forest) -> None:
    forest.put(forest.l4, 9, NO_FRAME >> 12)
    done = forest.guest.pass_bytes(bytes(4), 0x400)
    at = forest.guest.pass_bytes(pack("<IxxxxQQ", xen.MMUEXT_TLB_FLUSH_LOCAL, 0, 0) * 2)
    forest.guest.pass_bytes(pack("<IxxxxQQ", xen.MMUEXT_PIN_L4_TABLE, forest.l4, 0), 48)
    assert forest.world.call(forest.guest.vcpu, "mmuext_op", at, 3, done, SELF) == -EINVAL
    assert forest.guest.vcpu.space.read(done, 4) == b"\2\0\0\0"
    assert forest.gone()
    assert forest.world.restarts >= 12
    assert [forest.writable(mfn) for mfn in forest.tables()] == [0] * 15
    forest.holds()


def test_an_update_that_fails_late_is_answered(forest: Forest) -> None:
    forest.put(forest.l3s[0], 20, NO_FRAME >> 12)
    request = (forest.at(forest.domain.root, 3), forest.l3s[0] << 12 | TABLE)
    assert forest.guest.mmu_update(request) == -EINVAL
    assert forest.world.entry(forest.domain.root, 3) == 0
    assert forest.gone()
    forest.holds()


@pytest.mark.parametrize("number", range(1, 12))
def test_what_fails_where_another_went_on_leaves_nothing(forest: Forest, number: int) -> None:
    forest.put(forest.l3s[1], 20, NO_FRAME >> 12)
    answers: list[int] = []
    forest.at_restart(number, lambda: answers.append(forest.pin(3, forest.l3s[0], forest.second)))
    assert forest.pin(4, forest.l4) == -EINVAL
    if answers == [0]:
        assert forest.unpin(forest.l3s[0]) == 0
    assert forest.gone()
    assert not forest.world.frames.lost
    forest.holds()


@pytest.mark.parametrize("name", ["mmu_update", "mmuext_op"])
def test_an_empty_restart_answers_its_foreign_domain(forest: Forest, name: str) -> None:
    vcpu = forest.guest.vcpu
    assert forest.world.call(vcpu, name, 0, PREEMPTED, 0, 0xFFFF_FFEA) == -EINVAL
    assert forest.world.call(vcpu, name, 0, PREEMPTED, 0, 0x7FF0) == 0x7FF0
    assert forest.world.call(vcpu, name, 0xFFFF_8300_0000_0000, PREEMPTED, 0, SELF) == -EFAULT


def test_other_calls_of_the_vcpu_finish_it_first(forest: Forest) -> None:
    """Between two parts of a call the vCPU's event handler runs, and calls too."""
    assert forest.pin(4, forest.l4) == 0
    vcpu = forest.guest.vcpu
    at = forest.guest.pass_bytes(pack("<IxxxxQQ", xen.MMUEXT_UNPIN_TABLE, forest.l4, 0))
    del forest.ledger.pins[forest.l4]
    assert forest.world.table.call(vcpu, 26, (at, 1, 0, SELF)) == CONTINUE
    arguments, vcpu.restarted = vcpu.restarted, None
    assert forest.world.types.unfinished
    assert forest.writable(forest.l1s[0]) == 0
    assert not forest.world.types.unfinished
    assert arguments is not None
    assert forest.world.call(vcpu, "mmuext_op", *arguments) == 0
    assert forest.writable(forest.l1s[1]) == 0
    forest.holds()


@pytest.mark.parametrize("number", range(1, 12))
@pytest.mark.parametrize("unpin", [False, True])
def test_a_domain_dies_in_between(number: int, unpin: bool) -> None:
    forest = Forest()
    if unpin:
        assert forest.pin(4, forest.l4) == 0
        at = forest.guest.pass_bytes(pack("<IxxxxQQ", xen.MMUEXT_UNPIN_TABLE, forest.l4, 0))
    else:
        at = forest.guest.pass_bytes(pack("<IxxxxQQ", xen.MMUEXT_PIN_L4_TABLE, forest.l4, 0))
    vcpu = forest.guest.vcpu
    arguments: tuple[int, ...] = (at, 1, 0, SELF)
    for _ in range(number):
        if forest.world.table.call(vcpu, 26, arguments) != CONTINUE:
            break
        assert vcpu.restarted is not None
        arguments, vcpu.restarted = vcpu.restarted, None
    forest.world.destroy(forest.domain)
    frames, types = forest.world.frames, forest.world.types
    assert not frames.partial
    assert not types.unfinished
    assert not frames.owned_by(forest.domain.id)
    assert not any(types.types[mfn] >> 8 for mfn in forest.tables())


class TestPae:
    """A root of four slots; the last L2 carries Xen's entries."""

    @pytest.fixture
    def forest(self) -> Forest:
        forest = Forest(pv32=True)
        for slot, mfn in enumerate(forest.l2s):
            forest.world.memory.store64(forest.at(forest.l3s[0], slot), mfn << 12 | 1)
        return forest

    def test_pin_and_unpin(self, forest: Forest) -> None:
        assert forest.pin(3, forest.l3s[0]) == 0
        assert forest.world.restarts >= 6
        forest.holds()
        assert forest.are(forest.l2s, 2)
        assert all(forest.world.entry(forest.l3s[0], slot) & 7 == 7 for slot in range(4))
        assert forest.world.entry(forest.l2s[3], COMPAT_FIRST_XEN_SLOT)
        assert forest.unpin(forest.l3s[0]) == 0
        assert forest.gone()
        assert all(forest.world.entry(forest.l3s[0], slot) & 7 == 1 for slot in range(4))
        forest.holds()

    def test_a_last_l2_of_two_roots(self, forest: Forest) -> None:
        assert forest.pin(3, forest.l3s[0]) == 0
        for slot, mfn in enumerate(forest.l2s):
            forest.world.memory.store64(forest.at(forest.l3s[1], slot), mfn << 12 | 1)
        assert forest.pin(3, forest.l3s[1]) == -EINVAL
        assert all(forest.world.entry(forest.l3s[1], slot) & 7 == 1 for slot in range(4))
        forest.holds()
        assert forest.unpin(forest.l3s[0]) == 0
        assert forest.gone()

    @pytest.mark.parametrize("number", range(1, 9))
    def test_another_vcpu_uses_it_half_way(self, forest: Forest, number: int) -> None:
        answers: list[int] = []
        assert forest.pin(3, forest.l3s[0]) == 0
        forest.at_restart(number, lambda: answers.append(forest.pin(3, forest.l3s[0], forest.second)))
        assert forest.unpin(forest.l3s[0]) == 0
        if answers:
            assert answers == [0]
            forest.holds()
            assert forest.unpin(forest.l3s[0]) == 0
        assert forest.gone()


def test_a_linear_table_half_taken_apart_is_counted_once() -> None:
    """An L3 names another L3; the last use of that one goes with the entry, in steps."""
    forest = Forest()
    types = forest.world.types
    first, second = forest.l3s
    types.step = STEP
    assert forest.pin(3, second) == 0
    forest.put(first, 30, second, 0x61)
    assert forest.pin(3, first) == 0
    assert forest.unpin(second) == 0
    forest.holds()
    types.step = 1
    assert forest.unpin(first) == 0
    assert forest.gone()
    assert not forest.world.frames.linear
    forest.holds()


def test_one_call_does_a_bounded_amount() -> None:
    """Full tables: each part of the call looks at STEP entries and at most two L1 tables more."""
    world = World(60_000, 1)
    domain = world.domain(1, 56_000)
    spent: list[int] = []
    owner, types = domain.memory, world.types
    world.between = lambda vcpu: spent.append(types.step - types.work)
    for call in range(2):
        spent.clear()
        at = pack("<IxxxxQQ", (xen.MMUEXT_UNPIN_TABLE, xen.MMUEXT_PIN_L4_TABLE)[call], domain.root, 0)
        vcpu = domain.all[0]
        vcpu.space.scratch[: len(at)] = at
        if not call:
            vcpu.kernel_root = 0
            types.types[domain.root] -= 256
            types.counts[domain.root] -= 256
        assert world.call(vcpu, "mmuext_op", 0x10_0000, 1, 0, SELF) == 0
        assert len(spent) == 3, spent
        assert all(STEP <= amount < STEP + 1200 for amount in spent), spent
    assert types.types[domain.root] & (PINNED | VALIDATED) == PINNED | VALIDATED
    assert owner.pages == 56_000
    assert world.frames.type_of(domain.frames[0]) == WRITABLE
