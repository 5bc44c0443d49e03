"""The symbol tables inside a stripped Linux kernel, made by hand in both orders."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.domain import kallsyms
from firmware.domain.image import load_image, parse_image
from tests.domain.kernels import BASE, GOOD, Load
from tests.support.guests import require_guest

START, END = BASE + 0x1000, BASE + 0x400000
PAIRS = (b"sys_", b"do_", b"get", b"set", b"init", b"xen", b"_a")
FREE_CODES = (1, 2, 3, 4, 5, 6, 7)
"""Codes no name uses as a character stand for pairs, as the kernel's compression does it."""
TOKENS = [PAIRS[FREE_CODES.index(code)] if code in FREE_CODES else bytes([code or 32]) for code in range(256)]
NAMES = [f"do_sys_{index:04}_init" + "_x" * (index % 90) for index in range(1500)]


def aligned(data: bytes) -> bytes:
    return data.ljust(len(data) + 7 & ~7, b"\0")


def encoded(name: str, kind: bytes = b"T") -> bytes:
    data = kind + name.encode()
    for code, pair in zip(FREE_CODES, PAIRS, strict=True):
        data = data.replace(pair, bytes([code]))
    size = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 0x7F | 0x80, len(data) >> 7])
    return size + data


def tables(*, offsets_first: bool, absolute: bool, kind: bytes = b"t") -> bytes:
    names, marks = b"", []
    for index, name in enumerate(NAMES):
        if index % 256 == 0:
            marks.append(len(names))
        names += encoded(name, kind if index % 5 == 4 else b"T")
    numbers = [(-1 - 16 * index if absolute else 16 * index) for index in range(len(NAMES))]
    offsets = aligned(struct.pack(f"<{len(NAMES)}i", *numbers)) + struct.pack("<Q", START)
    listed = struct.pack("<Q", len(NAMES)) + aligned(names) + aligned(struct.pack(f"<{len(marks)}I", *marks))
    positions, table = [], b""
    for token in TOKENS:
        positions.append(len(table))
        table += token + b"\0"
    found = aligned(table) + struct.pack("<256H", *positions)
    before = bytes(range(1, 250)) + struct.pack("<QQ", 0, 5000) + b"junk that is no name  " * 40
    parts = (offsets, listed, found) if offsets_first else (listed, found, offsets)
    return aligned(before) + b"".join(parts) + b"after"


WHOLE = tables(offsets_first=True, absolute=True)


@pytest.mark.parametrize("offsets_first", [True, False])
@pytest.mark.parametrize("absolute", [True, False])
def test_every_name_gets_its_address(offsets_first: bool, absolute: bool) -> None:
    data = memoryview(tables(offsets_first=offsets_first, absolute=absolute))
    assert kallsyms.symbols(data, START, END) == [
        (START + 16 * index, name) for index, name in enumerate(NAMES)
    ]


def test_data_has_no_name() -> None:
    data = memoryview(tables(offsets_first=True, absolute=True, kind=b"d"))
    found = kallsyms.symbols(data, START, END)
    assert [name for _, name in found[:6]] == [*NAMES[:4], "", NAMES[5]]


def test_symbols_outside_the_kernel_are_left_out() -> None:
    assert len(kallsyms.symbols(memoryview(WHOLE), START, START + 160)) == 10


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 4096, kallsyms.DIGITS * 9, bytes(range(256)) * 32, WHOLE[:-3000]]
)
def test_no_tables_are_no_symbols(data: bytes) -> None:
    assert kallsyms.symbols(memoryview(data), START, END) == []


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    st.floats(0.1, 1),
)
def test_damaged_tables_do_no_harm(flips: list[tuple[float, int]], keep: float) -> None:
    data = bytearray(WHOLE)
    for where, value in flips:
        data[int(where * len(data))] = value
    found = kallsyms.symbols(memoryview(bytes(data[: int(len(data) * keep)])), START, END)
    assert all(START <= address < END for address, _ in found)


def test_a_stripped_kernel_names_its_addresses() -> None:
    kernel = parse_image(GOOD.having(loads=(Load(0x1000, WHOLE, memsz=0x400000),)).image(), "vmlinux")
    assert kernel.symbol(START + 16 * 7 + 3) == NAMES[7] + "+0x3"


@pytest.mark.guest
def test_debian() -> None:
    kernel = load_image(require_guest("vmlinuz"))
    assert kernel.symbol(kernel.entry + 4) == "startup_xen+0x4"
    released = kernel.released()
    assert all(not segment.data for segment in released.segments)
    assert released.symbol(kernel.entry) == "startup_xen+0x0"
