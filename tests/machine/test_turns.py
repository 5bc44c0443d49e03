"""Who runs when and how fast, against a model that looks at every core each time."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from machine import Core, Machine, MachineConfig, Topology
from machine import registers as reg
from machine.turns import Turns
from tests.machine.loop_model import LONGEST_CHUNK, LONGEST_SLICE_NS, Model, Script
from tests.machine.rig import CODE, Rig

SPIN = "l: jmp l"
QUANTUM = 3000
DEADLINE = 120_000
SHAPES = ["1", "2", "1x1x2", "3x1x2", "2x2x3", "17", "2x8x2"]


class Scripted:
    """The machine's side of a script."""

    def __init__(self, machine: Machine, script: Script) -> None:
        self.machine, self.script = machine, script
        self.trace: list[tuple[int, int]] = []
        for when, number in script.wakes:
            machine.clock.at(when, self._wake, (number, when))

    def _wake(self, argument: tuple[int, int]) -> None:
        number, when = argument
        self.machine.wake(self.machine.cores[number], when)

    def dispatch(self, core: Core) -> int | None:
        self.trace.append((core.index, core.now()))
        granted, charge = self.script.decide()
        core.charge(charge)
        return granted

    def _never(self, *_: Any) -> None:
        raise AssertionError("the guest only spins")

    syscall = exception = cpuid = _never


def scripted(
    shape: str, seed: int, factor: float, longest_ns: int, quantum_ns: int = QUANTUM
) -> tuple[Rig, Scripted, Model]:
    """A machine and a model that are to do the same."""
    topology = Topology.parse(shape)
    rig = Rig(SPIN, topology=topology, quantum_ns=quantum_ns, smt_factor=factor)
    handler = Scripted(rig.machine, Script(seed, topology.cpus, longest_ns))
    for core in rig.machine.cores:
        core.handler = handler
    script = Script(seed, topology.cpus, longest_ns)
    model = Model(script, topology.cpus, topology.threads, factor, quantum_ns)
    return rig, handler, model


