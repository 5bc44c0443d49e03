"""Which blocks are cached, and which of them makes room: 2Q (Johnson and Shasha, VLDB 1994, "full version").

A block that is new goes to the end of a first-in first-out queue (A1in). One that leaves it is remembered
by name only (A1out); asked for again while its name is there it goes to a queue ordered by last use (Am). So
what is read once, however much of it, does not drive out what is read again and again. The queues' sizes are
the paper's: a quarter of the blocks for A1in, names of as many as half the blocks.

A block that some domain maps is in neither queue, and makes room only when memory itself is asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from itertools import islice
from typing import Final

BLOCK_SHIFT: Final = 12
BLOCK: Final = 1 << BLOCK_SHIFT
"""Bytes of a block: a frame."""
SECTORS: Final = BLOCK // 512
SECTORS_SHIFT: Final = 3
IN_PART: Final = 4
"""A1in keeps at most one in so many blocks while there are others."""
OUT_PART: Final = 2


class Block:
    """Block `number` of 4 KiB of an image, in frame `mfn`. `touched`: some domain has had it mapped."""

    __slots__ = ("image", "mfn", "number", "queue", "touched")

    def __init__(self, image: Hashable, number: int, mfn: int) -> None:
        self.image = image
        self.number = number
        self.mfn = mfn
        self.touched = False
        self.queue: OrderedDict[Block, None] | None = None


class BlockStore:
    """The blocks by image and number, in their order of replacement."""

    __slots__ = ("_frames", "_frequent", "_ghosts", "_images", "_pinned", "_recent", "size")

    def __init__(self) -> None:
        self._images: dict[Hashable, dict[int, Block]] = {}
        self._frames: dict[int, Block] = {}
        self._recent: OrderedDict[Block, None] = OrderedDict()
        self._frequent: OrderedDict[Block, None] = OrderedDict()
        self._pinned: OrderedDict[Block, None] = OrderedDict()
        self._ghosts: OrderedDict[tuple[Hashable, int], None] = OrderedDict()
        self.size = 0

    def of(self, image: Hashable) -> dict[int, Block]:
        """The blocks of an image by number; not to be changed, nor kept."""
        return self._images.get(image, _NOTHING)

    def at(self, mfn: int) -> Block:
        """The block in a frame."""
        return self._frames[mfn]

    def used(self, block: Block) -> None:
        """It was asked for."""
        if block.queue is self._frequent:
            self._frequent.move_to_end(block)

    def add(self, block: Block) -> None:
        """A new block; there is none of its name."""
        self._images.setdefault(block.image, {})[block.number] = block
        self._frames[block.mfn] = block
        self.size += 1
        name = block.image, block.number
        if name in self._ghosts:
            del self._ghosts[name]
            self._enqueue(block, self._frequent)
        else:
            self._enqueue(block, self._recent)

    def remove(self, block: Block) -> None:
        """It is no longer cached."""
        numbers = self._images[block.image]
        del numbers[block.number], self._frames[block.mfn]
        if not numbers:
            del self._images[block.image]
        assert block.queue is not None
        del block.queue[block]
        block.queue = None
        self.size -= 1

    def pin(self, block: Block) -> None:
        """A domain maps it."""
        if block.queue is not self._pinned:
            self._move(block, self._pinned)

    def unpin(self, block: Block) -> None:
        """Nobody maps it any more: it was used, so it is one of the frequent."""
        if block.queue is self._pinned:
            self._move(block, self._frequent)

    @property
    def pinned(self) -> int:
        """How many somebody maps, or did when that was last looked at."""
        return len(self._pinned)

    def some_pinned(self, count: int) -> list[Block]:
        """Up to so many of those, others each time."""
        found = list(islice(self._pinned, count))
        for block in found:
            self._pinned.move_to_end(block)
        return found

    def first_pinned(self) -> Block | None:
        """One of them, mostly the one that was mapped first."""
        return next(iter(self._pinned), None)

    def victim(self) -> Block | None:
        """Which block nobody maps is to make room; it is still there. None when there is none."""
        recent, frequent = self._recent, self._frequent
        if recent and (not frequent or len(recent) * IN_PART > self.size):
            block = next(iter(recent))
            self._ghosts[block.image, block.number] = None
            while len(self._ghosts) * OUT_PART > self.size:
                self._ghosts.popitem(last=False)
            return block
        return next(iter(frequent), None)

    def _enqueue(self, block: Block, queue: OrderedDict[Block, None]) -> None:
        queue[block] = None
        block.queue = queue

    def _move(self, block: Block, queue: OrderedDict[Block, None]) -> None:
        assert block.queue is not None
        del block.queue[block]
        self._enqueue(block, queue)


_NOTHING: Final[dict[int, Block]] = {}
