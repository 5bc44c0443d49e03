"""The run loop: cores, time, events, limits, signals, several machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from machine import Core, EngineError, Machine, RunEnd
from machine import registers as reg
from machine.engine import EXCEPTION_NS
from tests.machine.rig import CODE, RW_NX, Rig, Tables, asm, degraded, machine

SPIN = "l: jmp l"
MILLISECOND = 1_000_000


def test_nothing_to_run_and_no_event_is_idle() -> None:
    with machine() as built:
        assert built.run() is RunEnd.IDLE
        assert built.clock.now == 0


def test_the_clock_jumps_over_idle_time_and_fires_in_order() -> None:
    with machine() as built:
        fired: list[tuple[str, int]] = []

        def note(name: str) -> None:
            fired.append((name, built.clock.now))

        built.clock.at(500, note, "late")
        built.clock.at(100, note, "first")
        built.clock.at(100, note, "second")
        built.clock.at(300, note, "never").cancel()
        assert built.run(deadline_ns=200) is RunEnd.DEADLINE
        assert built.clock.now == 200
        assert built.run() is RunEnd.IDLE
        assert fired == [("first", 100), ("second", 100), ("late", 500)]
        assert built.counters.events == 3


def test_deadline_is_exact_and_the_run_can_go_on() -> None:
    with Rig(SPIN) as rig:
        assert rig.run(deadline_ns=12_340) is RunEnd.DEADLINE
        assert rig.core.now() == 12_340
        assert rig.core.blocks == 1234
        assert rig.run(deadline_ns=50_000_000) is RunEnd.DEADLINE
        assert rig.core.blocks == 5_000_000
        assert rig.machine.clock.now == 50_000_000


def test_until_is_looked_at_between_slices() -> None:
    with Rig(SPIN) as rig:
        rig.handler.slice_ns = 1000
        assert rig.run(until=lambda: rig.core.now() >= 5000) is RunEnd.CONDITION
        assert rig.core.now() == 5000


def test_wall_limit_and_halt() -> None:
    with Rig(SPIN) as rig:
        assert rig.run(wall_s=0.02) is RunEnd.WALL
        rig.machine.clock.at(rig.core.now() + 1000, lambda _: rig.machine.halt())
        when = rig.core.now() + 1000
        assert rig.run() is RunEnd.HALTED
        assert rig.core.now() == when


def test_an_event_made_in_a_trap_shortens_the_running_slice() -> None:
    with Rig("syscall\nl: jmp l") as rig:
        seen: list[int] = []

        def arm(core: Core) -> None:
            rig.machine.clock.at(core.now() + 990, lambda _: seen.append(core.now()))

        rig.handler.on["syscall"] = arm
        rig.run(deadline_ns=MILLISECOND)
        assert seen == [1000]


def test_cores_stay_within_a_quantum_of_each_other() -> None:
    with Rig(SPIN, cores=4, quantum_ns=3000) as rig:
        spread: list[int] = []

        def look() -> bool:
            times = [core.now() for core in rig.machine.cores]
            spread.append(max(times) - min(times))
            return False

        rig.run(until=look, deadline_ns=100_000)
        assert 0 < max(spread) <= 3000
        assert {core.blocks for core in rig.machine.cores} == {10_000}
        assert rig.machine.counters.switches > 30


def test_wake_starts_an_idle_core_at_the_senders_time() -> None:
    source = "test rdi, rdi\njnz other\nmov ecx, 500\nl: dec ecx\njnz l\nsyscall\nm: jmp m\nother: int 0x90"
    with Rig(source, cores=2, quantum_ns=1000) as rig:
        first, second = rig.machine.cores
        second.q[reg.RDI] = 1
        rig.handler.finished.add(1)
        started: list[int] = []

        def wake(core: Core) -> None:
            assert second.idle
            rig.handler.finished.clear()
            rig.machine.wake(second, core.now())
            started.append(second.now())

        rig.handler.on["syscall"] = wake
        assert rig.run(deadline_ns=2 * MILLISECOND) is RunEnd.DEADLINE
        # test, then 500 times around, then the block of the syscall
        assert started == [5020]
        assert second.now() == 5040 + EXCEPTION_NS
        assert second.idle
        assert not first.idle


def _two_views(rig: Rig) -> None:
    """Both cores read a word at DATA through a private mapping of their own."""
    for core in rig.machine.cores:
        tables = Tables(rig.machine, 0x140000 + 0x20000 * core.index)
        tables.map(CODE, 0x200000)
        tables.map(0x500000, 0x300000 + 0x1000 * core.index, RW_NX | 0x60)
        rig.tables_of = getattr(rig, "tables_of", {}) | {core.index: tables}  # type: ignore[attr-defined]
        core.load_root(tables.root)


def test_flushes_reach_other_cores_and_stale_entries_live_until_then() -> None:
    with Rig("l: mov rax, [rbx]\nsyscall\njmp l", cores=2) as rig:
        _two_views(rig)
        memory = rig.machine.memory
        for frame, value in ((0x300000, 10), (0x301000, 11), (0x302000, 12)):
            memory.store64(frame, value)
        for core in rig.machine.cores:
            core.q[reg.RBX] = 0x500000
        rig.handler.on["syscall"] = lambda core: core.stop()

        def read(core: Core) -> int:
            with rig.machine._engine.translating():
                core.run(core.now() + MILLISECOND)
            return core.q[reg.RAX]

        first, second = rig.machine.cores
        assert (read(first), read(second)) == (10, 11)
        rig.tables_of[0].map(0x500000, 0x302000, RW_NX | 0x60)  # type: ignore[attr-defined]
        assert (read(second), read(first)) == (11, 10)  # stale, as on real hardware
        first.flush_page(0x500000)  # while the other core is the selected one
        read(second)
        assert read(first) == 12
        rig.tables_of[1].map(0x500000, 0x302000, RW_NX | 0x60)  # type: ignore[attr-defined]
        assert read(second) == 11
        read(first)
        second.flush()
        assert (read(second), read(first)) == (12, 12)


def test_banks_keep_their_translations_and_flushes_reach_both() -> None:
    with Rig("l: mov rax, [rbx]\nsyscall\njmp l") as rig:
        memory, core = rig.machine.memory, rig.core
        spaces = []
        for n in range(2):
            tables = Tables(rig.machine, 0x140000 + 0x20000 * n)
            tables.map(CODE, 0x200000)
            tables.map(0x500000, 0x300000 + 0x1000 * n, RW_NX | 0x60)
            memory.store64(0x300000 + 0x1000 * n, 10 + n)
            spaces.append(tables)
        memory.store64(0x302000, 12)
        core.q[reg.RBX] = 0x500000
        core.load_root(spaces[0].root)
        rig.handler.on["syscall"] = lambda core: core.stop()

        def read(bank: int) -> int:
            core.switch_bank(spaces[bank].root, bank)
            assert (core.bank, core.q[reg.CR3]) == (bank, spaces[bank].root)
            with rig.machine._engine.translating():
                core.run(core.now() + MILLISECOND)
            return core.q[reg.RAX]

        assert [read(bank) for bank in (0, 1, 0, 1, 1)] == [10, 11, 10, 11, 11]
        fills = rig.machine.counters.tlb_fills
        assert [read(bank) for bank in (0, 1, 0, 1)] == [10, 11, 10, 11]
        assert rig.machine.counters.tlb_fills == fills
        for tables in spaces:
            tables.map(0x500000, 0x302000, RW_NX | 0x60)
        assert (read(0), read(1)) == (10, 11)
        core.flush_parked()
        assert (read(1), read(0)) == (11, 12)
        spaces[0].map(0x500000, 0x300000, RW_NX | 0x60)
        read(1)
        core.flush_page(0x500000)
        assert (read(0), read(1)) == (10, 12)


def test_one_store_on_a_shadow_frame() -> None:
    with Rig("mov [rbx + 8], rax\nsyscall\nmov rcx, [rbx + 8]\nmov [rbx + 16], rax\nint 0x90") as rig:
        rig.tables.map(0x500000, 0x300000, 0x8000_0000_0000_0025)
        core = rig.core
        core.q[reg.RBX], core.q[reg.RAX] = 0x500000, 0x1234

        def shadow(core: Core) -> None:
            core.enter_mapping(0x500008, 0x310000, writable=True)

        def back(core: Core) -> None:
            core.flush_page(0x500000)
            rig.handler.on.pop(14)

        rig.handler.on = {14: shadow, "syscall": back}
        rig.run()
        memory = rig.machine.memory
        assert [trap[:2] for trap in rig.handler.traps if trap[0] == 14] == [(14, 7), (14, 7)]
        assert (memory.q[0x310008 >> 3], memory.q[0x300008 >> 3]) == (0x1234, 0)
        assert core.q[reg.RCX] == 0


@pytest.mark.parametrize("cpl", [1, 3])
def test_32_bit_pae_guest(cpl: int) -> None:
    with Rig(asm("mov eax, 0x11223344\npush eax\npop ebx\nint 0x82", bits=32)) as rig:
        tables = Tables(rig.machine, 0x140000, pae=True)
        tables.map(CODE, 0x200000)
        tables.map(0x500000, 0x300000)
        core = rig.core
        core.set_mode(long=False, cpl=cpl)
        core.set_cs(0xE018 | cpl, 0, 0xFFFF_FFFF, 0x00C0_9B00 | cpl << 13)
        for segment in (reg.SS, reg.DS, reg.ES):
            core.set_segment(segment, 0xE020 | cpl, 0, 0xFFFF_FFFF, 0x00C0_9300 | cpl << 13)
        core.load_root(tables.root)
        core.q[reg.RIP], core.q[reg.RSP] = CODE, 0x500100
        rig.run()
        assert rig.handler.traps == [(0x82, 0, True, CODE + 9)]
        assert (core.q[reg.RBX], core.q[reg.RSP]) == (0x11223344, 0x500100)


def test_state_saved_is_state_loaded() -> None:
    with Rig("mov rax, 7\nmovq xmm3, rax\nsyscall\nmovq rbx, xmm3\nint 0x90", cores=2) as rig:
        second = rig.machine.cores[1]
        rig.handler.finished.add(1)
        saved: list[bytes] = []

        def save(core: Core) -> None:
            saved.append(core.save())
            core.stop()
            rig.handler.finished.add(0)

        rig.handler.on["syscall"] = save
        rig.run()
        second.load(saved[0])
        assert second.save() == saved[0]
        second.idle = False
        rig.handler.finished.discard(1)
        rig.run()
        assert second.q[reg.RBX] == 7
        with pytest.raises(ValueError, match="bytes"):
            second.load(b"short")


def test_two_machines_at_once_and_one_after_the_other() -> None:
    def build(value: int) -> Rig:
        return Rig(f"mov ecx, 3000\nl: add rbx, {value}\ndec ecx\njnz l\nint 0x90")

    with build(1) as one:
        one.run(deadline_ns=5000)
        with build(2) as two:
            two.run(deadline_ns=7000)
            one.run(deadline_ns=9000)
            two.run()
            assert two.core.q[reg.RBX] == 6000
        one.run()
        assert one.core.q[reg.RBX] == 3000
    with build(3) as three:
        three.run()
        assert three.core.q[reg.RBX] == 9000
    assert one.core.q[reg.RBX] == 3000
    with pytest.raises(RuntimeError, match="closed"):
        one.run()


def _run_foreign(uc: object, at: int) -> int:
    from unicorn.x86_const import UC_X86_REG_RAX, UC_X86_REG_RDI

    program = asm(
        f"mov rdi, {at + 0x8000}\nmov ecx, 1000\nl: inc qword ptr [rdi]\ndec ecx\njnz l\nmov rax, [rdi]", at
    )
    uc.mem_write(at, program)  # type: ignore[attr-defined]
    uc.emu_start(at, at + len(program))  # type: ignore[attr-defined]
    assert uc.reg_read(UC_X86_REG_RDI) == at + 0x8000  # type: ignore[attr-defined]
    return int(uc.reg_read(UC_X86_REG_RAX))  # type: ignore[attr-defined]


def test_other_unicorn_objects_are_unharmed() -> None:
    unicorn = pytest.importorskip("unicorn")

    def foreign() -> object:
        uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        uc.mem_map(0x10000, 0x10000)
        return uc

    before = foreign()
    assert _run_foreign(before, 0x10000) == 1000
    with Rig("mov ecx, 2000\nl: dec ecx\njnz l\nint 0x90") as rig:
        rig.run(deadline_ns=5000)
        assert _run_foreign(before, 0x11000) == 1000
        during = foreign()
        assert _run_foreign(during, 0x10000) == 1000
        rig.run()
        assert rig.core.q[reg.RCX] == 0
    assert _run_foreign(before, 0x12000) == 1000
    assert _run_foreign(during, 0x12000) == 1000


def test_profile_keeps_host_times_and_changes_nothing() -> None:
    ends = []
    for profile in (False, True):
        with Rig("mov ecx, 200\nl: mov ebx, ecx\nsyscall\nmov ecx, ebx\ndec ecx\njnz l\nint 0x90") as rig:
            rig.machine.profile = profile
            rig.handler.on["syscall"] = lambda core: None
            rig.machine.clock.at(500, lambda _: None)
            rig.run()
            counters = rig.machine.counters
            assert (counters.run_ns > counters.slice_ns > counters.callback_ns > 0) == profile
            between = counters.run_ns - counters.slice_ns
            assert (between > counters.dispatch_ns + counters.event_ns > counters.event_ns > 0) == profile
            ends.append((rig.core.now(), len(rig.handler.traps)))
    assert ends[0] == ends[1]


def test_degraded_machine_says_so_and_runs() -> None:
    with Rig(
        "mov ecx, 100\nl: call f\ndec ecx\njnz l\nint 0x90\nf: mov rbx, rcx\nret", engine=degraded()
    ) as rig:
        assert rig.machine.degraded == "asked for"
        assert rig.run() is RunEnd.IDLE
        assert rig.core.q[reg.RBX] == 1
    with machine() as built:
        assert built.degraded == ""


INTERRUPTED = """
import os, signal, threading, sys
sys.path.insert(0, {root!r})
from tests.machine.rig import Rig
from machine import registers as reg
from machine.engine import EXCEPTION_NS
with Rig("l: inc rax\\njmp l") as rig:
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        rig.run()
    except KeyboardInterrupt:
        blocks, rax = rig.core.blocks, rig.core.q[reg.RAX]
        assert rax == blocks, (rax, blocks)
        rig.run(deadline_ns=rig.core.now() + 1000)
        assert rig.core.q[reg.RAX] == rax + 100
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        print("whole")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sends itself a signal")
def test_sigint_ends_a_run_and_leaves_the_machine_whole() -> None:
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))  # noqa: PTH100, PTH118, PTH120
    code = INTERRUPTED.format(root=root)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "whole", done.stderr


