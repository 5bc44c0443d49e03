"""Privileged instructions, assembled, on a core and a vCPU with nothing behind them."""

from __future__ import annotations

from typing import Any, cast

import keystone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.abi import errno
from firmware.traps.cpuid import CpuidPolicy
from firmware.traps.privileged import DONE, UNHANDLED, Fault, Outcome, Privileged
from machine import registers as reg
from tests.traps.stand_ins import CODE, DATA, StandInCore, StandInVCpu

GP = Fault(13, 0)
ONES = (1 << 64) - 1


class Debug:
    """Debug registers that take anything but DR5."""

    def __init__(self) -> None:
        self.values = {number: 0x100 + number for number in range(8)}

    def set_debugreg(self, vcpu: Any, number: int, value: int) -> int:
        if number == 5 or number > 7:
            return -errno.ENODEV
        self.values[number] = value
        return 0

    def get_debugreg(self, vcpu: Any, number: int) -> int:
        return -errno.ENODEV if number == 5 or number > 7 else self.values[number]


class Bench:
    """The emulation with all it needs, for one instruction at a time."""

    def __init__(self, bits: int = 64) -> None:
        self.core = StandInCore(bits)
        self.q = self.core.q
        self.vcpu = StandInVCpu(self.core)
        self.vcpu.domain.pv32 = bits == 32
        self.debug = Debug()
        self.roots: list[int] = []
        self.answer = 0
        policies = {pv32: CpuidPolicy(pv32=pv32, frames=1 << 16) for pv32 in (False, True)}
        self.privileged = Privileged(policies, self.debug, self._load_root)
        mode = keystone.KS_MODE_64 if bits == 64 else keystone.KS_MODE_32
        self._assembler = keystone.Ks(keystone.KS_ARCH_X86, mode)

    def _load_root(self, vcpu: Any, frame: int) -> int:
        self.roots.append(frame)
        return self.answer

    def place(self, code: bytes) -> None:
        self.vcpu.space.write(CODE, code)
        self.q[reg.RIP] = CODE

    def run(self, text: str) -> Outcome:
        """Emulate one instruction; RIP must have moved exactly when it was done."""
        code = bytes(self._assembler.asm(text)[0])
        self.place(code)
        outcome = self.emulate()
        assert self.q[reg.RIP] == CODE + (len(code) if outcome is DONE else 0)
        return outcome

    def emulate(self) -> Outcome:
        return self.privileged.emulate(cast(Any, self.vcpu), cast(Any, self.core))

    def iopl(self, level: int) -> None:
        self.vcpu.iopl = level << 12


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("text", [
    "hlt", "invd", "invlpg [rax]", "lgdt [rax]", "lidt [rax]", "lldt ax", "ltr ax", "lmsw ax", "swapgs",
    "rdpmc",
    "mov rax, cr8", "mov cr8, rax", "nop", "iretq", "mov rax, [rbx]", "mov rax, rbx", "mov ds, ax", "sysret",
])
def test_what_xen_does_not_carry_out(bench: Bench, text: str) -> None:
    bench.iopl(3)
    assert bench.run(text) is UNHANDLED


@pytest.mark.parametrize("text", [
    "clts", "wbinvd", "mov rax, cr0", "mov rax, cr3", "mov cr4, rax", "mov rax, dr7", "mov dr0, rax", "rdmsr",
    "wrmsr", "rdtsc",
])
def test_users_may_nothing(bench: Bench, text: str) -> None:
    bench.vcpu.in_kernel = False
    bench.q[reg.RCX] = 0x10
    assert bench.run(text) == GP
    assert bench.core.ts == []
    assert bench.roots == []


def test_task_switched(bench: Bench) -> None:
    bench.vcpu.cr0_ts = True
    assert bench.run("clts") is DONE
    assert bench.core.ts == [False]
    assert bench.run("mov rax, cr0") is DONE
    assert bench.q[reg.RAX] == 0x8005_0033
    bench.q[reg.RAX] = bench.q[reg.CR0] | 8
    assert bench.run("mov cr0, rax") is DONE
    assert bench.core.ts == [False, True]
    assert bench.run("mov r9, cr0") is DONE
    assert bench.q[reg.R9] == 0x8005_003B
    bench.q[reg.RAX] = bench.q[reg.CR0] & ~(1 << 16)
    assert bench.run("mov cr0, rax") is UNHANDLED


