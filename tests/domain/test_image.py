"""Kernel images: what is recognised, what is read from the notes, and what bad files get."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.abi import elfnote as en
from firmware.abi import features
from firmware.domain import unpack
from firmware.domain.image import ImageError, KernelImage, load_image, parse_image, read_image
from tests.domain.kernels import BASE, BASE_32, GOOD, GOOD_32, Kernel, Load, Section, bzimage, note


def lz4_legacy(data: bytes) -> bytes:
    blocks = [data[at : at + (8 << 20)] for at in range(0, len(data), 8 << 20)]
    packed = [lz4.block.compress(block, store_size=False) for block in blocks]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in packed)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "lz4": lz4_legacy,
}


def parse(data: bytes) -> KernelImage:
    return parse_image(data, "kernel")


def refused(data: bytes) -> str:
    with pytest.raises(ImageError) as failure:
        parse(data)
    assert str(failure.value) == f"kernel: {failure.value.sentence}"
    return failure.value.sentence


class TestNotes:
    def test_a_plain_kernel(self) -> None:
        kernel = parse(GOOD.image())
        assert (kernel.width, kernel.entry, kernel.virt_base) == (64, BASE + 0x1000, BASE)
        assert (kernel.virt_start, kernel.virt_end) == (BASE + 0x1000, BASE + 0x4000)
        (segment,) = kernel.segments
        assert (segment.paddr, segment.vaddr, segment.memsz) == (0x1000, BASE + 0x1000, 0x3000)
        assert bytes(segment.data) == b"\x90" * 5000
        assert (kernel.hypercall_page, kernel.init_p2m, kernel.hv_start_low) == (None, None, None)

    def test_every_note_is_kept(self) -> None:
        kernel = parse(
            GOOD.noting(
                {
                    en.XEN_ELFNOTE_HYPERCALL_PAGE: BASE + 0x2000,
                    en.XEN_ELFNOTE_INIT_P2M: 0x8000000000,
                    en.XEN_ELFNOTE_HV_START_LOW: 0xFFFF800000000000,
                    en.XEN_ELFNOTE_GUEST_OS: "linux",
                    en.XEN_ELFNOTE_GUEST_VERSION: "2.6",
                    en.XEN_ELFNOTE_PAE_MODE: "yes",
                    en.XEN_ELFNOTE_SUSPEND_CANCEL: 1,
                    en.XEN_ELFNOTE_MOD_START_PFN: b"\1\0\0\0",
                    en.XEN_ELFNOTE_BSD_SYMTAB: "yes",
                    en.XEN_ELFNOTE_L1_MFN_VALID: bytes(16),
                    en.XEN_ELFNOTE_FEATURES: "!writable_page_tables|pae_pgdir_above_4gb|not_known_here",
                    en.XEN_ELFNOTE_SUPPORTED_FEATURES: b"\0\x80\0\0",
                }
            ).image()
        )
        assert kernel.hypercall_page == BASE + 0x2000
        assert kernel.init_p2m == 0x8000000000
        assert kernel.hv_start_low == 0xFFFF800000000000
        assert (kernel.guest_os, kernel.guest_version, kernel.xen_version) == ("linux", "2.6", "xen-3.0")
        assert kernel.mod_start_pfn
        assert kernel.bsd_symtab
        assert kernel.suspend_cancel
        assert kernel.l1_mfn_valid == bytes(16)
        assert kernel.features_required == 1 << features.XENFEAT_writable_page_tables
        assert kernel.features_supported == (
            1 << features.XENFEAT_writable_page_tables
            | 1 << features.XENFEAT_pae_pgdir_above_4gb
            | 1 << features.XENFEAT_linux_rsdp_unrestricted
        )

    def test_notes_in_a_section_do_as_well(self) -> None:
        assert parse(GOOD.having(notes_in_section=True).image()).entry == BASE + 0x1000

    def test_other_owners_notes_are_not_xens(self) -> None:
        other = Section(".note.other", 7, note(en.XEN_ELFNOTE_ENTRY, 5, owner=b"GNU\0"))
        kernel = GOOD.having(notes_in_section=True, sections=(other,))
        assert parse(kernel.image()).entry == BASE + 0x1000

    def test_a_32_bit_kernel(self) -> None:
        kernel = parse(GOOD_32.image())
        assert (kernel.width, kernel.virt_base, kernel.entry) == (32, BASE_32, BASE_32 + 0x1000)
        assert kernel.pae == "yes[extended-cr3]"

    @pytest.mark.parametrize(("text", "pae"), [("bimodal", "bimodal"), ("yes,bimodal", "bimodal")])
    def test_bimodal_pae(self, text: str, pae: str) -> None:
        assert parse(GOOD_32.noting({en.XEN_ELFNOTE_PAE_MODE: text}).image()).pae == pae

    def test_a_paddr_offset_moves_the_segments(self) -> None:
        kernel = Kernel(loads=(Load(BASE + 0x1000, bytes(100), memsz=0x3000),)).noting(
            {en.XEN_ELFNOTE_PADDR_OFFSET: BASE}
        )
        assert parse(kernel.image()).segments[0].paddr == 0x1000

    def test_the_entry_defaults_to_the_elf_entry(self) -> None:
        kernel = GOOD.noting({en.XEN_ELFNOTE_ENTRY: None}).having(entry=BASE + 0x1234)
        assert parse(kernel.image()).entry == BASE + 0x1234

    def test_the_old_string_section(self) -> None:
        text = (
            "GUEST_OS=linux,GUEST_VER=2.6,XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,HYPERCALL_PAGE=0x2,"
            "FEATURES=writable_page_tables|pae_pgdir_above_4gb,PAE=yes,LOADER=generic"
        )
        kernel = parse(
            Kernel(
                width=32,
                notes={},
                loads=(Load(0xC0001000, bytes(64), memsz=0x3000),),
                entry=0xC0001000,
                sections=(Section("__xen_guest", 1, text.encode() + b"\0junk"),),
            ).image()
        )
        assert (kernel.virt_base, kernel.segments[0].paddr, kernel.entry) == (BASE_32, 0x1000, 0xC0001000)
        assert (kernel.hypercall_page, kernel.pae, kernel.guest_os) == (0xC0002000, "yes", "linux")

    def test_a_note_cut_by_the_end_of_the_file_is_taken_as_it_is(self) -> None:
        kernel = GOOD_32.noting({en.XEN_ELFNOTE_PAE_MODE: None})
        data = kernel.noting({en.XEN_ELFNOTE_PAE_MODE: "yes,bimodal"}).image()[:-8]
        headers = bytearray(data)
        at = 52 + 32 + 16
        struct.pack_into("<I", headers, at, struct.unpack_from("<I", headers, at)[0] - 8)
        assert parse(bytes(headers)).pae == "yes[extended-cr3]"


class TestPacking:
    @pytest.mark.parametrize("name", PACKERS)
    def test_every_packing_of_a_bzimage(self, name: str) -> None:
        data = GOOD.image()
        packed = PACKERS[name](data)
        trailer = b"" if name == "gzip" else struct.pack("<I", len(data))
        assert parse(bzimage(packed + trailer)).entry == BASE + 0x1000

    def test_large_lz4_kernels_have_several_blocks(self) -> None:
        data = GOOD.having(loads=(Load(0x1000, bytes(range(256)) * (9 << 12)),)).image()
        packed = lz4_legacy(data) + struct.pack("<I", len(data))
        assert len(parse(bzimage(packed)).segments[0].data) == 9 << 20

    def test_an_unpacked_payload(self) -> None:
        assert parse(bzimage(GOOD.image())).width == 64

    def test_gzipped_elf_and_gzipped_bzimage(self) -> None:
        assert parse(gzip.compress(GOOD.image())).width == 64
        assert parse(gzip.compress(bzimage(gzip.compress(GOOD.image())))).width == 64

    def test_lzo_is_refused_with_a_remedy(self) -> None:
        assert "pack it with zstd, xz or gzip" in refused(bzimage(b"\x89LZO\0\r\n\x1a\n" + bytes(99)))

    def test_an_unknown_packing_is_named_by_its_bytes(self) -> None:
        assert refused(bzimage(b"what is this")).endswith("(it starts with 77 68 61 74 20 69)")

    @pytest.mark.parametrize("name", PACKERS)
    def test_truncated_streams(self, name: str) -> None:
        packed = PACKERS[name](bytes(range(256)) * 100 + GOOD.image())
        sentence = refused(bzimage(packed[: len(packed) // 2]))
        assert sentence.startswith(f"its payload is damaged {name} data (")

    @pytest.mark.parametrize("name", PACKERS)
    def test_bombs(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(unpack, "LARGEST", 1 << 20)
        assert refused(bzimage(PACKERS[name](bytes(20 << 20)))) == "its payload unpacks to more than 1 MiB"

    def test_old_boot_protocols(self) -> None:
        assert refused(bzimage(b"", protocol=0x207)) == "its boot protocol 0x207 is older than 0x208"

    @pytest.mark.parametrize("length", [0, 1 << 20, 0xFFFFFFFF])
    def test_payloads_beyond_the_file(self, length: int) -> None:
        assert "payload goes beyond the end" in refused(bzimage(bytes(99), length=length))

    def test_a_bzimage_cut_in_its_header(self) -> None:
        assert "ends inside its header" in refused(bzimage(b"")[:0x210])


def changed(at: int, code: str, value: int) -> bytes:
    data = bytearray(GOOD.image())
    struct.pack_into(code, data, at, value)
    return bytes(data)


PVH_ONLY = GOOD.having(notes={en.XEN_ELFNOTE_PHYS32_ENTRY: 0x100000})
BAD: dict[str, tuple[bytes, str]] = {
    "no kernel": (b"#!/bin/sh\n", "neither an ELF file nor a bzImage"),
    "four bytes": (b"\x7fELF", "ends inside its ELF header"),
    "half a header": (GOOD.image()[:40], "ends inside its ELF header"),
    "big-endian": (changed(5, "<B", 2), "unknown class or byte order"),
    "no class": (changed(4, "<B", 9), "unknown class or byte order"),
    "ARM": (GOOD.having(machine=183).image(), "for another processor (ELF machine 183)"),
    "x32": (GOOD_32.having(machine=62).image(), "for another processor"),
    "an object file": (GOOD.having(kind=1).image(), "not an executable (ELF type 1)"),
    "no program headers": (changed(56, "<H", 0), "no program headers"),
    "program headers beyond": (changed(32, "<Q", 1 << 60), "program headers lie beyond"),
    "odd program headers": (changed(54, "<H", 3), "program headers are 3 bytes each instead of 56"),
    "too many program headers": (changed(56, "<H", 65000), "claims 65000 program headers"),
    "nothing to load": (GOOD.having(loads=(Load(0, b"", memsz=0),)).image(), "nothing to load"),
    "flagless segments": (GOOD.having(loads=(Load(0, b"x", flags=0),)).image(), "nothing to load"),
    "a short file": (GOOD.image()[:2000], "goes beyond the end of the file"),
    "more file than memory": (
        GOOD.having(loads=(Load(0, bytes(99), memsz=9),)).image(),
        "more bytes in the file",
    ),
    "offset wraps": (
        GOOD.having(loads=(Load(0, bytes(99), offset=(1 << 64) - 50),)).image(),
        "beyond the end",
    ),
    "huge memory": (GOOD.having(loads=(Load(0, b"", memsz=(64 << 30) + 1),)).image(), "larger than 64 GiB"),
    "wraps": (GOOD.having(loads=(Load((1 << 64) - 4096, b"", memsz=8192),)).image(), "wraps around"),
    "virtual wrap": (
        GOOD.having(loads=(Load(0, b"", 8192, vaddr=(1 << 64) - 4096),)).image(),
        "wraps around",
    ),
    "overlap": (GOOD.having(loads=(Load(0, bytes(8192)), Load(4096, b"x"))).image(), "overlap at"),
    "far apart": (
        GOOD.having(loads=(Load(0, b"x"), Load(65 << 30, b"x"))).image(),
        "spread over more than 64",
    ),
    "no notes": (GOOD.having(notes={}).image(), "no Xen ELF notes"),
    "PVH": (PVH_ONLY.image(), "PVH kernel without a PV entry"),
    "other loader": (GOOD.noting({en.XEN_ELFNOTE_LOADER: "mine"}).image(), "name the loader 'mine'"),
    "other Xen": (GOOD.noting({en.XEN_ELFNOTE_XEN_VERSION: "xen-2.0"}).image(), "interface 'xen-2.0'"),
    "no base": (
        GOOD.noting({en.XEN_ELFNOTE_VIRT_BASE: None, en.XEN_ELFNOTE_PADDR_OFFSET: 5}).image(),
        "PADDR_OFFSET without a VIRT_BASE",
    ),
    "offset above the segments": (GOOD.noting({en.XEN_ELFNOTE_PADDR_OFFSET: 0x2000}).image(), "lie outside"),
    "base too high": (GOOD.noting({en.XEN_ELFNOTE_VIRT_BASE: (1 << 64) - 4096}).image(), "lie outside"),
    "entry outside": (GOOD.noting({en.XEN_ELFNOTE_ENTRY: 0x1000}).image(), "entry point 0x1000 is outside"),
    "p2m inside": (GOOD.noting({en.XEN_ELFNOTE_INIT_P2M: BASE + 0x2000}).image(), "is inside the kernel"),
    "hypercall page outside": (
        GOOD.noting({en.XEN_ELFNOTE_HYPERCALL_PAGE: BASE + 0x3800}).image(),
        "hypercall page",
    ),
    "odd number": (GOOD.noting({en.XEN_ELFNOTE_ENTRY: b"12345"}).image(), "is a number of 5 bytes"),
    "no PAE": (GOOD_32.noting({en.XEN_ELFNOTE_PAE_MODE: "no"}).image(), "32-bit kernel without PAE"),
    "unknown requirement": (GOOD.noting({en.XEN_ELFNOTE_FEATURES: "!magic"}).image(), "'magic'"),
    "impossible requirement": (
        GOOD.noting({en.XEN_ELFNOTE_FEATURES: "!auto_translated_physmap"}).image(),
        "auto_translated_physmap",
    ),
    "dom0 only": (GOOD.noting({en.XEN_ELFNOTE_FEATURES: "!dom0"}).image(), "feature dom0"),
    "notes beyond": (GOOD.image()[:-40], "notes lie beyond"),
    "odd old string": (
        GOOD.having(notes={}, sections=(Section("__xen_guest", 1, b"VIRT_BASE=x"),)).image(),
        "not a number",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_get_one_sentence(name: str) -> None:
    data, expected = BAD[name]
    sentence = refused(data)
    assert expected in sentence
    assert "\n" not in sentence
    assert not sentence.endswith(".")


class TestFiles:
    def test_a_file_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "vmlinux"
        path.write_bytes(GOOD.image())
        kernel = load_image(path)
        assert (kernel.name, kernel.path) == ("vmlinux", str(path))

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"nope: there is no such file: check the path$"):
            read_image(tmp_path / "nope")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="it is a folder"):
            read_image(tmp_path)

    def test_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        with pytest.raises(ImageError, match="it is empty"):
            read_image(tmp_path / "empty")

    def test_a_device_is_not_read(self) -> None:
        with pytest.raises(ImageError, match="it is a device or a pipe"):
            read_image("/dev/zero")

    def test_a_file_in_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ImageError, match="it cannot be read"):
            read_image(tmp_path / "file" / "kernel")

    def test_a_huge_file_is_not_read(self, tmp_path: Path) -> None:
        with (tmp_path / "huge").open("wb") as file:
            file.truncate(2 << 30)
        with pytest.raises(ImageError, match="it has 2048 MiB"):
            read_image(tmp_path / "huge")

    def test_a_path_no_file_can_have(self) -> None:
        with pytest.raises(ImageError, match="cannot be read"):
            read_image("a\0b")


class TestSymbols:
    def kernel(self, width: int) -> KernelImage:
        base = BASE if width == 64 else BASE_32
        names = b"\0start\0other\0undefined\0data\0"
        rows = (
            (0, 0, 0, 0), (base + 0x1000, 1, 0, 1), (base + 0x1100, 7, 0, 1), (base + 0x1200, 13, 0, 0),
            (base + 0x1400, 23, 0x11, 1),  # STB_GLOBAL, STT_OBJECT
        )
        if width == 64:
            table = b"".join(
                struct.pack("<IBBHQQ", name, info, 0, index, value, 0) for value, name, info, index in rows
            )
        else:
            table = b"".join(
                struct.pack("<IIIBBH", name, value, 0, info, 0, index) for value, name, info, index in rows
            )
        sections = (Section(".symtab", 2, table, link=2), Section(".strtab", 3, names))
        return parse((GOOD if width == 64 else GOOD_32).having(sections=sections).image())

    @pytest.mark.parametrize("width", [64, 32])
    def test_addresses_get_names(self, width: int) -> None:
        kernel = self.kernel(width)
        base = kernel.virt_base
        assert kernel.symbol(base + 0x1000) == "start+0x0"
        assert kernel.symbol(base + 0x101F) == "start+0x1f"
        assert kernel.symbol(base + 0x1300) == "other+0x200"
        assert kernel.symbol(base + 0x1401) is None

    def test_addresses_outside_have_none(self) -> None:
        kernel = self.kernel(64)
        assert kernel.symbol(BASE + 0xFFF) is None
        assert kernel.symbol(BASE + 0x4000) is None

    def test_stripped_and_damaged_kernels_have_none(self) -> None:
        assert parse(GOOD.image()).symbol(BASE + 0x1000) is None
        damaged = Section(".symtab", 2, bytes(48), link=77)
        assert parse(GOOD.having(sections=(damaged,)).image()).symbol(BASE + 0x1000) is None


def parse_or_refuse(data: bytes) -> KernelImage | None:
    """Anything but a kernel or an ImageError fails the test."""
    try:
        return parse(data)
    except ImageError:
        return None


WHOLE = GOOD.having(
    notes_in_section=True,
    loads=(Load(0x1000, b"\x90" * 64, memsz=0x3000), Load(0x5000, b"\x90" * 64)),
    sections=(Section(".symtab", 2, bytes(72), link=2), Section(".strtab", 3, b"\0a\0")),
).image()
LEGACY = Kernel(
    width=32,
    notes={},
    loads=(Load(0xC0001000, bytes(64), memsz=0x3000),),
    entry=0xC0001000,
    sections=(Section("__xen_guest", 1, b"GUEST_OS=linux,XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,PAE=yes"),),
).image()
SAMPLES = (
    WHOLE,
    GOOD_32.image(),
    LEGACY,
    gzip.compress(WHOLE),
    bzimage(lzma.compress(WHOLE)),
    bzimage(WHOLE),
    bzimage(lz4_legacy(WHOLE)),
    bzimage(zstandard.ZstdCompressor().compress(WHOLE)),
)


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
def test_damage(sample: bytes, flips: list[tuple[float, int]], keep: float) -> None:
    data = bytearray(sample)
    for where, value in flips:
        data[int(where * len(data))] = value
    if keep < 0.5:
        del data[int(keep * 2 * len(data)) :]
    kernel = parse_or_refuse(bytes(data))
    if kernel is not None:
        assert kernel.virt_start <= kernel.entry < kernel.virt_end
        assert all(len(segment.data) <= segment.memsz for segment in kernel.segments)
        kernel.symbol(kernel.entry)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(
    st.integers(0, 127),
    st.sampled_from(["<B", "<H", "<I", "<Q"]),
    st.sampled_from([0, 1, 7, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096]),
)
def test_absurd_header_words_are_kernels_or_refused(at: int, code: str, value: int) -> None:
    data = bytearray(WHOLE)
    struct.pack_into(code, data, at, value & ((1 << 8 * struct.calcsize(code)) - 1))
    parse_or_refuse(bytes(data))
