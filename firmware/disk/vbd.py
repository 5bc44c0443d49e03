"""A virtual disk: what a domain sees as one, before any frontend uses it."""

from __future__ import annotations

from firmware.abi.io_blkif import VDISK_CDROM, VDISK_READONLY
from firmware.disk import vdev
from firmware.disk.extents import Extent, ExtentMap
from machine.disk import Disk


class VirtualDisk:
    """Extents of an emulated disk under a device number. ValueError, in one sentence, when it cannot be.

    Without `extents` it is the whole disk. `discard` False withholds discard from the guest, `persistent`
    False persistent grants. `shared`: that another virtual disk uses the same sectors is wanted.
    """

    __slots__ = (
        "cdrom", "discard", "disk", "extents", "name", "number", "persistent", "read_only", "sectors",
        "shared",
    )

    def __init__(
        self,
        name: str,
        disk: Disk,
        *,
        read_only: bool = False,
        extents: tuple[Extent, ...] | None = None,
        cdrom: bool = False,
        discard: bool = True,
        persistent: bool = True,
        shared: bool = False,
    ) -> None:
        self.number = vdev.number(name)
        self.name = vdev.name(self.number)
        self.disk = disk
        self.read_only = read_only or cdrom or disk.read_only
        self.extents = ExtentMap((Extent(0, disk.sectors),) if extents is None else extents, disk.sectors)
        self.sectors = self.extents.sectors
        self.cdrom = cdrom
        self.discard = discard and not self.read_only
        self.persistent = persistent
        self.shared = shared

    @property
    def info(self) -> int:
        """The bits of the `info` node (VDISK_*)."""
        return (VDISK_CDROM if self.cdrom else 0) | (VDISK_READONLY if self.read_only else 0)

    @property
    def device_type(self) -> str:
        """What the frontend's directory calls it."""
        return "cdrom" if self.cdrom else "disk"

    def clashes(self, other: VirtualDisk) -> bool:
        """Whether both use the same sectors of one disk and one of them may write there."""
        return (
            self.disk is other.disk
            and not (self.read_only and other.read_only)
            and self.extents.overlaps(other.extents)
        )
