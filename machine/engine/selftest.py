"""Does the loaded library have the private layout we build on? Asked of every new Uc before it is used."""

from __future__ import annotations

import ctypes

from machine import registers as reg

from . import library as lib
from .errors import UnsupportedEngine
from .layout import BLOCK_PLACES, MMU_MODES, Layout
from .library import Library, peek, poke

_SENTINEL = 0x5EED_BE00_1122_0000
_CR0 = reg.CR0_PE | reg.CR0_MP | reg.CR0_ET | reg.CR0_NE | reg.CR0_WP
_MSR_TSC_AUX = 0xC000_0103
_LARGEST_TLB = 1 << 22
_PAGE_SIZE = 0x1000
_LINE = 64  # code of a block begins on a cache line
_PAGE, _FRAME = 0x5000, 0x1000
_READ, _EXEC = 1, 4
_NOTHING = (1 << 64) - 1
_RDTSCP = 1 << 27  # CPUID 8000_0001 edx


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise UnsupportedEngine(f"this Unicorn library is laid out differently: {what}")


def _readable(address: int, size: int) -> bool:
    """Whether the process may read there: the kernel is asked, so that a wrong guess does not crash."""
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:  # noqa: PTH123 - a raw descriptor is wanted
            memory.seek(address)
            return len(memory.read(size)) == size
    except (OSError, OverflowError, ValueError):
        return False


def _check_code(library: Library) -> bytes:
    """The beginning of `check_exit_request`: mov rsi, [rdi + disp32]; cmp byte ptr [rsi + disp32], 0."""
    code = ctypes.string_at(library.address("check_exit_request_x86_64"), 14)
    _require(code[:3] == b"\x48\x8b\xb7" and code[7:9] == b"\x80\xbe" and code[13] == 0, "check_exit_request")
    return code


def _tcg_owner(library: Library) -> int:
    """Offset in TCGContext of the pointer to uc_struct, read from code."""
    return int.from_bytes(_check_code(library)[3:7], "little")


def no_exit_request(library: Library) -> int:
    """Offset in uc_struct of the byte that turns off the exit check after every load and store."""
    return int.from_bytes(_check_code(library)[9:13], "little")


def _reg_write(library: Library, uc: int, number: int, value: int) -> None:
    word = ctypes.c_uint64(value)
    _require(library.dll.uc_reg_write(uc, number, ctypes.byref(word)) == 0, f"register {number}")


def verify(library: Library, layout: Layout, uc: int) -> int:
    """Check every offset, each step only following what the earlier ones proved; the CPUState's address."""
    _require(_readable(uc + layout.cpu_slot, 8), "uc_struct")
    cpu = peek(uc + layout.cpu_slot)
    _require(cpu % 16 == 0 and _readable(cpu, layout.cpu_size), "no CPUState in uc_struct")
    env = cpu + layout.env
    _require(peek(cpu + layout.owner) == uc, "the CPUState does not name its owner")
    pointers = tuple(
        (8 * i, word - cpu)
        for i, word in enumerate(memoryview(ctypes.string_at(cpu, layout.cpu_size & -8)).cast("Q"))
        if cpu <= word < cpu + layout.cpu_size
    )
    _require(pointers == layout.self_pointers, "pointers of the CPUState into itself")
    _require({layout.env, layout.icount} <= {target for _, target in pointers}, "env and icount_decr")
    _require(peek(peek(uc + layout.tcg_context) + _tcg_owner(library)) == uc, "TCGContext")
    _require(peek(cpu + layout.opaque) == 0, "the opaque pointer is in use")
    _require(peek(cpu + layout.bank_tag) == 0, "trace_dstate is in use")
    _registers(library, uc, env)
    _blocks(library, layout, peek(uc + layout.tcg_context), cpu)
    _tlbs(library, layout, cpu)
    _features(library, layout, env)
    return cpu


def _blocks(library: Library, layout: Layout, tcg: int, cpu: int) -> None:
    """The buffer of translated code, and what counts that blocks went."""
    _require(_readable(tcg, layout.tcg_flushes + 4), "TCGContext")
    buffer, size = peek(tcg + layout.tcg_buffer), peek(tcg + layout.tcg_buffer + 8)
    _require(buffer % _PAGE_SIZE == 0 and 0 < size <= BLOCK_PLACES * _LINE, "code buffer")
    _require(_readable(buffer, layout.tb_header), "code buffer")
    code = ctypes.string_at(library.address("tcg_tb_phys_invalidate_count_x86_64"), 8)
    expected = b"\x48\x8b\x87" + layout.tcg_invalidations.to_bytes(4, "little") + b"\xc3"
    _require(code == expected, "count of invalidated blocks")  # mov rax, [rdi + disp32]; ret
    flushes = ctypes.c_uint32.from_address(tcg + layout.tcg_flushes)
    before = flushes.value
    library.dll.tb_flush_x86_64(cpu)
    _require(flushes.value == before + 1, "count of flushes of all blocks")


