"""The kernel inside a compressed file: a bzImage, or a gzip-compressed ELF file.

Source: Linux, Documentation/arch/x86/boot.rst (protocol 2.08: payload_offset, payload_length). The formats
are those Linux can be packed with; heavy libraries are imported when one is met. Raises BadImageError.
"""
from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Final

from firmware.domain.errors import BadImageError

LARGEST: Final = 512 << 20
"""Bytes an unpacked kernel may have; a stream that yields more is not a kernel."""

SECTOR: Final = 512
SETUP_SECTORS: Final = 0x1F1
BOOT_FLAG: Final = 0x1FE
HEADER_MAGIC: Final = 0x202
PROTOCOL: Final = 0x206
PAYLOAD: Final = 0x248
FIRST_WITH_PAYLOAD: Final = 0x208
"""The setup header of a bzImage: offsets, and the first protocol that says where the payload is."""

GZIP: Final = b"\x1f\x8b"
XZ_MEMORY: Final = 512 << 20
"""Bytes a dictionary may take."""
ZSTD_STEP: Final = 4096
"""Bytes fed at once: they yield at most 128 MiB."""
ZSTD_WINDOW: Final = 128 << 20
"""The window Linux packs with (zstd -22 --ultra)."""
LZ4_BLOCK: Final = 8 << 20
"""Bytes of one unpacked block of LZ4's legacy frame, but for the last."""
LZ4_LEAST: Final = 5
"""Fewer bytes than a size word and one byte of block: the length Linux appends to a payload."""


class _TooLargeError(Exception):
    """The stream yields more than LARGEST bytes."""


def kernel_of(data: bytes) -> bytes:
    """The ELF file that `data` is or contains."""
    if data.startswith(GZIP):
        data = _unpacked("it", data)
    if is_bzimage(data):
        data = _unpacked("its payload", _payload(data))
    return data


def is_bzimage(data: bytes) -> bool:
    """It starts with the setup header of a Linux boot image."""
    return data[BOOT_FLAG : BOOT_FLAG + 2] == b"\x55\xaa" and data[HEADER_MAGIC : HEADER_MAGIC + 4] == b"HdrS"


def _payload(image: bytes) -> bytes:
    if len(image) < PAYLOAD + 8:
        raise BadImageError("it is a bzImage that ends inside its header")
    (protocol,) = struct.unpack_from("<H", image, PROTOCOL)
    if protocol < FIRST_WITH_PAYLOAD:
        raise BadImageError(f"its boot protocol {protocol:#x} is older than {FIRST_WITH_PAYLOAD:#x}")
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    start = ((image[SETUP_SECTORS] or 4) + 1) * SECTOR + offset
    if not length or start + length > len(image):
        raise BadImageError("it is a bzImage whose payload goes beyond the end of the file")
    return image[start : start + length]


def _unpacked(what: str, data: bytes) -> bytes:
    if data.startswith(b"\x7fELF"):
        return data
    packed = next((row for row in _FORMATS if data.startswith(row[0])), None)
    if packed is None:
        raise BadImageError(f"{what} is packed in an unknown format (it starts with {data[:6].hex(' ')})")
    _, name, unpack = packed
    try:
        return unpack(data)
    except _TooLargeError:
        raise BadImageError(f"{what} unpacks to more than {LARGEST >> 20} MiB") from None
    except BadImageError:
        raise
    except Exception as error:  # noqa: BLE001 (each library has exceptions of its own)
        raise BadImageError(f"{what} is damaged {name} data ({error})") from None


def _complete(unpacked: bytes, ended: bool) -> bytes:
    if len(unpacked) > LARGEST:
        raise _TooLargeError
    if not ended:
        raise EOFError("it ends too early")
    return unpacked


def _gzip(data: bytes) -> bytes:
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    return _complete(stream.decompress(data, LARGEST + 1), stream.eof)


def _bzip2(data: bytes) -> bytes:
    stream = bz2.BZ2Decompressor()
    return _complete(stream.decompress(data, LARGEST + 1), stream.eof)


def _xz(data: bytes) -> bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
    return _complete(stream.decompress(data, LARGEST + 1), stream.eof)


def _lzma(data: bytes) -> bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=XZ_MEMORY)
    return _complete(stream.decompress(data, LARGEST + 1), stream.eof)


def _zstd(data: bytes) -> bytes:
    import zstandard

    stream = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
    parts, size = [], 0
    for at in range(0, len(data), ZSTD_STEP):
        parts.append(stream.decompress(data[at : at + ZSTD_STEP]))
        size += len(parts[-1])
        if size > LARGEST:
            raise _TooLargeError
        if stream.eof:
            break
    return _complete(b"".join(parts), stream.eof)


def _lz4(data: bytes) -> bytes:
    import lz4.block

    blocks, size, at = [], 0, 4
    while at + LZ4_LEAST <= len(data):
        (length,) = struct.unpack_from("<I", data, at)
        if length > len(data) - at - 4:
            raise EOFError("a block is longer than the data")
        block = lz4.block.decompress(data[at + 4 : at + 4 + length], uncompressed_size=LZ4_BLOCK)
        blocks.append(block)
        size += len(block)
        if size > LARGEST:
            raise _TooLargeError
        at += 4 + length
    return _complete(b"".join(blocks), bool(blocks))


def _lzo(data: bytes) -> bytes:
    raise BadImageError("it is packed with LZO, which is not supported: pack it with zstd, xz or gzip")


_FORMATS: Final[tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...]] = (
    (GZIP, "gzip", _gzip),
    (b"\x1f\x9e", "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x5d\0\0", "lzma", _lzma),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"\x89LZO", "LZO", _lzo),
)
"""First bytes of a packed kernel, the format's name and what unpacks it."""
