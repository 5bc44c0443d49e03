"""The block cache: when an entry counts, and when it no longer does."""

from __future__ import annotations

import pytest

from machine import Core, EngineOptions
from machine import registers as reg
from machine.engine import BLOCK_COUNT, BLOCK_EPOCH_SHIFT, SharedWord
from tests.machine.rig import CODE, DATA, DONE, RW_NX, Rig, asm

LOOP = """
again: call rax
add rdx, rbx
dec rcx
jnz again
int 0x90
"""
AT = DATA + 0x1000  # the smallest TLB has no room for DATA beside CODE
FRAME, OTHER = 0x300000, 0x310000
WITH, WITHOUT = EngineOptions(), EngineOptions(blocks=False)


def _rig(source: str = LOOP, engine: EngineOptions = WITH, cores: int = 1) -> Rig:
    """RAX is called RCX times; RDX sums what it puts into RBX: 1, or 2 in the other frame."""
    rig = Rig(source, cores=cores, engine=engine)
    rig.tables.map(AT, FRAME)
    rig.machine.memory.write(FRAME, asm("mov ebx, 1\nret"))
    rig.machine.memory.write(OTHER, asm("mov ebx, 2\nret"))
    return rig


def _sum(rig: Rig, times: int = 5, at: int = AT, core: int = 0) -> int:
    q = rig.machine.cores[core].q
    q[reg.RAX], q[reg.RCX], q[reg.RDX], q[reg.RIP] = at, times, 0, CODE
    rig.handler.finished = {c.index for c in rig.machine.cores} - {core}
    rig.machine.wake(rig.machine.cores[core], max(c.now() for c in rig.machine.cores))
    rig.run()
    return int(q[reg.RDX])


def _kept(rig: Rig) -> int:
    return int(rig.machine._engine.shared[SharedWord.BLOCKS_KEPT])


def test_blocks_are_kept_once() -> None:
    with _rig() as rig:
        assert _sum(rig, 5) == 5
        kept = _kept(rig)
        assert kept >= 2
        assert _sum(rig, 500) == 500
        assert _kept(rig) == kept
        rig.core.flush()
        assert _sum(rig, 500) == 500
        assert _kept(rig) <= kept + 2


def test_none_is_kept_without_the_cache() -> None:
    with _rig(engine=WITHOUT) as rig:
        assert _sum(rig, 500) == 500
        assert _kept(rig) == 0


def test_an_entry_shows_the_frame_that_is_mapped_now() -> None:
    with _rig() as rig:
        assert _sum(rig) == 5
        for paddr, value in ((OTHER, 2), (FRAME, 1), (OTHER, 2)):
            rig.tables.map(AT, paddr)
            rig.core.flush_page(AT)
            assert _sum(rig) == 5 * value
        rig.tables.unmap(AT)
        rig.core.flush_page(AT)
        _sum(rig)
        assert rig.handler.traps == [(14, 0x14, False, AT)]


def test_a_page_that_may_only_be_read_now_is_not_run() -> None:
    with _rig("mov r8, [rax]\n" + LOOP) as rig:
        assert _sum(rig) == 5
        rig.tables.map(AT, FRAME, RW_NX)
        rig.core.flush_page(AT)
        _sum(rig)
        assert rig.handler.traps == [(14, 0x15, False, AT)]


def test_each_core_sees_its_own_mapping() -> None:
    with _rig(cores=2) as rig:
        second = type(rig.tables)(rig.machine, 0x180000)
        second.map(CODE, 0x200000)
        second.map(AT, OTHER)
        for page in range(4):
            second.map(0x700000 - 4096 * (page + 1), 0x280000 + 4096 * page)
        rig.machine.cores[1].load_root(second.root)
        for _ in range(4):
            assert _sum(rig, core=0) == 5
            assert _sum(rig, core=1) == 10


def test_an_epoch_that_begins_again_finds_an_empty_cache() -> None:
    """Code kept in epoch 1 changes when the epoch is the last: the next is 1."""
    with _rig() as rig:
        shared = rig.machine._engine.shared
        shared[SharedWord.BLOCK_EPOCH] = 0
        rig.machine.memory.write(OTHER, asm("nop"))
        rig.machine._engine.library.dll.tb_flush_x86_64(rig.core._address)
        assert _sum(rig) == 5
        assert shared[SharedWord.BLOCK_EPOCH] >> BLOCK_EPOCH_SHIFT == 1
        shared[SharedWord.BLOCK_EPOCH] = 0xFFFF << BLOCK_EPOCH_SHIFT
        rig.machine.memory.write(FRAME, asm("mov ebx, 2\nret"))
        assert _sum(rig) == 10
        assert shared[SharedWord.BLOCK_EPOCH] >> BLOCK_EPOCH_SHIFT == 1


@pytest.mark.parametrize("distance", [BLOCK_COUNT, 3 * BLOCK_COUNT])
def test_two_blocks_of_one_place_take_turns(distance: int) -> None:
    """Two addresses with the same index: their entries replace each other."""
    second = (AT + distance) ^ (distance >> 12)
    with _rig("again: call rax\nadd rdx, rbx\ncall rsi\nadd rdx, rbx\ndec rcx\njnz again\nint 0x90") as rig:
        rig.tables.map(second, OTHER)
        rig.machine.memory.write(OTHER + (second & 4095), asm("mov ebx, 2\nret"))
        rig.core.q[reg.RSI] = second
        assert _sum(rig, 50) == 150
        assert _kept(rig) >= 100


