"""Attack guests beside a neighbour: nothing works, the neighbour goes on, and every count is right."""

from __future__ import annotations

import os
from functools import partial

import pytest

from firmware.memory.shootdown import Shootdown
from guests import attacks
from guests.attacks.support import DONE
from tests.attacks.machine_world import tables_written, tlb, world
from tests.memory.reference import check
from tools.oracle import attacks as oracle_attacks
from tools.oracle import missing
from tools.oracle.domu import FIRST
from xenpy.guest import Guest
from xenpy.system import Reason, System

WITHIN_S = 20.0
WALL_S = 60.0
SCRIPTED = [name for name in attacks.ATTACKS if name != "hogs"]


def alive(guest: Guest) -> int:
    """How often the neighbour has printed."""
    return guest.console.log.count(b"alive")


def has_ended(guest: Guest) -> bool:
    """Whether the guest runs no more."""
    return guest.ended


def verdicts(system: System, name: str) -> list[str]:
    """Run an attack beside a neighbour; the lines it printed."""
    vcpus = attacks.ATTACKS[name]
    neighbour = system.add_domain(attacks.build("neighbour"), name="neighbour")
    attacker = system.add_domain(attacks.build(name), name=name, vcpus=vcpus)
    system.run(until=lambda: attacker.ended, within=WITHIN_S, wall=WALL_S)
    before = alive(neighbour)
    outcome = system.run(until=lambda: alive(neighbour) > before + 2, within=WITHIN_S, wall=WALL_S)
    assert outcome.reason is Reason.CONDITION
    assert b"harmed" not in neighbour.console.log
    return attacker.console.log.decode().splitlines()


@pytest.mark.parametrize("name", SCRIPTED)
def test_an_attack_fails_and_harms_nobody(name: str) -> None:
    with System(cpus=attacks.ATTACKS[name], memory=256) as system:
        lines = verdicts(system, name)
        assert [line for line in lines if not line.startswith("PASS")] == [DONE]
        seen, ledger = world(system)
        check(seen, ledger)
        assert not tables_written(system)
        attacker = system.hypervisor.lifecycle.domains[2]
        system.hypervisor.destroy_domain(attacker)
        check(*world(system))


@pytest.mark.parametrize("kind", ["0", "1", "2", "3"])
def test_a_hog_leaves_its_neighbour_time(kind: str) -> None:
    with System(memory=256) as system:
        neighbour = system.add_domain(attacks.build("neighbour"), name="neighbour")
        hog = system.add_domain(attacks.build("hogs"), name="hogs", cmdline=kind)
        begun = system.run(until=lambda: b"begins" in hog.console.log, within=WITHIN_S, wall=WALL_S)
        assert begun.reason is Reason.CONDITION
        before = alive(neighbour)
        outcome = system.run(until=lambda: alive(neighbour) > before + 2, within=WITHIN_S, wall=WALL_S)
        assert outcome.reason is Reason.CONDITION


def test_the_store_serves_others_after_an_attack_on_it() -> None:
    with System(memory=256) as system:
        for name in ("first", "second"):
            attacker = system.add_domain(attacks.build("xenstore"), name=name)
            system.run(until=partial(has_ended, attacker), within=WITHIN_S, wall=WALL_S)
            lines = attacker.console.log.decode().splitlines()
            assert [line for line in lines if not line.startswith("PASS")] == [DONE]


@pytest.mark.oracle
@pytest.mark.skipif(os.environ.get("XENPY_ORACLE") != "1", reason="runs with XENPY_ORACLE=1")
def test_they_fail_on_real_xen_too() -> None:
    if reason := missing():
        pytest.skip(reason)
    for name, result in oracle_attacks.run().items():
        assert not oracle_attacks.surprises(name.removesuffix(FIRST), result), name


def test_the_tlbs_are_looked_into() -> None:
    with System(memory=256) as system:
        system.add_domain(attacks.build("neighbour"), name="neighbour")
        system.run(within=0.001)
        entries = tlb(system.machine.cores[0])
        assert any(writable for _, writable in entries.values())
        frames = system.hypervisor.memory.frames
        assert any(frames.owner_of(mfn) == 1 for mfn, _ in entries.values())


def test_the_races_are_lost_without_shootdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shootdown, "older", lambda *_: None)
    with System(cpus=2, memory=256) as system:
        attacker = system.add_domain(attacks.build("races"), vcpus=2)
        system.run(until=lambda: b"FAIL" in attacker.console.log, within=0.02, wall=WALL_S)
        assert b"PASS a page table: nothing was written" not in attacker.console.log
