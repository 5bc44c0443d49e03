"""The API: build a machine, add guests, expect, send, run, look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from firmware.abi import xen
from firmware.domain.domain import DomainState
from firmware.hypercalls import GuestFault
from firmware.sched.control import Scheduling
from guests.assembler import ENTRY, VIRT_BASE
from guests.macros import kernel
from tests.cli import kernels
from xenpy import System
from xenpy.errors import BadInputError, ExpectTimeoutError
from xenpy.system import Reason

Machine = Callable[..., System]
NO_REASON = 200


def test_hello(machine: Machine) -> None:
    system = machine(cpus=2)
    guest = system.add_domain("builtin:hello")
    assert guest.state.value == "running"
    assert guest.console.expect("Hello from a (PV) guest")[1] == "PV"
    outcome = system.run()
    assert outcome.reason is Reason.ENDED
    assert outcome.virtual_ns == system.now_ns > 0
    assert guest.state.value == "poweroff"
    assert guest.ended
    assert guest.crash is None
    assert guest.crash_report == ""
    assert guest.console.log == b"Hello from a PV guest\n"
    assert system.run().reason is Reason.ENDED


def test_a_conversation(machine: Machine) -> None:
    system = machine()
    guest = system.add_domain(kernels.echo(), name="echo")
    guest.console.expect("q ends$")
    for word in ("one", "two"):
        guest.console.send(f"{word}\n")
        guest.console.expect(f"^{word}$", within=1)
    guest.console.send(b"q")
    assert system.run(within=1).reason is Reason.ENDED
    assert guest.console.text == f"echo: type, q ends\none\ntwo\nq\n{kernels.FAREWELL}\n"


def test_more_than_the_ring_can_hold(machine: Machine) -> None:
    system = machine()
    guest = system.add_domain(kernels.echo())
    guest.console.expect("q ends")
    text = "".join(f"line {number}\n" for number in range(600))
    guest.console.send(text + "q")
    assert guest.console.unread == len(text) + 1
    assert system.run(within=10).reason is Reason.ENDED
    assert text in guest.console.text
    assert guest.console.unread == 0


def test_expect_tells_what_it_saw_instead(machine: Machine) -> None:
    system = machine()
    guest = system.add_domain(kernels.spin_forever(), name="dull")
    before = system.now_ns
    with pytest.raises(ExpectTimeoutError, match=r"guest 'dull' did not say 'login:'.*\n*spinning"):
        guest.console.expect("login:", within=0.1)
    assert system.now_ns - before == pytest.approx(1e8, abs=1e6)


def test_expect_ends_with_the_guest(machine: Machine) -> None:
    guest = machine().add_domain("builtin:hello")
    with pytest.raises(ExpectTimeoutError, match="every guest has ended"):
        guest.console.expect("login:")


def test_expect_reads_on(machine: Machine) -> None:
    guest = machine().add_domain(kernels.flood())
    for _ in range(3):
        guest.console.expect("dull guest$", within=1)
    assert guest.console.text.count("dull guest") >= 3


def test_limits(machine: Machine) -> None:
    system = machine()
    guest = system.add_domain(kernels.spin_forever())
    assert system.run(within=0.01).reason is Reason.WITHIN
    assert system.run(wall=0.05).reason is Reason.WALL
    assert system.run(lambda: guest.console.said > 0).reason is Reason.CONDITION


def test_idle(machine: Machine) -> None:
    system = machine()
    guest = system.add_domain(kernels.sleep_forever())
    assert system.run().reason is Reason.IDLE
    assert guest.blocked
    assert guest.state is DomainState.RUNNING
    now = system.now_ns
    system.pass_time(2.5)
    assert system.run().reason is Reason.IDLE
    assert system.now_ns == now + 2_500_000_000


def test_every(machine: Machine) -> None:
    system = machine()
    system.add_domain(kernels.sleep_forever())
    seen: list[int] = []

    def look() -> bool:
        seen.append(system.now_ns)
        return len(seen) < 3

    system.every(1000, look)
    assert system.run().reason is Reason.IDLE
    assert seen == [1000, 2000, 3000]


def test_two_guests_beside_each_other(machine: Machine) -> None:
    system = machine()
    victim = system.add_domain(kernels.wild_jump(), name="victim")
    other = system.add_domain(kernels.echo(), name="other")
    assert (victim.id, other.id) == (1, 2)
    other.console.expect("q ends")
    system.run(lambda: victim.ended, within=1)
    assert victim.state is DomainState.CRASH
    assert not other.ended
    other.console.send("q")
    system.run(within=1)
    assert other.state is DomainState.POWEROFF


def test_a_crash(machine: Machine) -> None:
    system = machine()
    guest = system.add_domain(kernels.wild_jump(), name="victim")
    assert system.run(within=1).reason is Reason.ENDED
    assert guest.crash is not None
    assert guest.crash.registers["rip"] == 0x123456789000
    assert guest.crash_report.startswith("guest 'victim' crashed: ")


def test_a_crash_of_its_own(machine: Machine) -> None:
    """The report shows the vCPU that said so, and the call that did it."""
    system = machine()
    guest = system.add_domain(kernel("jmp crash"), vcpus=2)
    assert system.run(within=1).reason is Reason.ENDED
    assert guest.crash is not None
    assert (guest.crash.vcpu, guest.crash.recent_calls[-1].number) == (0, xen.__HYPERVISOR_sched_op)
    assert guest.crash.recent_calls[-1].result is None
    domain = system.hypervisor.lifecycle.domains[1]
    domain.state, domain.crash = DomainState.RUNNING, None
    with pytest.raises(ValueError, match="'the image' has not ended"):
        system.hypervisor.destroy_domain(domain)
    domain.shutdown_code = None
    system.hypervisor.lifecycle.shutdown(domain, NO_REASON, domain.vcpus[1])
    assert guest.crash.vcpu == 1
    assert guest.crash.reason.endswith(f"does not exist ({NO_REASON})")


def test_memory_and_frames(machine: Machine) -> None:
    system = machine()
    guest = system.add_domain(kernels.echo(), memory=16)
    guest.console.expect("q ends")
    image = kernels.echo()
    assert guest.read_virtual(ENTRY, 64) == image[ENTRY - VIRT_BASE + 4096:][:64]
    with pytest.raises(GuestFault):
        guest.read_virtual(0x123456789000, 8)
    rows = guest.frames
    assert len(rows) == 16 * 256 + 1  # and the shared_info page, which is Xen's
    assert {row.owner for row in rows} == {guest.id}
    assert guest.frame_types["l4"] == 1
    assert guest.frame_types["l1"] >= 1
    root = next(row for row in rows if row.type == "l4")
    assert root.validated
    assert root.references >= root.type_count >= 1
    assert system.frame(root.mfn) == root


def test_counters(machine: Machine) -> None:
    system = machine(profile=True, hash_blocks=True)
    system.add_domain("builtin:hello")
    system.run()
    stats = system.stats()
    assert stats.blocks > 0
    assert stats.virtual_ns == system.now_ns
    assert stats.hypercalls["event_channel_op"] >= 1
    assert stats.python_share is not None
    assert 0 < stats.python_share <= 1
    assert stats.block_hash is not None
    assert stats.blocks * 10 <= system.busy_ns <= system.now_ns


def test_the_same_run_twice(machine: Machine) -> None:
    hashes = set()
    for _ in range(2):
        system = machine(cpus=2, hash_blocks=True)
        for _ in range(3):
            system.add_domain("builtin:hello")
        system.run()
        hashes.add(system.stats().block_hash)
    assert len(hashes) == 1


def test_a_file_as_image(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "kernel-1.0"
    path.write_bytes(kernels.spin_forever())
    guest = machine().add_domain(path)
    assert guest.name == "kernel-1.0"


@pytest.mark.parametrize(("options", "said"), [
    ({"image": b"no kernel"}, "the image: "),
    ({"image": "/nowhere"}, "/nowhere: there is no such file"),
    ({"image": "builtin:nobody"}, "builtin:nobody"),
    ({"image": "builtin:hello", "memory": 1 << 20}, "memory"),
    ({"image": "builtin:hello", "vcpus": 0}, "vCPUs"),
    ({"image": "builtin:hello", "vcpus": 1000}, "vCPUs"),
    ({"image": "builtin:hello", "ramdisk": "/nowhere"}, "/nowhere"),
    ({"image": "builtin:hello", "memory": 4, "ramdisk": bytes(4 << 20)}, "need at least 8 MiB"),
])
def test_what_cannot_be_built(machine: Machine, options: dict[str, object], said: str) -> None:
    system = machine(memory=64)
    with pytest.raises(BadInputError, match=said):
        system.add_domain(**options)  # type: ignore[arg-type]
    assert system.guests == []
    survivor = system.add_domain("builtin:hello", memory=16)
    system.run(within=1)
    assert survivor.state is DomainState.POWEROFF


def test_a_destroyed_guest_leaves_room(machine: Machine) -> None:
    system = machine(scheduler="rtds", memory=128)
    free = system.hypervisor.memory.heap.free
    share = Scheduling({"period_us": 10_000, "budget_us": 6_000})
    first = system.add_domain("builtin:hog", name="first", memory=64, scheduling=share)
    system.run(within=0.01)
    with pytest.raises(BadInputError, match="cannot be scheduled"):
        system.add_domain("builtin:hog", memory=32, scheduling=share)
    first.destroy()
    first.destroy()
    assert (first.ended, system.guests, system.hypervisor.memory.heap.free) == (True, [], free)
    second = system.add_domain("builtin:hello", memory=64, scheduling=share)
    assert second.id != first.id
    assert system.run().reason is Reason.ENDED
    assert second.console.text == "Hello from a PV guest\n"
    second.destroy()
    assert second.console.text == "Hello from a PV guest\n"
    assert system.hypervisor.memory.heap.free == free


@pytest.mark.parametrize("name", ["echo", "sleeper", "smp", "yields"])
def test_destroying_a_guest_in_the_middle_leaves_its_neighbour_alone(machine: Machine, name: str) -> None:
    system = machine(cpus=2)
    free = system.hypervisor.memory.heap.free
    victim = system.add_domain(f"builtin:{name}", vcpus=2)
    neighbour = system.add_domain("builtin:sleeper", vcpus=2, cmdline="wakes=20")
    system.run(within=0.0005)
    victim.destroy()
    assert system.run(within=1).reason is Reason.ENDED
    assert neighbour.console.text.endswith("sleeper: done\n")
    neighbour.destroy()
    assert system.hypervisor.memory.heap.free == free
