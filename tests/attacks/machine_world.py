"""A whole machine as the reference model sees it: its frame table, its domains, and its cores' real TLBs."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any, cast

from firmware.memory.frames import PINNED, TYPE_MASK, WRITABLE
from machine.core import Core
from machine.engine.layout import Layout
from tests.memory.reference import Ledger
from tests.memory.world import World
from xenpy.system import System

MODES = 3
ENTRY_WORDS = 8
READ, WRITE, MACHINE = 0, 1, 3
"""Words of a TLB entry: the page's address for reading and for writing, and its machine address."""
EMPTY = (1 << 64) - 1
INVALID = 1 << 11
"""Flag of an entry's address: it does not count."""
XEN_PAGES = range(0xFFFF_8000_0000_0, 0xFFFF_8800_0000_0)
"""Pages of Xen's own part of the address space: guests reach nothing there."""


def tlb(core: Core) -> dict[tuple[int, int], tuple[int, bool]]:
    """(mode, page) -> (frame, writable) of everything in a core's TLB."""
    layout = Layout()
    address = cast(Any, core)._address
    found: dict[tuple[int, int], tuple[int, bool]] = {}
    for mode in range(MODES):
        mask, table = (ctypes.c_uint64 * 2).from_address(address + layout.tlb_fast + 16 * mode)
        size = (mask >> 6) + 1
        words = (ctypes.c_uint64 * (size * ENTRY_WORDS)).from_address(table)
        for at in range(0, size * ENTRY_WORDS, ENTRY_WORDS):
            writable = words[at + WRITE] != EMPTY and not words[at + WRITE] & INVALID
            known = words[at + WRITE] if writable else words[at + READ]
            if known != EMPTY and not known & INVALID:
                found[mode, known >> 12] = words[at + MACHINE] >> 12, writable
    return found


def world(system: System) -> tuple[World, Ledger]:
    """The machine as `tests.memory.reference.check` takes it, and what is held in it."""
    hypervisor = system.hypervisor
    floor, memory = hypervisor.memory, system.machine.memory
    domains = {
        number: SimpleNamespace(id=number, memory=domain.memory, pv32=domain.pv32, all=domain.vcpus)
        for number, domain in hypervisor.lifecycle.domains.items()
    }
    for domain in hypervisor.lifecycle.domains.values():
        floor.grants.table(domain.memory)  # made when first asked for: not in the middle of the count
    cores = [SimpleNamespace(index=core.index, tlb={}) for core in system.machine.cores]
    seen = SimpleNamespace(
        frames=floor.frames,
        domains=domains,
        descriptors=floor.descriptors,
        grants=floor.grants,
        memory=memory,
        types=floor.types,
        slots=floor.slots,
        heap=floor.heap,
        cores=cores,
        entry=lambda mfn, slot: memory.q[(mfn << 9) + slot],
    )
    words = floor.frames.type_array
    pins = {int(mfn): int(words[mfn]) & TYPE_MASK for mfn in (words & PINNED).nonzero()[0]}
    holds: list[tuple[int, int | None]] = [(mfn, WRITABLE) for held in floor.held.values() for mfn in held]
    return cast(World, seen), Ledger(pins, holds)


def tables_written(system: System) -> list[str]:
    """Every TLB entry through which a guest could write a frame that is not an ordinary writable one."""
    frames = system.hypervisor.memory.frames
    found = []
    for core in system.machine.cores:
        for (mode, page), (mfn, writable) in tlb(core).items():
            ordinary = not frames.type_count(mfn) or frames.type_of(mfn) == WRITABLE
            if writable and page not in XEN_PAGES and not ordinary:
                found.append(f"core {core.index} mode {mode} page {page:#x}: frame {mfn:#x}")
    return found
