"""TLB shootdown: which cores may still hold a translation, and making sure none does.

As in Xen's `flushtlb.c` a global clock counts full flushes. A core remembers the clock of its last full
flush; a frame is stamped with the clock when its last type reference goes. A core whose last full flush is
younger than a frame's stamp cannot hold an old translation of it and is left alone. One that may is searched
for translations to the frame, and only those go: Xen, whose processors cannot be searched, flushes all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from firmware.memory.owner import Core, MemoryOwner

FEW: Final = 16
"""Frames that a core is searched for one by one; for more, a whole flush is cheaper."""


class Shootdown:
    """Flushes by owner, by stamp and by page, over the cores of the machine."""

    __slots__ = (
        "_cores",
        "_running",
        "clock",
        "filtered",
        "flushed",
        "flushes",
        "frame_flushes",
        "page_flushes",
    )

    def __init__(self, cores: Sequence[Core]) -> None:
        self._cores = tuple(cores)
        self._running: list[list[MemoryOwner]] = [[] for _ in cores]
        self.clock = 1
        self.flushed = [1] * len(self._cores)
        self.flushes = 0
        self.page_flushes = 0
        self.frame_flushes = 0
        self.filtered = 0

    def enter(self, core: Core, owner: MemoryOwner) -> None:
        """A vCPU of `owner` is about to run on `core`: from now on the core may hold the owner's
        translations.
        """
        running = self._running[core.index]
        if not running or running[-1] is not owner:
            if owner in running:
                running.remove(owner)
            else:
                owner.cores.append(core)
            running.append(owner)

    def leave(self, core: Core) -> None:
        """No vCPU runs on `core` any more and its TLB has been flushed: it holds nobody's translations."""
        self._flushed(core)
        running = self._running[core.index]
        for owner in running:
            owner.cores.remove(core)
        running.clear()

    def note(self, core: Core) -> None:
        """`core` has just been fully flushed by someone else (a root was loaded)."""
        self._flushed(core)
        running = self._running[core.index]
        if len(running) > 1:
            for owner in running[:-1]:
                owner.cores.remove(core)
            del running[:-1]

    def load_root(self, core: Core, paddr: int) -> None:
        """Load a root into `core`, which flushes all of its TLB."""
        core.load_root(paddr)
        self.note(core)

    def core(self, core: Core) -> None:
        """Flush all of one core's TLB."""
        core.flush()
        self.flushes += 1
        self.note(core)

    def cores(self, cores: Iterable[Core]) -> None:
        """Flush all of several cores' TLBs."""
        for core in tuple(cores):
            self.core(core)

    def owner(self, owner: MemoryOwner) -> None:
        """Flush every core that may hold a translation of `owner`."""
        for core in tuple(owner.cores):
            self.core(core)

    def page(self, cores: Iterable[Core], va: int) -> None:
        """Flush one page on several cores."""
        for core in cores:
            core.flush_page(va)
            self.page_flushes += 1

    def older(self, owner: MemoryOwner, stamp: int, *frames: int) -> None:
        """Before frames change their type, the youngest of them with `stamp`: the owner's cores that were not
        flushed since let go of them.
        """
        flushed = self.flushed
        for core in tuple(owner.cores):
            if flushed[core.index] <= stamp:
                self._forget(core, frames)
            else:
                self.filtered += 1

    def everyone(self, stamp: int, *frames: int) -> None:
        """The same on every core, whoever runs there: before freed frames get a new owner. No frames named:
        all of them.
        """
        flushed = self.flushed
        for core in self._cores:
            if flushed[core.index] <= stamp and self._running[core.index]:
                self._forget(core, frames)

    def _forget(self, core: Core, frames: tuple[int, ...]) -> None:
        if not 0 < len(frames) <= FEW:
            self.core(core)
            return
        for mfn in frames:
            if not core.flush_frame(mfn):
                self.core(core)
                return
            self.frame_flushes += 1

    def _flushed(self, core: Core) -> None:
        self.clock += 1
        self.flushed[core.index] = self.clock
