"""The host process is killed at random points: nothing flushed is lost, and no sector holds anything else."""

from __future__ import annotations

import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import Clock, MachineMemory
from machine.disk import SECTOR, Disk, DiskRequest, Flash, Medium, Operation, open_medium

SECTORS = 2048
STEPS = 1 << 30
FLUSH_EVERY = 7
ROOT = Path(__file__).parents[3]
SEEDS = [*range(4), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(4, 100))]


def opened(kind: str, folder: Path) -> Medium:
    return open_medium("raw", folder / "image", overlay=folder / "overlay" if kind == "overlay" else None)


def content(step: int, sector: int) -> bytes:
    return struct.pack("<QQ", step, sector) * (SECTOR // 16)


def plan(seed: int) -> Iterator[tuple[int, int, int]]:
    """(step, sector, sectors), for ever. Every seventh step is a flush: 0 sectors."""
    rng = random.Random(seed)
    for step in range(1, STEPS):
        sectors = rng.randrange(1, 20)
        sector = rng.randrange(SECTORS - sectors)
        yield step, sector, 0 if step % FLUSH_EVERY == 0 else sectors


def child(kind: str, folder: str, seed: str) -> None:
    """Writes and flushes through a disk, and prints the step of each flush that has finished."""
    clock, memory = Clock(), MachineMemory(1 << 20)
    disk = Disk(clock, memory, opened(kind, Path(folder)), Flash())

    def flushed(request: DiskRequest) -> None:
        assert request.error == 0
        print(request.owner, flush=True)

    for step, sector, sectors in plan(int(seed)):
        if sectors:
            memory.write(0, b"".join(content(step, sector + index) for index in range(sectors)))
            pieces = ((0, sectors * SECTOR),)
            disk.submit(DiskRequest(Operation.WRITE, sector, sectors, pieces, lambda _: None))
        else:
            disk.submit(DiskRequest(Operation.FLUSH, 0, 0, (), flushed, step))
        while (when := clock.next()) is not None:
            clock.advance(when)


@pytest.mark.skipif(sys.platform != "linux", reason="sends SIGKILL")
@pytest.mark.parametrize("kind", ["raw", "overlay"])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_flushed_survives_the_process(kind: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    (tmp_path / "image").write_bytes(b"".join(content(0, sector) for sector in range(SECTORS)))
    code = "import sys; from tests.machine.disk.test_kill import child; child(*sys.argv[1:])"
    command = [sys.executable, "-c", code, kind, str(tmp_path), str(seed)]
    acknowledged = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(rng.randrange(1, 25)):
            acknowledged = int(process.stdout.readline())
        time.sleep(rng.random() / 100)
        process.kill()
        for line in process.stdout:
            if line.endswith("\n"):
                acknowledged = int(line)
    assert process.returncode == -signal.SIGKILL
    assert acknowledged % FLUSH_EVERY == 0 < acknowledged

    medium = opened(kind, tmp_path)
    newest = [0] * SECTORS
    possible = [{0} for _ in range(SECTORS)]
    for step, sector, sectors in plan(seed):
        # One more flush may have finished, unheard, and writes after it.
        if step > acknowledged + 2 * FLUSH_EVERY:
            break
        for index in range(sector, sector + sectors):
            possible[index].add(step)
            if step < acknowledged:
                newest[index] = step
    for sector in range(SECTORS):
        data = medium.read(sector, 1)
        step, where = struct.unpack_from("<QQ", data)
        assert data == content(step, sector), f"sector {where} of step {step}, or of several, at {sector}"
        assert step in possible[sector]
        assert step >= newest[sector]
    medium.close()
