"""What the machine's tests share: an assembler, page tables, a handler that records traps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from machine import Core, EngineOptions, Machine, MachineConfig, RunEnd, Topology
from machine import registers as reg
from machine.paging import ADDRESS_MASK, LEVEL_SHIFTS, PAE_SHIFTS, PAGE_NX, PAGE_PRESENT, PAGE_RW, PAGE_USER

CODE = 0x400000
DATA = 0x500000
STACK_TOP = 0x700000
RWX = PAGE_PRESENT | PAGE_RW | PAGE_USER
RW_NX = RWX | PAGE_NX
DONE = 0x90  # int DONE ends a program
SECOND = 1_000_000_000


@cache
def _assembler(bits: int) -> Any:
    from keystone import KS_ARCH_X86, KS_MODE_32, KS_MODE_64, Ks

    return Ks(KS_ARCH_X86, KS_MODE_64 if bits == 64 else KS_MODE_32)


@cache
def asm(source: str, at: int = CODE, bits: int = 64) -> bytes:
    encoded, _ = _assembler(bits).asm(source, at, as_bytes=True)
    return bytes(encoded)


class Tables:
    """Page tables in machine memory, allocated upward from `base`."""

    def __init__(self, machine: Machine, base: int, pae: bool = False) -> None:
        self.memory = machine.memory
        self._next = base
        self._shifts = PAE_SHIFTS if pae else LEVEL_SHIFTS
        self._pae = pae
        self.root = self._allocate()

    def _allocate(self) -> int:
        table = self._next
        self._next += 4096
        return table

    def slot(self, va: int) -> int:
        table = self.root
        for level, shift in enumerate(self._shifts[:-1]):
            at = table + (va >> shift & 511) * 8
            entry = self.memory.q[at >> 3]
            if not entry & PAGE_PRESENT:
                rights = PAGE_PRESENT if self._pae and level == 0 else RWX
                entry = self._allocate() | rights
                self.memory.store64(at, entry)
            table = entry & ADDRESS_MASK
        return table + (va >> 12 & 511) * 8

    def map(self, va: int, paddr: int, flags: int = RWX) -> None:
        self.memory.store64(self.slot(va), paddr | flags)

    def unmap(self, va: int) -> None:
        self.memory.store64(self.slot(va), 0)


class Recorder:
    """Records traps as tuples; `int DONE` makes the core idle. `on[vector](core)` may mend the cause."""

    def __init__(self) -> None:
        self.traps: list[tuple[Any, ...]] = []
        self.on: dict[int | str, Callable[[Core], None]] = {}
        self.slice_ns: int = 10 * SECOND
        self.finished: set[int] = set()

    def dispatch(self, core: Core) -> int | None:
        return None if core.index in self.finished else self.slice_ns

    def _mend(self, core: Core, what: int | str) -> None:
        if what in self.on:
            self.on[what](core)
        else:
            self.finished.add(core.index)
            core.stop()

    def syscall(self, core: Core) -> None:
        self.traps.append(("syscall", core.q[reg.RIP]))
        self._mend(core, "syscall")

    def exception(self, core: Core, vector: int, error: int, software: bool) -> None:
        if vector == DONE and software:
            self.finished.add(core.index)
            core.stop()
            return
        self.traps.append((vector, error, software, core.q[reg.RIP]))
        self._mend(core, vector)

    def cpuid(self, core: Core) -> None:
        self.traps.append(("cpuid", core.q[reg.RIP]))
        self._mend(core, "cpuid")


def machine(
    cores: int = 1, memory: int = 64 << 20, topology: Topology | None = None, **config: Any
) -> Machine:
    return Machine(MachineConfig(topology=topology or Topology(1, cores, 1), memory=memory, **config))


def degraded() -> EngineOptions:
    return EngineOptions(degraded=True)


class Rig:
    """A machine whose cores run `source` at CODE, with some stack, in 64-bit ring 3."""

    def __init__(self, source: str | bytes, cores: int = 1, memory: int = 64 << 20, **config: Any) -> None:
        self.machine = machine(cores, memory, **config)
        self.handler = Recorder()
        self.tables = Tables(self.machine, 0x100000)
        code = source if isinstance(source, bytes) else asm(source)
        self.machine.memory.write(0x200000, code)
        for page in range(0, len(code), 4096):
            self.tables.map(CODE + page, 0x200000 + page)
        for page in range(4):
            self.tables.map(STACK_TOP - 4096 * (page + 1), 0x280000 + 4096 * page, RW_NX)
        for core in self.machine.cores:
            core.handler = self.handler
            core.load_root(self.tables.root)
            core.q[reg.RIP] = CODE
            core.q[reg.RSP] = STACK_TOP - 64

    @property
    def core(self) -> Core:
        return self.machine.cores[0]

    def run(self, **arguments: Any) -> RunEnd:
        return self.machine.run(**arguments)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.close()
