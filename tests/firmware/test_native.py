"""The native page-table update against the handler it stands in for: the same result, or the call is left."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from struct import pack
from typing import Final

import pytest

from firmware.abi import xen
from firmware.memory import pte
from firmware.memory.frames import (
    COUNT_LIMIT,
    L1_TABLE,
    NONE,
    ONE,
    PARTIAL,
    PINNED,
    SEGMENT_DESCRIPTORS,
    VALIDATED,
    WRITABLE,
)
from firmware.memory.guest import HYPERVISOR_END
from firmware.memory.native import NativeUpdates
from guests.assembler import VIRT_BASE
from machine.engine import SharedWord
from machine.registers import R10, R11, RAX, RDI, RDX, RSI
from tests.firmware.hostile import CALL_BYTES, CALLS, END, LOOP, MOST_CALLS, SCRATCH, WALL_S, with_neighbour
from xenpy.system import System

CASES: Final = 6000
REQUEST: Final = VIRT_BASE + 0x1000
"""A page of the guest's image, here for requests."""
WORDS: Final = (0, 1, ONE - 1, ONE, 2 * ONE, COUNT_LIMIT - ONE, COUNT_LIMIT, (1 << 64) - 1, (1 << 64) - ONE)
KINDS: Final = tuple(
    kind | flags for kind in (NONE, L1_TABLE, L1_TABLE + 1, SEGMENT_DESCRIPTORS, WRITABLE)
    for flags in (0, VALIDATED, VALIDATED | PINNED, PARTIAL)
)


@dataclass(frozen=True)
class State:
    """All that a call may change."""

    result: int
    entry: int
    counts: bytes
    types: bytes


