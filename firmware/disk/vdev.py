"""Names of virtual disks and their numbers (Xen, docs/man/xen-vbd-interface.7).

`xvda`, `xvda1`, `xvdaa3`, `hda`, `sdb2`, the form `d0p1`, and numbers themselves, decimal or hexadecimal.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

XVD_MAJOR: Final = 202
SD_MAJOR: Final = 8
HD_MAJORS: Final = (3, 22)
EXTENDED: Final = 1 << 28
MAJOR_SHIFT: Final = 8
MOST_NUMBER: Final = (1 << 31) - 1
LETTERS: Final = 26


class Scheme(NamedTuple):
    """A family of names: how many disks and partitions it has."""

    disks: int
    partitions: int


SCHEMES: Final = {"xvd": Scheme(1 << 20, 256), "hd": Scheme(4, 64), "sd": Scheme(16, 16)}
OLD_XVD: Final = Scheme(16, 16)
"""What the numbers below EXTENDED can say."""

_NAMED: Final = re.compile(r"(xvd|hd|sd)([a-z]{1,5})([1-9][0-9]{0,2})?")
_COUNTED: Final = re.compile(r"d([0-9]{1,7})(?:p([0-9]{1,3}))?")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,9}|0x[0-9a-f]{1,8}")


def number(name: str) -> int:
    """The number of a virtual disk's name. ValueError, in one sentence, when it is no such name."""
    if match := _NUMBER.fullmatch(name):
        value = int(match[0], 0)
        if value > MOST_NUMBER:
            raise ValueError(f"{name!r} is too large for the number of a virtual disk")
        return value
    if match := _COUNTED.fullmatch(name):
        return _checked(name, "xvd", int(match[1]), int(match[2] or 0))
    if match := _NAMED.fullmatch(name):
        return _checked(name, match[1], _letters(match[2]), int(match[3] or 0))
    raise ValueError(f"{name!r} is not the name of a virtual disk, such as xvda, xvda1, hda, sda or 51712")


def name(device: int) -> str:
    """The shortest name of a number: `xvda1`; the number itself where no scheme names it."""
    major, minor = device >> MAJOR_SHIFT, device & 0xFF
    if device & EXTENDED:
        return _spelled("xvd", (device & ~EXTENDED) >> 8, minor)
    if major == XVD_MAJOR:
        return _spelled("xvd", minor >> 4, minor & 15)
    if major == SD_MAJOR:
        return _spelled("sd", minor >> 4, minor & 15)
    if major in HD_MAJORS and minor < 128:
        return _spelled("hd", HD_MAJORS.index(major) * 2 + (minor >> 6), minor & 63)
    return str(device)


def _checked(name: str, family: str, disk: int, partition: int) -> int:
    scheme = SCHEMES[family]
    if disk >= scheme.disks or partition >= scheme.partitions:
        raise ValueError(
            f"{name!r} is beyond the {scheme.disks} disks of {scheme.partitions - 1} partitions that "
            f"{family} disks can be"
        )
    if family == "hd":
        return HD_MAJORS[disk >> 1] << MAJOR_SHIFT | (disk & 1) << 6 | partition
    if family == "sd":
        return SD_MAJOR << MAJOR_SHIFT | disk << 4 | partition
    if disk < OLD_XVD.disks and partition < OLD_XVD.partitions:
        return XVD_MAJOR << MAJOR_SHIFT | disk << 4 | partition
    return EXTENDED | disk << 8 | partition


def _letters(text: str) -> int:
    """a is 0, z is 25, aa is 26."""
    value = 0
    for letter in text:
        value = value * LETTERS + ord(letter) - ord("a") + 1
    return value - 1


def _spelled(family: str, disk: int, partition: int) -> str:
    text = ""
    disk += 1
    while disk:
        disk, letter = divmod(disk - 1, LETTERS)
        text = chr(ord("a") + letter) + text
    return f"{family}{text}{partition or ''}"
