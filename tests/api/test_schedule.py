"""Scheduling from the API and the command line: policies, shares, pins, pools, the schedule's trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from firmware.sched.control import Scheduling
from firmware.sched.parameters import ParameterError
from firmware.sched.policy import POLICIES
from firmware.trace import EVENTS, Trace
from xenpy import System
from xenpy.errors import BadInputError
from xenpy.schedule import chrome, timeline, write
from xenpy.system import Reason

Machine = Callable[..., System]


def test_two_guests_on_one_cpu_share_it(machine: Machine) -> None:
    system = machine(settings={"slice_ms": 1})
    guests = [system.add_domain("builtin:spin", name=name) for name in "ab"]
    system.run(within=0.1)
    running = [guest.runstates()["running"] for guest in guests]
    assert sum(running) == pytest.approx(100_000_000, rel=0.01)
    assert running[0] == pytest.approx(running[1], rel=0.05)
    assert all(sum(guest.runstates().values()) == pytest.approx(100_000_000, rel=0.01) for guest in guests)


def test_a_pinned_guest_and_a_pool(machine: Machine) -> None:
    system = machine(cpus=4)
    first = system.add_domain("builtin:spin", scheduling=Scheduling(hard=[2]))
    second = system.add_domain("builtin:spin")
    system.scheduling.create_pool("quiet", [3], "rrobin")
    second.move("quiet")
    system.run(within=0.01)
    scheduler = system.hypervisor.scheduler
    assert [None if who is None else who.domain.id for who in map(scheduler.running, range(4))] == [
        None, None, first.id, second.id]
    first.pin([1])
    system.run(within=0.01)
    assert scheduler.running(1) is not None
    with pytest.raises(ParameterError, match="no CPU 4"):
        first.pin([4])
    for number in (1, -1):
        with pytest.raises(ParameterError, match="has vCPUs 0 to 0"):
            first.pin([1], vcpu=number)
    with pytest.raises(ParameterError, match="no parameter 'weight'"):
        first.set_share(weight=3)
    assert first.share == {}


@pytest.mark.parametrize(("arguments", "said"), [
    ({"scheduler": "lottery"}, "no scheduler 'lottery'"),
    ({"settings": {"slice_ms": 0}}, "slice_ms is 1 to 1000 ms"),
    ({"settings": {"sli": 0}}, "no parameter 'sli'"),
])
def test_bad_schedulers_are_refused(machine: Machine, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        machine(**arguments)


def test_bad_shares_are_refused_and_leave_nothing(machine: Machine) -> None:
    system = machine()
    free = system.hypervisor.memory.heap.free
    wrong = Scheduling({"weight": 3}), Scheduling(hard=[1]), Scheduling(pool="b"), Scheduling(hard=[])
    for scheduling in wrong:
        with pytest.raises(BadInputError, match="cannot be scheduled"):
            system.add_domain("builtin:hello", scheduling=scheduling)
    assert system.hypervisor.memory.heap.free == free
    system.add_domain("builtin:hello").console.expect("Hello")


def test_guests_go_on_through_every_policy(machine: Machine) -> None:
    """Guests that compute, sleep, come and go, while their machine's scheduler changes every 10 ms."""
    system = machine(topology="1x2x2", settings={"slice_ms": 1})
    smp = system.add_domain("builtin:smp", vcpus=4)
    hog = system.add_domain("builtin:hog", vcpus=2, cmdline="rounds=6")
    sleeper = system.add_domain("builtin:sleeper", vcpus=2, cmdline="period=500 wakes=100")
    control = system.scheduling
    for name in (*POLICIES, *POLICIES):
        ran = sum(hog.runstates(number)["running"] for number in (0, 1))
        system.run(within=0.01)
        assert hog.ended or sum(hog.runstates(number)["running"] for number in (0, 1)) > ran, name
        control.set_policy(name)
    assert system.run(within=2).reason is Reason.ENDED
    assert "counter: 4000, missing 0" in smp.console.text
    assert "hog: 2 vCPUs, 12 rounds" in hog.console.text
    assert "sleeper: 200 wakes" in sleeper.console.text


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_machine_of_256_cpus_and_many_domains(machine: Machine, name: str) -> None:
    system = machine(topology="4x32x2", scheduler=name)
    share = Scheduling({"gang": False} if name == "gang" else {})
    guests = [system.add_domain("builtin:smp", name=f"smp{number}", memory=8, vcpus=16, scheduling=share)
              for number in range(2)]
    guests += [system.add_domain("builtin:hello", name=f"h{number}", memory=8) for number in range(14)]
    assert system.run(within=2).reason is Reason.ENDED
    assert all("Hello from" in guest.console.text for guest in guests[2:])
    assert all("counter: 16000, missing 0" in guest.console.text for guest in guests[:2])


