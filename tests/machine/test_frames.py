"""Translations dropped by frame."""

from __future__ import annotations

import pytest

from machine import EngineOptions
from machine import registers as reg
from tests.machine.rig import CODE, RW_NX, Rig, Tables, degraded

MILLISECOND = 1_000_000


def test_a_frame_goes_from_both_banks_and_the_victims_whatever_shows_it() -> None:
    """Six pages want one entry of the TLB: five of them are its victims."""
    frame, other = 0x300000, 0x310000
    pages = [0x1000_5000 + (n << 24) for n in range(6)]
    with Rig("l: mov rax, [rbx]\nsyscall\njmp l") as rig:
        memory, core = rig.machine.memory, rig.core
        memory.store64(other, 11)
        spaces = []
        for n in range(2):
            tables = Tables(rig.machine, 0x140000 + 0x40000 * n)
            tables.map(CODE, 0x200000)
            for va in pages:
                tables.map(va, frame, RW_NX | 0x60)
            tables.map(0x507000, other, RW_NX | 0x60)
            spaces.append(tables)
        core.load_root(spaces[0].root)
        rig.handler.on["syscall"] = lambda core: core.stop()

        def read(bank: int, va: int) -> int:
            core.switch_bank(spaces[bank].root, bank)
            core.q[reg.RBX] = va
            with rig.machine._engine.translating():
                core.run(core.now() + MILLISECOND)
            return core.q[reg.RAX]

        assert [read(bank, va) for bank in (0, 1) for va in (*pages, 0x507000)] == [*[0] * 6, 11] * 2
        for tables in spaces:
            for va in (*pages, 0x507000):
                tables.map(va, 0x320000, RW_NX | 0x60)
        memory.store64(0x320000, 12)
        assert [read(bank, va) for bank in (0, 1) for va in pages] == [0] * 12, "stale, as on real hardware"
        assert core.flush_frame(frame >> 12)
        assert [read(bank, va) for bank in (0, 1) for va in pages] == [12] * 12
        assert [read(bank, 0x507000) for bank in (0, 1)] == [11, 11], "other frames stay"
        assert core.frame_flushes == 1


@pytest.mark.parametrize("engine", [EngineOptions(), EngineOptions(coherence=False), degraded()],
                         ids=["as shipped", "no map of code", "degraded"])
def test_a_frame_with_code_is_not_dropped_by_itself(engine: EngineOptions) -> None:
    with Rig("int 0x90", engine=engine) as rig:
        rig.run()
        assert not rig.core.flush_frame(0x200)
        assert rig.core.flush_frame(0x300) is (engine == EngineOptions())
        assert not rig.core.flush_frame(rig.machine.memory.frames)
