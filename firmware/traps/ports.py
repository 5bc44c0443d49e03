"""I/O ports as an unprivileged PV guest sees them: none is its own.

All read as ones and writes go nowhere, but for two registers Xen keeps a copy of for each domain: the index
of the clock chip and the address of PCI configuration space (`guest_io_read`, `guest_io_write` in
arch/x86/pv/emul-priv-op.c, `rtc_guest_read` in arch/x86/time.c of Xen 4.17). Such a guest has no timer chip
either.
"""

from __future__ import annotations

from typing import Final

_RTC_INDEX: Final = 0x70
_RTC_MASK: Final = 0x7F
_PCI_ADDRESS: Final = 0xCF8


class Ports:
    """The port latches of all domains."""

    def __init__(self) -> None:
        self._rtc_index: dict[int, int] = {}
        self._pci_address: dict[int, int] = {}

    def read(self, domid: int, port: int, size: int) -> int:
        """What `size` bytes (1, 2, 4) from `port` on read as."""
        if port == _PCI_ADDRESS and size == 4:
            return self._pci_address.get(domid, 0)
        value = (1 << 8 * size) - 1
        if port <= _RTC_INDEX < port + size:
            shift = 8 * (_RTC_INDEX - port)
            value = value & ~(0xFF << shift) | self._rtc_index.get(domid, 0) << shift
        return value

    def write(self, domid: int, port: int, size: int, value: int) -> None:
        """Take `size` bytes written to `port` on."""
        if port == _PCI_ADDRESS and size == 4:
            self._pci_address[domid] = value
        elif port <= _RTC_INDEX < port + size:
            self._rtc_index[domid] = value >> 8 * (_RTC_INDEX - port) & _RTC_MASK

    def forget(self, domid: int) -> None:
        """A domain is gone."""
        self._rtc_index.pop(domid, None)
        self._pci_address.pop(domid, None)
