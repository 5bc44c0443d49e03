"""Kernel images made for tests: small ELF files with Xen notes, and bzImages around them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from firmware.abi import elfnote

EHDR = {64: struct.Struct("<4sBBBB8xHHIQQQIHHHHHH"), 32: struct.Struct("<4sBBBB8xHHIIIIIHHHHHH")}
PHDR = {64: struct.Struct("<IIQQQQQQ"), 32: struct.Struct("<IIIIIIII")}
SHDR = {64: struct.Struct("<IIQQQQIIQQ"), 32: struct.Struct("<IIIIIIIIII")}
BASE = 0xFFFFFFFF80000000
BASE_32 = 0xC0000000


@dataclass(frozen=True)
class Load:
    """One PT_LOAD segment; its vaddr is its paddr unless given. `filesz` and `offset` can lie."""

    paddr: int
    data: bytes
    memsz: int | None = None
    vaddr: int | None = None
    filesz: int | None = None
    offset: int | None = None
    flags: int = 7


@dataclass(frozen=True)
class Section:
    """One section with contents."""

    name: str
    type: int
    data: bytes
    link: int = 0


def note(kind: int, value: bytes | int | str, width: int = 64, owner: bytes = b"Xen\0") -> bytes:
    """One ELF note."""
    if isinstance(value, int):
        value = value.to_bytes(width // 8, "little")
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    body = struct.pack("<III", len(owner), len(value), kind) + owner.ljust(-(-len(owner) // 4) * 4, b"\0")
    return body + value.ljust(-(-len(value) // 4) * 4, b"\0")


@dataclass(frozen=True)
class Kernel:
    """An ELF kernel; `image()` gives its bytes. The defaults make a good 64-bit PV kernel of 3 pages."""

    width: int = 64
    loads: tuple[Load, ...] = (Load(0x1000, b"\x90" * 5000, memsz=0x3000),)
    notes: dict[int, bytes | int | str] = field(
        default_factory=lambda: {
            elfnote.XEN_ELFNOTE_XEN_VERSION: "xen-3.0",
            elfnote.XEN_ELFNOTE_LOADER: "generic",
            elfnote.XEN_ELFNOTE_VIRT_BASE: BASE,
            elfnote.XEN_ELFNOTE_ENTRY: BASE + 0x1000,
        }
    )
    sections: tuple[Section, ...] = ()
    notes_in_section: bool = False
    machine: int | None = None
    kind: int = 2
    entry: int = 0

    def having(self, **changes: object) -> Kernel:
        """The same with other fields."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def noting(self, notes: dict[int, bytes | int | str | None]) -> Kernel:
        """The same with notes added, changed or (None) removed."""
        merged = {**self.notes, **notes}
        return replace(self, notes={kind: value for kind, value in merged.items() if value is not None})

    def image(self) -> bytes:
        """The ELF file."""
        width = self.width
        notes = b"".join(note(kind, value, width) for kind, value in self.notes.items())
        sections = self.sections
        if notes and self.notes_in_section:
            sections += (Section(".note.Xen", 7, notes),)
        in_program = bool(notes) and not self.notes_in_section
        count = len(self.loads) + in_program
        at = EHDR[width].size + count * PHDR[width].size
        headers, bodies = [], []
        for load in self.loads:
            memsz = len(load.data) if load.memsz is None else load.memsz
            filesz = len(load.data) if load.filesz is None else load.filesz
            vaddr = load.paddr if load.vaddr is None else load.vaddr
            offset = at if load.offset is None else load.offset
            headers.append(self._program(1, load.flags, offset, vaddr, load.paddr, filesz, memsz))
            bodies.append(load.data)
            at += len(load.data)
        if in_program:
            headers.append(self._program(4, 4, at, 0, 0, len(notes), len(notes)))
            bodies.append(notes)
            at += len(notes)
        rows, names = [], b"\0"
        listed = (Section("", 0, b""), *sections, Section(".shstrtab", 3, b"")) if sections else ()
        for section in listed:
            name_at = len(names)
            names += section.name.encode() + b"\0"
            data = names if section.name == ".shstrtab" else section.data
            rows.append(SHDR[width].pack(name_at, section.type, 0, 0, at, len(data), section.link, 0, 1, 0))
            bodies.append(data)
            at += len(data)
        machine = self.machine if self.machine is not None else 62 if width == 64 else 3
        header = EHDR[width].pack(
            b"\x7fELF",
            2 if width == 64 else 1,
            1,
            1,
            0,
            self.kind,
            machine,
            1,
            self.entry,
            EHDR[width].size,
            at if rows else 0,
            0,
            EHDR[width].size,
            PHDR[width].size,
            count,
            SHDR[width].size,
            len(rows),
            max(len(rows) - 1, 0),
        )
        return b"".join([header, *headers, *bodies, *rows])

    def _program(self, kind: int, flags: int, *rest: int) -> bytes:
        offset, vaddr, paddr, filesz, memsz = rest
        if self.width == 64:
            return PHDR[64].pack(kind, flags, offset, vaddr, paddr, filesz, memsz, 0x1000)
        return PHDR[32].pack(kind, offset, vaddr, paddr, filesz, memsz, flags, 0x1000)


GOOD = Kernel()
GOOD_32 = Kernel(width=32).noting(
    {
        elfnote.XEN_ELFNOTE_VIRT_BASE: BASE_32,
        elfnote.XEN_ELFNOTE_ENTRY: BASE_32 + 0x1000,
        elfnote.XEN_ELFNOTE_PAE_MODE: "yes",
    }
)


def bzimage(payload: bytes, protocol: int = 0x20F, length: int | None = None) -> bytes:
    """A Linux boot image around a packed kernel."""
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<II", setup, 0x248, 64, len(payload) if length is None else length)
    return bytes(setup) + b"\xcc" * 64 + payload + b"\xcc" * 32
