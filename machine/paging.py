"""Page tables as the processor reads them (Intel SDM volume 3, 4.4 and 4.5), and a reference walk."""

from __future__ import annotations

from dataclasses import dataclass

PAGE_PRESENT = 1 << 0
PAGE_RW = 1 << 1
PAGE_USER = 1 << 2
PAGE_PWT = 1 << 3
PAGE_PCD = 1 << 4
PAGE_ACCESSED = 1 << 5
PAGE_DIRTY = 1 << 6
PAGE_PSE = 1 << 7
PAGE_GLOBAL = 1 << 8
PAGE_NX = 1 << 63
ADDRESS_MASK = 0x000F_FFFF_FFFF_F000
ENTRIES = 512
PAE_ROOT_ENTRIES = 4
PAGE_SHIFT = 12
LEVEL_SHIFTS = (39, 30, 21, 12)
PAE_SHIFTS = (30, 21, 12)

# #PF error code (Intel SDM volume 3, 4.7)
PF_PRESENT, PF_WRITE, PF_USER, PF_RESERVED, PF_FETCH = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4


@dataclass(frozen=True, slots=True)
class Translation:
    """`paddr` of the byte, the leaf's `entry` and its own address `slot`, the rights of the whole walk."""

    paddr: int
    entry: int
    slot: int
    shift: int
    writable: bool
    user: bool
    executable: bool


def canonical(va: int) -> bool:
    """Whether bits 63 to 47 are equal."""
    top = va >> 47
    return top in (0, 0x1FFFF)


def walk(q: memoryview, root: int, va: int, pae: bool = False) -> Translation | None:
    """Translate `va` by the tables at `root` (CR3) in memory viewed as 64-bit words; None when not mapped."""
    shifts: tuple[int, ...] = PAE_SHIFTS if pae else LEVEL_SHIFTS
    if pae:
        table, va = root & 0xFFFF_FFE0, va & 0xFFFF_FFFF
    else:
        if not canonical(va):
            return None
        table = root & ADDRESS_MASK
    writable = user = executable = True
    for shift in shifts:
        slot = table + (va >> shift & ENTRIES - 1) * 8
        if slot >> 3 >= len(q):
            return None
        entry = q[slot >> 3]
        if not entry & PAGE_PRESENT:
            return None
        if not (pae and shift == PAE_SHIFTS[0]):  # a PAE root entry has no rights
            writable = writable and bool(entry & PAGE_RW)
            user = user and bool(entry & PAGE_USER)
            executable = executable and not entry & PAGE_NX
            if shift == PAGE_SHIFT or (shift != LEVEL_SHIFTS[0] and entry & PAGE_PSE):
                offset = va & (1 << shift) - 1
                base = entry & ADDRESS_MASK & ~((1 << shift) - 1)
                return Translation(base + offset, entry, slot, shift, writable, user, executable)
        table = entry & ADDRESS_MASK
    return None