def agree(rig: Rig, handler: Scripted, model: Model, deadline: int) -> None:
    """Run both; nothing that can be seen differs."""
    rig.run(deadline_ns=deadline)
    model.run(deadline)
    assert handler.trace == model.trace
    found = [(core.now(), core.blocks, core.idle_ns, core.idle) for core in rig.machine.cores]
    assert found == [(it.now, it.blocks, it.idle_ns, it.idle) for it in model.cores]
    for core in rig.machine.cores:
        assert core.busy_ns + core.idle_ns == core.now()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loop_is_the_models(shape: str) -> None:
    dispatches = 0
    rates: set[int] = set()
    for seed in range(6):
        rig, handler, model = scripted(shape, seed, (1, 0.6, 0.37)[seed % 3], (500, 5000, 300_000)[seed // 2])
        with rig:
            agree(rig, handler, model, DEADLINE)
            dispatches += len(model.trace)
            rates |= model.rates
            threads = rig.machine.config.topology.threads
    assert dispatches > 100
    assert len(rates) == (3 if threads > 1 else 1)


def test_slices_longer_than_a_budget_are_the_models() -> None:
    rig, handler, model = scripted("1x1x2", 1, 0.6, LONGEST_SLICE_NS, quantum_ns=2_500_000)
    for script in (handler.script, model.script):
        script.lazy = 0.0
    with rig:
        agree(rig, handler, model, 5_000_000)
        assert len(model.rates) == 2
        assert max(core.blocks for core in rig.machine.cores) > 2 * LONGEST_CHUNK


def test_the_same_script_twice() -> None:
    ends = []
    for _ in range(2):
        rig, handler, _ = scripted("2x4x2", 5, 0.6, 5000)
        with rig:
            rig.run(deadline_ns=DEADLINE)
            ends.append((handler.trace, rig.machine.counters))
    assert ends[0] == ends[1]


class Restless:
    """Wakes, idles, charges and limits, inside traps too; checks each choice of the machine with a scan."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine = machine
        self.random = Random(seed)
        self.end = 0
        self.slack = 0
        self.last: Core | None = None
        self.dispatches = self.wakes = 0

    def others(self, core: Core) -> list[Core]:
        return [other for other in self.machine.cores if other is not core and not other.idle]

    def dispatch(self, core: Core) -> int | None:
        last, random = self.last, self.random
        if last is not None and self.end:
            assert self.end <= last.now() < self.end + 17 + self.slack
        self.last = None
        self.dispatches += 1
        assert not core.idle
        assert all((core.now(), core.index) < (other.now(), other.index) for other in self.others(core))
        assert all(core.now() <= it.when for it in self.machine.clock.pending())
        self.stir(core)
        if random.random() < 0.2 and self.others(core):
            return None
        granted = random.randint(1, 9000)
        due = self.machine.clock.next()
        ends = [other.now() + QUANTUM for other in self.others(core)]
        self.end = min([core.now() + granted, *ends] + ([] if due is None else [due]))
        self.last, self.slack = core, max(0, core.now() - self.end)
        return granted

    def stir(self, core: Core) -> None:
        """Something that the firmware may do at any time."""
        random, machine = self.random, self.machine
        sleeper = machine.cores[random.randrange(len(machine.cores))]
        match random.randrange(5):
            case 0:
                if sleeper.idle:
                    self.wakes += 1
                    machine.wake(sleeper, core.now())
                    self.end = min(self.end, sleeper.now() + QUANTUM)
            case 1:
                when = core.now() + random.randrange(4000)
                machine.clock.at(when, lambda it: machine.wake(it, machine.clock.now), sleeper)
                self.end = min(self.end, when)
            case 2:
                cost = random.randrange(200)
                core.charge(cost)
                self.slack = cost
            case 3:
                if sleeper is not core:
                    sleeper.charge(random.randrange(700))

    def syscall(self, core: Core) -> None:
        assert core.deadline == self.end
        self.slack = 0
        before = core.now()
        self.stir(core)
        assert core.now() == before + self.slack
        if self.random.random() < 0.05:
            wanted = core.now() + self.random.randrange(-50, 900)
            core.limit(wanted)
            self.end = min(self.end, wanted)
        if self.end < core.now():
            self.slack = max(self.slack, core.now() - self.end)

    def exception(self, core: Core, vector: int, error: int, software: bool) -> None:
        raise AssertionError(vector)

    def cpuid(self, core: Core) -> None:
        raise AssertionError


@pytest.mark.parametrize("shape", ["2", "5", "2x2x2", "33"])
def test_each_choice_and_each_end_is_that_of_a_scan(shape: str) -> None:
    source = "l: mov ecx, 15\nm: dec ecx\njnz m\nsyscall\njmp l"
    with Rig(source, topology=Topology.parse(shape), quantum_ns=QUANTUM) as rig:
        handler = Restless(rig.machine, len(shape))
        for core in rig.machine.cores:
            core.handler = handler
        rig.run(until=lambda: handler.dispatches >= 3000)
        assert handler.wakes > 50
        assert min(core.blocks for core in rig.machine.cores) > 0


def test_a_queue_whose_times_change_gives_the_order_of_a_scan() -> None:
    random = Random(4)
    with Machine(MachineConfig(topology=Topology(1, 24, 1))) as machine:
        turns = Turns(machine.cores)
        waiting: set[int] = set()
        for _ in range(20_000):
            core = machine.cores[random.randrange(24)]
            core.charge(random.choice((0, 10, random.randrange(400))))
            if core.index not in waiting and random.random() < 0.4:
                turns.add(core)
                waiting.add(core.index)
            wanted = min(((machine.cores[it].now(), it) for it in waiting), default=None)
            first = turns.first()
            assert first == wanted
            if first is not None and random.random() < 0.3:
                turns.take()
                waiting.remove(first[1])


def test_the_last_of_256_is_woken_alone() -> None:
    with Rig("mov ecx, 1000\nl: dec ecx\njnz l\nint 0x90", topology=Topology(4, 32, 2)) as rig:
        rig.handler.finished.update(range(256))
        last = rig.machine.cores[-1]

        def wake(_: object) -> None:
            rig.handler.finished.remove(255)
            rig.machine.wake(last, rig.machine.clock.now)

        rig.machine.clock.at(5000, wake)
        rig.run()
        assert last.blocks == 1001
        assert last.idle_ns == 5000
        assert sum(rig.machine.counters.blocks) == 1001
        assert last.q[reg.RIP] > CODE


def test_the_clock_does_not_go_back_for_a_core_woken_in_the_past() -> None:
    with Rig(SPIN, cores=2) as rig:
        rig.handler.finished.add(1)
        rig.run(deadline_ns=50_000)
        seen = [rig.machine.clock.now]
        rig.handler.finished.clear()
        rig.machine.wake(rig.machine.cores[1], 100)

        def look() -> bool:
            seen.append(rig.machine.clock.now)
            return rig.machine.cores[1].now() >= 40_000

        rig.run(until=look)
        assert seen == sorted(seen)
        assert seen[0] == 50_000
