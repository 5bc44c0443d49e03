"""Overlay: the sectors that differ from a base, in a sparse file of their own.

The file, all numbers little-endian: a header of 4 KiB (see _HEADER: magic, version, sectors of the base, its
fingerprint, CRC-32 of what is before), from 4 KiB on a bitmap with one bit a sector, lowest bit first, in
whole pages of 4 KiB; then, at the next multiple of 4 KiB, sector n of the disk at n * 512. A set bit says
that the sector is here, be it zeros; the base has the others. No path is in it: whoever opens it names the
base.

A sector's bit reaches the file after its data is safe there: a flush waits for the data, writes the pages of
the bitmap that have changed, and waits for them. Any of those pages may be lost on the way, in part as well:
a bit that is missing shows the base, which is what was there before.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Hashable
from pathlib import Path
from typing import Final

from .bitmap import PAGE, Bitmap
from .hostfile import HostFile
from .medium import Medium, MediumError, Views
from .request import SECTOR
from .views import cut

_MAGIC: Final = b"xenpy overlay\n\0\0"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<16sIIQ32s")
"""Magic, version, bytes of a sector, sectors, fingerprint of the base."""
_CRC: Final = struct.Struct("<I")
_BITMAP: Final = 4096
_SAMPLES: Final = 64
_SAMPLE_SECTORS: Final = 8


class Overlay(Medium):
    """`base` is never written; closing the overlay closes it."""

    __slots__ = ("_base", "_bitmap", "_data", "_file", "_keeps")

    def __init__(self, base: Medium, file: HostFile, keeps: bool) -> None:
        if not base.read_only:
            raise ValueError("the base of an overlay is opened read-only")
        self._base = base
        self._file = file
        self._keeps = keeps
        self._bitmap = Bitmap(base.sectors)
        self._data = _BITMAP + self._bitmap.bytes.nbytes
        self.sectors = base.sectors
        self.read_only = False

    @classmethod
    def create(cls, path: str | Path, base: Medium) -> Overlay:
        """A new, empty one. MediumError when the path exists."""
        file = HostFile.create(path, _length(base.sectors))
        overlay = cls(base, file, True)
        try:
            header = _header(base)
            file.write_from(0, [memoryview(header + _CRC.pack(zlib.crc32(header)))])
            file.flush()
        except OSError as error:
            file.close()
            Path(path).unlink(missing_ok=True)
            raise MediumError(f"The overlay {path} cannot be written: {error.strerror}.") from error
        return overlay

    @classmethod
    def open(cls, path: str | Path, base: Medium) -> Overlay:
        """One that was made for this base; MediumError otherwise."""
        file = HostFile.open(path, True)
        try:
            _check(file, base)
            overlay = cls(base, file, True)
            file.read_into(_BITMAP, [overlay._bitmap.bytes])
        except OSError as error:
            file.close()
            raise MediumError(f"The overlay {path} cannot be read: {error.strerror}.") from error
        except MediumError:
            file.close()
            raise
        return overlay

    @classmethod
    def temporary(cls, base: Medium, folder: str | Path | None = None) -> Overlay:
        """One that is gone with the process. It need not survive."""
        return cls(base, HostFile.temporary(_length(base.sectors), folder), False)

    def read_into(self, sector: int, views: Views) -> None:
        count = sum(view.nbytes for view in views) // SECTOR
        for here, first, length in self._bitmap.runs(sector, count):
            part = views if length == count else cut(views, (first - sector) * SECTOR, length * SECTOR)
            if here:
                self._file.read_into(self._data + first * SECTOR, part)
            else:
                self._base.read_into(first, part)

    def image(self, sector: int, sectors: int) -> Hashable | None:
        return None if self._bitmap.any(sector, sectors) else self._base.image(sector, sectors)

    def write_from(self, sector: int, views: Views) -> None:
        self._file.write_from(self._data + sector * SECTOR, views)
        self._bitmap.set(sector, sum(view.nbytes for view in views) // SECTOR)

    def discard(self, sector: int, sectors: int) -> None:
        self._file.punch(self._data + sector * SECTOR, sectors * SECTOR)
        self._bitmap.set(sector, sectors)

    def flush(self) -> None:
        if not self._keeps:
            return
        self._file.flush()
        if self._bitmap.dirty:
            for offset, page in self._bitmap.pages():
                self._file.write_from(_BITMAP + offset, [page])
            self._file.flush()
            self._bitmap.clean()

    def close(self) -> None:
        if self._file.descriptor < 0:
            return
        try:
            self.flush()
        except OSError as error:
            raise MediumError(f"The overlay {self._file.path} lost data: {error.strerror}.") from error
        finally:
            self._file.close()
            self._base.close()


def fingerprint(base: Medium) -> bytes:
    """Tells one base from another: SHA-256 over its size and some of its sectors, evenly spread."""
    digest = hashlib.sha256(struct.pack("<Q", base.sectors))
    count = min(_SAMPLE_SECTORS, base.sectors)
    for index in range(_SAMPLES):
        digest.update(base.read((base.sectors - count) * index // (_SAMPLES - 1), count))
    return digest.digest()


def _header(base: Medium) -> bytes:
    return _HEADER.pack(_MAGIC, _VERSION, SECTOR, base.sectors, fingerprint(base))


def _length(sectors: int) -> int:
    return _BITMAP + -(-sectors // (8 * PAGE)) * PAGE + sectors * SECTOR


def _check(file: HostFile, base: Medium) -> None:
    """MediumError unless the file is an overlay of the base."""
    found = bytearray(_HEADER.size + _CRC.size)
    if file.size >= len(found):
        file.read_into(0, [memoryview(found)])
    header = bytes(found[: _HEADER.size])
    magic, version, _, _, _ = _HEADER.unpack(header)
    if magic != _MAGIC or _CRC.unpack_from(found, _HEADER.size)[0] != zlib.crc32(header):
        raise MediumError(f"{file.path} is no overlay, or was never finished.")
    if version != _VERSION:
        raise MediumError(f"The overlay {file.path} has version {version}; this reads version {_VERSION}.")
    if header != _header(base):
        raise MediumError(f"The overlay {file.path} was made for another base, or the base has changed.")
    if file.size != _length(base.sectors):
        raise MediumError(f"The overlay {file.path} has been cut off or lengthened.")
