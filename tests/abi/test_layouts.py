"""Every structure and constant of firmware.abi against what a C compiler says of Xen's headers."""
from __future__ import annotations

import json
import struct
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from firmware.abi.layout import Layout, array, chars, s16, u8, u16, u32, u64, uint64_aligned, ulong, union
from tools import abi_layouts

EXPECTED: dict[str, dict[str, list[int]]] = json.loads((Path(__file__).parent / "layouts.json").read_text())


def found(key: str, width: int) -> list[int]:
    place, _, field = key.partition("/")
    module, _, name = place.rstrip("=").partition(".")
    value: Any = getattr(import_module(f"firmware.abi.{module}"), name)
    if not isinstance(value, Layout):
        assert isinstance(value, int)
        return [value]
    variant = value.of(width == 64)
    return [variant.offset[field], variant.sizes[field]] if field else [variant.size, variant.align]


def as_signed(numbers: list[int]) -> list[int]:
    """The compiler's answers are signed 64-bit numbers."""
    return [number - (1 << 64) if number >= 1 << 63 else number for number in numbers]


@pytest.mark.parametrize("width", [64, 32])
def test_every_structure_and_constant_is_as_the_compiler_says(width: int) -> None:
    wrong = {
        key: (found(key, width), expected)
        for key, expected in EXPECTED[str(width)].items()
        if as_signed(found(key, width)) != expected
    }
    assert wrong == {}


@pytest.mark.parametrize("width", [64, 32])
def test_no_structure_or_constant_is_left_out_of_the_expected_data(width: int) -> None:
    assert set(abi_layouts.questions(width)) == set(EXPECTED[str(width)])


@pytest.mark.parametrize("width", [64, 32])
def test_every_structure_survives_packing(width: int) -> None:
    for _, layout in abi_layouts.layouts(width):
        variant = layout.of(width == 64)
        image = bytes((7 * index + 1) % 127 for index in range(variant.size))
        value = variant.unpack(image)
        assert value._fields == variant.fields
        packed = variant.pack(**value._asdict())
        assert len(packed) == variant.size
        assert variant.unpack(packed) == value
        assert variant.unpack(b"\xff" * 3 + packed, 3) == value
        if variant.size:
            assert variant.unpack_all(packed * 3) == [value] * 3


INNER = Layout("inner", [("a", u8), ("b", u64), ("c", u16)])
OUTER = Layout("outer", [
    ("flag", u8), ("one", INNER), ("many", array(INNER, 2)), ("numbers", array(ulong, (3, 2))),
    ("name", chars(5)), ("either", union(small=u16, big=INNER)), ("signed", s16), ("far", uint64_aligned),
])


def test_alignment_follows_each_abi() -> None:
    assert (INNER.w64.size, INNER.w64.align, INNER.w64.offset) == (24, 8, {"a": 0, "b": 8, "c": 16})
    assert (INNER.w32.size, INNER.w32.align, INNER.w32.offset) == (16, 4, {"a": 0, "b": 4, "c": 12})
    assert OUTER.w32.align == 8
    assert OUTER.w32.offset["far"] % 8 == 0
    assert OUTER.w64.offset["one.c"] == OUTER.w64.offset["one"] + 16
    assert OUTER.w64.offset["either.big.b"] == OUTER.w64.offset["either"] + 8


def test_nested_values_are_packed_from_mappings_and_tuples_and_default_to_zero() -> None:
    packed = OUTER.w64.pack(one={"b": 1 << 40}, many=[{"a": 3}], numbers=[1, 2], name=b"xen", signed=-2)
    value = OUTER.w64.unpack(packed)
    assert value.one == (0, 1 << 40, 0)
    assert value.many == ((3, 0, 0), (0, 0, 0))
    assert value.numbers == (1, 2, 0)
    assert value.name == b"xen\0\0"
    assert value.signed == -2
    assert OUTER.w64.pack(**value._asdict()) == packed


def test_pack_into_writes_in_place() -> None:
    buffer = bytearray(b"\xee" * 32)
    INNER.w64.pack_into(buffer, 4, a=1, c=2)
    assert buffer == b"\xee" * 4 + INNER.w64.pack(a=1, c=2) + b"\xee" * 4


def test_wrong_fields_and_values_are_refused() -> None:
    with pytest.raises(TypeError, match="inner has no field"):
        INNER.w64.pack(d=1)
    with pytest.raises(struct.error):
        INNER.w64.pack(a=256)
    with pytest.raises(struct.error):
        OUTER.w64.pack(many=[{}, {}, {}])
    with pytest.raises(struct.error):
        INNER.w64.unpack(b"short")


def test_one_field_structure() -> None:
    single = Layout("single", [("port", u32)])
    assert single.w64.unpack(single.w64.pack(port=9)).port == 9
