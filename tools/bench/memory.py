"""What page tables cost: updates, pins, processes, and the validation of a whole boot.

Processor time throughout: one thread does it all, and it is the wall time of a host with nothing else to do.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from firmware.memory.frames import L1_TABLE, L4_TABLE, TYPE_MASK, WRITABLE
from tools import guests_cache
from tools.bench import process
from tools.bench.memory_loops import BATCH, ENTRIES, READ_ONLY, pins, updates
from tools.bench.memory_loops import WRITABLE as WRITABLE_ENTRY
from tools.bench.micro import LoopError
from xenpy.system import System

LIMIT_S: Final = 180.0
SINGLES: Final = 100_000
BATCHES: Final = 10_000
PINS: Final = 5_000
SIZES: Final = (16, 64, 128, 256, ENTRIES)
"""Present entries of the tables that are pinned."""
PINNED_MIB: Final = (64, 256, 1024)
VCPUS: Final = (1, 2, 4)
FORKS: Final = 200
WARM_UP: Final = 20
BOOT_MIB: Final = 256
TRUSTING: Final = [sys.executable, "-m", "tools.bench.trusting"]
_PROMPT: Final = "/ # "
_LINE: Final = "console=hvc0"


@dataclass(frozen=True)
class Measured:
    """Medians, and of boots the quickest. Units are in the names; keys are what varies."""

    single_us: float
    batch_us: float
    """An entry of a batch of BATCH."""
    pin_us: dict[int, float]
    """Pin and unpin of an L1 table, by its present entries."""
    domain_ms: dict[int, float]
    """Pin of all tables of a domain, by its MiB."""
    fork_ms: dict[int, float]
    """fork, exec and exit of `true` in busybox's shell, by vCPUs (as many CPUs)."""
    boot_s: float
    trusting_s: float
    """Debian's boot to its shell, with validation and without."""

    @property
    def validation(self) -> float:
        """Parts of a boot without validation that validation adds."""
        return self.boot_s / self.trusting_s - 1.0


def measure(rounds: int, say: Callable[[str], None]) -> Measured:
    """All of it. Raises LoopError, and FileNotFoundError when the guests have not been fetched."""
    kernel, ramdisk = _fetched("vmlinux"), _fetched("shell.cpio")
    loops = _loops(rounds, say)
    domains = {}
    for mib in PINNED_MIB:
        say(f"tables of a domain of {mib} MiB")
        domains[mib] = pin_domain(mib, rounds)
    forks = {}
    for vcpus in VCPUS:
        say(f"processes on {vcpus} vCPUs")
        forks[vcpus] = fork_exec_exit(kernel, ramdisk, vcpus, rounds)
    boots: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(1, rounds + 1):
        for validated, found in boots.items():
            say(f"boot {turn}/{rounds}, {'with' if validated else 'without'} validation")
            found.append(_boot(kernel, ramdisk, validated=validated))
    return Measured(loops["single", 1], loops["batch", BATCH] / BATCH,
                    {size: loops["pin", size] for size in SIZES}, domains, forks,
                    min(boots[True]), min(boots[False]))


def _fetched(name: str) -> Path:
    path = guests_cache.guest_path(name)
    if path is None:
        raise FileNotFoundError(f"{name} has not been fetched: run `make fetch`")
    return path


def _loops(rounds: int, say: Callable[[str], None]) -> dict[tuple[str, int], float]:
    """Microseconds of a round of each loop: the time of 2N rounds less that of N, over N."""
    wanted: list[tuple[str, int, int, Callable[[int, int], bytes]]] = [
        ("single", 1, SINGLES, updates), ("batch", BATCH, BATCHES, updates)]
    wanted += [("pin", size, PINS, pins) for size in SIZES]
    each: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="xenpy-bench-") as scratch:
        for turn in range(1, rounds + 1):
            say(f"page-table loops {turn}/{rounds}")
            for name, size, count, build in wanted:
                image = Path(scratch) / f"{name}-{size}.elf"
                once, twice = (_run(image, build(times, size)) for times in (count, 2 * count))
                each.setdefault((name, size), []).append((twice - once) / count * 1e6)
    return {key: statistics.median(found) for key, found in each.items()}


