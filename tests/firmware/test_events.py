"""Event channels: every operation, every error, and who learns of an event."""

from __future__ import annotations

import random
from typing import Any

import pytest

from firmware.abi import event_channel as ec
from firmware.abi import xen
from firmware.abi.errno import EEXIST, EFAULT, EINVAL, ENOENT, ENOSPC, ENOSYS, EPERM, ESRCH
from firmware.domain.domain import Domain
from firmware.domain.vcpu import PAUSE_BLOCKED, VCpu
from firmware.events import BUCKET, State
from tests.firmware.world import AFTER, BAD_POINTERS, BASE, RO_PAGE, World

NOBODY = 77


def op(world: World, vcpu: VCpu, command: int, layout: Any, /, **fields: int) -> tuple[int, Any]:
    """An operation and its structure afterwards."""
    at = world.poke(vcpu, layout.w64.pack(**fields))
    result = world.call(vcpu, "event_channel_op", command, at)
    return result, vcpu.space.unpack(at, layout.w64)


def unbound(world: World, vcpu: VCpu, remote: int = xen.DOMID_SELF) -> int:
    result, answer = op(
        world, vcpu, ec.EVTCHNOP_alloc_unbound, ec.evtchn_alloc_unbound, dom=xen.DOMID_SELF, remote_dom=remote
    )
    assert result == 0
    return int(answer.port)


def ipi(world: World, vcpu: VCpu, target: int = 0) -> int:
    result, answer = op(world, vcpu, ec.EVTCHNOP_bind_ipi, ec.evtchn_bind_ipi, vcpu=target)
    assert result == 0
    return int(answer.port)


def virq(world: World, vcpu: VCpu, number: int, target: int = 0) -> tuple[int, int]:
    result, answer = op(world, vcpu, ec.EVTCHNOP_bind_virq, ec.evtchn_bind_virq, virq=number, vcpu=target)
    return result, answer.port


def simple(world: World, vcpu: VCpu, command: int, port: int) -> int:
    return op(world, vcpu, command, ec.evtchn_send, port=port)[0]


def status(world: World, vcpu: VCpu, port: int, dom: int = xen.DOMID_SELF) -> tuple[int, Any]:
    return op(world, vcpu, ec.EVTCHNOP_status, ec.evtchn_status, dom=dom, port=port, status=99, vcpu=99)


def mask(world: World, domain: Domain, port: int, on: bool = True) -> None:
    offset = (xen.shared_info.w32 if domain.pv32 else xen.shared_info.w64).offset["evtchn_mask"]
    where = domain.shared_info + offset + (port >> 3)
    bits = world.byte(where)
    world.memory.store8(where, bits | 1 << (port & 7) if on else bits & ~(1 << (port & 7)))


def selector(world: World, vcpu: VCpu) -> int:
    layout = xen.vcpu_info.w32 if vcpu.domain.pv32 else xen.vcpu_info.w64
    width = 4 if vcpu.domain.pv32 else 8
    return int.from_bytes(world.memory.read(vcpu.info + layout.offset["evtchn_pending_sel"], width), "little")


def forget(world: World, vcpu: VCpu) -> None:
    """As a guest does on an upcall: the pending byte, then the selector."""
    layout = xen.vcpu_info.w32 if vcpu.domain.pv32 else xen.vcpu_info.w64
    world.memory.store8(vcpu.info, 0)
    world.memory.fill(vcpu.info + layout.offset["evtchn_pending_sel"], 4 if vcpu.domain.pv32 else 8)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def vcpu(world: World) -> VCpu:
    return world.domain(1, vcpus=3).vcpus[0]


class TestAllocation:
    def test_ports_are_the_lowest_free_from_one_on(self, world: World, vcpu: VCpu) -> None:
        assert [unbound(world, vcpu) for _ in range(3)] == [1, 2, 3]
        assert simple(world, vcpu, ec.EVTCHNOP_close, 2) == 0
        assert ipi(world, vcpu) == 2
        assert ipi(world, vcpu) == 4

    @pytest.mark.parametrize(("pv32", "limit"), [(False, 4096), (True, 1024)])
    def test_the_2_level_abi_has_so_many(self, world: World, pv32: bool, limit: int) -> None:
        vcpu = world.domain(2, pv32=pv32).vcpus[0]
        assert [ipi(world, vcpu) for _ in range(limit - 1)] == list(range(1, limit))
        for command, layout in (
            (ec.EVTCHNOP_bind_ipi, ec.evtchn_bind_ipi),
            (ec.EVTCHNOP_bind_virq, ec.evtchn_bind_virq),
        ):
            assert op(world, vcpu, command, layout)[0] == -ENOSPC
        assert simple(world, vcpu, ec.EVTCHNOP_close, 700) == 0
        assert unbound(world, vcpu) == 700

    def test_whom_it_may_be_for(self, world: World, vcpu: VCpu) -> None:
        world.domain(2)
        for dom, expected in ((1, 0), (xen.DOMID_SELF, 0), (2, -EPERM), (0, -EPERM), (NOBODY, -ESRCH)):
            assert (
                op(world, vcpu, ec.EVTCHNOP_alloc_unbound, ec.evtchn_alloc_unbound, dom=dom, remote_dom=2)[0]
                == expected
            )


