"""What an unprivileged guest is refused, and the console, its ring and its hypercall."""

from __future__ import annotations

from typing import Any, cast

import pytest

from firmware.abi import physdev, xen
from firmware.abi.errno import EACCES, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from firmware.console import DomainConsole
from firmware.domain.vcpu import VCpu
from firmware.hypercalls import CONTINUE
from firmware.multicall import Multicall
from firmware.platform import Platform
from firmware.traps.callbacks import Callbacks
from firmware.traps.debug import DebugRegisters
from firmware.traps.segments import Segments
from firmware.version import Version
from tests.firmware.world import (
    BASE,
    HOLE,
    World,
)

MASK = (1 << 64) - 1


class NoTables:
    def reserved(self, selector: int, pv32: bool) -> int | None:
        return None

    def ldt_frame(self, vcpu: VCpu, page: int) -> int | None:
        return None


@pytest.fixture
def world() -> World:
    world = World()
    segments = Segments(world.memory, NoTables())
    world.register(Multicall(world.calls), Version(), Callbacks(segments), DebugRegisters(), Platform())
    return world


@pytest.fixture
def vcpu(world: World) -> VCpu:
    return world.domain(1, vcpus=2).vcpus[0]


@pytest.fixture
def vcpu32(world: World) -> VCpu:
    return world.domain(2, pv32=True).vcpus[0]


class TestPrivileged:
    @pytest.mark.parametrize(
        ("name", "size", "interface"),
        [("platform_op", 136, 0x0300_0000), ("sysctl", 136, 0x15), ("domctl", 144, 0x15)],
    )
    def test_the_structure_is_looked_at_before_the_rights(
        self, world: World, vcpu: VCpu, name: str, size: int, interface: int
    ) -> None:
        assert world.call(vcpu, name, HOLE) == -EFAULT
        world.poke(vcpu, bytes(size))
        assert world.call(vcpu, name, BASE) == -EACCES
        world.poke(vcpu, bytes(4) + interface.to_bytes(4, "little"))
        assert world.call(vcpu, name, BASE) == -EPERM

    def test_physical_devices(self, world: World, vcpu: VCpu) -> None:
        for level, expected in ((0, 0), (1, 0), (3, 0), (4, -EINVAL), (1 << 31, -EINVAL)):
            world.poke(vcpu, physdev.physdev_set_iopl.w64.pack(iopl=level))
            assert world.call(vcpu, "physdev_op", physdev.PHYSDEVOP_set_iopl, BASE) == expected
        assert vcpu.iopl == 3 << 12
        world.poke(vcpu, physdev.physdev_set_iobitmap.w64.pack(nr_ports=65537))
        assert world.call(vcpu, "physdev_op", physdev.PHYSDEVOP_set_iobitmap, BASE) == -EINVAL
        for command in (
            physdev.PHYSDEVOP_map_pirq,
            physdev.PHYSDEVOP_apic_write,
            physdev.PHYSDEVOP_pci_device_add,
        ):
            assert world.call(vcpu, "physdev_op", command, BASE) == -EPERM
        assert world.call(vcpu, "physdev_op", 99, BASE) == -ENOSYS

    def test_other_kinds_of_domain(self, world: World, vcpu: VCpu) -> None:
        assert world.call(vcpu, "xenpmu_op", 0, 0) == -EOPNOTSUPP
        assert world.call(vcpu, "hvm_op", 0, HOLE) == -EFAULT
        for domid, expected in ((xen.DOMID_SELF, -EINVAL), (1, -EINVAL), (77, -ESRCH)):
            world.poke(vcpu, domid.to_bytes(2, "little") + bytes(14))
            assert world.call(vcpu, "hvm_op", 1, BASE) == expected
        assert world.call(vcpu, "hvm_op", 99, BASE) == -ENOSYS


class TestConsole:
    PAGE = 16 << 12

    def make(self, world: World) -> tuple[DomainConsole, list[int]]:
        told: list[int] = []
        return DomainConsole(world.memory, self.PAGE, lambda: told.append(1)), told

    def put(self, world: World, producer: int, consumer: int, out: bool = True) -> None:
        cons, prod = (3080, 3084) if out else (3072, 3076)
        world.memory.store32(self.PAGE + cons, consumer)
        world.memory.store32(self.PAGE + prod, producer)

    def test_output_wraps_in_the_ring_and_in_the_index(self, world: World) -> None:
        console, told = self.make(world)
        ring = self.PAGE + 1024
        start = 0xFFFF_FFFE
        for offset, byte in enumerate(b"hello"):
            world.memory.store8(ring + (start + offset & 2047), byte)
        self.put(world, start + 5 & 0xFFFF_FFFF, start)
        console.serve()
        assert console.output == b"hello"
        assert world.memory.d[(self.PAGE + 3080) >> 2] == 3
        assert told == [1]

    @pytest.mark.parametrize("count", [2049, 1 << 31, (1 << 32) - 1])
    def test_indices_that_make_no_sense_lose_the_output(self, world: World, count: int) -> None:
        console, _ = self.make(world)
        self.put(world, count, 0)
        console.serve()
        assert console.output == b""
        assert console.drain() == 0

    def test_a_full_ring(self, world: World) -> None:
        console, _ = self.make(world)
        world.memory.fill(self.PAGE + 1024, 2048, 0x41)
        self.put(world, 2048 + 7, 7)
        console.serve()
        assert console.output == b"A" * 2048

    def test_input_waits_for_room(self, world: World) -> None:
        console, told = self.make(world)
        text = bytes(range(256)) * 6
        assert console.feed(text) == 1024
        assert told == [1]
        assert world.memory.read(self.PAGE, 1024) == text[:1024]
        world.memory.store32(self.PAGE + 3072, 1000)
        console.serve()
        assert len(console.pending_input) == 0
        assert world.memory.d[(self.PAGE + 3076) >> 2] == len(text)
        assert world.memory.read(self.PAGE, 512) == text[1024:]
        assert console.unread == 536

    def test_hostile_input_indices_write_nowhere_else(self, world: World) -> None:
        console, _ = self.make(world)
        self.put(world, 0x8000_0000, 5, out=False)
        before = world.memory.read(self.PAGE + 1024, 2048), world.memory.read(self.PAGE + 4096, 4096)
        assert console.feed(b"x" * 4000) == 0
        self.put(world, 0xFFFF_FFFF, 0xFFFF_FFFF, out=False)
        console.serve()
        assert (
            world.memory.read(self.PAGE + 1024, 2048),
            world.memory.read(self.PAGE + 4096, 4096),
        ) == before

    def test_the_hypercall(self, world: World, vcpu: VCpu) -> None:
        from firmware.console import MOST_AT_ONCE, ConsoleIo

        world.register(ConsoleIo())
        console, _ = self.make(world)
        vcpu.domain.console = cast(Any, console)
        world.poke(vcpu, b"text")
        assert world.call(vcpu, "console_io", xen.CONSOLEIO_write, 4, BASE) == 0
        assert console.output == b"text"
        assert world.call(vcpu, "console_io", xen.CONSOLEIO_write, 4, HOLE - 2) == -EFAULT
        assert world.call(vcpu, "console_io", xen.CONSOLEIO_read, 4, BASE) == -EPERM
        assert world.call(vcpu, "console_io", 7, 4, BASE) == -EPERM
        assert world.calls.call(vcpu, 18, (xen.CONSOLEIO_write, MOST_AT_ONCE + 9, BASE)) == CONTINUE
        assert vcpu.restarted == (xen.CONSOLEIO_write, 9, BASE + MOST_AT_ONCE)
