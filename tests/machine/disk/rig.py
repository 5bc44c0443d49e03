"""A disk with memory and a clock of its own, and no machine around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from machine import Clock, MachineMemory
from machine.disk import Disk, DiskRequest, Medium, Model, Operation, RawFile, Spinning

SHM = Path("/dev/shm")
QUICK_FOLDER = SHM if SHM.is_dir() else None
"""Where flushing costs nothing: for tests that flush a lot and watch something else."""
Pieces = tuple[tuple[int, int], ...]


class Rig:
    """Requests are collected in `done`, in the order in which they finish."""

    MEMORY: ClassVar = 1 << 20
    SECTORS: ClassVar = 1 << 20

    def __init__(
        self, *, medium: Medium | None = None, model: Model | None = None, read_only: bool = False,
        **options: Any,
    ) -> None:
        self.clock = Clock()
        self.memory = MachineMemory(self.MEMORY)
        self.medium = medium or RawFile.temporary(self.SECTORS)
        if read_only:
            self.medium.read_only = True
        self.model = model or Spinning(self.medium.sectors)
        self.disk = Disk(self.clock, self.memory, self.medium, self.model, **options)
        self.done: list[DiskRequest] = []

    def submit(
        self, operation: Operation, sector: int, sectors: int, pieces: Pieces, owner: object = None,
    ) -> DiskRequest:
        request = DiskRequest(operation, sector, sectors, pieces, self.done.append, owner)
        self.disk.submit(request)
        return request

    def run(self) -> None:
        """Until nothing is due."""
        while (when := self.clock.next()) is not None:
            self.clock.advance(when)

    def write(self, sector: int, data: bytes) -> DiskRequest:
        self.memory.write(0, data)
        request = self.submit(Operation.WRITE, sector, len(data) // 512, ((0, len(data)),))
        self.run()
        return request

    def read(self, sector: int, sectors: int) -> bytes:
        request = self.submit(Operation.READ, sector, sectors, ((0, sectors * 512),))
        self.run()
        assert request.error == 0
        return self.memory.read(0, sectors * 512)


def image(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
