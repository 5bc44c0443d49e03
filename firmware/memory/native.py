"""What kernels do most, natively: a single new entry of an L1 table (`native.s`).

A fault that Linux answers by mapping sixteen pages at once makes sixteen such hypercalls. The native path
does what `Mmu.mmu_update` would do, with the same result in the same virtual time, or leaves the call to it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, Final, Protocol

from firmware.abi import xen
from firmware.memory import pte
from firmware.memory.frames import COUNT_LIMIT, ONE, VALID_MASK, FrameTable
from firmware.memory.guest import HYPERVISOR_END
from firmware.memory.mmu import L1_VALIDATED, MODE_MASK, UPDATE_SIZE
from firmware.memory.owner import MemoryOwner
from firmware.memory.types import WRITABLE_VALIDATED
from firmware.memory.update import KERNEL_USER

PAGE: Final = 4096
TRAP_FLAG: Final = 1 << 8
"""EFLAGS.TF: the guest steps itself, or a store to a page table is under way."""
WORDS: Final = ("INFO", "TAG", "RAM", "FRAMES", "OWNERS", "TYPES", "COUNTS", "CODE", "DONE")
"""What the native code is told of a vCPU: machine address of its vcpu_info, its owner's tag; host addresses
and size of the machine's arrays; host address of the count of calls done.
"""
INFO: Final = WORDS.index("INFO")
VALUES: Final[Mapping[str, int]] = {
    "MMU_UPDATE": xen.__HYPERVISOR_mmu_update,
    "DOMID_SELF": xen.DOMID_SELF,
    "TRAP_FLAG": TRAP_FLAG,
    "HYPERVISOR_END": HYPERVISOR_END,
    "LAST_REQUEST": PAGE - UPDATE_SIZE,
    "MODE_MASK": MODE_MASK,
    "ONE": ONE,
    "COUNT_ROOM": COUNT_LIMIT - ONE,
    "VALID_MASK": VALID_MASK,
    "L1_VALIDATED": L1_VALIDATED,
    "WRITABLE_VALIDATED": WRITABLE_VALIDATED,
    "PRESENT": pte.PRESENT,
    "RW": pte.RW,
    "USER": pte.USER,
    "GLOBAL": pte.GLOBAL,
    "L1_DISALLOWED": pte.L1_DISALLOWED,
    "KERNEL_USER": KERNEL_USER,
    "GUEST_KERNEL_BIT": pte.GUEST_KERNEL.bit_length() - 1,
} | {name: 8 * index for index, name in enumerate(WORDS)}


class HostMemory(Protocol):
    """Machine memory as the host sees it: where it lies, and the map of frames with code."""

    address: int
    code_address: int


class NativeVCpu(Protocol):
    """A vCPU. `native`: its WORDS, once it has been on a core."""

    pv32: bool
    info: int
    native: Any

    @property
    def domain(self) -> NativeDomain: ...


class NativeDomain(Protocol):
    """Its domain."""

    @property
    def memory(self) -> MemoryOwner: ...


class NativeCore(Protocol):
    """A logical CPU: what the native code is given when it runs there, 0 for nobody."""

    native: int


class NativeUpdates:
    """The words of vCPUs, and which core is given which. `install` hands the code to the machine and says
    whether it takes such code at all. `done`: calls carried out natively.
    """

    __slots__ = ("_common", "_done", "_on")

    def __init__(
        self, install: Callable[[str, Mapping[str, int]], bool], memory: HostMemory, frames: FrameTable
    ) -> None:
        source = files(__package__).joinpath("native.s").read_text(encoding="ascii")
        self._on = install(source, VALUES)
        self._done = ctypes.c_uint64()
        arrays = (frames.owner_array, frames.type_array, frames.count_array)
        self._common = (
            memory.address,
            frames.size,
            *(array.ctypes.data for array in arrays),
            memory.code_address,
            ctypes.addressof(self._done),
        )

    @property
    def done(self) -> int:
        """Calls carried out so far."""
        return self._done.value

    def serve(self, vcpu: NativeVCpu, core: NativeCore) -> None:
        """The vCPU was just loaded on a core; only 64-bit ones are served."""
        if not self._on:
            return
        if vcpu.pv32:
            core.native = 0
            return
        if vcpu.native is None:
            tag = vcpu.domain.memory.tag
            vcpu.native = (ctypes.c_uint64 * len(WORDS))(vcpu.info, tag, *self._common)
        core.native = ctypes.addressof(vcpu.native)
