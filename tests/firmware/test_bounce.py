"""Entering the guest kernel and returning from it: the words of the frames, the selectors, the faults."""

from __future__ import annotations

import struct
from typing import cast

import pytest

from firmware.abi import arch_x86, arch_x86_32, xen
from firmware.domain.vcpu import VCpu
from firmware.traps.bounce import Bounce, BounceError
from firmware.traps.bounce32 import Bounce32
from firmware.traps.iret import Iret
from firmware.traps.segments import Segments
from machine.core import Core
from machine.registers import CS, DS, ES, FS, GS, GS_BASE, R11, RAX, RCX, RIP, RSP, SEG_SELECTOR, SS
from tests.firmware.world import AFTER, BASE, HOLE, RO_PAGE, PlainCore, World, core_of

KERNEL_STACK = BASE + 0x8000
STACK = BASE + 0x4008
HANDLER = 0xFFFF_FFFF_8100_0000
IF, IOPL, VM, TF, NT, RF, AC = 1 << 9, 3 << 12, 1 << 17, 1 << 8, 1 << 14, 1 << 16, 1 << 18
CODE, DATA = 0x00AF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF
RING1_CODE, RING1_DATA = 0x00CF_BB00_0000_FFFF, 0x00CF_B300_0000_FFFF
PRESENT, LONG, CONFORMING = 1 << 47, 1 << 53, 1 << 42
USER_ROOT = 4000
GDT_FRAME, LDT_FRAME = 3000, 3001


class Tables:
    """Xen's own selectors, and one LDT page."""

    def __init__(self) -> None:
        self.ldt: dict[int, int] = {}

    def reserved(self, selector: int, pv32: bool) -> int | None:
        flat = (
            {0xE019: RING1_CODE, 0xE021: RING1_DATA, 0xE02B: RING1_CODE | 3 << 45, 0xE033: DATA}
            if pv32
            else {0xE023: RING1_CODE | 3 << 45, 0xE02B: DATA, 0xE033: CODE}
        )
        return next((value for known, value in flat.items() if known & ~7 == selector & ~7), None)

    def ldt_frame(self, vcpu: VCpu, page: int) -> int | None:
        return self.ldt.get(page)


class Faults:
    """What was injected."""

    def __init__(self) -> None:
        self.injected: list[tuple[int, int]] = []

    def inject(self, vcpu: VCpu, core: Core, vector: int, error: int) -> None:
        self.injected.append((vector, error))


class Entry:
    """A world with one vCPU and the parts under test."""

    def __init__(self, *, pv32: bool = False) -> None:
        self.world = World()
        self.vcpu = self.world.domain(1, pv32=pv32).vcpus[0]
        self.vcpu.kernel_sp = KERNEL_STACK
        self.core = core_of(self.vcpu)
        self.tables = Tables()
        self.segments = Segments(self.world.memory, self.tables)
        self.bounce = Bounce(self.world.memory)
        self.bounce32 = Bounce32(self.world.memory, self.segments)
        self.iret = Iret(self.world.memory, self.segments, self.world.ends)
        self.faults = self.iret.faults = Faults()
        self.core.q[RIP], self.core.q[RSP], self.core.q[RCX], self.core.q[R11] = 0x1111, STACK, 0x2222, 0x3333

    @property
    def machine_core(self) -> Core:
        return cast(Core, self.core)

    def user(self) -> None:
        """The vCPU is in its user half."""
        self.vcpu.in_kernel = False
        self.vcpu.user_root = USER_ROOT
        self.core.q[GS_BASE], self.vcpu.gs_shadow = 0xAAAA, 0xBBBB

    def words(self, count: int) -> tuple[int, ...]:
        """The top of the stack."""
        return struct.unpack(f"<{count}Q", self.vcpu.space.read(self.core.q[RSP], 8 * count))

    def words32(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}I", self.vcpu.space.read(self.core.q[RSP], 4 * count))

    def descriptor(self, index: int, value: int, *, ldt: bool = False) -> int:
        """Put a descriptor into the guest's table; its selector at RPL 3."""
        frame = LDT_FRAME if ldt else GDT_FRAME
        self.world.memory.store64((frame << 12) + 8 * index, value)
        if ldt:
            self.tables.ldt[0], self.vcpu.ldt_entries = frame, 512
        else:
            self.vcpu.gdt_frames, self.vcpu.gdt_entries = [frame], 512
        return index << 3 | (4 if ldt else 0) | 3

    def selector(self, register: int) -> int:
        return self.core.d[SEG_SELECTOR[register]]


