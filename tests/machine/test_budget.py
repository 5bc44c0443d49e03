"""Slices end before a block runs, with exact state, wherever they end; hashing blocks changes nothing."""

from __future__ import annotations

import hashlib

import pytest

from machine import EngineOptions
from machine import registers as reg
from machine.core import StopReason
from tests.machine.rig import CODE, Rig, degraded

CALLS = """
mov rcx, 100000
l: call f
call g
mov [rsp - 0x100], rcx
push rcx
pop rdx
dec rcx
jnz l
int 0x90
f: add rax, 1
ret
g: push rbx
call f
pop rbx
ret
"""
STOPS = 20_000
UNIT = 10
SSE = (
    "mov ecx, 40\nl:\n"
    + "pmaddwd xmm1, xmm2\npunpcklbw xmm3, xmm1\npsadbw xmm2, xmm3\n" * 300
    + "dec ecx\njnz l\nint 0x90"
)


def budgets() -> list[int]:
    state, out = 12345, []
    for step in range(STOPS):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        out.append(1 + (state >> 8) % (3 if step & 1 else 60))
    return out


def snapshot(rig: Rig) -> bytes:
    q = rig.core.q
    return b"".join(
        q[i].to_bytes(8, "little") for i in (reg.RIP, reg.RCX, reg.RSP, reg.RAX, reg.RDX, reg.RBX)
    )


def test_20000_stops_give_the_states_of_single_blocks() -> None:
    wanted = budgets()
    with Rig(CALLS) as rig, Rig(CALLS) as single:
        marks = set()
        total = 0
        for budget in wanted:
            total += budget
            marks.add(total)
        states = {}
        with single.machine._engine.translating():
            for block in range(1, total + 1):
                assert single.core.run(single.core.now() + UNIT) is StopReason.BUDGET
                if block in marks:
                    states[block] = snapshot(single)
                if block == 30_000:
                    break
        done = 0
        with rig.machine._engine.translating():
            for budget in wanted:
                rig.core.run(rig.core.now() + budget * UNIT)
                done += budget
                assert rig.core.blocks == done
                if done in states:
                    assert snapshot(rig) == states[done]
        assert len(states) > 1000


@pytest.mark.parametrize("engine", [EngineOptions(), degraded()], ids=["full", "degraded"])
def test_the_end_does_not_depend_on_the_budgets(engine: EngineOptions) -> None:
    with Rig(CALLS, engine=engine) as cut, Rig(CALLS, engine=engine) as whole:
        with cut.machine._engine.translating():
            digest = hashlib.sha256()
            for budget in budgets():
                cut.core.run(cut.core.now() + budget * UNIT)
                digest.update(snapshot(cut))
        whole.run(deadline_ns=cut.core.now())
        assert snapshot(whole) == snapshot(cut)
        assert whole.core.blocks == cut.core.blocks
        cut.run()
        whole.run()
        assert snapshot(whole) == snapshot(cut)
        assert whole.core.blocks == cut.core.blocks > 65_535


@pytest.mark.parametrize("source", [CALLS, SSE], ids=["calls", "large blocks"])
def test_hashing_changes_no_count_and_no_time(source: str) -> None:
    ends, hashes = [], []
    for hashed in (False, True, True):
        with Rig(source, hash_blocks=hashed) as rig:
            rig.handler.slice_ns = 7_770
            rig.run()
            assert (rig.machine.block_hash is not None) == hashed
            ends.append((rig.core.blocks, rig.core.now(), snapshot(rig), rig.machine.counters))
            hashes.append(rig.machine.block_hash)
            assert rig.machine._engine.shared[9] == 0, "a block header was not found at its place"
    assert ends[0] == ends[1] == ends[2]
    assert hashes[1] == hashes[2]


def test_the_hash_does_not_depend_on_where_slices_end() -> None:
    hashes = set()
    for slice_ns in (50, 990, 10_000_000):
        with Rig(CALLS.replace("100000", "3000"), hash_blocks=True) as rig:
            rig.handler.slice_ns = slice_ns
            rig.run()
            hashes.add(rig.machine.block_hash)
    assert len(hashes) == 1


def test_the_hash_tells_another_path() -> None:
    hashes = set()
    for rbx in (0, 1):
        with Rig("test rbx, rbx\njz a\nnop\na: int 0x90", hash_blocks=True) as rig:
            rig.core.q[reg.RBX] = rbx
            rig.run()
            hashes.add(rig.machine.block_hash)
    assert len(hashes) == 2


def test_degraded_hash_equals_the_full_one() -> None:
    hashes = set()
    for engine in (EngineOptions(), degraded()):
        with Rig(CALLS.replace("100000", "500"), hash_blocks=True, engine=engine) as rig:
            rig.handler.slice_ns = 1230
            rig.run()
            hashes.add(rig.machine.block_hash)
    assert len(hashes) == 1


def test_stop_and_limit_and_charge_inside_a_trap() -> None:
    with Rig("nop\nsyscall\njmp a\na: jmp b\nb: syscall\nc: jmp c") as rig:
        core, times = rig.core, []

        def first(_: object) -> None:
            times.append(core.now())
            core.charge(1005)
            times.append(core.now())
            core.limit(core.now() + 10)
            rig.handler.on["syscall"] = second

        def second(_: object) -> None:
            times.append(core.now())
            core.stop()
            times.append(core.now())

        rig.handler.on["syscall"] = first
        with rig.machine._engine.translating():
            assert core.run(1_000_000) is StopReason.BUDGET
            assert core.q[reg.RIP] == CODE + 5
            assert core.run(1_000_000) is StopReason.STOPPED
        assert times == [10, 1015, 1045, 1045]
        assert core.blocks == 4
