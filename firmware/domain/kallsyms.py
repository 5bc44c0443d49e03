"""The symbols a stripped 64-bit Linux kernel carries for itself, found by their shape.

Source: Linux, scripts/kallsyms.c. Names are strings of tokens from a table of 256; addresses are 32-bit
offsets. The tables have no headers, and their order changed over the years: the token table is found by its
digits, the names by what they decode to, the offsets by the base address next to them. Nothing here raises:
no symbols is an answer.
"""
from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

TOKENS: Final = 256
DIGITS: Final = b"".join(b"%c\0" % digit for digit in b"0123456789")
FIRST_DIGIT: Final = ord("0")
FEWEST: Final = 1 << 10
MOST: Final = 1 << 21
"""How many symbols a kernel has."""
PROBE: Final = 64
"""Names that must decode before a place is believed to be the list of names."""
MOST_TRIES: Final = 8
"""Places that look like the names but turn out not to be, before the search is given up."""
MARKED: Final = 256
"""Every so many names their position is written down."""
KINDS: Final = frozenset(b"aAbBdDrRtTvVwWnN")
"""Type letters (nm's), the first byte of a decoded name."""
CODE: Final = frozenset(b"tTwW")
"""Those of code."""
NAME_BYTES: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.$")


@dataclass(frozen=True)
class _Names:
    """Where the names are: the position of their count, how many, and the position of each."""

    count_at: int
    count: int
    at: int


def symbols(data: memoryview, start: int, end: int) -> list[tuple[int, str]]:
    """Address and name of every symbol from `start` to `end`, by address, of the tables in one segment. Data
    has no name: where it begins, the code before it has ended.
    """
    try:
        found = _find(bytes(data), start, end)
    except (struct.error, IndexError, ValueError):
        return []
    return sorted(found)


def _find(data: bytes, start: int, end: int) -> list[tuple[int, str]]:
    at = data.find(DIGITS)
    while at >= 0:
        table = _token_table(data, at)
        if table is not None:
            tokens, table_at, table_end = table
            names = _find_names(data, table_at, tokens)
            if names is not None:
                return _decode(data, names, tokens, table_end, (start, end))
        at = data.find(DIGITS, at + 1)
    return []


def _token_table(data: bytes, digits_at: int) -> tuple[list[bytes], int, int] | None:
    """The tokens, where their table starts and where their index ends."""
    at = digits_at
    for _ in range(FIRST_DIGIT):
        at = data.rfind(b"\0", 0, at - 1) + 1
        if not at:
            return None
    tokens, offsets, position = [], [], at
    for _ in range(TOKENS):
        stop = data.index(b"\0", position)
        tokens.append(data[position:stop])
        offsets.append(position - at)
        position = stop + 1
    index_at = position + 7 & ~7
    if list(struct.unpack_from(f"<{TOKENS}H", data, index_at)) != offsets:
        return None
    return tokens, at, index_at + 2 * TOKENS


def _length(data: bytes, at: int) -> tuple[int, int]:
    """How many tokens the name at `at` has, and where they start."""
    length = data[at]
    return (length & 0x7F | data[at + 1] << 7, at + 2) if length & 0x80 else (length, at + 1)


def _find_names(data: bytes, before: int, tokens: list[bytes]) -> _Names | None:
    """The list of names: after its count, a word by itself, somewhere before the token table."""
    words = np.frombuffer(data, np.uint64, before // 8)
    tries = MOST_TRIES
    for word in reversed(np.flatnonzero((words >= FEWEST) & (words < MOST)).tolist()):
        names = _Names(word * 8, int(words[word]), word * 8 + 8)
        if _decodes(data, names.at, tokens):
            if _is_marked(data, names):
                return names
            tries -= 1
            if not tries:
                break
    return None


def _decodes(data: bytes, at: int, tokens: list[bytes]) -> bool:
    for _ in range(PROBE):
        length, at = _length(data, at)
        name = b"".join([tokens[code] for code in data[at : at + length]])
        if len(name) < 2 or name[0] not in KINDS or not NAME_BYTES.issuperset(name):
            return False
        at += length
    return True


def _is_marked(data: bytes, names: _Names) -> bool:
    """The positions of every 256th name follow the names."""
    at, marks = names.at, []
    for index in range(names.count):
        if index % MARKED == 0:
            marks.append(at - names.at)
        length, at = _length(data, at)
        at += length
    return list(struct.unpack_from(f"<{len(marks)}I", data, at + 7 & ~7)) == marks


def _decode(
    data: bytes, names: _Names, tokens: list[bytes], after_tokens: int, kernel: tuple[int, int]
) -> list[tuple[int, str]]:
    addresses = _addresses(data, names, after_tokens, kernel)
    found, at = [], names.at
    for address in addresses:
        length, at = _length(data, at)
        if kernel[0] <= address < kernel[1]:
            name = b"".join([tokens[code] for code in data[at : at + length]])
            found.append((address, name[1:].decode("latin-1") if name[0] in CODE else ""))
        at += length
    return found


def _addresses(data: bytes, names: _Names, after_tokens: int, kernel: tuple[int, int]) -> list[int]:
    """Offsets and then their base: before the count of names (until Linux 6.3), or after the tokens."""
    size = names.count * 4 + 7 & ~7
    for at in (names.count_at - 8 - size, after_tokens + 7 & ~7):
        if at < 0:
            continue
        (base,) = struct.unpack_from("<Q", data, at + size)
        if kernel[0] <= base < kernel[1]:
            offsets = np.frombuffer(data, np.int32, names.count, at).astype(np.int64)
            if (offsets < 0).any():  # non-negative ones are absolute: per-CPU variables
                return [base - 1 - offset if offset < 0 else offset for offset in offsets.tolist()]
            return [base + offset for offset in offsets.tolist()]
    return []