class TestBounce64:
    def test_the_frame_of_a_kernel(self) -> None:
        entry = Entry()
        entry.core.flags = 0x246
        entry.bounce.enter(entry.vcpu, entry.machine_core, HANDLER, False)
        assert entry.words(7) == (0x2222, 0x3333, 0x1111, 0xE030 | 1 << 32, 0x46, STACK, 0xE02B)
        assert entry.core.q[RSP] == (STACK & ~15) - 56
        assert (entry.core.q[RIP], entry.selector(CS), entry.selector(SS)) == (HANDLER, 0xE033, 0xE02B)

    def test_the_frame_of_a_user(self) -> None:
        entry = Entry()
        entry.user()
        entry.world.memory.store8(entry.vcpu.info + 1, 0)
        entry.core.set_cs(0x33, 0, 0xFFFF_FFFF, 0x00A0_FB00)
        entry.core.d[SEG_SELECTOR[SS]] = 0x2B
        entry.bounce.enter(entry.vcpu, entry.machine_core, HANDLER, True, 0x14)
        assert entry.words(8) == (0x2222, 0x3333, 0x14, 0x1111, 0x33, 0x202, STACK, 0x2B)
        assert entry.core.q[RSP] == KERNEL_STACK - 64
        assert entry.world.byte(entry.vcpu.info + 1) == 1, "events are masked"
        assert entry.vcpu.in_kernel
        assert (entry.core.q[GS_BASE], entry.vcpu.gs_shadow) == (0xBBBB, 0xAAAA)
        assert (entry.core.bank, entry.selector(CS)) == (0, 0xE033)

    @pytest.mark.parametrize(
        ("before", "masks", "after"), [(0, False, 0), (0, True, 1), (1, False, 1), (1, True, 1)]
    )
    def test_the_mask_goes_into_the_frame(self, before: int, masks: bool, after: int) -> None:
        entry = Entry()
        entry.world.memory.store8(entry.vcpu.info + 1, before)
        entry.bounce.enter(entry.vcpu, entry.machine_core, HANDLER, masks)
        assert entry.words(7)[3] >> 32 == before
        assert bool(entry.words(7)[4] & IF) is not bool(before)
        assert entry.world.byte(entry.vcpu.info + 1) == after

    def test_flags_are_saved_and_the_dangerous_ones_cleared(self) -> None:
        entry = Entry()
        flags = 0x8D7 | TF | NT | RF | AC | IF
        entry.core.flags = flags
        entry.bounce.enter(entry.vcpu, entry.machine_core, HANDLER, False)
        assert entry.words(7)[4] == flags & ~IF
        assert entry.core.flags == flags & ~(TF | NT | RF | AC)

    @pytest.mark.parametrize("assist", [False, True])
    def test_the_io_privilege_level_is_shown_to_those_who_asked(self, assist: bool) -> None:
        entry = Entry()
        entry.vcpu.iopl = 1 << 12
        entry.vcpu.domain.vm_assist = assist << xen.VMASST_TYPE_architectural_iopl
        entry.core.flags = 0x202 | IOPL
        entry.bounce.enter(entry.vcpu, entry.machine_core, HANDLER, False)
        assert entry.words(7)[4] & IOPL == (1 << 12 if assist else 0)

    def test_the_failsafe_frame_has_the_data_selectors(self) -> None:
        entry = Entry()
        for register, value in ((DS, 0x18), (ES, 0x20), (FS, 0x28), (GS, 0x30)):
            entry.core.d[SEG_SELECTOR[register]] = value
        entry.bounce.enter(entry.vcpu, entry.machine_core, HANDLER, False, failsafe=True)
        assert entry.words(11)[:7] == (0x2222, 0x3333, 0x18, 0x20, 0x28, 0x30, 0x1111)

    @pytest.mark.parametrize(
        "stack",
        [
            HOLE + 0x100,
            RO_PAGE + 0x100,
            HOLE + 16,
            0xFFFF_8000_0000_0010,
            0xFFFF_87FF_FFFF_FFF0,
            0xFFFF_8800_0000_0050,
            1 << 47,
            0,
            8,
        ],
    )
    def test_a_stack_that_is_no_good_crashes(self, stack: int) -> None:
        entry = Entry()
        entry.core.q[RSP] = stack
        with pytest.raises(BounceError):
            entry.bounce.enter(entry.vcpu, entry.machine_core, HANDLER, False)

    def test_no_handler_crashes(self) -> None:
        entry = Entry()
        with pytest.raises(BounceError):
            entry.bounce.enter(entry.vcpu, entry.machine_core, 0, False)


