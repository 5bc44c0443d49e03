"""One domain's grant table: its frames and entries, what is in use of it, and what the domain has mapped of
others'.

An entry lies in a frame of Xen's that the guest writes; everything read from it is read once and checked.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from firmware.abi.errno import EBUSY, ENOMEM, ERANGE
from firmware.abi.grant_table import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GNTST_general_error,
    GNTST_okay,
    GTF_accept_transfer,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transfer_committed,
    GTF_transitive,
    GTF_type_mask,
    GTF_writing,
)
from firmware.memory.heap import FrameHeap
from firmware.memory.owner import MachineMemory, MemoryOwner

HANDLES_IN_FRAME: Final = 256
"""MAPTRACK_PER_PAGE."""
V1_ENTRIES: Final = 512
V2_ENTRIES: Final = 256
STATUS_ENTRIES: Final = 2048
"""Entries in a frame of each table."""
PIN_LIMIT: Final = 127
"""Uses of one kind after which an entry takes no more (Xen's eight-bit counters)."""


class Active:
    """A grant entry in use: by whom, which frame, and how often in each way (Xen's active_grant_entry)."""

    __slots__ = (
        "device_read",
        "device_write",
        "domid",
        "host_read",
        "host_write",
        "length",
        "mfn",
        "start",
        "sub_page",
        "transitive",
    )

    def __init__(
        self, domid: int, mfn: int, start: int = 0, length: int = 4096, *, sub_page: bool = False
    ) -> None:
        self.domid = domid
        self.mfn = mfn
        self.start = start
        self.length = length
        self.sub_page = sub_page
        self.transitive: tuple[int, int] | None = None
        self.host_read = self.host_write = self.device_read = self.device_write = 0

    @property
    def pins(self) -> int:
        """All uses."""
        return self.host_read + self.host_write + self.device_read + self.device_write

    @property
    def writers(self) -> int:
        """Uses that may write."""
        return self.host_write + self.device_write

    @property
    def full(self) -> bool:
        """Whether one more use might overflow a counter."""
        return max(self.host_read, self.host_write, self.device_read, self.device_write) > PIN_LIMIT


class Mapping:
    """A foreign grant this domain has mapped (Xen's grant_mapping): whose, which reference, the flags it
    was mapped with.
    """

    __slots__ = ("domid", "flags", "ref")

    def __init__(self, domid: int, ref: int, flags: int) -> None:
        self.domid = domid
        self.ref = ref
        self.flags = flags


class GrantTable:
    """A domain's table."""

    __slots__ = (
        "_free",
        "_heap",
        "_max_handles",
        "_memory",
        "abandoned",
        "active",
        "frames",
        "mappings",
        "max_frames",
        "owner",
        "status_frames",
        "version",
    )

    def __init__(self, memory: MachineMemory, heap: FrameHeap, owner: MemoryOwner) -> None:
        self._memory = memory
        self._heap = heap
        self.owner = owner
        self.max_frames = owner.grants.frames
        self._max_handles = owner.grants.maptrack_frames * HANDLES_IN_FRAME
        self.version = 1
        self.abandoned = False
        self.frames: list[int] = []
        self.status_frames: list[int] = []
        self.active: dict[int, Active] = {}
        self.mappings: list[Mapping | None] = []
        self._free: deque[int] = deque()
        self.grow(1)

    # Frames

    @property
    def entries(self) -> int:
        """How many entries the table's frames hold."""
        return len(self.frames) * (V1_ENTRIES if self.version == 1 else V2_ENTRIES)

    def grow(self, count: int) -> bool:
        """Have at least `count` frames, and their status frames in version 2; False when memory is short."""
        try:
            while len(self.frames) < count:
                self.frames.append(self._frame())
            if self.version == 2:
                while len(self.status_frames) * STATUS_ENTRIES < self.entries:
                    self.status_frames.append(self._frame())
        except MemoryError:
            return False
        return True

    def _frame(self) -> int:
        mfn = self._heap.xen_frame()
        self._heap.share_with(mfn, self.owner)
        return mfn

    # Entries

    def words(self, ref: int) -> tuple[int, int]:
        """Entry `ref` as two 64-bit words; version 1 has one, and its frame as the second."""
        q = self._memory.q
        if self.version == 1:
            word = q[(self.frames[ref >> 9] << 9) + (ref & 511)]
            return word & 0xFFFF_FFFF, word >> 32
        at = (self.frames[ref >> 8] << 9) + (ref & 255) * 2
        return q[at], q[at + 1]

    def store_flags(self, ref: int, flags: int) -> None:
        """Replace the flags of entry `ref`."""
        self._memory.write(self._address(ref), flags.to_bytes(2, "little"))

    def store_frame(self, ref: int, mfn: int) -> None:
        """Replace the frame of entry `ref` (a transfer's result)."""
        if self.version == 1:
            self._memory.store32(self._address(ref) + 4, mfn & 0xFFFF_FFFF)
        else:
            self._memory.store64(self._address(ref) + 8, mfn)

    def store_entry(self, ref: int, low: int, high: int) -> None:
        """Replace all of entry `ref`, given as `words` gives it."""
        at = self._address(ref)
        if self.version == 1:
            self._memory.store64(at, low & 0xFFFF_FFFF | (high & 0xFFFF_FFFF) << 32)
        else:
            self._memory.store64(at, low)
            self._memory.store64(at + 8, high)

    def swap(self, first: int, second: int) -> None:
        """Exchange two entries, in version 2 with their marks."""
        saved, other = self.words(first), self.words(second)
        self.store_entry(first, *other)
        self.store_entry(second, *saved)
        if self.version == 2:
            one, two = self._status_address(first), self._status_address(second)
            marks = self._memory.read(one, 2)
            self._memory.write(one, self._memory.read(two, 2))
            self._memory.write(two, marks)

    def _address(self, ref: int) -> int:
        if self.version == 1:
            return (self.frames[ref >> 9] << 12) + (ref & 511) * 8
        return (self.frames[ref >> 8] << 12) + (ref & 255) * 16

    def _status_address(self, ref: int) -> int:
        return (self.status_frames[ref >> 11] << 12) + (ref & 2047) * 2

    def status(self, ref: int) -> int:
        """The reading and writing marks of entry `ref`: in its flags, or in version 2's status table."""
        if self.version == 1:
            return self.words(ref)[0] & (GTF_reading | GTF_writing)
        return int.from_bytes(self._memory.read(self._status_address(ref), 2), "little")

    def _set_status(self, ref: int, flags: int, marks: int) -> None:
        if self.version == 1:
            self.store_flags(ref, flags & 0xFFFF | marks)
        else:
            marks |= self.status(ref)
            self._memory.write(self._status_address(ref), marks.to_bytes(2, "little"))

    def claim(self, ref: int, low: int, domid: int, *, pinned: bool, readonly: bool, mapping: bool) -> int:
        """Mark entry `ref`, whose first word is `low`, as used by `domid`; a grant status (_set_status)."""
        flags = low & 0xFFFF
        mask = GTF_type_mask | GTF_sub_page if mapping else GTF_type_mask
        kind = flags & mask
        allowed = kind == GTF_permit_access or (self.version == 2 and not mapping and kind == GTF_type_mask)
        if not pinned and (not allowed or low >> 16 & 0xFFFF != domid):
            return GNTST_general_error
        if not readonly and flags & GTF_readonly:
            return GNTST_general_error
        self._set_status(ref, flags, GTF_reading if readonly else GTF_reading | GTF_writing)
        return GNTST_okay

    def release(self, ref: int, active: Active, *, readonly: bool) -> None:
        """One use of entry `ref` has ended: clear the marks nobody needs any more."""
        clear = 0
        if not readonly and not active.writers:
            clear |= GTF_writing
        if not active.pins:
            clear |= GTF_reading
            del self.active[ref]
        if not clear:
            return
        if self.version == 1:
            self.store_flags(ref, self.words(ref)[0] & 0xFFFF & ~clear)
        else:
            marks = self.status(ref) & ~clear
            self._memory.write(self._status_address(ref), marks.to_bytes(2, "little"))

    def commit_transfer(self, ref: int, domid: int) -> bool:
        """Take entry `ref` for a frame that `domid` gives away (gnttab_prepare_for_transfer)."""
        if ref >= self.entries:
            return False
        low = self.words(ref)[0]
        if low & 0xFFFF != GTF_accept_transfer or low >> 16 & 0xFFFF != domid:
            return False
        self.store_flags(ref, GTF_accept_transfer | GTF_transfer_committed)
        return True

    def set_version(self, version: int) -> int:
        """Change the layout; the reserved entries are carried over. Back to version 1 the status frames go,
        unless the guest has one mapped. 0, or ENOMEM, EBUSY, ERANGE: then nothing has changed.
        """
        kept = [self.words(ref) for ref in range(GNTTAB_NR_RESERVED_ENTRIES)]
        marks = [self.status(ref) for ref in range(GNTTAB_NR_RESERVED_ENTRIES)]
        if version == 1:
            if any(self._too_wide(low, high) for low, high in kept):
                return ERANGE
            for mfn in self.status_frames:
                if self._heap.mapped(mfn):
                    self._heap.keep_shared(mfn)
                    return EBUSY
            for mfn in self.status_frames:
                self._heap.unshare(mfn, self.owner)
            self.status_frames.clear()
        old = self.version
        self.version = version
        if not self.grow(len(self.frames)):
            self.version = old
            return ENOMEM
        for mfn in self.frames:
            self._memory.fill(mfn << 12, 4096)
        for ref, (low, high) in enumerate(kept):
            low &= 0xFFFF_FFFF
            if version == 2:
                low &= ~(GTF_reading | GTF_writing)
            else:
                low |= marks[ref]
            self.store_entry(ref, low, high)
            if version == 2 and marks[ref]:
                self._memory.write(self._status_address(ref), marks[ref].to_bytes(2, "little"))
        return 0

    @staticmethod
    def _too_wide(low: int, high: int) -> bool:
        """Whether version 1 cannot express an entry: another domain's grant, or a frame above 32 bits."""
        kind = low & GTF_type_mask
        return kind == GTF_transitive or (kind == GTF_permit_access and bool(high >> 32))

    # Handles

    def new_handle(self) -> int | None:
        """A handle for a mapping to come; None when there are too many."""
        free, first = self._free, len(self.mappings)
        if len(free) > 1:  # the last one stays: what is given back goes behind it
            return free.popleft()
        if first >= self._max_handles:
            return None
        self.mappings.extend([None] * HANDLES_IN_FRAME)
        free.extendleft(range(first + HANDLES_IN_FRAME - 1, first, -1))
        return first

    def free_handle(self, handle: int) -> None:
        """Give a handle back."""
        self.mappings[handle] = None
        self._free.append(handle)

    def mapping(self, handle: int) -> Mapping | None:
        """What a handle stands for."""
        return self.mappings[handle] if handle < len(self.mappings) else None
