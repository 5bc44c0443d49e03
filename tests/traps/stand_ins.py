"""A core and a vCPU with nothing behind them, for the emulation of single instructions."""

from __future__ import annotations

from dataclasses import dataclass, field

from firmware.hypercalls import GuestFault
from machine import registers as reg
from machine.registers import FILE_SIZE

CODE = 0x40_0000
DATA = 0x50_0000


class StandInCore:
    """Registers and a clock."""

    def __init__(self, bits: int = 64) -> None:
        self._file = bytearray(FILE_SIZE)
        self.q = memoryview(self._file).cast("Q")
        self.d = memoryview(self._file).cast("I")
        self.time = 0
        self.flags = 0x202
        self.ts: list[bool] = []
        self.ports_open = False
        self.d[reg.CS_FLAGS] = reg.DESC_L if bits == 64 else reg.DESC_B
        self.q[reg.RIP] = CODE
        self.q[reg.CR0] = 0x8005_0033

    def now(self) -> int:
        return self.time

    def charge(self, ns: int) -> None:
        self.time += ns

    def eflags(self) -> int:
        return self.flags

    def set_cr0_ts(self, on: bool) -> None:
        self.ts.append(on)

    def open_ports(self, on: bool) -> None:
        self.ports_open = on

    def cpuid(self, leaf: int, sub: int) -> tuple[int, int, int, int]:
        return (0x106A3, 0x800, 0, 0) if leaf == 1 else (0xB, 0, 0, 0)


class StandInSpace:
    """A few mapped pages."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {CODE >> 12: bytearray(4096), DATA >> 12: bytearray(4096)}
        self.root = 0x12_3000

    def read(self, va: int, length: int) -> bytes:
        return bytes(self._page(address)[address & 4095] for address in range(va, va + length))

    def write(self, va: int, data: bytes) -> None:
        for address in range(va, va + len(data)):
            self._page(address)
        for offset, byte in enumerate(data):
            self._page(va + offset)[va + offset & 4095] = byte

    def _page(self, address: int) -> bytearray:
        page = self.pages.get(address >> 12)
        if page is None:
            raise GuestFault(address)
        return page


@dataclass
class StandInTrap:
    address: int = 0x1000


@dataclass
class StandInDomain:
    id: int = 1
    pv32: bool = False
    vm_assist: int = 0


@dataclass
class StandInVCpu:
    core: StandInCore
    id: int = 0
    domain: StandInDomain = field(default_factory=StandInDomain)
    space: StandInSpace = field(default_factory=StandInSpace)
    traps: list[StandInTrap] = field(default_factory=lambda: [StandInTrap() for _ in range(256)])
    gs_shadow: int = 0
    in_kernel: bool = True
    cr0_ts: bool = False
    cr4: int = 0
    debugreg: list[int] = field(default_factory=lambda: [0] * 8)
    dr7_emul: int = 0
    iopl: int = 0

    def read_here(self, address: int, length: int) -> bytes:
        return self.space.read(address, length)
