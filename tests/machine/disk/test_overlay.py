"""Overlay: whose it is, what of it may be lost, and that the base stays as it was."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path

import pytest

from machine.disk import SECTOR, MediumError, Overlay, RawFile
from machine.disk.bitmap import PAGE
from tests.machine.disk.rig import image

SECTORS = 8 * PAGE + 100
"""More than a page of the bitmap."""
BITMAP = 4096
DATA = BITMAP + 2 * PAGE


@pytest.fixture
def base_path(tmp_path: Path) -> Path:
    return image(tmp_path / "base", b"".join(struct.pack("<Q", sector) * 64 for sector in range(SECTORS)))


def base(path: Path) -> RawFile:
    return RawFile.open(path, read_only=True)


def original(sector: int, sectors: int = 1) -> bytes:
    return b"".join(struct.pack("<Q", sector + index) * 64 for index in range(sectors))


def test_where_things_are(base_path: Path, tmp_path: Path) -> None:
    overlay = Overlay.create(tmp_path / "o", base(base_path))
    overlay.write(8 * PAGE + 1, b"n" * SECTOR)
    overlay.close()
    made = (tmp_path / "o").read_bytes()
    assert made[:13] == b"xenpy overlay"
    assert made[BITMAP : DATA].count(0) == 2 * PAGE - 1
    assert made[BITMAP + PAGE] == 2
    assert made[DATA + (8 * PAGE + 1) * SECTOR :][:SECTOR] == b"n" * SECTOR
    assert len(made) == DATA + SECTORS * SECTOR
    assert str(base_path).encode() not in made[:DATA], "no path is kept"


def test_reads_mix_both(base_path: Path, tmp_path: Path) -> None:
    overlay = Overlay.create(tmp_path / "o", base(base_path))
    overlay.write(10, b"a" * SECTOR)
    overlay.write(12, b"b" * 2 * SECTOR)
    assert overlay.read(9, 7) == (
        original(9) + b"a" * SECTOR + original(11) + b"b" * 2 * SECTOR + original(14, 2))
    overlay.discard(11, 2)
    assert overlay.read(10, 5) == b"a" * SECTOR + bytes(2 * SECTOR) + b"b" * SECTOR + original(14)
    overlay.close()
    assert base_path.read_bytes() == original(0, SECTORS)


def test_a_bitmap_that_did_not_reach_the_file_shows_the_base(base_path: Path, tmp_path: Path) -> None:
    """The host dies after data has reached the file and before its bits have: the old sectors are there."""
    overlay = Overlay.create(tmp_path / "o", base(base_path))
    overlay.write(5, b"k" * SECTOR)
    overlay.flush()
    overlay.write(6, b"l" * SECTOR)
    overlay.write(8 * PAGE + 3, b"l" * SECTOR)
    copy = image(tmp_path / "copy", (tmp_path / "o").read_bytes())
    found = Overlay.open(copy, base(base_path))
    assert found.read(5, 2) == b"k" * SECTOR + original(6)
    assert found.read(8 * PAGE + 3, 1) == original(8 * PAGE + 3)
    assert overlay.read(5, 2) == b"k" * SECTOR + b"l" * SECTOR
    found.close()
    overlay.close()


def test_no_bit_is_in_the_file_before_its_data_is_safe(
    base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host's calls, in order: data, wait, bits, wait."""
    overlay = Overlay.create(tmp_path / "o", base(base_path))
    calls: list[str] = []
    pwritev, fdatasync = os.pwritev, os.fdatasync

    def writing(descriptor: int, views: list[memoryview], offset: int) -> int:
        calls.append("data" if offset >= DATA else "bits")
        return pwritev(descriptor, views, offset)

    def waiting(descriptor: int) -> None:
        calls.append("wait")
        fdatasync(descriptor)

    monkeypatch.setattr(os, "pwritev", writing)
    monkeypatch.setattr(os, "fdatasync", waiting)
    overlay.write(7, b"k" * SECTOR)
    overlay.flush()
    overlay.write(7, b"l" * SECTOR)
    overlay.flush()
    assert calls == ["data", "wait", "bits", "wait", "data", "wait"]
    overlay.close()