class TestTrace:
    def traced(self, machine: Machine) -> System:
        system = machine(cpus=2)
        system.trace.start()
        system.add_domain("builtin:smp", vcpus=4)
        system.run()
        return system

    def test_what_it_says_is_what_happened(self, machine: Machine) -> None:
        system = self.traced(machine)
        spans: dict[tuple[int, int], list[tuple[float, float]]] = {}
        names = set()
        for entry in chrome(system.trace):
            if entry["ph"] == "X":
                spans.setdefault((entry["pid"], entry["tid"]), []).append((entry["ts"], entry["dur"]))
                names.add(entry["name"])
        for track in spans.values():
            for (start, length), (following, _) in pairwise(track):
                assert start + length <= following + 1e-6
        assert {"d1v0", "d1v1", "d1v2", "d1v3", "running", "blocked"} <= names
        busy = sum(length for (process, _), track in spans.items() if process == 1 for _, length in track)
        ran = sum(system.guests[0].runstates(number)["running"] for number in range(4)) / 1000
        assert busy == pytest.approx(ran, rel=0.1)

    def test_it_is_the_same_every_time(self, machine: Machine) -> None:
        one, other = (list(timeline(self.traced(machine).trace)) for _ in range(2))
        assert one == other
        assert any("SCHED_WAKE" in line for line in one)

    def test_files(self, machine: Machine, tmp_path: Path) -> None:
        system = self.traced(machine)
        write(system.trace, tmp_path / "s.json")
        entries = json.loads((tmp_path / "s.json").read_text())["traceEvents"]
        assert entries == list(chrome(system.trace))
        write(system.trace, tmp_path / "s.txt")
        assert len((tmp_path / "s.txt").read_text().splitlines()) == len(system.trace)
        with pytest.raises(BadInputError, match="json"):
            system.write_schedule(tmp_path / "s.png")
        with pytest.raises(BadInputError, match="cannot write"):
            write(system.trace, tmp_path / "none" / "s.txt")

    def test_what_goes_on_at_the_end_does_so_to_the_end(self, machine: Machine, tmp_path: Path) -> None:
        """A hog alone on its CPU: nothing happens that could be recorded."""
        system = machine(settings={"slice_ms": 1000})
        system.trace.start()
        system.add_domain("builtin:hog")
        system.run(within=0.05)
        system.write_schedule(tmp_path / "s.json")
        spans = [entry for entry in json.loads((tmp_path / "s.json").read_text())["traceEvents"]
                 if entry["ph"] == "X"]
        assert {entry["name"] for entry in spans} >= {"d1v0", "running"}
        for name in ("d1v0", "running"):
            ends = [entry["ts"] + entry["dur"] for entry in spans if entry["name"] == name]
            assert max(ends) == pytest.approx(50_000, abs=1)

    def test_a_full_ring_forgets_the_oldest(self) -> None:
        trace = Trace(records=4)
        trace.start()
        number = next(iter(EVENTS))
        for when in range(10):
            trace.record(number, 1, when, when)
        assert [record.when for record in trace] == [6, 7, 8, 9]
        assert (len(trace), trace.lost) == (4, 6)
