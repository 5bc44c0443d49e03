"""Relocation slots of the loaded library, found by symbol name through its ELF dynamic section.

Source: ELF-64 object file format; the x86-64 psABI for relocation types.
"""

from __future__ import annotations

import ctypes
import mmap
import struct

import numpy as np

from .library import Library, peek, poke

R_X86_64_64 = 1
R_X86_64_GLOB_DAT = 6
R_X86_64_JUMP_SLOT = 7
PT_DYNAMIC = 2
DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_STRSZ, DT_JMPREL = 2, 5, 6, 7, 8, 10, 23
_RELA_SIZE = 24
_SYMBOL_SIZE = 24


class _DlInfo(ctypes.Structure):
    _fields_ = [
        ("fname", ctypes.c_char_p),
        ("fbase", ctypes.c_void_p),
        ("sname", ctypes.c_char_p),
        ("saddr", ctypes.c_void_p),
    ]


def _base(library: Library) -> int | None:
    libc = ctypes.CDLL(None)
    info = _DlInfo()
    if not hasattr(libc, "dladdr"):
        return None
    if not libc.dladdr(ctypes.c_void_p(library.address("uc_open")), ctypes.byref(info)):
        return None
    base: int | None = info.fbase
    return base


def _dynamic(base: int) -> dict[int, int]:
    header = ctypes.string_at(base, 64)
    if header[:5] != b"\x7fELF\x02":
        return {}
    phoff, phnum = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
    for index in range(phnum):
        kind, _, _, vaddr, _, _, size, _ = struct.unpack(
            "<IIQQQQQQ", ctypes.string_at(base + phoff + 56 * index, 56)
        )
        if kind == PT_DYNAMIC:
            words = struct.unpack(f"<{size // 8}Q", ctypes.string_at(base + vaddr, size))
            return dict(zip(words[::2], words[1::2], strict=True))
    return {}


def find_slots(library: Library, names: tuple[str, ...]) -> dict[str, list[tuple[int, int]]]:
    """For each name the (address, relocation type) of every slot that holds its address.

    Empty lists where the build has none (not ELF, or bound without relocations).
    """
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    try:
        base = _base(library)
    except (OSError, TypeError):
        return found
    if base is None:
        return found
    dynamic = _dynamic(base)
    if DT_STRTAB not in dynamic:
        return found

    def absolute(value: int) -> int:
        return value if value >= base else base + value

    strings = ctypes.string_at(absolute(dynamic[DT_STRTAB]), dynamic[DT_STRSZ])
    wanted: dict[int, str] = {}
    for name in names:
        tail, at = name.encode() + b"\0", -1
        while (at := strings.find(tail, at + 1)) >= 0:
            wanted[at] = name
    offsets = np.array(sorted(wanted), dtype=np.uint32)
    for table, size in ((DT_RELA, DT_RELASZ), (DT_JMPREL, DT_PLTRELSZ)):
        if table not in dynamic:
            continue
        raw = ctypes.string_at(absolute(dynamic[table]), dynamic[size])
        rows = np.frombuffer(raw, dtype=np.uint64).reshape(-1, _RELA_SIZE // 8)
        kinds = rows[:, 1] & np.uint64(0xFFFFFFFF)
        rows = rows[(kinds == R_X86_64_64) | (kinds == R_X86_64_GLOB_DAT) | (kinds == R_X86_64_JUMP_SLOT)]
        symbols = (rows[:, 1] >> np.uint64(32)).astype(np.int64)
        count = int(symbols.max(initial=0)) + 1
        table_bytes = ctypes.string_at(absolute(dynamic[DT_SYMTAB]), count * _SYMBOL_SIZE)
        st_name = np.frombuffer(table_bytes, dtype=np.uint32).reshape(-1, _SYMBOL_SIZE // 4)[:, 0]
        names_of = st_name[symbols]
        for row in np.nonzero(np.isin(names_of, offsets))[0].tolist():
            name = wanted[int(names_of[row])]
            found[name].append((base + int(rows[row, 0]), int(rows[row, 1]) & 0xFFFFFFFF))
    return found


def make_writable(address: int) -> None:
    """Let a slot be written although the loader made its page read-only."""
    page = address & ~(mmap.PAGESIZE - 1)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), f"mprotect of {page:#x}")


class Slots:
    """Some slots of one symbol that are exchanged together."""

    __slots__ = ("addresses", "original")

    def __init__(self, addresses: list[int]) -> None:
        for address in addresses:
            make_writable(address)
        self.addresses = addresses
        self.original = [peek(address) for address in addresses]

    def set(self, target: int) -> None:
        for address in self.addresses:
            poke(address, target)

    def restore(self) -> None:
        for address, value in zip(self.addresses, self.original, strict=True):
            poke(address, value)