class Bench:
    """A guest that was started and runs no further, on whose core calls are made by hand."""

    def __init__(self, system: System, seed: int) -> None:
        self.random = random.Random(seed)
        self.guest = system.add_domain("builtin:hello", memory=4)
        neighbour = system.add_domain("builtin:hello", memory=4)
        hypervisor = self.hypervisor = system.hypervisor
        self.core = system.machine.cores[0]
        hypervisor.dispatch(self.core)
        self.vcpu = hypervisor.lifecycle.domains[self.guest.id].vcpus[0]
        self.owner = self.vcpu.domain.memory
        self.memory, self.frames = system.machine.memory, hypervisor.memory.frames
        self.mmu = hypervisor.memory.mmu
        self.own = self.frames.owned_by(self.guest.id)
        self.other = self.frames.owned_by(neighbour.id)
        self.tables = [mfn for mfn in self.own if self.frames.type_of(mfn) == L1_TABLE]
        self.request = self.vcpu.space.translate(REQUEST, False)
        self.core.enter_mapping(REQUEST, self.request, writable=False)
        engine = system.machine._engine
        self._env = engine.cpus[0].env
        self._word = self.core.native
        prototype = ctypes.PYFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p)
        self._native = prototype(engine.shared[SharedWord.NATIVE_SYSCALL])

    def native(self) -> bool:
        """Make the call the registers hold natively; whether it was done."""
        done: int = self._native(self._env, self._word)
        return done == 1

    def arrays(self) -> tuple[bytes, bytes]:
        return self.frames.count_array.tobytes(), self.frames.type_array.tobytes()

    def restore(self, arrays: tuple[bytes, bytes]) -> None:
        self.frames.counts.cast("B")[:] = arrays[0]
        self.frames.types.cast("B")[:] = arrays[1]

    def state(self, at: int) -> State:
        return State(self.core.q[RAX], self.memory.q[at >> 3], *self.arrays())

    def usual(self, ptr: int, new: int, offset: int = 0) -> None:
        """The registers and the request of a call the native path takes."""
        q = self.core.q
        q[RAX], q[RDI], q[RSI], q[RDX], q[R10], q[R11] = 1, REQUEST + offset, 1, 0, xen.DOMID_SELF, 0x202
        self.memory.write(self.request + offset, ptr.to_bytes(8, "little") + new.to_bytes(8, "little"))
        self.memory.store8(self.vcpu.info, 0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with System(memory=16) as system:
        yield Bench(system, 1)


def free_slot(bench: Bench) -> int:
    """Machine address of an L1 entry that is not present any more."""
    at = bench.tables[-1] << 12 | 0xFF8
    assert bench.mmu.update.l1(at, 0, bench.owner, bench.owner) == 0
    return at


def test_what_it_does_is_what_the_handler_does(bench: Bench) -> None:
    """Random requests on random frames: whatever is done natively leaves what the handler would leave."""
    rnd, frames, memory = bench.random, bench.frames, bench.memory
    taken = 0
    everything = bench.arrays()
    requests = bench.vcpu.space.entry_address(REQUEST)
    for _ in range(CASES):
        table = rnd.choice(bench.tables if rnd.random() < 0.8 else bench.own)
        target = rnd.choice(bench.own if rnd.random() < 0.9 else (0, 1, frames.size - 1, frames.size))
        at = table << 12 | rnd.randrange(512) * 8
        if at == requests:
            continue
        if rnd.random() < 0.3 and target < frames.size:
            frames.counts[target] = rnd.choice(WORDS)
        if rnd.random() < 0.3 and target < frames.size:
            frames.types[target] = rnd.choice(WORDS) & -ONE & (1 << 64) - 1 | rnd.choice(KINDS)
        if rnd.random() < 0.2:
            frames.types[table] = rnd.choice(WORDS) & -ONE & (1 << 64) - 1 | rnd.choice(KINDS)
        odd = rnd.getrandbits(12), rnd.getrandbits(8) | 1
        flags = rnd.choice((0x61, 0x63, 0x65, 0x67, 1 << 63 | 0x67, *odd))
        new = target << 12 | flags | (pte.GUEST_KERNEL if rnd.random() < 0.2 else 0)
        before = memory.q[at >> 3]
        memory.store64(at, rnd.choice((0, 0, 0, rnd.getrandbits(64) & ~1)))
        bench.usual(at | (rnd.getrandbits(3) if rnd.random() < 0.1 else 0), new)
        start, arrays = bench.state(at), bench.arrays()
        if bench.native():
            taken += 1
            done = bench.state(at)
            bench.restore(arrays)
            memory.store64(at, start.entry)
            assert bench.mmu.mmu_update(bench.vcpu, REQUEST, 1, 0, xen.DOMID_SELF) == 0
            assert done == replace(bench.state(at), result=0)
        else:
            assert bench.state(at) == start
        memory.store64(at, before)
        bench.restore(everything)
    assert taken > CASES // 10


@pytest.mark.parametrize(
    ("register", "value"),
    [(RAX, 0), (RAX, 1 << 32 | 1), (RSI, 0), (RSI, 2), (RSI, 1 << 32 | 1), (RDX, VIRT_BASE), (R10, 1),
     (R10, 0x7FF1), (R10, 1 << 32 | xen.DOMID_SELF), (R11, 0x302), (RDI, 0), (RDI, REQUEST + 4096 - 15),
     (RDI, REQUEST + 4096), (RDI, REQUEST & (1 << 47) - 1), (RDI, 0xFFFF_8000_0000_0000)],
)  # fmt: skip
def test_other_calls_are_left(bench: Bench, register: int, value: int) -> None:
    at = free_slot(bench)
    bench.usual(at, bench.own[0] << 12 | 0x61)
    bench.core.q[register] = value
    bench.memory.write(bench.request + (bench.core.q[RDI] & 4095), pack("<QQ", at, bench.own[0] << 12 | 0x61))
    start = bench.state(at)
    assert not bench.native()
    assert bench.state(at) == start


def test_only_addresses_of_the_guest_are_read(bench: Bench) -> None:
    """Whatever the TLB shows: the machine-to-phys table, say, is not a place for requests."""
    at = free_slot(bench)
    for va, taken in ((HYPERVISOR_END - 4096, False), (HYPERVISOR_END, True)):
        bench.core.enter_mapping(va, bench.request, writable=False)
        bench.usual(at, bench.own[0] << 12 | 0x61)
        bench.core.q[RDI] = va
        assert bench.native() is taken


def test_it_takes_the_usual_one_and_counts_it(bench: Bench) -> None:
    at, before = free_slot(bench), bench.frames.references(bench.own[0])
    bench.usual(at, bench.own[0] << 12 | 0x61, offset=4096 - 16)
    assert bench.native()
    assert bench.memory.q[at >> 3] == bench.own[0] << 12 | 0x61 | pte.GUEST_KERNEL | pte.USER
    assert bench.frames.references(bench.own[0]) == before + 1
    hypervisor = bench.hypervisor
    assert (hypervisor.native.done, hypervisor.calls.named_counts()["mmu_update"]) == (1, 1)


def test_a_waiting_event_is_delivered_at_once(bench: Bench) -> None:
    """On the way out of a hypercall: so a call with an event to deliver is not done natively."""
    at = free_slot(bench)
    for pending, masked, taken in ((1, 0, False), (1, 1, True)):
        bench.usual(at, bench.own[0] << 12 | 0x61)
        bench.memory.store8(bench.vcpu.info, pending)
        bench.memory.store8(bench.vcpu.info + 1, masked)
        assert bench.native() is taken


def test_a_vcpu_info_that_moves_is_followed(bench: Bench) -> None:
    at, info = free_slot(bench), bench.own[5] << 12
    bench.memory.write(info, b"\1\0")
    bench.vcpu.place_info(info)
    bench.usual(at, bench.own[0] << 12 | 0x61)
    bench.memory.write(info, b"\1\0")
    assert not bench.native()


def test_a_table_with_code_is_left(bench: Bench) -> None:
    at = free_slot(bench)
    bench.usual(at, bench.own[0] << 12 | 0x61)
    code = (ctypes.c_uint8 * bench.memory.frames).from_address(bench.memory.code_address)
    code[at >> 12] = 1
    assert not bench.native()


def test_another_domains_frames_are_left(bench: Bench) -> None:
    at = free_slot(bench)
    bench.usual(at, bench.other[0] << 12 | 0x61)
    assert not bench.native()
    table = next(mfn for mfn in bench.other if bench.frames.type_of(mfn) == L1_TABLE)
    bench.usual(table << 12 | 0xFF8, bench.own[0] << 12 | 0x61)
    bench.memory.store64(table << 12 | 0xFF8, 0)
    assert not bench.native()


def test_32_bit_guests_are_not_served() -> None:
    with System(memory=16) as system:
        system.add_domain("builtin:timer32", memory=4)
        core = system.machine.cores[0]
        core.native = 1
        system.hypervisor.dispatch(core)
        assert core.native == 0


def test_a_machine_without_native_handlers_serves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeUpdates, "serve", lambda *_: None)
    with System(memory=16) as system:
        assert Bench(system, 1).core.native == 0


