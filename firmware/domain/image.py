"""A kernel image of a PV guest, recognised, unpacked and checked: what the builder needs to start it.

Source: Xen's public elfnote.h for what the notes mean, and the checks Xen 4.17's loader makes. A file that
cannot be started raises ImageError, which names it and says why in one sentence.
"""
from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from firmware.abi import features
from firmware.domain import kallsyms
from firmware.domain.elf import ElfFile
from firmware.domain.errors import BadImageError, ImageError
from firmware.domain.notes import PAE_NO, Notes, read_notes
from firmware.domain.unpack import kernel_of

__all__ = ["ImageError", "KernelImage", "Segment", "load_image", "parse_image", "read_image"]

LARGEST_FILE: Final = 1 << 30
"""Bytes of the largest file read as a kernel."""
LOADER: Final = "generic"
LINUX: Final = "linux"
XEN_VERSION: Final = "xen-3.0"
"""What a kernel's notes must say, as prefixes: the loader (or that it is Linux), and the interface."""
IMPOSSIBLE_FEATURES: Final = (
    features.XENFEAT_auto_translated_physmap,
    features.XENFEAT_supervisor_mode_kernel,
    features.XENFEAT_dom0,
)
"""Features an unprivileged PV guest is never given, so a kernel that requires one cannot run."""
FARTHEST_SYMBOL: Final = 1 << 20
"""Bytes after a symbol that are still told as part of it."""


@dataclass(frozen=True)
class Segment:
    """A piece of the kernel: where it goes in the guest's pseudo-physical memory and where it is mapped.

    `memsz` bytes belong to it; those beyond `data` are zero.
    """

    paddr: int
    vaddr: int
    data: memoryview
    memsz: int


@dataclass(frozen=True)
class KernelImage:
    """A PV kernel ready to be built into a domain. Addresses are virtual unless they say otherwise.

    `hypercall_page`, `init_p2m` and `hv_start_low` are None where the kernel does not name them. Features are
    masks of XENFEAT bits. `virt_start` to `virt_end` is what its segments cover.
    """

    path: str
    width: int
    segments: tuple[Segment, ...]
    entry: int
    virt_base: int
    virt_start: int
    virt_end: int
    paddr_offset: int
    hypercall_page: int | None
    init_p2m: int | None
    hv_start_low: int | None
    features_supported: int
    features_required: int
    pae: str
    loader: str
    guest_os: str
    guest_version: str
    xen_version: str
    mod_start_pfn: bool
    bsd_symtab: bool
    suspend_cancel: bool
    l1_mfn_valid: bytes
    find_symbols: Callable[[], Sequence[tuple[int, str]]] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(self.path).name

    def released(self) -> KernelImage:
        """The same without the kernel's bytes, for a domain that is built; symbols are read again."""
        segments = tuple(replace(segment, data=memoryview(b"")) for segment in self.segments)
        path = self.path
        return replace(self, segments=segments, find_symbols=lambda: _symbols_of_file(path))

    @cached_property
    def _symbols(self) -> tuple[list[int], list[str]]:
        found = self.find_symbols()
        return [address for address, _ in found], [name for _, name in found]

    def symbol(self, address: int) -> str | None:
        """`name+0x1f` for an address in the kernel's code; None elsewhere, and without symbols."""
        if not self.virt_start <= address < self.virt_end:
            return None
        addresses, names = self._symbols
        index = bisect_right(addresses, address) - 1
        if index < 0 or not names[index] or address - addresses[index] >= FARTHEST_SYMBOL:
            return None
        return f"{names[index]}+{address - addresses[index]:#x}"


