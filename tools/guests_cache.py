"""Where fetched guests live, and what is there: `guest_path("vmlinux")`.

The folder is $XENPY_GUESTS, or xenpy/guests in the user's cache folder. `manifest.json` in it says where each
file came from and what its bytes must be; a file without an entry counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
"""Of the manifest; a file with another number is read as empty."""


@dataclass(frozen=True)
class Fetched:
    """One file of the cache: its bytes' hash and length, the package (name and version) it was made from."""

    sha256: str
    size: int
    package: str
    version: str


def folder() -> Path:
    """The cache folder; it need not exist."""
    if chosen := os.environ.get("XENPY_GUESTS"):
        return Path(chosen)
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "xenpy" / "guests"
    return Path.home() / ".cache" / "xenpy" / "guests"


def read_manifest(place: Path) -> dict[str, Fetched]:
    """The manifest of a cache folder; empty when there is none or it cannot be understood."""
    try:
        content = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return {}
        return {name: Fetched(**entry) for name, entry in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_manifest(place: Path, files: dict[str, Fetched]) -> None:
    """Replace the manifest."""
    content = {"format": FORMAT, "files": {name: asdict(files[name]) for name in sorted(files)}}
    write(place / MANIFEST, json.dumps(content, indent=2).encode() + b"\n")


def write(path: Path, data: bytes) -> None:
    """Put a file in place whole: a reader sees the old bytes or the new ones, a failure leaves the old."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix="." + path.name)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def describe(data: bytes, package: str, version: str) -> Fetched:
    """The manifest's entry for these bytes."""
    return Fetched(hashlib.sha256(data).hexdigest(), len(data), package, version)


def intact(path: Path, entry: Fetched) -> bool:
    """The file is there with the bytes its entry promises."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return len(data) == entry.size and hashlib.sha256(data).hexdigest() == entry.sha256


def guest_path(name: str) -> Path | None:
    """A fetched file by name (see `tools.fetch_guests.FILES`), or None. Checks its length, not each byte."""
    place = folder()
    entry = read_manifest(place).get(name)
    path = place / name
    if entry is None or not path.is_file() or path.stat().st_size != entry.size:
        return None
    return path
