"""Debian packages without installing them: the package manager downloads, Python unpacks.

Sources: apt-get(8) and apt-cache(8); deb(5) for a package's layout, an `ar` archive whose member data.tar.*
holds the files.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

AR_MAGIC: Final = b"!<arch>\n"
AR_HEADER: Final = 60
"""Bytes of an archive member's header: name at 0 (16), decimal length at 48 (10), end mark at 58 (2)."""
AR_END: Final = b"`\n"
XZ_MAGIC: Final = b"\xfd7zXZ\0"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"

LISTS: Final = Path("/var/lib/apt/lists")
TIMEOUT_S: Final = 600
UPDATE_HINT: Final = "run `apt-get update` as root, then try again"

REASONS: Final = (
    ("No space left on device", "the disk is full"),
    ("Temporary failure resolving|Could not resolve|[Cc]ould not connect|[Uu]nable to connect|unreachable",
     "the package server cannot be reached"),
)
"""What apt says about the commonest troubles, and how we say it."""


class PackageError(Exception):
    """A package could not be had; the text is one sentence for the user."""


@dataclass(frozen=True)
class Package:
    """A downloaded package."""

    name: str
    version: str
    path: Path


def prepare() -> None:
    """Make sure the package manager is there and knows packages; under CI, as root, bring missing lists."""
    if shutil.which("apt-get") is None:
        raise PackageError("there is no apt-get here: real guests are fetched with Debian's package manager")
    if any(LISTS.glob("*_Packages*")):
        return
    if os.environ.get("CI") == "true" and os.geteuid() == 0:
        _run("apt-get", "update", "-qq")
    else:
        raise PackageError(f"the package manager has no package lists: {UPDATE_HINT}")


def dependency(package: str, pattern: str) -> str:
    """The first package matching `pattern` that `package` depends on: a meta-package names the real one."""
    text = _run("apt-cache", "depends", "--important", package)
    for line in text.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and re.fullmatch(pattern, name):
            return name
    raise PackageError(f"package {package} names no {pattern} here: {UPDATE_HINT}")


def download(package: str, place: Path) -> Package:
    """Download one package into the folder `place`, which must hold no other copy of it."""
    options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    _run("apt-get", "-qq", *options, "download", package, cwd=place)
    for path in place.glob(f"{package}_*.deb"):
        return Package(package, unquote(path.name.split("_")[1]), path)
    raise PackageError(f"apt-get downloaded no {package}")


def _run(*command: str, cwd: Path | None = None) -> str:
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise PackageError(f"there is no {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise PackageError(f"{' '.join(command)} gave no result in {TIMEOUT_S} s") from None
    if done.returncode:
        raise PackageError(f"{command[0]} {command[-1]}: {_reason(done.stderr, done.returncode)}")
    return done.stdout


def _reason(stderr: str, status: int) -> str:
    """Why apt failed, out of what it said."""
    for symptom, reason in REASONS:
        if re.search(symptom, stderr):
            return reason
    complaints = [line[2:].strip() for line in stderr.splitlines() if line.startswith("E:")]
    return f"{complaints[0] if complaints else f'exit status {status}'} ({UPDATE_HINT})"


def members(package: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    """The files of a package whose path matches a regular expression of `wanted`, by expression.

    Reads no further than the last file wanted. Raises PackageError when one is missing or the package broken.
    """
    missing = set(wanted)
    found: dict[str, bytes] = {}
    try:
        name, data = _data_archive(package)
        with _open_tar(name, data) as tar:
            for member in tar:
                for expression in sorted(missing):
                    if member.isfile() and re.fullmatch(expression, member.name.removeprefix("./")):
                        content = tar.extractfile(member)
                        found[expression] = content.read() if content else b""
                        missing.discard(expression)
                if not missing:
                    return found
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise PackageError(f"{package.name} cannot be unpacked: {error}") from error
    raise PackageError(f"{package.name} holds no {', '.join(sorted(missing))}")


def _data_archive(package: Path) -> tuple[str, bytes]:
    """Name and bytes of the member data.tar.*."""
    data = package.read_bytes()
    if not data.startswith(AR_MAGIC):
        raise ValueError("not a Debian package")
    at = len(AR_MAGIC)
    while at + AR_HEADER <= len(data):
        header = data[at : at + AR_HEADER]
        if header[58:60] != AR_END:
            break
        name, length = header[:16].decode("ascii").rstrip(" /"), int(header[48:58])
        at += AR_HEADER
        if name.startswith("data.tar"):
            if at + length > len(data):
                break
            return name, data[at : at + length]
        at += length + length % 2
    raise ValueError("its list of members is damaged")


def unpacked(data: bytes) -> bytes:
    """A kernel module as the kernel takes it, however its package has packed it. PackageError when broken."""
    import zstandard
    whole = True
    try:
        if data.startswith(XZ_MAGIC):
            return lzma.decompress(data)
        if data.startswith(ZSTD_MAGIC):
            stream = zstandard.ZstdDecompressor().decompressobj()
            data = stream.decompress(data)
            whole = stream.eof
    except (lzma.LZMAError, zstandard.ZstdError) as error:
        raise PackageError(f"a kernel module cannot be unpacked: {error}") from error
    if not whole:
        raise PackageError("a kernel module cannot be unpacked: it ends too early")
    return data


def _open_tar(name: str, data: bytes) -> tarfile.TarFile:
    if name.endswith(".zst"):
        import zstandard
        return tarfile.open(fileobj=zstandard.ZstdDecompressor().stream_reader(data), mode="r|")
    return tarfile.open(fileobj=io.BytesIO(data), mode="r|*")