def read_image(path: str | Path) -> bytes:
    """The bytes of a kernel file. Raises ImageError if it cannot be read, is empty or far too large."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise ImageError(str(path), "it is a folder: give the path of a kernel file")
        if size > LARGEST_FILE:
            most = LARGEST_FILE >> 20
            raise ImageError(str(path), f"it has {size >> 20} MiB, and no kernel is larger than {most}")
        if not path.is_file():
            raise ImageError(str(path), "it is a device or a pipe: give the path of a kernel file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(str(path), "there is no such file: check the path") from None
    except PermissionError:
        raise ImageError(str(path), "it may not be read: check its permissions") from None
    except (OSError, ValueError) as error:
        raise ImageError(str(path), f"it cannot be read ({error}): check the path") from None
    if not data:
        raise ImageError(str(path), "it is empty: give a kernel file")
    return data


def load_image(path: str | Path) -> KernelImage:
    """Read and parse a kernel file."""
    return parse_image(read_image(path), str(path))


def parse_image(data: bytes, path: str) -> KernelImage:
    """The kernel in `data`; `path` is for messages."""
    try:
        elf = ElfFile(kernel_of(data))
        return _kernel(elf, read_notes(elf), path)
    except BadImageError as error:
        raise ImageError(path, str(error)) from None


def _kernel(elf: ElfFile, notes: Notes, path: str) -> KernelImage:
    _check_notes(elf, notes)
    base = notes.virt_base or 0
    offset = notes.paddr_offset
    if offset is None:
        offset = base if notes.legacy else 0
    contents = memoryview(elf.data)
    segments = tuple(
        Segment(place, place + base, contents[row.offset : row.offset + row.filesz], row.memsz)
        for row in elf.loads
        for place in (row.paddr - offset,)
    )
    start = segments[0].vaddr
    end = segments[-1].vaddr + segments[-1].memsz
    entry = elf.entry if notes.entry is None else notes.entry
    if segments[0].paddr < 0 or end > elf.address_limit:
        raise BadImageError(f"its segments lie outside the memory that starts at its VIRT_BASE {base:#x}")
    if not start <= entry < end:
        raise BadImageError(f"its entry point {entry:#x} is outside the kernel ({start:#x} to {end:#x})")
    if notes.init_p2m is not None and start <= notes.init_p2m < end:
        raise BadImageError(f"its INIT_P2M address {notes.init_p2m:#x} is inside the kernel")
    if notes.hypercall_page is not None and not start <= notes.hypercall_page <= end - 4096:
        raise BadImageError(f"its hypercall page {notes.hypercall_page:#x} is outside the kernel")
    return KernelImage(
        path, elf.width, segments, entry, base, start, end, offset, notes.hypercall_page, notes.init_p2m,
        notes.hv_start_low, notes.features_supported, notes.features_required, notes.pae, notes.loader,
        notes.guest_os, notes.guest_version, notes.xen_version, notes.mod_start_pfn, notes.bsd_symtab,
        bool(notes.suspend_cancel), notes.l1_mfn_valid, lambda: _symbols(elf, segments, start, end),
    )


def _symbols(elf: ElfFile, segments: Sequence[Segment], start: int, end: int) -> Sequence[tuple[int, str]]:
    """Of the symbol table, or of the tables a stripped Linux has in its first segment."""
    return elf.symbols() or (kallsyms.symbols(segments[0].data, start, end) if elf.width == 64 else ())


def _symbols_of_file(path: str) -> Sequence[tuple[int, str]]:
    try:
        return load_image(path).find_symbols()
    except ImageError:
        return ()


def _check_notes(elf: ElfFile, notes: Notes) -> None:
    if notes.phys32_entry is not None and not notes.xen_version and not notes.loader and not notes.guest_os:
        raise BadImageError("it is a PVH kernel without a PV entry: only PV kernels can be started")
    if not notes.loader.startswith(LOADER) and not notes.guest_os.startswith(LINUX):
        raise BadImageError(f"its notes name the loader {notes.loader!r}, and only {LOADER!r} is known")
    if not notes.xen_version.startswith(XEN_VERSION):
        raise BadImageError(f"it is for the interface {notes.xen_version!r}, not for {XEN_VERSION!r}")
    if notes.paddr_offset is not None and notes.virt_base is None:
        raise BadImageError("its notes give a PADDR_OFFSET without a VIRT_BASE")
    if elf.width == 32 and notes.pae == PAE_NO:
        raise BadImageError("it is a 32-bit kernel without PAE, which a 64-bit Xen cannot run")
    for bit in IMPOSSIBLE_FEATURES:
        if notes.features_required >> bit & 1:
            name = next(key for key, value in features.NAMES.items() if value == bit)
            raise BadImageError(f"it requires the feature {name}, which a PV guest does not get")
