"""The hypercall table and calls that need no machine: multicall, version, callbacks, debugging, console."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from firmware.abi import arch_x86, callback, features, nmi, version, xen
from firmware.abi.errno import EFAULT, EINVAL, ENODEV, ENOSYS, EPERM
from firmware.domain.vcpu import NO_TRAP, PAUSE_BLOCKED, VCpu
from firmware.hypercalls import CONTINUE, LIMIT, ROWS, GuestFault, HypercallTable
from firmware.multicall import LONGEST, Multicall
from firmware.platform import Platform
from firmware.traps.callbacks import LONGEST_TABLE, Callbacks
from firmware.traps.debug import DebugRegisters
from firmware.traps.segments import Segments
from firmware.version import Version
from machine.registers import FS_BASE, GS, GS_BASE, SEG_SELECTOR
from tests.firmware.world import (
    BAD_POINTERS,
    BASE,
    HOLE,
    NON_CANONICAL,
    NUMBERS,
    RO_PAGE,
    XEN_ADDRESS,
    World,
    core_of,
)

MASK = (1 << 64) - 1


class NoTables:
    def reserved(self, selector: int, pv32: bool) -> int | None:
        return None

    def ldt_frame(self, vcpu: VCpu, page: int) -> int | None:
        return None


@pytest.fixture
def world() -> World:
    world = World()
    segments = Segments(world.memory, NoTables())
    world.register(Multicall(world.calls), Version(), Callbacks(segments), DebugRegisters(), Platform())
    return world


@pytest.fixture
def vcpu(world: World) -> VCpu:
    return world.domain(1, vcpus=2).vcpus[0]


@pytest.fixture
def vcpu32(world: World) -> VCpu:
    return world.domain(2, pv32=True).vcpus[0]


class TestTable:
    def test_numbers_and_names_are_unique(self) -> None:
        assert len({row.number for row in ROWS}) == len({row.name for row in ROWS}) == len(ROWS)
        assert max(row.number for row in ROWS) < LIMIT

    def test_every_row_has_the_number_of_the_header(self) -> None:
        for name, number in xen.HYPERCALL_NUMBERS.items():
            if name in NUMBERS:
                assert NUMBERS[name] == number, name

    def test_what_is_absent_is_said_once(self) -> None:
        said: list[str] = []
        table = HypercallTable(said.append)
        for number in (11, 43, 38, 63, 64, 1 << 63, MASK):
            assert [table.call(None, number, (1, 2, 3, 4, 5, 6)) for _ in range(2)] == [-ENOSYS] * 2
        assert len(said) == 7
        assert "tmem_op" in said[2]
        for number in range(100, 1000):
            table.call(None, number, ())
        assert len(said) <= LIMIT, "a guest cannot flood the log"

    def test_registering(self) -> None:
        table = HypercallTable(lambda line: None)
        table.register("mca", lambda vcpu, argument: 7)
        assert table.call(SimpleNamespace(domain=SimpleNamespace(pv32=False)), 48, (1, 2)) == 7
        assert table.named_counts() == {"mca": 1}
        for name in ("mca", "nothing"):
            with pytest.raises(ValueError, match=name):
                table.register(name, lambda vcpu: 0)

    def test_a_fault_is_an_error_number(self) -> None:
        table = HypercallTable(lambda line: None)

        def faulting(vcpu: Any, argument: int) -> int:
            raise GuestFault(argument)

        table.register("mca", faulting)
        assert table.call(SimpleNamespace(domain=SimpleNamespace(pv32=False)), 48, (1,)) == -EFAULT


def entries(*calls: tuple[int, ...]) -> bytes:
    pack = xen.multicall_entry.w64.pack
    return b"".join(
        pack(op=op, result=0xDEAD, args=(*arguments, 0, 0, 0, 0, 0, 0)[:6]) for op, *arguments in calls
    )


def results(vcpu: VCpu, count: int, at: int = BASE) -> list[int]:
    layout = xen.multicall_entry.w64
    return [vcpu.space.unpack(at + index * layout.size, layout).result for index in range(count)]


class TestMulticall:
    def test_results_stand_in_the_entries(self, world: World, vcpu: VCpu) -> None:
        at = world.poke(
            vcpu,
            entries(
                (17, 0, 0),
                (17, 99, 0),
                (63,),
                (MASK,),
                (13, BASE, 1),
                (17, version.XENVER_extraversion, HOLE),
            ),
        )
        assert world.call(vcpu, "multicall", at, 6) == 0
        assert results(vcpu, 6) == [
            4 << 16 | 17,
            -ENOSYS & MASK,
            -ENOSYS & MASK,
            -ENOSYS & MASK,
            -EINVAL & MASK,
            -EFAULT & MASK,
        ]

    def test_the_count_is_its_low_half(self, world: World, vcpu: VCpu) -> None:
        at = world.poke(vcpu, entries((17, 0, 0), (17, 0, 0)))
        assert world.call(vcpu, "multicall", at, 5 << 32 | 1) == 0
        assert results(vcpu, 2) == [4 << 16 | 17, 0xDEAD]

    @pytest.mark.parametrize("pointer", BAD_POINTERS)
    def test_bad_pointers(self, world: World, vcpu: VCpu, pointer: int) -> None:
        assert world.call(vcpu, "multicall", pointer, 1) == -EFAULT
        assert world.call(vcpu, "multicall", pointer, 0) in (0, -EFAULT)

    def test_entries_before_a_hole_are_run(self, world: World, vcpu: VCpu) -> None:
        size = xen.multicall_entry.w64.size
        at = RO_PAGE - 4096 - size * 2 + 4096
        world.poke(vcpu, entries((17, 0, 0), (17, 0, 0)), at)
        assert world.call(vcpu, "multicall", at, 40) == -EFAULT
        assert results(vcpu, 2, at) == [4 << 16 | 17] * 2

    def test_a_result_that_cannot_be_written_ends_it(self, world: World, vcpu: VCpu) -> None:
        frame = vcpu.space.translate(RO_PAGE, write=False)
        world.memory.write(frame, entries((17, 0, 0), (17, 0, 0)))
        assert world.call(vcpu, "multicall", RO_PAGE, 2) == -EFAULT

    def test_an_entry_is_read_when_its_turn_comes(self, world: World, vcpu: VCpu) -> None:
        """The first call writes the second entry: what runs is what stands there then."""
        size = xen.multicall_entry.w64.size
        at = world.poke(vcpu, entries((17, 1, BASE + size), (0, 0, 0), (17, 0, 0)))

        def rewrite(caller: VCpu, _cmd: int, target: int) -> int:
            if target:
                caller.space.write(target, entries((17, 0, 0))[:8])
            return 4 << 16 | 17

        number = 17
        original, world.calls.handlers[number] = world.calls.handlers[number], rewrite
        try:
            assert world.call(vcpu, "multicall", at, 3) == 0
        finally:
            world.calls.handlers[number] = original
        assert results(vcpu, 3) == [4 << 16 | 17] * 3

    def test_an_entry_may_lie_in_two_pages(self, world: World, vcpu: VCpu) -> None:
        at = BASE + 4096 - 24
        world.poke(vcpu, entries((17, 0, 0), (17, 99, 0)), at)
        assert world.call(vcpu, "multicall", at, 2) == 0
        assert results(vcpu, 2, at) == [4 << 16 | 17, -ENOSYS & MASK]

    def test_an_entry_that_ends_in_a_hole_is_not_run(self, world: World, vcpu: VCpu) -> None:
        frame = vcpu.space.translate(RO_PAGE, write=False)
        world.memory.write(frame + 4096 - 24, entries((17, 0, 0))[:24])
        before = world.calls.counts[17]
        assert world.call(vcpu, "multicall", HOLE - 24, 1) == -EFAULT
        assert world.calls.counts[17] == before

    def test_a_result_may_lie_anywhere(self, world: World, vcpu: VCpu) -> None:
        at = BASE + 4096 - 13
        world.poke(vcpu, entries((17, 0, 0)), at)
        assert world.call(vcpu, "multicall", at, 1) == 0
        assert results(vcpu, 1, at) == [4 << 16 | 17]

    def test_an_iret_ends_it(self, world: World, vcpu: VCpu) -> None:
        calls: list[VCpu] = []

        def iret(caller: VCpu) -> int:
            calls.append(caller)
            return 0x1234

        world.calls.register("iret", iret)
        at = world.poke(vcpu, entries((17, 0, 0), (23,), (17, 0, 0)))
        assert world.call(vcpu, "multicall", at, 3) == 0x1234
        assert results(vcpu, 3) == [4 << 16 | 17, 0x1234, 0xDEAD]
        assert calls == [vcpu]

    def test_a_call_that_blocks_leaves_the_rest_for_later(self, world: World, vcpu: VCpu) -> None:
        at = world.poke(vcpu, entries((29, 1, 0), (17, 0, 0)))
        assert world.calls.call(vcpu, 13, (at, 2)) == CONTINUE
        assert vcpu.pause_flags == PAUSE_BLOCKED
        assert results(vcpu, 2) == [0, 0xDEAD]
        assert vcpu.restarted == (at + xen.multicall_entry.w64.size, 1)
        world.scheduler.unblock(vcpu)
        arguments, vcpu.restarted = vcpu.restarted, None
        assert world.call(vcpu, "multicall", *arguments) == 0
        assert results(vcpu, 2) == [0, 4 << 16 | 17]

    def test_a_call_that_blocks_as_the_last_is_done(self, world: World, vcpu: VCpu) -> None:
        at = world.poke(vcpu, entries((29, 1, 0)))
        assert world.calls.call(vcpu, 13, (at, 1)) == 0

    def test_a_long_list_is_restarted_and_costs_time(self, world: World, vcpu: VCpu) -> None:
        at = world.poke(vcpu, entries(*[(17, 0, 0)] * (LONGEST + 10)))
        assert world.calls.call(vcpu, 13, (at, LONGEST + 10)) == CONTINUE
        assert vcpu.restarted == (at + LONGEST * xen.multicall_entry.w64.size, 10)
        assert core_of(vcpu).charged > 0
        vcpu.restarted = None
        assert world.call(vcpu, "multicall", at, LONGEST + 10) == 0
        assert set(results(vcpu, LONGEST + 10)) == {4 << 16 | 17}

    def test_32_bit_entries(self, world: World, vcpu32: VCpu) -> None:
        layout = xen.multicall_entry.w32
        data = layout.pack(op=17, args=(0,) * 6) + layout.pack(op=25, args=(0,) * 6)
        at = world.poke(vcpu32, data)
        assert world.call(vcpu32, "multicall", at, 2) == 0
        assert vcpu32.space.unpack(at, layout).result == 4 << 16 | 17
        assert vcpu32.space.unpack(at + layout.size, layout).result == -ENOSYS & 0xFFFF_FFFF, (
            "set_segment_base is 64-bit's"
        )


class TestVersion:
    def test_texts_fill_their_fields(self, world: World, vcpu: VCpu) -> None:
        for command, length in (
            (version.XENVER_extraversion, 16),
            (version.XENVER_capabilities, 1024),
            (version.XENVER_changeset, 64),
            (version.XENVER_compile_info, 144),
        ):
            vcpu.space.write(BASE, b"\xff" * (length + 1))
            assert world.call(vcpu, "xen_version", command, BASE) == 0
            text = vcpu.space.read(BASE, length + 1)
            assert text[length] == 0xFF
            assert text[length - 1] == 0
            assert text[0] not in b"\0<"

    def test_the_command_line_is_not_for_guests(self, world: World, vcpu: VCpu) -> None:
        vcpu.space.write(BASE, b"\xff" * 16)
        assert world.call(vcpu, "xen_version", version.XENVER_commandline, BASE) == 0
        assert vcpu.space.read(BASE, 10) == b"<denied>\0\xff"
        assert world.call(vcpu, "xen_version", version.XENVER_build_id, BASE) == -EPERM

    def test_features(self, world: World, vcpu: VCpu) -> None:
        layout = version.xen_feature_info.w64
        world.poke(vcpu, layout.pack(submap_idx=0))
        assert world.call(vcpu, "xen_version", version.XENVER_get_features, BASE) == 0
        submap = vcpu.space.unpack(BASE, layout).submap
        assert {bit for bit in range(32) if submap >> bit & 1} == {
            features.XENFEAT_mmu_pt_update_preserve_ad,
            features.XENFEAT_highmem_assist,
            features.XENFEAT_gnttab_map_avail_bits,
            features.XENFEAT_memory_op_vnode_supported,
            features.XENFEAT_not_direct_mapped,
        }
        world.poke(vcpu, layout.pack(submap_idx=1))
        assert world.call(vcpu, "xen_version", version.XENVER_get_features, BASE) == -EINVAL

    def test_where_the_hypervisor_begins(self, world: World, vcpu: VCpu, vcpu32: VCpu) -> None:
        for who, width, start in ((vcpu, 8, 0xFFFF_8000_0000_0000), (vcpu32, 4, 0xF580_0000)):
            assert world.call(who, "xen_version", version.XENVER_platform_parameters, BASE) == 0
            assert int.from_bytes(who.space.read(BASE, width), "little") == start

    def test_the_rest(self, world: World, vcpu: VCpu) -> None:
        assert world.call(vcpu, "xen_version", version.XENVER_version, HOLE) == 4 << 16 | 17
        assert world.call(vcpu, "xen_version", version.XENVER_pagesize, 0) == 4096
        assert world.call(vcpu, "xen_version", version.XENVER_pagesize, 1) == -EINVAL
        assert world.call(vcpu, "xen_version", version.XENVER_guest_handle, BASE) == 0
        assert vcpu.space.read(BASE, 16) == bytes(range(16))
        assert [world.call(vcpu, "xen_version", number, BASE) for number in (11, 99, 0xFFFF_FFFF)] == [
            -ENOSYS
        ] * 3
        for command in (1, 2, 3, 4, 5, 6, 8, 9):
            for pointer in BAD_POINTERS:
                assert world.call(vcpu, "xen_version", command, pointer) == -EFAULT

    @pytest.mark.parametrize("kind", [*range(8), 31, 32, 33, 63, 64, 1 << 31])
    def test_assists(self, world: World, vcpu: VCpu, vcpu32: VCpu, kind: int) -> None:
        for who, known in ((vcpu, {0, 1, 2, 3, 4, 5, 32}), (vcpu32, {0, 1, 2, 3, 4, 5})):
            expected = 0 if kind in known else -EINVAL
            assert world.call(who, "vm_assist", xen.VMASST_CMD_enable, kind) == expected
            assert bool(who.domain.vm_assist >> (kind & 63) & 1) is (expected == 0)
            assert world.call(who, "vm_assist", 2, kind) == (expected or -ENOSYS)
            assert world.call(who, "vm_assist", xen.VMASST_CMD_disable, kind) == expected
            assert who.domain.vm_assist == 0


class TestCallbacks:
    def test_the_trap_table(self, world: World, vcpu: VCpu) -> None:
        layout = arch_x86.trap_info.w64
        at = world.poke(
            vcpu,
            layout.pack(vector=14, flags=4, cs=0xE030, address=0x1000)
            + layout.pack(vector=0x80, flags=3, cs=0x10, address=0x2000)
            + layout.pack(vector=1),
        )
        assert world.call(vcpu, "set_trap_table", at) == 0
        page_fault, call = vcpu.traps[14], vcpu.traps[0x80]
        assert (page_fault.address, page_fault.cs, page_fault.masks_events, page_fault.dpl) == (
            0x1000,
            0xE033,
            True,
            0,
        )
        assert (call.address, call.cs, call.masks_events, call.dpl) == (0x2000, 0x13, False, 3)
        assert world.call(vcpu, "set_trap_table", 0) == 0
        assert set(vcpu.traps) == {NO_TRAP}

    def test_bad_tables(self, world: World, vcpu: VCpu) -> None:
        layout = arch_x86.trap_info.w64
        assert world.call(vcpu, "set_trap_table", HOLE) == -EFAULT
        world.poke(vcpu, layout.pack(vector=3, address=0x1000) + layout.pack(vector=4, address=NON_CANONICAL))
        assert world.call(vcpu, "set_trap_table", BASE) == -EINVAL
        assert vcpu.traps[3].address == 0x1000, "those before the bad one are taken"

    def test_an_endless_table_is_restarted(self, world: World, vcpu: VCpu) -> None:
        world.poke(
            vcpu, arch_x86.trap_info.w64.pack(vector=3, address=0x1000) * (LONGEST_TABLE + 1) + bytes(16)
        )
        assert world.calls.call(vcpu, 0, (BASE,)) == CONTINUE
        assert vcpu.restarted == (BASE + 16 * LONGEST_TABLE,)
        assert core_of(vcpu).charged > 0
        vcpu.restarted = None
        assert world.call(vcpu, "set_trap_table", BASE) == 0

    @pytest.mark.parametrize(
        ("kind", "address", "masks"),
        [
            (callback.CALLBACKTYPE_event, "event_address", ""),
            (callback.CALLBACKTYPE_failsafe, "failsafe_address", "failsafe_masks"),
            (callback.CALLBACKTYPE_syscall, "syscall_address", "syscall_masks"),
            (callback.CALLBACKTYPE_syscall32, "syscall32_address", "syscall32_masks"),
            (callback.CALLBACKTYPE_sysenter, "sysenter_address", "sysenter_masks"),
        ],
    )
    def test_registering(self, world: World, vcpu: VCpu, kind: int, address: str, masks: str) -> None:
        def register(where: int, flags: int = 0) -> int:
            world.poke(vcpu, callback.callback_register.w64.pack(type=kind, flags=flags, address=where))
            return world.call(vcpu, "callback_op", callback.CALLBACKOP_register, BASE)

        assert register(0x4000, callback.CALLBACKF_mask_events) == 0
        assert getattr(vcpu, address) == 0x4000
        assert not masks or getattr(vcpu, masks)
        assert register(0x5000) == 0
        assert not masks or not getattr(vcpu, masks)
        assert register(NON_CANONICAL) == -EINVAL
        assert getattr(vcpu, address) == 0x5000
        world.poke(vcpu, callback.callback_unregister.w64.pack(type=kind))
        assert world.call(vcpu, "callback_op", callback.CALLBACKOP_unregister, BASE) == -EINVAL

    def test_other_callbacks(self, world: World, vcpu: VCpu, vcpu32: VCpu) -> None:
        for kind in (3, 6, 8, 99):
            world.poke(vcpu, callback.callback_register.w64.pack(type=kind, address=1))
            for command in (callback.CALLBACKOP_register, callback.CALLBACKOP_unregister):
                assert world.call(vcpu, "callback_op", command, BASE) == -ENOSYS
        assert world.call(vcpu, "callback_op", 2, BASE) == -ENOSYS
        assert world.call(vcpu32, "callback_op", 2, BASE) == -EINVAL
        assert world.call(vcpu, "set_callbacks", 1, NON_CANONICAL, 3) == 0
        assert (vcpu.event_address, vcpu.failsafe_address, vcpu.syscall_address) == (1, 0, 3)
        assert world.call(vcpu32, "set_callbacks", 0xE018, 0x1000, 0xE019, 0x2000) == 0
        assert (vcpu32.event_cs, vcpu32.event_address, vcpu32.failsafe_cs, vcpu32.failsafe_address) == (
            0xE019,
            0x1000,
            0xE019,
            0x2000,
        )

    def test_nmis(self, world: World, vcpu: VCpu) -> None:
        world.poke(vcpu, nmi.xennmi_callback.w64.pack(handler_address=0x9000))
        assert world.call(vcpu, "nmi_op", nmi.XENNMI_register_callback, BASE) == 0
        assert (vcpu.traps[2].address, vcpu.traps[2].masks_events) == (0x9000, True)
        assert world.call(vcpu, "nmi_op", nmi.XENNMI_unregister_callback, 0) == 0
        assert vcpu.traps[2] is NO_TRAP
        world.poke(vcpu, nmi.xennmi_callback.w64.pack(handler_address=NON_CANONICAL))
        assert world.call(vcpu, "nmi_op", nmi.XENNMI_register_callback, BASE) == -EINVAL
        assert world.call(vcpu, "nmi_op", nmi.XENNMI_register_callback, HOLE) == -EFAULT
        assert world.call(vcpu, "nmi_op", 2, BASE) == -ENOSYS

    def test_stacks_bases_and_the_fpu(self, world: World, vcpu: VCpu, vcpu32: VCpu) -> None:
        core = core_of(vcpu)
        assert world.call(vcpu, "stack_switch", 0x10, NON_CANONICAL) == 0
        assert (vcpu.kernel_ss, vcpu.kernel_sp) == (0x13, NON_CANONICAL), "it is looked at when it is used"
        world.call(vcpu32, "stack_switch", 0xE020, 0x1000)
        assert vcpu32.kernel_ss == 0xE021
        for which, where in ((arch_x86.SEGBASE_FS, FS_BASE), (arch_x86.SEGBASE_GS_KERNEL, GS_BASE)):
            assert world.call(vcpu, "set_segment_base", which, 0x7777) == 0
            assert core.q[where] == 0x7777
            assert world.call(vcpu, "set_segment_base", which, NON_CANONICAL) == -EINVAL
        assert world.call(vcpu, "set_segment_base", arch_x86.SEGBASE_GS_USER, 0x8888) == 0
        assert (vcpu.gs_shadow, core.q[GS_BASE]) == (0x8888, 0x7777)
        assert world.call(vcpu, "set_segment_base", arch_x86.SEGBASE_GS_USER_SEL, 0x1230) == 0
        assert (vcpu.gs_shadow, core.q[GS_BASE], core.d[SEG_SELECTOR[GS]]) == (0, 0x7777, 0)
        assert world.call(vcpu, "set_segment_base", 4, 0) == -EINVAL
        for on in (1, 5, 0):
            assert world.call(vcpu, "fpu_taskswitch", on) == 0
            assert (vcpu.cr0_ts, core.ts) == (bool(on), bool(on))


class TestDebugRegisters:
    def set(self, world: World, vcpu: VCpu, number: int, value: int) -> int:
        return world.call(vcpu, "set_debugreg", number, value)

    def test_addresses(self, world: World, vcpu: VCpu) -> None:
        for number in range(4):
            for value, expected in (
                (0, 0),
                (NON_CANONICAL - 1, 0),
                (0xFFFF_8800_0000_0000, 0),
                (MASK, 0),
                (NON_CANONICAL, -EPERM),
                (XEN_ADDRESS, -EPERM),
                (0xFFFF_87FF_FFFF_FFFF, -EPERM),
            ):
                assert self.set(world, vcpu, number, value) == expected
                if not expected:
                    assert world.call(vcpu, "get_debugreg", number) == value

    def test_status_and_control_have_fixed_bits(self, world: World, vcpu: VCpu) -> None:
        assert [world.call(vcpu, "get_debugreg", number) for number in (4, 5, 6, 7)] == [
            0xFFFF_0FF0,
            0x400,
            0xFFFF_0FF0,
            0x400,
        ]
        for number in (4, 6):
            assert self.set(world, vcpu, number, 0xFFFF_FFFF) == 0
            assert world.call(vcpu, "get_debugreg", 6) == 0xFFFF_EFFF
        for number in (5, 7):
            assert self.set(world, vcpu, number, 0xFFFF_DFFF & ~0x2222_0000) == 0
            assert world.call(vcpu, "get_debugreg", 7) == 0xDDDD_07FF
        for number in (6, 7):
            assert self.set(world, vcpu, number, 1 << 32) == -EINVAL
        assert self.set(world, vcpu, 7, 1 << 13) == -EPERM

    def test_the_core_gets_the_breakpoints(self, world: World, vcpu: VCpu) -> None:
        self.set(world, vcpu, 1, 0x1234)
        self.set(world, vcpu, 7, 4)
        assert core_of(vcpu).breakpoints == ((0, 0x1234, 0, 0), 0x404)

    def test_io_breakpoints_need_debug_extensions_and_stay_with_xen(self, world: World, vcpu: VCpu) -> None:
        control = 1 | 2 << 16 | 4
        assert self.set(world, vcpu, 7, control) == -EPERM
        vcpu.cr4 = 8
        assert self.set(world, vcpu, 7, control) == 0
        assert world.call(vcpu, "get_debugreg", 7) == control | 0x400
        assert core_of(vcpu).breakpoints == ((0, 0, 0, 0), 0x404 | 2 << 16)
        for number in (4, 5):
            assert self.set(world, vcpu, number, 0) == -ENODEV
            assert world.call(vcpu, "get_debugreg", number) == -ENODEV

    def test_there_are_eight(self, world: World, vcpu: VCpu) -> None:
        for number in (8, 15, 0xFFFF_FFFF):
            assert self.set(world, vcpu, number, 0) == -ENODEV
            assert world.call(vcpu, "get_debugreg", number) == -ENODEV
