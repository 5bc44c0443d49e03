"""MachineMemory: physical memory, one lazily reserved host mapping, and its only host-side writer."""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

FRAME_SHIFT = 12
FRAME_SIZE = 1 << FRAME_SHIFT
MAX_SIZE = 64 << 30  # bytes
_LINUX = platform.system() == "Linux"
_MAP_NORESERVE = 0x4000  # <asm-generic/mman.h>


def reserve(size: int) -> mmap.mmap:
    """Zeroed host memory that costs nothing until it is touched."""
    if _LINUX:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    return mmap.mmap(-1, size)


class MachineMemory:
    """`size` bytes: whole frames, at most MAX_SIZE. The views are read-only.

    Whoever writes goes through the methods below, which drop translated code of the frames they touch.
    Offsets are checked by the views: IndexError beyond the end.
    """

    __slots__ = (
        "_b",
        "_code",
        "_code_map",
        "_d",
        "_invalidate",
        "_map",
        "_q",
        "address",
        "b",
        "code_address",
        "d",
        "frames",
        "q",
        "size",
        "words",
    )

    def __init__(self, size: int) -> None:
        if size <= 0 or size % FRAME_SIZE or size > MAX_SIZE:
            raise ValueError(f"memory must be whole frames of {FRAME_SIZE} bytes, at most {MAX_SIZE}: {size}")
        self.size = size
        self.frames = size >> FRAME_SHIFT
        self._map = reserve(size)
        self._code_map = reserve(-(-self.frames // mmap.PAGESIZE) * mmap.PAGESIZE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.code_address = ctypes.addressof(ctypes.c_char.from_buffer(self._code_map))
        self._b = memoryview(self._map)
        self._q, self._d = self._b.cast("Q"), self._b.cast("I")
        self._code = memoryview(self._code_map)[: self.frames]
        self.b, self.q, self.d = self._b.toreadonly(), self._q.toreadonly(), self._d.toreadonly()
        self.words: npt.NDArray[np.uint64] = np.frombuffer(self._map, dtype=np.uint64)
        self.words.flags.writeable = False
        self._invalidate: Callable[[int, int], None] = _nothing_translated

    def connect(self, invalidate: Callable[[int, int], None], every_write: bool) -> None:
        """Who drops translations of [begin, end). `every_write`: no map of frames with code is kept."""
        self._invalidate = invalidate
        if every_write:
            for at in range(0, self.frames, FRAME_SIZE):
                self._code[at : at + FRAME_SIZE] = b"\1" * min(FRAME_SIZE, self.frames - at)

    def disconnect(self) -> None:
        """The engine is gone."""
        self._invalidate = _nothing_translated

    def holds_code(self, mfn: int) -> bool:
        """Whether translated code of this frame may exist."""
        return self._code[mfn] != 0

    def store64(self, paddr: int, value: int) -> None:
        """Store a 64-bit word; `paddr` is taken as aligned."""
        self._q[paddr >> 3] = value
        if self._code[paddr >> 12]:
            self._invalidate(paddr, paddr + 8)

    def store32(self, paddr: int, value: int) -> None:
        """Store a 32-bit word; `paddr` is taken as aligned."""
        self._d[paddr >> 2] = value
        if self._code[paddr >> 12]:
            self._invalidate(paddr, paddr + 4)

    def store8(self, paddr: int, value: int) -> None:
        """Store a byte."""
        self._b[paddr] = value
        if self._code[paddr >> 12]:
            self._invalidate(paddr, paddr + 1)

    def write(self, paddr: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes; IndexError unless all of them lie in memory."""
        end = paddr + len(data)
        if paddr < 0 or end > self.size:
            raise IndexError(f"write of {len(data)} bytes at {paddr:#x}")
        self._b[paddr:end] = data
        self._written(paddr, end)

    def fill(self, paddr: int, length: int, byte: int = 0) -> None:
        """Set `length` bytes to one value."""
        end = paddr + length
        if paddr < 0 or length < 0 or end > self.size:
            raise IndexError(f"fill of {length} bytes at {paddr:#x}")
        if length:
            ctypes.memset(self.address + paddr, byte & 0xFF, length)
            self._written(paddr, end)

    def copy_frame(self, dst_mfn: int, src_mfn: int) -> None:
        """Copy one 4 KiB frame."""
        if not (0 <= dst_mfn < self.frames and 0 <= src_mfn < self.frames):
            raise IndexError(f"copy of frame {src_mfn:#x} to {dst_mfn:#x}")
        base = self.address
        ctypes.memmove(base + (dst_mfn << FRAME_SHIFT), base + (src_mfn << FRAME_SHIFT), FRAME_SIZE)
        if self._code[dst_mfn]:
            self._invalidate(dst_mfn << FRAME_SHIFT, dst_mfn + 1 << FRAME_SHIFT)

    def views(self, pieces: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Read-only views of (address, length) pieces, in order; neighbours become one. IndexError beyond."""
        return self._slices(self.b, pieces)

    def receive(
        self, pieces: Sequence[tuple[int, int]], fill: Callable[[list[memoryview]], None],
    ) -> None:
        """Have `fill` write straight into these (address, length) pieces; it keeps no view. Data that comes
        from a host's file is copied once that way. IndexError, before anything is written, beyond the end.
        """
        views = self._slices(self._b, pieces)
        try:
            fill(views)
        finally:
            for paddr, length in pieces:
                self._written(paddr, paddr + length)

    def _slices(self, memory: memoryview, pieces: Sequence[tuple[int, int]]) -> list[memoryview]:
        slices = []
        begin = end = 0
        for paddr, length in pieces:
            if paddr < 0 or length < 0 or paddr + length > self.size:
                raise IndexError(f"{length} bytes at {paddr:#x}")
            if paddr == end:
                end += length
                continue
            if end > begin:
                slices.append(memory[begin:end])
            begin, end = paddr, paddr + length
        if end > begin:
            slices.append(memory[begin:end])
        return slices

    def read(self, paddr: int, length: int) -> bytes:
        """A copy of `length` bytes; IndexError unless all of them lie in memory."""
        if paddr < 0 or length < 0 or paddr + length > self.size:
            raise IndexError(f"read of {length} bytes at {paddr:#x}")
        return bytes(self._b[paddr : paddr + length])

    def _written(self, begin: int, end: int) -> None:
        first, last = begin >> FRAME_SHIFT, (end - 1 >> FRAME_SHIFT) + 1
        if end > begin and 1 in self._code[first:last]:
            self._invalidate(begin, end)


def _nothing_translated(_begin: int, _end: int) -> None:
    """Before a machine is built around the memory, and after it is closed."""
