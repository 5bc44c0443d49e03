"""Names of virtual disks, and virtual disks made of ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.disk import vdev
from firmware.disk.extents import Extent, ExtentMap

NAMES = {
    "xvda": 51712, "xvda1": 51713, "xvda15": 51727, "xvdb": 51728, "xvdp15": 51967,
    "xvda16": 1 << 28 | 16, "xvdq": 1 << 28 | 16 << 8, "xvdz3": 1 << 28 | 25 << 8 | 3,
    "xvdaa": 1 << 28 | 26 << 8, "xvdba255": 1 << 28 | 52 << 8 | 255, "xvdzzz": 1 << 28 | 18277 << 8,
    "hda": 768, "hda1": 769, "hdb": 832, "hdb63": 895, "hdc": 5632, "hdd2": 5698,
    "sda": 2048, "sda15": 2063, "sdp": 2288, "sdp15": 2303,
}
"""As xl numbers them (xen-vbd-interface(7))."""


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_its_number_and_back(name: str) -> None:
    assert vdev.number(name) == NAMES[name]
    assert vdev.name(NAMES[name]) == name
    assert vdev.number(str(NAMES[name])) == vdev.number(hex(NAMES[name])) == NAMES[name]


@pytest.mark.parametrize(("other", "same"), [
    ("d0", "xvda"), ("d0p1", "xvda1"), ("d26p0", "xvdaa"), ("d16p16", "xvdq16"),
])
def test_other_ways_to_write_it(other: str, same: str) -> None:
    assert vdev.number(other) == vdev.number(same)


@pytest.mark.parametrize("name", [
    "", "xvd", "xvd1", "xvda0", "xvda01", "xvda256", "XVDA", "hde", "hda64", "sdq", "sda16", "nvme0", "xvda ",
    "-1", "0", "0x", "d", "d1048576", "d0p256", "xvdzzzzz", "xvdaaaaaa", "4294967296", "xvda1x", "vda", "ⅴ",
    "٣",
])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"name of a virtual disk|beyond the|too large"):
        vdev.number(name)


@given(st.integers(0, (1 << 20) - 1), st.integers(0, 255))
def test_every_disk_and_partition_has_a_name_of_its_own(disk: int, partition: int) -> None:
    number = vdev.number(f"d{disk}p{partition}")
    assert vdev.number(vdev.name(number)) == number


def test_a_number_without_a_name_is_its_own() -> None:
    assert vdev.name(12345) == "12345"
    assert vdev.name(22 << 8 | 200) == str(22 << 8 | 200)


@pytest.mark.parametrize(("extents", "message"), [
    ((), "at least one"), ((Extent(0, 0),), "not inside"), ((Extent(-1, 5),), "not inside"),
    ((Extent(95, 6),), "not inside"), ((Extent(0, 1 << 70),), "not inside"),
    ((Extent(10, 10), Extent(0, 11)), "overlap"), ((Extent(5, 1), Extent(5, 1)), "overlap"),
])
def test_extents_that_cannot_be(extents: tuple[Extent, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExtentMap(extents, 100)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.data())
def test_every_sector_is_where_the_extents_put_it(lengths: list[int], data: st.DataObject) -> None:
    starts = [sum(lengths[:at]) + at for at in range(len(lengths))]
    extents = [Extent(start, length) for start, length in zip(starts, lengths, strict=True)]
    order = data.draw(st.permutations(extents))
    made = ExtentMap(order, sum(lengths) + len(lengths))
    flat = [extent.sector + at for extent in order for at in range(extent.sectors)]
    assert made.sectors == len(flat)
    first = data.draw(st.integers(0, len(flat) - 1))
    count = data.draw(st.integers(1, len(flat) - first))
    found = made.resolve(first, count)
    assert [part.sector + at for part in found for at in range(part.sectors)] == flat[first : first + count]
    assert all(part.sectors > 0 for part in found)
