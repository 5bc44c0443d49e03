"""vcpu_op: what a new vCPU's context must be, bringing vCPUs up and down, and their areas."""

from __future__ import annotations

from typing import Any, cast

import pytest

from firmware.abi import arch_x86, sched, xen
from firmware.abi import vcpu as abi
from firmware.abi.errno import EEXIST, EFAULT, EINVAL, ENOENT, ENOSYS, ENXIO, ERESTART
from firmware.domain.context import Contexts
from firmware.domain.vcpu import PAUSE_DOWN, VCpu
from firmware.hypercalls import CONTINUE
from firmware.traps.debug import DebugRegisters
from firmware.traps.segments import Segments
from firmware.vcpus import VCpuOps
from machine.core import Core
from machine.registers import CS, FS_BASE, GS_BASE, RAX, RIP, RSP, SEG_SELECTOR
from tests.firmware.test_bounce import Tables
from tests.firmware.world import BAD_POINTERS, BASE, HOLE, NON_CANONICAL, XEN_ADDRESS, World, core_of

ROOT, USER_ROOT, BAD_ROOT, GDT, OTHER_ROOT = 100, 101, 102, 103, 104
INFO_FRAME = 2000


class Roots:
    """Takes every root and table but the bad one, and counts."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.steps: dict[int, int] = {}
        """By root: how often the check is interrupted."""
        self.gdts: list[tuple[list[int], int]] = []

    def take_root(self, vcpu: VCpu, mfn: int, *, kernel: bool) -> int:
        if mfn == BAD_ROOT:
            return -EINVAL
        if self.steps.get(mfn):
            self.steps[mfn] -= 1
            return -ERESTART
        self.taken.append(mfn)
        return 0

    def give_root(self, mfn: int) -> None:
        self.taken.remove(mfn)

    def set_gdt(self, vcpu: VCpu, frames: list[int], entries: int) -> int:
        if entries > 7168:
            return -EINVAL
        self.gdts.append((frames, entries))
        return 0

    def take_info_frame(self, vcpu: VCpu, mfn: int) -> int:
        return 0 if mfn == INFO_FRAME else -EINVAL


class Setting:
    def __init__(self) -> None:
        world = self.world = World()
        self.roots = Roots()
        self.segments = Segments(world.memory, Tables())
        self.contexts = Contexts(world.memory, 4000, self.segments, self.roots, DebugRegisters())
        world.register(
            VCpuOps(world.memory, world.scheduler, self.contexts, world.timers, world.ends, self.roots)
        )
        self.domain = world.domain(1, vcpus=40)
        self.caller, self.target = self.domain.vcpus[:2]

    def op(self, command: int, number: int = 1, argument: int = 0) -> int:
        return self.world.call(self.caller, "vcpu_op", command, number, argument)

    def initialise(self, **changes: Any) -> int:
        fields: dict[str, Any] = {
            "flags": arch_x86.VGCF_in_kernel,
            "ctrlreg": (0, 0, 0, ROOT << 12, 0, 0, 0, 0),
            "gdt_ents": 512,
            "gdt_frames": (GDT, *[0] * 15),
            "kernel_sp": 0x9000,
            "user_regs": {"rip": 0x1234, "rsp": 0x5678, "rax": 0x42, "cs": 0xE030, "ss": 0xE028, "rflags": 2},
            "fs_base": 0x111,
            "gs_base_kernel": 0x222,
            "gs_base_user": 0x333,
        }
        if "user_regs" in changes:
            changes["user_regs"] = fields["user_regs"] | changes["user_regs"]
        layout = arch_x86.vcpu_guest_context.w64
        at = self.world.poke(self.caller, layout.pack(**fields | changes), BASE + 0x10000)
        return self.op(abi.VCPUOP_initialise, 1, at)


@pytest.fixture
def setting() -> Setting:
    return Setting()


class TestInitialise:
    def test_a_good_context(self, setting: Setting) -> None:
        assert setting.initialise() == 0
        target = setting.target
        assert target.initialised
        assert not target.runnable, "it is still down"
        assert setting.roots.taken == [ROOT]
        assert setting.roots.gdts == [([GDT], 512)]
        assert target.kernel_root == ROOT
        assert setting.initialise() == -EEXIST
        core = core_of(target)
        setting.contexts.resume(target, cast(Core, core))
        q = core.q
        assert (q[RIP], q[RSP], q[RAX], q[FS_BASE], q[GS_BASE]) == (0x1234, 0x5678, 0x42, 0x111, 0x222)
        assert core.d[SEG_SELECTOR[CS]] == 0xE033
        assert target.gs_shadow == 0x333

    def test_a_start_in_user_mode(self, setting: Setting) -> None:
        assert setting.initialise(flags=0) == -EINVAL, "without user page tables"
        assert setting.initialise(flags=0, ctrlreg=(0, USER_ROOT << 12, 0, ROOT << 12, 0, 0, 0, 0)) == 0
        assert setting.roots.taken == [ROOT, USER_ROOT]
        assert not setting.target.in_kernel

    @pytest.mark.parametrize(
        "changes",
        [
            {"ldt_ents": 8193},
            {"ldt_base": 1},
            {"gdt_ents": 8193},
            {"gdt_ents": 7169},
            {"kernel_sp": NON_CANONICAL},
            {"user_regs": {"rip": NON_CANONICAL}},
            {"user_regs": {"rsp": NON_CANONICAL}},
            {"fs_base": NON_CANONICAL},
            {"gs_base_kernel": NON_CANONICAL},
            {"gs_base_user": NON_CANONICAL},
            {"event_callback_eip": NON_CANONICAL},
            {"failsafe_callback_eip": NON_CANONICAL},
            {"syscall_callback_eip": NON_CANONICAL},
            {"debugreg": (XEN_ADDRESS, 0, 0, 0, 0, 0, 0, 0)},
            {"debugreg": (0, 0, 0, 0, 0, 0, 1 << 32, 0)},
            {"debugreg": (0, 0, 0, 0, 0, 0, 0, 1 << 40)},
            {"ctrlreg": (0, 0, 0, BAD_ROOT << 12, 0, 0, 0, 0)},
            {"ctrlreg": (0, BAD_ROOT << 12, 0, ROOT << 12, 0, 0, 0, 0)},
            {"trap_ctxt": [{"address": NON_CANONICAL}] + [None] * 255},
        ],
    )
    def test_a_bad_context_leaves_nothing_behind(self, setting: Setting, changes: dict[str, Any]) -> None:
        assert setting.initialise(**changes) == -EINVAL
        assert not setting.target.initialised
        assert setting.roots.taken == []
        assert setting.op(abi.VCPUOP_up) == -EINVAL
        assert setting.initialise() == 0

    def test_roots_that_take_long_are_taken_once(self, setting: Setting) -> None:
        setting.roots.steps = {ROOT: 2, USER_ROOT: 3}
        assert setting.initialise(ctrlreg=(0, USER_ROOT << 12, 0, ROOT << 12, 0, 0, 0, 0)) == 0
        assert setting.roots.steps == {ROOT: 0, USER_ROOT: 0}
        assert setting.roots.taken == [ROOT, USER_ROOT]
        assert setting.target.initialised

    def test_other_roots_than_those_begun_with(self, setting: Setting) -> None:
        """The call is not gone on with: another one, with other roots, gives back what the first took."""
        setting.roots.steps = {USER_ROOT: 1}
        setting.world.calls.call = lambda vcpu, number, arguments: 0  # type: ignore[method-assign]
        setting.initialise(ctrlreg=(0, USER_ROOT << 12, 0, ROOT << 12, 0, 0, 0, 0))
        del setting.world.calls.call
        argument = BASE + 0x10000
        assert setting.world.calls.call(setting.caller, 24, (abi.VCPUOP_initialise, 1, argument)) == CONTINUE
        assert setting.caller.restarted == (abi.VCPUOP_initialise, 1, argument)
        setting.caller.restarted = None
        assert setting.roots.taken == [ROOT]
        assert not setting.target.initialised
        other = (0, 0, 0, OTHER_ROOT << 12, 0, 0, 0, 0)
        assert setting.initialise(ctrlreg=other) == 0
        assert setting.roots.taken == [OTHER_ROOT]
        assert setting.target.kernel_root == OTHER_ROOT

    def test_who_cannot_be(self, setting: Setting) -> None:
        assert setting.op(abi.VCPUOP_initialise, 39, BASE) == -EINVAL, "it has no vcpu_info"
        assert setting.op(abi.VCPUOP_initialise, 0, BASE) == -EEXIST
        for pointer in BAD_POINTERS:
            assert setting.op(abi.VCPUOP_initialise, 1, pointer) == -EFAULT
        for number in (40, 1 << 31, (1 << 32) - 1):
            assert setting.op(abi.VCPUOP_is_up, number) == -ENOENT


class TestUpAndDown:
    def test_one_vcpu(self, setting: Setting) -> None:
        assert setting.op(abi.VCPUOP_up) == -EINVAL
        setting.initialise()
        assert setting.op(abi.VCPUOP_is_up) == 0
        assert setting.op(abi.VCPUOP_up) == 0
        assert setting.op(abi.VCPUOP_up) == 0, "again does nothing"
        assert setting.op(abi.VCPUOP_is_up) == 1
        assert setting.target.runnable
        assert setting.op(abi.VCPUOP_down) == 0
        assert setting.op(abi.VCPUOP_down) == 0
        assert setting.target.pause_flags == PAUSE_DOWN

    def test_the_last_one_down_ends_the_domain(self, setting: Setting) -> None:
        assert setting.op(abi.VCPUOP_down, 0) == 0
        assert setting.world.ends.shutdowns == [sched.SHUTDOWN_poweroff]


class TestAreas:
    def test_info_moves_and_everything_is_pending(self, setting: Setting) -> None:
        world, caller = setting.world, setting.caller
        world.memory.store64(caller.info + 16, 0xABCD)
        at = world.poke(caller, abi.vcpu_register_vcpu_info.w64.pack(mfn=INFO_FRAME, offset=64))
        assert setting.op(abi.VCPUOP_register_vcpu_info, 0, at) == 0
        assert caller.info == (INFO_FRAME << 12) + 64
        assert world.memory.q[caller.info + 16 >> 3] == 0xABCD
        assert world.byte(caller.info) == 1
        assert world.memory.q[caller.info + 8 >> 3] == (1 << 64) - 1
        assert setting.op(abi.VCPUOP_register_vcpu_info, 0, at) == -EINVAL, "once only"

    def test_info_of_a_vcpu_that_had_none(self, setting: Setting) -> None:
        at = setting.world.poke(setting.caller, abi.vcpu_register_vcpu_info.w64.pack(mfn=INFO_FRAME))
        assert setting.op(abi.VCPUOP_register_vcpu_info, 39, at) == 0
        info = setting.domain.vcpus[39].info
        assert (setting.world.byte(info), setting.world.byte(info + 1)) == (1, 1)

    @pytest.mark.parametrize(
        ("mfn", "offset", "expected"),
        [
            (7, 0, -EINVAL),
            (INFO_FRAME, 4096 - 56, -ENXIO),
            (INFO_FRAME, 4, -ENXIO),
            (INFO_FRAME, 1 << 31, -ENXIO),
            (INFO_FRAME, 4096 - 64, 0),
            (1 << 60, 0, -EINVAL),
        ],
    )
    def test_where_info_may_lie(self, setting: Setting, mfn: int, offset: int, expected: int) -> None:
        at = setting.world.poke(setting.caller, abi.vcpu_register_vcpu_info.w64.pack(mfn=mfn, offset=offset))
        assert setting.op(abi.VCPUOP_register_vcpu_info, 0, at) == expected

    def test_info_of_a_running_vcpu_is_its_own_business(self, setting: Setting) -> None:
        setting.initialise()
        setting.op(abi.VCPUOP_up)
        at = setting.world.poke(setting.caller, abi.vcpu_register_vcpu_info.w64.pack(mfn=INFO_FRAME))
        assert setting.op(abi.VCPUOP_register_vcpu_info, 1, at) == -EINVAL

    def test_run_states(self, setting: Setting) -> None:
        world, caller = setting.world, setting.caller
        layout = abi.vcpu_runstate_info.w64
        world.advance(500)
        assert setting.op(abi.VCPUOP_get_runstate_info, 0, BASE) == 0
        state = caller.space.unpack(BASE, layout)
        assert (state.state, sum(state.time)) == (abi.RUNSTATE_running, 500)
        world.poke(caller, (BASE + 256).to_bytes(8, "little"))
        for number, expected in ((0, abi.RUNSTATE_running), (1, abi.RUNSTATE_offline)):
            assert setting.op(abi.VCPUOP_register_runstate_memory_area, number, BASE) == 0
            assert caller.space.unpack(BASE + 256, layout).state == expected

    def test_the_time_area(self, setting: Setting) -> None:
        setting.world.poke(setting.caller, (BASE + 256).to_bytes(8, "little"))
        assert setting.op(abi.VCPUOP_register_vcpu_time_memory_area, 0, BASE) == 0
        time = setting.caller.space.unpack(BASE + 256, xen.vcpu_time_info.w64)
        assert time.version % 2 == 0
        assert (1 << time.tsc_shift) * time.tsc_to_system_mul >> 32 == 1, "a tick of the TSC is a nanosecond"

    def test_bad_areas(self, setting: Setting) -> None:
        for command in (
            abi.VCPUOP_get_runstate_info,
            abi.VCPUOP_register_runstate_memory_area,
            abi.VCPUOP_register_vcpu_time_memory_area,
            abi.VCPUOP_register_vcpu_info,
            abi.VCPUOP_set_periodic_timer,
            abi.VCPUOP_set_singleshot_timer,
        ):
            for pointer in BAD_POINTERS:
                assert setting.op(command, 0, pointer) == -EFAULT
        for address in (XEN_ADDRESS, NON_CANONICAL):
            setting.world.poke(setting.caller, address.to_bytes(8, "little"))
            for command in (
                abi.VCPUOP_register_runstate_memory_area,
                abi.VCPUOP_register_vcpu_time_memory_area,
            ):
                assert setting.op(command, 0, BASE) == -EFAULT
        setting.world.poke(setting.caller, HOLE.to_bytes(8, "little"))
        assert setting.op(abi.VCPUOP_register_runstate_memory_area, 0, BASE) == 0, (
            "a hole is found when it is written"
        )

    def test_the_rest(self, setting: Setting) -> None:
        assert setting.op(abi.VCPUOP_send_nmi, 1, 1) == -EINVAL
        assert setting.op(abi.VCPUOP_send_nmi) == 0
        assert setting.target.nmi_pending
        assert setting.op(abi.VCPUOP_get_physid, 0, BASE) == -EINVAL
        for command in (abi.VCPUOP_set_singleshot_timer, abi.VCPUOP_stop_singleshot_timer):
            assert setting.op(command, 1, BASE) == -EINVAL, "only one's own"
        assert setting.op(abi.VCPUOP_stop_periodic_timer) == 0
        assert [setting.op(number) for number in (14, 99, (1 << 32) - 1)] == [-ENOSYS] * 3
