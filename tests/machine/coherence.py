"""A random program of stores, executions, remaps and flushes on several cores, against a plain model.

The model knows what real hardware promises: a store is seen by every later execution of that frame, by
whichever alias, core or bank it was made; a translation may be used until it is flushed, so each (core, bank)
keeps the first one it used.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from machine import Core, EngineOptions
from machine import registers as reg
from machine.engine import SharedWord
from machine.paging import PAGE_ACCESSED, PAGE_DIRTY, PAGE_NX
from tests.machine.rig import RWX, Recorder, Tables, asm, machine

FRAMES = 8
# both set: a first store needs no second walk, which could find a newer entry
USED = RWX | PAGE_ACCESSED | PAGE_DIRTY
TEXT = 0xFFFF_FFFF_8100_0000
WRITE_STUB, IDLE_STUB, JUMP_STUB = TEXT, TEXT + 0x100, TEXT + 0x200
EXECUTE = [0x810000 + i * 4096 for i in range(FRAMES)]
ALIAS = [0x930000 + i * 4096 for i in range(FRAMES)]
FRAME = [0x600000 + i * 4096 for i in range(FRAMES)]
SECOND_CODE = 0x800
SCRATCH = 0xC00
OPERATIONS = {
    "execute": 25,
    "execute second": 15,
    "store by alias": 8,
    "store by itself": 8,
    "store second by alias": 8,
    "store second by itself": 8,
    "store beside": 8,
    "remap": 8,
    "flush page": 4,
    "flush": 1,
    "flush parked": 1,
    "flush frame": 6,
    "host store": 4,
    "toggle": 6,
    "shadow": 2,
}


def code(value: int) -> bytes:
    """mov eax, value; int 0x90"""
    return b"\xb8" + value.to_bytes(4, "little") + b"\xcd\x90"


@dataclass
class Outcome:
    mismatches: int
    stale_uses: int
    block_hash: int | None
    slow_stores: int
    dropped: int
    kept: int = field(compare=False)


class Fuzz:
    """`toggles`: two address spaces per core, exchanged by `switch_bank`."""

    def __init__(self, seed: int, options: EngineOptions, toggles: bool, cores: int = 3) -> None:
        self.machine = machine(cores, engine=options, hash_blocks=True)
        self.random = random.Random(seed)
        self.banks = 2 if toggles else 1
        self.operations = {
            k: w for k, w in OPERATIONS.items() if toggles or k not in ("toggle", "flush parked")
        }
        memory = self.machine.memory
        memory.write(0x200000, asm("mov [rdi], esi\nint 0x90", TEXT))
        memory.write(0x200100, asm("nop\njmp x\nx: int 0x90", TEXT))
        memory.write(0x200200, asm("jmp rdi", TEXT))
        self.first, self.second = [f + 1 for f in range(FRAMES)], [f + 100 for f in range(FRAMES)]
        for frame in range(FRAMES):
            memory.write(FRAME[frame], code(self.first[frame]))
            memory.write(FRAME[frame] + SECOND_CODE, code(self.second[frame]))
        self.handler = Recorder()
        self.tables: list[list[Tables]] = []
        self.mapped: list[list[dict[int, int]]] = []
        self.used: list[list[dict[int, int]]] = []
        self.bank = [0] * cores
        for core in self.machine.cores:
            core.handler = self.handler
            self.tables.append([self._space(core.index, bank) for bank in range(self.banks)])
            self.used.append([{} for _ in range(self.banks)])
            self.mapped.append(
                [
                    {va: i for list_ in (EXECUTE, ALIAS) for i, va in enumerate(list_)}
                    for _ in range(self.banks)
                ]
            )
            core.load_root(self.tables[core.index][0].root)
            core.q[reg.RSP] = 0x40F000
        self.mismatches = self.stale = self.dropped = 0

    def _space(self, core: int, bank: int) -> Tables:
        tables = Tables(self.machine, 0x100000 + 0x40000 * core + 0x20000 * bank)
        tables.map(TEXT, 0x200000, USED)
        for i in range(FRAMES):
            tables.map(EXECUTE[i], FRAME[i], USED)
            tables.map(ALIAS[i], FRAME[i], USED | PAGE_NX)
        return tables

    def _go(self, core: Core, rip: int, rdi: int = 0, rsi: int = 0) -> int:
        q = core.q
        q[reg.RIP], q[reg.RDI], q[reg.RSI] = rip, rdi, rsi
        core.run(core.now() + 1_000_000)
        return q[reg.RAX] & 0xFFFF_FFFF

    def _execute(self, core: Core, va: int) -> int:
        """Three of four times by a jump, which looks for its block in another place than a slice's begin."""
        return self._go(core, JUMP_STUB, va) if self.random.randrange(4) else self._go(core, va)

    def _translate(self, core: Core, va: int) -> int:
        bank = self.bank[core.index]
        now = self.mapped[core.index][bank][va]
        used = self.used[core.index][bank].setdefault(va, now)
        self.stale += used != now
        return used

    def _check(self, good: bool) -> None:
        self.mismatches += not good

    def step(self) -> None:
        rnd = self.random
        operation = rnd.choices(list(self.operations), list(self.operations.values()))[0]
        core = self.machine.cores[rnd.randrange(len(self.machine.cores))]
        at, i, value = core.index, rnd.randrange(FRAMES), rnd.getrandbits(32)
        memory, bank = self.machine.memory, self.bank[core.index]
        if operation == "execute":
            frame = self._translate(core, EXECUTE[i])
            self._check(self._execute(core, EXECUTE[i]) == self.first[frame])
        elif operation == "execute second":
            frame = self._translate(core, EXECUTE[i])
            self._check(self._execute(core, EXECUTE[i] + SECOND_CODE) == self.second[frame])
        elif operation == "store beside":
            self._translate(core, ALIAS[i])
            self._go(core, WRITE_STUB, ALIAS[i] + SCRATCH, value)
        elif operation.startswith("store"):
            va = (ALIAS if operation.endswith("alias") else EXECUTE)[i]
            frame = self._translate(core, va)
            offset = SECOND_CODE if "second" in operation else 0
            (self.second if offset else self.first)[frame] = value
            self._go(core, WRITE_STUB, va + offset + 1, value)
            self._check(memory.read(FRAME[frame] + offset, 7) == code(value))
        elif operation == "remap":
            va = rnd.choice((EXECUTE, ALIAS))[i]
            frame = rnd.randrange(FRAMES)
            self.mapped[at][bank][va] = frame
            self.tables[at][bank].map(va, FRAME[frame], USED | (PAGE_NX if va >= ALIAS[0] else 0))
        elif operation == "flush page":
            va = rnd.choice((EXECUTE, ALIAS))[i]
            core.flush_page(va)
            for used in self.used[at]:
                used.pop(va, None)
        elif operation == "flush":
            core.flush()
            for used in self.used[at]:
                used.clear()
        elif operation == "flush parked":
            core.flush_parked()
            self.used[at][1 - bank].clear()
        elif operation == "flush frame":
            dropped = core.flush_frame(FRAME[i] >> 12)
            self.dropped += dropped
            if not dropped:
                core.flush()
            gone = {va for used in self.used[at] for va in used if used[va] == i or not dropped}
            for used in self.used[at]:  # a page goes from both banks
                for va in gone:
                    used.pop(va, None)
        elif operation == "toggle":
            self.bank[at] = 1 - bank
            core.switch_bank(self.tables[at][1 - bank].root, 1 - bank)
        elif operation == "shadow":
            frame = rnd.randrange(FRAMES)
            core.flush_page(ALIAS[i])
            core.enter_mapping(ALIAS[i], FRAME[frame], writable=True)
            self.first[frame] = value
            self._go(core, WRITE_STUB, ALIAS[i] + 1, value)
            core.flush_page(ALIAS[i])
            for used in self.used[at]:
                used.pop(ALIAS[i], None)
            self._check(memory.read(FRAME[frame], 7) == code(value))
        else:
            self.first[i] = value
            memory.write(FRAME[i], code(value))

    def run(self, steps: int) -> Outcome:
        with self.machine, self.machine._engine.translating():
            for core in self.machine.cores:
                self._go(core, IDLE_STUB)
            for _ in range(steps):
                self.step()
            counters = self.machine.counters
            found = self.mismatches, self.stale, self.machine.block_hash, counters.slow_stores, self.dropped
            return Outcome(*found, kept=self.machine._engine.shared[SharedWord.BLOCKS_KEPT])