def test_other_control_registers(bench: Bench) -> None:
    bench.q[reg.CR2] = 0x1234
    assert bench.run("mov r15, cr2") is DONE
    assert bench.q[reg.R15] == 0x1234
    bench.q[reg.RBX] = 0x5678
    assert bench.run("mov cr2, rbx") is DONE
    assert bench.q[reg.CR2] == 0x5678
    assert bench.run("mov rsi, cr3") is DONE
    assert bench.q[reg.RSI] == 0x12_3000
    bench.q[reg.RDI] = 0x45_6018
    assert bench.run("mov cr3, rdi") is DONE
    assert bench.roots == [0x456]
    bench.answer = -errno.EINVAL
    assert bench.run("mov cr3, rdi") is UNHANDLED
    bench.q[reg.RAX] = ONES
    assert bench.run("mov cr4, rax") is DONE
    assert bench.vcpu.cr4 == 0xC
    assert bench.q[reg.CR4] & 4
    assert bench.run("mov rax, cr4") is DONE
    assert bench.q[reg.RAX] == 0x66C
    assert bench.run("mov rax, cr3") is DONE


def test_a_write_to_cr3_that_takes_long_runs_again() -> None:
    bench = Bench()
    bench.answer = -errno.ERESTART
    bench.place(b"\x0f\x22\xdf")  # mov cr3, rdi
    for _ in range(2):
        assert bench.emulate() is DONE
        assert bench.q[reg.RIP] == CODE
    bench.answer = 0
    assert bench.emulate() is DONE
    assert bench.q[reg.RIP] == CODE + 3
    assert len(bench.roots) == 3


def test_cr3_of_a_pae_guest() -> None:
    bench = Bench(32)
    bench.vcpu.space.root = 0x1_2345_6000
    assert bench.run("mov eax, cr3") is DONE
    assert bench.q[reg.RAX] == 0x2345_6001
    bench.q[reg.RAX] = 0xFFFF_FFFF_2345_6001
    assert bench.run("mov cr3, eax") is DONE
    assert bench.roots == [0x12_3456]


def test_debug_registers(bench: Bench) -> None:
    bench.q[reg.RAX] = 0xABC
    assert bench.run("mov dr2, rax") is DONE
    assert bench.debug.values[2] == 0xABC
    assert bench.run("mov rcx, dr7") is DONE
    assert bench.q[reg.RCX] == 0x107
    assert bench.run("mov dr5, rax") is UNHANDLED
    assert bench.run("mov rax, dr5") is UNHANDLED


def test_msrs(bench: Bench) -> None:
    bench.q[reg.RCX] = ONES & ~0xFFFF_FFFF | 0xC000_0101
    bench.q[reg.RAX] = 0xDEAD_BEEF_8000_1000
    bench.q[reg.RDX] = 0x1234_5678_FFFF_8880
    assert bench.run("wrmsr") is DONE
    assert bench.q[reg.GS_BASE] == 0xFFFF_8880_8000_1000
    bench.q[reg.RAX] = bench.q[reg.RDX] = ONES
    assert bench.run("rdmsr") is DONE
    assert (bench.q[reg.RAX], bench.q[reg.RDX]) == (0x8000_1000, 0xFFFF_8880)
    bench.q[reg.RCX] = 0x48
    assert bench.run("rdmsr") == GP
    assert bench.run("wrmsr") == GP


def test_time_stamps(bench: Bench) -> None:
    bench.core.time = 0x1_2345_6789
    bench.q[reg.TSC_AUX] = 5
    assert bench.run("rdtscp") is DONE
    assert (bench.q[reg.RAX], bench.q[reg.RDX], bench.q[reg.RCX]) == (0x2345_6789, 1, 5)
    bench.core.time += 1
    assert bench.run("rdtsc") is DONE
    assert bench.q[reg.RAX] == 0x2345_678A


