"""The way to a disk through the cache: what a back end submits to in the place of the disk's scheduler.

A read is divided by what is known of its blocks. Cached ones are copied at once, and are there after the time
that a copy takes. For blocks that somebody reads already it waits with them, unless its client would be
served sooner. The others are read, whole blocks at a time, into frames of the cache, and copied from there:
no data ever comes from a guest's memory into the cache. A read that meets a write on its way goes past the
cache.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import groupby
from typing import Final

from firmware.disk.cache import BufferCache
from firmware.disk.cache_reads import NOWHERE, Fill, Reading, deliver, within
from firmware.disk.cache_store import BLOCK, BLOCK_SHIFT, SECTORS, SECTORS_SHIFT
from firmware.disk.client import Client
from firmware.disk.parts import cut
from firmware.disk.scheduler import DiskScheduler, Done
from machine.disk import SECTOR, DiskRequest, Operation

REQUEST_NS: Final = 2_000
"""Virtual ns that finding the blocks of a read takes."""
BLOCK_NS: Final = 1_000
"""Virtual ns that copying 4 KiB takes: about 4 GB/s, what one processor of the time copies."""


class CachedQueue:
    """One disk's queue with the cache in front of it."""

    __slots__ = ("_blocks", "_cache", "_image", "_medium", "_readings", "_scheduler", "_writes")

    def __init__(self, cache: BufferCache, scheduler: DiskScheduler) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._medium = scheduler.disk.medium
        self._image = self._medium.image
        self._blocks = scheduler.disk.sectors >> SECTORS_SHIFT
        """Whole blocks of the disk; what is behind them is not cached."""
        self._readings: dict[Client, dict[Reading, None]] = {}
        self._writes: dict[DiskRequest, tuple[Client, Done]] = {}

    def add(self, client: Client) -> None:
        """A new client of the disk."""
        self._scheduler.add(client)
        self._readings[client] = {}

    def remove(self, client: Client) -> None:
        """A client is gone: nothing of it is reported, and its domain sees none of the disk's blocks any
        more.
        """
        cache = self._cache
        self._scheduler.remove(client)
        for reading in self._readings.pop(client):
            reading.over = True
        for request in [request for request, (owner, _) in self._writes.items() if owner is client]:
            del self._writes[request]
            cache.end_write(self._medium, request)
        for fill in cache.fills():
            if fill.client is client:
                cache.end_fill(fill, good=False)
                self._pass_on(fill)
        mappings = cache.mappings
        mappings.revoke(
            mapping for mapping in mappings.of_domain(client.domain) if mapping.medium is self._medium
        )

    def submit(self, client: Client, request: DiskRequest) -> None:
        """Carry out a request, which must be within the disk and memory; its `done` is called when it is
        done.
        """
        if request.operation == Operation.READ:
            self._read(client, request)
        elif request.operation == Operation.FLUSH:
            self._scheduler.submit(client, request)
        else:
            self._write(client, request)

    # Reads

    def _read(self, client: Client, request: DiskRequest) -> None:
        cache = self._cache
        first = request.sector >> SECTORS_SHIFT
        end = request.sector + request.sectors + SECTORS - 1 >> SECTORS_SHIFT
        if end > self._blocks or cache.being_written(self._medium, first, end):
            cache.statistics.bypassed += 1
            self._scheduler.submit(client, request)
            return
        blocks = cache.blocks
        images = self._images(first, end)
        frames = []
        hits = 0
        for number, image in enumerate(images, first):
            block = blocks.of(image).get(number)
            if block is None:
                frames.append(NOWHERE)
            else:
                blocks.used(block)
                frames.append(block.mfn)
                hits += 1
        reading = Reading(request, client, self._medium, self._finish, self._reread)
        self._readings[client][reading] = None
        now = request.submitted = request.started = cache.clock.now
        if hits:
            cache.statistics.hits += hits
            deliver(cache.memory, request, first, frames)
        if hits < len(frames):
            self._fetch(reading, first, images, frames)
        if hits:
            cache.clock.at(now + REQUEST_NS + hits * BLOCK_NS, reading.copied)
        else:
            reading.arrived()

    def _images(self, first: int, end: int) -> list[Hashable]:
        """What the blocks are to be found under."""
        image, medium = self._image, self._medium
        whole = image(first << SECTORS_SHIFT, end - first << SECTORS_SHIFT)
        if whole is not None or end - first == 1:
            return [whole or medium] * (end - first)
        return [image(number << SECTORS_SHIFT, SECTORS) or medium for number in range(first, end)]

    def _fetch(self, reading: Reading, first: int, images: list[Hashable], frames: list[int]) -> None:
        """Have what is not cached read, or wait for those who read it."""
        cache, statistics = self._cache, self._cache.statistics
        missing = [
            (number, cache.fill_of(images[number - first], number))
            for number, mfn in enumerate(frames, first) if mfn == NOWHERE
        ]
        # Neighbours that are in the same fill, or in none, go together.
        for (_, fill), group in groupby(
            enumerate(missing), key=lambda item: (item[1][0] - item[0], item[1][1])
        ):
            numbers = [number for _, (number, _) in group]
            begin, end = numbers[0], numbers[-1] + 1
            reading.left += 1
            if fill is not None and self._may_wait(reading.client, fill):
                statistics.merged += end - begin
                fill.waiters.append((reading, begin, end))
            elif fill is not None:
                statistics.bypassed += 1
                self._reread(reading, begin, end)
            else:
                self._fill(reading, begin, images[begin - first : end - first])

    def _may_wait(self, client: Client, fill: Fill) -> bool:
        """Whether the client's place at this disk is no better than that of the read under way."""
        if fill.client is client or fill.medium is not self._medium:
            return True
        return self._scheduler.policy.may_wait(client, fill.client)

    def _fill(self, reading: Reading, first: int, images: list[Hashable]) -> None:
        cache = self._cache
        frames: list[int] = []
        while len(frames) < len(images) and (mfn := cache.take()) is not None:
            frames.append(mfn)
        end = first + len(frames)
        if len(frames) < len(images):
            cache.statistics.bypassed += 1
            reading.left += bool(frames)
            self._reread(reading, end, first + len(images))
        if frames:
            cache.statistics.misses += len(frames)
            fill = Fill(self._medium, reading.client, first, images[: len(frames)], frames, self._filled)
            fill.waiters.append((reading, first, end))
            cache.begin_fill(fill)
            pieces = tuple((mfn << BLOCK_SHIFT, BLOCK) for mfn in frames)
            self._scheduler.submit(reading.client, DiskRequest(
                Operation.READ, first << SECTORS_SHIFT, len(frames) << SECTORS_SHIFT, pieces, fill.landed))

    def _filled(self, fill: Fill, error: int) -> None:
        """The disk has read blocks into the cache, or failed: then only the one it was for gets the error, if
        it wanted all that was read. That a sector cannot be read is not its neighbours' fault.
        """
        cache = self._cache
        if error:
            cache.end_fill(fill, good=False)
            reading, first, end = fill.waiters[0]
            if within(reading.request, first, end)[1] == len(fill.frames) << SECTORS_SHIFT:
                del fill.waiters[0]
                reading.arrived(error)
            self._pass_on(fill)
            return
        waiters = [waiter for waiter in fill.waiters if not waiter[0].over]
        for reading, first, end in waiters:
            begin = first - fill.first
            deliver(cache.memory, reading.request, first, fill.frames[begin : begin + end - first])
        cache.end_fill(fill, good=True)
        for reading, _, _ in waiters:
            reading.arrived()

    @staticmethod
    def _pass_on(fill: Fill) -> None:
        """The fill came to nothing: those who waited for it read for themselves."""
        for reading, first, end in fill.waiters:
            reading.reread(reading, first, end)

    def _reread(self, reading: Reading, first: int, end: int) -> None:
        """Have the disk read these blocks of a read straight to where they are wanted, if they still are."""
        if reading.over:
            return
        request = reading.request
        sector, sectors = within(request, first, end)
        pieces = cut(request.pieces, (sector - request.sector) * SECTOR, sectors * SECTOR)
        self._scheduler.submit(
            reading.client, DiskRequest(Operation.READ, sector, sectors, pieces, reading.landed))

    def _finish(self, reading: Reading) -> None:
        request = reading.request
        del self._readings[reading.client][reading]
        request.error = reading.error
        request.finished = self._cache.clock.now
        request.done(request)

    # Writes and discards

    def _write(self, client: Client, request: DiskRequest) -> None:
        first = request.sector >> SECTORS_SHIFT
        end = request.sector + request.sectors + SECTORS - 1 >> SECTORS_SHIFT
        self._cache.begin_write(self._medium, request, first, end)
        self._writes[request] = client, request.done
        request.done = self._written
        self._scheduler.submit(client, request)

    def _written(self, request: DiskRequest) -> None:
        _, request.done = self._writes.pop(request)
        self._cache.end_write(self._medium, request)
        request.done(request)
