"""Timers: single-shot, periodic and the time-out of a poll, and the hypercall that polls."""

from __future__ import annotations

import pytest

from firmware.abi import sched, xen
from firmware.abi import vcpu as vcpu_abi
from firmware.abi.errno import EFAULT, EINVAL, ENOSYS, EPERM, ESRCH
from firmware.domain.vcpu import DEFAULT_PERIOD, PAUSE_BLOCKED, PAUSE_POLLING, VCpu
from firmware.sched.ops import ALL_TAKEN
from firmware.timers import FAR_FUTURE, LONGEST_PERIOD, MILLISECOND, WRAPPED_DELAY
from tests.firmware.test_events import forget, ipi, mask, virq
from tests.firmware.world import BAD_POINTERS, BASE, HOLE, NON_CANONICAL, XEN_ADDRESS, World, core_of, runs

SECOND = 1_000_000_000
EARLIER = 5 * MILLISECOND


@pytest.fixture
def world() -> World:
    world = World()
    world.advance(EARLIER)
    return world


@pytest.fixture
def vcpu(world: World) -> VCpu:
    vcpu = world.domain(1, vcpus=2).vcpus[0]
    assert virq(world, vcpu, xen.VIRQ_TIMER) == (0, 1)
    return vcpu


def ticked(world: World, vcpu: VCpu) -> bool:
    """Whether its timer's event came since the last look."""
    came = bool(vcpu.domain.events.is_pending(1))
    if came:
        where = vcpu.domain.shared_info + xen.shared_info.w64.offset["evtchn_pending"]
        world.memory.store8(where, 0)
        forget(world, vcpu)
    return came


def single_shot(world: World, vcpu: VCpu, when: int, flags: int = 0) -> int:
    at = world.poke(vcpu, vcpu_abi.vcpu_set_singleshot_timer.w64.pack(timeout_abs_ns=when, flags=flags))
    return world.timers.set_single_shot(vcpu, at)


class TestSetTimer:
    def test_fires_once_at_its_time(self, world: World, vcpu: VCpu) -> None:
        assert world.call(vcpu, "set_timer_op", EARLIER + 100) == 0
        assert core_of(vcpu).deadline <= EARLIER + 100, "the running slice ends in time"
        world.advance(99)
        assert not ticked(world, vcpu)
        world.advance(1)
        assert ticked(world, vcpu)
        world.advance(SECOND)
        assert not ticked(world, vcpu)

    def test_zero_stops_it_and_another_replaces_it(self, world: World, vcpu: VCpu) -> None:
        world.call(vcpu, "set_timer_op", EARLIER + 100)
        assert world.call(vcpu, "set_timer_op", 0) == 0
        world.advance(1000)
        assert not ticked(world, vcpu)
        world.call(vcpu, "set_timer_op", EARLIER + 2000)
        world.call(vcpu, "set_timer_op", EARLIER + 3000)
        world.advance(1500)
        assert not ticked(world, vcpu)
        world.advance(1000)
        assert ticked(world, vcpu)

    def test_the_past_is_now(self, world: World, vcpu: VCpu) -> None:
        world.call(vcpu, "set_timer_op", 1)
        world.advance(0)
        assert ticked(world, vcpu)

    @pytest.mark.parametrize("wrapped", [1 << 63, (1 << 64) - 1, EARLIER + FAR_FUTURE])
    def test_wrapped_values_come_in_100_ms(self, world: World, vcpu: VCpu, wrapped: int) -> None:
        assert world.call(vcpu, "set_timer_op", wrapped) == 0
        world.advance(WRAPPED_DELAY - 1)
        assert not ticked(world, vcpu)
        world.advance(1)
        assert ticked(world, vcpu)

    def test_the_furthest_that_is_taken_as_said(self, world: World, vcpu: VCpu) -> None:
        assert world.call(vcpu, "set_timer_op", EARLIER + FAR_FUTURE - 1) == 0
        world.advance(WRAPPED_DELAY)
        assert not ticked(world, vcpu)

    def test_a_32_bit_guest_passes_two_halves(self, world: World) -> None:
        vcpu = world.domain(2, pv32=True).vcpus[0]
        virq(world, vcpu, xen.VIRQ_TIMER)
        when = 5 << 32
        assert world.call(vcpu, "set_timer_op", when & 0xFFFF_FFFF, when >> 32) == 0
        world.advance(when - world.clock.now - 1)
        assert not vcpu.domain.events.is_pending(1)
        world.advance(1)
        assert vcpu.domain.events.is_pending(1)


