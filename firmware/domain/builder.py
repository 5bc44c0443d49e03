"""Build a PV domain's initial memory as Xen's tools do, so that its first vCPU can start.

Source: the start-of-day layout in xen.h, and what Xen 4.17's libxenguest puts into it. Machine frames are
handed in, already cleared; only those something is written to are touched. The M2P, the pinning of the
tables (which inserts Xen's own slots) and the vCPU's registers are the caller's.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from firmware.abi import start_info as abi
from firmware.abi import xen
from firmware.domain.errors import BuildError
from firmware.domain.hypercall_page import hypercall_page
from firmware.domain.image import KernelImage
from firmware.domain.modules import Module, pack_modules
from firmware.domain.notes import PAE_BIMODAL, PAE_EXTENDED
from firmware.domain.plan import PAGE_SHIFT, PAGE_SIZE, Plan, make_plan
from firmware.domain.tables import Frames
from machine.memory import MachineMemory

MAGIC: Final = {64: b"xen-3.0-x86_64", 32: b"xen-3.0-x86_32p"}
"""start_info.magic by width."""
FIRST_HIGH_MFN: Final = 1 << 20
"""The first frame above 4 GiB, which the CR3 of a PAE guest cannot name without folding."""
LONGEST_CMDLINE: Final = abi.MAX_GUEST_CMDLINE - 1
"""Bytes, without the terminating zero."""
CHUNK: Final = 1 << 20
"""Bytes copied at once where memory is in one piece."""


@dataclass(frozen=True)
class Built:
    """A domain ready to start. Addresses (`_va`) are the guest's, `mfn`s machine frames, `pfn`s its own
    frames.

    `frames` is the machine frame of every pseudo-physical one, as the guest was told. `vm_assist` has the
    bits its first vCPU starts with. `high_l2_mfn` is the PAE table that gets Xen's mappings; None for
    64-bit guests.
    """

    width: int
    entry: int
    stack_va: int
    start_info_va: int
    start_info_mfn: int
    root_pfn: int
    root_mfn: int
    high_l2_mfn: int | None
    page_table_pfns: tuple[int, ...]
    nr_pt_frames: int
    console_mfn: int
    store_mfn: int
    p2m_va: int
    p2m_pfn: int
    nr_p2m_frames: int
    ramdisk_pfn: int | None
    mapped_pages: int
    vm_assist: int
    frames: Frames


def build(
    memory: MachineMemory,
    frames: Sequence[int] | Frames,
    image: KernelImage,
    *,
    shared_info_mfn: int,
    console_port: int,
    store_port: int,
    cmdline: bytes = b"",
    ramdisk: bytes | None = None,
    modules: Sequence[Module] = (),
    flags: int = 0,
) -> Built:
    """Load `image` into a domain made of `frames` (index: pseudo-physical frame, value: machine frame).

    `ramdisk` and `modules` (a multiboot list) exclude each other; `flags` are SIF_* bits besides those that
    follow from the rest. Raises ImageError or BuildError, before anything is written, if image and memory
    do not fit.
    """
    if ramdisk and modules:
        raise BuildError("a domain gets either a ramdisk or a list of modules, not both")
    if len(cmdline) > LONGEST_CMDLINE:
        raise BuildError(f"the command line has {len(cmdline)} bytes, and {LONGEST_CMDLINE} is the most")
    module = pack_modules(modules) if modules else ramdisk or b""
    mfns = np.array(frames, dtype=np.uint64)
    plan = make_plan(image, len(mfns), len(module))
    if image.width == 32 and image.pae not in (PAE_EXTENDED, PAE_BIMODAL):
        _lower_root(mfns, plan.tables.root_pfn)
    writer = _Writer(memory, mfns)
    for segment in image.segments:
        writer.write(segment.paddr, segment.data)
    if plan.ramdisk is not None:
        writer.write(plan.ramdisk.pfn << PAGE_SHIFT, memoryview(module))
    _write_p2m(writer, plan, mfns)
    for pfn, table in plan.tables.contents(mfns, plan.mappings).items():
        writer.write(pfn << PAGE_SHIFT, memoryview(table))
    if image.hypercall_page is not None:
        writer.write(image.hypercall_page - image.virt_base, memoryview(hypercall_page(image.width)))
    if modules:
        flags |= abi.SIF_MULTIBOOT_MOD
    ports = console_port, store_port
    info = _start_info(plan, mfns, shared_info_mfn, ports, cmdline, len(module), flags)
    writer.write(plan.start_info_pfn << PAGE_SHIFT, memoryview(info))
    _mask_events(memory, shared_info_mfn, image.width)
    return _built(plan, mfns)


class _Writer:
    """Writes to pseudo-physical memory, in pieces as large as the machine frames are in one run."""

    def __init__(self, memory: MachineMemory, mfns: Frames) -> None:
        self._memory = memory
        self._mfns = mfns

    def write(self, paddr: int, data: memoryview) -> None:
        """Write bytes at a pseudo-physical address."""
        if not data:
            return
        first, last = paddr >> PAGE_SHIFT, paddr + len(data) - 1 >> PAGE_SHIFT
        mfns = self._mfns[first : last + 1].astype(np.int64)
        starts = [0, *(np.flatnonzero(np.diff(mfns) != 1) + 1).tolist(), len(mfns)]
        done = 0
        for index in range(len(starts) - 1):
            run = starts[index]
            inside = (first + run << PAGE_SHIFT) if run else paddr
            length = min((first + starts[index + 1] << PAGE_SHIFT) - inside, len(data) - done)
            place = (int(mfns[run]) << PAGE_SHIFT) + inside % PAGE_SIZE
            self._memory.write(place, data[done : done + length])
            done += length


def _lower_root(mfns: Frames, root_pfn: int) -> None:
    """A kernel that knows no folded CR3 gets its root below 4 GiB: its frame is exchanged for a low one."""
    if mfns[root_pfn] < FIRST_HIGH_MFN:
        return
    low = np.flatnonzero(mfns < FIRST_HIGH_MFN)
    if not len(low):
        raise BuildError("this 32-bit kernel needs a root table below 4 GiB, where the domain has no memory")
    mfns[[root_pfn, low[-1]]] = mfns[[low[-1], root_pfn]]


def _write_p2m(writer: _Writer, plan: Plan, mfns: Frames) -> None:
    """The list of machine frames: words of the guest's width."""
    size = plan.image.width // 8
    step = CHUNK // size
    at = plan.p2m.pfn << PAGE_SHIFT
    for first in range(0, len(mfns), step):
        part = mfns[first : first + step].astype(np.uint64 if size == 8 else np.uint32)
        writer.write(at + first * size, memoryview(part.tobytes()))


