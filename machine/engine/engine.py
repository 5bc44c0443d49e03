"""Engine: one Unicorn object with a CPU state per logical CPU over one piece of guest memory."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from machine import registers as reg

from . import library as lib
from .cpu import CpuState
from .errors import UnsupportedEngine
from .hooks import Hooks
from .interpose import Interposer, interposer
from .layout import BLOCK_COUNT, BLOCK_EPOCH_SHIFT, BLOCK_WORDS, Layout, SharedWord
from .library import library, peek, poke
from .selftest import cpuid, no_exit_request, verify

SUPPORTED_VERSION = (2, 1, 4)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Levers, all on by default, and the layout; tests turn them off to show what each is for.

    `coherence`: stores into frames that hold translated code are always seen (off: wrong code runs).
    `eager`: TLB entries of frames without code are fast from the first store.
    `native`: native handlers of the firmware's are asked first.
    `blocks`: the next block is looked for in a cache of the machine's own first.
    `degraded`: do without interposition, as on builds that do not allow it.
    """

    coherence: bool = True
    eager: bool = True
    native: bool = True
    blocks: bool = True
    degraded: bool = False
    layout: Layout = field(default_factory=Layout)


class Engine:
    """The only owner of the Unicorn object.

    `running` is the core whose slice is on (set by Core); `failure` what a callback raised. `degraded` says
    why the engine works without interposition, or is empty. `time` is a word, the virtual ns that the library
    sees (TLB sizes depend on it).
    """

    def __init__(
        self,
        memory: tuple[int, int],
        code_map: int,
        cores: int,
        options: EngineOptions,
        hash_blocks: bool = False,
    ) -> None:
        self.library = library()
        if self.library.version != SUPPORTED_VERSION:
            raise UnsupportedEngine(f"unicorn {'.'.join(map(str, self.library.version))}")
        self.options = options
        self._layout = layout = options.layout
        self._interposer: Interposer = interposer(self.library, layout)
        self.stubs = self._interposer.stubs
        self.degraded = "asked for" if options.degraded else self._interposer.missing
        self.lean = not self.degraded
        self.watch_stores = bool(self.degraded) and options.coherence
        self.running: Any = None
        self.failure: BaseException | None = None
        self.callback_ns = 0
        self.time = self._interposer.time
        self.memory_size = memory[1]
        self._check = "hash_check" if hash_blocks else "check"
        self._shared = (ctypes.c_uint64 * (SharedWord.FIRST_CPU + cores))()
        self.shared = memoryview(self._shared).cast("B").cast("Q")
        self.uc = self._open(memory)
        try:
            self._template = template = verify(self.library, layout, self.uc)
        except UnsupportedEngine:
            self._give_back()
            raise
        if not self.degraded:
            self._interposer.install()
        address = ctypes.addressof(self._shared)
        self.cpus = tuple(CpuState(self.library, layout, template, i, address) for i in range(cores))
        self.shared[SharedWord.RAM] = memory[0]
        self.shared[SharedWord.FRAMES] = memory[1] >> 12
        self.shared[SharedWord.CODE] = code_map
        self.shared[SharedWord.COHERENT] = int(self.lean and options.coherence)
        self.shared[SharedWord.EAGER] = int(self.lean and options.eager)
        self._blocks = self._open_blocks(peek(self.uc + layout.tcg_context))
        self._slot = lib.view(self.uc + layout.cpu_slot, 8).cast("Q")
        self.current: CpuState | None = None
        self.hooks = Hooks(self)
        dll = self.library.dll
        self._mmuidx: Callable[[int, int], None] = dll.tlb_flush_by_mmuidx_x86_64
        self.switch_bank: Callable[[int, int, int], None] = ctypes.PYFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64
        )(self.stubs.entry["switch_bank"])
        self.flush_frame: Callable[[int, int], int] = ctypes.PYFUNCTYPE(
            ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64
        )(self.stubs.entry["flush_frame"])
        self._start = dll.uc_emu_start
        self.select(self.cpus[0])

    def _open(self, memory: tuple[int, int]) -> int:
        dll = self.library.dll
        handle = ctypes.c_void_p()
        opening: AbstractContextManager[None] = nullcontext()
        if not self.degraded:
            opening = self._interposer.opening(self._check)
        with opening:
            if code := dll.uc_open(lib.ARCH_X86, lib.MODE_64, ctypes.byref(handle)):
                raise UnsupportedEngine(f"uc_open: error {code}")
            uc = handle.value
            assert uc is not None
            poke_byte = ctypes.c_uint8.from_address(uc + no_exit_request(self.library))
            if poke_byte.value:
                raise UnsupportedEngine("no_exit_request is set in a new Uc")
            poke_byte.value = 1
            for control, value in ((lib.CTL_CPU_MODEL, lib.CPU_X86_NEHALEM), (lib.CTL_USE_EXITS, 1)):
                if code := dll.uc_ctl(
                    ctypes.c_void_p(uc), ctypes.c_int(control | lib.CTL_WRITE_ONE), ctypes.c_int(value)
                ):
                    raise UnsupportedEngine(f"uc_ctl {control}: error {code}")
            if code := dll.uc_mem_map_ptr(uc, 0, memory[1], lib.PROT_ALL, memory[0]):
                raise UnsupportedEngine(f"uc_mem_map_ptr: error {code}")
        self._interposer.opened(1)
        return uc

    def _open_blocks(self, tcg: int) -> mmap.mmap:
        blocks = mmap.mmap(-1, 8 * BLOCK_WORDS * BLOCK_COUNT)
        shared = self.shared
        shared[SharedWord.BLOCKS] = ctypes.addressof(ctypes.c_char.from_buffer(blocks))
        shared[SharedWord.BLOCK_CODE] = peek(tcg + self._layout.tcg_buffer)
        shared[SharedWord.BLOCK_EPOCH] = 1 << BLOCK_EPOCH_SHIFT
        shared[SharedWord.TCG] = tcg
        if self.lean and self.options.blocks:
            shared[SharedWord.BLOCK_STATE] = reg.HF_OSFXSR | 3
        return blocks

    def translating(self) -> AbstractContextManager[None]:
        """To be held while emulation may run."""
        return nullcontext() if self.degraded else self._interposer.translating(self._check)

    def native_syscall(self, source: str, values: Mapping[str, int]) -> None:
        """Have this native code asked first at a SYSCALL in the kernel bank, on cores that have a word for
        it. It is given the register file (rdi) and the word (rsi), and may change rax, rcx, rdx, rsi and r8
        to r11. In eax it returns 1 when the call is done, else 0, and nothing has changed.
        """
        self.shared[SharedWord.NATIVE_SYSCALL] = self.stubs.add(source, values)

    def select(self, cpu: CpuState) -> None:
        """Make this CPU state the one that runs; drops its jump cache, which others do not reach."""
        if cpu is not self.current:
            if not cpu.reached:
                self.reach(cpu)
            self._slot[0] = cpu.address
            self._mmuidx(cpu.address, 0)
            self.current = cpu

    def reach(self, cpu: CpuState) -> None:
        """Its TLBs may hold something from now on: a frame that becomes code is looked for in them too."""
        if not cpu.reached:
            cpu.reached = True
            count = self.shared[SharedWord.CPUS]
            self.shared[SharedWord.FIRST_CPU + count] = cpu.address
            self.shared[SharedWord.CPUS] = count + 1

    def start(self, rip: int) -> int:
        """Emulate the selected CPU until its budget is used up; a uc_err."""
        code: int = self._start(self.uc, rip, 0, 0, 0)
        return code

    def invalidate(self, begin: int, end: int) -> None:
        """Drop translations of guest-physical memory [begin, end)."""
        self.library.dll.tb_invalidate_phys_range_x86_64(self.uc, begin, end)

    def cpuid(self, cpu: CpuState, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        return cpuid(self.library, cpu.env, leaf, subleaf)

    def failed(self, failure: BaseException) -> None:
        """A callback raised: keep the first failure, end the slice."""
        if self.failure is None:
            self.failure = failure
        self.running.stop()

    def close(self) -> None:
        """Give everything back. The register views of the cores stay readable."""
        if not self.uc:
            return
        poke(self.uc + self._layout.cpu_slot, self._template)
        for cpu in self.cpus:
            cpu.release()
        self._give_back()

    def _give_back(self) -> None:
        self.library.dll.uc_close(self.uc)
        self.uc = 0
        self._interposer.opened(-1)
