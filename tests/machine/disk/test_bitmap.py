"""An overlay's bitmap against one byte a sector."""

from __future__ import annotations

import random

from machine.disk.bitmap import PAGE, Bitmap

SECTORS = 70_000


def test_bits_are_those_that_were_set() -> None:
    chance = random.Random(1)
    for _ in range(100):
        bitmap, plain = Bitmap(SECTORS), bytearray(SECTORS)
        for _ in range(5):
            first = chance.randrange(SECTORS)
            count = min(chance.choice((1, 7, 9, 4097, 5000, SECTORS)), SECTORS - first)
            bitmap.set(first, count)
            plain[first : first + count] = b"\1" * count
            assert bitmap.any(first, 1)
        assert b"".join(bytes([here]) * count for here, _, count in bitmap.runs(0, SECTORS)) == plain
        pages = dict(bitmap.pages())
        for number in range(0, SECTORS, 8 * PAGE):
            assert (number // 8 in pages) == any(plain[number : number + 8 * PAGE])
