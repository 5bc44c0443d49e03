"""What CPUID tells a PV guest: Xen's own leaves, and the processor's leaves with what a PV guest cannot use
removed.

The answers are those of Xen 4.17's default policy for PV domains on the processor the machine has
(docs/cpu-model.md): `recalculate_cpuid_policy` and `guest_cpuid` in arch/x86/cpuid.c,
`cpuid_hypervisor_leaves` in arch/x86/traps.c. Feature masks follow the "available by default to all guests"
marks in arch-x86/cpufeatureset.h, less what the engine does not execute (AVX and everything kept with XSAVE,
RDRAND, RDSEED, FSGSBASE).

Every `cpuid` is answered from the policy, as on hardware with CPUID faulting, also in the guest's user half.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from firmware.abi import cpuid as xen_cpuid

Leaf = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""

Native = Callable[[int, int], Leaf]
"""The processor's own answer to (leaf, subleaf): `Core.cpuid`."""

EMPTY: Final[Leaf] = (0, 0, 0, 0)

XEN_VERSION: Final = 4 << 16 | 17

_MOST_BASIC: Final = 0xD
"""Leaves above are never shown (CPUID_GUEST_NR_BASIC)."""
_EXTENDED: Final = 0x8000_0000
_MOST_EXTENDED: Final = 8
"""For Intel processors (CPUID_GUEST_NR_EXTD_INTEL)."""
_CACHES: Final = 6
_SUBLEAVES: Final = {0x4: _CACHES, 0x7: 1, xen_cpuid.XEN_CPUID_FIRST_LEAF + 3: 3}
"""Leaves whose answer depends on ECX, and how many subleaves they have; beyond them all is 0."""

_TSC_SAFE, _TSC_RDTSCP = 1 << 1, 1 << 2
"""Leaf 0x40000003: the TSC runs at one rate everywhere; RDTSCP is there (d->arch.vtsc is not set)."""
_TSC_MODE_DEFAULT: Final = 0
_MULTIPLIER_HALF: Final = 1 << 31
"""With a shift of 1, the multiplier from nanoseconds to ticks of a 1 GHz TSC."""
_PAGE_SHIFT: Final = 12
_LINEAR_BITS_LONG, _LINEAR_BITS = 48, 32
_STEPPING_AND_MODEL: Final = 0x0FFF_0FFF
_NO_APIC_ID: Final = 0x00FF_FFFF
_CACHE_A: Final = 0xFFFF_C3FF
_CACHE_D: Final = 7


def _mask(*bits: int) -> int:
    return sum(1 << bit for bit in bits)


_1_EDX: Final = _mask(0, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 19, 22, 23, 24, 25, 26, 27, 28)
"""FPU DE TSC MSR PAE MCE CX8 APIC SEP MCA CMOV PAT CLFLUSH ACPI MMX FXSR SSE SSE2 SS HTT."""
_1_ECX: Final = _mask(0, 1, 9, 13, 19, 20, 22, 23, 25)
"""SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 MOVBE POPCNT AESNI."""
_HYPERVISOR: Final = 1 << 31
_7_EBX: Final = _mask(3, 8, 9, 19, 23, 29)
"""BMI1 BMI2 ERMS ADX CLFLUSHOPT SHA."""
_E1_EDX: Final = _mask(11, 20, 27, 29)
"""SYSCALL NX RDTSCP LM."""
_E1_ECX: Final = _mask(0, 5, 8)
"""LAHF_LM ABM 3DNOWPREFETCH."""
_E1_EDX_LONG: Final = _mask(11, 29)
"""A 32-bit guest on an Intel processor has neither SYSCALL nor long mode."""


