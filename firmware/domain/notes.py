"""What a kernel says of itself: ELF notes named "Xen", or the older section `__xen_guest` with one string.

Source: elfnote.h, and the checks Xen 4.17's loader makes of what it finds. Raises BadImageError.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from firmware.abi import elfnote, features
from firmware.domain.elf import ElfFile, Note
from firmware.domain.errors import BadImageError

OWNER: Final = b"Xen"
LEGACY_SECTION: Final = "__xen_guest"
PAGE_SHIFT: Final = 12
PAE_NO: Final = "no"
PAE_YES: Final = "yes"
PAE_EXTENDED: Final = "yes[extended-cr3]"
PAE_BIMODAL: Final = "bimodal"


@dataclass
class Notes:
    """The notes of one kernel; None where it is silent. Addresses are virtual."""

    entry: int | None = None
    hypercall_page: int | None = None
    virt_base: int | None = None
    paddr_offset: int | None = None
    init_p2m: int | None = None
    hv_start_low: int | None = None
    phys32_entry: int | None = None
    l1_mfn_valid: bytes = b""
    suspend_cancel: int = 0
    mod_start_pfn: bool = False
    pae: str = PAE_NO
    loader: str = ""
    guest_os: str = ""
    guest_version: str = ""
    xen_version: str = ""
    bsd_symtab: bool = False
    features_supported: int = 0
    features_required: int = 0
    legacy: bool = False
    count: int = field(default=0, compare=False)


def read_notes(elf: ElfFile) -> Notes:
    """The notes of a kernel: of its PT_NOTE segments, else of its note sections, else of `__xen_guest`."""
    for source in (elf.program_notes, elf.section_notes):
        notes = _from_elf(source())
        if notes.count:
            return notes
    section = elf.section(LEGACY_SECTION)
    if section is None:
        raise BadImageError("it has no Xen ELF notes, so it is not a kernel built for Xen PV")
    return from_string(elf.contents(section).split(b"\0")[0].decode("latin-1"))


def parse_features(text: str, notes: Notes) -> None:
    """Add the features of a `name|!name` list; an exclamation mark makes one required."""
    for name in filter(None, text.split("|")):
        required = name.startswith("!")
        bit = features.NAMES.get(name.removeprefix("!"))
        if bit is None:
            if required:
                raise BadImageError(f"it requires a feature that is unknown here: {name[1:]!r}")
            continue
        notes.features_supported |= 1 << bit
        if required:
            notes.features_required |= 1 << bit


def from_string(text: str) -> Notes:
    """The notes in a `NAME=value,NAME=value` string, as kernels of Xen 3.0 carry it."""
    notes = Notes(legacy=True)
    page = None
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        notes.count += bool(name)
        if name == "HYPERCALL_PAGE":
            page = _integer(name, value)
        elif name == "BSD_SYMTAB":
            notes.bsd_symtab = True
        elif name == "PAE":
            notes.pae = value if value in (PAE_EXTENDED, PAE_NO) else PAE_YES
        elif name == "FEATURES":
            parse_features(value, notes)
        elif name in _LEGACY_NUMBERS:
            setattr(notes, _LEGACY_NUMBERS[name], _integer(name, value))
        elif name in _LEGACY_TEXTS:
            setattr(notes, _LEGACY_TEXTS[name], value)
    if page is not None:
        notes.hypercall_page = (page << PAGE_SHIFT) + (notes.virt_base or 0)
    return notes


def _integer(name: str, value: str) -> int:
    try:
        return int(value, 0)
    except ValueError:
        raise BadImageError(f"its {LEGACY_SECTION} section has {name}={value!r}, not a number") from None


_LEGACY_NUMBERS: Final = {"VIRT_BASE": "virt_base", "VIRT_ENTRY": "entry", "ELF_PADDR_OFFSET": "paddr_offset"}
_LEGACY_TEXTS: Final = {
    "LOADER": "loader", "GUEST_OS": "guest_os", "GUEST_VER": "guest_version", "XEN_VER": "xen_version",
}


def _from_elf(found: Iterable[Note]) -> Notes:
    notes = Notes()
    for note in found:
        if note.owner == OWNER:
            notes.count += 1
            set_field = _SETTERS.get(note.type)
            if set_field is not None:
                set_field(notes, note)
    return notes


def _number(note: Note) -> int:
    if len(note.value) not in (1, 2, 4, 8):
        raise BadImageError(f"its Xen note {note.type} is a number of {len(note.value)} bytes")
    return int.from_bytes(note.value, "little")


def _text(note: Note) -> str:
    return note.value.split(b"\0")[0].decode("latin-1")


def _keep_number(name: str) -> Callable[[Notes, Note], None]:
    return lambda notes, note: setattr(notes, name, _number(note))


def _keep_text(name: str) -> Callable[[Notes, Note], None]:
    return lambda notes, note: setattr(notes, name, _text(note))


def _keep_pae(notes: Notes, note: Note) -> None:
    text = _text(note)
    if "bimodal" in text:
        notes.pae = PAE_BIMODAL
    else:
        notes.pae = PAE_EXTENDED if text.startswith("yes") else PAE_NO


def _keep_feature_bits(notes: Notes, note: Note) -> None:
    notes.features_supported |= _number(note) & 0xFFFFFFFF


def _keep_bsd_symtab(notes: Notes, note: Note) -> None:
    notes.bsd_symtab = _text(note).startswith("yes")


def _keep_flag(name: str) -> Callable[[Notes, Note], None]:
    return lambda notes, note: setattr(notes, name, bool(_number(note)))


_SETTERS: Final[dict[int, Callable[[Notes, Note], None]]] = {
    elfnote.XEN_ELFNOTE_ENTRY: _keep_number("entry"),
    elfnote.XEN_ELFNOTE_HYPERCALL_PAGE: _keep_number("hypercall_page"),
    elfnote.XEN_ELFNOTE_VIRT_BASE: _keep_number("virt_base"),
    elfnote.XEN_ELFNOTE_PADDR_OFFSET: _keep_number("paddr_offset"),
    elfnote.XEN_ELFNOTE_XEN_VERSION: _keep_text("xen_version"),
    elfnote.XEN_ELFNOTE_GUEST_OS: _keep_text("guest_os"),
    elfnote.XEN_ELFNOTE_GUEST_VERSION: _keep_text("guest_version"),
    elfnote.XEN_ELFNOTE_LOADER: _keep_text("loader"),
    elfnote.XEN_ELFNOTE_PAE_MODE: _keep_pae,
    elfnote.XEN_ELFNOTE_FEATURES: lambda notes, note: parse_features(_text(note), notes),
    elfnote.XEN_ELFNOTE_BSD_SYMTAB: _keep_bsd_symtab,
    elfnote.XEN_ELFNOTE_HV_START_LOW: _keep_number("hv_start_low"),
    elfnote.XEN_ELFNOTE_L1_MFN_VALID: lambda notes, note: setattr(notes, "l1_mfn_valid", note.value),
    elfnote.XEN_ELFNOTE_SUSPEND_CANCEL: _keep_number("suspend_cancel"),
    elfnote.XEN_ELFNOTE_INIT_P2M: _keep_number("init_p2m"),
    elfnote.XEN_ELFNOTE_MOD_START_PFN: _keep_flag("mod_start_pfn"),
    elfnote.XEN_ELFNOTE_SUPPORTED_FEATURES: _keep_feature_bits,
    elfnote.XEN_ELFNOTE_PHYS32_ENTRY: _keep_number("phys32_entry"),
}
"""What each type of note sets."""
