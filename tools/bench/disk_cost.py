"""What a request through a guest's ring costs the host: back end, scheduler, emulated disk, image.

The host plays the frontends, of domains that do not run, so that nothing else is measured. The image is a
sparse file that the host keeps in memory.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from firmware.abi.io_blkif import BLKIF_OP_READ, BLKIF_OP_WRITE
from tools.bench.report import Report
from tools.disksim.front import Front
from xenpy.system import System

REQUEST_US: Final = 60.0
PAGE_US: Final = 15.0
DISK_MIB: Final = 16
PAGE_SECTORS: Final = 8
PAGES: Final = DISK_MIB << 8
MANY_PAGES: Final = 32
"""Pages of a request of Linux' blkfront at most, when nothing else is asked for (xen_blkif_max_segments)."""
REQUESTS: Final = 4_000
DOMAINS: Final = 64
ON_ONE_DISK: Final = 8
OPERATIONS: Final = (("read", BLKIF_OP_READ), ("write", BLKIF_OP_WRITE))


@dataclass(frozen=True)
class Way:
    """One way of asking: pages a request, requests in the ring at a time, MiB of buffer cache, and whether
    grants are kept.
    """

    name: str
    pages: int
    depth: int
    cache: int = 0
    persistent: bool = True


WAYS: Final = (
    Way("4 KiB, one at a time", 1, 1),
    Way("4 KiB, 32 at a time", 1, 32),
    Way("4 KiB, one at a time, cached", 1, 1, 2 * DISK_MIB),
    Way("4 KiB, one at a time, grants not kept", 1, 1, persistent=False),
    Way("128 KiB, 4 at a time", MANY_PAGES, 4),
    Way("128 KiB, 4 at a time, cached", MANY_PAGES, 4, 2 * DISK_MIB),
    Way("128 KiB, 4 at a time, grants not kept", MANY_PAGES, 4, persistent=False),
)


def measure(report: Report, rounds: int, say: Callable[[str], None]) -> None:
    """All of it; the median of `rounds` rounds counts."""
    numbers: dict[str, float] = {}
    for way in WAYS:
        say(f"disk cost: {way.name}")
        with fronts(1, 1, way) as (front,):
            for name, operation in OPERATIONS:
                runs = [_cost([front], way, operation, REQUESTS // way.pages) for _ in range(rounds + 1)]
                us = statistics.median(runs[1:])
                numbers[f"{name}, {way.name}"] = us
                if way.pages == 1:
                    report.promise(f"host cost of a {name}, {way.name}", REQUEST_US, us, "us")
                else:
                    report.promise(f"host cost of a page, {name}, {way.name}", PAGE_US, us / way.pages, "us")
    for domains, disks in ((DOMAINS, DOMAINS), (ON_ONE_DISK, 1)):
        what = f"{domains} domains on {disks} disk{'s' if disks > 1 else ''}"
        say(f"disk cost: {what}")
        way = Way(what, 1, 8)
        with fronts(domains, disks, way) as many:
            for name, operation in OPERATIONS:
                runs = [_cost(many, way, operation, REQUESTS // domains) for _ in range(rounds + 1)]
                us = statistics.median(runs[1:])
                numbers[f"{name}, {what}"] = us
                report.promise(f"host cost of a {name}, {what}", REQUEST_US, us, "us")
    report.numbers["disk request us"] = numbers


@contextmanager
def fronts(domains: int, disks: int, way: Way) -> Iterator[list[Front]]:
    """Connected frontends in as many domains, sharing the disks among them."""
    with System(memory=64 + 16 * domains, disk_cache=way.cache) as system:
        emulated = [system.add_disk(size=DISK_MIB, scheduler="fifo" if disks == domains else "cello")
                    for _ in range(disks)]
        made = []
        for number in range(domains):
            disk = emulated[number % disks].use("xvda", shared=True)
            guest = system.add_domain("builtin:hello", memory=8, disks=[disk])
            front = Front(system, guest, way.pages * way.depth)
            front.connect(persistent=way.persistent)
            made.append(front)
        yield made


def _cost(many: list[Front], way: Way, operation: int, requests: int) -> float:
    """Processor time of a request, us, when each front asks for so many."""
    chance = random.Random(requests)
    spent = 0.0
    done = 0
    while done < requests * len(many):
        for front in many:
            for index in range(way.depth):
                page = chance.randrange(PAGES - way.pages) // way.pages * way.pages
                front.put(operation, page * PAGE_SECTORS, way.pages, index * way.pages)
            front.publish()
        begun = time.thread_time()
        for front in many:
            front.kick()
        many[0].work()
        spent += time.thread_time() - begun
        for front in many:
            done += front.collect()
    return spent / done * 1e6
