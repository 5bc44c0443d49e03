"""The first file systems of the Linux guests: busybox, a link for each command, three devices, an init, and
for guests with a disk the drivers they need to mount it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tools import cpio

WORKLOAD: Final = Path(__file__).parent / "workload"

INITS: Final[dict[str, str]] = {"workload.cpio": "init", "shell.cpio": "shell-init"}
"""Archive -> the file in tools/workload that becomes its /init."""

DISK: Final = "disk.cpio"
"""The archive of guests whose root file system is on a disk; its /init is tools/workload/disk-init."""

SHARED_MODULES: Final = ("crc32c_generic", "crc16", "mbcache", "jbd2", "ext4")
XEN_MODULES: Final = ("xen-blkfront",)
VIRTIO_MODULES: Final = (
    "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk",
)
"""For a root on /dev/vd*: QEMU alone, which benchmarks compare with."""
MODULES: Final = (*SHARED_MODULES, *XEN_MODULES, *VIRTIO_MODULES)
"""The drivers in it. Each tuple is in the order in which they are loaded."""

STORE: Final = "store.cpio"
"""The archive with Debian's xenstore-ls and its friends: the shell's, and what STORE_FILES says."""

STORE_FILES: Final[dict[str, str]] = {
    "xenstore": "bin/xenstore",
    "libxenstore.so": "lib/x86_64-linux-gnu/libxenstore.so.4",
    "libxentoolcore.so": "lib/x86_64-linux-gnu/libxentoolcore.so.1",
    "libc.so": "lib/x86_64-linux-gnu/libc.so.6",
    "ld.so": "lib64/ld-linux-x86-64.so.2",
}
"""The program they all are, and the libraries it is linked with: file in the cache -> its place."""

STORE_COMMANDS: Final = ("chmod", "exists", "list", "ls", "read", "rm", "watch", "write")

FIRST_APPLETS: Final = b"\0[\0[[\0"
"""How busybox's own list of its commands begins (applet_tables.h: names in order, each with a NUL)."""

DEVICES: Final[tuple[tuple[str, int, int, int], ...]] = (
    ("dev/console", 5, 1, 0o600),
    ("dev/null", 1, 3, 0o666),
    ("dev/zero", 1, 5, 0o666),
)
"""Name, major and minor number (Linux, Documentation/admin-guide/devices.txt), permissions."""


def applets(busybox: bytes) -> list[str]:
    """The commands a busybox binary has, in its order; raises ValueError when its list is not found."""
    start = busybox.find(FIRST_APPLETS)
    end = busybox.find(b"\0\0", start + 1)
    if start < 0 or end < 0:
        raise ValueError("this busybox holds no list of its commands")
    return busybox[start + 1 : end].decode("ascii").split("\0")


def build(busybox: bytes, init: bytes, more: Iterable[cpio.Entry] = ()) -> bytes:
    """The archive for a busybox binary, an init script, and more files."""
    entries = [cpio.directory(name) for name in ("bin", "dev", "proc", "sys", "tmp")]
    entries.append(cpio.file("init", init, 0o755))
    entries.append(cpio.file("bin/busybox", busybox, 0o755))
    entries += [cpio.symlink(f"bin/{name}", "busybox") for name in applets(busybox) if name != "busybox"]
    entries += [cpio.character_device(*device) for device in DEVICES]
    return cpio.archive([*entries, *more])


def build_all(busybox: bytes) -> dict[str, bytes]:
    """Every archive we make, by file name."""
    return {name: build(busybox, (WORKLOAD / init).read_bytes()) for name, init in INITS.items()}


def build_disk(busybox: bytes, modules: Mapping[str, bytes]) -> bytes:
    """The archive DISK, with the drivers MODULES by name."""
    entries = [cpio.directory("root"), cpio.directory("modules")]
    for name, order in (("order", SHARED_MODULES), ("xen", XEN_MODULES), ("virtio", VIRTIO_MODULES)):
        entries.append(cpio.file(f"modules/{name}", ("\n".join(order) + "\n").encode()))
    entries += [cpio.file(f"modules/{name}.ko", modules[name]) for name in MODULES]
    return build(busybox, (WORKLOAD / "disk-init").read_bytes(), entries)


def build_store(busybox: bytes, files: Mapping[str, bytes]) -> bytes:
    """The archive STORE, with the files STORE_FILES by their names in the cache."""
    entries = [cpio.directory(name) for name in ("lib", "lib/x86_64-linux-gnu", "lib64")]
    entries += [cpio.file(place, files[name], 0o755) for name, place in STORE_FILES.items()]
    entries += [cpio.symlink(f"bin/xenstore-{name}", "xenstore") for name in STORE_COMMANDS]
    return build(busybox, (WORKLOAD / INITS["shell.cpio"]).read_bytes(), entries)
