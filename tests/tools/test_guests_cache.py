"""The cache of fetched guests: its manifest, and what counts as there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.guests import require_guest
from tools import guests_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XENPY_GUESTS", str(tmp_path))
    return tmp_path


def put(cache: Path, name: str, data: bytes) -> None:
    guests_cache.write(cache / name, data)
    manifest = guests_cache.read_manifest(cache)
    manifest[name] = guests_cache.describe(data, "some-package", "1:2.3-4")
    guests_cache.write_manifest(cache, manifest)


def test_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XENPY_GUESTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert guests_cache.folder() == Path("/somewhere/xenpy/guests")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert guests_cache.folder() == Path("/home/me/.cache/xenpy/guests")
    monkeypatch.setenv("XENPY_GUESTS", "/elsewhere")
    assert guests_cache.folder() == Path("/elsewhere")


def test_the_manifest_is_read_as_written(cache: Path) -> None:
    put(cache, "vmlinux", b"kernel")
    put(cache, "busybox", b"box")
    assert guests_cache.read_manifest(cache) == {
        "busybox": guests_cache.describe(b"box", "some-package", "1:2.3-4"),
        "vmlinux": guests_cache.describe(b"kernel", "some-package", "1:2.3-4")}
    before = (cache / "manifest.json").read_bytes()
    put(cache, "busybox", b"box")
    assert (cache / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in cache.iterdir()) == ["busybox", "manifest.json", "vmlinux"]


@pytest.mark.parametrize("text", [
    "", "[]", "{}", "7", "null", "{", '{"format": 99, "files": {}}', '{"format": 1, "files": []}',
    '{"format": 1, "files": {"vmlinux": 5}}', '{"format": 1, "files": {"vmlinux": {"size": 1}}}',
])
def test_a_strange_manifest_is_an_empty_one(cache: Path, text: str) -> None:
    (cache / "manifest.json").write_text(text)
    assert guests_cache.read_manifest(cache) == {}
    assert guests_cache.guest_path("vmlinux") is None


def test_what_is_there(cache: Path) -> None:
    assert guests_cache.guest_path("vmlinux") is None
    put(cache, "vmlinux", b"kernel")
    entry = guests_cache.read_manifest(cache)["vmlinux"]
    assert guests_cache.guest_path("vmlinux") == cache / "vmlinux"
    assert guests_cache.intact(cache / "vmlinux", entry)
    (cache / "vmlinux").write_bytes(b"KERNEL")
    assert not guests_cache.intact(cache / "vmlinux", entry)
    (cache / "vmlinux").write_bytes(b"kern")
    assert guests_cache.guest_path("vmlinux") is None
    (cache / "vmlinux").unlink()
    assert guests_cache.guest_path("vmlinux") is None
    assert not guests_cache.intact(cache / "vmlinux", entry)


def test_a_file_nobody_vouches_for_is_not_there(cache: Path) -> None:
    put(cache, "busybox", b"box")
    (cache / "vmlinux").write_bytes(b"kernel")
    assert guests_cache.guest_path("vmlinux") is None


def test_a_failed_write_leaves_the_old_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache, "vmlinux", b"kernel")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        guests_cache.write(cache / "vmlinux", b"new")
    assert (cache / "vmlinux").read_bytes() == b"kernel"
    assert sorted(path.name for path in cache.iterdir()) == ["manifest.json", "vmlinux"]


def test_the_manifest_is_plain_json(cache: Path) -> None:
    put(cache, "vmlinux", b"kernel")
    content = json.loads((cache / "manifest.json").read_text())
    assert content["format"] == guests_cache.FORMAT
    assert content["files"]["vmlinux"]["version"] == "1:2.3-4"


def test_a_needed_guest(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="make fetch"):
        require_guest("vmlinux")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="make fetch"):
        require_guest("vmlinux")
    put(cache, "vmlinux", b"kernel")
    assert require_guest("vmlinux") == cache / "vmlinux"
