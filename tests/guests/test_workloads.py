"""The guests that give schedulers something to do, alone on a machine where everyone has a CPU."""

from __future__ import annotations

import re

import pytest

from xenpy import System
from xenpy.system import Reason

FINE_NS = 2_000
"""vCPUs that wait for each other in loops see each other this late."""


def ran(name: str, cmdline: str, vcpus: int, cpus: int | None = None) -> list[int]:
    """The numbers in a guest's report."""
    with System(cpus=cpus or vcpus, quantum_ns=FINE_NS) as system:
        guest = system.add_domain(f"builtin:{name}", vcpus=vcpus, cmdline=cmdline)
        assert system.run(within=10, wall=60).reason is Reason.ENDED, guest.crash_report
        report, done = guest.console.text.splitlines()
    assert done == f"{name}: done"
    return [int(number) for number in re.findall(r"\d+", report)]


@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_hogs_work_side_by_side(vcpus: int) -> None:
    count, rounds, elapsed = ran("hog", "rounds=2", vcpus)
    assert (count, rounds) == (vcpus, 2 * vcpus)
    assert elapsed == pytest.approx(20_000, rel=0.1)


def test_two_hogs_on_one_cpu_take_twice_as_long() -> None:
    assert ran("hog", "rounds=2", 2, cpus=1)[2] == pytest.approx(40_000, rel=0.1)


def test_a_sleeper_is_on_time() -> None:
    wakes, late, most, _, _, early = ran("sleeper", "period=500 wakes=50", 2)
    assert (wakes, early) == (100, 0)
    assert late // wakes <= most < 20_000


def test_who_holds_the_lock_holds_it_alone() -> None:
    count, times, elapsed = ran("locks", "rounds=100 work=0 held=1000", 4)
    assert (count, times) == (4, 400)
    assert elapsed == pytest.approx(4000, rel=0.3), "400 times 10 us, one after the other"


def test_barriers_keep_everyone_in_step() -> None:
    count, rounds, together = ran("barriers", "rounds=20 work=10000", 4)
    apart = ran("barriers", "rounds=20 work=10000 apart=1", 4)[2]
    assert (count, rounds) == (4, 80)
    assert 2_000 <= apart <= together < 1.2 * apart


def test_a_storm_of_yields() -> None:
    assert ran("yields", "rounds=200", 4, cpus=2)[:2] == [4, 200]


def test_an_echo() -> None:
    with System() as system:
        guest = system.add_domain("builtin:echo")
        guest.console.expect("q ends")
        guest.console.send("hello\n")
        guest.console.expect("^hello$", within=1)
        guest.console.send(b"q")
        assert system.run(within=1).reason is Reason.ENDED
