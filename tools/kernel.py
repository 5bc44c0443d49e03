"""The uncompressed ELF inside a bzImage.

Source: Linux, Documentation/arch/x86/boot.rst (protocol 2.08 and later: payload_offset, payload_length).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Final

SETUP_SECTORS: Final = 0x1F1
BOOT_FLAG: Final = 0x1FE
HEADER: Final = 0x202
PROTOCOL: Final = 0x206
PAYLOAD: Final = 0x248
"""Two 32-bit words: offset from the protected-mode code, length."""
SECTOR: Final = 512
FIRST_WITH_PAYLOAD: Final = 0x208
ELF_MAGIC: Final = b"\x7fELF"


class ImageError(Exception):
    """The file is no kernel we can unpack; the text is one sentence."""


def _gzip(data: bytes) -> bytes:
    return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data)


def _xz(data: bytes) -> bytes:
    import lzma
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data)


def _zstd(data: bytes) -> bytes:
    import zstandard
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


UNPACKERS: Final[tuple[tuple[bytes, Callable[[bytes], bytes]], ...]] = (
    (b"\x1f\x8b", _gzip),
    (b"\xfd7zXZ\0", _xz),
    (b"\x28\xb5\x2f\xfd", _zstd),
)
"""First bytes of a payload and what unpacks it (the formats Debian has used)."""


def unpack(image: bytes) -> bytes:
    """The ELF file inside `image`."""
    if len(image) < PAYLOAD + 8 or image[BOOT_FLAG : BOOT_FLAG + 2] != b"\x55\xaa" or \
            image[HEADER : HEADER + 4] != b"HdrS":
        raise ImageError("vmlinuz is not a bzImage")
    (protocol,) = struct.unpack_from("<H", image, PROTOCOL)
    if protocol < FIRST_WITH_PAYLOAD:
        raise ImageError(f"vmlinuz has boot protocol {protocol:#x}, which does not say where its payload is")
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    start = ((image[SETUP_SECTORS] or 4) + 1) * SECTOR + offset
    payload = image[start : start + length]
    if len(payload) < length or not length:
        raise ImageError("vmlinuz is cut short")
    for magic, unpacker in UNPACKERS:
        if payload.startswith(magic):
            try:
                plain = unpacker(payload)
            except Exception as error:
                raise ImageError(f"vmlinuz holds a damaged kernel: {error}") from error
            if not plain.startswith(ELF_MAGIC):
                raise ImageError("what vmlinuz holds is not an ELF file")
            return plain
    raise ImageError(f"vmlinuz is packed in an unknown way (first bytes {payload[:4].hex()})")
