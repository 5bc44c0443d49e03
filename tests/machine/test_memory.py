"""Machine memory: lazily reserved, written through one door, which keeps translated code true."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from machine import EngineOptions, Machine, MachineConfig, MachineMemory
from machine import registers as reg
from tests.machine.rig import CODE, Rig, Tables, asm, degraded

GIB = 1 << 30
KIB_PER_PAGE = 4


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * KIB_PER_PAGE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_64_gib_cost_nothing_until_touched() -> None:
    before = resident_kib()
    with Machine(MachineConfig(memory=64 * GIB)) as built:
        memory = built.memory
        assert memory.frames == 1 << 24
        top = 64 * GIB - 4096
        memory.store64(top, 0x1234)
        assert memory.words[-512] == 0x1234
        assert resident_kib() - before < 64 * 1024


def test_a_program_in_the_last_frame_of_64_gib_runs() -> None:
    with Rig("int 0x90", memory=64 * GIB) as rig:
        top = 64 * GIB - 4096
        rig.machine.memory.write(top, asm("mov ebx, 9\nint 0x90"))
        rig.tables.map(CODE, top)
        rig.run()
        assert rig.core.q[reg.RBX] == 9


def test_views_are_read_only_and_show_every_write() -> None:
    memory = MachineMemory(1 << 20)
    for view in (memory.q, memory.d, memory.b):
        with pytest.raises(TypeError):
            view[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        memory.words[0] = 1
    memory.store64(0x1000, 0x1122334455667788)
    memory.store32(0x1000, 0xAABBCCDD)
    memory.store8(0x1007, 0xEE)
    assert memory.q[0x200] == 0xEE223344AABBCCDD
    assert memory.d[0x400] == 0xAABBCCDD
    assert memory.b[0x1007] == 0xEE
    assert int(memory.words[0x200]) == memory.q[0x200]
    memory.write(0x2FFE, b"abcd")
    assert memory.read(0x2FFE, 4) == b"abcd"
    memory.fill(0x2000, 0x1001, 0x5A)
    assert memory.read(0x2FFF, 3) == b"ZZd"
    memory.copy_frame(9, 2)
    assert memory.read(0x9000, 4096) == b"Z" * 4096


@pytest.mark.parametrize("size", [0, -4096, 4097, 65 * GIB])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(ValueError, match="memory must be"):
        MachineMemory(size)


def test_nothing_is_written_beyond_the_end() -> None:
    memory = MachineMemory(8192)
    for act in (
        lambda: memory.write(8190, b"abc"),
        lambda: memory.write(-1, b"a"),
        lambda: memory.fill(8000, 193),
        lambda: memory.fill(0, -1),
        lambda: memory.copy_frame(2, 0),
        lambda: memory.copy_frame(0, -1),
        lambda: memory.read(8191, 2),
        lambda: memory.store64(8192, 1),
        lambda: memory.store32(8192, 1),
        lambda: memory.store8(8192, 1),
    ):
        with pytest.raises(IndexError):
            act()
    assert memory.read(0, 8192) == bytes(8192)


@pytest.mark.parametrize("how", ["write", "store64", "store32", "store8", "fill", "copy_frame"])
@pytest.mark.parametrize("full", [True, False], ids=["full", "degraded"])
def test_every_way_to_write_drops_translated_code(how: str, full: bool) -> None:
    with Rig("mov ebx, 0x01010101\nint 0x90", engine=EngineOptions() if full else degraded()) as rig:
        rig.run()
        assert rig.core.q[reg.RBX] == 0x01010101
        memory = rig.machine.memory
        assert memory.holds_code(0x200)
        if how == "write":
            memory.write(0x200001, b"\2\2\2\2")
        elif how == "store64":
            memory.store64(0x200000, memory.q[0x200000 >> 3] & ~0xFFFFFFFF00 | 0x0202020200)
        elif how == "store32":
            memory.store32(0x200000, 0x020202BB)
            memory.store32(0x200004, memory.d[0x200004 >> 2] & ~0xFF | 2)
        elif how == "store8":
            for byte in range(4):
                memory.store8(0x200001 + byte, 2)
        elif how == "fill":
            memory.fill(0x200001, 4, 2)
        else:
            memory.write(0x20F000, memory.read(0x200000, 4096))
            memory.fill(0x20F001, 4, 2)
            memory.copy_frame(0x200, 0x20F)
        rig.handler.finished.clear()
        rig.core.idle = False
        rig.core.q[reg.RIP] = CODE
        rig.run()
        assert rig.core.q[reg.RBX] == 0x02020202


def test_a_guest_store_into_its_own_next_instruction_is_seen() -> None:
    with Rig("mov byte ptr [rip + 1], 7\nx: mov ebx, 1\nint 0x90") as rig:
        rig.run()
        assert rig.core.q[reg.RBX] == 7


def test_views_stay_readable_after_close() -> None:
    with Rig("mov ebx, 5\nint 0x90") as rig:
        rig.run()
    assert rig.core.q[reg.RBX] == 5
    assert rig.machine.memory.b[0x200000] == 0xBB
    rig.machine.memory.store64(0x200000, 1)
    core = rig.core
    for act in (core.flush, lambda: core.flush_page(0), lambda: core.load_root(0)):
        with pytest.raises(RuntimeError, match="closed"):
            act()
    assert core.eflags() & reg.FLAG_FIXED
    rig.machine.close()


def test_tables_of_the_rig_are_what_the_reference_walk_reads() -> None:
    from machine.paging import walk

    with Rig("int 0x90") as rig:
        memory = rig.machine.memory
        pae = Tables(rig.machine, 0x140000, pae=True)
        pae.map(0xC0001000, 0x300000, 0x8000000000000005)
        found = walk(memory.q, pae.root, 0xC0001234, pae=True)
        assert found is not None
        assert (found.paddr, found.writable, found.user, found.executable) == (0x300234, False, True, False)
        assert walk(memory.q, pae.root, 0xC0002000, pae=True) is None
        found = walk(memory.q, rig.tables.root, CODE + 0x12)
        assert found is not None
        assert (found.paddr, found.writable, found.executable, found.shift) == (0x200012, True, True, 12)
        assert walk(memory.q, rig.tables.root, 0x8000_0000_0000) is None
        assert walk(memory.q, rig.tables.root, 0x1234_5000_0000) is None
