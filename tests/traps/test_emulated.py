"""Which stores to page tables are carried out for a guest: decided by the instruction alone."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keystone
import pytest

from firmware.traps.emulated import EmulatedStores
from machine.registers import CS_FLAGS, DESC_L, FS_BASE, RAX, RBX, RCX, RIP

TABLE = 0xFFFF_8880_0012_3000
CODE = 0xFFFF_8000_0000_0000
_ASSEMBLER = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)


def allowed(source: str, va: int, **registers: int) -> bool:
    """Whether the store of one instruction that faulted at `va` is carried out; rbx is TABLE."""
    code = bytes(_ASSEMBLER.asm(source)[0]).ljust(15, b"\x90")
    q, d = [0] * 128, [0] * 256
    q[RIP], q[RBX] = CODE, TABLE
    q[RAX], q[RCX], q[FS_BASE] = (registers.get(name, 0) for name in ("rax", "rcx", "fs"))
    d[CS_FLAGS] = DESC_L
    vcpu: Any = SimpleNamespace(space=SimpleNamespace(read=lambda at, length: code[:length]))
    core: Any = SimpleNamespace(q=q, d=d)
    return EmulatedStores().allowed(vcpu, core, va)


@pytest.mark.parametrize("source", [
    "mov [rbx + 8], rax", "mov [rbx + 8], eax", "mov [rbx + 8], ax", "mov [rbx + 8], al",
    "xchg [rbx + 8], rax", "lock cmpxchg [rbx + 8], rcx", "lock or qword ptr [rbx + 8], 1",
    "lock btr qword ptr [rbx + 8], 1", "inc qword ptr [rbx + 8]", "movnti [rbx + 8], rax",
    "lock xadd [rbx + 8], rax", "setz byte ptr [rbx + 8]",
])
def test_integer_stores_are(source: str) -> None:
    assert allowed(source, TABLE + 8)


@pytest.mark.parametrize("source", [
    "movq qword ptr [rbx + 8], xmm0", "movups [rbx + 8], xmm0", "lock cmpxchg16b [rbx + 8]",
    "movq qword ptr [rbx + 8], mm0", "fistp qword ptr [rbx + 8]", "movntdq [rbx + 8], xmm0",
])
def test_others_are_not(source: str) -> None:
    assert not allowed(source, TABLE + 8)


@pytest.mark.parametrize(("source", "offset"), [
    ("mov [rbx + 4], rax", 4), ("mov [rbx + 7], ax", 7), ("mov [rbx + 2], eax", 2),
    ("mov [rbx + 0xffc], rax", 0x1000),
])
def test_unaligned_ones_are_not(source: str, offset: int) -> None:
    assert not allowed(source, TABLE + offset)


def test_addresses_are_the_processors() -> None:
    assert allowed("mov [rbx + rcx*8 + 16], rax", TABLE + 0x30, rcx=4)
    assert allowed("mov fs:[rax], rcx", TABLE + 8, rax=8, fs=TABLE)
    assert allowed("mov [rip + 0x1001], rax", CODE + 0x1008)


def test_a_bits_number_reaches_beyond_the_operand() -> None:
    assert allowed("lock bts qword ptr [rbx], rcx", TABLE + 0x10, rcx=130)
    assert allowed("lock bts qword ptr [rbx + 16], rcx", TABLE + 8, rcx=-1 & (1 << 64) - 1)
    assert not allowed("lock bts qword ptr [rbx], rcx", TABLE, rcx=130)