class TestSingleShot:
    def test_fires_at_its_time(self, world: World, vcpu: VCpu) -> None:
        assert single_shot(world, vcpu, EARLIER + 10, vcpu_abi.VCPU_SSHOTTMR_future) == 0
        world.advance(10)
        assert ticked(world, vcpu)

    @pytest.mark.parametrize("flags", [0, vcpu_abi.VCPU_SSHOTTMR_future])
    @pytest.mark.parametrize("when", [0, 1, EARLIER - 1, 1 << 63, (1 << 64) - 1])
    def test_a_time_in_the_past_raises_the_event_at_once(
        self, world: World, vcpu: VCpu, when: int, flags: int
    ) -> None:
        assert single_shot(world, vcpu, when, flags) == 0
        assert ticked(world, vcpu)

    def test_stopped(self, world: World, vcpu: VCpu) -> None:
        single_shot(world, vcpu, EARLIER + 10)
        world.timers.stop_single_shot(vcpu)
        world.advance(20)
        assert not ticked(world, vcpu)


class TestPeriodic:
    def period(self, world: World, vcpu: VCpu, ns: int, target: VCpu | None = None) -> int:
        at = world.poke(vcpu, vcpu_abi.vcpu_set_periodic_timer.w64.pack(period_ns=ns))
        return world.timers.set_periodic(vcpu, target or vcpu, at)

    @pytest.mark.parametrize(
        ("ns", "expected"),
        [
            (0, -EINVAL),
            (MILLISECOND - 1, -EINVAL),
            (MILLISECOND, 0),
            (LONGEST_PERIOD, 0),
            (LONGEST_PERIOD + 1, -EINVAL),
            ((1 << 64) - 1, -EINVAL),
        ],
    )
    def test_periods(self, world: World, vcpu: VCpu, ns: int, expected: int) -> None:
        assert self.period(world, vcpu, ns) == expected

    def test_ticks_until_stopped(self, world: World, vcpu: VCpu) -> None:
        self.period(world, vcpu, 2 * MILLISECOND)
        for _ in range(4):
            world.advance(2 * MILLISECOND - 1)
            assert not ticked(world, vcpu)
            world.advance(1)
            assert ticked(world, vcpu)
        world.timers.stop_periodic(vcpu)
        world.advance(10 * MILLISECOND)
        assert not ticked(world, vcpu)

    def test_does_not_wake_a_blocked_vcpu_and_comes_when_it_runs(self, world: World, vcpu: VCpu) -> None:
        self.period(world, vcpu, 2 * MILLISECOND)
        world.scheduler.hold(vcpu, PAUSE_BLOCKED)
        world.run(vcpu.core)
        world.advance(7 * MILLISECOND)
        assert not ticked(world, vcpu)
        assert not runs(vcpu)
        world.scheduler.unblock(vcpu)
        world.run(vcpu.core)
        assert ticked(world, vcpu)
        world.advance(2 * MILLISECOND)
        assert ticked(world, vcpu)

    def test_a_vcpu_begins_with_100_hz(self, world: World) -> None:
        assert VCpu(world.domain(2), 0).period_ns == DEFAULT_PERIOD == 10 * MILLISECOND


def poll(
    world: World, vcpu: VCpu, *ports: int, timeout: int = 0, count: int | None = None, at: int | None = None
) -> int:
    """SCHEDOP_poll; the ports lie behind the structure."""
    if ports:
        world.poke(vcpu, b"".join(port.to_bytes(4, "little") for port in ports), BASE + 64)
    layout = sched.sched_poll.w64
    world.poke(
        vcpu,
        layout.pack(
            ports=BASE + 64 if at is None else at,
            nr_ports=len(ports) if count is None else count,
            timeout=timeout,
        ),
    )
    return world.call(vcpu, "sched_op", sched.SCHEDOP_poll, BASE)


