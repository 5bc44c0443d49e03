"""The PV console of a domain: its ring page, `console_io`, and the log of everything it printed.

Source: io/console.h (struct xencons_interface), xen.h (CONSOLEIO_*). The host side plays xenconsoled: it
takes what the guest produced, and gives what was typed as the ring has room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from firmware.abi import errno, xen
from firmware.abi.io_console import INPUT_RING_SIZE, OUTPUT_RING_SIZE, xencons_interface
from firmware.domain.vcpu import VCpu
from firmware.hypercalls import CONTINUE, HypercallTable
from machine.memory import MachineMemory

_LAYOUT: Final = xencons_interface.w64
_IN: Final = _LAYOUT.offset["in_"]
_OUT: Final = _LAYOUT.offset["out"]
_IN_CONS: Final = _LAYOUT.offset["in_cons"]
_IN_PROD: Final = _LAYOUT.offset["in_prod"]
_OUT_CONS: Final = _LAYOUT.offset["out_cons"]
_OUT_PROD: Final = _LAYOUT.offset["out_prod"]
INDEX_MASK: Final = (1 << 32) - 1
MOST_AT_ONCE: Final = 1 << 16
"""console_io writes this many bytes before the call is restarted for the rest."""
BYTE_NS: Final = 10
"""What a byte costs in virtual time, so that a flood takes the guest's time and not only the host's."""


class DomainConsole:
    """One domain's console."""

    __slots__ = ("output", "on_output", "on_read", "pending_input", "_memory", "_page", "_notify")

    def __init__(self, memory: MachineMemory, page: int, notify: Callable[[], None]) -> None:
        self.output = bytearray()
        """Everything printed so far."""
        self.on_output: Callable[[bytes], None] | None = None
        self.on_read: Callable[[], None] | None = None
        """Called when the guest has taken input off the ring."""
        self.pending_input = bytearray()
        """Typed, but not in the ring yet."""
        self._memory = memory
        self._page = page
        self._notify = notify

    def _index(self, offset: int) -> int:
        return self._memory.d[self._page + offset >> 2]

    def serve(self) -> None:
        """The guest signalled, or it is time to look: take its output, refill its input."""
        taken = self.drain()
        given = self._refill()
        if taken or given:
            self._notify()
        if self.on_read is not None:
            self.on_read()

    def drain(self) -> int:
        """Take what is in the output ring; the number of bytes. Indices that make no sense lose the ring's
        contents.
        """
        consumer, producer = self._index(_OUT_CONS), self._index(_OUT_PROD)
        count = producer - consumer & INDEX_MASK
        if not count:
            return 0
        if count <= OUTPUT_RING_SIZE:
            start = consumer & OUTPUT_RING_SIZE - 1
            first = min(count, OUTPUT_RING_SIZE - start)
            base = self._page + _OUT
            data = bytes(self._memory.b[base + start:base + start + first])
            data += bytes(self._memory.b[base:base + count - first])
            self.print(data)
        self._memory.store32(self._page + _OUT_CONS, producer)
        return count

    def print(self, data: bytes) -> None:
        """Bytes the guest wrote, by either way."""
        self.output += data
        if self.on_output is not None:
            self.on_output(data)

    def feed(self, data: bytes) -> int:
        """Type `data`; the number of bytes that went into the ring at once (the rest follows as the guest
        reads).
        """
        self.pending_input += data
        given = self._refill()
        if given:
            self._notify()
        return given

    @property
    def unread(self) -> int:
        """Bytes in the input ring the guest has not taken, sane indices or not."""
        return min(self._index(_IN_PROD) - self._index(_IN_CONS) & INDEX_MASK, INPUT_RING_SIZE)

    def _refill(self) -> int:
        if not self.pending_input:
            return 0
        producer = self._index(_IN_PROD)
        room = INPUT_RING_SIZE - self.unread
        data = bytes(self.pending_input[:room])
        if not data:
            return 0
        start = producer & INPUT_RING_SIZE - 1
        first = data[:INPUT_RING_SIZE - start]
        base = self._page + _IN
        self._memory.write(base + start, first)
        if len(first) < len(data):
            self._memory.write(base, data[len(first):])
        self._memory.store32(self._page + _IN_PROD, producer + len(data) & INDEX_MASK)
        del self.pending_input[:len(data)]
        return len(data)


class ConsoleIo:
    """console_io: the emergency console, which unprivileged guests of a debugging hypervisor also have."""

    def register(self, table: HypercallTable) -> None:
        """Put console_io into the table."""
        table.register("console_io", self.console_io)

    def console_io(self, vcpu: VCpu, command: int, count: int, buffer: int) -> int:
        """Hypercall 18: write to the domain's console; reading it is not for unprivileged guests."""
        command &= 0xFFFF_FFFF
        count &= 0xFFFF_FFFF
        if command != xen.CONSOLEIO_write:
            return -errno.EPERM
        part = min(count, MOST_AT_ONCE)
        vcpu.domain.console.print(vcpu.space.read(buffer, part))
        vcpu.core.charge(part * BYTE_NS)
        if part < count:
            vcpu.restart(command, count - part, buffer + part)
            return CONTINUE
        return 0
