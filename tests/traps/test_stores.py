"""Stores to page tables done at once must be what running the instruction on a copy of the table gives."""

from __future__ import annotations

import random

import capstone
import pytest
from capstone import x86

from firmware.traps.stores import Action, PlainStores, decode
from guests.assembler import VIRT_BASE
from guests.macros import hypercall, kernel, line
from xenpy.system import Reason, System

WRITABLE_PAGETABLES = 2
"""VMASST_TYPE_writable_pagetables."""

# rdi: the entry; rsi = -8 and r9 = 1, for odd addresses; rbx and r12: the entry without its right to write.
STORES = (
    "xchg [rdi], rbx", "xchg rbx, [rdi + 8 * r9 - 8]", "lock xchg [rdi], r12", "mov [rdi], rbx",
    "mov [rdi + rsi + 8], r12", "and byte ptr [rdi], 0xfd", "and byte ptr ds:[rdi], 0x65",
    "lock and byte ptr [rdi], 0xdf", "or byte ptr [rdi + 1], 0x2", "lock or byte ptr [rdi], 0x40",
    "and byte ptr [rdi + 6], 0", "or byte ptr [rdi + 5], 0", "or byte ptr [rdi + 7], 0x80",
    "and byte ptr [rdi], 0xfe",
    # Not done at once:
    "mov [rdi], ebx", "and qword ptr [rdi], -3", "lock btr qword ptr [rdi], 1", "lock cmpxchg [rdi], rbx",
    "or word ptr [rdi], 0x42",
)
AT_ONCE = STORES.index("mov [rdi], ebx")


def storing_guest() -> bytes:
    """Says of each store what it left: flags, registers, the entry. One table maps all of the image."""
    assert VIRT_BASE % (1 << 21) == 0
    body = [f"""
    {hypercall("vm_assist", 0, WRITABLE_PAGETABLES)}
    mov rdi, [rip + start_info_address]
    mov r14, [rdi + start_info.pt_base]
    lea rax, [rip + target]
    shr rax, 12
    and eax, 511
    lea r14, [r14 + rax * 8 + 0x3000]   # behind one table of each level above
    mov r13, [r14]
    """]
    body.extend(f"""
    mov rdi, r14
    mov rsi, -8
    mov r9d, 1
    mov rbx, r13
    and rbx, -3
    mov r12, rbx
    mov rax, r13
    cmp r9d, 2                          # carry, sign, adjust and parity set
    {store}
    pushfq
    pop rbp
    mov r15, [r14]
    {line("{rbp:x} {rax:x} {rbx:x} {r12:x} {r13:x} {r15:x}")}
    mov [r14], r13
    """ for store in STORES)
    return kernel(*body, bss=(".balign 4096", "target: .zero 4096"))


def outcome(monkeypatch: pytest.MonkeyPatch, *, at_once: bool) -> tuple[list[str], int]:
    """What the guest said, and how many stores were done at once."""
    done = 0
    original = PlainStores.carry_out

    def counted(self: PlainStores, vcpu: object, core: object, va: int) -> bool:
        nonlocal done
        found = at_once and original(self, vcpu, core, va)  # type: ignore[arg-type]
        done += found
        return found

    with monkeypatch.context() as patch, System(memory=64) as system:
        patch.setattr(PlainStores, "carry_out", counted)
        guest = system.add_domain(storing_guest(), memory=8)
        assert system.run(within=5).reason is Reason.ENDED
        assert guest.crash is None, guest.crash_report
        return guest.console.text.splitlines(), done


def test_both_ways_leave_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    quick, done = outcome(monkeypatch, at_once=True)
    slow, none = outcome(monkeypatch, at_once=False)
    assert len(quick) == len(STORES)
    assert quick == slow
    assert none == 0
    assert done == AT_ONCE + len(STORES)  # the stores that put the entry back are `mov`s too


def reads_as(code: bytes) -> tuple[object, ...] | None:
    """What capstone makes of it, in the terms of a Store; None when it is not one of them."""
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.detail = True
    found = next(engine.disasm(code, 0, 1), None)
    if found is None or found.id not in (x86.X86_INS_XCHG, x86.X86_INS_MOV, x86.X86_INS_AND, x86.X86_INS_OR):
        return None
    names = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
             *(f"r{number}" for number in range(8, 16)))
    memory = next(it for it in found.operands if it.type == x86.X86_OP_MEM)
    other = next(it for it in found.operands if it.type != x86.X86_OP_MEM)
    base, index = (names.index(found.reg_name(it)) if it and found.reg_name(it) != "riz" else -1
                   for it in (memory.mem.base, memory.mem.index))
    source = other.imm & 0xFF if other.type == x86.X86_OP_IMM else names.index(found.reg_name(other.reg))
    return found.size, memory.size, source, base, index, memory.mem.scale, memory.mem.disp


def test_the_decoder_agrees_with_another() -> None:
    generator = random.Random(7)
    seen = set()
    for _ in range(60_000):
        rex = generator.choice((b"", bytes((0x40 | generator.randrange(16),)), b"\x48"))
        prefix = generator.choice((b"", b"\x3e", b"\xf0"))
        opcode = generator.choice((0x87, 0x89, 0x80, 0x80, 0x8B, 0x83))
        code = (prefix + rex + bytes((opcode,)) + generator.randbytes(15))[:15]
        store = decode(code)
        if store is None:
            continue
        byte = store.action in (Action.AND, Action.OR)
        source = store.immediate if byte else store.register
        size = 1 if byte else 8
        scale = 1 << store.scale if store.offset >= 0 else 1
        read = reads_as(code)
        assert read is not None, code.hex()
        *mine, theirs_scale, displacement = read
        assert mine == [store.length, size, source, store.base, store.offset], code.hex()
        assert store.offset < 0 or theirs_scale == scale, code.hex()
        assert displacement == store.displacement, code.hex()
        seen.add(store.action)
    assert seen == set(Action)


@pytest.mark.parametrize("code", [
    "488700", "48871a", "3e41802424fd", "48877500", "488918", "80480140", "f0806301df", "4a8944e010",
])
def test_what_linux_uses_is_known(code: str) -> None:
    store = decode(bytes.fromhex(code).ljust(15, b"\x90"))
    assert store is not None
    assert store.length == len(code) // 2


@pytest.mark.parametrize("code", ["4889c3", "48891d00000000", "8918", "f0488918", "658918", "6548891f",
    "4a893c2500000000",
])
def test_others_are_left_alone(code: str) -> None:
    assert decode(bytes.fromhex(code).ljust(15, b"\x90")) is None