class TestPoll:
    def test_ends_by_its_port_even_masked(self, world: World, vcpu: VCpu) -> None:
        port, other = ipi(world, vcpu), ipi(world, vcpu)
        mask(world, vcpu.domain, port)
        assert poll(world, vcpu, port) == 0
        assert vcpu.pause_flags == PAUSE_POLLING
        vcpu.domain.events.raise_port(other)
        assert not runs(vcpu) or world.byte(vcpu.info)

    def test_one_port_hears_only_that(self, world: World, vcpu: VCpu) -> None:
        port, other = ipi(world, vcpu), ipi(world, vcpu)
        for number in (port, other):
            mask(world, vcpu.domain, number)
        poll(world, vcpu, port)
        vcpu.domain.events.raise_port(other)
        assert not runs(vcpu)
        vcpu.domain.events.raise_port(port)
        assert runs(vcpu)
        assert not vcpu.domain.events.polling

    @pytest.mark.parametrize("several", [(), (2, 3)])
    def test_several_or_none_hear_any(self, world: World, vcpu: VCpu, several: tuple[int, ...]) -> None:
        for _ in range(3):
            mask(world, vcpu.domain, ipi(world, vcpu))
        poll(world, vcpu, *several)
        assert not runs(vcpu)
        vcpu.domain.events.raise_port(4)
        assert runs(vcpu)

    def test_times_out(self, world: World, vcpu: VCpu) -> None:
        poll(world, vcpu, ipi(world, vcpu), timeout=EARLIER + 50)
        world.advance(49)
        assert not runs(vcpu)
        world.advance(1)
        assert runs(vcpu)
        assert vcpu.poll_timer is None

    def test_an_event_cancels_the_time_out(self, world: World, vcpu: VCpu) -> None:
        port = ipi(world, vcpu)
        poll(world, vcpu, port, timeout=EARLIER + 50)
        vcpu.domain.events.raise_port(port)
        world.scheduler.hold(vcpu, PAUSE_BLOCKED)
        world.advance(100)
        assert not runs(vcpu)

    def test_returns_at_once_for_what_is_pending(self, world: World, vcpu: VCpu) -> None:
        port = ipi(world, vcpu)
        vcpu.domain.events.raise_port(port)
        assert poll(world, vcpu, port) == 0
        assert runs(vcpu)
        world.memory.store8(vcpu.info + 1, 0)
        assert poll(world, vcpu, at=HOLE, count=1) == 0, "an upcall is due: the ports are not even looked at"
        assert runs(vcpu)

    def test_errors(self, world: World, vcpu: VCpu) -> None:
        assert poll(world, vcpu, at=HOLE, count=129) == -EINVAL
        assert poll(world, vcpu, at=HOLE, count=1) == -EFAULT
        assert poll(world, vcpu, at=XEN_ADDRESS, count=1) == -EFAULT
        assert poll(world, vcpu, at=NON_CANONICAL - 2, count=1) == -EFAULT
        assert poll(world, vcpu, 4095) == -EINVAL
        assert runs(vcpu)
        for pointer in BAD_POINTERS:
            assert world.call(vcpu, "sched_op", sched.SCHEDOP_poll, pointer) == -EFAULT