@pytest.mark.parametrize(("iopl", "kernel", "assist", "allowed"), [
    (0, True, 0, False), (1, True, 0, True), (3, True, 0, True), (0, True, 1 << 4, True),
    (2, False, 0, False), (3, False, 0, True), (0, False, 1 << 4, False),
])
def test_iopl(bench: Bench, iopl: int, kernel: bool, assist: int, allowed: bool) -> None:
    bench.iopl(iopl)
    bench.vcpu.in_kernel = kernel
    bench.vcpu.domain.vm_assist = assist
    for text in ("cli", "sti", "in al, dx", "out 0x80, al"):
        assert bench.run(text) is (DONE if allowed else UNHANDLED)


def test_ports_read_as_ones(bench: Bench) -> None:
    bench.iopl(1)
    for text, value in (("in al, 0x42", 0xFF), ("in ax, 0x60", 0xFFFF), ("in eax, dx", 0xFFFF_FFFF)):
        bench.q[reg.RDX] = 0x3F8
        bench.q[reg.RAX] = 0x1111_2222_3333_4444
        assert bench.run(text) is DONE
        kept = 0 if value > 0xFFFF else 0x1111_2222_3333_4444 & ~value
        assert bench.q[reg.RAX] == kept | value


def test_latches(bench: Bench) -> None:
    bench.iopl(1)
    bench.q[reg.RAX] = 0x8B
    assert bench.run("out 0x70, al") is DONE
    bench.q[reg.RAX] = 0
    assert bench.run("in al, 0x70") is DONE
    assert bench.q[reg.RAX] == 0x0B
    assert bench.run("in al, 0x71") is DONE
    assert bench.q[reg.RAX] == 0xFF
    assert bench.run("in ax, 0x70") is DONE
    assert bench.q[reg.RAX] == 0xFF0B
    bench.q[reg.RDX], bench.q[reg.RAX] = 0xCF8, 0x8000_1234
    assert bench.run("out dx, eax") is DONE
    assert bench.run("in al, dx") is DONE
    assert bench.q[reg.RAX] & 0xFF == 0xFF
    assert bench.run("in eax, dx") is DONE
    assert bench.q[reg.RAX] == 0x8000_1234
    bench.vcpu.domain.id = 2
    assert bench.run("in eax, dx") is DONE
    assert bench.q[reg.RAX] == 0
    bench.privileged.ports.forget(1)
    bench.vcpu.domain.id = 1
    assert bench.run("in al, 0x70") is DONE
    assert bench.q[reg.RAX] == 0


def test_string_input(bench: Bench) -> None:
    bench.iopl(1)
    bench.q[reg.RDX] = 0x1F0
    bench.q[reg.RDI] = DATA + 4
    bench.q[reg.RCX] = 3
    assert bench.run("rep insw") is DONE
    assert bench.vcpu.space.read(DATA, 12) == b"\0" * 4 + b"\xff" * 6 + b"\0" * 2
    assert (bench.q[reg.RDI], bench.q[reg.RCX]) == (DATA + 10, 0)
    bench.core.flags |= 0x400
    assert bench.run("insb") is DONE
    assert bench.q[reg.RDI] == DATA + 9


def test_string_output_to_a_latch(bench: Bench) -> None:
    bench.iopl(1)
    bench.vcpu.space.write(DATA, b"\x11\x22\x33")
    bench.q[reg.RDX] = 0x70
    bench.q[reg.RSI] = DATA
    bench.q[reg.RCX] = 3
    assert bench.run("rep outsb") is DONE
    assert bench.run("in al, 0x70") is DONE
    assert bench.q[reg.RAX] & 0xFF == 0x33
    bench.q[reg.RCX] = 0
    assert bench.run("rep outsb") is DONE


