"""A small linker around Keystone: sources of four sections in, a PV ELF image with Xen's notes out.

The same sources always give the same bytes. Image layout from the width's base (pseudo-physical address 0)
up: the hypercall page, which Xen fills; text, whose first byte is the entry; data; bss. A program of width 32
is a PAE guest's: ELF32, and a note that says so.
"""
from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from firmware.abi import elfnote
from guests import names

VIRT_BASE: Final = 0xFFFF_FFFF_8000_0000
PAGE: Final = 4096
HYPERCALL_PAGE: Final = VIRT_BASE
ENTRY: Final = VIRT_BASE + PAGE
NARROW_BASE: Final = 0xC000_0000
"""Where 32-bit guests lie."""
BASES: Final = {64: VIRT_BASE, 32: NARROW_BASE}
HYPERCALL_SLOT: Final = 32
"""Bytes of one call's stub in the hypercall page."""

_BOUNDS: Final = {64: struct.Struct("<QQQ"), 32: struct.Struct("<III")}
"""Data, bss, end: kept where the hypercall page will be."""
_WORD: Final = {64: ".quad", 32: ".long"}
_TRIES: Final = 64
_COMMENT: Final = re.compile(r"#[^\n]*")


@dataclass(slots=True)
class Program:
    """Sources of a guest by section. `#` starts a comment; names of Xen's headers are known."""

    text: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    bss: list[str] = field(default_factory=list)
    width: int = 64

    def image(self) -> bytes:
        """The ELF image. Raises ValueError where a source does not assemble."""
        return _link(*_assemble(self), self.width)


class AssemblyError(ValueError):
    """A source that Keystone refuses: its message and the first line that does not stand on its own."""


@cache
def _keystone(width: int) -> Any:
    # Keystone 0.9.2 leaves its radix to whatever the memory held: now and then an assembler reads 10 as 0x10.
    import keystone
    mode = keystone.KS_MODE_64 if width == 64 else keystone.KS_MODE_32
    tried: list[Any] = []
    while len(tried) < _TRIES:
        tried.append(keystone.Ks(keystone.KS_ARCH_X86, mode))
        if tried[-1].asm(".byte 10", as_bytes=True)[0] == b"\x0a":
            return tried[-1]
    raise AssemblyError("Keystone reads numbers as hexadecimal")


def _assemble(program: Program) -> tuple[bytes, int, int, int]:
    """Everything from the base on, and where data, bss and the end are, relative to it."""
    width, base = program.width, BASES[program.width]
    source = names.resolve(_COMMENT.sub("", "\n".join((
        f"{_WORD[width]} data_start, bss_start, image_end", f".balign {PAGE}, 0",
        *program.text, f".balign {PAGE}, 0", "data_start:",
        *program.data, f".balign {PAGE}, 0", "bss_start:",
        *program.bss, f".balign {PAGE}, 0", "image_end:",
    ))), width)
    try:
        code, _ = _keystone(width).asm(source, base, as_bytes=True)
    except Exception as error:
        raise AssemblyError(f"{error}: {_suspect(source, width)}") from error
    if code is None:
        raise AssemblyError(f"nothing assembled: {_suspect(source, width)}")
    data, bss, end = (bound - base for bound in _BOUNDS[width].unpack_from(code))
    return bytes(PAGE) + code[PAGE:], data, bss, end


def _suspect(source: str, width: int) -> str:
    """The first line Keystone refuses by itself with every symbol defined; empty if each alone is good."""
    labels = re.findall(r"^\s*(\w+):", source, re.MULTILINE)
    symbols = "\n".join(f"{label} = {BASES[width]}" for label in dict.fromkeys(labels))
    for line in source.splitlines():
        try:
            _keystone(width).asm(symbols + "\n" + re.sub(r"^\s*\w+:", "", line) + "\nnop", BASES[width])
        except Exception:  # noqa: BLE001 (keystone raises one class for everything)
            return line.strip()
    return ""


# ---- ELF (System V gABI) ---------------------------------------------------------------------------------

