"""The frame table: what Xen's page_info is, as flat arrays over all machine frames.

Each frame has an owner, a count word and a type word. Both words keep a count in bits 8 and up and flags in
the low byte, so that taking one reference is adding `ONE` and the usual values stay small integers. Scalars
are read and written through memoryviews, whole tables through numpy arrays over the same bytes. All of it is
reserved lazily: a frame nobody has used costs nothing.

The rules these words obey are those of Xen's `xen/arch/x86/include/asm/mm.h` and `mm.c`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

ONE: Final = 1 << 8
"""One reference, in a count word or a type word."""
COUNT_SHIFT: Final = 8
COUNT_LIMIT: Final = (1 << 63) - ONE
"""A count word at or above this takes no more references."""

TYPE_MASK: Final = 0x07
"""PGT_type_mask: the type in a type word. The numbers are Xen's."""
NONE: Final = 0
L1_TABLE: Final = 1
L2_TABLE: Final = 2
L3_TABLE: Final = 3
L4_TABLE: Final = 4
SEGMENT_DESCRIPTORS: Final = 5
SHARED: Final = 6
WRITABLE: Final = 7
VALIDATED: Final = 0x08
"""PGT_validated: the contents have been checked for the type."""
PINNED: Final = 0x10
"""PGT_pinned: one reference of each kind is held by the owner's pin."""
PARTIAL: Final = 0x20
"""PGT_partial: validation or destruction stopped half way."""
PAE_XEN_L2: Final = 0x40
"""PGT_pae_xen_l2: an L2 table that sits in slot 3 of a PAE root and carries Xen's entries."""
FOREIGN: Final = 0x80
"""Mapped for writing by a grant since its last change of type. The other domain may have taken the entry away
by itself, without a flush: its CPUs count as well when the type changes.
"""
KIND_MASK: Final = TYPE_MASK | PAE_XEN_L2
"""What must be equal for a further type reference."""
VALID_MASK: Final = TYPE_MASK | VALIDATED

ALLOCATED: Final = 0x01
"""PGC_allocated: one of the references is the owner's own."""
XEN_HEAP: Final = 0x02
"""PGC_xen_heap: Xen's own frame, perhaps shared with a guest; never enters the guests' heap."""
DIRTY: Final = 0x04
"""A free frame that still holds somebody's data: cleared before it is given out."""

NO_OWNER: Final = 0
"""Owner tag of a frame nobody owns; a domain's tag is its id + 1."""


class FrameTable:
    """Owner, references, type and flush stamp of every machine frame."""

    __slots__ = (
        "count_array",
        "counts",
        "linear",
        "lost",
        "owner_array",
        "owners",
        "partial",
        "size",
        "stamp_array",
        "stamps",
        "type_array",
        "types",
    )

    def __init__(self, frames: int) -> None:
        self.size = frames
        self.owner_array: np.ndarray[Any, np.dtype[np.uint16]] = np.zeros(frames, dtype=np.uint16)
        self.count_array: np.ndarray[Any, np.dtype[np.uint64]] = np.zeros(frames, dtype=np.uint64)
        self.type_array: np.ndarray[Any, np.dtype[np.uint64]] = np.zeros(frames, dtype=np.uint64)
        self.stamp_array: np.ndarray[Any, np.dtype[np.uint64]] = np.zeros(frames, dtype=np.uint64)
        self.owners = _view(self.owner_array)
        self.counts = _view(self.count_array)
        self.types = _view(self.type_array)
        self.stamps = _view(self.stamp_array)
        self.linear: dict[int, int] = {}
        self.partial: dict[int, tuple[int, bool]] = {}
        """The PARTIAL tables: from which slot on their entries hold nothing, and whether that slot's entry
        does hold a reference, though no type reference (nr_validated_ptes, PTF_partial_set).
        """
        self.lost: dict[int, int] = {}
        """References that nobody will drop while the owner lives: see `validate`."""

    def owner_of(self, mfn: int) -> int | None:
        """The domain id that owns frame `mfn`, or None."""
        tag = self.owners[mfn]
        return tag - 1 if tag else None

    def references(self, mfn: int) -> int:
        """References to frame `mfn` (PGC_count)."""
        return self.counts[mfn] >> COUNT_SHIFT

    def type_of(self, mfn: int) -> int:
        """The type of frame `mfn`: one of NONE .. WRITABLE."""
        return self.types[mfn] & TYPE_MASK

    def type_count(self, mfn: int) -> int:
        """Type references to frame `mfn` (PGT_count)."""
        return self.types[mfn] >> COUNT_SHIFT

    def owned_by(self, domid: int) -> list[int]:
        """All frames domain `domid` owns, ascending."""
        frames: list[int] = np.flatnonzero(self.owner_array == domid + 1).tolist()
        return frames


def _view(array: Any) -> memoryview:
    return memoryview(array)
