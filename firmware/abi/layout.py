"""Structures of the hypercall interface, declared once and laid out for 64-bit and for 32-bit PAE guests.

A `Layout` is a named list of typed fields. Its two `Variant`s, `.w64` and `.w32`, follow the System V ABIs
for x86-64 and i386: every scalar aligns to its size, except that a plain 64-bit integer aligns to 4 for i386.
Everything is little-endian.

Kinds of field: the scalars `u8` to `s64`; `ulong`, `xen_pfn` and `ptr` (as wide as the guest's words);
`uint64_aligned` (8-aligned in both worlds) and `packed_u64` (unaligned); `chars(n)` (bytes);
`array(kind, n)`; another `Layout`; `union(a=kind, b=kind)`, which unpacks to the raw bytes of the union, to
be decoded with the member's own kind.
"""
from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

_named_tuple: Final[Callable[..., Any]] = namedtuple

W64: Final = 0
W32: Final = 1
PerWidth = int | tuple[int, int]
Buffer = bytes | bytearray | memoryview


class Scalar:
    """An integer: struct codes, sizes and alignments for (64-bit, 32-bit) guests."""

    __slots__ = ("aligns", "codes", "name", "sizes")

    def __init__(self, name: str, codes: tuple[str, str], aligns: tuple[int, int]) -> None:
        self.name = name
        self.codes = codes
        self.sizes = (struct.calcsize("<" + codes[W64]), struct.calcsize("<" + codes[W32]))
        self.aligns = aligns


u8: Final = Scalar("u8", ("B", "B"), (1, 1))
u16: Final = Scalar("u16", ("H", "H"), (2, 2))
u32: Final = Scalar("u32", ("I", "I"), (4, 4))
u64: Final = Scalar("u64", ("Q", "Q"), (8, 4))
s8: Final = Scalar("s8", ("b", "b"), (1, 1))
s16: Final = Scalar("s16", ("h", "h"), (2, 2))
s32: Final = Scalar("s32", ("i", "i"), (4, 4))
s64: Final = Scalar("s64", ("q", "q"), (8, 4))
ulong: Final = Scalar("ulong", ("Q", "I"), (8, 4))
slong: Final = Scalar("slong", ("q", "i"), (8, 4))
xen_pfn: Final = Scalar("xen_pfn", ("Q", "I"), (8, 4))
ptr: Final = Scalar("ptr", ("Q", "I"), (8, 4))
uint64_aligned: Final = Scalar("uint64_aligned", ("Q", "Q"), (8, 8))

packed_u64: Final = Scalar("packed_u64", ("Q", "Q"), (1, 1))


class Chars:
    """A fixed array of char, unpacked to exactly that many bytes; packing pads with zeros or cuts."""

    __slots__ = ("lengths",)

    def __init__(self, length: PerWidth) -> None:
        self.lengths = _per_width(length)


class Array:
    """A fixed array, unpacked to a tuple. A length of 0 is a flexible array at the end of its structure."""

    __slots__ = ("kind", "lengths")

    def __init__(self, kind: Kind, length: PerWidth) -> None:
        self.kind = kind
        self.lengths = _per_width(length)


class Overlay:
    """A union, unpacked to its raw bytes."""

    __slots__ = ("members",)

    def __init__(self, members: dict[str, Kind]) -> None:
        self.members = members


def chars(length: PerWidth) -> Chars:
    """`char name[length]`; a pair of lengths is for (64-bit, 32-bit)."""
    return Chars(length)


def array(kind: Kind, length: PerWidth) -> Array:
    """`kind name[length]`; a pair of lengths is for (64-bit, 32-bit)."""
    return Array(kind, length)


def union(**members: Kind) -> Overlay:
    """A union of the members, all at its offset."""
    return Overlay(members)


