"""Offsets inside Unicorn's private structures, and of the words the native stubs share with Python.

Source: the 2.1.4 manylinux x86-64 build, QEMU 5.0's `CPUX86State`, `CPUState`, `CPUTLB`, `TranslationBlock`.
`selftest` checks them against the running library before a machine is handed out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

MMU_MODES = 3  # NB_MMU_MODES: kernel with SMAP, user, kernel without
MMU_PARKED = 0  # the mode no ring-3 guest uses: keeps the other half's entries
MMU_USER = 1  # MMU_USER_IDX: CPL 3
MMU_KERNEL = 2  # MMU_KNOSMAP_IDX: CPL 0 to 2 without SMAP
TLB_NOTDIRTY = 0x400  # a store through this entry takes the slow path


@dataclass(frozen=True, slots=True)
class Layout:
    """Byte offsets. Names in capitals in the comments are QEMU's."""

    cpu_slot: int = 0x1B8  # uc_struct: pointer to the CPUState in use
    tcg_context: int = 0x300  # uc_struct: pointer to the TCGContext
    cpu_size: int = 0xA7E0  # sizeof(X86CPU)
    env: int = 0x8A50  # CPUState to CPUX86State
    icount: int = 0x8A40  # CPUState: icount_decr; low half block budget, high half exit request
    owner: int = 0x81A8  # CPUState: back pointer to uc_struct
    opaque: int = 0x8170  # CPUState: free pointer, NULL unless a machine of ours owns the state
    bank_tag: int = 0x8188  # CPUState: trace_dstate, part of every block's key
    jump_cache: int = 0x138  # CPUState: tb_jmp_cache
    jump_cache_size: int = 0x8000
    self_pointers: tuple[tuple[int, int], ...] = (
        (0x128, 0x8A50),
        (0x130, 0x8A40),
        (0x8150, 0x8148),
        (0x8160, 0x8158),
        (0x81B0, 0xA710),
    )
    tlb: int = 0x8A50 - 2192  # CPUTLB.c: lock, dirty mask
    tlb_desc: int = 0x8A50 - 2160  # CPUTLB.d[3]
    tlb_desc_size: int = 696
    tlb_iotlb: int = 688  # inside CPUTLBDesc: pointer to the iotlb
    tlb_large: int = 0  # inside CPUTLBDesc: large_page_addr
    tlb_used: int = 32  # inside CPUTLBDesc: n_used_entries
    tlb_victims: int = 48  # inside CPUTLBDesc: vtable
    tlb_victims_size: int = 512
    tlb_fast: int = 0x8A50 - 64  # CPUTLB.f[3]: mask, table
    tlb_entry_size: int = 64
    tlb_code: int = 16  # inside CPUTLBEntry: addr_code
    tlb_paddr: int = 24  # inside CPUTLBEntry, behind addr_read, addr_write, addr_code
    tb_header: int = 0xC0  # code of a block begins this far behind its TranslationBlock
    tb_code: int = 32  # TranslationBlock: tc.ptr
    tb_flags: int = 16  # TranslationBlock: flags
    tb_frames: int = 0x48  # TranslationBlock: page_addr[2]; -1: in one page
    tcg_buffer: int = 0xA8  # TCGContext: code_gen_buffer, then its size
    tcg_invalidations: int = 0xD8  # TCGContext: tb_phys_invalidate_count
    tcg_flushes: int = 0x98D0  # TCGContext: tb_ctx.tb_flush_count
    cr3: int = 0x1A8 + 24  # env: cr[3]
    features_8000_0001_edx: int = 5680  # env: features[FEAT_8000_0001_EDX]

    def replaced(self, **changes: int) -> Layout:
        """A copy with some offsets changed; for tests of the refusal."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Layout(**(values | changes))


class CellWord:
    """Words of a core's cell: what native stubs and Python share about one core."""

    BASE = 0  # virtual ns at the beginning of the running chunk
    CHUNK = 1  # blocks the chunk will have executed when its budget is used up
    RATE = 2  # ns a block takes, times 2 ** RATE_SHIFT
    TSC_READS = 3
    KEY = 4  # the core's part of the block hash
    SHARED = 5  # address of the shared words
    OPEN_PORTS = 6  # 1: the kernel bank's IN reads ones and OUT goes nowhere, without a trap
    TSC_UNITS = 7  # blocks in TSC_NS at this rate, rounded up
    EXCEPTION_UNITS = 8  # blocks in EXCEPTION_NS
    NATIVE = 9  # what the machine's native handler is given for this core; 0: it is not asked
    COUNT = 10


class SharedWord:
    """Words shared by all cores of a machine."""

    RAM = 0  # host address of guest memory
    FRAMES = 1
    CODE = 2  # host address of the byte map "frame holds translated code"
    CPUS = 3  # number of core addresses from FIRST_CPU on: of cores whose TLBs may hold something
    HASH = 4
    PROTECTED = 5  # frames that gained code
    SLOW_STORES = 6  # stores that found their entry not yet marked dirty
    KEPT_SLOW = 7  # of these, entries that must stay slow
    FILLS = 8  # TLB fills
    LOOKUPS = 9  # block headers found the slow way (hashing only)
    COHERENT = 10  # 1: interposed coherence; 0: as the original
    EAGER = 11  # 1: entries of frames without code are fast from the start
    NATIVE_SYSCALL = 12  # address of the machine's native handler of system calls
    BLOCKS = 13  # host address of the block cache
    BLOCK_STATE = 14  # CPL and upper half of the flags of blocks that it holds
    BLOCK_CODE = 15  # host address of the code buffer
    BLOCK_EPOCH = 16  # upper 16 bits
    BLOCK_CHANGES = 17  # blocks invalidated and flushes of all blocks when the epoch began
    BLOCKS_KEPT = 18  # blocks that were entered into the cache
    TCG = 19  # host address of the TCGContext
    FIRST_CPU = 20


UNIT_NS = 10  # virtual time of one executed block at full speed
RATE_SHIFT = 10
TSC_NS = 100  # what one rdtsc or rdtscp costs
EXCEPTION_NS = 150  # what entering the hypervisor by an exception or a software interrupt costs
BLOCK_COUNT = 1 << 15  # entries of the block cache; a boot and its programs use about ten thousand blocks
BLOCK_WORDS = 2  # 64-bit words of an entry
BLOCK_PLACES = 1 << 24  # cache lines of the code buffer that an entry can name: all of 1 GiB
BLOCK_EPOCH_SHIFT = 48
BLOCK_STATE_MASK = 0xFFFF0003  # of a block's flags: what an entry does not hold, and CPL
MAX_CHUNK = 0xFFFF  # the block budget is 16 bits wide