class CpuidPolicy:
    """The answers for the guests of one width on one machine.

    `address_bits`: how wide a machine address of this machine's memory is; `tsc_khz`: the rate of the TSC.
    """

    __slots__ = ("_address_bits", "_known", "_most_basic", "_most_extended", "_pv32", "_tsc_khz")

    def __init__(self, *, pv32: bool, frames: int, tsc_khz: int = 1_000_000) -> None:
        self._pv32 = pv32
        self._address_bits = max(frames - 1, 1).bit_length() + _PAGE_SHIFT
        self._tsc_khz = tsc_khz
        self._known: dict[int, Leaf] = {}
        self._most_basic = -1
        self._most_extended = -1

    def leaf(self, vcpu_id: int, leaf: int, sub: int, raw: Native) -> Leaf:
        """The answer to EAX = `leaf`, ECX = `sub`. It is the same on every vCPU: a PV guest's APIC id reads
        as 0.
        """
        leaf &= 0xFFFF_FFFF
        subleaves = _SUBLEAVES.get(leaf)
        if subleaves is None:
            key = leaf
        else:
            sub &= 0xFFFF_FFFF
            if sub >= subleaves:
                return EMPTY
            key = leaf | sub << 32
        known = self._known.get(key)
        if known is None:
            known = self._answer(leaf, sub if subleaves is not None else 0, raw)
            if known == EMPTY:
                return EMPTY
            self._known[key] = known
        return known

    def _answer(self, leaf: int, sub: int, raw: Native) -> Leaf:
        if leaf <= _MOST_BASIC:
            return self._basic(leaf, sub, raw) if leaf <= self._basic_limit(raw) else EMPTY
        if leaf >> 8 == xen_cpuid.XEN_CPUID_FIRST_LEAF >> 8:
            return self._xen(leaf - xen_cpuid.XEN_CPUID_FIRST_LEAF, sub)
        if _EXTENDED <= leaf <= _EXTENDED + _MOST_EXTENDED and leaf - _EXTENDED <= self._extended_limit(raw):
            return self._extended(leaf, raw)
        return EMPTY

    def _basic_limit(self, raw: Native) -> int:
        """The highest basic leaf with something in it (x86_cpuid_policy_shrink_max_leaves)."""
        if self._most_basic < 0:
            limit = min(raw(0, 0)[0], _MOST_BASIC)
            while limit and self._basic(limit, 0, raw) == EMPTY:
                limit -= 1
            self._most_basic = limit
        return self._most_basic

    def _extended_limit(self, raw: Native) -> int:
        if self._most_extended < 0:
            limit = min(raw(_EXTENDED, 0)[0] & 0xFFFF, _MOST_EXTENDED)
            while limit and self._extended(_EXTENDED + limit, raw) == EMPTY:
                limit -= 1
            self._most_extended = limit
        return self._most_extended

    def _basic(self, leaf: int, sub: int, raw: Native) -> Leaf:
        """A basic leaf of the policy. Leaves 3 (serial number), 5, 6, 8 to 0xd are never shown."""
        a, b, c, d = raw(leaf, sub)
        match leaf:
            case 0:
                return self._basic_limit(raw), b, c, d
            case 1:
                return (a & _STEPPING_AND_MODEL, b & _NO_APIC_ID, c & _1_ECX | _HYPERVISOR, d & _1_EDX)
            case 2:
                return a & ~0xFF | 1, b, c, d
            case 4:
                return self._cache(sub, raw)
            case 7:
                return 0, b & _7_EBX, 0, 0
            case _:
                return EMPTY

    @staticmethod
    def _cache(sub: int, raw: Native) -> Leaf:
        """Caches end at the first subleaf that is none; who shares them is not shown."""
        for before in range(sub + 1):
            if not 1 <= raw(4, before)[0] & 0x1F <= 3:
                return EMPTY
        a, b, c, d = raw(4, sub)
        return a & _CACHE_A, b, c, d & _CACHE_D

    def _extended(self, leaf: int, raw: Native) -> Leaf:
        """An extended leaf of the policy. Leaves 5 and 7 are never shown, of 6 only the L2 cache."""
        a, b, c, d = raw(leaf, 0)
        match leaf - _EXTENDED:
            case 0:
                return _EXTENDED | self._extended_limit(raw), 0, 0, 0
            case 1:
                return 0, 0, c & _E1_ECX, d & _E1_EDX & ~(_E1_EDX_LONG if self._pv32 else 0)
            case 2 | 3 | 4:
                return a, b, c, d
            case 6:
                return 0, 0, c, 0
            case 8:
                linear = _LINEAR_BITS if self._pv32 else _LINEAR_BITS_LONG
                return a & 0xFF | linear << 8, 0, 0, 0
            case _:
                return EMPTY

    def _xen(self, index: int, sub: int) -> Leaf:
        """Xen's own leaves (arch-x86/cpuid.h)."""
        match index:
            case 0:
                return (xen_cpuid.XEN_CPUID_FIRST_LEAF + xen_cpuid.XEN_CPUID_MAX_NUM_LEAVES,
                        xen_cpuid.XEN_CPUID_SIGNATURE_EBX, xen_cpuid.XEN_CPUID_SIGNATURE_ECX,
                        xen_cpuid.XEN_CPUID_SIGNATURE_EDX)
            case 1:
                return XEN_VERSION, 0, 0, 0
            case 2:
                return 1, HYPERCALL_MSR, xen_cpuid.XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0
            case 3:
                return self._time(sub)
            case 5:
                return 0, self._address_bits, 0, 0
            case _:
                return EMPTY

    def _time(self, sub: int) -> Leaf:
        return (
            (_TSC_SAFE | _TSC_RDTSCP, _TSC_MODE_DEFAULT, self._tsc_khz, 0),
            (0, 0, _MULTIPLIER_HALF, 1),
            (self._tsc_khz, 0, 0, 0),
        )[sub]


HYPERCALL_MSR: Final = 0x4000_0000
"""The MSR that fills hypercall pages."""
