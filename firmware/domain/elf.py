"""ELF files for x86, read with suspicion: every offset, size and address is checked before it is believed.

Source: System V ABI, chapters 4 and 5, and the AMD64 and Intel386 supplements. Raises BadImageError.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, NamedTuple

from firmware.domain.errors import BadImageError

MAGIC: Final = b"\x7fELF"
CLASS_32: Final = 1
CLASS_64: Final = 2
LITTLE_ENDIAN: Final = 1
ET_EXEC: Final = 2
ET_DYN: Final = 3
EM_386: Final = 3
EM_X86_64: Final = 62
PT_LOAD: Final = 1
PT_NOTE: Final = 4
PF_ANY: Final = 7
SHT_SYMTAB: Final = 2
SHT_NOTE: Final = 7
SHT_NOBITS: Final = 8
STT_OBJECT: Final = 1
STT_MASK: Final = 15
"""The type of a symbol is in the low bits of st_info."""
IDENT_SIZE: Final = 16
MOST_HEADERS: Final = 4096
"""More program or section headers than any kernel has."""
MOST_MEMORY: Final = 64 << 30
"""Largest machine, and so the largest kernel, in bytes."""

_NOTE: Final = struct.Struct("<III")


class ProgramHeader(NamedTuple):
    """One segment: file offset and size, addresses, size in memory, flags."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


class SectionHeader(NamedTuple):
    """One section: its name, type, address, and place in the file."""

    name: str
    type: int
    address: int
    offset: int
    size: int
    link: int


class Note(NamedTuple):
    """One ELF note."""

    owner: bytes
    type: int
    value: bytes


@dataclass(frozen=True)
class _Format:
    """Where the headers of one class keep their fields."""

    machine: int
    header: struct.Struct
    program: struct.Struct
    program_order: tuple[int, ...]
    section: struct.Struct


_FORMATS: Final = {
    CLASS_64: _Format(
        EM_X86_64, struct.Struct("<HHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ"), (0, 1, 2, 3, 4, 5, 6),
        struct.Struct("<IIQQQQIIQQ"),
    ),
    CLASS_32: _Format(
        EM_386, struct.Struct("<HHIIIIIHHHHHH"), struct.Struct("<IIIIIIII"), (0, 6, 1, 2, 3, 4, 5),
        struct.Struct("<IIIIIIIIII"),
    ),
}
"""By ELF class: the machine it must be for, and the structures of the file, program and section headers."""