class TestBounce32:
    def test_the_frame_of_a_kernel(self) -> None:
        entry = Entry(pv32=True)
        entry.core.set_cs(0xE019, 0, 0xFFFF_FFFF, 0)
        entry.bounce32.enter(entry.vcpu, entry.machine_core, 0xE019, 0x1234, False, 7)
        assert entry.words32(4) == (7, 0x1111, 0xE019 | 1 << 16, 2)
        assert (entry.core.q[RIP], entry.core.q[RSP]) == (0x1234, STACK - 16)

    def test_the_frame_of_a_user(self) -> None:
        entry = Entry(pv32=True)
        entry.core.set_cs(0xE02B, 0, 0xFFFF_FFFF, 0)
        entry.core.d[SEG_SELECTOR[SS]] = 0xE033
        entry.vcpu.kernel_ss = arch_x86_32.FLAT_KERNEL_SS
        entry.world.memory.store8(entry.vcpu.info + 1, 0)
        entry.bounce32.enter(entry.vcpu, entry.machine_core, 0xE019, 0x1234, True)
        assert entry.words32(5) == (0x1111, 0xE02B, 0x202, STACK, 0xE033)
        assert entry.core.q[RSP] == KERNEL_STACK - 20
        assert (entry.selector(SS), entry.selector(CS)) == (0xE021, 0xE019)
        assert entry.world.byte(entry.vcpu.info + 1) == 1

    def test_bad_ones_crash(self) -> None:
        for cs, ss, stack, address in (
            (0xE019, 0x10, KERNEL_STACK, 1),
            (0x99, 0xE021, KERNEL_STACK, 1),
            (0xE019, 0xE021, HOLE + 8, 1),
            (1, 0xE021, KERNEL_STACK, 1),
        ):
            entry = Entry(pv32=True)
            entry.core.set_cs(0xE02B, 0, 0xFFFF_FFFF, 0)
            entry.vcpu.kernel_ss, entry.vcpu.kernel_sp = ss, stack
            with pytest.raises(BounceError):
                entry.bounce32.enter(entry.vcpu, entry.machine_core, cs, address, False)


def returning(
    entry: Entry,
    *,
    flags: int = 0,
    rip: int = 0x5000,
    cs: int = 0xE033,
    rflags: int = 0x202,
    ss: int = 0xE02B,
    at: int = STACK - 8,
) -> int:
    """The iret hypercall with this frame."""
    frame = arch_x86.iret_context.w64.pack(
        rax=0x77, r11=0x88, rcx=0x99, flags=flags, rip=rip, cs=cs, rflags=rflags, rsp=0x6000, ss=ss
    )
    entry.vcpu.space.write(at, frame)
    entry.core.q[RSP] = at
    return entry.iret.iret(entry.vcpu)


