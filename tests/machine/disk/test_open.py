"""Opening and creating images: what cannot be is told in one sentence, and nobody shares a writer's file."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from machine.disk import MediumError, Overlay, RawFile, open_medium
from tests.machine.disk.rig import image


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return image(tmp_path / "disk.img", bytes(8192))


def test_a_missing_image(tmp_path: Path) -> None:
    sentence = r"^The disk image .*nothing cannot be opened: no such file or directory\.$"
    with pytest.raises(MediumError, match=sentence):
        RawFile.open(tmp_path / "nothing")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(MediumError, match=r"is a directory\.$"):
        RawFile.open(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediumError, match=r"is neither a file nor a block device\.$"):
        RawFile.open(tmp_path / "pipe")


def test_a_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        with pytest.raises(MediumError, match="neither a file"):
            RawFile.open(tmp_path / "s")


@pytest.mark.parametrize("size", [0, 511, 513, 1_000_000])
def test_sizes_that_are_no_whole_sectors(tmp_path: Path, size: int) -> None:
    path = image(tmp_path / "odd", bytes(size))
    with pytest.raises(MediumError, match=rf"has {size} bytes, which is not one or more whole sectors"):
        RawFile.open(path)
    path.write_bytes(bytes(512))
    RawFile.open(path).close()


def test_an_image_one_may_only_read(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the host's answer: whoever runs this as root may open everything."""
    opening = os.open

    def reading_only(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opening(path, flags, mode)

    monkeypatch.setattr(os, "open", reading_only)
    with pytest.raises(MediumError, match=r"disk\.img cannot be opened: permission denied\.$"):
        RawFile.open(raw)
    RawFile.open(raw, read_only=True).close()


def test_a_writer_has_its_file_alone(raw: Path) -> None:
    first = RawFile.open(raw)
    for read_only in (False, True):
        with pytest.raises(MediumError, match=r"^The disk image .*: a writer needs it alone\.$"):
            RawFile.open(raw, read_only)
    first.close()
    RawFile.open(raw).close()


def test_readers_share_and_keep_writers_out(raw: Path) -> None:
    readers = [RawFile.open(raw, read_only=True) for _ in range(2)]
    with pytest.raises(MediumError, match="is in use"):
        RawFile.open(raw)
    for reader in readers:
        reader.close()
    RawFile.open(raw).close()


def test_another_name_of_the_file_is_the_same_file(raw: Path) -> None:
    (raw.parent / "link").symlink_to(raw)
    (raw.parent / "hard").hardlink_to(raw)
    first = RawFile.open(raw)
    for name in ("link", "hard"):
        with pytest.raises(MediumError, match="in use"):
            RawFile.open(raw.parent / name)
    first.close()


def test_another_process_is_kept_out_until_the_first_ends(raw: Path) -> None:
    code = ("import sys\nfrom machine.disk import RawFile\nf = RawFile.open(sys.argv[1])\n"
            "print('open', flush=True)\ninput()")
    with subprocess.Popen([sys.executable, "-c", code, str(raw)], cwd=Path(__file__).parents[3],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(MediumError, match="in use"):
            RawFile.open(raw)
        other.kill()
        other.wait()
    RawFile.open(raw).close()


def test_a_base_of_an_overlay_cannot_be_written(raw: Path, tmp_path: Path) -> None:
    medium = open_medium("raw", raw, snapshot=True)
    with pytest.raises(MediumError, match="in use"):
        RawFile.open(raw)
    other = open_medium("raw", raw, overlay=tmp_path / "o")
    with pytest.raises(MediumError, match="in use"):
        open_medium("raw", raw, overlay=tmp_path / "o")
    medium.close()
    other.close()


def test_a_new_image_takes_no_space_and_an_old_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "new"
    made = RawFile.create(path, 1 << 24)
    assert made.sectors == 1 << 24
    assert path.stat().st_size == 8 << 30
    assert path.stat().st_blocks < 64
    made.write(5, b"x" * 512)
    made.close()
    made.close()
    with pytest.raises(MediumError, match=r"cannot be created: file exists\.$"):
        RawFile.create(path, 8)
    assert RawFile.open(path).read(5, 1) == b"x" * 512


@pytest.mark.parametrize("sectors", [0, -1, (1 << 44) + 1])
def test_sizes_that_cannot_be_created(tmp_path: Path, sectors: int) -> None:
    with pytest.raises(MediumError, match="A disk has 1 to"):
        RawFile.create(tmp_path / "new", sectors)
    assert not (tmp_path / "new").exists()


def test_what_the_host_has_no_room_for(tmp_path: Path) -> None:
    with pytest.raises(MediumError, match="cannot be created: file too large"):
        RawFile.create(tmp_path / "new", 1 << 44)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MediumError, match="cannot be created: no such file"):
        RawFile.create(tmp_path / "no" / "new", 8)


def test_formats_are_named_and_never_guessed(raw: Path) -> None:
    with pytest.raises(MediumError, match=r"^There is no disk format 'vmdk': there are raw, qcow2\.$"):
        open_medium("vmdk", raw)
    raw.write_bytes(b"QFI\xfb" + bytes(8188))
    medium = open_medium("raw", raw)
    assert medium.read(0, 1)[:4] == b"QFI\xfb"
    medium.close()


def test_changes_go_one_way(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(MediumError, match="either thrown away or kept"):
        open_medium("raw", raw, snapshot=True, overlay=tmp_path / "o")


def test_an_overlay_is_made_once_and_found_again(raw: Path, tmp_path: Path) -> None:
    for expected in (bytes(512), b"x" * 512):
        medium = open_medium("raw", raw, overlay=tmp_path / "o")
        assert isinstance(medium, Overlay)
        assert medium.read(3, 1) == expected
        medium.write(3, b"x" * 512)
        medium.close()
    assert raw.read_bytes() == bytes(8192)


def test_a_snapshot_is_thrown_away(raw: Path) -> None:
    medium = open_medium("raw", raw, snapshot=True)
    medium.write(3, b"x" * 512)
    medium.flush()
    assert medium.read(3, 1) == b"x" * 512
    medium.close()
    assert raw.read_bytes() == bytes(8192)
    assert [path.name for path in raw.parent.iterdir()] == ["disk.img"]


def test_read_only_needs_no_layer(raw: Path) -> None:
    medium = open_medium("raw", raw, read_only=True, snapshot=True)
    assert isinstance(medium, RawFile)
    assert medium.read_only
    medium.close()


def test_a_base_is_let_go_when_its_overlay_is_not_one(raw: Path, tmp_path: Path) -> None:
    image(tmp_path / "o", bytes(8192))
    with pytest.raises(MediumError, match="is no overlay"):
        open_medium("raw", raw, overlay=tmp_path / "o")
    RawFile.open(raw).close()
    RawFile.open(tmp_path / "o").close()
