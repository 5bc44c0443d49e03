"""Speed and time: threads that share a core, what traps cost, and slices that end when they are to end."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest

from machine import Core, EngineOptions, MachineConfig, Topology
from machine import registers as reg
from machine.core import FULL_SPEED, StopReason
from machine.engine import EXCEPTION_NS, TSC_NS
from tests.machine.rig import Rig, degraded

ENGINES = [EngineOptions(), degraded()]
SPIN = "l: jmp l"
STAMPS = "l: rdtsc\nshl rdx, 32\nor rax, rdx\nmov ecx, 25\nm: dec ecx\njnz m\nsyscall\njmp l"
STAMPS_BLOCKS = 27
"""Blocks from one system call of STAMPS to the next: the jump's, the 25 of the loop, that of the call."""
SHARED = round(FULL_SPEED / 0.6)
PAIR = Topology(1, 1, 2)


def test_a_thread_alone_has_full_speed_and_two_have_the_factor() -> None:
    with Rig(SPIN, topology=Topology(1, 2, 2), quantum_ns=10_000) as rig:
        first, second, third, fourth = rig.machine.cores
        rig.handler.finished.update({1, 3})
        rig.run(deadline_ns=1_000_000)
        assert (first.blocks, third.blocks) == (100_000, 100_000)
        rig.handler.finished.clear()
        rig.machine.wake(second, 1_000_000)
        rig.run(deadline_ns=2_000_000)
        for core in (first, second):
            blocks = core.blocks - (100_000 if core is first else 0)
            assert blocks == pytest.approx(60_000, rel=1e-3)
            assert 2_000_000 <= core.now() < 2_000_017
        assert third.blocks == 200_000
        rig.handler.finished.add(1)
        before = first.blocks
        rig.run(deadline_ns=3_000_000)
        assert first.blocks - before == pytest.approx(100_000, rel=0.01)
        assert (fourth.blocks, fourth.busy_ns) == (0, 0)
        assert second.busy_ns == pytest.approx(1_000_000, rel=0.02)
        assert first.busy_ns == first.now()


def test_a_sibling_woken_in_the_middle_of_a_slice_slows_from_there_on() -> None:
    with Rig(STAMPS, topology=PAIR) as rig:
        second = rig.machine.cores[1]
        seen: list[tuple[int, int]] = []

        def look(core: Core) -> None:
            seen.append((core.now(), core.blocks))
            if len(seen) == 10:
                rig.handler.finished.clear()
                rig.machine.wake(second, core.now())
                assert (core.now(), core.blocks) == seen[-1]
                assert second.busy
                assert core.deadline == core.now() + rig.machine.config.quantum_ns
            if len(seen) == 20:
                core.stop()
                rig.machine.halt()

        rig.handler.on["syscall"] = look
        rig.handler.finished.add(1)
        rig.machine.clock.at(1, lambda _: None)  # the second is idle before the first begins
        rig.run()
        gaps = [(later[0] - time, later[1] - blocks) for (time, blocks), later in pairwise(seen)]
        fast = STAMPS_BLOCKS * 10 + TSC_NS
        slow = (STAMPS_BLOCKS * SHARED >> 10) + TSC_NS
        assert gaps[:9] == [(fast, STAMPS_BLOCKS)] * 9
        assert {blocks for _, blocks in gaps} == {STAMPS_BLOCKS}
        assert all(gap in (slow, slow + 1) for gap, _ in gaps[9:])


