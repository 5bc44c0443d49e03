"""RawFile: sector n of the disk is bytes n * 512 on of a file, or of a block device."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from .hostfile import HostFile
from .medium import Medium, MediumError, Views
from .request import SECTOR

MOST_SECTORS = 1 << 44
"""8 PiB: what offsets of the host's files hold, with room to spare."""


class RawFile(Medium):
    """A raw image. Holes of the file read as zeros; discarded sectors become holes."""

    __slots__ = ("_file", "_keeps")

    def __init__(self, file: HostFile, read_only: bool, keeps: bool = True) -> None:
        self._file = file
        self._keeps = keeps
        self.read_only = read_only
        self.sectors = file.size // SECTOR

    @classmethod
    def open(cls, path: str | Path, read_only: bool = False) -> RawFile:
        """An existing image. A writer has it alone; MediumError otherwise and for what is no image."""
        file = HostFile.open(path, not read_only)
        if file.size < SECTOR or file.size % SECTOR:
            file.close()
            raise MediumError(f"The disk image {path} has {file.size} bytes, which is not one or more whole"
                              f" sectors of {SECTOR}.")
        return cls(file, read_only)

    @classmethod
    def create(cls, path: str | Path, sectors: int) -> RawFile:
        """A new sparse image of zeros: it takes space as it is written. MediumError when the path exists."""
        return cls(HostFile.create(path, checked_size(sectors)), False)

    @classmethod
    def temporary(cls, sectors: int, folder: str | Path | None = None) -> RawFile:
        """A sparse image of zeros that has no name and is gone with the process. It need not survive."""
        return cls(HostFile.temporary(checked_size(sectors), folder), False, keeps=False)

    def read_into(self, sector: int, views: Views) -> None:
        self._file.read_into(sector * SECTOR, views)

    def write_from(self, sector: int, views: Views) -> None:
        self._file.write_from(sector * SECTOR, views)

    def image(self, sector: int, sectors: int) -> Hashable | None:
        return ("raw", *self._file.identity) if self.read_only else None

    def flush(self) -> None:
        if self._keeps and not self.read_only:
            self._file.flush()

    def discard(self, sector: int, sectors: int) -> None:
        self._file.punch(sector * SECTOR, sectors * SECTOR)

    def close(self) -> None:
        if self._file.descriptor < 0:
            return
        try:
            self.flush()
        except OSError as error:
            raise MediumError(f"The disk image {self._file.path} lost data: {error.strerror}.") from error
        finally:
            self._file.close()


def checked_size(sectors: int) -> int:
    """Bytes of a new medium. MediumError when it cannot be."""
    if not 1 <= sectors <= MOST_SECTORS:
        raise MediumError(f"A disk has 1 to {MOST_SECTORS} sectors of {SECTOR} bytes, not {sectors}.")
    return sectors * SECTOR