def test_runs_with_and_without_it_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for on in (True, False):
        if not on:
            monkeypatch.setattr(NativeUpdates, "serve", lambda *_: None)
        with with_neighbour(LOOP) as (system, domain):
            space, frames = domain.vcpus[0].space, system.hypervisor.memory.frames
            rnd, calls = random.Random(1), b""
            own = frames.owned_by(domain.id)
            entries = [space.entry_address(SCRATCH + 0x1000 * page) for page in range(6)]
            for at in range(CALLS, CALLS + CALL_BYTES * (MOST_CALLS - 1), CALL_BYTES):
                new = rnd.choice((0, rnd.choice(own) << 12 | rnd.choice((0x61, 0x63, 0x67))))
                # the request lies where the registers R8 and R9 of the call come from
                calls += pack("<8Q", 1, at + 40, 1, 0, xen.DOMID_SELF, rnd.choice(entries), new, 0)
            space.write(CALLS, calls + END.to_bytes(8, "little"))
            system.run(until=lambda: domain.state.ended, within=20, wall=WALL_S)
            assert (system.hypervisor.native.done > 50) is on
            runs.append(
                (
                    space.read(CALLS, len(calls)),
                    frames.count_array.tobytes(),
                    frames.type_array.tobytes(),
                    [system.machine.memory.q[at >> 3] for at in entries],
                    system.machine.counters.blocks,
                    system.machine.clock.now,
                    system.hypervisor.calls.named_counts(),
                )
            )
    assert runs[0] == runs[1]
