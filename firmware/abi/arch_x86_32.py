"""arch-x86/xen-x86_32.h: what differs for 32-bit PAE guests."""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, ulong

# Selectors of Xen's own GDT entries, as 32-bit guests may use them.
FLAT_RING1_CS: Final = 0xe019
FLAT_RING1_DS: Final = 0xe021
FLAT_RING1_SS: Final = 0xe021
FLAT_RING3_CS: Final = 0xe02b
FLAT_RING3_DS: Final = 0xe033
FLAT_RING3_SS: Final = 0xe033
FLAT_KERNEL_CS: Final = 0xe019
FLAT_KERNEL_DS: Final = 0xe021
FLAT_KERNEL_SS: Final = 0xe021
FLAT_USER_CS: Final = 0xe02b
FLAT_USER_DS: Final = 0xe033
FLAT_USER_SS: Final = 0xe033

# Where Xen lives (PAE), and the machine-to-physical table a guest may read (4-byte entries).
HYPERVISOR_VIRT_START: Final = 0xf5800000
MACH2PHYS_VIRT_START: Final = 0xf5800000
MACH2PHYS_VIRT_END: Final = 0xf6800000
MACH2PHYS_NR_ENTRIES: Final = 0x400000

# A 32-bit guest's callback address.
xen_callback: Final = Layout("xen_callback", [("cs", ulong), ("eip", ulong)])

def xen_pfn_to_cr3(pfn: int) -> int:
    """CR3 of a 32-bit guest for the root in this frame: 12 bits of it folded into the low bits."""
    return (pfn << 12 | pfn >> 20) & 0xFFFFFFFF

def xen_cr3_to_pfn(cr3: int) -> int:
    """The frame a 32-bit guest's CR3 names."""
    return (cr3 >> 12 | cr3 << 20) & 0xFFFFFFFF
