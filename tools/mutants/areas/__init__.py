"""The mutants, by what they take away.

Not listed, because taking them away changes nothing a guest can see or gain:
- `count < ONE` in `get_page`: a frame with an owner always has a reference;
- the stamps after a failed validation and in `steal`: the last type reference has stamped the frame before;
- that an unmapped grant's address has an entry at all: machine address 0 holds none that fits;
- what only saves flushes: filters, `Shootdown.note`.
"""

from __future__ import annotations

from typing import Final

from tools.mutants.areas import (
    block_backend,
    block_cache,
    counts,
    descriptors,
    disk_queue,
    emulated_disk,
    fair_shares,
    flushes,
    grants,
    interrupted,
    native,
    next_block,
    page_types,
    pointers,
    reservation,
    stores,
    tables,
    turns,
    vcpus,
    xenstore,
)
from tools.mutants.mutant import Area

AREAS: Final[tuple[Area, ...]] = (
    tables.AREA,
    page_types.AREA,
    flushes.AREA,
    counts.AREA,
    interrupted.AREA,
    descriptors.AREA,
    pointers.AREA,
    reservation.AREA,
    grants.AREA,
    stores.AREA,
    vcpus.AREA,
    emulated_disk.AREA,
    block_backend.AREA,
    block_cache.AREA,
    disk_queue.AREA,
    native.AREA,
    fair_shares.AREA,
    turns.AREA,
    xenstore.AREA,
    next_block.AREA,
)
