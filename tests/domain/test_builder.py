"""The builder: every promise of xen.h's start-of-day layout, seen through a page walk of its own."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.abi import elfnote as en
from firmware.abi import start_info as abi
from firmware.abi import xen
from firmware.domain.builder import Built, build
from firmware.domain.errors import BuildError
from firmware.domain.hypercall_page import hypercall_page
from firmware.domain.image import ImageError, KernelImage, parse_image
from firmware.domain.modules import Module, pack_modules
from machine.memory import MachineMemory
from tests.domain.kernels import BASE, GOOD, GOOD_32, Kernel, Load, Section

PRESENT, RW, USER, ACCESSED, DIRTY = 1, 2, 4, 32, 64
HIGH_PAGES = (1 << 52) - (1 << 36)
ADDRESS = (1 << 52) - 4096
SHARED = 5
CODE = random.Random(4).randbytes(70_000)
RAMDISK = random.Random(5).randbytes(300_001)


def image(kernel: Kernel = GOOD, **notes: Any) -> KernelImage:
    named = {getattr(en, f"XEN_ELFNOTE_{name}"): value for name, value in notes.items()}
    return parse_image(
        kernel.having(
            loads=(
                Load(0x1000, CODE, memsz=len(CODE)),
                Load(0x40000, CODE[:5000], memsz=0x8000),
            )
        )
        .noting(named)
        .image(),
        "kernel",
    )


LINUX: dict[str, Any] = {"INIT_P2M": 0x8000000000, "MOD_START_PFN": 1}
KERNELS = {
    "64": image(),
    "64, as Linux": image(**LINUX),
    "64, at 0": image(VIRT_BASE=0, ENTRY=0x1000),
    "32": image(GOOD_32),
    "32, at 0": image(GOOD_32, VIRT_BASE=0, ENTRY=0x1000),
    "32, frame list asked for elsewhere": image(GOOD_32, INIT_P2M=0x10000000, MOD_START_PFN=1),
}


class World:
    """A machine, a domain's frames scattered over it, and what the builder made."""

    def __init__(self, kernel: KernelImage, pages: int = 8 << 8, seed: int = 1, **options: Any) -> None:
        self.kernel = kernel
        self.memory = MachineMemory((pages + 64 << 12) * 2)
        order = list(range(16, self.memory.frames))
        random.Random(seed).shuffle(order)
        half = pages // 2
        self.given = sorted(order[:half]) + order[half:pages]
        options = {"shared_info_mfn": SHARED, "console_port": 2, "store_port": 1} | options
        self.built: Built = build(self.memory, self.given, kernel, **options)
        self.frames = [int(mfn) for mfn in self.built.frames]
        self.pfns = {mfn: pfn for pfn, mfn in enumerate(self.frames)}
        self.base = kernel.virt_base

    def table(self, mfn: int) -> list[int]:
        return list(struct.unpack("<512Q", self.memory.read(mfn << 12, 4096)))

    def walk(self) -> dict[int, int]:
        """Virtual page -> L1 entry, for everything that is mapped."""
        wide = self.kernel.width == 64
        level = 4 if wide else 3
        entries = {0: self.built.root_mfn << 12}
        while level:
            below = {}
            for prefix, entry in entries.items():
                for slot, inner in enumerate(self.table((entry & ADDRESS) >> 12)):
                    if inner & PRESENT:
                        below[prefix << 9 | slot] = inner
                    else:
                        assert inner == 0
            entries = below
            level -= 1
        if wide:
            return {page | (page >> 35) * HIGH_PAGES: entry for page, entry in entries.items()}
        return entries

    def read(self, va: int, length: int) -> bytes:
        """Guest bytes by virtual address."""
        mapped = self.walk()
        pages = range(va >> 12, (va + length - 1 >> 12) + 1)
        data = b"".join(self.memory.read(mapped[page] & ADDRESS, 4096) for page in pages)
        return data[va & 4095 :][:length]

    def read_pfns(self, pfn: int, length: int) -> bytes:
        pages = range(pfn, pfn + -(-length // 4096))
        return b"".join(self.memory.read(self.frames[page] << 12, 4096) for page in pages)[:length]

    def info(self) -> Any:
        layout = abi.start_info.of(self.kernel.width == 64)
        return layout.unpack(self.read(self.built.start_info_va, layout.size))


@pytest.fixture(scope="module", params=KERNELS)
def world(request: pytest.FixtureRequest) -> World:
    return World(KERNELS[request.param], cmdline=b"console=hvc0 quiet", ramdisk=RAMDISK)


class TestMapping:
    def initial(self, world: World) -> dict[int, int]:
        first = world.base >> 12
        last = first + world.built.mapped_pages
        return {page: entry for page, entry in world.walk().items() if first <= page < last}

    def test_the_first_frames_are_mapped_from_virt_base_on(self, world: World) -> None:
        first = world.base >> 12
        assert {page - first: (entry & ADDRESS) >> 12 for page, entry in self.initial(world).items()} == dict(
            enumerate(world.frames[: world.built.mapped_pages])
        )

    def test_nothing_else_is_mapped_but_a_frame_list_apart(self, world: World) -> None:
        others = world.walk().keys() - self.initial(world).keys()
        expected: set[int] = set()
        if world.built.p2m_va == 0x8000000000:
            expected = {0x8000000 + page for page in range(len(world.frames) * 8 >> 12)}
        assert others == expected

    def test_page_tables_are_read_only_and_all_else_writable(self, world: World) -> None:
        for entry in world.walk().values():
            pfn = world.pfns[(entry & ADDRESS) >> 12]
            table = pfn in world.built.page_table_pfns
            assert entry & 0xFFF == PRESENT | ACCESSED | (0 if table else RW)

    def test_every_table_is_used_once(self, world: World) -> None:
        wide = world.kernel.width == 64
        seen, level, tables = [world.built.root_mfn], 4 if wide else 3, [world.built.root_mfn]
        while level > 1:
            entries = [entry for mfn in tables for entry in world.table(mfn) if entry]
            pae_root = not wide and level == 3
            assert all(
                entry & 0xFFF == (PRESENT if pae_root else PRESENT | RW | USER | ACCESSED | DIRTY)
                for entry in entries
            )
            tables = [(entry & ADDRESS) >> 12 for entry in entries]
            seen += tables
            level -= 1
        assert len(seen) == len(set(seen))
        assert {world.pfns[mfn] for mfn in seen} == set(world.built.page_table_pfns)

    def test_it_ends_on_4_mib_with_512_kib_to_spare(self, world: World) -> None:
        end = world.base + (world.built.mapped_pages << 12)
        assert end % (4 << 20) == 0
        assert end - world.built.stack_va >= 512 << 10

    def test_the_pieces_are_in_order(self, world: World) -> None:
        info = world.info()
        console, store = world.pfns[world.built.console_mfn], world.pfns[world.built.store_mfn]
        places = [world.kernel.virt_end + 4095 >> 12]
        if info.mod_len and not info.flags & abi.SIF_MOD_START_PFN:
            places += [info.mod_start >> 12, info.mod_start + info.mod_len + 4095 >> 12]
        if not info.first_p2m_pfn:
            places += [info.mfn_list >> 12]
        base = world.base >> 12
        places += [
            world.built.start_info_va >> 12,
            base + store,
            base + console,
            info.pt_base >> 12,
            world.built.stack_va - 4096 >> 12,
        ]
        assert places == sorted(places)
        assert places[-5:-2] == [places[-5], places[-5] + 1, places[-5] + 2]
        assert places[-1] - places[-2] == info.nr_pt_frames
        assert info.pt_base >> 12 == base + world.built.root_pfn


class TestContents:
    def test_the_kernel_is_where_its_headers_say(self, world: World) -> None:
        assert world.read(world.base + 0x1000, len(CODE)) == CODE
        assert world.read(world.base + 0x40000, 0x8000) == CODE[:5000] + bytes(0x8000 - 5000)
        assert world.read(world.base, 0x1000) == bytes(0x1000)

    def test_start_info(self, world: World) -> None:
        info, built = world.info(), world.built
        wide = world.kernel.width == 64
        assert info.magic.rstrip(b"\0") == (b"xen-3.0-x86_64" if wide else b"xen-3.0-x86_32p")
        assert info.nr_pages == len(world.frames)
        assert info.shared_info == SHARED << 12
        assert (info.store_mfn, info.store_evtchn) == (built.store_mfn, 1)
        assert info.console == (built.console_mfn, 2)
        assert info.nr_pt_frames == built.nr_pt_frames
        assert info.cmd_line == b"console=hvc0 quiet".ljust(1024, b"\0")
        assert info.mod_len == len(RAMDISK)
        assert info.flags & ~abi.SIF_MOD_START_PFN == abi.SIF_VIRT_P2M_4TOOLS
        assert info.mfn_list == built.p2m_va

    def test_the_frame_list_names_every_frame(self, world: World) -> None:
        code = "Q" if world.kernel.width == 64 else "I"
        form = struct.Struct(f"<{len(world.frames)}{code}")
        assert list(form.unpack(world.read(world.built.p2m_va, form.size))) == world.frames
        assert sorted(world.frames) == sorted(world.given)

    def test_the_ramdisk(self, world: World) -> None:
        info = world.info()
        assert bool(info.flags & abi.SIF_MOD_START_PFN) == world.kernel.mod_start_pfn
        if world.kernel.mod_start_pfn:
            assert info.mod_start >= world.built.mapped_pages
            assert world.read_pfns(info.mod_start, len(RAMDISK)) == RAMDISK
        else:
            assert world.read(info.mod_start, len(RAMDISK)) == RAMDISK

    def test_rings_and_stack_are_empty(self, world: World) -> None:
        for mfn in (world.built.console_mfn, world.built.store_mfn):
            assert world.memory.read(mfn << 12, 4096) == bytes(4096)
        assert world.read(world.built.stack_va - 4096, 4096) == bytes(4096)

    def test_events_start_masked(self, world: World) -> None:
        layout = xen.shared_info.of(world.kernel.width == 64)
        shared = layout.unpack(world.memory.read(SHARED << 12, layout.size))
        assert [info.evtchn_upcall_mask for info in shared.vcpu_info] == [1] * 32
        assert shared.wc_version == 0

    def test_a_frame_list_apart_is_announced_with_its_tables(self, world: World) -> None:
        info, built = world.info(), world.built
        if built.p2m_va != 0x8000000000:
            assert (info.first_p2m_pfn, info.nr_p2m_frames) == (0, 0)
            return
        assert (info.first_p2m_pfn, info.nr_p2m_frames) == (built.p2m_pfn, built.nr_p2m_frames)
        assert built.p2m_pfn >= built.mapped_pages
        lists = len(world.frames) * 8 >> 12
        tables = [pfn for pfn in built.page_table_pfns if pfn >= built.mapped_pages]
        assert tables == list(range(built.p2m_pfn + lists, built.p2m_pfn + built.nr_p2m_frames))
        assert len(tables) == 3


class TestPae:
    def test_the_last_l2_always_exists_and_is_named(self) -> None:
        for name in ("32", "32, at 0"):
            world = World(KERNELS[name])
            root = world.table(world.built.root_mfn)
            assert root[4:] == [0] * 508
            assert (root[3] & ADDRESS) >> 12 == world.built.high_l2_mfn
        assert not any(world.table((root[3] & ADDRESS) >> 12))

    def test_64_bit_guests_have_none(self) -> None:
        assert World(KERNELS["64"]).built.high_l2_mfn is None

    def test_notes_that_say_yes_know_folded_roots(self) -> None:
        assert World(KERNELS["32"]).built.vm_assist == 1 << xen.VMASST_TYPE_pae_extended_cr3
        assert World(KERNELS["64"]).built.vm_assist == 0

    def test_an_old_kernels_root_is_moved_below_4_gib(self) -> None:
        kernel = self.old()
        memory = MachineMemory(6 << 30)
        high = list(range((4 << 18) + 100, (4 << 18) + 100 + 2000))
        built = build(memory, [*high, 700, 701], kernel, shared_info_mfn=5, console_port=1, store_port=2)
        assert built.root_mfn == 701
        assert int(built.frames[2001]) == high[built.root_pfn]
        assert built.vm_assist == 0

    def test_an_old_kernel_without_low_memory_is_refused(self) -> None:
        frames = range(4 << 18, (4 << 18) + 2000)
        with pytest.raises(BuildError, match="root table below 4 GiB"):
            build(MachineMemory(6 << 30), frames, self.old(), shared_info_mfn=5, console_port=1, store_port=2)

    @staticmethod
    def old() -> KernelImage:
        text = b"GUEST_OS=linux,XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,PAE=yes\0"
        return parse_image(
            Kernel(
                width=32,
                notes={},
                loads=(Load(0xC0001000, bytes(64)),),
                entry=0xC0001000,
                sections=(Section("__xen_guest", 1, text),),
            ).image(),
            "old",
        )


class TestHypercallPage:
    def test_it_is_filled_where_the_kernel_wants_it(self) -> None:
        world = World(image(HYPERCALL_PAGE=BASE + 0x41000))
        assert world.read(BASE + 0x41000, 4096) == hypercall_page(64)

    def test_64_bit_stubs(self) -> None:
        page = hypercall_page(64)
        number = xen.HYPERCALL_NUMBERS["sched_op"]
        assert page[number * 32 :][:14] == bytes.fromhex("51 4153 b8 1d000000 0f05 415b 59 c3")
        assert page[xen.HYPERCALL_NUMBERS["iret"] * 32 :][:11] == bytes.fromhex("51 4153 50 b8 17000000 0f05")
        assert len(page) == 4096
        assert page[14:32] == b"\xcc" * 18

    def test_32_bit_stubs(self) -> None:
        page = hypercall_page(32)
        assert page[12 * 32 :][:8] == bytes.fromhex("b8 0c000000 cd82 c3")
        assert page[23 * 32 :][:8] == bytes.fromhex("50 b8 17000000 cd82")


class TestModules:
    def test_a_list_is_packed_and_announced(self) -> None:
        modules = (Module(b"first" * 1000, b"one two"), Module(b"second"), Module(b"", b"empty"))
        world = World(KERNELS["64"], modules=modules)
        info = world.info()
        assert info.flags & abi.SIF_MULTIBOOT_MOD
        package = world.read(info.mod_start, info.mod_len)
        assert package == pack_modules(modules)
        rows = abi.xen_multiboot_mod_list.w64.unpack_all(package[:64])
        assert rows[3] == (0, 0, 0, 0)
        for row, module in zip(rows, modules, strict=False):
            assert row.mod_start % 4096 == 0
            assert package[row.mod_start : row.mod_end + 1] == module.data
            assert package[row.cmdline :].split(b"\0")[0] == module.cmdline

    def test_not_with_a_ramdisk(self) -> None:
        with pytest.raises(BuildError, match="not both"):
            World(KERNELS["64"], modules=(Module(b"x"),), ramdisk=b"y")


class Recorder(MachineMemory):
    """Memory that counts the bytes written."""

    written = 0

    def write(self, paddr: int, data: bytes | bytearray | memoryview) -> None:
        self.written += len(data)
        super().write(paddr, data)

    def store8(self, paddr: int, value: int) -> None:
        self.written += 1
        super().store8(paddr, value)


class TestLimits:
    def attempt(self, kernel: KernelImage, pages: int, **options: Any) -> Recorder:
        memory = Recorder(pages + 64 << 12)
        ports: dict[str, Any] = {"shared_info_mfn": 5, "console_port": 2, "store_port": 1}
        try:
            build(memory, range(64, 64 + pages), kernel, **ports, **options)
        except (BuildError, ImageError):
            assert memory.written == 0
            raise
        return memory

    @pytest.mark.parametrize("name", KERNELS)
    def test_the_memory_asked_for_is_enough_and_less_is_not(self, name: str) -> None:
        with pytest.raises(BuildError) as failure:
            self.attempt(KERNELS[name], 3, ramdisk=RAMDISK)
        text = str(failure.value)
        assert text.startswith("the kernel kernel (1 MiB) and its ramdisk (1 MiB) need at least ")
        assert text.endswith(" MiB, and the domain has 0 MiB")
        enough = int(text.split("at least ")[1].split(maxsplit=1)[0])
        self.attempt(KERNELS[name], enough << 8, ramdisk=RAMDISK)
        with pytest.raises(BuildError):
            self.attempt(KERNELS[name], enough - 1 << 8, ramdisk=RAMDISK)

    def test_a_ramdisk_that_is_too_large(self) -> None:
        with pytest.raises(BuildError, match=r"ramdisk \(20 MiB\) need at least 2[0-9] MiB.* has 16"):
            self.attempt(KERNELS["64"], 16 << 8, ramdisk=bytes(20 << 20))

    def test_a_kernel_larger_than_memory(self) -> None:
        kernel = parse_image(GOOD.having(loads=(Load(0x1000, b"x" * 4096, memsz=64 << 20),)).image(), "big")
        with pytest.raises(BuildError, match=r"^the kernel big \(65 MiB\) needs at least 68 MiB.* has 32"):
            self.attempt(kernel, 32 << 8)

    def test_no_memory_at_all(self) -> None:
        with pytest.raises(BuildError, match="the domain has 0 MiB"):
            self.attempt(KERNELS["64"], 0)

    def test_the_longest_command_line(self) -> None:
        self.attempt(KERNELS["64"], 4 << 8, cmdline=b"x" * 1023)
        with pytest.raises(BuildError, match="1024 bytes, and 1023 is the most"):
            self.attempt(KERNELS["64"], 4 << 8, cmdline=b"x" * 1024)

    @pytest.mark.parametrize(
        ("kernel", "notes", "why"),
        [
            (GOOD, {"VIRT_BASE": BASE + 8, "ENTRY": BASE + 0x1008}, "not the start of a page"),
            (GOOD, {"VIRT_BASE": 0xFFFF800000000000, "ENTRY": 0xFFFF800000001000}, "not a guest's to map"),
            (GOOD, {"VIRT_BASE": 0x7FFFFFC00000, "ENTRY": 0x7FFFFFC01000}, None),
            (GOOD, {"VIRT_BASE": 0x7FFFFFF00000, "ENTRY": 0x7FFFFFF01000}, None),
            (GOOD, {"VIRT_BASE": 0x7FFFFFFF0000, "ENTRY": 0x7FFFFFFF1000}, "not a guest's to map"),
            (GOOD, {"VIRT_BASE": 0x800000000000, "ENTRY": 0x800000001000}, "not a guest's to map"),
            (GOOD, {"VIRT_BASE": (1 << 64) - (1 << 20), "ENTRY": (1 << 64) - (1 << 20) + 0x1000}, None),
            (GOOD, {"INIT_P2M": BASE - 4096}, "too close below"),
            (GOOD, {"INIT_P2M": 0xFFFF810000000000}, "not a guest's to map"),
            (GOOD, {"INIT_P2M": 0x8000000008}, None),
            (GOOD, {"INIT_P2M": BASE + (1 << 30)}, None),
            (GOOD_32, {"VIRT_BASE": 0xF5400000, "ENTRY": 0xF5401000}, None),
            (GOOD_32, {"VIRT_BASE": 0xF5780000, "ENTRY": 0xF5781000}, "not a guest's to map"),
        ],
    )
    def test_addresses(self, kernel: Kernel, notes: dict[str, int], why: str | None) -> None:
        parsed = image(kernel, **notes)
        if why is None:
            self.attempt(parsed, 8 << 8)
            return
        with pytest.raises(ImageError, match=why):
            self.attempt(parsed, 8 << 8)

    def test_a_large_domain_is_not_touched_beyond_need(self) -> None:
        pages = 8 << 18
        memory = self.attempt(KERNELS["64, as Linux"], pages, ramdisk=RAMDISK)
        assert memory.written < pages * 8 + (1 << 20)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(KERNELS)),
    st.integers(0, 1 << 21),
    st.integers(1100, 3000),
    st.integers(0, 1 << 16),
)
def test_any_size_keeps_the_promises(name: str, ramdisk: int, pages: int, seed: int) -> None:
    try:
        world = World(KERNELS[name], pages, seed, ramdisk=bytes(ramdisk))
    except BuildError:
        return
    mapping = TestMapping()
    mapping.test_the_first_frames_are_mapped_from_virt_base_on(world)
    mapping.test_page_tables_are_read_only_and_all_else_writable(world)
    mapping.test_it_ends_on_4_mib_with_512_kib_to_spare(world)
    mapping.test_the_pieces_are_in_order(world)
    TestContents().test_the_frame_list_names_every_frame(world)
