"""What a disk is to be, in the words of xl-disk-configuration(5): keywords, flags and positional parameters.

    format=raw, vdev=xvda, access=rw, target=PATH        PATH,raw,xvda,rw        PATH,,hdc,cdrom

Our own words beside xl's: `model=`, `sched=`, `overlay=`, `extents=`, `snapshot`, `write-cache`, `shared`.
A relative target starts from the current folder, not from /dev.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeVar

from firmware.disk import vdev
from firmware.disk.extents import Extent
from machine.disk import FORMATS
from xenpy.errors import BadInputError

Value = TypeVar("Value")

POSITIONS: Final = ("target", "format", "vdev", "access")
FORMAT_IS_SAID: Final = ("target", "vdev", "access")
"""The positions left when a deprecated prefix has said the format."""
WORDS: Final = frozenset({
    *POSITIONS, "devtype", "backendtype", "specification", "model", "sched", "overlay", "extents",
})
FLAGS: Final = {
    "cdrom": ("devtype", "cdrom"), "discard": ("discard", "on"), "no-discard": ("discard", "off"),
    "snapshot": ("snapshot", "on"), "write-cache": ("write-cache", "on"), "shared": ("shared", "on"),
    "trusted": ("trust", "on"), "direct-io-safe": ("direct-io-safe", "on"),
}
"""What a word alone means. The last two say what holds here anyway."""
ACCESS: Final = {"r": True, "ro": True, "w": False, "rw": False}
"""Whether the guest may only read."""
BACKENDS: Final = ("phy", "qdisk", "tap")
"""Programs that serve a disk in a domain 0: all the same here, where the machine itself does."""

NO_SCRIPT: Final = "no program is run to make a disk: give the image or block device itself"
COLO: Final = ("colo", "no-colo", "colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk")
NO_COLO: Final = "disks are not replicated to another host"
REFUSED: Final = {
    "script": NO_SCRIPT,
    "backend": "disks are served by the machine itself, not by another domain",
    "untrusted": "the machine itself serves the disk: there is nobody not to trust",
    "grant_usage": "every disk is used through grants",
    **dict.fromkeys(COLO, NO_COLO),
}
"""What xl knows and we do not do, and why."""
_KEYWORD: Final = re.compile(r"([a-z][-a-z0-9_]*)=(.*)", re.DOTALL)
_IGNORED_PREFIX: Final = re.compile(r"(tapdisk|tap2?|aio|ioemu|file|phy):")
_FORMAT_PREFIX: Final = re.compile(r"(raw|qcow2?|vhd):")
_SCRIPT_PREFIX: Final = re.compile(r"(iscsi|e?nbd|drbd):")
_EXTENT: Final = re.compile(r"([0-9]{1,19})\+([0-9]{1,19})")


@dataclass(frozen=True)
class DiskSpec:
    """A disk for a guest: an image, how it is opened, what emulates it, and where the guest finds it.

    `model` and `scheduler` None: as the rest of the machine's. `extents`: the ranges of sectors of the image
    that are the guest's disk, in order; none: all of it.
    """

    target: str
    vdev: str
    format: str = "raw"
    read_only: bool = False
    cdrom: bool = False
    discard: bool = True
    snapshot: bool = False
    overlay: str | None = None
    write_cache: bool = False
    shared: bool = False
    model: str | None = None
    scheduler: str | None = None
    extents: tuple[Extent, ...] = ()

    @classmethod
    def parse(cls, text: str) -> DiskSpec:
        """From one text. BadInputError says what is wrong with it."""
        try:
            return cls._made(_Words(text).found)
        except ValueError as error:
            raise BadInputError(f"disk {text!r}: {error}") from error

    @classmethod
    def _made(cls, words: dict[str, str]) -> DiskSpec:
        name, target = words.get("vdev", ""), words.get("target", "")
        if not name:
            raise ValueError("vdev is missing: say vdev=xvda")
        number = vdev.number(name)
        cdrom = _one_of("devtype", words.get("devtype") or "disk", {"cdrom": True, "disk": False})
        if not target:
            raise ValueError("target is missing: an empty CD-ROM drive is not emulated" if cdrom
                             else "target is missing: say target=PATH")
        _one_of("backendtype", words.get("backendtype") or "phy", dict.fromkeys(BACKENDS, True))
        _one_of("specification", words.get("specification") or "xen", {"xen": True})
        if "overlay" in words and "snapshot" in words:
            raise ValueError("its changes are either thrown away (snapshot) or kept (overlay)")
        return cls(
            target=target, vdev=vdev.name(number), cdrom=cdrom,
            format=_one_of("format", words.get("format") or "raw", dict(zip(FORMATS, FORMATS, strict=True))),
            read_only=_one_of("access", words.get("access") or ("r" if cdrom else "rw"), ACCESS) or cdrom,
            discard=words.get("discard") != "off", snapshot="snapshot" in words,
            overlay=words.get("overlay") or None, write_cache="write-cache" in words,
            shared="shared" in words,
            model=words.get("model") or None, scheduler=words.get("sched") or None,
            extents=_extents(words.get("extents", "")),
        )


class _Words:
    """The words of a text by their names; ValueError for what xl does not take either."""

    def __init__(self, text: str) -> None:
        self.found: dict[str, str] = {}
        self._positions: tuple[str, ...] = POSITIONS
        self._at = 0
        rest = self._prefixes(text.lstrip())
        while rest:
            if rest.startswith("target="):
                self._keep("target", rest.removeprefix("target="))
                return
            word, _, rest = rest.partition(",")
            self._word(word)
            rest = rest.lstrip()

    def _prefixes(self, text: str) -> str:
        """What is left behind the prefixes of old: tap:aio:raw:/path."""
        while True:
            if match := _FORMAT_PREFIX.match(text):
                self._keep("format", match[1])
            elif _SCRIPT_PREFIX.match(text):
                raise ValueError(NO_SCRIPT)
            else:
                match = _IGNORED_PREFIX.match(text)
            if match is None:
                return text
            self._positions = FORMAT_IS_SAID
            text = text[match.end():]

    def _word(self, word: str) -> None:
        match = _KEYWORD.fullmatch(word)
        name = match[1] if match else word
        if name in REFUSED:
            raise ValueError(f"{name}: {REFUSED[name]}")
        if match is not None:
            if name not in WORDS:
                raise ValueError(f"{name}= is not known: there are {', '.join(sorted(WORDS))} "
                                 "(a target with = or , in it comes last, as target=PATH)")
            self._keep(name, match[2])
        elif word in FLAGS:
            self._keep(*FLAGS[word])
        elif "=" in word:
            raise ValueError(f"{word!r} is not NAME=VALUE")
        else:
            self._position(word)

    def _position(self, word: str) -> None:
        positions = self._positions
        while self._at < len(positions) and self.found.get(positions[self._at]):
            self._at += 1
        if self._at == len(positions):
            raise ValueError(f"{word!r} is one word too many: {', '.join(positions)} is their order")
        name = positions[self._at]
        self._at += 1
        if name == "vdev" and ":" in word:
            word, _, kind = word.rpartition(":")
            self._keep("devtype", kind)
        self._keep(name, word)

    def _keep(self, name: str, value: str) -> None:
        if self.found.get(name):
            raise ValueError(f"{name} is said twice")
        self.found[name] = value


def _one_of(name: str, word: str, values: dict[str, Value]) -> Value:
    if word not in values:
        raise ValueError(f"{name} is one of {', '.join(values)}, not {word!r}")
    return values[word]


def _extents(text: str) -> tuple[Extent, ...]:
    found = []
    for part in filter(None, text.split(":")):
        match = _EXTENT.fullmatch(part)
        if match is None:
            raise ValueError(f"extents are written FIRST+SECTORS:FIRST+SECTORS, and {part!r} is not")
        found.append(Extent(int(match[1]), int(match[2])))
    return tuple(found)