def test_a_flush_that_failed_leaves_the_bits_to_the_next(
    base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    overlay = Overlay.create(tmp_path / "o", base(base_path))
    overlay.write(7, b"k" * SECTOR)

    def failing(_: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="no"):
        overlay.flush()
    assert (tmp_path / "o").read_bytes()[BITMAP : DATA] == bytes(2 * PAGE)
    monkeypatch.undo()
    with pytest.raises(OSError, match="has lost data"):
        overlay.flush()
    with pytest.raises(MediumError, match="lost data"):
        overlay.close()


def test_another_base_is_refused(base_path: Path, tmp_path: Path) -> None:
    Overlay.create(tmp_path / "o", base(base_path)).close()
    other = image(tmp_path / "other", original(1, SECTORS))
    with pytest.raises(MediumError, match=r"was made for another base, or the base has changed\.$"):
        Overlay.open(tmp_path / "o", base(other))
    longer = image(tmp_path / "longer", original(0, SECTORS + 1))
    with pytest.raises(MediumError, match="was made for another base"):
        Overlay.open(tmp_path / "o", base(longer))
    moved = base_path.rename(tmp_path / "moved")
    Overlay.open(tmp_path / "o", base(moved)).close()


@pytest.mark.parametrize(("at", "what"), [(0, "is no overlay"), (16, "is no overlay"), (40, "is no overlay")])
def test_a_damaged_header(base_path: Path, tmp_path: Path, at: int, what: str) -> None:
    Overlay.create(tmp_path / "o", base(base_path)).close()
    with (tmp_path / "o").open("r+b") as file:
        file.seek(at)
        file.write(b"\xff")
    with pytest.raises(MediumError, match=what):
        Overlay.open(tmp_path / "o", base(base_path))


@pytest.mark.parametrize(("at", "value", "what"), [
    (0, 0x66656C69, "is no overlay"), (16, 2, "has version 2; this reads version 1"),
    (20, 4096, "was made for another base"),
])
def test_a_sound_header_of_something_else(
    base_path: Path, tmp_path: Path, at: int, value: int, what: str,
) -> None:
    Overlay.create(tmp_path / "o", base(base_path)).close()
    header = bytearray((tmp_path / "o").read_bytes()[:64])
    struct.pack_into("<I", header, at, value)
    with (tmp_path / "o").open("r+b") as file:
        file.write(header + struct.pack("<I", zlib.crc32(header)))
    with pytest.raises(MediumError, match=what):
        Overlay.open(tmp_path / "o", base(base_path))


def test_an_overlay_that_was_cut_off(base_path: Path, tmp_path: Path) -> None:
    Overlay.create(tmp_path / "o", base(base_path)).close()
    whole = (tmp_path / "o").read_bytes()
    (tmp_path / "o").write_bytes(whole[:-SECTOR])
    with pytest.raises(MediumError, match="has been cut off"):
        Overlay.open(tmp_path / "o", base(base_path))
    (tmp_path / "o").write_bytes(whole[:20])
    with pytest.raises(MediumError, match="is no overlay"):
        Overlay.open(tmp_path / "o", base(base_path))


def test_an_overlay_that_cannot_be_written_is_not_left_behind(
    base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(MediumError, match=r"^The overlay .*o cannot be written: No space left on device\.$"):
        Overlay.create(tmp_path / "o", base(base_path))
    assert not (tmp_path / "o").exists()


def test_an_overlay_over_an_overlay(base_path: Path, tmp_path: Path) -> None:
    first = Overlay.create(tmp_path / "o", base(base_path))
    with pytest.raises(ValueError, match="read-only"):
        Overlay.temporary(first)
    first.close()


def test_the_space_of_a_discarded_sector_is_given_back(base_path: Path, tmp_path: Path) -> None:
    overlay = Overlay.create(tmp_path / "o", base(base_path))
    overlay.write(0, b"x" * (1 << 20))
    overlay.flush()
    used = (tmp_path / "o").stat().st_blocks
    overlay.discard(0, 2048)
    assert (tmp_path / "o").stat().st_blocks < used - 1900
    assert overlay.read(0, 2048) == bytes(1 << 20)
    overlay.close()