def test_long_strings_go_on_later_and_faults_are_exact(bench: Bench) -> None:
    bench.iopl(1)
    bench.q[reg.RCX] = 5000
    bench.q[reg.RDI] = DATA
    bench.place(b"\xf3\x6c")
    for _ in range(4):
        assert bench.emulate() is DONE
        assert bench.q[reg.RIP] == CODE
    assert bench.q[reg.RCX] == 5000 - 4096
    assert bench.emulate() == Fault(14, 2)
    assert bench.q[reg.CR2] == DATA + 4096
    assert bench.q[reg.RIP] == CODE
    assert bench.q[reg.RDI] == DATA + 4096


def test_single_step(bench: Bench) -> None:
    bench.core.flags |= 0x100
    bench.place(b"\x0f\x06")
    assert bench.emulate() == Fault(1, -1)
    assert bench.q[reg.RIP] == CODE + 2
    assert bench.vcpu.debugreg[6] == 0xFFFF_4FF0


def test_io_breakpoints(bench: Bench) -> None:
    bench.iopl(1)
    bench.vcpu.cr4 = 8
    bench.vcpu.dr7_emul = 3 << 2
    bench.vcpu.debugreg[1] = 0x3F8
    bench.vcpu.debugreg[7] = 3 << 22
    bench.q[reg.RDX] = 0x3FB
    bench.place(b"\xec")
    assert bench.emulate() == Fault(1, -1)
    assert bench.vcpu.debugreg[6] == 0xFFFF_0FF2
    bench.q[reg.RDX] = 0x3FC
    bench.place(b"\xec")
    assert bench.emulate() is DONE


def test_forced_cpuid(bench: Bench) -> None:
    bench.place(b"\x0f\x0bxen\x0f\xa2")
    bench.q[reg.RAX] = 0x4000_0000
    assert bench.privileged.forced_cpuid(cast(Any, bench.vcpu), cast(Any, bench.core))
    assert bench.q[reg.RBX] == 0x566E_6558
    assert bench.q[reg.RIP] == CODE + 7
    for other in (b"\x0f\x0bxen\x0f\x31", b"\x0f\x0bxem\x0f\xa2", b"\x0f\x0b"):
        bench.place(other)
        assert not bench.privileged.forced_cpuid(cast(Any, bench.vcpu), cast(Any, bench.core))
        assert bench.q[reg.RIP] == CODE
    bench.q[reg.RIP] = CODE + 4096
    assert not bench.privileged.forced_cpuid(cast(Any, bench.vcpu), cast(Any, bench.core))


def test_code_at_the_end_of_a_page_and_code_that_changes(bench: Bench) -> None:
    end = CODE + 4094
    bench.vcpu.space.write(end, b"\x0f\x06")
    bench.q[reg.RIP] = end
    assert bench.emulate() is DONE
    bench.q[reg.RIP] = end
    bench.vcpu.space.write(end, b"\x0f\x08")
    assert bench.emulate() is UNHANDLED
    bench.q[reg.RIP] = end + 1
    assert bench.emulate() is UNHANDLED
    bench.q[reg.RIP] = CODE + 8192
    assert bench.emulate() is UNHANDLED


@given(st.binary(min_size=1, max_size=16), st.integers(0, 3), st.booleans(), st.sampled_from([32, 64]))
def test_any_bytes(code: bytes, iopl: int, kernel: bool, bits: int) -> None:
    """Whatever the bytes: an outcome, no exception, and RIP moves only for what was done."""
    bench = BENCHES[bits]
    bench.iopl(iopl)
    bench.vcpu.in_kernel = kernel
    bench.q[reg.RCX] = 3
    bench.q[reg.RDI] = bench.q[reg.RSI] = DATA
    bench.place(code)
    outcome = bench.emulate()
    if outcome is DONE:
        assert CODE < bench.q[reg.RIP] <= CODE + 15
    else:
        assert bench.q[reg.RIP] == CODE
        assert outcome is UNHANDLED or outcome in (GP, Fault(14, 0), Fault(14, 2))


BENCHES = {bits: Bench(bits) for bits in (32, 64)}
