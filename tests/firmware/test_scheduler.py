"""The scheduling mechanism under round robin: who runs, in what state, and where the time went."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.domain.vcpu import (
    BLOCKED,
    OFFLINE,
    PAUSE_BLOCKED,
    PAUSE_CONTROL,
    PAUSE_DOWN,
    RUNNABLE,
    RUNNING,
    VCpu,
)
from tests.firmware.world import World, core_of

SLICE_NS = 10_000_000
FLAGS = (PAUSE_BLOCKED, PAUSE_DOWN, PAUSE_CONTROL)


def up(world: World, count: int, cores: int = 1) -> list[VCpu]:
    domain = world.domain(1, vcpus=count)
    for vcpu in domain.vcpus[1:]:
        world.scheduler.bring_up(vcpu)
    world.between()
    return domain.vcpus


class TestRoundRobin:
    def test_vcpus_are_spread_over_the_cores(self) -> None:
        world = World(cores=3)
        assert [vcpu.home for vcpu in world.domain(1, vcpus=7).vcpus] == [0, 1, 2, 0, 1, 2, 0]

    def test_each_gets_its_slice_in_turn(self) -> None:
        world = World()
        vcpus = up(world, 3)
        seen = []
        for _ in range(6):
            assert world.run(world.cores[0]) == SLICE_NS
            seen.append(vcpus.index(world.cores[0].current))  # type: ignore[arg-type]
            world.advance(SLICE_NS)
        assert seen == [0, 1, 2, 0, 1, 2]

    def test_the_rest_of_a_slice_is_given_after_a_look(self) -> None:
        world = World()
        up(world, 2)
        world.advance(SLICE_NS)
        assert world.run(world.cores[0]) == SLICE_NS
        first = world.cores[0].current
        world.advance(SLICE_NS // 4)
        assert world.run(world.cores[0]) == SLICE_NS - SLICE_NS // 4
        assert world.cores[0].current is first

    def test_yielding_lets_the_next_run(self) -> None:
        world = World()
        vcpus = up(world, 2)
        world.run(world.cores[0])
        current = world.cores[0].current
        assert isinstance(current, VCpu)
        world.scheduler.give_way(current)
        assert core_of(current).stopped == 1
        world.run(world.cores[0])
        assert world.cores[0].current in vcpus
        assert world.cores[0].current is not current

    def test_yielding_alone_does_not_stop(self) -> None:
        world = World()
        vcpu = up(world, 1)[0]
        world.run(world.cores[0])
        world.scheduler.give_way(vcpu)
        assert core_of(vcpu).stopped == 0

    def test_nobody_to_run_is_idle(self) -> None:
        world = World()
        vcpu = up(world, 1)[0]
        world.scheduler.hold(vcpu, PAUSE_BLOCKED)
        assert world.run(world.cores[0]) is None
        assert vcpu.runstate == BLOCKED
        world.scheduler.unblock(vcpu)
        assert world.plain.woken[-1] == 0
        assert world.run(world.cores[0]) == SLICE_NS

    def test_removing_makes_room(self) -> None:
        world = World(cores=2)
        vcpus = up(world, 2)
        world.scheduler.remove(vcpus[1])
        assert world.run(world.cores[1]) is None
        assert not vcpus[1].loaded
        assert world.domain(2).vcpus[0].home == 1


class TestRunStates:
    @pytest.mark.parametrize(
        ("flag", "state"), [(PAUSE_BLOCKED, BLOCKED), (PAUSE_DOWN, OFFLINE), (PAUSE_CONTROL, OFFLINE)]
    )
    def test_by_what_keeps_it(self, flag: int, state: int) -> None:
        world = World()
        vcpu = up(world, 1)[0]
        world.advance(100)
        world.scheduler.hold(vcpu, flag)
        assert vcpu.runstate == RUNNING, "until the core has let it go"
        world.run(world.cores[0])
        assert vcpu.runstate == state
        world.advance(50)
        world.scheduler.release(vcpu, flag)
        assert vcpu.runstate == RUNNABLE
        world.advance(25)
        assert world.scheduler.runstate_info(vcpu)[2][state] == 50
        assert world.scheduler.runstate_info(vcpu)[2][RUNNABLE] == 25
        assert world.scheduler.runstate_info(vcpu)[2][RUNNING] == 100

    def test_a_vcpu_on_a_core_behind_its_last_does_not_go_back_in_time(self) -> None:
        world = World(cores=2)
        vcpu = up(world, 1)[0]
        world.scheduler.hold(vcpu, PAUSE_BLOCKED)
        assert world.run(world.cores[0]) is None
        world.scheduler.unblock(vcpu)
        vcpu.last_time = 500
        world.run(world.cores[0])
        assert world.cores[0].waited == 500


class Step:
    """Random operations on a few vCPUs."""

    kinds = st.tuples(
        st.sampled_from(("hold", "release", "unblock", "yield", "run", "time")),
        st.integers(0, 4),
        st.sampled_from(FLAGS),
        st.integers(0, 3 * SLICE_NS),
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(steps=st.lists(Step.kinds, max_size=60), cores=st.integers(1, 3))
def test_random_operations_keep_the_books(steps: list[tuple[str, int, int, int]], cores: int) -> None:
    world = World(cores)
    vcpus = up(world, 5)
    begin = [vcpu.runstate_since for vcpu in vcpus]
    elapsed = [sum(vcpu.runstate_times) for vcpu in vcpus]
    for kind, number, flag, ns in steps:
        vcpu = vcpus[number]
        if kind == "hold":
            world.scheduler.hold(vcpu, flag)
        elif kind == "release":
            world.scheduler.release(vcpu, flag)
        elif kind == "unblock":
            world.scheduler.unblock(vcpu)
        elif kind == "yield" and vcpu.loaded and vcpu.runnable:
            world.scheduler.give_way(vcpu)
        elif kind == "run":
            world.run(world.cores[number % cores])
        else:
            world.advance(ns)
        world.between()
        for index, each in enumerate(vcpus):
            state, since, times = world.scheduler.runstate_info(each)
            assert sum(times) - elapsed[index] == world.clock.now - begin[index]
            assert since <= world.clock.now
            assert (each.runstate == RUNNING) <= each.loaded
            assert state == RUNNING or state == (RUNNABLE if each.runnable else state)
            assert not (each.runnable and state in (BLOCKED, OFFLINE))
    ran: set[int] = set()
    for _ in range(len(vcpus) + 1):
        for core in world.cores:
            world.run(core)
            if isinstance(core.current, VCpu) and core.current.runstate == RUNNING:
                assert core.current.runnable
                ran.add(core.current.id)
        world.advance(SLICE_NS)
    assert ran == {vcpu.id for vcpu in vcpus if vcpu.runnable}, "everyone who can run does"
