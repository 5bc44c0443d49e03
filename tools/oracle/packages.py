"""What a dom0 that can start guests is made of: Debian's kernel, Xen's tools and the libraries they need.

Packages are downloaded with the package manager and unpacked into the cache, not installed.
"""
from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from elftools.elf.elffile import ELFFile

from tools import debian, guests_cache
from tools.oracle.qemu import OracleError

KERNEL_META: Final = "linux-image-amd64"
KERNEL_PATTERN: Final = r"linux-image-[0-9].*-amd64"
PACKAGES: Final = (
    "busybox-static", "xen-utils-4.17", "libxenmisc4.17", "libxencall1", "libxendevicemodel1",
    "libxenevtchn1", "libxenforeignmemory1", "libxengnttab1", "libxenhypfs1", "libxenstore4",
    "libxentoolcore1", "libxentoollog1", "libyajl2", "libc6", "libgcc-s1", "libuuid1", "zlib1g",
    "liblzma5", "libzstd1",
)
TOOLS: Final = ("xl", "xenconsoled", "xenstored", "xen-init-dom0")
LOADED: Final = ("libgcc_s.so.1",)
"""Libraries that libc loads by name when a thread is cancelled."""
MODULES: Final = ("xen-privcmd", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xenfs")
LOADER: Final = "ld-linux-x86-64.so.2"
LIBRARIES: Final = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


def root() -> Path:
    """The folder the packages are unpacked in, filled when it is not there. Raises OracleError."""
    place = guests_cache.folder() / "oracle" / "dom0"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetch-") as scratch:
        unpacked = Path(scratch) / "root"
        try:
            debian.prepare()
            kernel = debian.dependency(KERNEL_META, KERNEL_PATTERN)
            for name in (kernel, *PACKAGES):
                package = debian.download(name, Path(scratch))
                subprocess.run(["dpkg-deb", "-x", package.path, unpacked], check=True, capture_output=True)
        except (debian.PackageError, subprocess.CalledProcessError, FileNotFoundError) as error:
            raise OracleError(f"a dom0 cannot be made: {error}") from error
        unpacked.replace(place)
    return place


def one(pattern: str) -> Path:
    """The one file of the packages that matches. Raises OracleError."""
    for path in sorted(root().glob(pattern)):
        return path
    raise OracleError(f"Debian's packages hold no {pattern}")


def tool(name: str) -> Path:
    """One of Xen's tools."""
    return one(f"usr/lib/xen-4.17/bin/{name}")


def libraries(programs: Iterable[Path]) -> dict[str, Path]:
    """All shared libraries that programs need, by the name they ask for. Raises OracleError."""
    found: dict[str, Path] = {}
    wanted = [*LOADED, *(name for program in programs for name in _needed(program))]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = _library(name)
            wanted += _needed(found[name])
    return found


def _library(name: str) -> Path:
    for folder in LIBRARIES:
        path = root() / folder / name
        if path.exists():
            return path
    raise OracleError(f"Debian's packages hold no {name}")


def _needed(program: Path) -> list[str]:
    with program.open("rb") as file:
        dynamic: Any = ELFFile(file).get_section_by_name(".dynamic")
        return [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")] if dynamic else []
