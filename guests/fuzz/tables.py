"""What the guest `mmufuzz` draws from: its frames and their numbers, entries, flags, addresses, descriptors.

A frame is known by its number in the guest's frame table, never by where in the machine it lies.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from firmware.abi import xen

MASK64: Final = (1 << 64) - 1

# ---- frames: numbers in the frame table ------------------------------------------------------------------

L1: Final = range(6)
L2: Final = range(6, 9)
L3: Final = range(9, 12)
L4: Final = range(12, 15)
DATA: Final = range(15, 24)
BALLOON: Final = range(24, 28)
"""Pages that come and go: no table of ours ever names them."""
POOL: Final = 28
"""Pages of the image the operations work on: the five kinds above, by what they begin as."""
ROOT, BOOT_L3, BOOT_L2, BOOT_L1 = 28, 29, 30, 31
START_INFO: Final = 32
XEN_FRAME: Final = 33
"""The first frame of the machine-to-physical table: Xen's own."""
DEVICE_FRAME: Final = 34
BEYOND_FRAME: Final = 35
INVALID_FRAME: Final = 36
FRAMES: Final = 37
MAPPABLE: Final = (*range(24), ROOT, START_INFO, XEN_FRAME, DEVICE_FRAME, BEYOND_FRAME, INVALID_FRAME)
"""What an entry may name: nothing through which the guest could write its own code or tables."""

FIXED: Final = {DEVICE_FRAME: 0xFEC00, BEYOND_FRAME: 0x10_0000_0000, INVALID_FRAME: (1 << 40) - 1}
"""Frames every machine has, or has not: the I/O APIC, one beyond 64 GiB of memory, Xen's "no frame"."""

LEVELS: Final = tuple(
    2 if frame in L2 or frame == BOOT_L2 else 3 if frame in L3 or frame == BOOT_L3 else
    4 if frame in L4 or frame == ROOT else 1 for frame in range(FRAMES)
)
"""The level of a frame used as a table."""

BELOW: Final = {1: DATA, 2: L1, 3: L2, 4: L3, 5: L4}
"""What an entry of a table of that level should name; the next row is the level's own tables."""

# ---- entries ---------------------------------------------------------------------------------------------

NX: Final = 1 << 63
ENTRY_FLAGS: Final = (
    0x67, 0x67, 0x67, 0x27, 0x25, 0x65, 0x65, 0x63, 0x61, 0x21, 0x23, 0x07, 0x05, 0x01, NX | 0x67, NX | 0x25,
    0x66, 0x00,
)
ENTRY_BITS: Final = (*range(12), *range(52, 64))
"""The flag bits of an entry."""
STORED_BITS: Final = (1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 52, 53, 62, 63)
"""The bits that stores set and clear in entries."""
ROOT_SLOTS: Final = (0, 1, 2, 2, 3, 4, 5, 255, 256, 257, 258, 260, 271, 272, 510)
"""Slots of an L4 table to change: ours, Xen's first and last, never the one the kernel lives in."""
EMPTY_SLOT: Final = 300
"""From here on a boot table of level 2 or 3 has nothing."""
KERNEL_SLOT: Final = 511

COMMANDS: Final = (0, 0, 0, 0, 0, 2, 2, 1, 3, 4, 5, 7)
"""What the low bits of a request to mmu_update say."""

# ---- domains, addresses, flags ---------------------------------------------------------------------------

