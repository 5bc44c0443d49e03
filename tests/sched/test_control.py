"""What an operator may do to scheduling on a running machine, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.domain.vcpu import PAUSE_BLOCKED, RUNNING, VCpu
from firmware.sched.control import SchedulerControl, Scheduling, cpu_list, members, text
from firmware.sched.parameters import ParameterError
from tests.firmware.world import World

MS = 1_000_000


class Setting:
    """A world with an operator."""

    def __init__(self, cores: int = 4, domains: int = 2, vcpus: int = 2) -> None:
        self.world = World(cores)
        self.control = SchedulerControl(self.world.scheduler)
        self.domains = [self.world.domain(number + 1, vcpus=vcpus) for number in range(domains)]
        for domain in self.domains:
            for vcpu in domain.vcpus[1:]:
                self.world.scheduler.bring_up(vcpu)
        self.world.between()
        self.step()

    def step(self) -> dict[int, VCpu]:
        """One decision of every logical CPU; who runs where then."""
        for _ in range(2):
            for core in self.world.cores:
                self.world.run(core)
        self.world.between()
        running = {core.index: self.world.scheduler.running(core.index) for core in self.world.cores}
        return {core: vcpu for core, vcpu in running.items() if vcpu is not None}

    def everyone(self) -> list[VCpu]:
        return [vcpu for domain in self.domains for vcpu in domain.vcpus]


class TestPools:
    def test_a_domain_runs_on_its_pools_cpus_only(self) -> None:
        setting = Setting()
        setting.control.create_pool("quiet", [2, 3], "rrobin")
        setting.control.move_domain(setting.domains[1], "quiet")
        for _ in range(6):
            for core, vcpu in setting.step().items():
                assert (core in (2, 3)) == (vcpu.domain is setting.domains[1])
            setting.world.advance(10 * MS)
        assert {vcpu.pool for vcpu in setting.domains[1].vcpus} == {1}

    def test_each_pool_has_its_own_parameters(self) -> None:
        setting = Setting()
        setting.control.create_pool("fast", [3], "rrobin", {"slice_ms": 1})
        setting.control.tune({"slice_ms": 7})
        assert [pool.policy.settings["slice_ms"] for pool in setting.control.pools] == [7, 1]

    def test_everyone_still_runs_after_cpus_moved_about(self) -> None:
        setting = Setting(cores=4, domains=3)
        setting.control.create_pool("b", [1], "rrobin")
        setting.control.move_core(2, "b")
        setting.control.move_domain(setting.domains[2], 1)
        setting.control.move_core(1, "Pool-0")
        seen: set[VCpu] = set()
        for _ in range(8):
            running = setting.step()
            seen.update(running.values())
            for core, vcpu in running.items():
                assert setting.world.scheduler.pools[vcpu.pool].cores.count(core) == 1
            setting.world.advance(10 * MS)
        assert seen == set(setting.everyone())

    def test_a_pool_that_goes_gives_its_cpus_back(self) -> None:
        setting = Setting()
        setting.control.create_pool("b", [0, 1], "rrobin")
        with pytest.raises(ParameterError, match="the one that stays"):
            setting.control.remove_pool("Pool-0")
        setting.control.move_domain(setting.domains[0], "b")
        with pytest.raises(ParameterError, match="move them to another pool"):
            setting.control.remove_pool("b")
        setting.control.move_domain(setting.domains[0], 0)
        setting.control.remove_pool("b")
        assert setting.control.pools[0].cores == [0, 1, 2, 3]
        assert len(setting.step()) == 4

    @pytest.mark.parametrize(("call", "said"), [
        (lambda c: c.create_pool("b", [], "rrobin"), "empty set"),
        (lambda c: c.create_pool("b", [4], "rrobin"), "there is no CPU 4: the machine has CPUs 0 to 3"),
        (lambda c: c.create_pool("b", [-1], "rrobin"), "there is no CPU -1"),
        (lambda c: c.create_pool("Pool-0", [1], "rrobin"), "a name of its own"),
        (lambda c: c.create_pool("", [1], "rrobin"), "a name of its own"),
        (lambda c: c.create_pool("b", [1], "lottery"), "no scheduler 'lottery'"),
        (lambda c: c.create_pool("b", [1], "rrobin", {"slice_ms": 0}), "slice_ms is 1 to 1000 ms, not 0"),
        (lambda c: c.create_pool("b", [0, 1, 2, 3], "rrobin"), "could run nowhere"),
        (lambda c: c.move_core(1, "c"), "no CPU pool 'c': there are Pool-0"),
        (lambda c: c.tune({"slice": 1}), "no parameter 'slice'"),
        (lambda c: c.tune({"slice_ms": -5}), "not -5"),
        (lambda c: c.tune({"slice_ms": True}), "a whole number, not True"),
        (lambda c: c.tune({"steal": 2}), "on .* or off"),
        (lambda c: c.set_policy("rrobin", {"slice_ms": 1001}), "not 1001"),
    ])
    def test_what_cannot_be_is_refused_and_changes_nothing(
        self, call: Callable[[SchedulerControl], object], said: str,
    ) -> None:
        setting = Setting()
        policy = setting.control.pools[0].policy
        with pytest.raises(ParameterError, match=said):
            call(setting.control)
        assert [pool.cores for pool in setting.control.pools] == [[0, 1, 2, 3]]
        assert setting.control.pools[0].policy is policy
        assert policy.settings == {"slice_ms": 10, "steal": True}


class TestAffinity:
    def test_a_pinned_vcpu_stays(self) -> None:
        setting = Setting(cores=3)
        vcpu = setting.everyone()[0]
        setting.control.set_affinity(vcpu, hard=[2])
        for _ in range(12):
            assert all(core == 2 for core, who in setting.step().items() if who is vcpu)
            setting.world.advance(10 * MS)
        assert vcpu.runstate_times[RUNNING] > 0 or vcpu.runstate == RUNNING

    def test_outside_its_pool_it_cannot(self) -> None:
        setting = Setting()
        setting.control.create_pool("b", [3], "rrobin")
        vcpu = setting.everyone()[0]
        with pytest.raises(ParameterError, match=r"none of the CPUs of its pool 'Pool-0', 0-2"):
            setting.control.set_affinity(vcpu, hard=[3])
        setting.control.set_affinity(vcpu, hard=[0, 3])
        with pytest.raises(ParameterError, match="could run nowhere"):
            setting.control.move_core(0, "b")
        setting.control.set_anywhere(vcpu)
        setting.control.move_core(0, "b")

    def test_a_new_domain_is_placed_as_it_was_asked_for(self) -> None:
        setting = Setting()
        domain = setting.domains[0]
        for vcpu in domain.vcpus:
            setting.world.scheduler.remove(vcpu)
        with pytest.raises(ParameterError, match="no parameter 'weight'"):
            setting.control.admit(domain, Scheduling({"weight": 3}))
        with pytest.raises(ParameterError, match="no CPU 9"):
            setting.control.admit(domain, Scheduling(hard=[9]))
        assert all(vcpu not in setting.control.pools[0].vcpus for vcpu in domain.vcpus)
        setting.control.admit(domain, Scheduling(hard=[1], soft=[0, 1]))
        assert {vcpu.home for vcpu in domain.vcpus} == {1}


OPERATIONS = st.tuples(
    st.sampled_from(
        ("pool", "unpool", "core", "domain", "policy", "pin", "anywhere", "block", "wake", "run", "time"),
    ),
    st.integers(0, 5), st.integers(0, 5), st.integers(1, 20),
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(operations=st.lists(OPERATIONS, max_size=50))
def test_whatever_an_operator_does_the_books_stay_right(operations: list[tuple[str, int, int, int]]) -> None:
    setting = Setting(cores=5, domains=3)
    world, control, everyone = setting.world, setting.control, setting.everyone()
    begin = {vcpu: (sum(vcpu.runstate_times), vcpu.runstate_since) for vcpu in everyone}
    for kind, one, other, number in operations:
        vcpu = everyone[one]
        try:
            if kind == "pool":
                control.create_pool(f"p{number}", {one % 5, other % 5}, "rrobin", {"slice_ms": number})
            elif kind == "unpool":
                control.remove_pool(control.pools[one % len(control.pools)].id)
            elif kind == "core":
                control.move_core(one % 5, control.pools[other % len(control.pools)].id)
            elif kind == "domain":
                control.move_domain(vcpu.domain, control.pools[other % len(control.pools)].id)
            elif kind == "policy":
                pool = control.pools[other % len(control.pools)].id
                control.set_policy("rrobin", {"slice_ms": number}, pool)
            elif kind == "pin":
                control.set_affinity(vcpu, hard={other % 5, number % 5})
            elif kind == "anywhere":
                control.set_anywhere(vcpu)
        except ParameterError:
            pass
        if kind == "block":
            world.scheduler.hold(vcpu, PAUSE_BLOCKED)
        elif kind == "wake":
            world.scheduler.unblock(vcpu)
        elif kind == "run":
            world.run(world.cores[one % 5])
        elif kind == "time":
            world.advance(number * MS)
        world.between()
        owned = [core for pool in control.pools for core in pool.cores]
        assert sorted(owned) == [0, 1, 2, 3, 4]
        assert sorted(map(repr, everyone)) == sorted(repr(v) for pool in control.pools for v in pool.vcpus)
        for each in everyone:
            assert each.hard_affinity & world.scheduler.pools[each.pool].mask
            times = world.scheduler.runstate_info(each)[2]
            assert sum(times) - begin[each][0] == world.clock.now - begin[each][1]
    seen: set[VCpu] = set()
    for _ in range(len(everyone) + 1):
        for core, vcpu in setting.step().items():
            assert vcpu.runnable
            assert vcpu.hard_affinity >> core & 1
            assert core in world.scheduler.pools[vcpu.pool].cores
            seen.add(vcpu)
        world.advance(1000 * MS)
    assert seen == {vcpu for vcpu in everyone if vcpu.runnable}


@pytest.mark.parametrize(("written", "cpus"), [
    ("0", [0]), ("0-3", [0, 1, 2, 3]), ("1,3", [1, 3]), ("all", list(range(8))), ("all,^2-6", [0, 1, 7]),
    ("0-3,^2", [0, 1, 3]), (" 1 , 2 ", [1, 2]),
])
def test_cpu_lists_are_written_as_xl_takes_them(written: str, cpus: list[int]) -> None:
    assert cpu_list(written, 8) == cpus
    assert cpu_list(text(cpus), 8) == cpus
    assert members(sum(1 << cpu for cpu in cpus)) == cpus


@pytest.mark.parametrize("written", ["", "a", "1-", "-1", "3-1", "8", "0-8", "1;2", "²", "0,,1"])
def test_other_cpu_lists_are_refused(written: str) -> None:
    with pytest.raises(ParameterError, match="CPUs"):
        cpu_list(written, 8)
