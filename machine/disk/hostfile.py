"""HostFile: a file of the host, opened and locked for a medium, with transfers that are never short."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, Final

from .medium import MediumError, Views

_MOST_VIEWS: Final = 1024
"""IOV_MAX, <limits.h>."""
_PUNCH: Final = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, <linux/falloc.h>."""
_NO_HOLES: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})
_ZEROS: Final = bytes(1 << 20)
_BUSY: Final = frozenset({errno.EWOULDBLOCK, errno.EACCES})
_FALLOCATE: Final[Any] = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)


class HostFile:
    """An open file. Writers have it to themselves, readers share it; the locks go with the process.

    Errors of opening are MediumError, errors of transfers OSError.
    """

    __slots__ = ("_holes", "_identity", "_lost", "descriptor", "path", "size")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.size = os.lseek(descriptor, 0, os.SEEK_END)
        self._holes = _FALLOCATE is not None
        self._lost = False
        found = os.fstat(descriptor)
        self._identity = (
            found.st_dev, found.st_ino, found.st_rdev, self.size, found.st_mtime_ns, found.st_ctime_ns)

    @classmethod
    def open(cls, path: str | Path, write: bool) -> HostFile:
        """An existing regular file or block device."""
        try:
            kind = Path(path).stat().st_mode
            # Looked at before it is opened: opening a FIFO would wait for its other end.
            if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
                what = "a directory" if stat.S_ISDIR(kind) else "neither a file nor a block device"
                raise MediumError(f"The disk image {path} is {what}.")
            descriptor = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            raise MediumError(f"The disk image {path} cannot be opened: {_reason(error)}.") from error
        except ValueError as error:
            raise MediumError(f"The disk image {str(path)!r} cannot be opened: {error}.") from error
        return cls._locked(str(path), descriptor, write)

    @classmethod
    def create(cls, path: str | Path, size: int) -> HostFile:
        """A new file, all of it a hole. An existing one is never touched."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise MediumError(f"The disk image {path} cannot be created: {_reason(error)}.") from error
        file = cls._locked(str(path), descriptor, True)
        try:
            file.resize(size)
            file.flush()
            _flush_folder(Path(path).absolute().parent)
        except OSError as error:
            os.close(descriptor)
            Path(path).unlink(missing_ok=True)
            raise MediumError(f"The disk image {path} cannot be created: {_reason(error)}.") from error
        return file

    @classmethod
    def temporary(cls, size: int, folder: str | Path | None = None) -> HostFile:
        """A file without a name: gone with the process."""
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                descriptor = os.dup(file.fileno())
            temporary = cls("a temporary file", descriptor)
            temporary.resize(size)
        except OSError as error:
            raise MediumError(f"No temporary file of {size} bytes can be made: {_reason(error)}.") from error
        return temporary

    @classmethod
    def _locked(cls, path: str, descriptor: int, write: bool) -> HostFile:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return cls(path, descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _BUSY:
                raise MediumError(f"The disk image {path} cannot be locked: {_reason(error)}.") from error
            how = "in use" if write else "open for writing elsewhere"
            raise MediumError(f"The disk image {path} is {how}: a writer needs it alone.") from error

    @property
    def identity(self) -> tuple[int, ...]:
        """What tells this file, as it was when it was opened, from any other: device, inode, device behind a
        device file, size, times of its last changes.
        """
        return self._identity

    def resize(self, size: int) -> None:
        """Cut off, or lengthen by a hole."""
        os.ftruncate(self.descriptor, size)
        self.size = size

    def read_into(self, offset: int, views: Views) -> None:
        """Fill the views. EIO where the file has become shorter than it was."""
        self._move(os.preadv, offset, views)

    def write_from(self, offset: int, views: Views) -> None:
        """Write the views."""
        self._move(os.pwritev, offset, views)

    def _move(self, call: Any, offset: int, views: Views) -> None:
        descriptor = self.descriptor
        for first in range(0, len(views), _MOST_VIEWS):
            part: Views = views if len(views) <= _MOST_VIEWS else views[first : first + _MOST_VIEWS]
            want = 0
            for view in part:
                want += view.nbytes
            while want:
                moved = call(descriptor, part, offset)
                if not moved:
                    raise OSError(errno.EIO, f"{self.path} ends at {offset}")
                offset += moved
                want -= moved
                if want:
                    part = _after(part, moved)

    def flush(self) -> None:
        """The data is on the host's disk. Once the host could not do that, it is never believed again: it
        forgets what it failed to write, and the next call would succeed.
        """
        if self._lost:
            raise OSError(errno.EIO, f"{self.path} has lost data")
        try:
            os.fdatasync(self.descriptor)
        except OSError:
            self._lost = True
            raise

    def punch(self, offset: int, length: int) -> None:
        """Zeros without space of their own; zeros that take space where the file system knows no holes."""
        if length <= 0:
            return
        if self._holes:
            if not _FALLOCATE(self.descriptor, _PUNCH, ctypes.c_int64(offset), ctypes.c_int64(length)):
                return
            number = ctypes.get_errno()
            if number not in _NO_HOLES:
                raise OSError(number, os.strerror(number), self.path)
            self._holes = False
        while length:
            part = min(length, len(_ZEROS))
            self.write_from(offset, [memoryview(_ZEROS)[:part]])
            offset += part
            length -= part

    def close(self) -> None:
        """Harmless when done before."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _after(views: Views, done: int) -> list[memoryview]:
    rest = []
    for view in views:
        if done < view.nbytes:
            rest.append(view[done:] if done else view)
        done = max(0, done - view.nbytes)
    return rest


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
