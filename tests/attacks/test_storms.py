"""Guests that yield, poll, wake and come and go in storms leave a neighbour what is its own, whatever the
scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from firmware.sched.parameters import Value
from firmware.sched.policy import POLICIES
from guests import attacks
from guests.attacks.storms import KINDS, VCPUS
from xenpy import System
from xenpy.guest import Guest

SCHEDULERS: dict[str, tuple[str, Mapping[str, Value]]] = {
    **{name: (name, {}) for name in sorted(POLICIES) if name != "gang"},
    **{form: ("gang", {"form": form, "slot_ms": 1}) for form in ("strict", "relaxed", "balance")},
}
HALF = 0.5
"""What each of two equal guests has when both want all there is."""
SWITCHING = 0.8
"""Time for switches is nobody's: so much of its half is left at least."""
BEGIN_S, WATCH_S = 0.012, 0.02
SLOW = ("passed polls", "comings and goings")
"""What costs the host most: only under the policy where a wake-up or a yield is worth credit."""


def ran(guest: Guest) -> int:
    return sum(guest.runstates(number)["running"] for number in range(VCPUS))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_storm_leaves_its_neighbour_what_is_its_own(scheduler: str) -> None:
    policy, settings = SCHEDULERS[scheduler]
    image = attacks.build("storms")
    for name, kind in KINDS.items():
        if name in SLOW and scheduler != "credit2":
            continue
        with System(cpus=VCPUS, memory=256, scheduler=policy, settings=settings) as system:
            neighbour = system.add_domain("builtin:hog", memory=8, vcpus=VCPUS)
            storm = system.add_domain(image, memory=8, vcpus=VCPUS, cmdline=f"kind={kind}")
            system.run(within=BEGIN_S)
            before, began = ran(neighbour), ran(storm)
            system.run(within=WATCH_S)
            had = (ran(neighbour) - before) / (VCPUS * WATCH_S * 1e9)
            assert had >= HALF * SWITCHING, (name, had)
            assert ran(storm) > began, name