def test_sigint_inside_a_handler_waits_for_its_end() -> None:
    with Rig("syscall\nmov ebx, 1\nl: jmp l") as rig:
        steps: list[str] = []

        def interrupted(_core: Core) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            steps.extend(["after the signal", "end"])

        rig.handler.on["syscall"] = interrupted
        with pytest.raises(KeyboardInterrupt):
            rig.run()
        assert steps == ["after the signal", "end"]
        assert rig.core.q[reg.RBX] == 0
        rig.run(deadline_ns=10_000)
        assert rig.core.q[reg.RBX] == 1


def test_a_machine_cannot_be_run_from_its_own_handler() -> None:
    with Rig("syscall") as rig:
        built: Machine = rig.machine
        rig.handler.on["syscall"] = lambda _core: built.run() and None
        with pytest.raises(RuntimeError, match="running"):
            rig.run()


def test_a_core_woken_by_the_dispatch_of_another_is_not_left_behind() -> None:
    with Rig(SPIN, cores=2, quantum_ns=1000) as rig:
        first, second = rig.machine.cores
        rig.handler.finished.add(1)
        rig.run(deadline_ns=5000)
        assert second.idle
        plain = rig.handler.dispatch

        def dispatch(core: Core) -> int | None:
            if core is first and second.idle:
                rig.handler.finished.clear()
                rig.machine.wake(second, core.now())
            return plain(core)

        rig.handler.dispatch = dispatch  # type: ignore[method-assign]
        gaps: list[int] = []

        def look() -> bool:
            gaps.append(abs(first.now() - second.now()))
            return False

        rig.run(until=look, deadline_ns=20_000)
        assert max(gaps[1:]) <= 1000
        assert second.blocks >= 1500


