"""CPU states: one copy of Unicorn's CPUState per logical CPU, all sharing one translation cache."""

from __future__ import annotations

import ctypes

from machine import registers as reg

from .layout import MMU_MODES, CellWord, Layout
from .library import Library, peek, poke, view

_ALIGNMENT = 64


class CpuState:
    """A relocated copy of `template` (the address of an initialised CPUState) with TLBs of its own.

    `q`, `d`: the register file. `low`: the block budget (one 16-bit word); `icount`: all 32 bits.
    `cell`: words of CellWord, which the native stubs find through the opaque pointer. `reached`: see
    `Engine.reach`.
    """

    __slots__ = (
        "_buffer",
        "_cell",
        "_layout",
        "_library",
        "address",
        "cell",
        "d",
        "env",
        "icount",
        "low",
        "q",
        "reached",
    )

    def __init__(self, library: Library, layout: Layout, template: int, index: int, shared: int) -> None:
        self._library, self._layout = library, layout
        self.reached = False
        self._buffer = ctypes.create_string_buffer(layout.cpu_size + _ALIGNMENT)
        self.address = -(-ctypes.addressof(self._buffer) // _ALIGNMENT) * _ALIGNMENT
        ctypes.memmove(self.address, template, layout.cpu_size)
        for where, target in layout.self_pointers:
            poke(self.address + where, self.address + target)
        library.dll.tlb_init_x86_64(self.address)
        ctypes.memset(self.address + layout.jump_cache, 0, layout.jump_cache_size)
        self.env = self.address + layout.env
        registers = view(self.env, reg.FILE_SIZE)
        self.q, self.d = registers.cast("Q"), registers.cast("I")
        counter = view(self.address + layout.icount, 4)
        self.icount, self.low = counter.cast("I"), counter.cast("H")[:1]
        self._cell = (ctypes.c_uint64 * CellWord.COUNT)()
        self.cell = memoryview(self._cell).cast("B").cast("Q")
        self.cell[CellWord.SHARED] = shared
        # a distinct odd multiple per core, so that the hash tells who ran a block
        self.cell[CellWord.KEY] = index * 0xD6E8FEB86659FD93 & (1 << 64) - 1
        poke(self.address + layout.opaque, ctypes.addressof(self._cell))

    def release(self) -> None:
        """Free the TLB tables, which the library allocated."""
        layout = self._layout
        libc = ctypes.CDLL(None)
        for mode in range(MMU_MODES):
            for at in (
                layout.tlb_fast + 16 * mode + 8,
                layout.tlb_desc + layout.tlb_desc_size * mode + layout.tlb_iotlb,
            ):
                libc.free(ctypes.c_void_p(peek(self.address + at)))
                poke(self.address + at, 0)
