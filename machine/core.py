"""Core: one logical CPU, with its registers, TLBs and time. Knows nothing of who handles its traps."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from struct import Struct
from typing import NoReturn, Protocol

from . import registers as reg
from .engine import (
    EXCEPTION_NS,
    MAX_CHUNK,
    MMU_KERNEL,
    MMU_PARKED,
    MMU_USER,
    RATE_SHIFT,
    TSC_NS,
    UNIT_NS,
    CellWord,
    CpuState,
    Engine,
    EngineError,
)
from .memory import FRAME_SIZE

_PAGE_READ, _PAGE_WRITE, _PAGE_EXEC = 1, 2, 4  # QEMU's page protection bits
_CC_OP_EFLAGS = 1  # QEMU: cc_src holds the flags themselves
_NOT_IN_EFLAGS = reg.FLAGS_ARITHMETIC | reg.FLAG_DF
_MINUS_ONE = 0xFFFF_FFFF
_FOUR_WORDS = Struct("<4Q")
_FPU_WINDOW = 0x1000  # a virtual address whose translation may be replaced for a moment
_EMPTY = 0
FULL_SPEED = UNIT_NS << RATE_SHIFT
"""The rate of a core that has its execution units to itself; see `Core.pace`."""

_BASE, _CHUNK, _TSC_READS = CellWord.BASE, CellWord.CHUNK, CellWord.TSC_READS
_CPL3_DPL = 3 << reg.DESC_DPL_SHIFT
_FLAT_DATA = reg.DESC_G | reg.DESC_B | reg.DESC_P | reg.DESC_S | _CPL3_DPL | 0x300  # read, write, accessed
_LONG_CODE = reg.DESC_G | reg.DESC_L | reg.DESC_P | reg.DESC_S | _CPL3_DPL | 0xB00  # execute, read, accessed


class StopReason(Enum):
    """Why a slice ended."""

    BUDGET = "its time was used up"
    STOPPED = "stop() was called"
    FAILED = "a handler raised"


class TrapHandler(Protocol):
    """What a core asks and tells the firmware. Handlers work in place; emulation goes on from RIP.

    An exception that leaves a handler ends the slice and is raised by `Machine.run`.
    """

    def dispatch(self, core: Core) -> int | None:
        """Before each slice: load what should run, deliver events.

        The longest slice in ns; None: the core is idle.
        """

    def syscall(self, core: Core) -> None:
        """SYSCALL was executed: RIP and RCX are after it, R11 holds the flags."""

    def exception(self, core: Core, vector: int, error: int, software: bool) -> None:
        """Fault: RIP at the instruction. `int n` (software) and int3: RIP after it.

        CR2 holds the address of a #PF.
        """

    def cpuid(self, core: Core) -> None:
        """Fill RAX RBX RCX RDX; RIP advances by itself."""


class Core:
    """`q`, `d`: the register file (indices in machine.registers).

    `current`: the firmware's own, never looked at here. `idle`: dispatch had nothing to run; `Machine.wake`
    ends it. `busy`: dispatch had something, or `Machine.wake` came since. `idle_ns`: time that passed while
    it was idle. Counters: `flushes`, `page_flushes`, `frame_flushes`, `bank_switches`.
    """

    __slots__ = (
        "_address",
        "_bank",
        "_cell",
        "_cpu",
        "_deadline",
        "_engine",
        "_flush",
        "_flush_frame",
        "_flush_modes",
        "_flush_page",
        "_icount",
        "_low",
        "_parked_empty",
        "_rate",
        "_read_eflags",
        "_set_page",
        "_stopped",
        "_switch_bank",
        "_units",
        "bank_switches",
        "busy",
        "current",
        "d",
        "flushes",
        "frame_flushes",
        "handler",
        "idle",
        "idle_ns",
        "index",
        "page_flushes",
        "q",
    )

    def __init__(self, engine: Engine, cpu: CpuState, index: int, handler: TrapHandler) -> None:
        self.index = index
        self.q, self.d = cpu.q, cpu.d
        self.handler = handler
        self.current: object = None
        self.idle = self.busy = False
        self.idle_ns = 0
        self.flushes = self.page_flushes = self.frame_flushes = self.bank_switches = 0
        self._engine, self._cpu, self._address = engine, cpu, cpu.address
        self._cell, self._low, self._icount = cpu.cell, cpu.low, cpu.icount
        self._units = 0
        self._deadline = 0
        self._stopped = False
        self._rate = 0
        self._bank = 0
        self._parked_empty = False
        dll = engine.library.dll
        self._flush: Callable[..., None] = dll.tlb_flush_x86_64
        self._flush_page: Callable[..., None] = dll.tlb_flush_page_x86_64
        self._flush_modes: Callable[..., None] = dll.tlb_flush_by_mmuidx_x86_64
        self._set_page: Callable[..., None] = dll.tlb_set_page_x86_64
        self._read_eflags = dll.helper_read_eflags_x86_64
        self._switch_bank: Callable[..., None] = engine.switch_bank
        self.pace(FULL_SPEED)
        self._flush_frame: Callable[..., int] = engine.flush_frame
        for segment in (reg.SS, reg.DS, reg.ES):
            self.set_segment(segment, 0, 0, _MINUS_ONE, _FLAT_DATA)
        self.set_mode(long=True, cpl=3)
        self.set_cs(3, 0, _MINUS_ONE, _LONG_CODE)
        self.set_eflags(reg.FLAG_IF)

    # -- time

    def now(self) -> int:
        """Virtual time of this core in ns, inside traps too."""
        cell = self._cell
        time: int = cell[_BASE] + ((cell[_CHUNK] - self._low[0]) * self._rate >> RATE_SHIFT)
        return time

    def charge(self, ns: int) -> None:
        """Add the cost of modelled work; it shortens the running slice.

        What leaves the budget is rounded up: a slice never ends late because of it, and `run` goes on when
        it would end early.
        """
        cell, low = self._cell, self._low
        cell[_BASE] += ns
        left = low[0]
        if left:
            units = -(-(ns << RATE_SHIFT) // self._rate)
            if units > left:
                units = left
            low[0] = left - units
            cell[_CHUNK] -= units

    def pace(self, rate: int) -> None:
        """From now on, also within a slice, a block takes `rate` / 2 ** RATE_SHIFT ns.

        Time stays in whole ns: what is less than one is dropped, here and at the end of a chunk.
        """
        if rate == self._rate:
            return
        cell, low = self._cell, self._low
        left = low[0]
        used = cell[_CHUNK] - left
        cell[_BASE] += used * self._rate >> RATE_SHIFT
        self._units += used
        self._rate = cell[CellWord.RATE] = rate
        cell[CellWord.TSC_UNITS] = self._blocks_in(TSC_NS)
        cell[CellWord.EXCEPTION_UNITS] = self._blocks_in(EXCEPTION_NS)
        if left:
            left = low[0] = max(0, min(left, self._blocks_in(self._deadline - cell[_BASE])))
        cell[_CHUNK] = left

    def _blocks_in(self, ns: int) -> int:
        """Blocks after which at least so much time has passed."""
        return -(-(ns << RATE_SHIFT) // self._rate)

    @property
    def rate(self) -> int:
        """What `pace` was last told."""
        return self._rate

    @property
    def busy_ns(self) -> int:
        """Virtual time this core was not idle, inside traps too."""
        return self.now() - self.idle_ns

    def advance(self, to_ns: int) -> None:
        """An idle core's time passes; only between slices."""
        passed = to_ns - self._cell[_BASE]
        if passed > 0:
            self._cell[_BASE] = to_ns
            self.idle_ns += passed

    def limit(self, deadline_ns: int) -> None:
        """Shorten the running slice so that it ends by this time, at the next block when that has passed."""
        if deadline_ns < self._deadline:
            self._deadline = deadline_ns
            cell, low = self._cell, self._low
            left = low[0]
            units = self._blocks_in(deadline_ns - cell[_BASE]) - (cell[_CHUNK] - left)
            if units < left:
                cut = left - units if units > 0 else left
                low[0] = left - cut
                cell[_CHUNK] -= cut

    def stop(self) -> None:
        """End the slice before the next block."""
        self._stopped = True
        self._deadline = 0
        cell, low = self._cell, self._low
        cell[_CHUNK] -= low[0]
        low[0] = 0

    @property
    def spent(self) -> bool:
        """The running chunk's budget is used up: no further block will run in it."""
        return not self._low[0]

    @property
    def deadline(self) -> int:
        """When the running slice ends, in ns; 0 when it was stopped."""
        return self._deadline

    @property
    def blocks(self) -> int:
        """Blocks executed so far."""
        return int(self._units + self._cell[_CHUNK] - self._low[0])

    @property
    def tsc_reads(self) -> int:
        """RDTSC and RDTSCP executed so far."""
        return int(self._cell[_TSC_READS])

    def run(self, deadline_ns: int) -> StopReason:
        """Run one slice, up to this time. EngineError when emulation itself fails."""
        engine, cell, low, icount, q = self._engine, self._cell, self._low, self._icount, self.q
        engine.select(self._cpu)
        engine.running = self
        self._stopped = False
        self._deadline = deadline_ns
        while True:
            units = self._blocks_in(self._deadline - cell[_BASE])
            if units <= 0:
                break
            cell[_CHUNK] = icount[0] = units if units < MAX_CHUNK else MAX_CHUNK
            # cpu_exec takes all flags from the eflags word when it begins and puts them back when it ends
            q[reg.EFLAGS] = self.eflags()
            try:
                code = engine.start(q[reg.RIP])
            finally:
                used = cell[_CHUNK] - low[0]
                self._units += used
                cell[_BASE] += used * self._rate >> RATE_SHIFT
                cell[_CHUNK] = icount[0] = _EMPTY
            if engine.failure is not None:
                return StopReason.FAILED
            if code:
                raise EngineError(code, self.index, q[reg.RIP])
        return StopReason.STOPPED if self._stopped else StopReason.BUDGET

    # -- registers

    def eflags(self) -> int:
        """EFLAGS, all bits."""
        d = self.d
        if d[reg.CC_OP] == _CC_OP_EFLAGS:
            q = self.q
            return int(
                q[reg.EFLAGS] & ~_NOT_IN_EFLAGS
                | q[reg.CC_SRC] & reg.FLAGS_ARITHMETIC
                | d[reg.DF] & reg.FLAG_DF
            )
        return int(self._read_eflags(self._cpu.env))

    def set_eflags(self, value: int) -> None:
        """Set EFLAGS, all bits as given; bit 1 is always set."""
        q, d = self.q, self.d
        q[reg.CC_SRC] = value & reg.FLAGS_ARITHMETIC
        d[reg.CC_OP] = _CC_OP_EFLAGS
        d[reg.DF] = _MINUS_ONE if value & reg.FLAG_DF else 1
        q[reg.EFLAGS] = value & 0xFFFF_FFFF & ~_NOT_IN_EFLAGS | reg.FLAG_FIXED

    def single_step(self, on: bool) -> None:
        """Set or clear EFLAGS.TF: after each instruction the handler gets vector 1."""
        q = self.q
        q[reg.EFLAGS] = q[reg.EFLAGS] | reg.FLAG_TF if on else q[reg.EFLAGS] & ~reg.FLAG_TF

    def set_cs(self, selector: int, base: int, limit: int, flags: int) -> None:
        """Load CS and its cache, unchecked. CPL becomes the selector's RPL.

        `flags`: the descriptor's second word.
        """
        d = self.d
        d[reg.CS_SELECTOR] = selector
        self.q[reg.CS_BASE] = base
        d[reg.SEG_LIMIT[reg.CS]] = limit
        d[reg.CS_FLAGS] = flags
        hflags = d[reg.HFLAGS]
        if hflags & reg.HF_LMA and flags & reg.DESC_L:
            kept = hflags & ~(reg.HF_CPL | reg.HF_ADDSEG)
            d[reg.HFLAGS] = kept | reg.HF_CS64 | reg.HF_CS32 | reg.HF_SS32 | selector & reg.HF_CPL
        else:
            kept = hflags & ~(reg.HF_CPL | reg.HF_CS64 | reg.HF_CS32)
            d[reg.HFLAGS] = kept | (reg.HF_CS32 if flags & reg.DESC_B else 0) | selector & reg.HF_CPL
            self._data_hflags()

    def set_segment(self, index: int, selector: int, base: int, limit: int, flags: int) -> None:
        """Load another segment register (`machine.registers.ES` ... `TR`) and its cache, unchecked."""
        d = self.d
        d[reg.SEG_SELECTOR[index]] = selector
        self.q[reg.SEG_BASE[index]] = base
        d[reg.SEG_LIMIT[index]] = limit
        d[reg.SEG_FLAGS[index]] = flags
        if index <= reg.DS and not d[reg.HFLAGS] & reg.HF_CS64:
            self._data_hflags()

    def _data_hflags(self) -> None:
        # cpu_x86_load_seg_cache: stack size, and whether any data segment has a base
        q, d = self.q, self.d
        hflags = d[reg.HFLAGS] & ~(reg.HF_SS32 | reg.HF_ADDSEG)
        if d[reg.SS_FLAGS] & reg.DESC_B:
            hflags |= reg.HF_SS32
        if not hflags & reg.HF_CS32 or q[reg.DS_BASE] | q[reg.ES_BASE] | q[reg.SS_BASE]:
            hflags |= reg.HF_ADDSEG
        d[reg.HFLAGS] = hflags

    def set_mode(self, long: bool, cpl: int) -> None:
        """64-bit ring 3, or 32-bit PAE in ring `cpl`. Changes how tables are read: flushes both banks."""
        q, d = self.q, self.d
        hflags = d[reg.HFLAGS] & ~(reg.HF_CPL | reg.HF_ADDSEG) | reg.HF_CS32 | reg.HF_SS32 | cpl
        if long:
            q[reg.EFER] |= reg.EFER_LME | reg.EFER_LMA
            d[reg.HFLAGS] = hflags | reg.HF_LMA | reg.HF_CS64
        else:
            q[reg.EFER] &= ~(reg.EFER_LME | reg.EFER_LMA)
            d[reg.HFLAGS] = hflags & ~(reg.HF_LMA | reg.HF_CS64)
            self._data_hflags()
        self.flush()

    def open_ports(self, on: bool) -> None:
        """While open, port accesses in the kernel bank do not trap: nothing answers, so IN reads ones.

        Ports of the clock and of PCI configuration always raise #GP.
        """
        self._cell[CellWord.OPEN_PORTS] = on

    @property
    def native(self) -> int:
        """What the machine's native handler of system calls is given on this core; 0: it is not asked."""
        return int(self._cell[CellWord.NATIVE])

    @native.setter
    def native(self, word: int) -> None:
        self._cell[CellWord.NATIVE] = word

    def set_cr0_ts(self, on: bool) -> None:
        """CR0.TS: the next FPU or SSE instruction raises #NM."""
        q, d = self.q, self.d
        if on:
            q[reg.CR0] |= reg.CR0_TS
            d[reg.HFLAGS] |= reg.HF_TS
        else:
            q[reg.CR0] &= ~reg.CR0_TS
            d[reg.HFLAGS] &= ~reg.HF_TS

    def set_breakpoints(self, addresses: tuple[int, int, int, int], control: int) -> None:
        """DR0 to DR3 and DR7; execution breakpoints then raise vector 1."""
        self.q[reg.DR0 : reg.DR4] = memoryview(bytes(_FOUR_WORDS.pack(*addresses))).cast("Q")
        self._engine.library.dll.cpu_x86_update_dr7_x86_64(self._cpu.env, control)

    def restore_fpu(self, paddr: int) -> None:
        """Take FPU and SSE state from an FXSAVE image at a machine address (aligned, within one frame)."""
        self.enter_mapping(_FPU_WINDOW, paddr, writable=False)
        self._engine.library.dll.helper_fxrstor_x86_64(self._cpu.env, _FPU_WINDOW | paddr & FRAME_SIZE - 1)
        self.flush_page(_FPU_WINDOW)

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """eax, ebx, ecx, edx of the emulated model, before any policy."""
        return self._engine.cpuid(self._cpu, leaf, subleaf)

    def save(self) -> bytes:
        """The architectural state: registers, FPU, SSE, control registers. Neither TLBs nor time."""
        return bytes(self.q[: reg.STATE_SIZE // 8])

    def load(self, state: bytes) -> None:
        """Take over a saved state; flushes both banks. ValueError when it is not one."""
        if len(state) != reg.STATE_SIZE:
            raise ValueError(f"a core's state is {reg.STATE_SIZE} bytes, not {len(state)}")
        self.q[: reg.STATE_SIZE // 8] = memoryview(state).cast("Q")
        self.flush()

    # -- translation

    def load_root(self, paddr: int) -> None:
        """Load CR3; flushes both banks."""
        self.q[reg.CR3] = paddr
        self._parked_empty = True
        self.flushes += 1
        self._flush(self._address)

    def switch_bank(self, paddr: int, bank: int) -> None:
        """The toggle: make `bank` (0 kernel, 1 user) the live TLB and `paddr` the root; flushes nothing.

        The parked bank keeps its entries: whoever changes the root that belongs to it must flush it.
        """
        if bank == self._bank:
            self.q[reg.CR3] = paddr
        else:
            self._bank = bank
            self._parked_empty = False
            self.bank_switches += 1
            self._switch_bank(self._address, paddr, bank)

    @property
    def bank(self) -> int:
        """The live bank."""
        return self._bank

    def flush_parked(self) -> None:
        """Flush the bank not in use; nothing to do when it has not been live since both were flushed."""
        if not self._parked_empty:
            self._parked_empty = True
            self.flushes += 1
            self._flush_modes(self._address, 1 << MMU_PARKED)

    def flush(self) -> None:
        """Flush both banks."""
        self._parked_empty = True
        self.flushes += 1
        self._flush(self._address)

    def flush_page(self, va: int) -> None:
        """Flush one page from both banks."""
        self.page_flushes += 1
        self._flush_page(self._address, va)

    def flush_frame(self, mfn: int) -> bool:
        """Drop every translation to a frame from both banks, whatever pages show it.

        False, and nothing done, when the frame may hold translated code: then a whole flush is needed.
        """
        if self._flush_frame(self._address, mfn << 12):
            return False
        self.frame_flushes += 1
        return True

    def retire(self) -> None:
        """The engine is gone: registers stay readable, everything about translation raises RuntimeError."""
        self._flush = self._flush_page = self._flush_modes = self._set_page = _gone
        self._switch_bank = self._flush_frame = _gone

    def enter_mapping(self, va: int, paddr: int, writable: bool) -> None:
        """Put one 4 KiB translation into the live TLB, whatever the tables say; `flush_page` takes it out."""
        mode = MMU_USER if self.d[reg.HFLAGS] & reg.HF_CPL == 3 else MMU_KERNEL
        protection = _PAGE_READ | _PAGE_EXEC | (_PAGE_WRITE if writable else 0)
        mask = -FRAME_SIZE
        self._engine.reach(self._cpu)
        self._set_page(self._address, va & mask & (1 << 64) - 1, paddr & mask, protection, mode, FRAME_SIZE)


def _gone(*_: int) -> NoReturn:
    raise RuntimeError("the machine is closed")
