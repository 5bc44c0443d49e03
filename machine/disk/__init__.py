"""Emulated disks: what they hold (media), how long they take (models), and the queue between."""

from .disk import Disk, DiskCounters
from .drives import CHEETAH_9LP, Drive, Zone
from .medium import Medium, MediumError
from .model import Head, Model
from .raw import RawFile
from .request import SECTOR, DiskRequest, Operation
from .spinning import Spinning

__all__ = [
    "CHEETAH_9LP",
    "SECTOR",
    "Disk",
    "DiskCounters",
    "DiskRequest",
    "Drive",
    "Head",
    "Medium",
    "MediumError",
    "Model",
    "Operation",
    "RawFile",
    "Spinning",
    "Zone",
]
