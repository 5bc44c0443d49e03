"""The buffer cache: nothing stale, nothing of another's, read-only for ever, and memory that comes back."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

CACHE: Final = "firmware/disk/cache.py"
FRAMES: Final = "firmware/memory/block_frames.py"
GRANTS: Final = "firmware/memory/grants.py"
HEAP: Final = "firmware/memory/heap.py"
MAPS: Final = "firmware/disk/cache_maps.py"
OPS: Final = "firmware/disk/cache_ops.py"
OVERLAY: Final = "machine/disk/overlay.py"
QUEUE: Final = "firmware/disk/cache_queue.py"
RAW: Final = "machine/disk/raw.py"
FILE: Final = "machine/disk/hostfile.py"

AREA: Final = Area(
    "block cache",
    ("tests/disk/test_cache.py", "tests/disk/test_cache_maps.py", "tests/disk/test_cache_map_storm.py",
     "tests/disk/test_cache_storm.py"),
    (
        Mutant("a write drops what is cached", CACHE,
               "        for block in found:\n            self._drop(block)\n", ""),
        Mutant("a write of much drops it too", CACHE,
               "if first <= number < end]\n        else", "if False]\n        else"),
        Mutant("a write overtakes what is being read", CACHE, "self._overtaken(fill)", "pass"),
        Mutant("what was overtaken is not kept", CACHE, "fill.stale = True", "fill.stale = False"),
        Mutant("nobody joins what was overtaken", CACHE,
               "fill.stale = True\n            self._no_more_readers(fill)", "fill.stale = True"),
        Mutant("other disks do not see what was overtaken", CACHE, "reading.reread(reading, first, end)",
               "fill.waiters.append((reading, first, end))"),
        Mutant("reads beside a write go past", QUEUE,
               "cache.being_written(self._medium, first, end)", "False"),
        Mutant("a write in whole blocks", QUEUE,
               "first = request.sector >> SECTORS_SHIFT\n"
               "        end = request.sector + request.sectors + SECTORS - 1 >> SECTORS_SHIFT\n"
               "        self._cache",
               "first = request.sector + SECTORS - 1 >> SECTORS_SHIFT\n"
               "        end = request.sector + request.sectors >> SECTORS_SHIFT\n"
               "        self._cache"),
        Mutant("what failed is not kept", CACHE, "if good and not fill.stale and", "if not fill.stale and"),
        Mutant("only whole blocks", QUEUE, "end > self._blocks or ", ""),
        Mutant("a layer's own blocks are its own", OVERLAY,
               "None if self._bitmap.any(sector, sectors) else ", ""),
        Mutant("what may be written is no image", RAW,
               "(\"raw\", *self._file.identity) if self.read_only else None",
               "(\"raw\", *self._file.identity)"),
        Mutant("a file that changed is another", FILE, "found.st_dev, found.st_ino, found.st_rdev, self.size,"
               " found.st_mtime_ns, found.st_ctime_ns)", "found.st_dev, found.st_ino)"),
        Mutant("a client that is gone is not told", QUEUE, "reading.over = True", "reading.over = False"),
        Mutant("a client that is gone reads for nobody", QUEUE,
               "cache.end_fill(fill, good=False)\n                self._pass_on(fill)", "pass"),
        Mutant("others do not wait for the gone", QUEUE,
               "cache.end_fill(fill, good=False)\n                self._pass_on(fill)",
               "cache.end_fill(fill, good=False)"),
        Mutant("the error of one is not all's", QUEUE,
               "            self._pass_on(fill)\n            return",
               "            for other, _, _ in fill.waiters:\n                other.arrived(error)\n"
               "            return"),
        Mutant("a write that will never be blocks nobody", QUEUE,
               "del self._writes[request]\n            cache.end_write(self._medium, request)", "pass"),
        Mutant("a block cannot become writable", FRAMES,
               "frames.types[mfn] = ONE | VALIDATED | SHARED",
               "frames.types[mfn] = ONE | VALIDATED | WRITABLE"),
        Mutant("nobody's frame", FRAMES, "frames.owners[mfn] = CACHE_TAG", "frames.owners[mfn] = 2"),
        Mutant("a mapping is for reading", FRAMES, "| PRESENT | ACCESSED | NO_EXECUTE",
               "| PRESENT | ACCESSED | 2 | NO_EXECUTE"),
        Mutant("a mapping is not for execution", FRAMES, "| ACCESSED | NO_EXECUTE |", "| ACCESSED |"),
        Mutant("a mapping is a reference", FRAMES, "self._types.counts[mfn] += ONE", "pass"),
        Mutant("what was there is dropped", FRAMES, "self._types.put_page_from_l1(old)", "pass"),
        Mutant("entries are aligned", FRAMES, "if at & 7 or not", "if not"),
        Mutant("entries are in memory", FRAMES, "not 0 < at >> 12 < types.frames.size", "not 0 < at >> 12"),
        Mutant("entries are the caller's", FRAMES, "types.owners[mfn] == owner.tag and word", "word"),
        Mutant("entries are in a table", FRAMES,
               "and word & VALID_MASK == L1_TABLE | VALIDATED and word >= ONE", ""),
        Mutant("an entry that changed is left alone", FRAMES,
               "if not self.holds(at, mfn, owner):", "if False:"),
        Mutant("a block taken away is in no TLB", FRAMES,
               "types.shootdown.older(owner, types.shootdown.clock, mfn)", "pass"),
        Mutant("a block taken away is let go of", FRAMES,
               "types.shootdown.clock, mfn)\n        types.put_page(mfn)", "types.shootdown.clock, mfn)"),
        Mutant("a frame somebody mapped is in no TLB", HEAP,
               "self._shootdown.everyone(frames.stamps[mfn], mfn)\n        self._cut",
               "pass\n        self._cut"),
        Mutant("a block that was mapped does not become another", CACHE, "block.touched = True", "pass"),
        Mutant("a moved entry", GRANTS,
               "if moved & PRESENT and self._types.owners[(moved & ADDRESS) >> 12] == CACHE_TAG:",
               "if False:"),
        Mutant("memory comes back", HEAP,
               "if count > self.free and self.keeper is not None:", "if False and self.keeper is not None:"),
        Mutant("single frames come back", HEAP, "keeper.shrink(1)\n            return True", "return False"),
        Mutant("runs come back", HEAP, "keeper.surrender(cached.tolist())", "pass"),
        Mutant("mapped blocks come back", CACHE, "block = blocks.victim() or blocks.first_pinned()",
               "block = blocks.victim()"),
        Mutant("cached frames are counted", HEAP, "self.cached -= 1\n        elif", "pass\n        elif"),
        Mutant("the limit", CACHE, "if blocks.size + self.filling < self.limit else None", ""),
        Mutant("the quota", CACHE,
               "if mappings.count(domain) >= self.quota:\n                return -ENOSPC", "pass"),
        Mutant("what the guest took away is not counted", CACHE,
               "mappings.tidy(domain)\n            if mappings", "pass\n            if mappings"),
        Mutant("mapped blocks are few", CACHE,
               "self._settle_pinned()\n            if (self.blocks.pinned + 1) * PINNED_PART > self.limit:",
               "if False:"),
        Mutant("what is not mapped any more does not count", CACHE,
               "self._settle_pinned()\n            if (self", "if (self"),
        Mutant("what is not mapped any more makes room", CACHE,
               "self._settle_pinned()\n                block", "block"),
        Mutant("no mapping beside a write", CACHE,
               "if self.being_written(medium, number, number + 1) or self.fill_of", "if self.fill_of"),
        Mutant("a write takes mappings of images away", CACHE,
               "self.mappings.revoke(self.mappings.within(medium, first, end))", "pass"),
        Mutant("only those of its own disk", MAPS,
               "(place := (medium, number)) in places]",
               "(place := (medium, number)) in places] or list(places)"),
        Mutant("the guest is told", MAPS, "told[mapping.domain] = None", "pass"),
        Mutant("an old place is forgotten", MAPS,
               "if old is not None:\n            self._forget(old)", "if old is not None:\n            pass"),
        Mutant("who has the call", OPS, "if vcpu.domain.id not in self._domains:", "if False:"),
        Mutant("the end of a domain", OPS, "mappings.revoke(mappings.of_domain(domain.id))", "pass"),
        Mutant("flags", OPS, "if flags & ~FLAGS:", "if False:"),
        Mutant("flags of unmap", OPS, "if request.flags & ~abi.BLKCACHE_contains_pte or request.pad:",
               "if request.pad:"),
        Mutant("padding of unmap", OPS, " or request.pad:", ":"),
        Mutant("a disk that is not there", OPS, "if disk is None:\n            raise",
               "if False:\n            raise"),
        Mutant("the end of a disk", OPS, "if block >= disk.sectors >> SECTORS_SHIFT:", "if False:"),
        Mutant("no block of two extents", OPS, "if more or extent", "if extent"),
        Mutant("no block beside the extent", OPS, "if more or extent.sector % SECTORS:", "if more:"),
        Mutant("a disk that goes", QUEUE, "if mapping.medium is self._medium\n", "if False\n"),
    ),
)
