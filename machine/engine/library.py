"""The Unicorn library itself, through plain ctypes: its exported functions with their C types."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import UnsupportedEngine

# unicorn.h, x86.h of 2.1.4
ARCH_X86 = 4
MODE_64 = 8
PROT_ALL = 7
HOOK_INTR = 1 << 0
HOOK_INSN = 1 << 1
HOOK_BLOCK = 1 << 3
HOOK_MEM_WRITE_PROT = 1 << 8
HOOK_INSN_INVALID = 1 << 14
INS_CPUID = 113
INS_IN = 218
INS_OUT = 500
INS_RDTSC = 608
INS_RDTSCP = 609
INS_SYSCALL = 699
CTL_USE_EXITS = 4
CTL_CPU_MODEL = 7
CTL_WRITE_ONE = 1 << 26 | 1 << 30  # UC_CTL_WRITE(type, 1)
CPU_X86_NEHALEM = 15
REG_RAX = 35
REG_DR0 = 66

_P, _U64, _U32, _U16, _INT = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint16, ctypes.c_int
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "uc_version": (_U32, (_P, _P)),
    "uc_open": (_INT, (_INT, _INT, _P)),
    "uc_close": (_INT, (_P,)),
    "uc_emu_start": (_INT, (_P, _U64, _U64, _U64, ctypes.c_size_t)),
    "uc_mem_map_ptr": (_INT, (_P, _U64, ctypes.c_size_t, _U32, _P)),
    "uc_reg_write": (_INT, (_P, _INT, _P)),
    "uc_reg_read": (_INT, (_P, _INT, _P)),
    "uc_hook_del": (_INT, (_P, ctypes.c_size_t)),
    "tlb_flush_x86_64": (None, (_P,)),
    "tlb_flush_page_x86_64": (None, (_P, _U64)),
    "tlb_flush_by_mmuidx_x86_64": (None, (_P, _U16)),
    "tlb_init_x86_64": (None, (_P,)),
    "tlb_set_page_x86_64": (None, (_P, _U64, _U64, _INT, _INT, _U64)),
    "tb_flush_x86_64": (None, (_P,)),
    "tb_invalidate_phys_range_x86_64": (None, (_P, _U64, _U64)),
    "cpu_x86_update_cr0_x86_64": (None, (_P, _U32)),
    "cpu_x86_update_cr4_x86_64": (None, (_P, _U32)),
    "cpu_x86_update_dr7_x86_64": (None, (_P, _U32)),
    "helper_fxrstor_x86_64": (None, (_P, _U64)),
    "cpu_x86_cpuid_x86_64": (None, (_P, _U32, _U32, _P, _P, _P, _P)),
    "helper_read_eflags_x86_64": (_U64, (_P,)),
}


class Library:
    """The loaded library. Calls keep the interpreter lock: nothing else runs beside a machine."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("unicorn")
        if found is None or not found.submodule_search_locations:
            raise UnsupportedEngine("unicorn is not installed")
        folder = Path(next(iter(found.submodule_search_locations))) / "lib"
        candidates = sorted(folder.glob("libunicorn.so*")) + sorted(folder.glob("libunicorn*.dylib"))
        candidates += sorted(folder.glob("unicorn.dll"))
        if not candidates:
            raise UnsupportedEngine(f"no Unicorn library in {folder}")
        self.path = candidates[0]
        self.dll = ctypes.PyDLL(str(self.path))
        for name, (result, arguments) in _PROTOTYPES.items():
            try:
                function = getattr(self.dll, name)
            except AttributeError:
                raise UnsupportedEngine(f"{self.path.name} does not export {name}") from None
            function.restype, function.argtypes = result, list(arguments)

    @cached_property
    def version(self) -> tuple[int, int, int]:
        word = int(self.dll.uc_version(None, None))
        return word >> 24 & 0xFF, word >> 16 & 0xFF, word >> 8 & 0xFF

    def address(self, name: str) -> int:
        """Host address of an exported symbol."""
        try:
            value = ctypes.cast(getattr(self.dll, name), ctypes.c_void_p).value
        except AttributeError:
            raise UnsupportedEngine(f"{self.path.name} does not export {name}") from None
        assert value is not None
        return value


_library: Library | None = None


def library() -> Library:
    """The one library of this process."""
    global _library
    if _library is None:
        _library = Library()
    return _library


def peek(address: int) -> int:
    """The 64-bit word at a host address."""
    return ctypes.c_uint64.from_address(address).value


def poke(address: int, value: int) -> None:
    """Store a 64-bit word at a host address."""
    ctypes.c_uint64.from_address(address).value = value


def view(address: int, size: int) -> memoryview:
    """Writable bytes at a host address; the caller keeps the memory alive."""
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")
