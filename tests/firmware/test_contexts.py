"""What a guest may not make of its processor: contexts, returns and batches, one rule at a time."""

from __future__ import annotations

from typing import Any, cast

import pytest

from firmware.abi import version, xen
from firmware.abi.errno import EFAULT, EINVAL, ENOSYS
from firmware.domain.context import CR4_GUEST
from firmware.domain.vcpu import VCpu
from firmware.multicall import Multicall
from firmware.version import Version
from machine.core import Core
from machine.registers import CS, SEG_SELECTOR, SS
from tests.firmware.test_bounce import USER_ROOT, Entry, returning
from tests.firmware.test_vcpus import BAD_ROOT, GDT, ROOT, Setting
from tests.firmware.world import BASE, NON_CANONICAL, XEN_ADDRESS, World, core_of

IF, IOPL, VM = 1 << 9, 3 << 12, 1 << 17
MASK = (1 << 64) - 1


class TestContexts:
    @pytest.fixture
    def setting(self) -> Setting:
        return Setting()

    @pytest.mark.parametrize("roots", [(BAD_ROOT, 0), (ROOT, BAD_ROOT)])
    def test_a_failure_gives_the_gdt_back(self, setting: Setting, roots: tuple[int, int]) -> None:
        kernel, user = roots
        assert setting.initialise(ctrlreg=(0, user << 12, 0, kernel << 12, 0, 0, 0, 0)) == -EINVAL
        assert setting.roots.gdts == [([GDT], 512), ([], 0)]
        assert setting.roots.taken == []

    def start(self, setting: Setting, **registers: int) -> Any:
        """Its vCPU gets its first registers on a core that held others."""
        assert setting.initialise(user_regs=registers) == 0
        core = core_of(setting.target)
        core.d[SEG_SELECTOR[CS]] = core.d[SEG_SELECTOR[SS]] = 0
        setting.contexts.resume(setting.target, cast(Core, core))
        return core

    def test_segments_have_the_guests_privilege(self, setting: Setting) -> None:
        core = self.start(setting, cs=0xE030, ss=0xE028)
        assert (core.d[SEG_SELECTOR[CS]], core.d[SEG_SELECTOR[SS]]) == (0xE033, 0xE02B)
        assert not setting.target.failsafe_pending

    @pytest.mark.parametrize("flags", [2, IF, IOPL | IF, IOPL])
    def test_interrupts_are_on_and_ports_closed(self, setting: Setting, flags: int) -> None:
        core = self.start(setting, rflags=flags)
        assert core.flags & (IF | IOPL) == IF

    def test_control_bits(self, setting: Setting) -> None:
        assert setting.initialise(ctrlreg=(0, 0, 0, ROOT << 12, MASK, 0, 0, 0)) == 0
        assert setting.target.cr4 == CR4_GUEST


class TestReturns:
    def test_selectors_have_the_guests_privilege(self) -> None:
        entry = Entry()
        entry.core.d[SEG_SELECTOR[CS]] = entry.core.d[SEG_SELECTOR[SS]] = 0
        returning(entry, cs=0xE030, ss=0xE028)
        assert entry.faults.injected == []
        assert (entry.selector(CS), entry.selector(SS)) == (0xE033, 0xE02B)

    def test_ports_are_looked_at_again(self) -> None:
        entry = Entry()
        entry.vcpu.domain.vm_assist = 1 << xen.VMASST_TYPE_architectural_iopl
        entry.vcpu.loaded = entry.core.ports = True
        returning(entry, cs=0xE030, rflags=0x202)
        assert not entry.core.ports

    def test_user_mode_without_tables_ends_the_domain(self) -> None:
        entry = Entry()
        returning(entry, cs=0x33)
        assert len(entry.world.ends.crashes) == 1
        entry.vcpu.user_root = USER_ROOT
        returning(entry, cs=0x33)
        assert not entry.vcpu.in_kernel


class TestBatches:
    @pytest.fixture
    def world(self) -> World:
        world = World()
        world.register(Multicall(world.calls), Version())
        return world

    @pytest.fixture
    def vcpu(self, world: World) -> VCpu:
        return world.domain(1).vcpus[0]

    @pytest.mark.parametrize("pointer", [XEN_ADDRESS, NON_CANONICAL])
    def test_a_list_in_xen_even_when_it_is_empty(self, world: World, vcpu: VCpu, pointer: int) -> None:
        assert world.call(vcpu, "multicall", pointer, 0) == -EFAULT

    @pytest.mark.parametrize("number", [64, 64 + 17, 1 << 32 | 17, 1 << 63, MASK])
    def test_numbers_end(self, world: World, vcpu: VCpu, number: int) -> None:
        layout = xen.multicall_entry.w64
        at = world.poke(vcpu, layout.pack(op=number, args=(version.XENVER_version, 0, 0, 0, 0, 0)), BASE)
        assert world.call(vcpu, "multicall", at, 1) == 0
        assert vcpu.space.unpack(at, layout).result == -ENOSYS & MASK
