"""What this floor needs of the things above and below it: owners of memory, vCPUs, domains, cores, machine
memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from firmware.memory.guest import GuestSpace

DOMID_IO: Final = 0x7FF1
DOMID_XEN: Final = 0x7FF2
DOMID_COW: Final = 0x7FF3
"""Reserved domain ids (xen.h); here owners of frames, before any domain exists."""


MAX_GRANT_FRAMES: Final = 64
MAX_MAPTRACK_FRAMES: Final = 1024
MAX_GRANT_VERSION: Final = 2
"""What Xen allows every domain when its command line says nothing (gnttab_max_frames,
gnttab_max_maptrack_frames and gnttab=max-ver of xen-command-line).
"""


class MachineMemory(Protocol):
    """Machine memory as `machine.memory` offers it: read-only views, and the one writer."""

    size: int
    frames: int
    q: memoryview
    d: memoryview
    b: memoryview
    words: Any

    def write(self, paddr: int, data: bytes | memoryview) -> None: ...
    def store64(self, paddr: int, value: int) -> None: ...
    def store32(self, paddr: int, value: int) -> None: ...
    def store8(self, paddr: int, value: int) -> None: ...
    def fill(self, paddr: int, length: int, byte: int = 0) -> None: ...
    def copy_frame(self, dst_mfn: int, src_mfn: int) -> None: ...
    def read(self, paddr: int, length: int) -> bytes: ...


class Core(Protocol):
    """What this floor uses of a logical CPU."""

    index: int

    def load_root(self, paddr: int) -> None: ...
    def flush_parked(self) -> None: ...
    def flush(self) -> None: ...
    def flush_page(self, va: int) -> None: ...
    def flush_frame(self, mfn: int) -> bool: ...
    def enter_mapping(self, va: int, paddr: int, writable: bool) -> None: ...
    def eflags(self) -> int: ...
    def single_step(self, on: bool) -> None: ...
    def save(self) -> bytes: ...
    def load(self, state: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class GrantLimits:
    """What a domain's grant table may grow to, as its creator says (XEN_DOMCTL_createdomain; the keys
    `max_grant_frames`, `max_maptrack_frames` and `max_grant_version` of xl.cfg). ValueError for what Xen
    refuses.
    """

    frames: int = MAX_GRANT_FRAMES
    """Frames of the table, at least 1."""
    maptrack_frames: int = MAX_MAPTRACK_FRAMES
    """Frames that record mappings of other domains' grants, 256 each; 0: it can map none."""
    version: int = MAX_GRANT_VERSION
    """The highest layout."""

    def __post_init__(self) -> None:
        for name, value, lowest, highest in (
            ("max_grant_frames", self.frames, 1, MAX_GRANT_FRAMES),
            ("max_maptrack_frames", self.maptrack_frames, 0, MAX_MAPTRACK_FRAMES),
            ("max_grant_version", self.version, 1, MAX_GRANT_VERSION),
        ):
            if not lowest <= value <= highest:
                raise ValueError(f"{name} is {lowest} to {highest}, not {value}")


DEFAULT_GRANTS: Final = GrantLimits()


class MemoryOwner:
    """A domain as the owner of frames: its tag in the frame table, its allowance, and the cores it may have
    touched.
    """

    __slots__ = (
        "compat_entries",
        "cores",
        "dying",
        "generation",
        "grants",
        "id",
        "m2p_strict",
        "maximum",
        "pages",
        "perdomain_entry",
        "pv32",
        "tag",
        "vcpus",
        "xen_pages",
    )

    def __init__(
        self,
        domid: int,
        *,
        pv32: bool = False,
        maximum: int = 0,
        vcpus: int = 1,
        grants: GrantLimits = DEFAULT_GRANTS,
    ) -> None:
        self.id = domid
        self.tag = domid + 1
        self.pv32 = pv32
        self.pages = 0
        self.maximum = maximum
        self.xen_pages = 0
        self.vcpus = vcpus
        self.grants = grants
        self.dying = False
        self.cores: list[Core] = []
        self.generation = 0
        self.perdomain_entry = 0
        self.compat_entries: tuple[tuple[int, int], ...] = ()
        self.m2p_strict = False

    def __repr__(self) -> str:
        return f"MemoryOwner({self.id}, pages={self.pages}/{self.maximum})"


class Domain(Protocol):
    """A domain as the memory hypercalls see it."""

    id: int
    pv32: bool
    vm_assist: int
    shared_info: int
    """Machine address of its shared_info page."""

    @property
    def memory(self) -> MemoryOwner: ...
    @property
    def vcpus(self) -> Sequence[VCpu | None]: ...


class VCpu(Protocol):
    """A vCPU as the memory hypercalls see it. Roots are frame numbers; a user root of 0 means none."""

    id: int
    in_kernel: bool
    kernel_root: int
    user_root: int
    gdt_frames: list[int]
    gdt_entries: int
    ldt_base: int
    ldt_entries: int

    @property
    def domain(self) -> Domain: ...
    @property
    def core(self) -> Core: ...
    @property
    def space(self) -> GuestSpace: ...
    def load_ldt(self) -> None:
        """Bring the core's LDTR in line with `ldt_entries` (the LDT lies at its fixed per-domain address)."""

    def restart(self, *arguments: int) -> None:
        """The current hypercall is to run again with these arguments (its registers, or its multicall
        entry).
        """


class Domains(Protocol):
    """The domains of the machine, by id."""

    def by_id(self, domid: int) -> Domain | None: ...
