"""Native stubs: assembled by Keystone when the first machine is built, shared by all of the process."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from machine import registers as reg

from .errors import UnsupportedEngine
from .layout import (
    BLOCK_COUNT,
    BLOCK_EPOCH_SHIFT,
    BLOCK_PLACES,
    BLOCK_STATE_MASK,
    BLOCK_WORDS,
    EXCEPTION_NS,
    MMU_MODES,
    MMU_USER,
    RATE_SHIFT,
    TLB_NOTDIRTY,
    TSC_NS,
    CellWord,
    Layout,
    SharedWord,
)
from .library import Library

NAMES = (
    "check",
    "hash_check",
    "block_hook",
    "rdtsc",
    "rdtscp",
    "port",
    "syscall",
    "interrupt",
    "refuse",
    "protect",
    "unprotect",
    "set_dirty",
    "set_page",
    "time_of_day",
    "switch_bank",
    "flush_frame",
    "see",
    "restore_state",
    "lookup",
)
FIRMWARE_RTC_PORTS = 0x70  # and 0x71: index and data of the clock
FIRMWARE_PCI_PORTS = 0xCF8  # to 0xCFF: configuration mechanism 1
_ENTRY_STRIDE = 16
_TIME_CELL_WORDS = 2
_ATTEMPTS = 16
_DISP8 = 128
_SYSCALL_SIZE, _RDTSC_SIZE = 0xF0, 0x138  # of helper_syscall and helper_rdtsc, up to their last call
_GENERAL = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{n}" for n in range(8, 16)))


class Stubs:
    """Executable memory with the stubs. `entry[name]` is the address to call."""

    def __init__(self, library: Library, layout: Layout) -> None:
        self._time_cell = mmap.mmap(-1, mmap.PAGESIZE)
        self.time = memoryview(self._time_cell).cast("Q")[:_TIME_CELL_WORDS]
        code = _assemble(library, layout, _address(self._time_cell))
        room = -(-len(code) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._code = mmap.mmap(-1, room, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code[: len(code)] = code
        self._added: dict[tuple[Any, ...], mmap.mmap] = {}
        base = _address(self._code)
        self.entry = {name: _body(base + _ENTRY_STRIDE * i) for i, name in enumerate(NAMES)}
        self.size = len(code)


    def add(self, source: str, values: Mapping[str, int]) -> int:
        """Assemble a native handler, once a process; the address of its first instruction. `{NAME}` in the
        source stands for `values[NAME]`, for the offset of a general register (RCX, say), or for the stub
        SEE.
        """
        known = {name: 8 * getattr(reg, name) for name in _GENERAL} | {"SEE": self.entry["see"]}
        key = source, tuple(values.items())
        memory = self._added.get(key)
        if memory is None:
            code = _encode(source, known | dict(values))
            memory = mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            memory[:] = code
            self._added[key] = memory
        return _address(memory)


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _body(jump: int) -> int:
    """Where the entry jump at this address leads."""
    code = ctypes.string_at(jump, 5)
    if code[0] == 0xEB:
        return jump + 2 + int.from_bytes(code[1:2], "little", signed=True)
    assert code[0] == 0xE9
    return jump + 5 + int.from_bytes(code[1:5], "little", signed=True)


def _assemble(library: Library, layout: Layout, time_cell: int) -> bytes:
    libc = ctypes.CDLL(None)
    values = {
        "ENV_ICOUNT": layout.env - layout.icount,
        "ENV_OPAQUE": layout.env - layout.opaque,
        "ENV_TLB": layout.env - layout.tlb_fast - 16 * MMU_USER,
        "ENV_OWNER": layout.env - layout.owner,
        "INLINE_CHECK": int.from_bytes(_inline_check(layout)[:8], "little"),
        "INLINE_PADDING": int.from_bytes(_inline_check(layout)[8:], "little"),
        "UC_EMU_STOP": library.address("uc_emu_stop"),
        "CHECK_EXIT_REQUEST": library.address("helper_check_exit_request_x86_64"),
        "HELPER_SYSCALL": library.address("helper_syscall_x86_64"),
        "HELPER_RDTSC": library.address("helper_rdtsc_x86_64"),
        "SYSCALL_SIZE": _SYSCALL_SIZE,
        "RDTSC_SIZE": _RDTSC_SIZE,
        "RESTORE_STATE": library.address("cpu_restore_state_x86_64"),
        "TB_LOOKUP": library.address("tcg_tb_lookup_x86_64"),
        "RAISE_EXCEPTION_ERR": library.address("raise_exception_err_x86_64"),
        "TLB_PROTECT_CODE": library.address("tlb_protect_code_x86_64"),
        "TLB_RESET_DIRTY": library.address("tlb_reset_dirty_x86_64"),
        "TLB_SET_DIRTY": library.address("tlb_set_dirty_x86_64"),
        "TLB_FLUSH_PAGE": library.address("tlb_flush_page_x86_64"),
        "TLB_SET_PAGE": library.address("tlb_set_page_with_attrs_x86_64"),
        "GETTIMEOFDAY": ctypes.cast(libc.gettimeofday, ctypes.c_void_p).value or 0,
        "TIME_CELL": time_cell,
        "TB_HEADER": layout.tb_header,
        "TB_CODE": layout.tb_code,
        "TCG_CONTEXT": layout.tcg_context,
        "CPU_SLOT": layout.cpu_slot,
        "ICOUNT": layout.icount,
        "OPAQUE": layout.opaque,
        "ENV": layout.env,
        "TSC_AUX": reg.TSC_AUX * 8,
        "HFLAGS": reg.HFLAGS * 4,
        "LMA_AND_CPL": reg.HF_LMA | reg.HF_CPL,
        "READ_EFLAGS": library.address("helper_read_eflags_x86_64"),
        "FLAGS_ARITHMETIC": reg.FLAGS_ARITHMETIC,
        "R11": reg.R11 * 8,
        "RIP": reg.RIP * 8,
        "CC_SRC": reg.CC_SRC * 8,
        "CC_OP": reg.CC_OP * 4,
        "OLD_EXCEPTION": reg.OLD_EXCEPTION * 4,
        "RTC_MASK": 0xFFFE,
        "RTC_PORTS": FIRMWARE_RTC_PORTS,
        "PCI_MASK": 0xFFF8,
        "PCI_PORTS": FIRMWARE_PCI_PORTS,
        "RATE_SHIFT": RATE_SHIFT,
        "TSC_NS": TSC_NS,
        "EXCEPTION_NS": EXCEPTION_NS,
        "MMU_MODES": MMU_MODES,
        "NOTDIRTY": TLB_NOTDIRTY,
        "TLB_FAST": layout.tlb_fast,
        "TLB_DESC": layout.tlb_desc,
        "TLB_DESC_SIZE": layout.tlb_desc_size,
        "TLB_DESC_WORDS": layout.tlb_desc_size // 8,
        "TLB_DIRTY": layout.tlb,
        "TLB_ENTRY_SIZE": layout.tlb_entry_size,
        "TLB_PADDR": layout.tlb_paddr,
        "TLB_VICTIMS": layout.tlb_victims,
        "TLB_VICTIMS_SIZE": layout.tlb_victims_size,
        "BANK_TAG": layout.bank_tag,
        "CR3": layout.cr3,
        "LOOKUP_TB_PTR": library.address("helper_lookup_tb_ptr_x86_64"),
        "EFLAGS": reg.EFLAGS * 8,
        "CS_BASE": reg.CS_BASE * 8,
        "FLAGS_IN_BLOCKS": reg.FLAGS_IN_BLOCKS,
        "BLOCK_STATE_MASK": BLOCK_STATE_MASK,
        "BLOCK_MASK": BLOCK_COUNT - 1,
        "BLOCK_WORDS": BLOCK_COUNT * BLOCK_WORDS,
        "BLOCK_PLACES": BLOCK_PLACES,
        "BLOCK_ONE_EPOCH": 1 << BLOCK_EPOCH_SHIFT,
        "TLB_CODE": layout.tlb_code,
        "TB_FLAGS": layout.tb_flags,
        "TB_FRAMES": layout.tb_frames,
        "TCG_FLUSHES": layout.tcg_flushes,
        "TCG_INVALIDATIONS": layout.tcg_invalidations,
    }
    for words in (CellWord, SharedWord):
        values |= {name: 8 * number for name, number in vars(words).items() if name.isupper()}
    source = files(__package__).joinpath("stubs.s").read_text(encoding="ascii")
    entries = "".join(f"jmp {name}\n.balign {_ENTRY_STRIDE}\n" for name in NAMES)
    return _encode(entries + source, values)


def _encode(source: str, values: Mapping[str, int]) -> bytes:
    source = re.sub(r"#.*", "", source)
    source = re.sub(r"\{(\w+)\}", lambda match: hex(values[match[1]]), source)
    encoded, _ = _keystone().asm(source, 0, as_bytes=True)
    return bytes(encoded)


def _inline_check(layout: Layout) -> bytes:
    """What replaces the 12 bytes in front of a block's call: sub dword ptr [rbp - icount], 1; jns; nops."""
    distance = layout.env - layout.icount
    if not 0 < distance <= _DISP8:
        raise UnsupportedEngine("the block budget is too far from the registers")
    return bytes((0x83, 0x6D, 256 - distance, 1, 0x79, 11, 0x0F, 0x1F, 0x44, 0, 0, 0x90))


def _keystone() -> Any:
    """An assembler that reads decimal numbers as such: now and then one reads hexadecimal."""
    from keystone import KS_ARCH_X86, KS_MODE_64, Ks

    tried = []  # kept: a freed one's memory, and with it its fault, would come back
    for _ in range(_ATTEMPTS):
        assembler = Ks(KS_ARCH_X86, KS_MODE_64)
        tried.append(assembler)
        if bytes(assembler.asm(".byte 10", 0, as_bytes=True)[0]) == b"\x0a":
            return assembler
    raise UnsupportedEngine("keystone reads decimal numbers as hexadecimal")