def _run(image: Path, content: bytes) -> float:
    image.write_bytes(content)
    done = process.run(process.xenpy("boot", str(image), "--memory", "16"), LIMIT_S)
    if done.status != 0 or "done" not in (line.text for line in done.lines):
        raise LoopError(f"{image.stem}: {done.why()}")
    return done.cpu_seconds


def pin_domain(mib: int, rounds: int) -> float:
    """Milliseconds to pin the root of tables that map every frame of a domain of `mib` MiB, none validated
    before.
    """
    with System(memory=mib + 64) as system:
        guest = system.add_domain("builtin:hello", memory=mib)
        domain = system.hypervisor.lifecycle.domains[guest.id]
        types, owner = system.hypervisor.memory.types, domain.memory
        root = _map_all(system, guest.id)
        taken = []
        for _ in range(rounds):
            begin = time.process_time()
            failure = types.pin(root, owner, L4_TABLE)
            taken.append(time.process_time() - begin)
            if failure:
                raise LoopError(f"the tables of a domain of {mib} MiB were not accepted: {failure}")
            if types.unpin(root, owner):
                raise LoopError("the tables were not given back")
        return statistics.median(taken) * 1e3


def _map_all(system: System, domid: int) -> int:
    """Tables for all frames of a domain, in its own last frames that nothing uses; the root's frame."""
    table = system.hypervisor.memory.frames
    frames = np.flatnonzero(table.owner_array == domid + 1)
    kinds = table.type_array[frames] & np.uint64(TYPE_MASK)
    unused = frames[(kinds != L1_TABLE) & (table.type_array[frames] >> np.uint64(8) == 0)]
    count = -(-len(frames) // ENTRIES)
    l1, (l2, l3, l4) = unused[-count:], unused[-count - 3 : -count].tolist()
    readable = np.isin(frames, unused[-count - 3 :]) | ((kinds != 0) & (kinds != WRITABLE))
    entries = (frames << 12) | np.where(readable, READ_ONLY, WRITABLE_ENTRY)
    memory = system.machine.memory
    for index, mfn in enumerate(l1.tolist()):
        memory.write(mfn << 12, entries[index * ENTRIES : (index + 1) * ENTRIES].astype(np.uint64).tobytes())
    memory.write(l2 << 12, ((l1 << 12) | WRITABLE_ENTRY).astype(np.uint64)[:ENTRIES].tobytes())
    memory.store64(l3 << 12, l2 << 12 | WRITABLE_ENTRY)
    memory.store64(l4 << 12, l3 << 12 | WRITABLE_ENTRY)
    return int(l4)


def fork_exec_exit(kernel: Path, ramdisk: Path, vcpus: int, rounds: int) -> float:
    """Milliseconds of one `true` in a loop of busybox's shell."""
    with System(cpus=vcpus, memory=BOOT_MIB + 64) as system:
        guest = system.add_domain(kernel, ramdisk=ramdisk, memory=BOOT_MIB, vcpus=vcpus, cmdline=_LINE)
        guest.console.expect(_PROMPT)
        taken = []
        for count in (WARM_UP, *(FORKS,) * rounds):
            guest.console.send(f"i=0; while [ $i -lt {count} ]; do /bin/true; i=$((i+1)); done\n")
            guest.console.send("echo do''ne\n")
            begin = time.process_time()
            guest.console.expect("^done$")
            taken.append((time.process_time() - begin) / count)
        return statistics.median(taken[1:]) * 1e3


def _boot(kernel: Path, ramdisk: Path, *, validated: bool) -> float:
    arguments = ("boot", str(kernel), "--ramdisk", str(ramdisk), "--memory", str(BOOT_MIB),
                 "--cmdline", _LINE, "--until", _PROMPT)
    done = process.run(process.xenpy(*arguments) if validated else [*TRUSTING, *arguments], LIMIT_S)
    if done.status != 0:
        raise LoopError(f"boot: {done.why()}")
    return done.cpu_seconds
