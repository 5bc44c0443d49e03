"""Flash: the timing of a solid-state drive, from its channels and dies.

Pages lie round the channels, then round the dies of each. A read senses a page in its die and then moves it
over the channel; a write moves it and then programs the die; a die does one thing at a time, a channel moves
one page at a time, and both are taken in the order in which requests begin. Who writes less than a page has
the rest of it read first. Each die erases a block, which takes it away for that time, when as many pages have
been programmed as a block has: the steady state of a drive that collects no garbage but its own. The link to
the host moves one request at a time. Writes are in the flash when they finish: there is no volatile cache, so
a flush costs the command's time only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .model import Head
from .request import SECTOR, DiskRequest, Operation

_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class FlashPart:
    """A drive made of one kind of flash. Times in nanoseconds, `page` in bytes."""

    name: str
    channels: int
    dies: int
    """Dies on each channel."""
    page: int
    pages_per_block: int
    sense: int
    """A page from the cells to the die's register."""
    program: int
    """A page from the register to the cells."""
    erase: int
    """A block."""
    move: int
    """A page over the channel."""
    command: int
    """The controller's work before a request."""
    link_rate: int
    """Bytes a second between drive and host."""
    depth: int


SLC_2008: Final = FlashPart(
    name="8 x Samsung K9XXG08UXM (SLC)",
    channels=8,
    dies=2,
    page=4096,
    pages_per_block=64,
    sense=25_000,
    program=200_000,
    erase=1_500_000,
    move=100_000,
    command=10_000,
    link_rate=300_000_000,
    depth=32,
)
"""The flash and the eight packages of two dies of N. Agrawal et al., "Design Tradeoffs for SSD Performance",
USENIX 2008, table 1 (25 us page read, 200 us program, 1.5 ms erase, 100 us for 4 KiB over the serial bus,
blocks of 256 KiB), each package with a channel of its own; link and queue of SATA II. The 10 us of a command
are our assumption.
"""


class Flash:
    """The model of `part`. The image's size does not matter to it."""

    __slots__ = ("_page_sectors", "concurrent", "depth", "name", "part")

    def __init__(self, part: FlashPart = SLC_2008) -> None:
        self.part = part
        self.name = part.name
        self.depth = self.concurrent = part.depth
        self._page_sectors = part.page // SECTOR

    def head(self) -> Head:
        """Everything idle. Lanes: the link, the channels, the dies (those of channel 0 first)."""
        part = self.part
        return Head(1 + part.channels + part.channels * part.dies, part.channels * part.dies)

    def worst(self, operation: Operation, sectors: int) -> int:
        """See `Model`: pages as unevenly on dies and channels as they can lie, each read first, and an
        erasure under way on each.
        """
        part = self.part
        if operation > Operation.WRITE:
            return part.command
        pages = sectors // self._page_sectors + 2
        on_die = -(-pages // (part.channels * part.dies)) + 1
        on_channel = -(-pages // part.channels) + 1
        cells = on_die * (part.sense + part.program) + (on_die // part.pages_per_block + 2) * part.erase
        link = sectors * SECTOR * _NS // part.link_rate
        return part.command + link + cells + 2 * on_channel * part.move

    def reach(self, request: DiskRequest, head: Head, now: int) -> int:
        """See `Model`."""
        die = 1 + self.part.channels + self._die(request.sector // self._page_sectors)
        return max(0, head.lanes[die] - now)

    def service(self, request: DiskRequest, head: Head, now: int) -> int:
        """See `Model`."""
        part, lanes = self.part, head.lanes
        begin = now + part.command
        operation = request.operation
        if operation > Operation.WRITE:
            return begin - now
        link = request.sectors * SECTOR * _NS // part.link_rate
        per_page = self._page_sectors
        first, last = request.sector // per_page, (request.sector + request.sectors - 1) // per_page
        if operation == Operation.READ:
            end = begin
            for page in range(first, last + 1):
                moved = self._read(page, begin, lanes)
                if moved > end:
                    end = moved
            # Pages leave over the link as they come; the last one cannot leave before the link has moved all.
            end = max(end, max(begin, lanes[0]) + link)
            lanes[0] = end
            return end - now
        beyond = request.sector + request.sectors
        begin = lanes[0] = max(begin, lanes[0]) + link
        end = begin
        for page in range(first, last + 1):
            whole = request.sector <= page * per_page and (page + 1) * per_page <= beyond
            programmed = self._write(page, begin if whole else self._read(page, begin, lanes), head)
            if programmed > end:
                end = programmed
        return end - now

    def _die(self, page: int) -> int:
        part = self.part
        return page % part.channels * part.dies + page // part.channels % part.dies

    def _read(self, page: int, begin: int, lanes: list[int]) -> int:
        part = self.part
        channel = 1 + page % part.channels
        die = 1 + part.channels + self._die(page)
        sensed = max(begin, lanes[die]) + part.sense
        # The register is the die's only one: the die is free when the page has left it.
        lanes[die] = lanes[channel] = max(sensed, lanes[channel]) + part.move
        return lanes[die]

    def _write(self, page: int, begin: int, head: Head) -> int:
        part, lanes = self.part, head.lanes
        channel = 1 + page % part.channels
        index = self._die(page)
        die = 1 + part.channels + index
        lanes[channel] = max(begin, lanes[channel], lanes[die]) + part.move
        programmed = lanes[die] = lanes[channel] + part.program
        head.worn[index] += 1
        if head.worn[index] == part.pages_per_block:
            head.worn[index] = 0
            lanes[die] += part.erase
        return programmed
