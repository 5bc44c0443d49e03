"""Fetching, with a package manager of our own in PATH that hands out small packages."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tools import debian, fetch_guests, guests_cache, initramfs

BUSYBOX = b"\x7fELF\0[\0[[\0cat\0sh\0\0"
ELF = b"\x7fELF" + bytes(60)
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress, "gz": gzip.compress, "bz2": bz2.compress, "zst": zstandard.compress,
}


def bzimage(kernel: bytes) -> bytes:
    payload = zlib.compress(kernel, wbits=31)
    image = bytearray(1024)
    image[0x1F1] = 1
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    struct.pack_into("<II", image, 0x248, 0, len(payload))
    return bytes(image) + payload


PACKAGES: dict[str, dict[str, bytes]] = {
    "grub-xen-host": {f"usr/lib/grub-xen/grub-{arch}-xen.bin": arch.encode() for arch in ("x86_64", "i386")},
    "busybox-static": {"bin/busybox": BUSYBOX},
    "xenstore-utils": {"usr/bin/xenstore": b"tools"},
    "libxenstore4": {"usr/lib/x86_64-linux-gnu/libxenstore.so.4.0": b"store"},
    "libxentoolcore1": {"usr/lib/x86_64-linux-gnu/libxentoolcore.so.1.0": b"core"},
    "libc6": {f"lib/x86_64-linux-gnu/{name}": b"libc" for name in ("libc.so.6", "ld-linux-x86-64.so.2")},
    "linux-image-9.8.7-6-amd64": {
        "boot/vmlinuz-9.8.7-6-amd64": bzimage(ELF),
        **{f"lib/modules/9.8.7-6-amd64/kernel/{name}.ko": name.encode() for name in initramfs.MODULES[1:]},
        f"lib/modules/9.8.7-6-amd64/kernel/{initramfs.MODULES[0]}.ko.xz": lzma.compress(b"packed"),
    },
}


def package(files: dict[str, bytes], packing: str = "xz") -> bytes:
    """A Debian package's bytes."""
    tar = io.BytesIO()
    with tarfile.open(None, "w", tar) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    packed = PACKERS[packing](tar.getvalue())
    out = b"!<arch>\n"
    parts = (("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), (f"data.tar.{packing}", packed))
    for name, body in parts:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode()
        out += body + b"\n" * (len(body) % 2)
    return out


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, and in PATH only our package manager, which has PACKAGES."""
    shelf, tools, lists = (tmp_path / name for name in ("shelf", "tools", "lists"))
    for folder in (shelf, tools, lists):
        folder.mkdir()
    (lists / "main_Packages").touch()
    for name, files in PACKAGES.items():
        (shelf / f"{name}_1%3a2-3_amd64.deb").write_bytes(package(files))
    script(tools / "apt-get", f"""
        echo "$*" >> {tmp_path}/calls
        for name; do :; done
        cp {shelf}/$name"_"*.deb . 2>/dev/null && exit
        echo "E: Unable to locate package $name" >&2; exit 100""")
    script(tools / "apt-cache", "printf 'linux-image-amd64\\n  Depends: linux-image-9.8.7-6-amd64\\n'")
    (tools / "cp").symlink_to("/bin/cp")
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(debian, "LISTS", lists)
    monkeypatch.setenv("XENPY_GUESTS", str(tmp_path / "guests"))
    return tmp_path / "guests"


def script(path: Path, text: str) -> None:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def calls(place: Path) -> list[str]:
    path = place.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_everything_is_fetched_and_made(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch_guests.main([]) == 0
    manifest = guests_cache.read_manifest(place)
    assert sorted(manifest) == sorted(fetch_guests.FILES)
    assert {path.name for path in place.iterdir()} == {*fetch_guests.FILES, "manifest.json"}
    assert (place / "vmlinux").read_bytes() == ELF
    assert (place / "grub-i386-xen.bin").read_bytes() == b"i386"
    assert (place / "ext4.ko").read_bytes() == b"ext4"
    assert (place / f"{initramfs.MODULES[0]}.ko").read_bytes() == b"packed"
    assert manifest["vmlinux"].package == "linux-image-9.8.7-6-amd64"
    assert manifest["vmlinux"].version == "1:2-3"
    assert "linux-image-9.8.7-6-amd64 1:2-3" in capsys.readouterr().err


def test_what_is_intact_is_left_alone(place: Path) -> None:
    assert fetch_guests.main([]) == 0
    before = calls(place)
    assert len(before) == len(fetch_guests.SOURCES)
    assert fetch_guests.main([]) == 0
    assert calls(place) == before
    (place / "busybox").write_bytes(b"spoilt")
    (place / "vmlinux").write_bytes(b"spoilt")
    assert fetch_guests.main([]) == 0
    assert [call.split()[-1] for call in calls(place)[len(before):]] == ["busybox-static"]
    assert (place / "vmlinux").read_bytes() == ELF
    assert fetch_guests.main(["--force"]) == 0
    assert len(calls(place)) == 2 * len(before) + 1


def test_a_changed_init_is_packed_again(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch_guests.main([]) == 0
    before = (place / "workload.cpio").read_bytes()
    inits = tmp_path / "inits"
    inits.mkdir()
    for name in ("init", "shell-init", "disk-init"):
        (inits / name).write_bytes(b"#!/bin/sh\n")
    monkeypatch.setattr("tools.initramfs.WORKLOAD", inits)
    assert fetch_guests.main([]) == 0
    assert (place / "workload.cpio").read_bytes() != before
    assert len(calls(place)) == len(fetch_guests.SOURCES)


def failure(capsys: pytest.CaptureFixture[str], status: int = 1) -> str:
    """The one sentence a failed fetch ends with."""
    assert fetch_guests.main([]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err.splitlines()[-1]


@pytest.mark.usefixtures("place")
def test_no_package_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "there is no apt-get here" in failure(capsys)


def test_no_package_lists(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (debian.LISTS / "main_Packages").unlink()
    assert "apt-get update" in failure(capsys)
    assert calls(place) == []


def test_ci_brings_missing_lists(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (debian.LISTS / "main_Packages").unlink()
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    script(place.parent / "tools" / "apt-get", f'echo "$*" >> {place.parent}/calls')
    debian.prepare()
    assert calls(place) == ["update -qq"]


@pytest.mark.usefixtures("place")
def test_an_unknown_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next((tmp_path / "shelf").glob("busybox*")).unlink()
    said = failure(capsys)
    assert "Unable to locate package busybox-static" in said
    assert "apt-get update" in said


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("said", "reason"), [
    ("E: Failed to fetch http://server/a.deb  Temporary failure resolving 'server'", "cannot be reached"),
    ("E: Failed to fetch http://server/a.deb  Could not connect to server:80", "cannot be reached"),
    ("E: Failed to fetch http://server/a.deb  write (28: No space left on device)", "the disk is full"),
    ("E: Failed to fetch http://server/a.deb  404  Not Found", "apt-get update"),
    ("", "exit status 100"),
])
def test_apt_in_trouble(tmp_path: Path, said: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    script(tmp_path / "tools" / "apt-get", f'echo "{said}" >&2; exit 100')
    assert reason in failure(capsys)


@pytest.mark.usefixtures("place")
def test_no_kernel_in_the_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script(tmp_path / "tools" / "apt-cache", "echo linux-image-amd64")
    assert "names no linux-image" in failure(capsys)


@pytest.mark.usefixtures("place")
def test_a_hung_package_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    script(tmp_path / "tools" / "apt-get", "exec /bin/sleep 30")
    monkeypatch.setattr(debian, "TIMEOUT_S", 0.2)
    assert "gave no result" in failure(capsys)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("spoil", [
    lambda data: b"",
    lambda data: b"junk" + data,
    lambda data: data[:70],
    lambda data: data[: len(data) // 2],
    lambda data: data[:-40] + b"x" * 20,
    lambda data: package({"bin/other": b""}),
])
def test_a_broken_package(tmp_path: Path, spoil: object, capsys: pytest.CaptureFixture[str]) -> None:
    path = next((tmp_path / "shelf").glob("busybox*"))
    path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
    assert "busybox-static" in failure(capsys)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("kernel", "complaint"), [
    (bzimage(b"no kernel"), "holds no ELF file"),
    (bzimage(ELF)[:-9], "vmlinuz of the package: "),
    (b"", "holds no ELF file"),
])
def test_a_kernel_that_is_none(tmp_path: Path, kernel: bytes, complaint: str,
                               capsys: pytest.CaptureFixture[str]) -> None:
    path = next((tmp_path / "shelf").glob("linux*"))
    files = PACKAGES["linux-image-9.8.7-6-amd64"] | {"boot/vmlinuz-9.8.7-6-amd64": kernel}
    path.write_bytes(package(files))
    assert complaint in failure(capsys)


@pytest.mark.usefixtures("place")
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(guests_cache, "write", full)
    assert "the disk is full" in failure(capsys)


def test_a_folder_that_cannot_be(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place.write_bytes(b"a file")
    assert "cannot be stored in" in failure(capsys)


@pytest.mark.usefixtures("place")
def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(debian, "prepare", interrupt)
    assert failure(capsys, 130) == "interrupted"


@pytest.mark.parametrize("packing", PACKERS)
def test_packings(tmp_path: Path, packing: str) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(package({"etc/a": b"one", "etc/b": b"two"}, packing))
    assert debian.members(path, ["etc/b", "etc/[a]"]) == {"etc/b": b"two", "etc/[a]": b"one"}
    with pytest.raises(debian.PackageError, match="holds no etc/c"):
        debian.members(path, ["etc/c"])


def test_modules_are_taken_in_every_packing() -> None:
    assert debian.unpacked(b"\x7fELF plain") == b"\x7fELF plain"
    for pack in (lzma.compress, zstandard.compress):
        assert debian.unpacked(pack(b"\x7fELF module" * 99)) == b"\x7fELF module" * 99
        with pytest.raises(debian.PackageError, match="cannot be unpacked"):
            debian.unpacked(pack(bytes(range(256)) * 9)[:40])