_EHDR: Final = {64: struct.Struct("<16sHHIQQQIHHHHHH"), 32: struct.Struct("<16sHHIIIIIHHHHHH")}
_PHDR: Final = {64: struct.Struct("<IIQQQQQQ"), 32: struct.Struct("<IIIIIIII")}
_SHDR: Final = {64: struct.Struct("<IIQQQQIIQQ"), 32: struct.Struct("<IIIIIIIIII")}
_NHDR: Final = struct.Struct("<III")
_IDENT: Final = {64: b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), 32: b"\x7fELF\x01\x01\x01".ljust(16, b"\0")}
_ET_EXEC, _EV_CURRENT = 2, 1
_MACHINE: Final = {64: 62, 32: 3}
"""EM_X86_64 and EM_386."""
_PT_LOAD, _PT_NOTE = 1, 4
_PF_X, _PF_W, _PF_R = 1, 2, 4
_SHT_PROGBITS, _SHT_STRTAB, _SHT_NOTE, _SHT_NOBITS = 1, 3, 7, 8
_SHF_WRITE, _SHF_ALLOC, _SHF_EXEC = 1, 2, 4
_SECTIONS: Final = b"\0.text\0.data\0.bss\0.note.Xen\0.shstrtab\0"


def _notes(width: int) -> bytes:
    number = struct.Struct("<Q" if width == 64 else "<I")

    def note(kind: int, value: str | int) -> bytes:
        body = value.encode() + b"\0" if isinstance(value, str) else number.pack(value)
        return _NHDR.pack(4, len(body), kind) + b"Xen\0" + body.ljust(-(-len(body) // 4) * 4, b"\0")

    base = BASES[width]
    return b"".join((
        note(elfnote.XEN_ELFNOTE_GUEST_OS, "xenpy-guest"),
        note(elfnote.XEN_ELFNOTE_GUEST_VERSION, "1"),
        note(elfnote.XEN_ELFNOTE_XEN_VERSION, "xen-3.0"),
        note(elfnote.XEN_ELFNOTE_VIRT_BASE, base),
        note(elfnote.XEN_ELFNOTE_ENTRY, base + PAGE),
        note(elfnote.XEN_ELFNOTE_HYPERCALL_PAGE, base),
        note(elfnote.XEN_ELFNOTE_PAE_MODE, "yes"),
        note(elfnote.XEN_ELFNOTE_LOADER, "generic"),
        note(elfnote.XEN_ELFNOTE_FEATURES, "pae_pgdir_above_4gb"),
    ))


def _link(code: bytes, data: int, bss: int, end: int, width: int) -> bytes:
    base, ehdr, phdr, shdr = BASES[width], _EHDR[width], _PHDR[width], _SHDR[width]
    notes = _notes(width)
    loads, first = 3, PAGE  # program headers; file offset of the base
    note_at = ehdr.size + loads * phdr.size
    names_at = first + bss
    sections_at = -(-(names_at + len(_SECTIONS)) // 8) * 8
    header = ehdr.pack(_IDENT[width], _ET_EXEC, _MACHINE[width], _EV_CURRENT, base + PAGE, ehdr.size,
                       sections_at, 0, ehdr.size, phdr.size, loads, shdr.size, 6, 5)

    def segment(kind: int, flags: int, at: int, address: int, place: int, size: int, memory: int,
                align: int) -> bytes:
        if width == 64:
            return phdr.pack(kind, flags, at, address, place, size, memory, align)
        return phdr.pack(kind, at, address, place, size, memory, flags, align)

    segments = b"".join((
        segment(_PT_LOAD, _PF_R | _PF_X, first, base, 0, data, data, PAGE),
        segment(_PT_LOAD, _PF_R | _PF_W, first + data, base + data, data, bss - data, end - data, PAGE),
        segment(_PT_NOTE, _PF_R, note_at, 0, 0, len(notes), len(notes), 4),
    ))

    def section(name: bytes, kind: int, flags: int, address: int, at: int, size: int, align: int) -> bytes:
        text = _SECTIONS.index(b"\0" + name + b"\0") + 1
        return shdr.pack(text, kind, flags, address, at, size, 0, 0, align, 0)

    sections = b"".join((
        bytes(shdr.size),
        section(b".text", _SHT_PROGBITS, _SHF_ALLOC | _SHF_EXEC, base, first, data, PAGE),
        section(b".data", _SHT_PROGBITS, _SHF_ALLOC | _SHF_WRITE, base + data, first + data, bss - data,
                PAGE),
        section(b".bss", _SHT_NOBITS, _SHF_ALLOC | _SHF_WRITE, base + bss, names_at, end - bss, PAGE),
        section(b".note.Xen", _SHT_NOTE, 0, 0, note_at, len(notes), 4),
        section(b".shstrtab", _SHT_STRTAB, 0, 0, names_at, len(_SECTIONS), 1),
    ))
    return b"".join((
        (header + segments + notes).ljust(first, b"\0"), code[:bss],
        _SECTIONS.ljust(sections_at - names_at, b"\0"), sections,
    ))