class TestInterdomain:
    def test_two_domains_talk(self, world: World, vcpu: VCpu) -> None:
        other = world.domain(2).vcpus[0]
        offered = unbound(world, vcpu, 2)
        result, answer = op(
            world,
            other,
            ec.EVTCHNOP_bind_interdomain,
            ec.evtchn_bind_interdomain,
            remote_dom=1,
            remote_port=offered,
        )
        assert result == 0
        assert other.domain.events.is_pending(answer.local_port), "an event may have been lost before"
        forget(world, other)
        assert simple(world, other, ec.EVTCHNOP_send, answer.local_port) == 0
        assert vcpu.domain.events.is_pending(offered)
        assert world.byte(vcpu.info) == 1
        result, state = status(world, other, answer.local_port)
        assert (result, state.status, state.vcpu) == (0, ec.EVTCHNSTAT_interdomain, 0)
        assert int.from_bytes(state.u[:2], "little") == 1
        assert int.from_bytes(state.u[4:8], "little") == offered

    def test_closing_one_end_leaves_the_other_unbound(self, world: World, vcpu: VCpu) -> None:
        other = world.domain(2).vcpus[0]
        offered = unbound(world, vcpu, 2)
        _, answer = op(
            world,
            other,
            ec.EVTCHNOP_bind_interdomain,
            ec.evtchn_bind_interdomain,
            remote_dom=1,
            remote_port=offered,
        )
        assert simple(world, other, ec.EVTCHNOP_close, answer.local_port) == 0
        _, state = status(world, vcpu, offered)
        assert state.status == ec.EVTCHNSTAT_unbound
        assert int.from_bytes(state.u[:2], "little") == 2
        assert simple(world, vcpu, ec.EVTCHNOP_send, offered) == 0

    def test_what_cannot_be_bound_to(self, world: World, vcpu: VCpu) -> None:
        world.domain(2)
        mine, bound = unbound(world, vcpu, 2), ipi(world, vcpu)
        bind = (ec.EVTCHNOP_bind_interdomain, ec.evtchn_bind_interdomain)
        for dom, port, expected in (
            (NOBODY, 1, -ESRCH),
            (0, 1, -EINVAL),
            (2, 1, -EINVAL),
            (1, mine, -EINVAL),
            (1, bound, -EINVAL),
            (1, 0, -EINVAL),
            (1, 1 << 31, -EINVAL),
        ):
            assert op(world, vcpu, *bind, remote_dom=dom, remote_port=port)[0] == expected, (dom, port)

    def test_a_port_of_the_backend_calls_it(self, world: World, vcpu: VCpu) -> None:
        heard: list[int] = []
        port = vcpu.domain.events.connect_backend(lambda: heard.append(1))
        assert simple(world, vcpu, ec.EVTCHNOP_send, port) == 0
        assert heard == [1]
        assert simple(world, vcpu, ec.EVTCHNOP_close, port) == 0
        assert simple(world, vcpu, ec.EVTCHNOP_send, port) == -EINVAL
        assert heard == [1]


