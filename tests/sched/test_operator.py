"""BVT, Atropos and gangs under random loads and an operator who changes everything on the way: pins hold on
every decision, nobody starves, time is accounted for exactly, the same seed gives the same schedule.
"""

from __future__ import annotations

from random import Random

import pytest

from firmware.domain.vcpu import PAUSE_CONTROL, VCpu
from firmware.sched.control import SchedulerControl
from firmware.sched.parameters import Parameter, ParameterError, Value
from tests.sched.stealers import MS, SECOND, US
from tools.schedsim import Simulator, Task, Workload
from tools.schedsim.core import SimCore
from tools.schedsim.watching import books_balance
from tools.schedsim.workloads import barrier_team, hog, random_mix, sleeper, yielder

TOPOLOGIES = ("1x1x1", "1x4x1", "1x2x2", "2x2x2")
Kind = tuple[str, dict[str, Value]]
KINDS: dict[str, Kind] = {
    "bvt": ("bvt", {}),
    "atropos": ("atropos", {}),
    "strict": ("gang", {"form": "strict"}),
    "alternate": ("gang", {"form": "strict", "alternate": True}),
    "relaxed": ("gang", {"form": "relaxed"}),
    "balance": ("gang", {"form": "balance"}),
}
SHARES: dict[str, dict[str, Value]] = {
    "atropos": {"period_us": 20_000, "slice_us": 200, "latency_us": 20_000},
}
"""What domains begin with, where the default could take longer than the test."""
VALUES: dict[str, tuple[Value, ...]] = {
    "mcu_advance": (1, 5, 10, 40), "warpvalue": (0, 100, 5_000), "warpl_ms": (5, 50), "warpu_ms": (20, 100),
    "mcu_us": (50, 100), "ctx_allow_us": (500, 5_000), "slice_us": (100, 2_000), "period_us": (5_000, 20_000),
    "latency_us": (5_000, 20_000), "quantum_us": (1_000, 5_000), "capacity": (90, 100), "slot_ms": (2, 10),
    "skew_us": (1_000, 5_000), "form": ("strict", "relaxed", "balance"),
}
"""What the operator tries; switches are flipped."""


def some_value(draw: Random, parameter: Parameter) -> Value:
    if isinstance(parameter.default, bool):
        return draw.random() < 0.5
    return draw.choice(VALUES[parameter.name])


class Operator:
    """Does something random every now and then, on a machine of two pools if there are CPUs for that."""

    def __init__(self, simulator: Simulator, kind: Kind, seed: int, until: int) -> None:
        self._simulator = simulator
        self._kind = kind
        self._control = SchedulerControl(simulator.scheduler)
        self._draw = Random(seed)
        self._until = until
        self._held: list[VCpu] = []
        self.done = self.refused = 0
        if simulator.topology.cpus > 1:
            self._control.create_pool("other", [simulator.topology.cpus - 1], *kind)
        simulator.at(3 * MS, self._act)

    def _act(self) -> None:
        try:
            self._do_something()
        except ParameterError:
            self.refused += 1
        self.done += 1
        now = self._simulator.clock.now
        if now < self._until:
            self._simulator.at(now + self._draw.randrange(US, 8 * MS), self._act)
        else:
            self._finish()

    def _do_something(self) -> None:
        simulator, control, draw = self._simulator, self._control, self._draw
        vcpu = draw.choice(list(simulator.tasks))
        cpus = simulator.topology.cpus
        pool = draw.choice(control.pools)
        match draw.randrange(10):
            case 0:
                control.set_affinity(vcpu, hard=draw.sample(range(cpus), draw.randint(1, cpus)))
            case 1:
                control.set_affinity(vcpu, soft=draw.sample(range(cpus), draw.randint(1, cpus)))
            case 2:
                control.set_anywhere(vcpu)
            case 3:
                simulator.scheduler.hold(vcpu, PAUSE_CONTROL)
                self._held.append(vcpu)
            case 4 if self._held:
                simulator.scheduler.release(self._held.pop(0), PAUSE_CONTROL)
            case 5:
                chosen = draw.choice(pool.policy.SHARES)
                control.set_share(vcpu.domain, {chosen.name: some_value(draw, chosen)})
            case 6:
                chosen = draw.choice(pool.policy.SETTINGS)
                control.tune({chosen.name: some_value(draw, chosen)}, pool.id)
            case 7:
                control.move_core(draw.randrange(cpus), pool.id)
            case 8:
                control.move_domain(vcpu.domain, pool.id)
            case 9 if draw.random() < 0.2:
                control.set_policy(*self._kind, pool.id)

    def _finish(self) -> None:
        """Whoever is left somewhere with too little gets what everybody began with."""
        for vcpu in self._held:
            self._simulator.scheduler.release(vcpu, PAUSE_CONTROL)
        for vcpu in self._simulator.tasks:
            self._control.set_anywhere(vcpu)
        for domain in self._simulator.domains.values():
            self._control.set_share(domain, SHARES.get(self._kind[0], {}))


def watch(simulator: Simulator) -> None:
    """Look at every decision."""
    scheduler = simulator.scheduler
    dispatch = simulator.machine.dispatch

    def dispatched(core: SimCore) -> int | None:
        granted = dispatch(core)
        index = core.index
        vcpu = scheduler.running(index)
        assert (vcpu is None) == (granted is None)
        if vcpu is not None:
            assert granted is not None
            assert granted >= 1
            assert vcpu.hard_affinity >> index & 1
            assert not vcpu.pause_flags
            assert vcpu.core.index == index
            assert scheduler.pool_of(index) is scheduler.pools[vcpu.pool]
        return granted

    simulator.machine.dispatch = dispatched


def crowd(simulator: Simulator, seed: int) -> None:
    draw = Random(seed)
    cpus = simulator.topology.cpus
    loads: list[list[Workload]] = [[random_mix(3 * MS, 4 * MS)] * draw.randint(1, cpus) for _ in range(4)]
    loads += [[hog] * draw.randint(1, cpus), [yielder(20 * US)], [sleeper(200 * US, 5 * MS, 0.5)]]
    loads.append(barrier_team(min(cpus, 2), 10_000, 300 * US))
    for load in loads:
        simulator.domain(load, SHARES.get(simulator.policy.name))


def simulate(name: str, topology: str, seed: int) -> tuple[Simulator, list[Task]]:
    """The simulator after 1.45 s, and who has not run in the last of them, when the operator was done."""
    kind = KINDS[name]
    simulator = Simulator(topology, kind[0], kind[1], seed=seed)
    watch(simulator)
    crowd(simulator, seed)
    operator = Operator(simulator, kind, seed, 400 * MS)
    for _ in range(5):
        simulator.run(90 * MS)
        assert books_balance(simulator)
    assert operator.done > 50
    before = {task: task.work + task.spun for task in simulator.tasks.values()}
    simulator.run(SECOND)
    assert books_balance(simulator)
    return simulator, [task for task, work in before.items() if task.work + task.spun == work]


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_an_operator_does_starves_anybody(kind: str, topology: str) -> None:
    _, starved = simulate(kind, topology, 1)
    assert not starved


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_schedule(kind: str) -> None:
    assert simulate(kind, "1x2x2", 2)[0].hash == simulate(kind, "1x2x2", 2)[0].hash


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_many_operators(kind: str) -> None:
    for seed in range(10, 40):
        topology = TOPOLOGIES[seed % len(TOPOLOGIES)]
        assert not simulate(kind, topology, seed)[1], (topology, seed)