def _registers(library: Library, uc: int, env: int) -> None:
    general = lib.REG_RAX, 38, 40, 37, 44, 36, 43, 39  # UC_X86_REG_RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI
    for index, number in enumerate(general):
        _reg_write(library, uc, number, _SENTINEL + index)
    _require(
        all(peek(env + 8 * i) == _SENTINEL + i for i in range(len(general))),
        "general registers",
    )
    for number in general:
        _reg_write(library, uc, number, 0)
    for index in range(4):
        _reg_write(library, uc, lib.REG_DR0 + index, 0x1D00 + index)
    _require(
        all(peek(env + 8 * (reg.DR0 + i)) == 0x1D00 + i for i in range(4)),
        "debug registers",
    )
    for index in range(4):
        _reg_write(library, uc, lib.REG_DR0 + index, 0)
    msr = (ctypes.c_uint32 * 4)(_MSR_TSC_AUX, 0, 0x5EED, 0)  # uc_x86_msr: u32 number, u64 value
    _require(library.dll.uc_reg_write(uc, 248, msr) == 0, "UC_X86_REG_MSR")
    _require(peek(env + 8 * reg.TSC_AUX) == 0x5EED, "TSC_AUX")
    poke(env + 8 * reg.TSC_AUX, 0)
    # EFER.LME and CR0.PG together set EFER.LMA; CR4.OSFXSR is mirrored in hflags
    poke(env + 8 * reg.EFER, reg.EFER_SCE | reg.EFER_LME | reg.EFER_NXE)
    cr4 = reg.CR4_PSE | reg.CR4_PAE | reg.CR4_PGE | reg.CR4_OSFXSR | reg.CR4_OSXMMEXCPT
    library.dll.cpu_x86_update_cr4_x86_64(env, cr4)
    library.dll.cpu_x86_update_cr0_x86_64(env, _CR0)
    library.dll.cpu_x86_update_cr0_x86_64(env, _CR0 | reg.CR0_PG)
    _require(peek(env + 8 * reg.CR4) == cr4, "CR4")
    _require(peek(env + 8 * reg.CR0) == _CR0 | reg.CR0_PG, "CR0")
    _require(bool(peek(env + 8 * reg.EFER) & reg.EFER_LMA), "EFER")
    hflags = ctypes.c_uint32.from_address(env + 4 * reg.HFLAGS).value
    _require(bool(hflags & reg.HF_LMA), "hflags")
    _require(
        ctypes.c_uint32.from_address(env + 4 * reg.OLD_EXCEPTION).value == 0xFFFF_FFFF,
        "old_exception",
    )


def _tlbs(library: Library, layout: Layout, cpu: int) -> None:
    for mode in range(MMU_MODES):
        fast = cpu + layout.tlb_fast + 16 * mode
        mask, table = peek(fast), peek(fast + 8)
        entries = (mask >> 6) + 1
        _require(
            mask & 63 == 0 and entries & (entries - 1) == 0 and 64 <= entries <= _LARGEST_TLB,
            "TLB mask",
        )
        _require(_readable(table, entries * layout.tlb_entry_size), "TLB table")
        iotlb = peek(cpu + layout.tlb_desc + layout.tlb_desc_size * mode + layout.tlb_iotlb)
        _require(_readable(iotlb, entries * 16), "iotlb")
    victims = cpu + layout.tlb_desc + layout.tlb_victims
    ends = victims, victims + layout.tlb_victims_size - 8
    for end in ends:
        poke(end, 1)
    library.dll.tlb_set_page_x86_64(cpu, _PAGE, _FRAME, _READ | _EXEC, 0, _PAGE_SIZE)
    mask, table = peek(cpu + layout.tlb_fast), peek(cpu + layout.tlb_fast + 8)
    entry = table + (_PAGE // _PAGE_SIZE * layout.tlb_entry_size & mask)
    _require(peek(entry) == _PAGE and peek(entry + layout.tlb_paddr) == _FRAME, "TLB entry")
    _require(peek(entry + layout.tlb_code) == _PAGE, "TLB entry")
    used = cpu + layout.tlb_desc + layout.tlb_used
    dirty = ctypes.c_uint16.from_address(cpu + layout.tlb)
    poke(used, 5)
    dirty.value = 7
    library.dll.tlb_flush_x86_64(cpu)
    _require(peek(used) == 0 and dirty.value == 0, "dirty marks of the TLBs")
    _require(all(peek(end) == _NOTHING for end in (entry, *ends)), "victim TLB")
    around = victims - 8, victims + layout.tlb_victims_size
    _require(all(peek(end) != _NOTHING for end in around), "size of the victim TLB")
    ends = (cpu + layout.jump_cache, cpu + layout.jump_cache + layout.jump_cache_size - 8)
    for end in ends:
        poke(end, 1)
    library.dll.tlb_flush_by_mmuidx_x86_64(cpu, 0)
    _require(not any(peek(end) for end in ends), "jump cache")


def _features(library: Library, layout: Layout, env: int) -> None:
    """Offer RDTSCP, which Nehalem lacks and Unicorn executes; proves the offset of the feature words."""
    word = ctypes.c_uint32.from_address(env + layout.features_8000_0001_edx)
    before = cpuid(library, env, 0x8000_0001, 0)[3]
    _require(word.value == before, "feature words")
    word.value = before | _RDTSCP
    _require(cpuid(library, env, 0x8000_0001, 0)[3] == before | _RDTSCP, "feature words")


def cpuid(library: Library, env: int, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """eax, ebx, ecx, edx of the emulated model."""
    out = (ctypes.c_uint32 * 4)()
    at = ctypes.addressof(out)
    library.dll.cpu_x86_cpuid_x86_64(env, leaf, subleaf, at, at + 4, at + 8, at + 12)
    return out[0], out[1], out[2], out[3]