class TestVirqs:
    def test_one_port_a_vcpu(self, world: World, vcpu: VCpu) -> None:
        assert virq(world, vcpu, xen.VIRQ_TIMER) == (0, 1)
        assert virq(world, vcpu, xen.VIRQ_TIMER)[0] == -EEXIST
        assert virq(world, vcpu, xen.VIRQ_TIMER, 2) == (0, 2)
        _, state = status(world, vcpu, 2)
        assert (state.status, state.vcpu, int.from_bytes(state.u[:4], "little")) == (ec.EVTCHNSTAT_virq, 2, 0)
        assert simple(world, vcpu, ec.EVTCHNOP_close, 1) == 0
        assert virq(world, vcpu, xen.VIRQ_TIMER) == (0, 1)

    @pytest.mark.parametrize("number", range(xen.NR_VIRQS))
    def test_global_ones_are_vcpu_zeros(self, world: World, vcpu: VCpu, number: int) -> None:
        own = number in (xen.VIRQ_TIMER, xen.VIRQ_DEBUG, xen.VIRQ_XENOPROF, xen.VIRQ_XENPMU)
        assert virq(world, vcpu, number, 1)[0] == (0 if own else -EINVAL)
        assert virq(world, vcpu, number)[0] == 0

    def test_errors(self, world: World, vcpu: VCpu) -> None:
        assert virq(world, vcpu, xen.NR_VIRQS)[0] == -EINVAL
        assert virq(world, vcpu, (1 << 32) - 1)[0] == -EINVAL
        assert virq(world, vcpu, xen.VIRQ_TIMER, 3)[0] == -ENOENT
        assert op(world, vcpu, ec.EVTCHNOP_bind_ipi, ec.evtchn_bind_ipi, vcpu=3)[0] == -ENOENT

    def test_an_unbound_virq_goes_nowhere(self, world: World, vcpu: VCpu) -> None:
        vcpu.domain.events.send_virq(vcpu, xen.VIRQ_TIMER)
        assert world.byte(vcpu.info) == 0


class TestPorts:
    def test_states_of_ports_that_are_not_open(self, world: World, vcpu: VCpu) -> None:
        for port in (0, 1, BUCKET - 1):
            result, state = status(world, vcpu, port)
            assert (result, state.status, state.vcpu) == (0, ec.EVTCHNSTAT_closed, 0)
            assert simple(world, vcpu, ec.EVTCHNOP_close, port) == -EINVAL
            assert simple(world, vcpu, ec.EVTCHNOP_send, port) == -EINVAL
            assert simple(world, vcpu, ec.EVTCHNOP_unmask, port) == 0
        for port in (BUCKET, 4096, 1 << 31, (1 << 32) - 1):
            for command in (ec.EVTCHNOP_status, ec.EVTCHNOP_close, ec.EVTCHNOP_send, ec.EVTCHNOP_unmask):
                layout = ec.evtchn_status if command == ec.EVTCHNOP_status else ec.evtchn_send
                fields = {"dom": xen.DOMID_SELF} if command == ec.EVTCHNOP_status else {}
                assert op(world, vcpu, command, layout, port=port, **fields)[0] == -EINVAL

    def test_status_of_others(self, world: World, vcpu: VCpu) -> None:
        world.domain(2)
        assert [status(world, vcpu, 1, dom)[0] for dom in (1, 2, 0, NOBODY)] == [0, -EPERM, -EPERM, -ESRCH]

    def test_where_a_port_notifies(self, world: World, vcpu: VCpu) -> None:
        port, timer, debug = (
            unbound(world, vcpu),
            virq(world, vcpu, xen.VIRQ_TIMER)[1],
            virq(world, vcpu, xen.VIRQ_CONSOLE)[1],
        )
        inter = ipi(world, vcpu)

        def move(number: int, target: int) -> int:
            return op(world, vcpu, ec.EVTCHNOP_bind_vcpu, ec.evtchn_bind_vcpu, port=number, vcpu=target)[0]

        assert [move(number, 1) for number in (port, debug, timer, inter, 0, 63)] == [0, 0] + [-EINVAL] * 4
        assert move(port, 3) == -ENOENT
        assert move(1 << 20, 3) == -ENOENT
        vcpu.domain.events.raise_port(port)
        assert (world.byte(vcpu.info), world.byte(vcpu.domain.vcpus[1].info)) == (0, 1)
        simple(world, vcpu, ec.EVTCHNOP_close, port)
        assert vcpu.domain.events.ports[port].vcpu == 0

    def test_closing_drops_what_is_pending(self, world: World, vcpu: VCpu) -> None:
        port = ipi(world, vcpu)
        simple(world, vcpu, ec.EVTCHNOP_send, port)
        assert vcpu.domain.events.is_pending(port)
        simple(world, vcpu, ec.EVTCHNOP_close, port)
        assert not vcpu.domain.events.is_pending(port)

    def test_reset_closes_all(self, world: World, vcpu: VCpu) -> None:
        other = world.domain(2).vcpus[0]
        vcpu.domain.events.connect_backend(lambda: None)
        offered = unbound(world, other, 1)
        op(
            world,
            vcpu,
            ec.EVTCHNOP_bind_interdomain,
            ec.evtchn_bind_interdomain,
            remote_dom=2,
            remote_port=offered,
        )
        virq(world, vcpu, xen.VIRQ_TIMER)
        reset = (ec.EVTCHNOP_reset, ec.evtchn_reset)
        assert [op(world, vcpu, *reset, dom=dom)[0] for dom in (2, 0, NOBODY)] == [-EPERM, -EPERM, -ESRCH]
        assert op(world, vcpu, *reset, dom=xen.DOMID_SELF)[0] == 0
        assert {port.state for port in vcpu.domain.events.ports} == {State.FREE}
        assert not vcpu.virqs
        assert other.domain.events.ports[offered].state is State.UNBOUND

    def test_physical_interrupts_and_priorities_are_not_there(self, world: World, vcpu: VCpu) -> None:
        assert op(world, vcpu, ec.EVTCHNOP_bind_pirq, ec.evtchn_bind_pirq, pirq=1 << 20)[0] == -EINVAL
        assert op(world, vcpu, ec.EVTCHNOP_set_priority, ec.evtchn_set_priority, port=1)[0] == -ENOSYS
        assert op(world, vcpu, ec.EVTCHNOP_set_priority, ec.evtchn_set_priority, port=4095)[0] == -EINVAL
        for command in (ec.EVTCHNOP_init_control, ec.EVTCHNOP_expand_array, 14, 99, (1 << 32) - 1):
            assert world.call(vcpu, "event_channel_op", command, BASE) == -ENOSYS


