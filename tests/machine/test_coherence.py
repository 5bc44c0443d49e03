"""Code is never stale, and stale translations are exactly those that real TLBs may hold."""

from __future__ import annotations

import pytest

from machine import Core, EngineOptions
from machine import registers as reg
from tests.machine.coherence import Fuzz
from tests.machine.rig import DATA, Rig, asm, degraded

STEPS = 12_000
PRODUCT = 100_000
LONG = 1_000_000


@pytest.mark.parametrize("toggles", [False, True], ids=["one bank", "two banks"])
@pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])
def test_no_mismatch(eager: bool, toggles: bool) -> None:
    outcome = Fuzz(1 + eager, EngineOptions(eager=eager), toggles).run(STEPS)
    assert outcome.mismatches == 0
    assert outcome.stale_uses > STEPS // 100
    assert outcome.dropped > STEPS // 200
    assert outcome.kept > STEPS // 20


def test_no_mismatch_as_shipped() -> None:
    assert Fuzz(3, EngineOptions(), toggles=True).run(PRODUCT).mismatches == 0


@pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])
def test_without_the_measures_code_goes_stale(eager: bool) -> None:
    assert Fuzz(1, EngineOptions(coherence=False, eager=eager), toggles=False).run(STEPS).mismatches > 50


def test_no_mismatch_in_degraded_mode() -> None:
    assert Fuzz(4, degraded(), toggles=True).run(STEPS // 2).mismatches == 0


def test_degraded_mode_needs_its_store_watch() -> None:
    assert Fuzz(1, EngineOptions(degraded=True, coherence=False), toggles=False).run(STEPS).mismatches > 50


def test_two_runs_are_one() -> None:
    first, second = (Fuzz(9, EngineOptions(), toggles=True).run(3000) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("toggles", [False, True], ids=["one bank", "two banks"])
def test_the_same_with_and_without_a_block_cache(toggles: bool) -> None:
    with_it, without = (Fuzz(5, EngineOptions(blocks=on), toggles).run(STEPS // 2) for on in (True, False))
    assert with_it == without
    assert with_it.kept > STEPS // 40
    assert without.kept == 0


@pytest.mark.soak
@pytest.mark.parametrize("toggles", [False, True], ids=["one bank", "two banks"])
def test_no_mismatch_for_long(toggles: bool) -> None:
    assert Fuzz(77, EngineOptions(), toggles).run(LONG).mismatches == 0


SHARED_CODE = """
test rdi, rdi
jnz w
r: call rax
syscall
jmp r
w: mov dword ptr [rax + 1], esi
syscall
jmp w
"""


@pytest.mark.parametrize("engine", [EngineOptions(), EngineOptions(eager=False), degraded()])
def test_what_another_core_stores_into_code_runs(engine: EngineOptions) -> None:
    """Cores take turns: 3, 5 and 6 of 8 store, through entries they had before it was code; 0 runs it."""
    with Rig(SHARED_CODE, cores=8, engine=engine) as rig:
        cores = rig.machine.cores
        rig.tables.map(DATA, 0x300000)
        rig.machine.memory.write(0x300000, asm("mov ebx, 99\nret"))
        turns = [0, *[turn for _ in range(30) for turn in (3, 0, 5, 0, 5, 6, 0)]]
        rig.handler.finished.update(set(range(8)) - {3, 5, 6})
        seen: list[tuple[int, int]] = []
        last = 6

        def pass_on(core: Core) -> None:
            if core.index:
                core.q[reg.RSI] += 10
            else:
                seen.append((core.q[reg.RBX] & 0xFFFF_FFFF, cores[last].q[reg.RSI] - 10))
            rig.handler.finished.add(core.index)
            core.stop()
            if len(rig.handler.finished) == 8 and turns:
                follow(core)

        def follow(core: Core) -> None:
            nonlocal last
            turn = turns.pop(0)
            last = turn or last
            rig.handler.finished.remove(turn)
            rig.machine.wake(cores[turn], core.now())

        for core in cores:
            core.q[reg.RDI], core.q[reg.RAX], core.q[reg.RSI] = core.index, DATA, core.index
        rig.handler.on["syscall"] = pass_on
        rig.run()
        assert len(seen) > 80
        assert [found for found, _ in seen] == [stored for _, stored in seen]
        assert rig.machine.cores[1].blocks == 0


def test_a_translation_put_into_a_core_that_never_ran_is_found_too() -> None:
    with Rig(SHARED_CODE, cores=2) as rig:
        first, second = rig.machine.cores
        rig.tables.map(DATA, 0x300000)
        rig.machine.memory.write(0x300000, asm("mov ebx, 99\nret"))
        for core in (first, second):
            core.q[reg.RDI], core.q[reg.RAX], core.q[reg.RSI] = core.index, DATA, 7
        second.enter_mapping(DATA, 0x300000, writable=True)
        seen: list[int] = []
        for core in (first, second, first):
            rig.handler.finished = {0, 1} - {core.index}
            rig.machine.wake(core, first.now())
            rig.run()
            seen.append(first.q[reg.RBX])
        assert seen == [99, 99, 7]
