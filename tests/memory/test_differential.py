"""Random operations on page and descriptor tables are answered as real Xen answers them, line by line.

The answers were recorded on real Xen 4.17 for a true domU: see `tools.oracle.mmufuzz`.
"""
from __future__ import annotations

import os
from functools import cache

import pytest

import guests
from tools.oracle import missing, mmufuzz
from xenpy.system import Reason, System

WITHIN_S = 60.0
MACHINE_MIB = 1024
"""As the machine the answers are from: no memory where the guest expects a device."""
VCPUS = guests.GUESTS["mmufuzz"].vcpus
FRESH = range(len(mmufuzz.SEEDS), len(mmufuzz.SEEDS) + 10)
"""Seeds nobody recorded."""


@cache
def answers() -> dict[int, list[str]]:
    return mmufuzz.load()


def console(seed: int) -> list[str]:
    with System(memory=MACHINE_MIB) as system:
        domain = system.add_domain("builtin:mmufuzz", cmdline=mmufuzz.cmdline(seed), vcpus=VCPUS)
        outcome = system.run(within=WITHIN_S)
        assert outcome.reason is Reason.ENDED
        return domain.console.log.decode().splitlines()


def test_all_seeds_are_recorded_in_full() -> None:
    assert sorted(answers()) == list(mmufuzz.SEEDS)
    assert {len(lines) for lines in answers().values()} == {mmufuzz.OPERATIONS + 2}


@pytest.mark.parametrize("seed", mmufuzz.SEEDS)
def test_every_answer_is_real_xens(seed: int) -> None:
    assert console(seed) == answers()[seed]


@pytest.mark.oracle
@pytest.mark.skipif(os.environ.get("XENPY_ORACLE") != "1", reason="runs with XENPY_ORACLE=1")
def test_real_xen_answers_fresh_seeds_the_same() -> None:
    if reason := missing():
        pytest.skip(reason)
    for seed, result in mmufuzz.run(FRESH).items():
        assert console(seed) == result.console.splitlines()