class TestIret64:
    def test_to_the_kernel(self) -> None:
        entry = Entry()
        entry.vcpu.nmi_masked = True
        assert returning(entry, cs=0xE030) == 0x77
        q = entry.core.q
        assert (q[RIP], q[RSP], q[RCX], q[R11]) == (0x5000, 0x6000, 0x99, 0x88)
        assert entry.vcpu.in_kernel
        assert not entry.vcpu.nmi_masked
        assert entry.world.byte(entry.vcpu.info + 1) == 0

    @pytest.mark.parametrize(("rflags", "mask"), [(0x202, 0), (2, 1)])
    def test_the_interrupt_flag_is_the_upcall_mask(self, rflags: int, mask: int) -> None:
        entry = Entry()
        returning(entry, cs=0xE030, rflags=rflags | IOPL | VM | 0xD5)
        assert entry.world.byte(entry.vcpu.info + 1) == mask
        assert entry.core.flags == 0x2D7

    def test_to_the_user(self) -> None:
        entry = Entry()
        entry.vcpu.user_root = USER_ROOT
        entry.core.q[GS_BASE], entry.vcpu.gs_shadow = 0xAAAA, 0xBBBB
        returning(entry)
        assert not entry.vcpu.in_kernel
        assert (entry.core.q[GS_BASE], entry.core.bank) == (0xBBBB, 1)

    def test_the_end_of_a_system_call_leaves_rcx_and_r11_as_sysret_does(self) -> None:
        entry = Entry()
        entry.vcpu.user_root = USER_ROOT
        returning(entry, flags=arch_x86.VGCF_in_syscall, cs=0x33, ss=0x2B)
        assert (entry.core.q[RCX], entry.core.q[R11]) == (0x5000, 0x202)
        assert (entry.selector(CS), entry.selector(SS)) == (0xE033, 0xE02B), (
            "sysret knows one selector of each"
        )
        assert entry.faults.injected == []

    def test_what_crashes_the_domain(self) -> None:
        entry = Entry()
        returning(entry)
        entry.core.q[RSP] = HOLE
        entry.iret.iret(entry.vcpu)
        assert len(entry.world.ends.crashes) == 2, "no user tables; no frame to read"

    def test_the_assist_decides_about_the_io_privilege_level(self) -> None:
        for assist, expected in ((0, 0), (1 << xen.VMASST_TYPE_architectural_iopl, 1 << 12)):
            entry = Entry()
            entry.vcpu.domain.vm_assist = assist
            returning(entry, cs=0xE030, rflags=0x202 | 1 << 12)
            assert entry.vcpu.iopl == expected

    @pytest.mark.parametrize(
        ("cs", "ss", "fault"),
        [
            (0x1230, 0xE02B, (13, 0x1230)),
            (0, 0xE02B, (13, 0)),
            (0xE02B, 0xE02B, (13, 0xE028)),
            (0xE033, 0x1230, (13, 0x1230)),
            (0xE033, 0, (13, 0)),
            (0xE033, 0xE033, (13, 0xE030)),
        ],
    )
    def test_selectors_that_cannot_be_loaded_fault(self, cs: int, ss: int, fault: tuple[int, int]) -> None:
        entry = Entry()
        entry.vcpu.user_root = USER_ROOT
        returning(entry, cs=cs, ss=ss)
        assert entry.faults.injected == [fault]
        assert (entry.core.q[RIP], entry.core.q[RAX]) == (0x5000, 0x77), "the context is already the new one"

    def test_segments_that_are_not_present_fault_as_such(self) -> None:
        entry = Entry()
        entry.vcpu.user_root = USER_ROOT
        code, data = entry.descriptor(2, CODE & ~PRESENT), entry.descriptor(3, DATA & ~PRESENT)
        returning(entry, cs=code)
        returning(entry, ss=data)
        assert entry.faults.injected == [(11, code & ~3), (12, data & ~3)]

    def test_selectors_of_its_own(self) -> None:
        entry = Entry()
        entry.vcpu.user_root = USER_ROOT
        code, data = entry.descriptor(6, CODE), entry.descriptor(5, DATA)
        returning(entry, cs=code, ss=data)
        assert (entry.selector(CS), entry.selector(SS)) == (code, data)
        assert entry.faults.injected == []


class TestIret32:
    def test_to_ring_one_and_to_a_user(self) -> None:
        for cs, tail, expected in ((0xE019, (), STACK + 16), (0xE02B, (0x7000, 0xE033), 0x7000)):
            entry = Entry(pv32=True)
            words = (0x77, 0x5000, cs, 0x202, *tail)
            entry.vcpu.space.write(STACK, struct.pack(f"<{len(words)}I", *words))
            assert entry.iret.iret(entry.vcpu) == 0x77
            assert (entry.core.q[RIP], entry.core.q[RSP], entry.selector(CS)) == (0x5000, expected, cs)
            assert entry.vcpu.in_kernel is (cs & 3 == 1)

    @pytest.mark.parametrize(("cs", "flags"), [(0xE018, 0x202), (0xE019, 0x202 | VM)])
    def test_ring_zero_and_virtual_8086_crash(self, cs: int, flags: int) -> None:
        entry = Entry(pv32=True)
        entry.vcpu.space.write(STACK, struct.pack("<4I", 0, 0x5000, cs, flags))
        entry.iret.iret(entry.vcpu)
        assert len(entry.world.ends.crashes) == 1

    def test_a_user_loses_the_kernels_data_segments(self) -> None:
        entry = Entry(pv32=True)
        entry.segments.load(entry.vcpu, entry.machine_core, DS, 0xE021)
        entry.segments.load(entry.vcpu, entry.machine_core, ES, 0xE033)
        entry.vcpu.space.write(STACK, struct.pack("<6I", 0x77, 0x5000, 0xE02B, 0x202, 0x7000, 0xE033))
        entry.iret.iret(entry.vcpu)
        assert (entry.selector(DS), entry.selector(ES)) == (0, 0xE033)

    def test_a_bad_selector_faults(self) -> None:
        entry = Entry(pv32=True)
        entry.vcpu.space.write(STACK, struct.pack("<4I", 0, 0x5000, 0x1235, 0x202))
        entry.iret.iret(entry.vcpu)
        assert entry.faults.injected == [(13, 0x1234)]