def test_a_block_in_two_pages_is_left_alone() -> None:
    """Its second page is another frame when mapped anew: no entry could tell."""
    at = AT + 4096 - 3
    with _rig() as rig:
        code = asm("mov ebx, 1\nret")
        rig.machine.memory.write(FRAME + 4096 - 3, code[:3])
        for paddr, value in ((OTHER, 7), (FRAME + 4096, 9)):
            rig.machine.memory.write(paddr, bytes(2) + code[5:])
            rig.machine.memory.write(FRAME + 4096 - 2, bytes((value, 0)))
            rig.tables.map(AT + 4096, paddr)
            rig.core.flush_page(AT + 4096)
            assert _sum(rig, 5, at) == 5 * value
        rig.machine.memory.write(OTHER, b"\1" + bytes(1) + code[5:])
        for paddr, value in ((OTHER, 9 + (1 << 16)), (FRAME + 4096, 9), (OTHER, 9 + (1 << 16))):
            rig.tables.map(AT + 4096, paddr)
            rig.core.flush_page(AT + 4096)
            assert _sum(rig, 5, at) == 5 * value


@pytest.mark.parametrize("engine", [WITH, WITHOUT], ids=["with", "without"])
def test_a_breakpoint_in_kept_code_is_met(engine: EngineOptions) -> None:
    with _rig(engine=engine) as rig:
        assert _sum(rig) == 5
        rig.core.set_breakpoints((AT, 0, 0, 0), 1)
        hits: list[int] = []

        def met(core: Core) -> None:
            hits.append(int(core.q[reg.RIP]))
            core.q[reg.EFLAGS] |= reg.FLAG_RF

        rig.handler.on[1] = met
        assert _sum(rig) == 5
        assert hits == [AT] * 5
        rig.core.set_breakpoints((0, 0, 0, 0), 0)
        assert _sum(rig) == 5
        assert len(hits) == 5


@pytest.mark.parametrize("engine", [WITH, WITHOUT], ids=["with", "without"])
def test_single_steps_through_kept_code(engine: EngineOptions) -> None:
    with _rig(engine=engine) as rig:
        assert _sum(rig) == 5
        rig.core.single_step(True)
        places: list[int] = []
        rig.handler.on[1] = lambda core: places.append(int(core.q[reg.RIP]))
        assert _sum(rig, 2) == 2
        assert places.count(AT) == places.count(AT + 5) == 2
        rig.core.single_step(False)
        places.clear()
        assert _sum(rig) == 5
        assert places == []


def test_a_block_is_not_kept_for_a_frame_it_is_not_of() -> None:
    """A page shows another frame, without a flush; the TLB learns of it, the original's jump cache does not.

    What that answers may still be used, but not be kept as what the other frame holds.
    """
    stride, pages = 64 * 4096, 24  # one place in the smallest TLB, and more of them than it has victims
    evict = "call rax\nmov rbx, r9\nx: mov r8, [rdi]\nadd rdi, 0x40000\ndec rbx\njnz x\nmov r8, [rax]\n"
    with _rig(evict + LOOP) as rig:
        for page in range(1, pages + 1):
            rig.tables.map(AT + stride * page, 0x400000 + 4096 * page)
        for _ in range(2):
            rig.core.q[reg.RDI], rig.core.q[reg.R9] = AT + stride, pages
            _sum(rig)
            rig.tables.map(AT, OTHER)
        rig.core.flush_page(AT)
        rig.core.q[reg.RDI], rig.core.q[reg.R9] = AT + stride, 1
        assert _sum(rig) == 10


def _far(rig: Rig, base: int, flags: int, **registers: int) -> int:
    core, q = rig.core, rig.core.q
    code = reg.DESC_G | reg.DESC_P | reg.DESC_S | 3 << reg.DESC_DPL_SHIFT | 0xB00
    core.set_cs(3, base, 0xFFFF_FFFF, code | flags)
    for name, value in registers.items():
        q[getattr(reg, name)] = value
    rig.handler.finished.clear()
    rig.machine.wake(core, core.now())
    rig.run()
    return int(q[reg.RBX])


def test_the_same_address_is_other_code_in_other_modes() -> None:
    """inc eax of 32-bit code is a prefix in 64-bit code."""
    with Rig("nop") as rig:
        rig.tables.map(AT, FRAME)
        # jmp esi. At 16: inc eax, inc eax; mov ebx, eax; jmp edi
        rig.machine.memory.write(FRAME, b"\xff\xe6" + bytes(14) + bytes.fromhex("4040 89c3 ffe7"))
        rig.machine.memory.write(FRAME + 0x40, bytes((0xCD, DONE)))
        for flags, value in ((reg.DESC_L, 5), (reg.DESC_B, 7)) * 3:
            assert _far(rig, 0, flags, RIP=AT, RSI=AT + 16, RDI=AT + 0x40, RAX=5, RBX=0) == value
        assert rig.handler.traps == []


def test_the_same_offset_is_other_code_with_a_code_base() -> None:
    with Rig("nop") as rig:
        for base, paddr in ((0, FRAME), (0x8000, OTHER)):
            rig.tables.map(base + AT, paddr)
            code = b"\xff\xe6" + bytes(14) + b"\xbb" + (base + 1).to_bytes(4, "little") + b"\xff\xe7"
            rig.machine.memory.write(paddr, code)
            rig.machine.memory.write(paddr + 0x40, bytes((0xCD, DONE)))
        for base in (0, 0, 0x8000, 0, 0x8000):
            assert _far(rig, base, reg.DESC_B, RIP=AT, RSI=AT + 16, RDI=AT + 0x40, RBX=0) == base + 1
        assert rig.handler.traps == []
