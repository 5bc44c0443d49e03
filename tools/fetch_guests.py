"""Fetches real guests into the cache: `python -m tools.fetch_guests [--force]`.

GRUB's PV images, a Debian kernel with some of its modules, busybox and xenstore-utils with what they are
linked with come from Debian's packages; the
uncompressed kernel and the initramfs are made from them here. Nothing is installed and no root is needed.
What is there and intact stays.
"""

from __future__ import annotations

import argparse
import errno
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware.domain.errors import BadImageError
from firmware.domain.unpack import kernel_of
from tools import debian, guests_cache, initramfs

KERNEL_META: Final = "linux-image-amd64"
ELF_MAGIC: Final = b"\x7fELF"
KERNEL_PATTERN: Final = r"linux-image-[0-9].*-amd64"


@dataclass(frozen=True)
class Source:
    """A package and what we take from it: file name in the cache -> expression for its path in there."""

    package: str
    files: dict[str, str]


SOURCES: Final = (
    Source("grub-xen-host", {
        "grub-x86_64-xen.bin": r"usr/lib/grub-xen/grub-x86_64-xen\.bin",
        "grub-i386-xen.bin": r"usr/lib/grub-xen/grub-i386-xen\.bin",
    }),
    Source("busybox-static", {"busybox": r"(usr/)?bin/busybox"}),
    Source("xenstore-utils", {"xenstore": r"usr/bin/xenstore"}),
    Source("libxenstore4", {"libxenstore.so": r"usr/lib/x86_64-linux-gnu/libxenstore\.so\.4\.[0-9]+"}),
    Source("libxentoolcore1", {
        "libxentoolcore.so": r"usr/lib/x86_64-linux-gnu/libxentoolcore\.so\.1\.[0-9]+",
    }),
    Source("libc6", {
        "libc.so": r"(usr/)?lib/x86_64-linux-gnu/libc\.so\.6",
        "ld.so": r"(usr/)?lib/x86_64-linux-gnu/ld-linux-x86-64\.so\.2",
    }),
    Source(KERNEL_META, {
        "vmlinuz": r"boot/vmlinuz-.*",
        **{f"{name}.ko": rf"(usr/)?lib/modules/.*/{name}\.ko(\.xz|\.zst)?" for name in initramfs.MODULES},
    }),
)

FILES: Final = (
    *(file for source in SOURCES for file in source.files), "vmlinux", *initramfs.INITS, initramfs.DISK,
    initramfs.STORE,
)
"""What the cache holds after a fetch."""


def fetch(place: Path, *, force: bool = False) -> dict[str, guests_cache.Fetched]:
    """Bring the cache folder up to date and return its manifest.

    Raises PackageError, ValueError or OSError.
    """
    place.mkdir(parents=True, exist_ok=True)
    manifest = {} if force else guests_cache.read_manifest(place)
    missing = [source for source in SOURCES if not all(_intact(place, manifest, it) for it in source.files)]
    if missing:
        debian.prepare()
    for source in missing:
        _fetch_source(place, manifest, source)
        guests_cache.write_manifest(place, manifest)
    if _make(place, manifest):
        guests_cache.write_manifest(place, manifest)
    return manifest


def _intact(place: Path, manifest: dict[str, guests_cache.Fetched], name: str) -> bool:
    entry = manifest.get(name)
    return entry is not None and guests_cache.intact(place / name, entry)


def _fetch_source(place: Path, manifest: dict[str, guests_cache.Fetched], source: Source) -> None:
    name = source.package
    if name == KERNEL_META:
        name = debian.dependency(name, KERNEL_PATTERN)
    _say(f"fetching {name}")
    with tempfile.TemporaryDirectory(dir=place, prefix=".fetch-") as scratch:
        package = debian.download(name, Path(scratch))
        found = debian.members(package.path, source.files.values())
    for file, expression in source.files.items():
        data = debian.unpacked(found[expression]) if file.endswith(".ko") else found[expression]
        _store(place, manifest, file, data, package.name, package.version)


def _store(place: Path, manifest: dict[str, guests_cache.Fetched], name: str, data: bytes, package: str,
           version: str) -> None:
    guests_cache.write(place / name, data)
    manifest[name] = guests_cache.describe(data, package, version)


def _make(place: Path, manifest: dict[str, guests_cache.Fetched]) -> bool:
    """Make what is derived from fetched files; whether anything changed."""
    before = dict(manifest)
    zipped = manifest["vmlinuz"]
    plain = manifest.get("vmlinux")
    if plain is None or plain.version != zipped.version or not _intact(place, manifest, "vmlinux"):
        _store(place, manifest, "vmlinux", _plain_kernel(place / "vmlinuz"), zipped.package, zipped.version)
    # Cheap enough to make each time, so a changed init is never missed.
    busybox = manifest["busybox"]
    archives = initramfs.build_all((place / "busybox").read_bytes())
    modules = {name: (place / f"{name}.ko").read_bytes() for name in initramfs.MODULES}
    archives[initramfs.DISK] = initramfs.build_disk((place / "busybox").read_bytes(), modules)
    tools = {name: (place / name).read_bytes() for name in initramfs.STORE_FILES}
    archives[initramfs.STORE] = initramfs.build_store((place / "busybox").read_bytes(), tools)
    for name, data in archives.items():
        entry = guests_cache.describe(data, busybox.package, busybox.version)
        if manifest.get(name) != entry or not guests_cache.intact(place / name, entry):
            _store(place, manifest, name, data, busybox.package, busybox.version)
    return manifest != before


def _plain_kernel(packed: Path) -> bytes:
    try:
        data = kernel_of(packed.read_bytes())
    except BadImageError as error:
        raise debian.PackageError(f"{packed.name} of the package: {error}") from error
    if not data.startswith(ELF_MAGIC):
        raise debian.PackageError(f"{packed.name} of the package holds no ELF file")
    return data


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main(arguments: list[str]) -> int:
    """The command: exit status 0 done, 1 with one sentence on stderr, 130 interrupted."""
    parser = argparse.ArgumentParser("fetch-guests", description="Fetch real guests into the cache folder.")
    parser.add_argument("--force", action="store_true", help="fetch again what is there")
    options = parser.parse_args(arguments)
    place = guests_cache.folder()
    try:
        manifest = fetch(place, force=options.force)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        _say(f"real guests cannot be stored in {place}: {reason}")
        return 1
    except (debian.PackageError, ValueError) as error:
        _say(f"real guests cannot be fetched: {error}")
        return 1
    sources = sorted({f"{entry.package} {entry.version}" for entry in manifest.values()})
    _say(f"real guests in {place}: {', '.join(sources)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