class TestSegments:
    @pytest.mark.parametrize("ldt", [False, True])
    def test_base_limit_and_flags_come_from_the_descriptor(self, ldt: bool) -> None:
        entry = Entry()
        selector = entry.descriptor(4, 0x12CF_F334_5678_9ABC, ldt=ldt)
        assert entry.segments.load(entry.vcpu, entry.machine_core, DS, selector)
        core: PlainCore = entry.core
        from machine.registers import SEG_BASE, SEG_FLAGS, SEG_LIMIT

        assert (core.q[SEG_BASE[DS]], core.d[SEG_LIMIT[DS]]) == (0x1234_5678, 0xF_9ABC_FFF)
        assert core.d[SEG_FLAGS[DS]] == 0x00C0_F300

    @pytest.mark.parametrize(
        ("register", "descriptor", "rpl", "allowed"),
        [
            (DS, DATA, 3, True),
            (DS, DATA, 0, True),
            (DS, DATA & ~(3 << 45), 3, False),
            (DS, DATA & ~(1 << 41), 3, True),
            (DS, CODE, 3, True),
            (DS, CODE & ~(1 << 41), 3, False),
            (DS, CODE & ~(3 << 45), 3, False),
            (DS, CODE & ~(3 << 45) | CONFORMING, 3, True),
            (DS, DATA & ~PRESENT, 3, False),
            (DS, DATA & ~(1 << 44), 3, False),
            (DS, 0, 3, False),
            (SS, DATA, 3, True),
            (SS, DATA, 2, False),
            (SS, DATA & ~(1 << 41), 3, False),
            (SS, CODE, 3, False),
            (CS, CODE, 3, True),
            (CS, CODE, 2, False),
            (CS, DATA, 3, False),
            (CS, CODE & ~(3 << 45), 3, False),
            (CS, CODE & ~(3 << 45) | CONFORMING, 3, True),
            (CS, CODE | 1 << 54, 3, False),
            (CS, RING1_CODE | 3 << 45, 3, True),
            (CS, CODE & ~PRESENT, 3, False),
        ],
    )
    def test_the_processors_checks(self, register: int, descriptor: int, rpl: int, allowed: bool) -> None:
        entry = Entry()
        selector = entry.descriptor(4, descriptor) & ~3 | rpl
        assert entry.segments.load(entry.vcpu, entry.machine_core, register, selector) is allowed

    def test_tables_end(self) -> None:
        entry = Entry()
        for ldt in (False, True):
            selector = entry.descriptor(500, DATA, ldt=ldt)
            if ldt:
                entry.vcpu.ldt_entries = 500
            else:
                entry.vcpu.gdt_entries = 500
            assert entry.segments.descriptor(entry.vcpu, selector) is None
        entry.tables.ldt.clear()
        assert entry.segments.descriptor(entry.vcpu, 4) is None
        assert entry.segments.descriptor(entry.vcpu, AFTER & 0xFFF8) is None

    def test_null_is_for_data_only(self) -> None:
        entry = Entry()
        for register, allowed in ((DS, True), (ES, True), (FS, True), (GS, True), (CS, False), (SS, False)):
            assert entry.segments.load(entry.vcpu, entry.machine_core, register, 3) is allowed

    def test_long_code_is_not_for_32_bit_guests(self) -> None:
        entry = Entry(pv32=True)
        selector = entry.descriptor(4, CODE)
        assert LONG & CODE
        assert not entry.segments.load(entry.vcpu, entry.machine_core, CS, selector)
