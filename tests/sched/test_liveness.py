"""Whatever an operator and the guests do, at random: the books balance, nobody is forgotten, affinities hold,
and the same seed gives the same schedule.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from random import Random

import pytest

from firmware.domain.vcpu import PAUSE_CONTROL
from firmware.sched.control import SchedulerControl
from firmware.sched.parameters import ParameterError, Value
from tests.sched.stealers import MS, NAMES, POLICIES, US
from tools.schedsim import Simulator, Task
from tools.schedsim.watching import books_balance
from tools.schedsim.workloads import hog, random_mix, sleeper, yielder

STEPS = (100_000 if os.environ.get("XENPY_SOAK") else 4_000)
TOPOLOGIES = ("1x1x1", "1x2x2", "2x2x2")
TUNINGS: dict[str, list[dict[str, Value]]] = {
    "rrobin": [{"slice_ms": 3}, {"slice_ms": 20}, {"steal": False}, {"steal": True}],
    "credit": [{"tslice_ms": 5}, {"tslice_ms": 30}, {"ratelimit_us": 0}, {"ratelimit_us": 5_000},
               {"vcpu_migration_delay_us": 2_000}, {"vcpu_migration_delay_us": 0}],
    "credit2": [{"runqueue": "cpu"}, {"runqueue": "core"}, {"runqueue": "all"}, {"ratelimit_us": 0},
                {"migrate_resist_us": 0}, {"cap_period_ms": 30}, {"load_window_ms": 50}],
    "rtds": [{"overhead_us": 0}, {"overhead_us": 50}],
}
SHARES: dict[str, list[dict[str, Value]]] = {
    "rrobin": [{}],
    "credit": [{"weight": 256}, {"weight": 1024}, {"cap": 30}, {"cap": 0}, {"cap": 150}],
    "credit2": [{"weight": 256}, {"weight": 1024}, {"cap": 30}, {"cap": 0}, {"cap": 150}],
    "rtds": [{"period_us": 5_000, "budget_us": 500}, {"period_us": 20_000, "budget_us": 3_000},
             {"extratime": False}, {"extratime": True}],
}


class Operator:
    """Does things at random to a machine with two pools of the same policy."""

    def __init__(self, topology: str, name: str, settings: Mapping[str, Value], seed: int) -> None:
        self.random = Random(seed)
        self.simulator = Simulator(topology, name, settings, seed=seed)
        self.name = name
        self.control = SchedulerControl(self.simulator.scheduler)
        self.cpus = self.simulator.topology.cpus
        share: dict[str, Value] = {"period_us": 10_000, "budget_us": 1_000} if name == "rtds" else {}
        works = [hog, random_mix(3 * MS, 3 * MS), sleeper(100 * US, 2 * MS, 0.5), yielder(50 * US), hog]
        self.tasks = [task for number in range(2 + self.cpus // 2)
                      for task in self.simulator.domain(works[:2 + number % 3], share)]
        self.held: dict[Task, None] = {}
        if self.cpus > 1:
            self.control.create_pool("second", [self.cpus - 1], name, settings)

    def step(self) -> None:
        """One thing. What is refused must change nothing, and the next steps show that."""
        random, control = self.random, self.control
        task = random.choice(self.tasks)
        domain = task.vcpu.domain
        try:
            match random.randrange(12):
                case 0:
                    self.simulator.scheduler.hold(task.vcpu, PAUSE_CONTROL)
                    self.held[task] = None
                case 1 | 2 if self.held:
                    freed = random.choice(list(self.held))
                    del self.held[freed]
                    self.simulator.scheduler.release(freed.vcpu, PAUSE_CONTROL)
                case 3:
                    control.set_affinity(task.vcpu, self._some())
                case 4:
                    control.set_affinity(task.vcpu, soft=self._some())
                case 5:
                    control.set_anywhere(task.vcpu)
                case 6:
                    control.set_share(domain, random.choice(SHARES[self.name]))
                case 7:
                    control.tune(random.choice(TUNINGS[self.name]), random.choice(control.pools).id)
                case 8:
                    control.move_core(random.randrange(self.cpus), random.choice(control.pools).id)
                case 9:
                    control.move_domain(domain, random.choice(control.pools).id)
                case 10 if not random.randrange(20):
                    control.set_policy(self.name, {}, random.choice(control.pools).id)
                case _:
                    pass
        except ParameterError:
            pass
        self.simulator.run(random.randrange(2 * MS))

    def _some(self) -> list[int]:
        return self.random.sample(range(self.cpus), self.random.randrange(1, self.cpus + 1))


@pytest.mark.parametrize(("name", "settings"), POLICIES, ids=NAMES)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_random_operations_keep_the_machine_alive(name: str, settings: Mapping[str, Value],
                                                  topology: str) -> None:
    operator = Operator(topology, name, settings, seed=7)
    simulator = operator.simulator
    for number in range(STEPS // len(POLICIES) // len(TOPOLOGIES)):
        operator.step()
        assert books_balance(simulator)
        for cpu in range(operator.cpus):
            pool, running = simulator.scheduler.pool_of(cpu), simulator.scheduler.running(cpu)
            if running is not None:
                assert running.scheduled
                assert pool is not None
                assert running.pool == pool.id
        if not number % 100:
            _everybody_runs(operator)


def _everybody_runs(operator: Operator) -> None:
    """Within the bound of the heaviest load there can be, whoever can run has."""
    before = {task: operator.simulator.times(task)[0] for task in operator.tasks}
    sleeping = {task for task in operator.tasks if task.vcpu.pause_flags}
    operator.simulator.run(2_500 * MS)
    for task in operator.tasks:
        if task not in sleeping and task.vcpu.runnable:
            assert operator.simulator.times(task)[0] > before[task], task


@pytest.mark.parametrize(("name", "settings"), POLICIES, ids=NAMES)
def test_the_same_seed_gives_the_same_schedule(name: str, settings: Mapping[str, Value]) -> None:
    hashes = []
    for seed in (1, 1, 2):
        operator = Operator("2x2x2", name, settings, seed)
        for _ in range(60):
            operator.step()
        hashes.append(operator.simulator.hash)
    assert hashes[0] == hashes[1] != hashes[2]
