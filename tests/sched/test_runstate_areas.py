"""What a guest sees of its run states (vcpu.h) while it goes from CPU to CPU: as fresh as when it last began
to run or stopped, and summing to all the time there was.
"""

from __future__ import annotations

from typing import Any

import pytest

from firmware.abi import vcpu as abi
from firmware.domain.vcpu import BLOCKED, PAUSE_BLOCKED, RUNNABLE, RUNNING, VCpu
from firmware.sched.control import SchedulerControl
from tests.firmware.world import BASE, World

MS = 1_000_000
AREA = BASE + 64


class Migrant:
    """A vCPU with a runstate area, on a machine of three CPUs with others on each."""

    def __init__(self, pv32: bool) -> None:
        self.world = World(3)
        self.control = SchedulerControl(self.world.scheduler)
        self.vcpu: VCpu = self.world.domain(1, pv32=pv32).vcpus[0]
        for number in range(2, 5):
            self.world.domain(number)
        self.vcpu.runstate_area = AREA
        self.layout = abi.vcpu_runstate_info.w32 if pv32 else abi.vcpu_runstate_info.w64
        self.pass_time(1 * MS)

    def pass_time(self, ns: int) -> None:
        """Everybody decides, time passes, everybody decides again."""
        for step in (0, ns):
            self.world.between()
            self.world.advance(step)
            for core in self.world.cores:
                self.world.run(core)
        self.world.between()

    def seen(self) -> Any:
        return self.layout.unpack(self.vcpu.space.read(AREA, self.layout.size))


@pytest.mark.parametrize("pv32", [False, True])
def test_the_area_follows_its_vcpu(pv32: bool) -> None:
    migrant = Migrant(pv32)
    vcpu, scheduler = migrant.vcpu, migrant.world.scheduler
    born, states = None, set()
    for turn, core in enumerate((1, 2, 0, 1, 0, 2) * 3):
        migrant.control.set_affinity(vcpu, hard=[core])
        if turn % 4 == 3:
            scheduler.hold(vcpu, PAUSE_BLOCKED)
        migrant.pass_time((3 + turn) * MS)
        scheduler.unblock(vcpu)
        seen = migrant.seen()
        states.add(seen.state)
        if seen.state == RUNNING:
            assert (seen.state_entry_time, list(seen.time)) == (vcpu.runstate_since, vcpu.runstate_times)
            assert vcpu.core.index == core
        total = seen.state_entry_time - sum(seen.time)
        assert born in (None, total), "the time before it was made, and no other, is in no state"
        born = total
    assert states >= {RUNNING, RUNNABLE} or states >= {RUNNING, BLOCKED}
    assert vcpu.migrations > 5


def test_the_call_agrees_with_the_area_and_counts_up_to_now() -> None:
    migrant = Migrant(pv32=False)
    scheduler = migrant.world.scheduler
    migrant.control.set_affinity(migrant.vcpu, hard=[2])
    compared = 0
    for _ in range(6):
        migrant.pass_time(4 * MS)
        state, since, times = scheduler.runstate_info(migrant.vcpu)
        seen = migrant.seen()
        if seen.state == state:
            compared += 1
            assert seen.state_entry_time == since
            assert sum(times) - sum(seen.time) == scheduler.now() - since
    assert compared
