"""Which page tables show cached blocks, and taking the blocks out of them.

A guest may take an entry away without a word; what is noted here is then out of date, and is found out before
it matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

from firmware.abi.block_cache import VIRQ_BLKCACHE
from firmware.disk.cache_store import Block
from firmware.domain.domain import Domain
from firmware.memory.block_frames import BlockFrames
from machine.disk import Medium

SOME: Final = 16
"""Mappings that are looked at in one call, so that none takes long."""


class Mapping:
    """The L1 entry at machine address `at` of `domain` shows `block`, which is block `number` of `medium`."""

    __slots__ = ("at", "block", "domain", "medium", "number")

    def __init__(self, at: int, block: Block, domain: Domain, medium: Medium, number: int) -> None:
        self.at = at
        self.block = block
        self.domain = domain
        self.medium = medium
        self.number = number


class Mappings:
    """Every mapping, by the address of its entry. `unmapped` is told of a block nobody maps any more."""

    __slots__ = ("_blocks", "_domains", "_entries", "_frames", "_places", "_unmapped", "revoked")

    def __init__(self, frames: BlockFrames, unmapped: Callable[[Block], None]) -> None:
        self._frames = frames
        self._unmapped = unmapped
        self._entries: dict[int, Mapping] = {}
        self._blocks: dict[Block, dict[int, Mapping]] = {}
        self._domains: dict[int, dict[int, Mapping]] = {}
        self._places: dict[tuple[Medium, int], dict[int, Mapping]] = {}
        self.revoked = 0

    def count(self, domain: Domain) -> int:
        """How many a domain has, at most."""
        return len(self._domains.get(domain.id, ()))

    def add(self, mapping: Mapping, *, user: bool) -> None:
        """Enter it into the page table."""
        old = self._entries.get(mapping.at)
        self._frames.enter(mapping.at, mapping.block.mfn, mapping.domain.memory, user=user)
        if old is not None:
            self._forget(old)
        self._entries[mapping.at] = mapping
        for index, key in self._indices(mapping):
            index.setdefault(key, {})[mapping.at] = mapping

    def at(self, at: int) -> Mapping | None:
        """The mapping by an entry; None when there is none, or none any more."""
        mapping = self._entries.get(at)
        return mapping if mapping is not None and self.settle(mapping) else None

    def of(self, block: Block) -> list[Mapping]:
        """The mappings of a block."""
        return list(self._blocks.get(block, {}).values())

    def all(self) -> list[Mapping]:
        """All there are, and some that guests took away."""
        return list(self._entries.values())

    def of_domain(self, number: int) -> list[Mapping]:
        """All that a domain has."""
        return list(self._domains.get(number, {}).values())

    def within(self, medium: Medium, first: int, end: int) -> list[Mapping]:
        """The mappings that show blocks from `first` to below `end` of a medium."""
        places = self._places
        if end - first > len(places):
            found = [place for place in places if place[0] is medium and first <= place[1] < end]
        else:
            found = [place for number in range(first, end) if (place := (medium, number)) in places]
        return [mapping for place in found for mapping in places[place].values()]

    def settle(self, mapping: Mapping) -> bool:
        """Whether the entry still shows the block; if not, it is forgotten."""
        if self._frames.holds(mapping.at, mapping.block.mfn, mapping.domain.memory):
            return True
        self._forget(mapping)
        return False

    def tidy(self, domain: Domain) -> None:
        """Find out of some of a domain's mappings, others each time, whether they still are."""
        mine = self._domains.get(domain.id, {})
        for mapping in list(islice(mine.values(), SOME)):
            if self.settle(mapping):
                mine[mapping.at] = mine.pop(mapping.at)

    def drop(self, mapping: Mapping) -> None:
        """The domain asked for it: the entry is not present any more."""
        self._frames.zap(mapping.at, mapping.block.mfn, mapping.domain.memory)
        self._forget(mapping)

    def revoke(self, mappings: Iterable[Mapping]) -> None:
        """The same without its asking: it gets an event, VIRQ_BLKCACHE on its vCPU 0."""
        told: dict[Domain, None] = {}
        for mapping in mappings:
            if self._frames.zap(mapping.at, mapping.block.mfn, mapping.domain.memory):
                told[mapping.domain] = None
                self.revoked += 1
            self._forget(mapping)
        for domain in told:
            if not domain.state.ended:
                domain.events.send_virq(domain.vcpus[0], VIRQ_BLKCACHE)

    def _indices(self, mapping: Mapping) -> tuple[tuple[dict[Any, dict[int, Mapping]], Any], ...]:
        return (
            (self._blocks, mapping.block),
            (self._domains, mapping.domain.id),
            (self._places, (mapping.medium, mapping.number)),
        )

    def _forget(self, mapping: Mapping) -> None:
        del self._entries[mapping.at]
        for index, key in self._indices(mapping):
            entries = index[key]
            del entries[mapping.at]
            if not entries:
                del index[key]
        if mapping.block not in self._blocks:
            self._unmapped(mapping.block)
