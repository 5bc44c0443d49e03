"""Which MSRs a PV guest may read and write, and what they hold.

The answers are those of Xen 4.17 for an unprivileged PV domain on an Intel processor: `guest_rdmsr` and
`guest_wrmsr` (arch/x86/msr.c), `read_msr` and `write_msr` (arch/x86/pv/emul-priv-op.c), `vmce_rdmsr` and
`vmce_wrmsr` (arch/x86/cpu/mcheck/vmce.c). What is in no table raises #GP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from machine.core import Core
from machine.paging import canonical
from machine.registers import FS_BASE, GS_BASE, TSC_AUX, VECTOR_GP

MSR_IA32_TSC: Final = 0x10
MSR_IA32_PLATFORM_ID: Final = 0x17
MSR_IA32_APIC_BASE: Final = 0x1B
MSR_IA32_FEATURE_CONTROL: Final = 0x3A
MSR_IA32_BIOS_SIGN_ID: Final = 0x8B
MSR_PLATFORM_INFO: Final = 0xCE
MSR_IA32_MPERF: Final = 0xE7
MSR_IA32_APERF: Final = 0xE8
MSR_MISC_FEATURES_ENABLES: Final = 0x140
MSR_IA32_MCG_CAP: Final = 0x179
MSR_IA32_MCG_STATUS: Final = 0x17A
MSR_IA32_MCG_CTL: Final = 0x17B
MSR_IA32_THERM_CONTROL: Final = 0x19A
MSR_IA32_MISC_ENABLE: Final = 0x1A0
MSR_IA32_ENERGY_PERF_BIAS: Final = 0x1B0
MSR_IA32_CR_PAT: Final = 0x277
MSR_IA32_MC0_CTL2: Final = 0x280
MSR_IA32_PERF_CAPABILITIES: Final = 0x345
MSR_IA32_MC0_CTL: Final = 0x400
MSR_EFER: Final = 0xC000_0080
MSR_FS_BASE: Final = 0xC000_0100
MSR_GS_BASE: Final = 0xC000_0101
MSR_SHADOW_GS_BASE: Final = 0xC000_0102
MSR_TSC_AUX: Final = 0xC000_0103

XEN_MSR_PAT: Final = 0x0000_0501_0007_0406
"""WB, WT, UC-, UC, WC, WP, UC, UC: what Xen sets and a PV guest cannot change."""
APIC_BASE: Final = 0xFEE0_0000 | 1 << 11
APIC_BASE_BOOT: Final = 1 << 8
"""The boot processor's mark; vCPU 0 has it."""
FEATURE_CONTROL_LOCK: Final = 1
EFER_LONG: Final = 1 | 1 << 8 | 1 << 10 | 1 << 11
"""SCE, LME, LMA, NXE."""
EFER_PAE: Final = 1 << 11
"""What a 32-bit guest sees of it on an Intel processor."""
MISC_ENABLE: Final = 1 | 1 << 11 | 1 << 12 | 1 << 23
"""Fast strings; no branch trace store, no precise event-based sampling, no task-priority messages."""
MCG_CAP: Final = 1 << 24 | 1 << 11 | 2
"""Software error recovery, threshold status, two banks (INTEL_GUEST_MCG_CAP)."""
BANKS: Final = 2
BANK_REGISTERS: Final = 4
"""CTL, STATUS, ADDR, MISC of one bank of machine-check registers."""
ALL_ONES: Final = (1 << 64) - 1


PROCESSOR_HAS: Final[tuple[range, ...]] = (
    range(0x2), range(0x10, 0x11), range(0x17, 0x18), range(0x1B, 0x1C), range(0x3A, 0x3B), range(0x8B,
    0x8C), range(0xC1, 0xC5), range(0xCE, 0xCF), range(0xE7, 0xE9), range(0xFE, 0xFF), range(0x174, 0x177),
    range(0x179, 0x17B), range(0x186, 0x18A), range(0x198, 0x19C), range(0x1A0, 0x1A1), range(0x1D9, 0x1DA),
    range(0x1F2, 0x1F4), range(0x200, 0x210), range(0x250, 0x251), range(0x258, 0x25A), range(0x268, 0x270),
    range(0x277, 0x278), range(0x280, 0x289), range(0x2FF, 0x300), range(0x309, 0x30C), range(0x38D, 0x391),
    range(0x400, 0x424), range(0x600, 0x601), range(0xC000_0080, 0xC000_0085), range(0xC000_0100,
    0xC000_0104),
)
"""MSRs the modelled processor has (Intel SDM volume 4, architectural MSRs and those of Nehalem). To read one
that is
withheld gives 0 instead of #GP as long as the guest has no #GP handler (Linux's early boot)."""


class Domain(Protocol):
    """What MSRs depend on of a domain."""

    @property
    def pv32(self) -> bool:
        """A 32-bit guest."""


class Trap(Protocol):
    """An entry of a virtual IDT."""

    @property
    def address(self) -> int:
        """The handler, 0 for none."""


class VCpu(Protocol):
    """What MSRs depend on of a vCPU, and what they set."""

    id: int
    gs_shadow: int

    @property
    def domain(self) -> Domain:
        """The domain it belongs to."""

    @property
    def traps(self) -> Sequence[Trap]:
        """Its virtual IDT."""


Read = Callable[[VCpu, Core], int | None]
Write = Callable[[VCpu, Core, int], bool]



