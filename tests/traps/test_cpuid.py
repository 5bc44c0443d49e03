"""What CPUID shows a PV guest."""

from __future__ import annotations

import pytest

from firmware.traps.cpuid import EMPTY, CpuidPolicy, Leaf

ALL = 0xFFFF_FFFF
INTEL = (0x756E_6547, 0x6C65_746E, 0x4965_6E69)
CACHES = ((0x121, 0x1C0_003F, 0x3F, 1), (0x1C4_0122, 0x1C0_003F, 0x3F, 0xFFFF_FFFF), EMPTY, (0x143, 1, 1, 1))


def nehalem(leaf: int, sub: int) -> Leaf:
    """A processor with every feature there is and something in every leaf."""
    special: dict[int, Leaf] = {0: (0x16, *INTEL), 1: (0x106A3 | 0x3000, 0x0710_0800, ALL, ALL),
                                0x8000_0000: (0x8000_001E, *INTEL), 0x8000_0008: (0x0028_3028, ALL, ALL, ALL)}
    if leaf == 4:
        return CACHES[sub] if sub < len(CACHES) else CACHES[3]
    return special.get(leaf, (ALL, ALL, ALL, ALL))


def modest(leaf: int, sub: int) -> Leaf:
    """A processor with nothing above leaf 4."""
    if leaf in (0, 0x8000_0000):
        return nehalem(leaf, sub)
    return nehalem(leaf, sub) if leaf in (1, 2, 4) else EMPTY


@pytest.fixture
def policy() -> CpuidPolicy:
    return CpuidPolicy(pv32=False, frames=1 << 18)


def bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


def test_xen_s_signature_and_version(policy: CpuidPolicy) -> None:
    highest, *signature = policy.leaf(0, 0x4000_0000, 0, nehalem)
    assert highest == 0x4000_0005
    assert b"".join(word.to_bytes(4, "little") for word in signature) == b"XenVMMXenVMM"
    assert policy.leaf(0, 0x4000_0001, 0, nehalem)[0] == 0x4_0011
    assert policy.leaf(0, 0x4000_0002, 0, nehalem) == (1, 0x4000_0000, 1, 0)


def test_time_leaf(policy: CpuidPolicy) -> None:
    flags, mode, khz, incarnation = policy.leaf(0, 0x4000_0003, 0, nehalem)
    assert flags & 1 == 0
    assert (mode, khz, incarnation) == (0, 1_000_000, 0)
    _, _, multiplier, shift = policy.leaf(0, 0x4000_0003, 1, nehalem)
    assert (1_000_000_000 << shift) * multiplier >> 32 == 1_000_000_000
    assert policy.leaf(0, 0x4000_0003, 2, nehalem)[0] == 1_000_000
    assert policy.leaf(0, 0x4000_0003, 3, nehalem) == EMPTY


def test_the_width_of_machine_addresses() -> None:
    for frames, width in ((1 << 18, 30), ((1 << 18) + 1, 31), (1 << 24, 36)):
        policy = CpuidPolicy(pv32=False, frames=frames)
        assert policy.leaf(0, 0x4000_0005, 0, nehalem)[1] == width


def test_leaves_without_an_answer(policy: CpuidPolicy) -> None:
    for leaf in (3, 5, 6, 8, 9, 0xA, 0xB, 0xC, 0xD, 0xE, 0x14, 0x4000_0004, 0x4000_0006, 0x4000_0100,
                 0x8000_0005, 0x8000_0007, 0x8000_0009, 0x8000_001E, 0xC000_0000, ALL):
        assert policy.leaf(0, leaf, 0, nehalem) == EMPTY, hex(leaf)


def test_features(policy: CpuidPolicy) -> None:
    signature, misc, ecx, edx = policy.leaf(3, 1, 0, nehalem)
    assert signature == 0x106A3
    assert misc == 0x0010_0800
    assert ecx >> 31
    hidden = bits(2, 3, 4, 5, 6, 7, 8, 12, 14, 15, 17, 18, 21, 24, 26, 27, 28, 29, 30)
    assert ecx & hidden == 0
    assert ecx & bits(0, 1, 9, 13, 19, 20, 23, 25) == bits(0, 1, 9, 13, 19, 20, 23, 25)
    assert edx & bits(1, 3, 12, 13, 17, 18, 21, 29, 31) == 0
    shown = bits(0, 2, 4, 5, 6, 8, 15, 16, 23, 24, 25, 26)
    assert edx & shown == shown


def test_extended_features(policy: CpuidPolicy) -> None:
    assert policy.leaf(0, 0x8000_0000, 0, nehalem) == (0x8000_0008, 0, 0, 0)
    a, b, ecx, edx = policy.leaf(0, 0x8000_0001, 0, nehalem)
    assert (a, b) == (0, 0)
    assert edx == bits(11, 20, 27, 29)
    assert ecx == bits(0, 5, 8)
    assert policy.leaf(0, 0x8000_0008, 0, nehalem) == (0x3028, 0, 0, 0)
    narrow = CpuidPolicy(pv32=True, frames=1 << 18)
    assert narrow.leaf(0, 0x8000_0001, 0, nehalem)[3] == bits(20, 27)
    assert narrow.leaf(0, 0x8000_0008, 0, nehalem)[0] == 0x2028
    assert policy.leaf(0, 7, 0, nehalem)[1] & bits(0, 2, 4, 5, 7, 10, 11, 14, 16, 18, 20) == 0
    assert policy.leaf(0, 7, 1, nehalem) == EMPTY


def test_caches_end_at_the_first_that_is_none(policy: CpuidPolicy) -> None:
    answers = [policy.leaf(0, 4, sub, nehalem) for sub in (0, 1, 2, 3, 4, 6, ALL)]
    assert answers[0] == (0x121, 0x1C0_003F, 0x3F, 1)
    assert answers[1] == (0x1C4_0122, 0x1C0_003F, 0x3F, 7)
    assert answers[2:] == [EMPTY] * 5


def test_the_highest_leaf_has_something_in_it(policy: CpuidPolicy) -> None:
    assert policy.leaf(0, 0, 0, nehalem) == (7, *INTEL)
    assert CpuidPolicy(pv32=False, frames=1).leaf(0, 0, 0, modest) == (4, *INTEL)


def test_every_vcpu_gets_the_same_answer_and_the_memory_of_answers_is_bounded(policy: CpuidPolicy) -> None:
    asked: list[int] = []

    def counting(leaf: int, sub: int) -> Leaf:
        asked.append(leaf)
        return nehalem(leaf, sub)

    first = policy.leaf(0, 1, 0, counting)
    once = len(asked)
    for sub in range(1000):
        assert policy.leaf(sub & 3, 1 | 7 << 32, sub, counting) == first
    assert len(asked) == once
