"""qcow2 images: what is refused by its header, what qemu-nbd reads, and what a bad server may say."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from machine.disk import SECTOR, MediumError, Overlay, Qcow2, RawFile, nbd, open_medium
from machine.disk.nbd import NbdClient
from tests.machine.disk.rig import image

needs_qemu = pytest.mark.skipif(
    not (shutil.which("qemu-img") and shutil.which("qemu-nbd")), reason="needs QEMU's tools: qemu-utils")
SIZE = 4 << 20


def header(
    *, magic: bytes = b"QFI\xfb", version: int = 3, backing: int = 0, size: int = SIZE, crypt: int = 0,
    features: int = 0,
) -> bytes:
    made = struct.pack(">4sIQIIQI", magic, version, backing, 9 if backing else 0, 16, size, crypt)
    return made.ljust(72, b"\0") + struct.pack(">Q", features) + bytes(500)


@pytest.mark.parametrize(("data", "why"), [
    (b"QFI\xfb", "is too short for a qcow2 image"),
    (header(magic=b"QFI\xfa"), "is no qcow2 image of version 2 or 3"),
    (header(version=1), "is no qcow2 image of version 2 or 3"),
    (header(version=4), "is no qcow2 image of version 2 or 3"),
    (header(backing=512), "has a backing file: make one that stands alone"),
    (header(version=2, backing=512), "has a backing file"),
    (header(features=4), "has its data in another file"),
    (header(features=2), "is marked as corrupt"),
    (header(crypt=1), "is encrypted"),
    (header(size=0), "has a disk of 0 bytes"),
    (header(size=1000), "has a disk of 1000 bytes"),
    (header(size=1 << 62), "has a disk of 4611686018427387904 bytes"),
])
def test_images_that_are_refused_before_anybody_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, why: str,
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nobody reads it"))
    path = image(tmp_path / "q", data)
    with pytest.raises(MediumError, match=rf"^The image .*q {why}"):
        Qcow2.open(path)
    RawFile.open(image(path, bytes(512))).close()


def test_without_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MediumError, match=r"^Reading qcow2 images needs qemu-nbd \(Debian: qemu-utils\)\.$"):
        Qcow2.open(image(tmp_path / "q", header()))


def test_an_image_is_only_read(tmp_path: Path) -> None:
    with pytest.raises(MediumError, match="can only be read: use it with a snapshot or an overlay"):
        open_medium("qcow2", image(tmp_path / "q", header()))


@pytest.fixture
def converted(tmp_path: Path) -> Callable[..., tuple[Path, bytes]]:
    def convert(*options: str, name: str = "q.qcow2") -> tuple[Path, bytes]:
        data = random.Random(1).randbytes(300_000) + b"z" * 200_000
        raw = image(tmp_path / "raw", data.ljust(SIZE, b"\0"))
        path = tmp_path / name
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, path], check=True)
        return path, raw.read_bytes()

    return convert


@needs_qemu
@pytest.mark.parametrize("options", [
    (), ("-c",), ("-o", "compat=0.10"), ("-o", "cluster_size=512"), ("-o", "extended_l2=on"),
    ("-c", "-o", "compression_type=zstd"),
], ids=" ".join)
def test_it_reads_what_was_written(
    converted: Callable[..., tuple[Path, bytes]], options: tuple[str, ...],
) -> None:
    path, data = converted(*options)
    medium = Qcow2.open(path)
    assert medium.read_only
    assert medium.sectors == SIZE // SECTOR
    assert medium.read(0, medium.sectors) == data
    back = bytearray(5 * SECTOR)
    medium.read_into(583, [memoryview(back)[at : at + 320] for at in range(0, len(back), 320)])
    assert back == data[583 * SECTOR : 588 * SECTOR]
    medium.close()
    medium.close()


@needs_qemu
def test_a_name_with_commas_and_colons(converted: Callable[..., tuple[Path, bytes]]) -> None:
    path, data = converted(name="nbd:a,file.filename=b,,c.qcow2")
    medium = Qcow2.open(path)
    assert medium.read(0, 8) == data[: 8 * SECTOR]
    medium.close()


@needs_qemu
def test_changes_are_in_the_overlay(converted: Callable[..., tuple[Path, bytes]], tmp_path: Path) -> None:
    path, data = converted()
    before = path.read_bytes()
    for expected in (data[: 4 * SECTOR], data[:SECTOR] + b"n" * SECTOR + data[2 * SECTOR : 4 * SECTOR]):
        medium = open_medium("qcow2", path, overlay=tmp_path / "o")
        assert isinstance(medium, Overlay)
        assert medium.read(0, 4) == expected
        medium.write(1, b"n" * SECTOR)
        medium.close()
    assert path.read_bytes() == before


@needs_qemu
def test_a_writer_is_kept_out(converted: Callable[..., tuple[Path, bytes]]) -> None:
    path, _ = converted()
    medium = Qcow2.open(path)
    with pytest.raises(MediumError, match="in use"):
        RawFile.open(path)
    medium.close()
    RawFile.open(path).close()


@needs_qemu
def test_what_qemu_refuses_is_told(tmp_path: Path) -> None:
    with pytest.raises(MediumError, match=r"^qemu-nbd cannot read .*q: .+"):
        Qcow2.open(image(tmp_path / "q", header()))


def servers(path: Path) -> list[int]:
    """Processes whose command line names the file."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"qemu-nbd" in line and str(path).encode() in line:
                found.append(int(entry.name))
    return found