NOBODY: Final = 0x1234
DOMAINS: Final = (
    xen.DOMID_SELF, xen.DOMID_SELF, xen.DOMID_IO, xen.DOMID_XEN, 0x7FF3, 0x7FF4, 0x7FFF, NOBODY,
    (NOBODY + 1) << 16 | xen.DOMID_SELF, 0x7FF1 << 16 | xen.DOMID_SELF, 1 << 31 | xen.DOMID_SELF,
)
TEST_SLOT: Final = 2
"""The root slot the tests' own tables hang in."""
TEST_BASE: Final = TEST_SLOT << 39
BAD: Final = 0x7000_0000_0000
ODD_ADDRESSES: Final = (
    0, BAD, 0x7FFF_FFFF_F000, 0x8000_0000_0000, 0xFFFF_7FFF_FFFF_F000, 0xFFFF_8000_0000_0000,
    0xFFFF_8200_0000_0000, 0xFFFF_8300_0000_0000, 0xFFFF_87FF_FFFF_F000, MASK64 - 0xFFF - (1 << 30),
)
FLUSHES: Final = (0, 1, 2, 3, 4, 5, 6, 7, 2, 2, 2, BAD | 1, BAD | 2, 8 | 1)
"""Flags of update_va_mapping: none, all, this CPU's; a bitmap at a bad address."""

# ---- extended operations ---------------------------------------------------------------------------------

EXTENDED: Final = (
    *([xen.MMUEXT_PIN_L1_TABLE, xen.MMUEXT_PIN_L2_TABLE, xen.MMUEXT_PIN_L3_TABLE,
       xen.MMUEXT_PIN_L4_TABLE] * 3),
    *([xen.MMUEXT_UNPIN_TABLE] * 8), xen.MMUEXT_NEW_USER_BASEPTR, xen.MMUEXT_NEW_USER_BASEPTR,
    xen.MMUEXT_CLEAR_PAGE, xen.MMUEXT_CLEAR_PAGE, xen.MMUEXT_COPY_PAGE, xen.MMUEXT_COPY_PAGE,
)
"""Commands whose argument is a frame."""
ADDRESSED: Final = (
    (xen.MMUEXT_TLB_FLUSH_LOCAL, 0), (xen.MMUEXT_INVLPG_LOCAL, 0), (xen.MMUEXT_TLB_FLUSH_MULTI, BAD),
    (xen.MMUEXT_INVLPG_MULTI, BAD), (xen.MMUEXT_TLB_FLUSH_ALL, 0), (xen.MMUEXT_INVLPG_ALL, 0),
    (xen.MMUEXT_FLUSH_CACHE, 0), (xen.MMUEXT_FLUSH_CACHE_GLOBAL, 0), (xen.MMUEXT_MARK_SUPER, 0),
    (xen.MMUEXT_UNMARK_SUPER, 0), (14, 0), (21, 0), (99, 0), (0xFFFF_FFFF, 0),
    (xen.MMUEXT_SET_LDT, 0), (xen.MMUEXT_SET_LDT, 1), (xen.MMUEXT_SET_LDT, 8), (xen.MMUEXT_SET_LDT, 512),
    (xen.MMUEXT_SET_LDT, 8192), (xen.MMUEXT_SET_LDT, 8193), (xen.MMUEXT_SET_LDT, 1 << 32 | 4),
)
"""Commands whose first argument is an address, with the second."""

# ---- descriptors -----------------------------------------------------------------------------------------

DESCRIPTORS: Final = (
    0, 0x00AF_9B00_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_FA00_0000_FFFF, 0x00CF_F200_0000_FFFF,
    0x00CF_9300_0000_FFFF, 0x00CF_B300_0000_FFFF, 0x00CF_7300_0000_FFFF, 0x00EF_FB00_0000_FFFF,
    0x0040_F200_1000_0FFF, 0x0000_8900_0000_0067, 0x0000_8200_0000_0FFF, 0x0000_E500_0000_0000,
    0x0000_EC00_E033_1000, 0x0000_EC00_0008_1000, 0x0000_8C00_E008_1000, 0x0000_EC01_0008_1000,
    0x0000_EC80_0008_1000, 0x0000_EC00_E000_1000, 0x0000_EC00_000F_1000, 0x0000_EE00_E033_1000,
    0x0000_EF00_E033_1000, 0x0000_8000_0000_0000, 0x0000_F000_0000_0000, 0x00CF_F600_0000_FFFF,
    0x00CF_FE00_0000_FFFF, 0xFFFF_FFFF_FFFF_FFFF, 0x0000_7FFF_FFFF_FFFF, 0x234,
)
GDT_ENTRIES: Final = (0, 1, 8, 16, 511, 512, 512, 513, 1024, 7168, 7169, 1 << 32 | 8)
SELECTORS: Final = (
    0x03, 0x0B, 0x13, 0x1B, 0x23, 0x2B, 0x33, 0x3B, 0x07, 0x0F, 0x17, 0x1F, 0x27, 0x2F, 0x37, 0x3F, 0x0A,
    0x0E, 0x1003, 0x1007, 0x1F0B, 0xE02B, 0xE033, 0xE03B, 0xFFFF,
)
"""Of the GDT and the LDT, on their first and second pages, and of Xen's reserved part."""