def _start_info(
    plan: Plan,
    mfns: Frames,
    shared_info_mfn: int,
    ports: tuple[int, int],
    cmdline: bytes,
    module_size: int,
    flags: int,
) -> bytes:
    image = plan.image
    console_port, store_port = ports
    flags |= abi.SIF_VIRT_P2M_4TOOLS
    module_at = 0
    if plan.ramdisk is not None:
        if plan.ramdisk_mapped:
            module_at = plan.va(plan.ramdisk.pfn)
        else:
            module_at = plan.ramdisk.pfn
            flags |= abi.SIF_MOD_START_PFN
    apart = plan.p2m_tables
    return abi.start_info.of(image.width == 64).pack(
        magic=MAGIC[image.width],
        nr_pages=plan.pages,
        shared_info=shared_info_mfn << PAGE_SHIFT,
        flags=flags,
        store_mfn=int(mfns[plan.store_pfn]),
        store_evtchn=store_port,
        console={"mfn": int(mfns[plan.console_pfn]), "evtchn": console_port},
        pt_base=plan.va(plan.tables.root_pfn),
        nr_pt_frames=plan.page_tables.pages,
        mfn_list=plan.p2m_va,
        mod_start=module_at,
        mod_len=module_size,
        cmd_line=cmdline,
        first_p2m_pfn=plan.p2m.pfn if apart is not None else 0,
        nr_p2m_frames=apart.end - plan.p2m.pfn if apart is not None else 0,
    )


def _mask_events(memory: MachineMemory, shared_info_mfn: int, width: int) -> None:
    """Every vCPU starts with its events masked."""
    shared = xen.shared_info.of(width == 64)
    info = xen.vcpu_info.of(width == 64)
    mask = (shared_info_mfn << PAGE_SHIFT) + shared.offset["vcpu_info"] + info.offset["evtchn_upcall_mask"]
    for vcpu in range(shared.sizes["vcpu_info"] // info.size):
        memory.store8(mask + vcpu * info.size, 1)


def _built(plan: Plan, mfns: Frames) -> Built:
    image = plan.image
    tables = plan.tables
    assist = 1 << xen.VMASST_TYPE_pae_extended_cr3
    last_l2 = tables.pfns.get((1, 3)) if image.width == 32 else None
    p2m_end = plan.p2m.end if plan.p2m_tables is None else plan.p2m_tables.end
    return Built(
        width=image.width,
        entry=image.entry,
        stack_va=plan.va(plan.stack_pfn + 1),
        start_info_va=plan.va(plan.start_info_pfn),
        start_info_mfn=int(mfns[plan.start_info_pfn]),
        root_pfn=tables.root_pfn,
        root_mfn=int(mfns[tables.root_pfn]),
        high_l2_mfn=None if last_l2 is None else int(mfns[last_l2]),
        page_table_pfns=tuple(tables.pfns.values()),
        nr_pt_frames=plan.page_tables.pages,
        console_mfn=int(mfns[plan.console_pfn]),
        store_mfn=int(mfns[plan.store_pfn]),
        p2m_va=plan.p2m_va,
        p2m_pfn=plan.p2m.pfn,
        nr_p2m_frames=p2m_end - plan.p2m.pfn,
        ramdisk_pfn=None if plan.ramdisk is None else plan.ramdisk.pfn,
        mapped_pages=plan.mapped_pages,
        vm_assist=assist if image.width == 32 and image.pae in (PAE_EXTENDED, PAE_BIMODAL) else 0,
        frames=mfns,
    )