@needs_qemu
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_server_ends_with_a_killed_process(converted: Callable[..., tuple[Path, bytes]]) -> None:
    path, _ = converted()
    code = "from machine.disk import Qcow2; m = Qcow2.open(sys.argv[1]); print('open', flush=True); input()"
    command = [sys.executable, "-c", f"import sys; {code}", str(path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert servers(path)
        process.send_signal(signal.SIGKILL)
    for _ in range(500):
        if not servers(path):
            break
        time.sleep(0.01)
    assert servers(path) == []


GREETING = struct.pack(">QQH", nbd.NBD_MAGIC, nbd.OPTION_MAGIC, 3)


def reply(
    kind: int, data: bytes = b"", option: int = nbd.OPT_GO, magic: int = nbd.OPTION_REPLY_MAGIC,
) -> bytes:
    return struct.pack(">QIII", magic, option, kind, len(data)) + data


EXPORT = reply(nbd.REP_INFO, struct.pack(">HQH", nbd.INFO_EXPORT, 8192, 1))
READY = GREETING + EXPORT + reply(nbd.REP_ACK)


def client(says: bytes) -> tuple[NbdClient, socket.socket]:
    """A client of a server that has said this already and then hangs up its side."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.sendall(says)
    theirs.shutdown(socket.SHUT_WR)
    try:
        return NbdClient(ours), theirs
    except BaseException:
        ours.close()
        theirs.close()
        raise


@pytest.mark.parametrize("says", [
    b"", GREETING[:9], b"\0" * 18, struct.pack(">QQH", nbd.NBD_MAGIC, nbd.OPTION_MAGIC, 0),
    GREETING, GREETING + reply(nbd.REP_ACK), GREETING + EXPORT, GREETING + reply(0x80000001, b"no"),
    GREETING + reply(nbd.REP_INFO, option=6), GREETING + reply(nbd.REP_INFO, magic=1),
    GREETING + reply(nbd.REP_INFO, bytes((1 << 16) + 1)) + EXPORT + reply(nbd.REP_ACK),
    GREETING + reply(nbd.REP_INFO, bytes(12)[:5]) + reply(nbd.REP_ACK),
])
def test_a_server_that_makes_no_sense(says: bytes) -> None:
    with pytest.raises(OSError, match="the block server"):
        client(says)


@pytest.mark.parametrize("answer", [
    b"", struct.pack(">IIQ", nbd.REPLY_MAGIC, 5, 1) + bytes(512),
    struct.pack(">IIQ", nbd.REPLY_MAGIC, 0, 2) + bytes(512), struct.pack(">IIQ", 1, 0, 1) + bytes(512),
    struct.pack(">IIQ", nbd.REPLY_MAGIC, 0, 1) + bytes(511),
])
def test_a_read_that_goes_wrong(answer: bytes) -> None:
    made, theirs = client(READY + answer)
    assert made.size == 8192
    with pytest.raises(OSError, match="the block server"):
        made.read_into(0, [memoryview(bytearray(512))])
    made.close()
    theirs.close()


def test_large_reads_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "_MOST_READ", 1024)
    asked: list[tuple[int, int]] = []
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            theirs.sendall(READY)
            theirs.recv(4 + 16 + 6, socket.MSG_WAITALL)
            while True:
                _, _, command, cookie, offset, length = struct.unpack(
                    ">IHHQQI", theirs.recv(28, socket.MSG_WAITALL))
                if command == nbd.CMD_DISCONNECT:
                    return
                asked.append((offset, length))
                head = struct.pack(">IIQ", nbd.REPLY_MAGIC, 0, cookie)
                theirs.sendall(head + bytes([offset >> 9]) * length)

    thread = threading.Thread(target=serve)
    thread.start()
    made = NbdClient(ours)
    data = bytearray(512 * 5)
    made.read_into(512, [memoryview(data)[at : at + 512] for at in range(0, len(data), 512)])
    made.close()
    thread.join()
    assert asked == [(512, 1024), (1536, 1024), (2560, 512)]
    assert data == b"\1" * 1024 + b"\3" * 1024 + b"\5" * 512