STACKS: Final = (0, 0x10, 0xE02B, 0x0B, 0x0F, 0xE008, 0xE033)
ASSISTS: Final = (2, 2, 2, 2, 2, 0, 1, 3, 4, 5, 32, 6, 31, 33, 63, 64)

# ---- grants ----------------------------------------------------------------------------------------------

GRANT_ENTRY_FLAGS: Final = (
    1, 1, 1, 1, 1, 1, 5, 5, 0, 2, 3, 3, 7, 9, 0x11, 0x21, 0x101, 0x101, 0x105, 0x103, 0x201,
)
"""Permit access, read-only, transfers, another's grant, part of a page, and flags that are Xen's or another
version's."""
PARTS: Final = (0, 4096, 0, 16, 8, 8, 24, 64, 4095, 1, 4096, 0, 4000, 200, 0, 0, 16, 0xFFFF)
"""Parts of a page: first byte, length."""
VERSIONS: Final = (1, 1, 1, 2, 2, 2, 2, 0, 3)
TRANSFER_FLAGS: Final = (2, 2, 2, 1, 6, 0x102)
FLUSH_OFFSETS: Final = (0, 0, 64, 4032, 4096, 4097)
FLUSH_COMMANDS: Final = (1, 1, 2, 3, 0, 4, 0x8000_0001)
UNKNOWN_CALLS: Final = (50, 63, 64, 1000, 1 << 32 | 17)
GRANT_MAP_FLAGS: Final = (2, 2, 2, 6, 6, 1, 3, 7, 0, 0x12, 0x12, 0x16, 0x16, 0x13, 0xA, 0x1_0002,
                          0x10, 0x8000_0002)
"""Host and device maps, read-only, by address and by entry, with flags a guest may and may not give."""
COPY_LENGTHS: Final = (8, 8, 16, 64, 0, 4096, 4097)
COPY_FLAGS: Final = (0, 0, 1, 1, 2, 3, 4)


def quads(label: str, values: Iterable[int | str]) -> str:
    """A table of 64-bit words with its label; its length is `<label>_count`."""
    cells = [str(value & MASK64) if isinstance(value, int) else value for value in values]
    return f".balign 8, 0\n{label}:\n.quad " + ", ".join(cells)


TABLES: Final[dict[str, tuple[int, ...]]] = {
    "mappable": MAPPABLE, "entry_flags": ENTRY_FLAGS, "entry_bits": ENTRY_BITS, "stored_bits": STORED_BITS,
    "root_slots": ROOT_SLOTS, "commands": COMMANDS, "domains": DOMAINS, "odd_addresses": ODD_ADDRESSES,
    "flushes": FLUSHES, "extended": EXTENDED, "descriptors": DESCRIPTORS, "gdt_lengths": GDT_ENTRIES,
    "selectors": SELECTORS, "stacks": STACKS, "assists": ASSISTS,
    "grant_entry_flags": GRANT_ENTRY_FLAGS, "grant_map_flags": GRANT_MAP_FLAGS,
    "versions": VERSIONS, "transfer_flags": TRANSFER_FLAGS, "flush_offsets": FLUSH_OFFSETS,
    "flush_commands": FLUSH_COMMANDS, "unknown_calls": UNKNOWN_CALLS, "parts": PARTS,
    "copy_lengths": COPY_LENGTHS, "copy_flags": COPY_FLAGS,
    "addressed": tuple(value for pair in ADDRESSED for value in pair),
}