def test_an_event_that_wakes_a_sibling_slows_the_next_slice() -> None:
    with Rig(SPIN, topology=PAIR) as rig:
        first, second = rig.machine.cores
        rig.handler.finished.add(1)
        rig.run(deadline_ns=1000)
        rig.machine.clock.at(50_000, lambda _: rig.machine.wake(second, rig.machine.clock.now))
        rig.handler.finished.clear()
        rig.run(deadline_ns=110_000)
        assert first.blocks == 5000 + -(-60_000 * 1024 // SHARED)
        assert second.blocks == -(-60_000 * 1024 // SHARED)
        assert second.idle_ns == 50_000


@pytest.mark.parametrize(("topology", "factor"), [(Topology(1, 2, 1), 0.3), (PAIR, 1.0)])
def test_nothing_shares_without_threads_or_at_a_factor_of_one(topology: Topology, factor: float) -> None:
    with Rig(SPIN, topology=topology, smt_factor=factor) as rig:
        rig.run(deadline_ns=1_000_000)
        assert [core.blocks for core in rig.machine.cores] == [100_000, 100_000]


@pytest.mark.parametrize("factor", [0, -0.5, 1.01, float("nan"), float("inf"), 1e-9])
def test_factors_that_are_none(factor: float) -> None:
    with pytest.raises(ValueError, match="SMT factor"):
        MachineConfig(smt_factor=factor)


@pytest.mark.parametrize("engine", ENGINES, ids=["full", "degraded"])
def test_time_is_exact_and_never_goes_back_at_any_pace(engine: EngineOptions) -> None:
    random = Random(11)
    rates = [FULL_SPEED, SHARED, round(FULL_SPEED / 0.37), FULL_SPEED * 9 + 1]
    with Rig(STAMPS, engine=engine) as rig:
        core = rig.core
        stamps = [0]
        blocks, time = -1, -10  # as if a jump had come before

        def look(core: Core) -> None:
            nonlocal blocks, time
            now = core.now()
            assert core.q[reg.RAX] > stamps[-1]
            stamps.append(core.q[reg.RAX])
            # 25 blocks and its own cost follow a stamp; what is less than 1 ns is dropped once a chunk
            assert abs(now - stamps[-1] - TSC_NS - 25 * core.rate / 1024) < 2
            assert core.blocks - blocks == STAMPS_BLOCKS
            assert abs(now - time - TSC_NS - STAMPS_BLOCKS * core.rate / 1024) < 2
            core.pace(random.choice(rates))
            assert core.now() == now
            cost = random.choice((0, random.randrange(2000)))
            core.charge(cost)
            assert core.now() == now + cost
            blocks, time = core.blocks, core.now()

        rig.handler.on["syscall"] = look
        with rig.machine._engine.translating():
            core.run(3_000_000)
        assert rig.machine._engine.failure is None
        assert len(stamps) > 800


@pytest.mark.parametrize("rate", [FULL_SPEED, SHARED])
def test_slices_end_at_the_first_block_that_reaches_their_end(rate: int) -> None:
    """Whatever is charged, limited, paced or trapped on the way."""
    random = Random(rate)
    block = -(-rate * 2 >> 10)
    with Rig(STAMPS) as rig:
        core, cost, end = rig.core, 0, 0

        def stir(core: Core) -> None:
            nonlocal end, cost
            cost = 0
            match random.randrange(12):
                case 0:
                    cost = random.choice((1, 9, 10, 333, 12_345))
                    core.charge(cost)
                case 1:
                    end = min(end, core.now() + random.randrange(2000))
                    core.limit(end)
                case 2:
                    core.limit(core.now() + 50_000_000)
                case 3:
                    core.pace(rate)
                case 4:
                    core.pace(rate * 2)
            assert core.deadline == end

        rig.handler.on["syscall"] = stir
        ends = 0
        with rig.machine._engine.translating():
            while core.now() < 5_000_000:
                start = core.now()
                end = start + random.choice((1, 10, 170, 4000, 1_000_000))
                cost = 0
                assert core.run(end) is StopReason.BUDGET
                assert end <= core.now() < end + block + max(cost, TSC_NS)
                ends += 1
        assert ends > 300


def test_many_small_charges_end_a_slice_in_time() -> None:
    with Rig("l: syscall\njmp l") as rig:
        rig.handler.on["syscall"] = lambda core: core.charge(9)
        rig.run(deadline_ns=100_000)
        assert 100_000 <= rig.core.now() < 100_020
        assert rig.core.blocks * 10 + len(rig.handler.traps) * 9 == rig.core.now()


@pytest.mark.parametrize("rate", [FULL_SPEED, SHARED])
@pytest.mark.parametrize("source", ["l: rdtsc\njmp l", "l: hlt"], ids=["time stamps", "faults"])
def test_what_costs_time_does_not_break_slices_to_pieces(source: str, rate: int) -> None:
    with Rig(source) as rig:
        engine, starts = rig.machine._engine, 0
        plain = engine.start

        def start(rip: int) -> int:
            nonlocal starts
            starts += 1
            return plain(rip)

        engine.start = start  # type: ignore[method-assign]
        rig.handler.on[13] = lambda core: None
        rig.core.pace(rate)
        with engine.translating():
            rig.core.run(200_000)
        assert starts <= 3


FAULTS = {
    "page fault": ("l: mov rax, [rbx]", 14),
    "general protection": ("l: hlt", 13),
    "undefined": ("l: ud2", 6),
    "division": ("xor ecx, ecx\nl: div ecx", 0),
    "software interrupt": ("l: int 0x80\njmp l", 0x80),
}


@pytest.mark.parametrize("engine", ENGINES, ids=["full", "degraded"])
@pytest.mark.parametrize("rate", [FULL_SPEED, SHARED])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_exception_costs_time(fault: str, rate: int, engine: EngineOptions) -> None:
    source, vector = FAULTS[fault]
    with Rig(source, engine=engine) as rig:
        core = rig.core
        entered: list[int] = []
        rig.handler.on[vector] = lambda core: entered.append(core.now())
        core.pace(rate)
        with rig.machine._engine.translating():
            core.run(30_000)
        count = len(rig.handler.traps)
        assert 100 < count <= 30_000 // EXCEPTION_NS + 1
        assert 30_000 <= core.now() < 30_000 + EXCEPTION_NS + 20
        spent = core.blocks * core.rate / 1024 + count * EXCEPTION_NS
        assert spent - 20 < core.now() <= spent
        assert all(later - time >= EXCEPTION_NS for time, later in pairwise(entered))


def test_equal_runs_of_sharing_threads_are_equal() -> None:
    def run(hashed: bool) -> tuple[Any, ...]:
        with Rig(STAMPS, topology=Topology(1, 2, 2), quantum_ns=1500, hash_blocks=hashed) as rig:
            rig.handler.on["syscall"] = lambda core: core.charge(core.q[reg.RAX] & 63)
            rig.run(deadline_ns=400_000)
            state = b"".join(core.save() for core in rig.machine.cores)
            return rig.machine.counters, state, rig.machine.block_hash

    first, again, plain = run(True), run(True), run(False)
    assert first == again
    assert first[:2] == plain[:2]
