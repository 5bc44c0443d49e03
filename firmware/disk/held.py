"""The grants a ring's requests use: for one request, or kept for the next (feature-persistent)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from firmware.memory.backend_grants import BackendGrants

MOST_PERSISTENT: Final = 1056
"""Grants a ring keeps at most (max_persistent_grants of Linux' xen-blkback): three full rings of one page."""


class Held:
    """A grant in use: the reference, its machine frame, and whether it stays mapped when the request ends."""

    __slots__ = ("busy", "kept", "mfn", "readonly", "ref")

    def __init__(self, ref: int, mfn: int, *, readonly: bool, kept: bool) -> None:
        self.ref = ref
        self.mfn = mfn
        self.readonly = readonly
        self.kept = kept
        self.busy = True


class HeldGrants:
    """Takes and gives back grants. With `persistent`, up to `limit` stay mapped, for writing, between
    requests; the one unused for longest makes room. A grant that is in use is mapped again for a second user.
    """

    __slots__ = ("_grants", "_kept", "_limit", "persistent")

    def __init__(self, grants: BackendGrants, *, persistent: bool, limit: int = MOST_PERSISTENT) -> None:
        self._grants = grants
        self._kept: OrderedDict[int, Held] = OrderedDict()
        self._limit = limit
        self.persistent = persistent

    @property
    def kept(self) -> int:
        """How many stay mapped."""
        return len(self._kept)

    def take(self, ref: int, *, readonly: bool) -> Held | None:
        """The frame of a grant, for reading only or also for writing; None when it cannot be had."""
        if not self.persistent:
            mfn = self._grants.take(ref, readonly=readonly)
            return None if mfn < 0 else Held(ref, mfn, readonly=readonly, kept=False)
        held = self._kept.get(ref)
        if held is not None and not held.busy:
            held.busy = True
            self._kept.move_to_end(ref)
            return held
        mfn = self._grants.take(ref, readonly=False)
        if mfn < 0:
            return None
        kept = held is None and (len(self._kept) < self._limit or self._evict())
        found = Held(ref, mfn, readonly=False, kept=kept)
        if kept:
            self._kept[ref] = found
        return found

    def give(self, held: Held) -> None:
        """A request no longer uses it."""
        if held.kept:
            held.busy = False
        else:
            self._grants.give(held.ref, readonly=held.readonly)

    def clear(self) -> None:
        """Let go of all that is kept; none may be in use."""
        for held in self._kept.values():
            self._grants.give(held.ref, readonly=False)
        self._kept.clear()

    def _evict(self) -> bool:
        for ref, held in self._kept.items():
            if not held.busy:
                del self._kept[ref]
                self._grants.give(ref, readonly=False)
                return True
        return False
