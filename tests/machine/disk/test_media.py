"""Every medium against an array of bytes, and against losing what was not flushed."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine.disk import SECTOR, Medium, Overlay, RawFile, WriteCache, open_medium
from tests.machine.disk.rig import QUICK_FOLDER

SECTORS = 300


class World:
    """A medium in a folder of its own, and how to open it again."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind
        (folder / "image").write_bytes(random.Random(1).randbytes(SECTORS * SECTOR))
        self.medium = self.open()

    def open(self) -> Medium:
        path = self.folder / "image"
        if self.kind == "raw":
            return RawFile.open(path)
        if self.kind == "cache":
            return WriteCache(RawFile.open(path))
        if self.kind == "snapshot":
            return open_medium("raw", path, snapshot=True)
        return open_medium("raw", path, overlay=self.folder / "overlay")


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "write", "read", "discard", "flush", "reopen")),
        st.integers(0, SECTORS - 1), st.integers(1, 40), st.integers(0, 2**32),
    ), max_size=40)


def scattered(data: bytearray, rng: random.Random) -> list[memoryview]:
    """Views of pieces of any size, in order."""
    views, at = [], 0
    while at < len(data):
        size = rng.choice((1, 100, 512, 4096, len(data)))
        views.append(memoryview(data)[at : at + size])
        at += size
    return views


@pytest.mark.parametrize("kind", ["raw", "overlay", "snapshot", "cache"])
@settings(max_examples=60)
@given(actions=ACTIONS)
def test_a_medium_is_an_array_of_bytes(kind: str, actions: list[tuple[str, int, int, int]]) -> None:
    with tempfile.TemporaryDirectory(dir=QUICK_FOLDER) as folder:
        world = World(Path(folder), kind)
        model = bytearray((Path(folder) / "image").read_bytes())
        base = bytes(model)
        for action, sector, sectors, seed in actions:
            sectors = min(sectors, SECTORS - sector)
            here = slice(sector * SECTOR, (sector + sectors) * SECTOR)
            rng = random.Random(seed)
            if action == "write":
                data = bytearray(rng.randbytes(sectors * SECTOR))
                world.medium.write_from(sector, scattered(data, rng))
                model[here] = data
            elif action == "read":
                found = bytearray(sectors * SECTOR)
                world.medium.read_into(sector, scattered(found, rng))
                assert found == model[here]
            elif action == "discard":
                world.medium.discard(sector, sectors)
                model[here] = bytes(sectors * SECTOR)
            elif action == "flush":
                world.medium.flush()
            elif kind != "snapshot":
                world.medium.close()
                world.medium = world.open()
        assert world.medium.read(0, SECTORS) == model
        world.medium.close()
        if kind in ("overlay", "snapshot"):
            assert (Path(folder) / "image").read_bytes() == base


@settings(max_examples=60)
@given(actions=ACTIONS, seed=st.integers(0, 2**32))
def test_after_a_power_cut_every_sector_is_flushed_or_newer(
    actions: list[tuple[str, int, int, int]], seed: int,
) -> None:
    with tempfile.TemporaryDirectory(dir=QUICK_FOLDER) as folder:
        world = World(Path(folder), "cache")
        image = (Path(folder) / "image").read_bytes()
        allowed = [{image[at * SECTOR : (at + 1) * SECTOR]} for at in range(SECTORS)]
        newest = [next(iter(values)) for values in allowed]
        for action, sector, sectors, number in actions:
            sectors = min(sectors, SECTORS - sector)
            if action in ("write", "discard"):
                data = bytes(sectors * SECTOR)
                if action == "write":
                    data = random.Random(number).randbytes(sectors * SECTOR)
                    world.medium.write(sector, data)
                else:
                    world.medium.discard(sector, sectors)
                for index in range(sectors):
                    newest[sector + index] = data[index * SECTOR : (index + 1) * SECTOR]
                    allowed[sector + index].add(newest[sector + index])
            elif action == "flush":
                world.medium.flush()
                allowed = [{value} for value in newest]
        world.medium.power_cut(random.Random(seed))
        world.medium.close()
        after = (Path(folder) / "image").read_bytes()
        for sector, values in enumerate(allowed):
            assert after[sector * SECTOR : (sector + 1) * SECTOR] in values


def test_a_power_cut_loses_some_of_what_was_not_flushed_and_keeps_some(tmp_path: Path) -> None:
    cache = WriteCache(RawFile.create(tmp_path / "i", 1000))
    for sector in range(1000):
        cache.write(sector, b"x" * SECTOR)
    cache.power_cut(random.Random(1))
    cache.close()
    kept = (tmp_path / "i").read_bytes().count(b"x" * SECTOR)
    assert 400 < kept < 600


