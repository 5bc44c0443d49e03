"""compat: 32-bit code in user mode, as 32-bit programs on a 64-bit kernel run it, and the traps it takes."""
from __future__ import annotations

from typing import Final

from guests.macros import hypercall, line
from guests.probes import READ_ONLY, READ_WRITE, Probe, Probing

LOW: Final = 0x40_0000
"""Where `page_low` is mapped too, for code of 32 bits."""
SLOT: Final = 16
CODES: Final = {
    "breakpoint": b"\xcc", "undefined": b"\x0f\x0b", "divide by zero": b"\x31\xc9\xf7\xf1",
    "int 0x22": b"\xcd\x22", "int 0x80": b"\xcd\x80", "refused int 0x20": b"\xcd\x20", "cli": b"\xfa",
    "read, not present": b"\xa1\x00\x00\x00\x70", "push, no stack": b"\x31\xe4\x50",
    "increment, not a prefix": b"\x40\xcc",
}
"""Code of 32 bits that user mode runs, by the name of its probe; at most `SLOT` bytes each."""


_MAP_LOW: Final = "".join(f"""
    lea rdi, [rip + {page}]
    call machine_frame
    shl rax, 12
    or rax, {READ_WRITE}
    mov [rip + {entry}], rax
""" for page, entry in (
    ("page_low", f"table_1 + {(LOW >> 12 & 511) * 8}"), ("table_1", f"table_2 + {(LOW >> 21 & 511) * 8}"),
    ("table_2", "table_3"), ("table_3", "map_low + 8"),
)) + "".join(f"""
    lea rdi, [rip + {table}]
    mov esi, {READ_ONLY}
    call remap
""" for table in ("table_1", "table_2", "table_3")) + f"""
    mov rdi, [rip + start_info_address]
    mov rdi, [rdi + start_info.pt_base]
    call machine_frame
    shl rax, 12
    mov [rip + map_low], rax
    {hypercall("mmu_update", "&map_low", 1, 0, "DOMID_SELF")}
    {line("map low: {rax:d}")}
"""

def _slot(code: bytes) -> str:
    return ".byte " + ", ".join(map(str, code.ljust(SLOT, b"\xf4")))


def build() -> bytes:
    """The image."""
    probing = Probing()
    probing.main.append(_MAP_LOW)
    probing.group("32-bit user mode", (
        Probe(name, "", low=LOW + index * SLOT) for index, name in enumerate(CODES)))
    probing.main.append(line("compat: done"))
    return probing.image(
        data=("map_low: .quad 0, 0", ".balign 4096, 0\npage_low:", *(_slot(code) for code in CODES.values())),
        bss=(".balign 4096, 0\ntable_1: .zero 4096\ntable_2: .zero 4096\ntable_3: .zero 4096",),
    )
