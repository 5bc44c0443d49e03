"""mmufuzz: seeded random operations on page and descriptor tables, a line for each with all that came of it.

`seed=N ops=N` on the command line: the seed and how many operations. Every operation prints what it was, its
return codes, its faults, and what it left in the tables. Frames are printed by their numbers in the guest's
own table (see `fuzz.tables`), so that nothing depends on where in the machine they are. Accessed and dirty
bits are shown only where the processor cannot have touched them since they were written.
"""
from __future__ import annotations

from typing import Final

from guests.fuzz import (
    accesses,
    descriptors,
    extended,
    grants,
    multicall,
    reservation,
    second,
    setup,
    stores,
    support,
    tables,
    updates,
    user,
    versions,
)
from guests.macros import kernel

WEIGHTS: Final = {
    "update": 24, "keep": 5, "batch": 8, "map": 14, "map_other": 3, "extended": 20, "extended_batch": 4,
    "addressed": 7, "root": 4, "read": 8, "store": 24, "assist": 3, "stack": 1, "stale": 4, "descriptor": 8,
    "gdt": 3, "selector": 6, "balloon_map": 4, "exchange": 3, "balloon": 3, "increase": 1,
    "grant": 12, "grant_map": 10, "grant_unmap": 6, "grant_replace": 2, "grant_copy": 8,
    "grant_version": 4, "grant_status": 4, "grant_table": 1, "grant_swap": 2, "grant_flush": 1,
    "grant_transfer": 2, "multicall": 14, "user": 12,
}
"""How often each operation comes, of all."""

_OPERATIONS: Final = [f"operation_{name}" for name, weight in WEIGHTS.items() for _ in range(weight)]


def build() -> bytes:
    """The image."""
    return kernel(
        f"operations_count = {len(_OPERATIONS)}", setup.START, setup.TABLES, updates.UPDATE, updates.MAP,
        extended.EXTENDED, accesses.ACCESS, stores.STORES, descriptors.DESCRIPTORS, reservation.BALLOON,
        reservation.INCREASE, grants.SETUP, grants.GRANTS, versions.VERSIONS, multicall.MULTICALL, user.USER,
        second.SETUP, second.SECOND, support.OPTIONS, support.RANDOM,
        support.FRAMES, support.LOOKING,
        shared=True, traps=True, pages=True,
        data=(*support.DATA, *grants.DATA, versions.DATA, multicall.DATA, second.DATA,
              tables.quads("operations", _OPERATIONS),
              tables.quads("links", [cell for link in setup.LINKS for cell in link]), "links_end:",
              "kernel_entry: .quad 0\nbatch_size: .quad 0\nextent: .quad 0\nextent_out: .quad 0",
              "argument: .zero 64\nexchange: .zero 128\nrequests: .zero 128"),
        bss=(support.BSS, grants.BSS, versions.BSS, user.BSS, second.BSS,
             f".balign 4096, 0\nreserve: .zero {setup.RESERVE * 4096}"),
    )
