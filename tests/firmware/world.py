"""A small world for the heart: real memory, domains and events; cores and a clock stepped by hand."""

from __future__ import annotations

from typing import Any, cast

from firmware.abi import xen
from firmware.domain.domain import Domain, DomainState
from firmware.domain.vcpu import VCpu
from firmware.events import EventChannelOps, EventChannels
from firmware.hypercalls import CONTINUE, ROWS, HypercallTable
from firmware.memory.guest import GuestSpace
from firmware.memory.owner import MemoryOwner
from firmware.memory.pte import ACCESSED, DIRTY, PRESENT, RW, USER
from firmware.memory.shootdown import Shootdown
from firmware.sched import policies  # noqa: F401  registers them
from firmware.sched.ops import SchedOps
from firmware.sched.placement import Placement
from firmware.sched.scheduler import Scheduler, SwitchCosts
from firmware.timers import Timers
from machine import registers as reg
from machine.clock import Clock
from machine.machine import Machine
from machine.memory import MachineMemory
from machine.topology import Topology

BASE = 0x40_0000
"""Where a domain's pages begin in its address space; RO_PAGE of them is read-only, HOLE is not there."""
PAGES = 256
RO_PAGE = BASE + 200 * 4096
HOLE = BASE + 201 * 4096
AFTER = BASE + 202 * 4096
XEN_ADDRESS = 0xFFFF_8000_0000_1000
NON_CANONICAL = 1 << 47
BAD_POINTERS = (0, HOLE, HOLE - 2, XEN_ADDRESS, NON_CANONICAL, (1 << 64) - 1)
NUMBERS = {row.name: row.number for row in ROWS}
TABLE = PRESENT | RW | USER | ACCESSED | DIRTY
DOMAIN_FRAMES = 300


class PlainCore:
    """A logical CPU: a register file, flags, and time that passes when it is told."""

    def __init__(self, index: int, clock: Clock) -> None:
        self.index = index
        self._file = bytearray(reg.FILE_SIZE)
        self.q = memoryview(self._file).cast("Q")
        self.d = memoryview(self._file).cast("I")
        self.clock = clock
        self.time = 0
        self.flags = 0x202
        self.current: object = None
        self.idle = False
        self.stopped = 0
        self.charged = 0
        self.waited = 0
        self.deadline = 1 << 62
        self.bank = 0
        self.flushes = 0
        self.ports = self.ts = False
        self.mode = (True, 3)
        self.breakpoints: tuple[tuple[int, int, int, int], int] | None = None
        self.fpu: list[int] = []
        self.set_cs(0xE033, 0, 0xFFFF_FFFF, 0x00A0_FB00)
        self.d[reg.SS_SELECTOR] = 0xE02B

    def now(self) -> int:
        return max(self.time, self.clock.now)

    def charge(self, ns: int) -> None:
        self.charged += ns

    def advance(self, to_ns: int) -> None:
        self.waited += max(0, to_ns - self.now())

    def limit(self, deadline_ns: int) -> None:
        self.deadline = min(self.deadline, deadline_ns)

    def stop(self) -> None:
        self.stopped += 1

    def eflags(self) -> int:
        return self.flags

    def set_eflags(self, value: int) -> None:
        self.flags = value | 2

    def set_cs(self, selector: int, base: int, limit: int, flags: int) -> None:
        self.set_segment(reg.CS, selector, base, limit, flags)

    def set_segment(self, index: int, selector: int, base: int, limit: int, flags: int) -> None:
        self.d[reg.SEG_SELECTOR[index]] = selector
        self.q[reg.SEG_BASE[index]] = base
        self.d[reg.SEG_LIMIT[index]] = limit
        self.d[reg.SEG_FLAGS[index]] = flags

    def set_mode(self, long: bool, cpl: int) -> None:
        self.mode = (long, cpl)

    def set_cr0_ts(self, on: bool) -> None:
        self.ts = on

    def set_breakpoints(self, addresses: tuple[int, int, int, int], control: int) -> None:
        self.breakpoints = (addresses, control)

    def open_ports(self, on: bool) -> None:
        self.ports = on

    def restore_fpu(self, paddr: int) -> None:
        self.fpu.append(paddr)

    def save(self) -> bytes:
        return bytes(self._file)

    def load(self, state: bytes) -> None:
        self._file[: len(state)] = state

    def switch_bank(self, paddr: int, bank: int) -> None:
        self.q[reg.CR3] = paddr
        self.bank = bank

    def flush(self) -> None:
        self.flushes += 1

    def flush_parked(self) -> None:
        self.flushes += 1


class PlainMachine:
    """Cores and a clock, and who was woken."""

    def __init__(self, cores: int) -> None:
        self.clock = Clock()
        self.cores = tuple(PlainCore(index, self.clock) for index in range(cores))
        self.running: PlainCore | None = None
        self.woken: list[int] = []

    def wake(self, core: PlainCore, at_ns: int) -> None:
        core.idle = False
        core.time = max(core.time, at_ns)
        self.woken.append(core.index)


