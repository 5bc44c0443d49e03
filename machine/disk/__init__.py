"""Emulated disks: what they hold (media), how long they take (models), and the queue between."""

from .disk import Disk, DiskCounters
from .drives import CHEETAH_9LP, Drive, Zone
from .flash import SLC_2008, Flash, FlashPart
from .formats import FORMATS, open_medium
from .medium import Medium, MediumError
from .model import Head, Model
from .overlay import Overlay
from .qcow2 import Qcow2
from .raw import RawFile
from .request import SECTOR, DiskRequest, Operation
from .spinning import Spinning
from .volatile import WriteCache

__all__ = [
    "CHEETAH_9LP",
    "FORMATS",
    "SECTOR",
    "SLC_2008",
    "Disk",
    "DiskCounters",
    "DiskRequest",
    "Drive",
    "Flash",
    "FlashPart",
    "Head",
    "Medium",
    "MediumError",
    "Model",
    "Operation",
    "Overlay",
    "Qcow2",
    "RawFile",
    "Spinning",
    "WriteCache",
    "Zone",
    "open_medium",
]
