"""The archive Linux unpacks: its bytes, against the format's description and against a reader of our own."""

from __future__ import annotations

import stat
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import cpio, initramfs


def read(data: bytes) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Name, the 13 header fields and contents of each entry, up to the trailer."""
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = tuple(int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13))
        name_at = at + 110
        name = data[name_at : name_at + fields[11] - 1].decode()
        assert data[name_at + fields[11] - 1] == 0
        body = (name_at + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            assert (body, fields[6]) == (len(data), 0)
            return
        yield name, fields, data[body : body + fields[6]]
        at = (body + fields[6] + 3) & ~3


def test_one_file_byte_for_byte() -> None:
    header = b"070701" + b"00000001" + b"000081A4" + b"00000000" * 2 + b"00000001" + b"00000000"
    header += b"00000003" + b"00000000" * 4 + b"00000002" + b"00000000"
    archive = cpio.archive([cpio.file("a", b"abc")])
    assert archive.startswith(header + b"a\0" + b"abc\0" + b"070701")
    assert len(archive) % 4 == 0


def test_kinds() -> None:
    entries = {name: (fields, data) for name, fields, data in read(cpio.archive([
        cpio.directory("d"), cpio.file("d/f", b"x", 0o755), cpio.symlink("d/l", "f"),
        cpio.character_device("c", 5, 1),
    ]))}
    modes = {name: stat.filemode(fields[1]) for name, (fields, _) in entries.items()}
    assert modes == {"d": "drwxr-xr-x", "d/f": "-rwxr-xr-x", "d/l": "lrwxrwxrwx", "c": "crw-------"}
    assert entries["d/l"][1] == b"f"
    assert entries["c"][0][9:11] == (5, 1)
    assert entries["d"][0][4] == 2
    assert all(fields[5] == fields[2] == fields[3] == 0 for fields, _ in entries.values())


@given(st.dictionaries(st.text("abcxyz", min_size=1, max_size=9), st.binary(max_size=40), max_size=8))
def test_what_is_written_is_read(files: dict[str, bytes]) -> None:
    archive = cpio.archive([cpio.file(name, data) for name, data in files.items()])
    found = list(read(archive))
    assert {name: data for name, _, data in found} == files
    assert [fields[0] for _, fields, _ in found] == list(range(1, len(files) + 1))


@pytest.mark.parametrize("entries", [
    [cpio.file("d/f", b"")],
    [cpio.file("d/f", b""), cpio.directory("d")],
    [cpio.file("f", b""), cpio.file("f", b"")],
    [cpio.character_device("c", -1, 0)],
])
def test_nonsense_is_refused(entries: list[cpio.Entry]) -> None:
    with pytest.raises(ValueError, match=r"directory|twice|32 bits"):
        cpio.archive(entries)


BUSYBOX = b"\x7fELF\0junk\0[\0[[\0busybox\0cat\0sh\0\0more"


def test_applets_are_found() -> None:
    assert initramfs.applets(BUSYBOX) == ["[", "[[", "busybox", "cat", "sh"]
    with pytest.raises(ValueError, match="no list"):
        initramfs.applets(b"\x7fELF")


def test_initramfs() -> None:
    built = initramfs.build_all(BUSYBOX)
    assert sorted(built) == ["shell.cpio", "workload.cpio"]
    assert built == initramfs.build_all(BUSYBOX)
    entries = {name: (fields, data) for name, fields, data in read(built["workload.cpio"])}
    assert entries["init"][1] == (initramfs.WORKLOAD / "init").read_bytes()
    assert entries["init"][0][1] & 0o111 == 0o111
    assert entries["bin/busybox"][1] == BUSYBOX
    assert {name for name in entries if name.startswith("bin/")} == {
        "bin/busybox", "bin/[", "bin/[[", "bin/cat", "bin/sh"}
    assert {name: entries[name][0][9:11] for name in ("dev/console", "dev/null", "dev/zero")} == {
        "dev/console": (5, 1), "dev/null": (1, 3), "dev/zero": (1, 5)}