class ElfFile:
    """The headers of an x86 ELF executable. `width` is 64 or 32; `data` the whole file."""

    def __init__(self, data: bytes) -> None:
        if data[:4] != MAGIC:
            raise BadImageError("it is neither an ELF file nor a bzImage")
        if len(data) < IDENT_SIZE:
            raise BadImageError("it ends inside its ELF header")
        self.data = data
        form = _FORMATS.get(data[4])
        if form is None or data[5] != LITTLE_ENDIAN:
            raise BadImageError("it is an ELF file of an unknown class or byte order, not an x86 kernel")
        if len(data) < IDENT_SIZE + form.header.size:
            raise BadImageError("it ends inside its ELF header")
        (kind, machine, _, self.entry, self._ph_at, self._sh_at, _, _, self._ph_size, self._ph_count,
         self._sh_size, self._sh_count, self._names) = form.header.unpack_from(data, IDENT_SIZE)
        if machine != form.machine:
            raise BadImageError(f"it is for another processor (ELF machine {machine}), not for x86")
        if kind not in (ET_EXEC, ET_DYN):
            raise BadImageError(f"it is not an executable (ELF type {kind})")
        self.width = 64 if machine == EM_X86_64 else 32
        self._form = form
        self.programs = self._programs()
        self.loads = self._loads()

    @property
    def address_limit(self) -> int:
        """One above the highest address of this class."""
        return 1 << self.width

    def _table(
        self, what: str, at: int, size: int, count: int, entry: struct.Struct
    ) -> Iterator[tuple[int, ...]]:
        if size != entry.size:
            raise BadImageError(f"its {what} headers are {size} bytes each instead of {entry.size}")
        if count > MOST_HEADERS:
            raise BadImageError(f"it claims {count} {what} headers")
        if at + size * count > len(self.data):
            raise BadImageError(f"its {what} headers lie beyond the end of the file")
        return (entry.unpack_from(self.data, at + size * index) for index in range(count))

    def _programs(self) -> tuple[ProgramHeader, ...]:
        if not self._ph_count:
            raise BadImageError("it has no program headers")
        form = self._form
        rows = self._table("program", self._ph_at, self._ph_size, self._ph_count, form.program)
        return tuple(ProgramHeader(*(row[field] for field in form.program_order)) for row in rows)

    def _loads(self) -> tuple[ProgramHeader, ...]:
        loads = [row for row in self.programs if row.type == PT_LOAD and row.flags & PF_ANY and row.memsz]
        if not loads:
            raise BadImageError("it has nothing to load")
        for row in loads:
            self._check_load(row)
        loads.sort(key=lambda row: row.paddr)
        for first, second in pairwise(loads):
            if first.paddr + first.memsz > second.paddr:
                raise BadImageError(f"its segments overlap at physical address {second.paddr:#x}")
        if loads[-1].paddr + loads[-1].memsz - loads[0].paddr > MOST_MEMORY:
            raise BadImageError("its segments spread over more than 64 GiB")
        return tuple(loads)

    def _check_load(self, row: ProgramHeader) -> None:
        where = f"its segment at physical address {row.paddr:#x}"
        if row.filesz > row.memsz:
            raise BadImageError(f"{where} has more bytes in the file than in memory")
        if row.offset + row.filesz > len(self.data):
            raise BadImageError(f"{where} goes beyond the end of the file")
        if row.memsz > MOST_MEMORY:
            raise BadImageError(f"{where} is larger than 64 GiB")
        if row.paddr + row.memsz > self.address_limit or row.vaddr + row.memsz > self.address_limit:
            raise BadImageError(f"{where} wraps around the end of the address space")

    @cached_property
    def sections(self) -> tuple[SectionHeader, ...]:
        """Every section; empty if the file has none."""
        if not self._sh_at or not self._sh_count:
            return ()
        rows = list(self._table("section", self._sh_at, self._sh_size, self._sh_count, self._form.section))
        names = b""
        if self._names < len(rows):
            names = self.data[rows[self._names][4] : rows[self._names][4] + rows[self._names][5]]
        return tuple(SectionHeader(_string(names, row[0]), row[1], *row[3:7]) for row in rows)

    def contents(self, section: SectionHeader) -> bytes:
        """The bytes of a section, which must lie within the file."""
        if section.type == SHT_NOBITS:
            return b""
        if section.offset + section.size > len(self.data):
            raise BadImageError(f"its section {section.name!r} goes beyond the end of the file")
        return self.data[section.offset : section.offset + section.size]

    def section(self, name: str) -> SectionHeader | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    def program_notes(self) -> Iterator[Note]:
        """The notes of every PT_NOTE segment."""
        for row in self.programs:
            if row.type == PT_NOTE:
                if row.offset + row.filesz > len(self.data):
                    raise BadImageError("its notes lie beyond the end of the file")
                yield from _notes(self.data[row.offset : row.offset + row.filesz])

    def section_notes(self) -> Iterator[Note]:
        """The notes of every SHT_NOTE section."""
        for section in self.sections:
            if section.type == SHT_NOTE:
                yield from _notes(self.contents(section))

    def symbols(self) -> Sequence[tuple[int, str]]:
        """Address and name of every symbol in a section, by address; none if it is stripped or damaged. Data
        has no name.
        """
        table = next((section for section in self.sections if section.type == SHT_SYMTAB), None)
        if table is None or table.link >= len(self.sections):
            return ()
        try:
            rows, names = self.contents(table), self.contents(self.sections[table.link])
        except BadImageError:
            return ()
        if self.width == 64:
            entry, order = struct.Struct("<IBBHQQ"), (4, 0, 3, 1)
        else:
            entry, order = struct.Struct("<IIIBBH"), (1, 0, 5, 3)
        whole = entry.iter_unpack(rows[: len(rows) // entry.size * entry.size])
        found = [[row[index] for index in order] for row in whole]
        named = [(address, name, info) for address, name, section, info in found if name and section]
        return sorted(
            (address, "" if info & STT_MASK == STT_OBJECT else _string(names, name))
            for address, name, info in named
        )


def _string(table: bytes, at: int) -> str:
    end = table.find(b"\0", at)
    return table[at : end if end >= 0 else len(table)].decode("utf-8", "replace")


def _notes(data: bytes) -> Iterator[Note]:
    """The notes in `data`; a value that goes beyond its end is cut, as in Xen (for GRUB i386)."""
    at = 0
    while at + _NOTE.size <= len(data):
        name_size, value_size, kind = _NOTE.unpack_from(data, at)
        name_at = at + _NOTE.size
        value_at = name_at + (name_size + 3 & ~3)
        at = value_at + (value_size + 3 & ~3)
        owner = data[name_at : name_at + name_size].rstrip(b"\0")
        yield Note(owner, kind, data[value_at : value_at + value_size])
