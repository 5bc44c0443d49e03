"""Memory that receives straight from a file."""

from __future__ import annotations

import errno

import pytest

from machine import Clock, EngineOptions, MachineMemory
from machine import registers as reg
from machine.disk import SECTOR, Disk, DiskRequest, Operation, RawFile, Spinning
from machine.disk.medium import Medium, Views
from tests.machine.rig import CODE, Rig, asm, degraded


@pytest.mark.parametrize("full", [True, False], ids=["full", "degraded"])
def test_code_that_comes_from_a_disk_replaces_what_was_translated(full: bool) -> None:
    medium = RawFile.temporary(64)
    medium.write(9, asm("mov ebx, 2\nint 0x90").ljust(SECTOR, b"\0"))
    with Rig("mov ebx, 1\nint 0x90", engine=EngineOptions() if full else degraded()) as rig:
        rig.run()
        assert rig.core.q[reg.RBX] == 1
        assert rig.machine.memory.holds_code(0x200)
        disk = Disk(rig.machine.clock, rig.machine.memory, medium, Spinning(64))
        pieces = ((0x300000, SECTOR), (0x200000, SECTOR))
        done: list[DiskRequest] = []
        disk.submit(DiskRequest(Operation.READ, 8, 2, pieces, done.append))
        rig.machine.clock.advance(rig.machine.clock.next() or 0)
        assert [request.error for request in done] == [0]
        rig.handler.finished.clear()
        rig.core.idle = False
        rig.core.q[reg.RIP] = CODE
        rig.run()
        assert rig.core.q[reg.RBX] == 2


def test_a_transfer_that_fails_half_way_drops_code_too() -> None:
    with Rig("mov ebx, 1\nint 0x90") as rig:
        rig.run()
        new = asm("mov ebx, 3\nint 0x90")

        def half(views: list[memoryview]) -> None:
            views[0][: len(new)] = new
            raise OSError

        with pytest.raises(OSError, match=r"^$"):
            rig.machine.memory.receive(((0x200000, SECTOR),), half)
        rig.handler.finished.clear()
        rig.core.idle = False
        rig.core.q[reg.RIP] = CODE
        rig.run()
        assert rig.core.q[reg.RBX] == 3


def test_neighbouring_pieces_become_one_view() -> None:
    memory = MachineMemory(1 << 20)
    pieces = ((0x1000, 512), (0x1200, 512), (0x5000, 4096), (0x4000, 4096), (0, 512), (0x200, 1))
    assert [view.nbytes for view in memory.views(pieces)] == [1024, 4096, 4096, 513]
    assert [view.nbytes for view in memory.views(((0, 512), (512, 512)))] == [1024]
    assert memory.views(()) == []
    lengths: list[int] = []
    memory.receive(pieces, lambda views: lengths.extend(view.nbytes for view in views))
    assert lengths == [1024, 4096, 4096, 513]


def test_views_cannot_be_written() -> None:
    with pytest.raises(TypeError):
        MachineMemory(8192).views(((0, 512),))[0][0] = 1


@pytest.mark.parametrize("piece", [(8191, 2), (-1, 2), (0, -1), (8192, 1)])
def test_pieces_beyond_memory(piece: tuple[int, int]) -> None:
    memory = MachineMemory(8192)
    called: list[int] = []
    with pytest.raises(IndexError):
        memory.receive(((0, 512), piece), lambda _: called.append(1))
    with pytest.raises(IndexError):
        memory.views(((0, 512), piece))
    assert called == []


class Broken(Medium):
    """Every transfer fails."""

    def __init__(self, number: int) -> None:
        self.sectors, self.read_only = 8, False
        self.number = number

    def read_into(self, sector: int, views: Views) -> None:
        raise OSError(self.number, "host")

    def write_from(self, sector: int, views: Views) -> None:
        raise OSError(self.number, "host")

    def flush(self) -> None:
        raise OSError(self.number, "host")

    def discard(self, sector: int, sectors: int) -> None:
        raise OSError(self.number, "host")

    def close(self) -> None:
        pass


def test_an_error_of_the_host_reaches_the_guest_as_one() -> None:
    answers = {errno.EIO: errno.EIO, errno.ENOSPC: errno.ENOSPC, errno.EBADF: errno.EIO}
    for host, guest in answers.items():
        clock, done = Clock(), list[DiskRequest]()
        disk = Disk(clock, MachineMemory(8192), Broken(host), Spinning(8))
        for operation, sectors in (
            (Operation.READ, 1), (Operation.WRITE, 1), (Operation.FLUSH, 0), (Operation.DISCARD, 1),
        ):
            pieces = ((0, SECTOR),) * sectors if operation <= Operation.WRITE else ()
            disk.submit(DiskRequest(operation, 0, sectors, pieces, done.append))
        while (when := clock.next()) is not None:
            clock.advance(when)
        assert [request.error for request in done] == [guest] * 4
        disk.close()
