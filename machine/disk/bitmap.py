"""Bitmap: which sectors an overlay has, in memory, and which pages of it the file does not know yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

PAGE: Final = 4096
"""Bytes that are written at once."""
_MANY: Final = 1 << 12
"""Sectors from which on bits are not looked at one by one."""


class Bitmap:
    """One bit a sector, lowest bit first. Bits are only ever set."""

    __slots__ = ("_bits", "_dirty")

    def __init__(self, sectors: int) -> None:
        self._bits = bytearray(-(-sectors // (8 * PAGE)) * PAGE)
        self._dirty: set[int] = set()

    @property
    def bytes(self) -> memoryview:
        """The whole of it, to be filled from the file."""
        return memoryview(self._bits)

    @property
    def dirty(self) -> bool:
        """Whether bits have been set since the last `clean`."""
        return bool(self._dirty)

    def set(self, first: int, count: int) -> None:
        """These sectors are here."""
        if count > _MANY:
            # Whole bytes at once: a discard may name all sectors of a disk.
            begin, end = first + 7 >> 3, first + count >> 3
            self._bits[begin:end] = b"\xff" * (end - begin)
            self._changed(begin, end)
            self.set(first, begin * 8 - first)
            self.set(end * 8, first + count - end * 8)
            return
        begin, end = first >> 3, first + count + 7 >> 3
        bits = self._bits
        mask = ((1 << count) - 1) << (first & 7)
        old = int.from_bytes(bits[begin:end], "little")
        if old & mask != mask:
            bits[begin:end] = (old | mask).to_bytes(end - begin, "little")
            self._changed(begin, end)

    def _changed(self, begin: int, end: int) -> None:
        self._dirty.update(range(begin // PAGE, (end - 1) // PAGE + 1))

    def any(self, first: int, count: int) -> bool:
        """Whether one of these sectors is here."""
        bits = int.from_bytes(self._bits[first >> 3 : first + count + 7 >> 3], "little")
        return bool(bits >> (first & 7) & (1 << count) - 1)

    def runs(self, first: int, count: int) -> Iterator[tuple[bool, int, int]]:
        """The sectors as (whether they are here, first, count), in order."""
        word = int.from_bytes(self._bits[first >> 3 : first + count + 7 >> 3], "little") >> (first & 7)
        while count:
            here = bool(word & 1)
            flipped = ~word if here else word
            length = count if not flipped else min(count, (flipped & -flipped).bit_length() - 1)
            yield here, first, length
            first += length
            count -= length
            word >>= length

    def pages(self) -> Iterator[tuple[int, memoryview]]:
        """What has changed: (offset in the bitmap, bytes), rising."""
        view = memoryview(self._bits)
        for page in sorted(self._dirty):
            yield page * PAGE, view[page * PAGE : (page + 1) * PAGE]

    def clean(self) -> None:
        """The file has it all."""
        self._dirty.clear()
