"""memory_op: allowances, orders, owners; and what a frame holds when it is given out."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

RESERVATION: Final = "firmware/memory/reservation.py"
FOREIGN: Final = "firmware/memory/foreign.py"
EXCHANGE: Final = "firmware/memory/exchange.py"
HEAP: Final = "firmware/memory/heap.py"

AREA: Final = Area(
    "reservation",
    ("tests/memory/test_calls.py", "tests/memory/test_limits.py", "tests/memory/test_foreign.py"),
    (
        Mutant(
            "a domain's allowance",
            RESERVATION,
            "if owner.pages + count > owner.maximum:\n            return None\n",
            "pass\n",
        ),
        Mutant(
            "the largest extent",
            RESERVATION,
            "if below is None or on_demand or request.extent_order > MAX_ORDER:",
            "if below is None or on_demand:",
        ),
        Mutant(
            "the address width asked for",
            RESERVATION,
            "if below is None or on_demand or request.extent_order > MAX_ORDER:\n                return done",
            "if request.extent_order > MAX_ORDER:\n"
            "                return done\n"
            "            below = self._size",
        ),
        Mutant(
            "the number of extents",
            RESERVATION,
            "if request.nr_extents > EXTENTS_LIMIT or done >= request.nr_extents:",
            "if done >= request.nr_extents:",
        ),
        Mutant(
            "whose reservation it is",
            RESERVATION,
            "if self._any_domain(vcpu, request.domid) is not vcpu.domain:",
            "if False:",
        ),
        Mutant(
            "the list's range",
            RESERVATION,
            "if request.extent_start and not vcpu.space.allowed(",
            "if False and not vcpu.space.allowed(",
        ),
        Mutant(
            "decrease: whose frame",
            RESERVATION,
            "if not self._types.get_page(mfn, owner):\n"
            "            return False\n"
            "        self._types.drop_own_reference(mfn)\n"
            "        self._types.put_page(mfn)",
            "self._types.drop_own_reference(mfn)",
        ),
        Mutant(
            "populate: the machine-to-phys entry",
            RESERVATION,
            "self._m2p.set(mfn + page, pfn + page & WORD)",
            "pass",
        ),
        Mutant(
            "numbers of other domains",
            RESERVATION,
            "if domain is not vcpu.domain:\n            raise HypercallError(EPERM)\n",
            "pass\n",
        ),
        Mutant(
            "a long memory map",
            RESERVATION,
            "if request.map.nr_entries > MAP_LIMIT:\n            return -EINVAL\n",
            "pass\n",
        ),
        Mutant(
            "exchange: the largest extent",
            EXCHANGE,
            "if max(source.extent_order, target.extent_order) > MAX_ORDER:",
            "if False:",
        ),
        Mutant(
            "exchange: as many frames as given",
            EXCHANGE,
            "or source.nr_extents << source.extent_order != target.nr_extents << target.extent_order",
            "",
        ),
        Mutant(
            "exchange: not more than there are",
            EXCHANGE,
            "exchanged > source.nr_extents\n            or source",
            "source",
        ),
        Mutant("exchange: one domain", EXCHANGE, "or source.domid != target.domid\n", ""),
        Mutant(
            "exchange: no overflow",
            EXCHANGE,
            "or WORD >> source.extent_order < source.nr_extents\n"
            "            or WORD >> target.extent_order < target.nr_extents\n",
            "",
        ),
        Mutant(
            "exchange: the lists' range",
            EXCHANGE,
            "if not vcpu.space.allowed(source.extent_start, source.nr_extents * width) or not "
            "vcpu.space.allowed(\n"
            "            target.extent_start, target.nr_extents * width\n"
            "        ):",
            "if False:",
        ),
        Mutant(
            "exchange: the address width",
            EXCHANGE,
            "if frame_limit(self._size, target.mem_flags & ~0xFF) is None:",
            "if False:",
        ),
        Mutant(
            "exchange: whose frames",
            EXCHANGE,
            "return None if domain is vcpu.domain else -EPERM",
            "return None",
        ),
        Mutant("exchange: a failure puts back what was taken", EXCHANGE, "heap.restore(owner, mfn)", "pass"),
        Mutant(
            "exchange: a failure puts back the new frames", EXCHANGE, "heap.give_back(run, count)", "pass"
        ),
        Mutant("exchange: the old frames are freed", EXCHANGE, "heap.release(mfn)", "pass"),
        Mutant("a frame is cleared before reuse", HEAP, "self._memory.fill(first << 12, 4096)", "pass"),
        Mutant(
            "a run of frames is cleared before reuse",
            HEAP,
            "self._memory.fill((first + offset) << 12, 4096)",
            "pass",
        ),
        Mutant(
            "a freed frame is known to be dirty", HEAP, "frames.counts[mfn] = DIRTY", "frames.counts[mfn] = 0"
        ),
        Mutant("a freed frame has no machine-to-phys entry", HEAP, "self.m2p.set(mfn, INVALID)", "pass"),
        Mutant(
            "Xen's frames do not enter the guests' heap",
            HEAP,
            "if frames.counts[mfn] & XEN_HEAP:",
            "if False:",
        ),
        Mutant("runs below an address", HEAP, "end = min(ends[index], limit)", "end = ends[index]"),
        Mutant("a run is taken out of the free ones", HEAP, "self._cut(index, first, first + count)", "pass"),
        Mutant(
            "populate on demand is not one's own to ask for",
            RESERVATION,
            "if below is None or on_demand or request",
            "if below is None or request",
        ),
        Mutant("virtual nodes are not looked at", RESERVATION, "if flags & abi.XENMEMF_vnode:", "if False:"),
        Mutant(
            "access_op: of whom",
            FOREIGN,
            "return -EPERM if domain is vcpu.domain else -EINVAL",
            "return -EPERM",
        ),
        Mutant(
            "device memory: the list", FOREIGN, "if not vcpu.space.allowed(buffer,", "if False and (buffer,"
        ),
        Mutant(
            "virtual nodes: of others", FOREIGN, "-EOPNOTSUPP if domain is vcpu", "-EOPNOTSUPP if vcpu"
        ),
        Mutant(
            "acquire_resource: of whom",
            FOREIGN,
            "return -ESRCH if self._domains.by_id(request.domid) is None else -EPERM\n",
            "return -EPERM\n",
        ),
    ),
)