class TestDelivery:
    @pytest.mark.parametrize(
        ("pv32", "port", "word"),
        [(False, 63, 0), (False, 64, 1), (False, 4095, 63), (True, 31, 0), (True, 32, 1), (True, 1023, 31)],
    )
    def test_the_selector_has_a_bit_a_word(self, world: World, pv32: bool, port: int, word: int) -> None:
        vcpu = world.domain(2, pv32=pv32).vcpus[0]
        while ipi(world, vcpu) != port:
            pass
        assert simple(world, vcpu, ec.EVTCHNOP_send, port) == 0
        assert selector(world, vcpu) == 1 << word
        assert world.byte(vcpu.info) == 1

    def test_a_masked_port_is_only_pending(self, world: World, vcpu: VCpu) -> None:
        port = ipi(world, vcpu)
        mask(world, vcpu.domain, port)
        simple(world, vcpu, ec.EVTCHNOP_send, port)
        assert (vcpu.domain.events.is_pending(port), selector(world, vcpu), world.byte(vcpu.info)) == (
            True,
            0,
            0,
        )
        assert simple(world, vcpu, ec.EVTCHNOP_unmask, port) == 0
        assert (vcpu.domain.events.is_masked(port), selector(world, vcpu), world.byte(vcpu.info)) == (
            False,
            1,
            1,
        )

    def test_an_event_already_pending_is_not_told_again(self, world: World, vcpu: VCpu) -> None:
        first, second = ipi(world, vcpu), ipi(world, vcpu)
        simple(world, vcpu, ec.EVTCHNOP_send, first)
        forget(world, vcpu)
        simple(world, vcpu, ec.EVTCHNOP_send, first)
        assert (selector(world, vcpu), world.byte(vcpu.info)) == (0, 0)
        simple(world, vcpu, ec.EVTCHNOP_send, second)
        assert (selector(world, vcpu), world.byte(vcpu.info)) == (1, 1)

    def test_a_selected_word_is_not_told_again(self, world: World, vcpu: VCpu) -> None:
        first, second = ipi(world, vcpu), ipi(world, vcpu)
        simple(world, vcpu, ec.EVTCHNOP_send, first)
        world.memory.store8(vcpu.info, 0)
        simple(world, vcpu, ec.EVTCHNOP_send, second)
        assert world.byte(vcpu.info) == 0

    def test_unmasking_what_is_not_masked_does_nothing(self, world: World, vcpu: VCpu) -> None:
        port = ipi(world, vcpu)
        simple(world, vcpu, ec.EVTCHNOP_send, port)
        forget(world, vcpu)
        assert simple(world, vcpu, ec.EVTCHNOP_unmask, port) == 0
        assert world.byte(vcpu.info) == 0

    def test_a_blocked_vcpu_wakes_only_for_what_it_sees(self, world: World, vcpu: VCpu) -> None:
        port = ipi(world, vcpu)
        mask(world, vcpu.domain, port)
        world.scheduler.hold(vcpu, PAUSE_BLOCKED)
        vcpu.domain.events.raise_port(port)
        assert not vcpu.runnable
        mask(world, vcpu.domain, port, on=False)
        vcpu.domain.events.raise_port(ipi(world, vcpu))
        assert vcpu.runnable

    def test_a_vcpu_without_an_info_hears_nothing(self, world: World) -> None:
        domain = world.domain(2, vcpus=40)
        port = ipi(world, domain.vcpus[0], 39)
        domain.events.raise_port(port)
        assert domain.events.is_pending(port)


