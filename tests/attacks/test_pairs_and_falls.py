"""Attacks of two domains together, and those that end their guest, beside a neighbour."""

from __future__ import annotations

import pytest

from firmware.domain.domain import DomainState
from guests import attacks
from guests.attacks.falls import BEGINS
from guests.attacks.support import DONE
from tests.attacks.machine_world import tables_written, world
from tests.attacks.test_attacks import alive
from tests.memory.reference import check
from xenpy.guest import Guest
from xenpy.system import Reason, System

WITHIN_S = 20.0
WALL_S = 60.0
WAYS = [(name, way) for name in attacks.FALLS for way in attacks.ways(name)]


def goes_on(system: System, neighbour: Guest) -> bool:
    """Whether the neighbour prints, unharmed."""
    before = alive(neighbour)
    outcome = system.run(until=lambda: alive(neighbour) > before + 2, within=WITHIN_S, wall=WALL_S)
    return outcome.reason is Reason.CONDITION and b"harmed" not in neighbour.console.log


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize(("first", "second"), attacks.PAIRS)
def test_two_domains_together_get_no_more_than_each_alone(first: str, second: str, cpus: int) -> None:
    with System(cpus=cpus, memory=256) as system:
        neighbour = system.add_domain(attacks.build("neighbour"), name="neighbour")
        pair = [system.add_domain(attacks.build(name), name=name) for name in (first, second)]
        system.run(until=lambda: all(guest.ended for guest in pair), within=WITHIN_S, wall=WALL_S)
        for guest in pair:
            lines = guest.console.log.decode().splitlines()
            assert [line for line in lines if not line.startswith("PASS")] == [DONE]
        assert goes_on(system, neighbour)
        check(*world(system))
        assert not tables_written(system)


@pytest.mark.parametrize("order", [(2, 3), (3, 2)])
def test_a_domain_that_ends_while_the_other_has_its_page_leaves_nothing(order: tuple[int, int]) -> None:
    with System(memory=256) as system:
        neighbour = system.add_domain(attacks.build("neighbour"), name="neighbour")
        hypervisor = system.hypervisor
        world(system)  # the neighbour's grant table is made when it is first looked at
        free = hypervisor.memory.heap.free
        system.add_domain(attacks.build("giver"), name="giver")
        taker = system.add_domain(attacks.build("taker"), name="taker")
        system.run(until=lambda: b"mapped without a grant" in taker.console.log, within=WITHIN_S, wall=WALL_S)
        domains = hypervisor.lifecycle.domains
        for number in order:
            domain = domains[number]
            hypervisor.lifecycle.shutdown(domain, 0)
            hypervisor.destroy_domain(domain)
            assert not tables_written(system)
        check(*world(system))
        assert hypervisor.memory.heap.free == free
        assert goes_on(system, neighbour)


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_who_cannot_go_on_falls_alone(name: str, way: str) -> None:
    with System(memory=256) as system:
        neighbour = system.add_domain(attacks.build("neighbour"), name="neighbour")
        guest = system.add_domain(attacks.build(name), name=name, cmdline=way, memory=32)
        system.run(until=lambda: guest.ended, within=WITHIN_S, wall=WALL_S)
        assert guest.state is DomainState.CRASH
        assert guest.console.log.decode().splitlines() == [BEGINS]
        assert goes_on(system, neighbour)
        system.hypervisor.destroy_domain(system.hypervisor.lifecycle.domains[2])
        check(*world(system))
