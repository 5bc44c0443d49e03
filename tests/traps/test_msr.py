"""Which MSRs a PV guest reads and writes."""

from __future__ import annotations

from typing import Any, cast

import pytest

from firmware.traps import msr
from machine.registers import FS_BASE, GS_BASE
from tests.traps.stand_ins import StandInCore, StandInVCpu

ABSENT = (0x1F, 0x48, 0x49, 0x10A, 0x10B, 0x174, 0x198, 0x1D9, 0x200, 0x2FF, 0x408, 0x800, 0xC000_0081,
0xC000_0082,
          0xC000_0084, 0xC001_0015, 0xFFFF_FFFF)


def read(vcpu: StandInVCpu, number: int) -> int | None:
    return msr.read(cast(Any, vcpu), cast(Any, vcpu.core), number)


def write(vcpu: StandInVCpu, number: int, value: int) -> bool:
    return msr.write(cast(Any, vcpu), cast(Any, vcpu.core), number, value)


@pytest.fixture
def vcpu() -> StandInVCpu:
    return StandInVCpu(StandInCore())


@pytest.mark.parametrize(("number", "value"), [
    (0x17, 0), (0x3A, 1), (0x8B, 0), (0xCE, 0), (0x140, 0), (0x179, 0x100_0802), (0x17A, 0), (0x277,
    0x0501_0007_0406), (0x345, 0), (0x400, msr.ALL_ONES), (0x401, 0), (0x404, msr.ALL_ONES), (0x407, 0),
    (0xC1, 0), (0x38F, 0), (0xC000_0080, 0xD01),
])
def test_constants(vcpu: StandInVCpu, number: int, value: int) -> None:
    assert read(vcpu, number) == value


def test_tsc_and_apic_base(vcpu: StandInVCpu) -> None:
    vcpu.core.time = 12345
    assert read(vcpu, 0x10) == 12345
    assert read(vcpu, 0x1B) == 0xFEE0_0900
    vcpu.id = 1
    assert read(vcpu, 0x1B) == 0xFEE0_0800


def test_bases(vcpu: StandInVCpu) -> None:
    for number, index in ((0xC000_0100, FS_BASE), (0xC000_0101, GS_BASE)):
        assert write(vcpu, number, 0xFFFF_8880_0000_1000)
        assert vcpu.core.q[index] == 0xFFFF_8880_0000_1000
        assert read(vcpu, number) == 0xFFFF_8880_0000_1000
        assert not write(vcpu, number, 1 << 47)
        assert not write(vcpu, number, (1 << 64) - (1 << 47) - 1)
    assert write(vcpu, 0xC000_0102, 0x7000)
    assert vcpu.gs_shadow == 0x7000
    assert read(vcpu, 0xC000_0102) == 0x7000
    assert not write(vcpu, 0xC000_0102, 1 << 63)


def test_a_32_bit_guest_has_no_bases(vcpu: StandInVCpu) -> None:
    vcpu.domain.pv32 = True
    for number in (0xC000_0100, 0xC000_0101, 0xC000_0102):
        assert read(vcpu, number) is None
        assert not write(vcpu, number, 0)
    assert read(vcpu, 0xC000_0080) == 1 << 11


def test_tsc_aux(vcpu: StandInVCpu) -> None:
    assert write(vcpu, 0xC000_0103, 7)
    assert read(vcpu, 0xC000_0103) == 7
    assert not write(vcpu, 0xC000_0103, 1 << 32)


@pytest.mark.parametrize("number", ABSENT)
def test_absent(vcpu: StandInVCpu, number: int) -> None:
    assert read(vcpu, number) is None
    assert not write(vcpu, number, 0)


def test_without_a_handler_for_the_fault_msrs_of_the_processor_read_as_0(vcpu: StandInVCpu) -> None:
    vcpu.traps[13].address = 0
    assert read(vcpu, 0x1D9) == 0
    assert read(vcpu, 0xC000_0081) == 0
    assert read(vcpu, 0x48) is None
    assert read(vcpu, 0x4000_0001) is None


def test_writes(vcpu: StandInVCpu) -> None:
    assert write(vcpu, 0xC000_0080, 0xD01)
    assert not write(vcpu, 0xC000_0080, 0xD00)
    for number in (0x8B, 0xE7, 0xE8, 0x17A, 0x19A, 0x1A0, 0x1B0, 0x400, 0xC1, 0x186, 0x38F):
        before = read(vcpu, number)
        assert write(vcpu, number, 0x1234)
        assert read(vcpu, number) == before
    for number in (0x1B, 0x3A, 0xCE, 0x179, 0x277, 0x10, 0x345):
        assert not write(vcpu, number, 0)
    assert write(vcpu, 0x401, 0)
    assert not write(vcpu, 0x401, 1)
    assert write(vcpu, 0x140, 0)
    assert not write(vcpu, 0x140, 1)