def read(vcpu: VCpu, core: Core, number: int) -> int | None:
    """RDMSR: the value, or None for #GP."""
    reader = _READ.get(number)
    value = reader(vcpu, core) if reader is not None else None
    if value is None and not vcpu.traps[VECTOR_GP].address and any(number in present for present in
    PROCESSOR_HAS):
        return 0
    return value


def write(vcpu: VCpu, core: Core, number: int, value: int) -> bool:
    """WRMSR: False for #GP. True does not mean that anything changed: what a guest may not change is often
    ignored.
    """
    writer = _WRITE.get(number)
    return writer is not None and writer(vcpu, core, value)


def _constant(value: int) -> Read:
    return lambda _vcpu, _core: value


def _ignored(_vcpu: VCpu, _core: Core, _value: int) -> bool:
    return True


def _only(expected: int) -> Write:
    return lambda _vcpu, _core, value: value == expected


def _efer(vcpu: VCpu, _core: Core) -> int:
    return EFER_PAE if vcpu.domain.pv32 else EFER_LONG


def _same_efer(vcpu: VCpu, core: Core, value: int) -> bool:
    return value == _efer(vcpu, core)


def _apic_base(vcpu: VCpu, _core: Core) -> int:
    return APIC_BASE if vcpu.id else APIC_BASE | APIC_BASE_BOOT


def _tsc(_vcpu: VCpu, core: Core) -> int:
    return core.now()


def _base_reader(index: int) -> Read:
    def reader(vcpu: VCpu, core: Core) -> int | None:
        return None if vcpu.domain.pv32 else core.q[index]

    return reader


def _base_writer(index: int) -> Write:
    def writer(vcpu: VCpu, core: Core, value: int) -> bool:
        if vcpu.domain.pv32 or not canonical(value):
            return False
        core.q[index] = value
        return True

    return writer


def _shadow_base(vcpu: VCpu, _core: Core) -> int | None:
    return None if vcpu.domain.pv32 else vcpu.gs_shadow


def _set_shadow_base(vcpu: VCpu, _core: Core, value: int) -> bool:
    if vcpu.domain.pv32 or not canonical(value):
        return False
    vcpu.gs_shadow = value
    return True


def _tsc_aux(_vcpu: VCpu, core: Core) -> int:
    return core.q[TSC_AUX]


def _set_tsc_aux(_vcpu: VCpu, core: Core, value: int) -> bool:
    if value >> 32:
        return False
    core.q[TSC_AUX] = value
    return True


_BANK_MSRS: Final = range(MSR_IA32_MC0_CTL, MSR_IA32_MC0_CTL + BANKS * BANK_REGISTERS)

_COUNTERS: Final = (*range(0xC1, 0xC9), *range(0x186, 0x18A), *range(0x309, 0x30C), *range(0x38D, 0x391))
"""Performance counters and what controls them: without a virtual PMU they read as 0 and take no value."""

_READ: Final[dict[int, Read]] = {
    MSR_IA32_TSC: _tsc,
    MSR_IA32_PLATFORM_ID: _constant(0),
    MSR_IA32_APIC_BASE: _apic_base,
    MSR_IA32_FEATURE_CONTROL: _constant(FEATURE_CONTROL_LOCK),
    MSR_IA32_BIOS_SIGN_ID: _constant(0),
    MSR_PLATFORM_INFO: _constant(0),
    MSR_MISC_FEATURES_ENABLES: _constant(0),
    MSR_IA32_MCG_CAP: _constant(MCG_CAP),
    MSR_IA32_MCG_STATUS: _constant(0),
    MSR_IA32_MCG_CTL: _constant(0),
    MSR_IA32_MISC_ENABLE: _constant(MISC_ENABLE),
    MSR_IA32_CR_PAT: _constant(XEN_MSR_PAT),
    MSR_IA32_PERF_CAPABILITIES: _constant(0),
    MSR_EFER: _efer,
    MSR_FS_BASE: _base_reader(FS_BASE),
    MSR_GS_BASE: _base_reader(GS_BASE),
    MSR_SHADOW_GS_BASE: _shadow_base,
    MSR_TSC_AUX: _tsc_aux,
    **dict.fromkeys(_COUNTERS, _constant(0)),
    **{MSR_IA32_MC0_CTL2 + bank: _constant(0) for bank in range(BANKS)},
    **{msr: _constant(0 if msr % BANK_REGISTERS else ALL_ONES) for msr in _BANK_MSRS},
}

_WRITE: Final[dict[int, Write]] = {
    MSR_IA32_BIOS_SIGN_ID: _ignored,
    MSR_IA32_MPERF: _ignored,
    MSR_IA32_APERF: _ignored,
    MSR_MISC_FEATURES_ENABLES: _only(0),
    MSR_IA32_MCG_STATUS: _ignored,
    MSR_IA32_MCG_CTL: _ignored,
    MSR_IA32_THERM_CONTROL: _ignored,
    MSR_IA32_MISC_ENABLE: _ignored,
    MSR_IA32_ENERGY_PERF_BIAS: _ignored,
    MSR_EFER: _same_efer,
    MSR_FS_BASE: _base_writer(FS_BASE),
    MSR_GS_BASE: _base_writer(GS_BASE),
    MSR_SHADOW_GS_BASE: _set_shadow_base,
    MSR_TSC_AUX: _set_tsc_aux,
    **dict.fromkeys(_COUNTERS, _ignored),
    **{MSR_IA32_MC0_CTL2 + bank: _ignored for bank in range(BANKS)},
    **{msr: _only(0) if msr % BANK_REGISTERS else _ignored for msr in _BANK_MSRS},
}
