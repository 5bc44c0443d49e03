"""Qcow2: a qcow2 image, read-only, beneath an overlay. qemu-nbd reads it.

Only images that stand alone: one that names another file (a backing file, an external data file) is refused,
for no path is ever taken from an image. The header is looked at here first; field names are those of QEMU's
docs/interop/qcow2.txt.
"""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Final

from .hostfile import HostFile
from .medium import Medium, MediumError, Views
from .nbd import NbdClient
from .raw import MOST_SECTORS
from .request import SECTOR

TOOL: Final = "qemu-nbd"
_MAGIC: Final = b"QFI\xfb"
_HEADER: Final = struct.Struct(">4sIQIIQI")
"""magic, version, backing_file_offset, backing_file_size, cluster_bits, size, crypt_method."""
_FEATURES: Final = struct.Struct(">Q")
_FEATURES_AT: Final = 72
"""incompatible_features, from version 3 on."""
_CORRUPT: Final = 1 << 1
_EXTERNAL_DATA: Final = 1 << 2
_PATIENCE: Final = 60
"""Seconds of the host."""


class Qcow2(Medium):
    """The server ends with the connection, however this process ends."""

    __slots__ = ("_client", "_file")

    def __init__(self, file: HostFile, client: NbdClient) -> None:
        self._file = file
        self._client = client
        self.sectors = client.size // SECTOR
        self.read_only = True

    @classmethod
    def open(cls, path: str | Path) -> Qcow2:
        """MediumError for what is no image, names another file, or when the tool is missing or refuses it."""
        file = HostFile.open(path, False)
        try:
            size = _virtual_size(file)
            medium = cls(file, _serve(file.path, size))
        except OSError as error:
            file.close()
            raise MediumError(f"The qcow2 image {path} cannot be read: {error}.") from error
        except MediumError:
            file.close()
            raise
        return medium

    def read_into(self, sector: int, views: Views) -> None:
        self._client.read_into(sector * SECTOR, views)

    def image(self, sector: int, sectors: int) -> Hashable | None:
        return ("qcow2", *self._file.identity)

    def write_from(self, sector: int, views: Views) -> None:
        raise ValueError("a qcow2 image is never written")

    def discard(self, sector: int, sectors: int) -> None:
        raise ValueError("a qcow2 image is never written")

    def flush(self) -> None:
        """There is nothing to keep."""

    def close(self) -> None:
        if self._file.descriptor >= 0:
            self._client.close()
            self._file.close()


def _virtual_size(file: HostFile) -> int:
    """Bytes of the disk, by the header. MediumError unless the image stands alone."""
    image = f"The image {file.path}"
    header = bytearray(_FEATURES_AT + _FEATURES.size)
    if file.size < len(header):
        raise MediumError(f"{image} is too short for a qcow2 image.")
    file.read_into(0, [memoryview(header)])
    magic, version, backing, _, _, size, crypt = _HEADER.unpack_from(header)
    if magic != _MAGIC or version not in (2, 3):
        raise MediumError(f"{image} is no qcow2 image of version 2 or 3.")
    features = _FEATURES.unpack_from(header, _FEATURES_AT)[0] if version > 2 else 0
    if backing:
        raise MediumError(f"{image} has a backing file: make one that stands alone (qemu-img convert).")
    if features & _EXTERNAL_DATA:
        raise MediumError(f"{image} has its data in another file: make one that stands alone.")
    if features & _CORRUPT:
        raise MediumError(f"{image} is marked as corrupt: look at it with qemu-img check.")
    if crypt:
        raise MediumError(f"{image} is encrypted.")
    if not SECTOR <= size <= MOST_SECTORS * SECTOR or size % SECTOR:
        raise MediumError(f"{image} has a disk of {size} bytes, which is not one or more whole sectors.")
    return int(size)


def _serve(path: str, size: int) -> NbdClient:
    tool = shutil.which(TOOL)
    if tool is None:
        raise MediumError(f"Reading qcow2 images needs {TOOL} (Debian: qemu-utils).")
    file = str(Path(path).absolute()).replace(",", ",,")
    with tempfile.TemporaryDirectory(prefix="xenpy-") as folder, tempfile.TemporaryFile() as said:
        address = f"{folder}/nbd"
        try:
            # With --fork the tool returns when its server listens; that ends when its only client leaves.
            done = subprocess.run(
                [tool, "--fork", "--read-only", f"--socket={address}", "--image-opts",
                 f"driver=qcow2,read-only=on,file.driver=file,file.read-only=on,file.filename={file}"],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=_PATIENCE, check=False)
        except subprocess.TimeoutExpired as error:
            raise MediumError(f"{TOOL} did not answer in {_PATIENCE} seconds.") from error
        if done.returncode:
            said.seek(0)
            why = said.read(400).decode(errors="replace").strip().splitlines()
            raise MediumError(f"{TOOL} cannot read {path}: {why[-1] if why else 'no reason given'}")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_PATIENCE)
            connection.connect(address)
            client = NbdClient(connection)
        except OSError:
            connection.close()
            raise
    if client.size != size:
        client.close()
        raise MediumError(f"{TOOL} sees {client.size} bytes in {path}, whose header has {size}.")
    return client