class TestSchedOp:
    def test_block_unmasks_and_sleeps_until_an_event(self, world: World, vcpu: VCpu) -> None:
        assert world.call(vcpu, "sched_op", sched.SCHEDOP_block, 0) == 0
        assert vcpu.pause_flags == PAUSE_BLOCKED
        assert world.byte(vcpu.info + 1) == 0
        vcpu.domain.events.raise_port(ipi(world, vcpu))
        assert runs(vcpu)

    def test_block_with_an_event_goes_on(self, world: World, vcpu: VCpu) -> None:
        vcpu.domain.events.raise_port(ipi(world, vcpu))
        assert world.call(vcpu, "sched_op_compat", sched.SCHEDOP_block, 0) == 0
        assert runs(vcpu)
        assert world.byte(vcpu.info + 1) == 0

    def test_yield_costs_time(self, world: World, vcpu: VCpu) -> None:
        assert world.call(vcpu, "sched_op", sched.SCHEDOP_yield, 0) == 0
        assert core_of(vcpu).charged > 0

    def test_shutdown_takes_the_low_byte(self, world: World, vcpu: VCpu) -> None:
        at = world.poke(vcpu, sched.sched_shutdown.w64.pack(reason=0x1_02))
        assert world.call(vcpu, "sched_op", sched.SCHEDOP_shutdown, at) == 0
        assert world.call(vcpu, "sched_op_compat", sched.SCHEDOP_shutdown, 0x303) == 0
        assert world.ends.shutdowns == [2, 3]

    def test_the_first_shutdown_code_counts(self, world: World, vcpu: VCpu) -> None:
        for reason in (1, 3):
            at = world.poke(vcpu, sched.sched_shutdown.w64.pack(reason=reason))
            assert world.call(vcpu, "sched_op", sched.SCHEDOP_shutdown_code, at) == 0
        assert vcpu.domain.shutdown_code == 1

    def test_others(self, world: World, vcpu: VCpu) -> None:
        world.domain(2)
        for domid, expected in ((2, -EPERM), (77, -ESRCH)):
            at = world.poke(vcpu, sched.sched_remote_shutdown.w64.pack(domain_id=domid))
            assert world.call(vcpu, "sched_op", sched.SCHEDOP_remote_shutdown, at) == expected
        assert world.call(vcpu, "sched_op", sched.SCHEDOP_pin_override, HOLE) == -EPERM
        assert [world.call(vcpu, "sched_op", number, 0) for number in (8, 99, (1 << 32) - 1)] == [-ENOSYS] * 3
        assert world.call(vcpu, "sched_op_compat", sched.SCHEDOP_poll, 0) == -ENOSYS
        for command in (
            sched.SCHEDOP_shutdown,
            sched.SCHEDOP_shutdown_code,
            sched.SCHEDOP_watchdog,
            sched.SCHEDOP_remote_shutdown,
        ):
            assert world.call(vcpu, "sched_op", command, HOLE) == -EFAULT


class TestWatchdogs:
    def set(self, world: World, vcpu: VCpu, number: int, timeout: int) -> int:
        at = world.poke(vcpu, sched.sched_watchdog.w64.pack(id=number, timeout=timeout))
        return world.call(vcpu, "sched_op", sched.SCHEDOP_watchdog, at)

    def test_life(self, world: World, vcpu: VCpu) -> None:
        assert self.set(world, vcpu, 1, 5) == -EINVAL, "not in use"
        assert (self.set(world, vcpu, 0, 2), self.set(world, vcpu, 0, 9)) == (1, 2)
        assert self.set(world, vcpu, 0, 1) == ALL_TAKEN == 0xFFFF_FFE4
        assert self.set(world, vcpu, 3, 1) == -EINVAL
        world.advance(SECOND)
        assert self.set(world, vcpu, 1, 2) == 0
        world.advance(2 * SECOND - 1)
        assert world.ends.shutdowns == []
        world.advance(1)
        assert world.ends.shutdowns == [sched.SHUTDOWN_watchdog]

    def test_stopped(self, world: World, vcpu: VCpu) -> None:
        self.set(world, vcpu, 0, 2)
        assert self.set(world, vcpu, 1, 0) == 0
        assert self.set(world, vcpu, 1, 0) == -EINVAL
        self.set(world, vcpu, 0, 3)
        world.sched_ops.forget(vcpu.domain)
        world.advance(10 * SECOND)
        assert world.ends.shutdowns == []

    def test_a_new_one_of_no_time_is_due(self, world: World, vcpu: VCpu) -> None:
        assert self.set(world, vcpu, 0, 0) == 1
        world.advance(0)
        assert world.ends.shutdowns == [sched.SHUTDOWN_watchdog]