def test_a_full_cache_is_written_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("machine.disk.volatile.MOST_SECTORS", 10)
    cache = WriteCache(RawFile.create(tmp_path / "i", 100))
    cache.write(0, b"x" * SECTOR * 10)
    assert (tmp_path / "i").read_bytes()[:SECTOR] == bytes(SECTOR)
    cache.write(20, b"x" * SECTOR)
    assert (tmp_path / "i").read_bytes()[:SECTOR] == b"x" * SECTOR
    cache.close()


def test_discarded_sectors_become_holes(tmp_path: Path) -> None:
    medium = RawFile.create(tmp_path / "i", 1 << 12)
    medium.write(0, b"x" * (1 << 21))
    medium.flush()
    used = (tmp_path / "i").stat().st_blocks
    medium.discard(1, (1 << 12) - 2)
    assert (tmp_path / "i").stat().st_blocks < used // 8
    assert medium.read(0, 2) == b"x" * 512 + bytes(512)
    assert medium.read((1 << 12) - 1, 1) == b"x" * 512
    assert (tmp_path / "i").stat().st_size == 1 << 21
    medium.close()


def test_where_there_are_no_holes_zeros_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> int:
        import ctypes

        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr("machine.disk.hostfile._FALLOCATE", refuses)
    medium = RawFile.create(tmp_path / "i", 5000)
    medium.write(0, b"x" * 5000 * SECTOR)
    for _ in range(2):
        medium.discard(1, 4000)
    assert medium.read(0, 1) + medium.read(4001, 999) == b"x" * 1000 * SECTOR
    assert medium.read(1, 4000) == bytes(4000 * SECTOR)
    medium.close()


def test_other_refusals_of_the_host_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> int:
        import ctypes

        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr("machine.disk.hostfile._FALLOCATE", refuses)
    medium = RawFile.create(tmp_path / "i", 8)
    with pytest.raises(OSError, match="Input/output"):
        medium.discard(0, 1)
    medium.close()


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    medium = RawFile.create(tmp_path / "i", 16)
    os.truncate(tmp_path / "i", 9 * SECTOR)
    assert medium.read(8, 1) == bytes(SECTOR)
    with pytest.raises(OSError, match="ends at") as caught:
        medium.read(8, 2)
    assert caught.value.errno == errno.EIO
    medium.close()


def test_transfers_of_more_pieces_than_the_host_takes(tmp_path: Path) -> None:
    medium = RawFile.create(tmp_path / "i", 4000)
    data = bytearray(random.Random(4).randbytes(3000 * SECTOR))
    medium.write_from(9, [memoryview(data)[at : at + 256] for at in range(0, len(data), 256)])
    back = bytearray(len(data))
    medium.read_into(9, [memoryview(back)[at : at + 128] for at in range(0, len(back), 128)])
    assert back == data
    medium.close()


def test_short_transfers_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwritev = os.preadv, os.pwritev

    def few(call: Any) -> Any:
        return lambda descriptor, views, offset: call(descriptor, [views[0][:300]], offset)

    medium = RawFile.create(tmp_path / "i", 64)
    monkeypatch.setattr(os, "preadv", few(preadv))
    monkeypatch.setattr(os, "pwritev", few(pwritev))
    rng = random.Random(4)
    data = bytearray(rng.randbytes(20 * SECTOR))
    medium.write_from(3, scattered(data, rng))
    back = bytearray(len(data))
    medium.read_into(3, scattered(back, rng))
    assert back == data
    medium.close()


def test_a_flush_waits_for_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(os, "fdatasync", waited.append)
    (tmp_path / "base").write_bytes(bytes(4096))
    overlay = Overlay.create(tmp_path / "o", RawFile.open(tmp_path / "base", read_only=True))
    for medium in (RawFile.create(tmp_path / "i", 8), WriteCache(RawFile.create(tmp_path / "j", 8)), overlay):
        waited.clear()
        medium.write(0, bytes(512))
        assert waited == []
        medium.flush()
        assert waited
        medium.close()
    waited.clear()
    temporary = RawFile.temporary(8)
    temporary.flush()
    temporary.close()
    assert waited == []


def test_a_host_that_lost_data_is_not_believed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: int) -> None:
        raise OSError(errno.EIO, "no")

    medium = RawFile.create(tmp_path / "i", 8)
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="no"):
        medium.flush()
    monkeypatch.undo()
    with pytest.raises(OSError, match="has lost data"):
        medium.flush()
    with pytest.raises(Exception, match=r"^The disk image .*i lost data: .*\.$"):
        medium.close()
    medium.close()