class Variant:
    """One structure as guests of one width lay it out.

    `size` and `align` are bytes; `offset` maps a field to its bytes from the start, fields of nested
    structures and members of unions under dotted names ("arch.cr2"); `codec` packs and unpacks the whole,
    padding included; `fields` are the names `unpack` yields, in order, and `sizes` their bytes.
    """

    __slots__ = (
        "_flatten", "_zeros", "align", "codec", "fields", "gather", "name", "offset", "size", "sizes",
        "unpack", "unpack_all",
    )

    unpack: Callable[..., Any]  # (buffer, at=0) -> the structure as a named tuple
    unpack_all: Callable[..., list[Any]]  # (buffer) -> every structure of an array that fills the buffer
    gather: Callable[[Iterator[Any]], Any]  # the named tuple from the codec's next values

    def __init__(self, name: str, fields: Fields, width: int) -> None:
        self.name = name
        self.fields = tuple(field for field, _ in fields)
        self.offset: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        codes: list[str] = []
        parts: list[_Part] = []
        at, align = 0, 1
        for field, kind in fields:
            part = _part(kind, width)
            start = -(-at // part.align) * part.align
            codes.append(f"{start - at}x" if start > at else "")
            codes.append(part.code)
            self.offset[field] = start
            self.sizes[field] = part.size
            for inner, distance in part.inner.items():
                self.offset[f"{field}.{inner}"] = start + distance
            parts.append(part)
            at, align = start + part.size, max(align, part.align)
        self.align = align
        self.size = -(-at // align) * align
        codes.append(f"{self.size - at}x" if self.size > at else "")
        self.codec = struct.Struct("<" + "".join(codes))
        self._zeros = {field: part.zero for field, part in zip(self.fields, parts, strict=True)}
        self._flatten = None if all(part.flat for part in parts) else [part.scatter for part in parts]
        make: Callable[[Iterable[Any]], Any] = _named_tuple(name, self.fields)._make
        self.gather = _gatherer(make, parts)
        self.unpack, self.unpack_all = _readers(self.codec, make, self.gather, self._flatten is None)

    def pack(self, **fields: Any) -> bytes:
        """The structure's bytes; fields left out are zero.

        Raises TypeError for a field it lacks and struct.error for a value too large.
        """
        return self.codec.pack(*self._values(fields))

    def pack_into(self, buffer: bytearray | memoryview, at: int, **fields: Any) -> None:
        """As `pack`, into a writable buffer at a byte offset."""
        self.codec.pack_into(buffer, at, *self._values(fields))

    def _values(self, fields: dict[str, Any]) -> Iterable[Any]:
        values = {**self._zeros, **fields}
        if len(values) != len(self.fields):
            raise TypeError(f"{self.name} has no field {sorted(set(fields) - set(self.fields))}")
        if self._flatten is None:
            return values.values()
        flat: list[Any] = []
        for scatter, value in zip(self._flatten, values.values(), strict=True):
            scatter(value, flat)
        return flat

    def scatter(self, value: Any, into: list[Any]) -> None:
        """Append one structure's flat values: of a tuple from `unpack`, of a mapping, or zeros for None."""
        if value is None:
            value = {}
        elif isinstance(value, tuple):
            value = dict(zip(self.fields, value, strict=True))
        into.extend(self._values(value))


class Layout:
    """A structure under its header's name; `fields32` is given where the 32-bit one has other fields."""

    __slots__ = ("name", "w32", "w64")

    def __init__(self, name: str, fields: Fields, fields32: Fields | None = None) -> None:
        self.name = name
        self.w64 = Variant(name, fields, W64)
        self.w32 = Variant(name, fields if fields32 is None else fields32, W32)

    def of(self, wide: bool) -> Variant:
        """The variant for a 64-bit (wide) or a 32-bit guest."""
        return self.w64 if wide else self.w32


Kind = Scalar | Chars | Array | Overlay | Layout
Fields = Sequence[tuple[str, Kind]]


class _Part:
    """What one field adds to a variant: its codec, and how its flat values become one value and back."""

    __slots__ = ("align", "code", "flat", "gather", "inner", "scatter", "size", "zero")

    def __init__(
        self,
        code: str,
        size: int,
        align: int,
        zero: Any,
        gather: Callable[[Iterator[Any]], Any] | None = None,
        scatter: Callable[[Any, list[Any]], None] | None = None,
        inner: dict[str, int] | None = None,
    ) -> None:
        self.code = code
        self.size = size
        self.align = align
        self.zero = zero
        self.flat = gather is None
        self.gather: Callable[[Iterator[Any]], Any] = gather or next
        self.scatter = scatter or _append
        self.inner = inner or {}


def _append(value: Any, into: list[Any]) -> None:
    into.append(value)


def _per_width(value: PerWidth) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _part(kind: Kind, width: int) -> _Part:
    if isinstance(kind, Scalar):
        return _Part(kind.codes[width], kind.sizes[width], kind.aligns[width], 0)
    if isinstance(kind, Chars):
        length = kind.lengths[width]
        return _Part(f"{length}s", length, 1, b"")
    if isinstance(kind, Overlay):
        members = {name: _part(member, width) for name, member in kind.members.items()}
        align = max(part.align for part in members.values())
        size = -(-max(part.size for part in members.values()) // align) * align
        inner = dict.fromkeys(members, 0)
        for name, part in members.items():
            inner.update({f"{name}.{key}": distance for key, distance in part.inner.items()})
        return _Part(f"{size}s", size, align, b"", inner=inner)
    if isinstance(kind, Layout):
        return _structure(kind.of(width == W64))
    return _repeated(_part(kind.kind, width), kind.lengths[width])


def _structure(variant: Variant) -> _Part:
    code = variant.codec.format[1:]
    return _Part(code, variant.size, variant.align, None, variant.gather, variant.scatter, variant.offset)


def _repeated(element: _Part, length: int) -> _Part:
    zero = (element.zero,) * length

    def gather_each(values: Iterator[Any]) -> tuple[Any, ...]:
        return tuple([element.gather(values) for _ in range(length)])

    def gather_scalars(values: Iterator[Any]) -> tuple[Any, ...]:
        return tuple(islice(values, length))

    def scatter(items: Any, into: list[Any]) -> None:
        if len(items) > length:
            raise struct.error(f"{len(items)} items for an array of {length}")
        for item in items:
            element.scatter(item, into)
        for item in zero[len(items):]:
            element.scatter(item, into)

    code = element.code * length
    gather = gather_scalars if element.flat else gather_each
    return _Part(code, element.size * length, element.align, zero, gather, scatter)


def _gatherer(make: Callable[[Iterable[Any]], Any], parts: Sequence[_Part]) -> Callable[[Iterator[Any]], Any]:
    if all(part.flat for part in parts):
        count = len(parts)
        return lambda values: make(islice(values, count))
    gathers = [part.gather for part in parts]
    return lambda values: make([gather(values) for gather in gathers])


def _readers(
    codec: struct.Struct,
    make: Callable[[Iterable[Any]], Any],
    gather: Callable[[Iterator[Any]], Any],
    flat: bool,
) -> tuple[Callable[..., Any], Callable[..., list[Any]]]:
    unpack_from, iter_unpack = codec.unpack_from, codec.iter_unpack

    def unpack(buffer: Buffer, at: int = 0) -> Any:
        return make(unpack_from(buffer, at))

    def unpack_all(buffer: Buffer) -> list[Any]:
        return [make(row) for row in iter_unpack(buffer)]

    def unpack_nested(buffer: Buffer, at: int = 0) -> Any:
        return gather(iter(unpack_from(buffer, at)))

    def unpack_all_nested(buffer: Buffer) -> list[Any]:
        return [gather(iter(row)) for row in iter_unpack(buffer)]

    return (unpack, unpack_all) if flat else (unpack_nested, unpack_all_nested)
