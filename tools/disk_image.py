"""An ext4 image with busybox in it for a guest to boot from: `python -m tools.disk_image IMAGE [--size MIB]`.

It is made by mke2fs(8) of e2fsprogs from a folder, without root rights and without mounting anything.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tools import guests_cache, initramfs

FOLDERS: Final = ("bin", "dev", "etc", "mnt", "proc", "root", "sbin", "sys", "tmp")
SYSTEM_PATH: Final = "/usr/sbin:/sbin"
"""Where e2fsprogs is when the user's PATH does not say."""


class ImageError(Exception):
    """An image that cannot be made, in one sentence."""


def program(name: str) -> str | None:
    """The path of one of e2fsprogs' programs, None when it is not installed."""
    return shutil.which(name) or shutil.which(name, path=SYSTEM_PATH)


def build(image: Path, size_mib: int, files: Mapping[str, bytes] | None = None) -> None:
    """Make `image`, `size_mib` MiB large: busybox, its init, and `files` by their paths. ImageError."""
    mke2fs = program("mke2fs")
    if mke2fs is None:
        raise ImageError("there is no mke2fs here: install e2fsprogs")
    busybox = guests_cache.guest_path("busybox")
    if busybox is None:
        raise ImageError("busybox has not been fetched: run `make fetch`")
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        _fill(tree, busybox.read_bytes(), files or {})
        image.unlink(missing_ok=True)
        command = [
            mke2fs, "-q", "-F", "-t", "ext4", "-d", str(tree), "-E", "root_owner=0:0", str(image),
            f"{size_mib}M",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"mke2fs: {(done.stderr.strip() or str(done.returncode)).splitlines()[-1]}")


def _fill(tree: Path, busybox: bytes, files: Mapping[str, bytes]) -> None:
    for folder in FOLDERS:
        (tree / folder).mkdir(parents=True)
    _put(tree / "bin/busybox", busybox, 0o755)
    for name in initramfs.applets(busybox):
        if name != "busybox":
            (tree / "bin" / name).symlink_to("busybox")
    _put(tree / "sbin/init", (initramfs.WORKLOAD / "root-init").read_bytes(), 0o755)
    for name, data in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _put(path, data, 0o644)


def _put(path: Path, data: bytes, permissions: int) -> None:
    path.write_bytes(data)
    path.chmod(permissions)


def main(arguments: list[str]) -> int:
    """The command: exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser("disk-image", description="Make an ext4 image for a guest to boot from.")
    parser.add_argument("image", type=Path)
    parser.add_argument("--size", type=int, default=64, metavar="MIB", help="its size in MiB (default 64)")
    options = parser.parse_args(arguments)
    try:
        build(options.image, options.size)
    except (ImageError, OSError, ValueError) as error:
        sys.stderr.write(f"the image cannot be made: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
