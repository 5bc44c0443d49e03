"""Code is never stale, and stale translations are exactly those that real TLBs may hold."""

from __future__ import annotations

import pytest

from machine import EngineOptions
from tests.machine.coherence import Fuzz
from tests.machine.rig import degraded

STEPS = 12_000
PRODUCT = 100_000
LONG = 1_000_000


@pytest.mark.parametrize("toggles", [False, True], ids=["one bank", "two banks"])
@pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])
def test_no_mismatch(eager: bool, toggles: bool) -> None:
    outcome = Fuzz(1 + eager, EngineOptions(eager=eager), toggles).run(STEPS)
    assert outcome.mismatches == 0
    assert outcome.stale_uses > STEPS // 100
    assert outcome.dropped > STEPS // 200


def test_no_mismatch_as_shipped() -> None:
    assert Fuzz(3, EngineOptions(), toggles=True).run(PRODUCT).mismatches == 0


@pytest.mark.parametrize("eager", [False, True], ids=["lazy", "eager"])
def test_without_the_measures_code_goes_stale(eager: bool) -> None:
    assert Fuzz(1, EngineOptions(coherence=False, eager=eager), toggles=False).run(STEPS).mismatches > 50


def test_no_mismatch_in_degraded_mode() -> None:
    assert Fuzz(4, degraded(), toggles=True).run(STEPS // 2).mismatches == 0


def test_degraded_mode_needs_its_store_watch() -> None:
    assert Fuzz(1, EngineOptions(degraded=True, coherence=False), toggles=False).run(STEPS).mismatches > 50


def test_two_runs_are_one() -> None:
    first, second = (Fuzz(9, EngineOptions(), toggles=True).run(3000) for _ in range(2))
    assert first == second


@pytest.mark.soak
@pytest.mark.parametrize("toggles", [False, True], ids=["one bank", "two banks"])
def test_no_mismatch_for_long(toggles: bool) -> None:
    assert Fuzz(77, EngineOptions(), toggles).run(LONG).mismatches == 0