class Ends:
    """The ends of domains, written down."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.crashes: list[str] = []
        self.shutdowns: list[int] = []

    def crash(self, vcpu: VCpu, reason: str) -> None:
        vcpu.domain.state = DomainState.CRASH
        self.crashes.append(reason)

    def shutdown(self, domain: Domain, reason: int, caller: VCpu | None = None) -> None:
        self.shutdowns.append(reason)

    def by_id(self, number: int) -> Domain | None:
        return self._world.domains.get(number)


class World:
    """Domains with pages of their own, the table of hypercalls with events, timers and scheduling in it."""

    def __init__(self, cores: int = 1) -> None:
        self.memory = MachineMemory(16 << 20)
        self.plain = PlainMachine(cores)
        self.clock = self.plain.clock
        self.cores = self.plain.cores
        self.domains: dict[int, Domain] = {}
        self.ends = Ends(self)
        self.log: list[str] = []
        self.calls = HypercallTable(self.log.append)
        machine = cast(Machine, self.plain)
        self.scheduler = Scheduler(
            machine, Shootdown(cast(Any, self.cores)), placement=Placement(Topology(cores=cores)),
            costs=SwitchCosts(0, (0, 0, 0, 0)),
        )
        self.timers = Timers(self.clock, self.scheduler)
        self.scheduler.resume = lambda vcpu, core: None
        self.scheduler.ticking = self.timers.run_periodic
        self.sched_ops = SchedOps(self.scheduler, self.memory, self.clock, self.timers, self.ends)
        self.event_ops = EventChannelOps(self.ends)
        self.register(self.timers, self.sched_ops, self.event_ops)
        self._next_frame = 16

    def register(self, *parts: Any) -> None:
        for part in parts:
            part.register(self.calls)

    def domain(self, number: int = 1, vcpus: int = 1, *, pv32: bool = False) -> Domain:
        """A domain whose first vCPU is up; its pages are at BASE."""
        domain = Domain(number, f"d{number}", pv32=pv32, handle=bytes(range(16)), image=cast(Any, None))
        owner = domain.memory = MemoryOwner(number, pv32=pv32, vcpus=vcpus)
        first = self._next_frame
        self._next_frame += DOMAIN_FRAMES
        root = self._tables(first, pv32)
        domain.shared_info = first + 8 << 12
        info = (xen.vcpu_info.w32 if pv32 else xen.vcpu_info.w64).size
        for index in range(vcpus):
            vcpu = VCpu(domain, index)
            domain.vcpus.append(vcpu)
            vcpu.space = GuestSpace(self.memory, owner, root << 12)
            vcpu.kernel_root = root
            if index < 32:
                vcpu.info = domain.shared_info + info * index
                self.memory.store8(vcpu.info + 1, 1)
            self.scheduler.add(vcpu)
            vcpu.saved = vcpu.core.save()
            vcpu.period_ns = 0
        domain.events = EventChannels(domain, self.memory, self.scheduler)
        domain.state = DomainState.RUNNING
        self.domains[number] = domain
        first_vcpu = domain.vcpus[0]
        first_vcpu.initialised = True
        self.scheduler.bring_up(first_vcpu)
        self.run(first_vcpu.core)
        return domain

    def _tables(self, first: int, pv32: bool) -> int:
        """Frames first.. are the tables, first + 16.. the pages."""
        store = self.memory.store64
        l1, l2, l3, l4 = range(first, first + 4)
        for page in range(PAGES):
            address = BASE + page * 4096
            flags = 0 if address == HOLE else TABLE & ~RW if address == RO_PAGE else TABLE
            store((l1 << 12) + page * 8, (first + 16 + page << 12 | flags) if flags else 0)
        store((l2 << 12) + (BASE >> 21) * 8, l1 << 12 | TABLE)
        store(l3 << 12, l2 << 12 | TABLE)
        store(l4 << 12, l3 << 12 | TABLE)
        return l3 if pv32 else l4

    def run(self, core: Any) -> int | None:
        """One dispatch of a core; from then on it is the running one."""
        self.plain.running = core
        return self.scheduler.dispatch(core)

    def between(self) -> None:
        """No slice runs."""
        self.plain.running = None

    def advance(self, ns: int) -> None:
        """Time passes on the clock and on every core."""
        self.between()
        self.clock.advance(self.clock.now + ns)
        for core in self.cores:
            core.time = max(core.time, self.clock.now)

    def call(self, vcpu: VCpu, name: str, *arguments: int) -> int:
        """A hypercall of this vCPU, followed through its restarts."""
        while True:
            result = self.calls.call(vcpu, NUMBERS[name], arguments)
            if result != CONTINUE:
                return result
            assert vcpu.restarted is not None
            arguments, vcpu.restarted = vcpu.restarted, None

    def poke(self, vcpu: VCpu, data: bytes, at: int = BASE) -> int:
        """Put bytes into the domain's memory; their address."""
        vcpu.space.write(at, data)
        return at

    def byte(self, paddr: int) -> int:
        return int(self.memory.b[paddr])


def core_of(vcpu: VCpu) -> PlainCore:
    return cast(PlainCore, vcpu.core)


def runs(vcpu: VCpu) -> bool:
    """Whether it is runnable now."""
    return vcpu.runnable