TOUCH = """
again: mov rbx, 0x10000000
mov ecx, 3000
l: mov rax, [rbx]
add rbx, 4096
dec ecx
jnz l
syscall
dec r12d
jnz again
int 0x90
"""


def test_host_time_reaches_neither_blocks_nor_tlbs() -> None:
    ends = []
    for pause in (0.0, 0.03):
        with Rig(TOUCH, hash_blocks=True) as rig:
            for page in range(3000):
                rig.tables.map(0x10000000 + 4096 * page, 0x1000000 + 4096 * (page % 512), RW_NX)
            rig.core.q[reg.R12] = 8

            def flush(core: Core, pause: float = pause) -> None:
                time.sleep(pause)
                core.charge(40 * MILLISECOND)
                core.flush()

            rig.handler.on["syscall"] = flush
            rig.run()
            counters = rig.machine.counters
            ends.append((rig.machine.block_hash, rig.core.now(), counters.tlb_fills, counters.slices))
    assert ends[0] == ends[1]
    assert ends[0][2] > 20_000


def test_a_table_that_names_memory_which_is_not_there_ends_the_run_with_an_error() -> None:
    with Rig("mov ecx, 1\nl: mov rax, [rbx]\njmp l") as rig:
        rig.tables.map(0x500000, 1 << 30)
        rig.core.q[reg.RBX] = 0x500000
        with pytest.raises(EngineError, match="core 0 at rip 0x400005") as caught:
            rig.run(deadline_ns=MILLISECOND)
        assert caught.value.core == 0
        rig.core.q[reg.RBX] = CODE
        assert rig.run(deadline_ns=MILLISECOND) is RunEnd.DEADLINE


def test_a_run_of_several_cores_is_the_same_twice_and_with_and_without_hashing() -> None:
    source = "mov rbx, 0x500000\nl: lock inc qword ptr [rbx]\nrdtsc\ntest al, 64\njz l\nsyscall\njmp l"
    ends = []
    for hashed in (True, True, False):
        with Rig(source, cores=4, quantum_ns=1500, hash_blocks=hashed) as rig:
            rig.tables.map(0x500000, 0x300000, RW_NX)
            rig.handler.on["syscall"] = lambda core: core.charge(330)
            rig.run(deadline_ns=MILLISECOND)
            counters = rig.machine.counters
            state = b"".join(core.save() for core in rig.machine.cores)
            ends.append((counters, rig.machine.memory.q[0x300000 >> 3], state, rig.machine.block_hash))
    assert ends[0] == ends[1]
    assert ends[0][:3] == ends[2][:3]
