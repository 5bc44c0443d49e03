"""The universal buffer cache: blocks that any domain has read, in memory that no domain owns.

Blocks are named by what holds them: an image that never changes (`Medium.image`), which many disks may show,
or the medium of one disk. Memory goes back to the heap as soon as somebody needs it: blocks nobody maps go
first, in the order of replacement, then those that are mapped.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from firmware.abi.block_cache import BLKCACHE_absent, BLKCACHE_cached, BLKCACHE_pending
from firmware.abi.errno import EAGAIN, ENOENT, ENOMEM, ENOSPC
from firmware.disk.cache_maps import SOME, Mapping, Mappings
from firmware.disk.cache_reads import Fill
from firmware.disk.cache_store import Block, BlockStore
from firmware.domain.domain import Domain
from firmware.memory.block_frames import BlockFrames
from firmware.memory.types import PageTypes
from machine.clock import Clock
from machine.disk import DiskRequest, Medium
from machine.memory import MachineMemory

QUOTA: Final = 1024
"""Cached blocks that one domain may have mapped at a time."""
PINNED_PART: Final = 2
"""At most one in so many blocks the cache may have is kept for those who map it."""
FLIGHT_PART: Final = 4
"""At most one in so many is being read at a time; beyond that reads go past the cache."""


class CacheStatistics:
    """Blocks of 4 KiB since the machine started: `hits` served from the cache, `misses` read into it,
    `merged` that waited for somebody else's read, `invalidated` by writes and discards, `evicted` to make
    room for others, `reclaimed` by somebody who needed the memory. `bypassed`: reads that went past the
    cache.
    """

    __slots__ = ("bypassed", "evicted", "hits", "invalidated", "merged", "misses", "reclaimed")

    def __init__(self) -> None:
        self.hits = self.misses = self.merged = self.invalidated = self.evicted = self.reclaimed = 0
        self.bypassed = 0


class BufferCache:
    """The cached blocks of a machine, at most `limit` of them."""

    def __init__(self, memory: MachineMemory, clock: Clock, types: PageTypes, limit: int) -> None:
        self.memory = memory
        self.clock = clock
        self.limit = limit
        self.quota = QUOTA
        self.statistics = CacheStatistics()
        self.frames = BlockFrames(types)
        self.blocks = BlockStore()
        self.mappings = Mappings(self.frames, self._unmapped)
        self.filling = 0
        """Frames that disks are reading into."""
        self._fills: dict[tuple[Hashable, int], Fill] = {}
        self._live: dict[Fill, None] = {}
        self._writes: dict[Medium, dict[DiskRequest, tuple[int, int]]] = {}
        types.heap.keeper = self

    # Blocks

    def find(self, image: Hashable, number: int) -> Block | None:
        """A cached block."""
        return self.blocks.of(image).get(number)

    @staticmethod
    def image(medium: Medium, number: int) -> Hashable:
        """What a block of a medium is to be found under."""
        return medium.image(number << 3, 8) or medium

    def set_limit(self, limit: int) -> None:
        """Have at most so many blocks from now on. ValueError below 0."""
        if limit < 0:
            raise ValueError(f"a cache has 0 blocks or more, not {limit}")
        self.limit = limit
        self._release(self.blocks.size - limit)

    def take(self) -> int | None:
        """A frame to read a block into, perhaps of one that makes room for it; None when there is none."""
        blocks, frames = self.blocks, self.frames
        if self.filling * FLIGHT_PART >= self.limit:
            return None
        mfn = frames.take() if blocks.size + self.filling < self.limit else None
        if mfn is None:
            block = blocks.victim()
            if block is None:
                self._settle_pinned()
                block = blocks.victim()
            if block is None:
                return None
            self.statistics.evicted += 1
            if block.touched:
                self._drop(block)
                mfn = frames.take()
            else:
                blocks.remove(block)
                mfn = block.mfn
                frames.refill(mfn)
        if mfn is not None:
            self.filling += 1
        return mfn

    def _settle_pinned(self) -> None:
        """Find out of some blocks that were mapped whether they still are."""
        for block in self.blocks.some_pinned(SOME):
            if not self.frames.mapped(block.mfn):
                for mapping in self.mappings.of(block):
                    self.mappings.settle(mapping)

    def _unmapped(self, block: Block) -> None:
        self.blocks.unpin(block)

    def _drop(self, block: Block) -> None:
        """Take a block out of all page tables, and give its frame back."""
        self.mappings.revoke(self.mappings.of(block))
        self.blocks.remove(block)
        self.frames.give_back(block.mfn)

    # Reads in flight

    def fill_of(self, image: Hashable, number: int) -> Fill | None:
        """The read of a block that a second reader may wait for."""
        return self._fills.get((image, number))

    def begin_fill(self, fill: Fill) -> None:
        """A disk is about to read these blocks."""
        self._live[fill] = None
        for name in fill.names:
            self._fills[name] = fill

    def end_fill(self, fill: Fill, *, good: bool) -> None:
        """It has read them, or not; a good fill that no write overtook is in the cache now."""
        del self._live[fill]
        self._no_more_readers(fill)
        self.filling -= len(fill.frames)
        frames, blocks = self.frames, self.blocks
        for (image, number), mfn in zip(fill.names, fill.frames, strict=True):
            if good and not fill.stale and blocks.size < self.limit:
                frames.publish(mfn)
                blocks.add(Block(image, number, mfn))
            else:
                frames.abandon(mfn)

    def fills(self) -> list[Fill]:
        """All reads into the cache that are in flight."""
        return list(self._live)

    def _no_more_readers(self, fill: Fill) -> None:
        for name in fill.names:
            if self._fills.get(name) is fill:
                del self._fills[name]

    # Writes

    def begin_write(self, medium: Medium, request: DiskRequest, first: int, end: int) -> None:
        """Blocks from `first` to below `end` of a medium are about to change: until `end_write` nobody finds
        them here, and what is being read of them is for those who wait for it only.
        """
        self._writes.setdefault(medium, {})[request] = first, end
        for fill in self.fills():
            if fill.medium is medium and fill.first < end and first < fill.end:
                self._overtaken(fill)
        self.mappings.revoke(self.mappings.within(medium, first, end))
        mine = self.blocks.of(medium)
        if end - first > len(mine):
            found = [block for number, block in mine.items() if first <= number < end]
        else:
            found = [mine[number] for number in range(first, end) if number in mine]
        for block in found:
            self._drop(block)
        self.statistics.invalidated += len(found)

    def end_write(self, medium: Medium, request: DiskRequest) -> None:
        """The write is done, or will never be."""
        writes = self._writes[medium]
        del writes[request]
        if not writes:
            del self._writes[medium]

    def being_written(self, medium: Medium, first: int, end: int) -> bool:
        """Whether a write to one of these blocks is under way."""
        writes = self._writes.get(medium)
        if writes is None:
            return False
        return any(begin < end and first < behind for begin, behind in writes.values())

    def _overtaken(self, fill: Fill) -> None:
        """What the fill reads may be what is written, which only the written medium shows: readers of other
        media read for themselves.
        """
        if not fill.stale:
            fill.stale = True
            self._no_more_readers(fill)
        others = [waiter for waiter in fill.waiters if waiter[0].medium is not fill.medium]
        fill.waiters = [waiter for waiter in fill.waiters if waiter[0].medium is fill.medium]
        for reading, first, end in others:
            reading.reread(reading, first, end)

    # Mappings

    def state(self, medium: Medium, number: int) -> int:
        """Whether a block of a medium is here (BLKCACHE_*)."""
        image = self.image(medium, number)
        if self.being_written(medium, number, number + 1) or self.fill_of(image, number) is not None:
            return BLKCACHE_pending
        return BLKCACHE_absent if self.find(image, number) is None else BLKCACHE_cached

    def map(self, domain: Domain, medium: Medium, number: int, at: int, *, user: bool) -> int:
        """Have the domain's L1 entry at machine address `at` show a block of a medium: 0 or a negative
        errno.
        """
        if self.state(medium, number) == BLKCACHE_pending:
            return -EAGAIN
        block = self.find(self.image(medium, number), number)
        if block is None:
            return -ENOENT
        mappings = self.mappings
        if mappings.count(domain) >= self.quota:
            mappings.tidy(domain)
            if mappings.count(domain) >= self.quota:
                return -ENOSPC
        if not mappings.of(block) and (self.blocks.pinned + 1) * PINNED_PART > self.limit:
            self._settle_pinned()
            if (self.blocks.pinned + 1) * PINNED_PART > self.limit:
                return -ENOMEM
        mappings.add(Mapping(at, block, domain, medium, number), user=user)
        block.touched = True
        self.blocks.pin(block)
        self.statistics.hits += 1
        return 0

    # Memory that others need (firmware.memory.heap.Keeper)

    def shrink(self, count: int) -> None:
        """Give back so many frames, or all there are."""
        self.statistics.reclaimed += self._release(count)

    def surrender(self, frames: list[int]) -> None:
        """Give back these frames."""
        for mfn in frames:
            self._drop(self.blocks.at(mfn))
        self.statistics.reclaimed += len(frames)

    def _release(self, count: int) -> int:
        blocks, released = self.blocks, 0
        while released < count:
            block = blocks.victim() or blocks.first_pinned()
            if block is None:
                break
            self._drop(block)
            released += 1
        return released