class TestArguments:
    @pytest.mark.parametrize("command", [*range(11), 13])
    @pytest.mark.parametrize("pointer", BAD_POINTERS)
    def test_bad_pointers(self, world: World, vcpu: VCpu, command: int, pointer: int) -> None:
        short = command == ec.EVTCHNOP_reset and pointer == BAD_POINTERS[2]  # two bytes are all it reads
        assert world.call(vcpu, "event_channel_op", command, pointer) == (-EPERM if short else -EFAULT)

    @pytest.mark.parametrize(
        "command", [ec.EVTCHNOP_bind_ipi, ec.EVTCHNOP_bind_virq, ec.EVTCHNOP_alloc_unbound]
    )
    def test_an_answer_that_cannot_be_written(self, world: World, vcpu: VCpu, command: int) -> None:
        frame = vcpu.space.translate(RO_PAGE, write=False)
        world.memory.write(
            frame,
            ec.evtchn_alloc_unbound.w64.pack(dom=xen.DOMID_SELF, remote_dom=0)
            if command == ec.EVTCHNOP_alloc_unbound
            else bytes(12),
        )
        assert world.call(vcpu, "event_channel_op", command, RO_PAGE) == -EFAULT
        assert vcpu.domain.events.ports[1].state is not State.FREE, "the port stays bound, as in Xen"

    def test_the_command_is_its_low_half(self, world: World, vcpu: VCpu) -> None:
        world.poke(vcpu, ec.evtchn_bind_ipi.w64.pack())
        assert world.call(vcpu, "event_channel_op", 0xFFFF_FFFF_0000_0007, BASE) == 0

    def test_the_old_form_has_the_command_in_memory(self, world: World, vcpu: VCpu) -> None:
        size, at = ec.evtchn_op.w64.size, ec.evtchn_op.w64.offset["u"]
        world.poke(vcpu, (ec.EVTCHNOP_bind_ipi.to_bytes(4, "little") + bytes(size)))
        assert world.call(vcpu, "event_channel_op_compat", BASE) == 0
        assert vcpu.space.unpack(BASE + at, ec.evtchn_bind_ipi.w64).port == 1
        for command in (ec.EVTCHNOP_reset, ec.EVTCHNOP_set_priority, 99):
            world.poke(vcpu, command.to_bytes(4, "little"))
            assert world.call(vcpu, "event_channel_op_compat", BASE) == -ENOSYS
        assert world.call(vcpu, "event_channel_op_compat", AFTER - 4096) == -EFAULT

    def test_random_operations_never_raise_and_keep_the_ports_whole(self, world: World, vcpu: VCpu) -> None:
        other = world.domain(2, vcpus=2).vcpus[0]
        source = random.Random(4)
        for _ in range(4000):
            who = source.choice((vcpu, other))
            data = b"".join(
                source.choice((0, 1, 2, 3, 5, 63, 64, 0x7FF0, source.getrandbits(32))).to_bytes(4, "little")
                for _ in range(6)
            )
            world.poke(who, data)
            result = world.call(who, "event_channel_op", source.randrange(16), BASE)
            assert -EEXIST <= result <= 0 or result in (-EINVAL, -ENOSPC, -ENOSYS)
        for domain in world.domains.values():
            for number, port in enumerate(domain.events.ports):
                if port.state is State.INTERDOMAIN:
                    peer = world.domains[port.remote_domain].events.ports[port.remote_port]
                    assert (peer.state, peer.remote_domain, peer.remote_port) == (
                        State.INTERDOMAIN,
                        domain.id,
                        number,
                    )
                if port.state is State.VIRQ:
                    assert domain.vcpus[port.vcpu].virqs[port.virq] == number or port.vcpu == 0
