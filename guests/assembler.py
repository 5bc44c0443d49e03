"""A small linker around Keystone: sources of four sections in, a PV ELF64 image with Xen's notes out.

The same sources always give the same bytes. Image layout from `VIRT_BASE` (pseudo-physical address 0) up:
the hypercall page, which Xen fills; text, whose first byte is the entry; data; bss.
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
HYPERCALL_SLOT: Final = 32
"""Bytes of one call's stub in the hypercall page."""

_BOUNDS: Final = struct.Struct("<QQQ")  # data, bss, end: kept where the hypercall page will be
_TRIES: Final = 64
_COMMENT: Final = re.compile(r"#[^\n]*")


@dataclass(slots=True)
class Program:
    """Sources of a guest by section. `#` starts a comment; names of Xen's headers are known."""

    text: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    bss: list[str] = field(default_factory=list)

    def image(self) -> bytes:
        """The ELF image. Raises ValueError where a source does not assemble."""
        return _link(*_assemble(self))


class AssemblyError(ValueError):
    """A source that Keystone refuses: its message and the first line that does not stand on its own."""


@cache
def _keystone() -> Any:
    # Keystone 0.9.2 leaves its radix to whatever the memory held: now and then an assembler reads 10 as 0x10.
    import keystone
    tried: list[Any] = []
    while len(tried) < _TRIES:
        tried.append(keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64))
        if tried[-1].asm(".byte 10", as_bytes=True)[0] == b"\x0a":
            return tried[-1]
    raise AssemblyError("Keystone reads numbers as hexadecimal")


def _assemble(program: Program) -> tuple[bytes, int, int, int]:
    """Everything from `VIRT_BASE` on, and where data, bss and the end are, relative to it."""
    source = names.resolve(_COMMENT.sub("", "\n".join((
        ".quad data_start, bss_start, image_end", f".balign {PAGE}, 0",
        *program.text, f".balign {PAGE}, 0", "data_start:",
        *program.data, f".balign {PAGE}, 0", "bss_start:",
        *program.bss, f".balign {PAGE}, 0", "image_end:",
    ))))
    try:
        code, _ = _keystone().asm(source, VIRT_BASE, as_bytes=True)
    except Exception as error:
        raise AssemblyError(f"{error}: {_suspect(source)}") from error
    if code is None:
        raise AssemblyError(f"nothing assembled: {_suspect(source)}")
    data, bss, end = (bound - VIRT_BASE for bound in _BOUNDS.unpack_from(code))
    return bytes(PAGE) + code[PAGE:], data, bss, end


def _suspect(source: str) -> str:
    """The first line Keystone refuses by itself with every symbol defined; empty if each alone is good."""
    labels = re.findall(r"^\s*(\w+):", source, re.MULTILINE)
    symbols = "\n".join(f"{label} = {VIRT_BASE}" for label in dict.fromkeys(labels))
    for line in source.splitlines():
        try:
            _keystone().asm(symbols + "\n" + re.sub(r"^\s*\w+:", "", line) + "\nnop", VIRT_BASE)
        except Exception:  # noqa: BLE001 (keystone raises one class for everything)
            return line.strip()
    return ""


# ---- ELF (System V gABI) ---------------------------------------------------------------------------------

_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_SHDR: Final = struct.Struct("<IIQQQQIIQQ")
_NHDR: Final = struct.Struct("<III")
_IDENT: Final = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_ET_EXEC, _EM_X86_64, _EV_CURRENT = 2, 62, 1
_PT_LOAD, _PT_NOTE = 1, 4
_PF_X, _PF_W, _PF_R = 1, 2, 4
_SHT_PROGBITS, _SHT_STRTAB, _SHT_NOTE, _SHT_NOBITS = 1, 3, 7, 8
_SHF_WRITE, _SHF_ALLOC, _SHF_EXEC = 1, 2, 4
_SECTIONS: Final = b"\0.text\0.data\0.bss\0.note.Xen\0.shstrtab\0"


def _note(kind: int, value: str | int) -> bytes:
    body = value.encode() + b"\0" if isinstance(value, str) else struct.pack("<Q", value)
    return _NHDR.pack(4, len(body), kind) + b"Xen\0" + body.ljust(-(-len(body) // 4) * 4, b"\0")


def _notes() -> bytes:
    return b"".join((
        _note(elfnote.XEN_ELFNOTE_GUEST_OS, "xenpy-guest"),
        _note(elfnote.XEN_ELFNOTE_GUEST_VERSION, "1"),
        _note(elfnote.XEN_ELFNOTE_XEN_VERSION, "xen-3.0"),
        _note(elfnote.XEN_ELFNOTE_VIRT_BASE, VIRT_BASE),
        _note(elfnote.XEN_ELFNOTE_ENTRY, ENTRY),
        _note(elfnote.XEN_ELFNOTE_HYPERCALL_PAGE, HYPERCALL_PAGE),
        _note(elfnote.XEN_ELFNOTE_PAE_MODE, "yes"),
        _note(elfnote.XEN_ELFNOTE_LOADER, "generic"),
        _note(elfnote.XEN_ELFNOTE_FEATURES, "pae_pgdir_above_4gb"),
    ))


def _link(code: bytes, data: int, bss: int, end: int) -> bytes:
    notes = _notes()
    loads, first = 3, PAGE  # program headers; file offset of VIRT_BASE
    note_at = _EHDR.size + loads * _PHDR.size
    names_at = first + bss
    sections_at = -(-(names_at + len(_SECTIONS)) // 8) * 8
    header = _EHDR.pack(_IDENT, _ET_EXEC, _EM_X86_64, _EV_CURRENT, ENTRY, _EHDR.size, sections_at, 0,
                        _EHDR.size, _PHDR.size, loads, _SHDR.size, 6, 5)
    segments = b"".join((
        _PHDR.pack(_PT_LOAD, _PF_R | _PF_X, first, VIRT_BASE, 0, data, data, PAGE),
        _PHDR.pack(_PT_LOAD, _PF_R | _PF_W, first + data, VIRT_BASE + data, data, bss - data, end - data,
                   PAGE),
        _PHDR.pack(_PT_NOTE, _PF_R, note_at, 0, 0, len(notes), len(notes), 4),
    ))

    def section(name: bytes, kind: int, flags: int, address: int, at: int, size: int, align: int) -> bytes:
        text = _SECTIONS.index(b"\0" + name + b"\0") + 1
        return _SHDR.pack(text, kind, flags, address, at, size, 0, 0, align, 0)

    sections = b"".join((
        bytes(_SHDR.size),
        section(b".text", _SHT_PROGBITS, _SHF_ALLOC | _SHF_EXEC, VIRT_BASE, first, data, PAGE),
        section(b".data", _SHT_PROGBITS, _SHF_ALLOC | _SHF_WRITE, VIRT_BASE + data, first + data, bss - data,
                PAGE),
        section(b".bss", _SHT_NOBITS, _SHF_ALLOC | _SHF_WRITE, VIRT_BASE + bss, names_at, end - bss, PAGE),
        section(b".note.Xen", _SHT_NOTE, 0, 0, note_at, len(notes), 4),
        section(b".shstrtab", _SHT_STRTAB, 0, 0, names_at, len(_SECTIONS), 1),
    ))
    return b"".join((
        (header + segments + notes).ljust(first, b"\0"), code[:bss],
        _SECTIONS.ljust(sections_at - names_at, b"\0"), sections,
    ))
