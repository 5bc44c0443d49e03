"""What a mutant is, and a group of them with the tests likely to notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class StaleMutant(Exception):
    """The piece of text a mutant replaces is not in its file exactly once."""


@dataclass(frozen=True)
class Mutant:
    """One change to one file: `fragment`, which must be there exactly once, becomes `replacement`."""

    name: str
    file: str
    fragment: str
    replacement: str

    def applied(self, root: Path = ROOT) -> str:
        """The file's text with the change; StaleMutant when the fragment is not there exactly once."""
        text = (root / self.file).read_text(encoding="utf-8")
        found = text.count(self.fragment)
        if found != 1:
            raise StaleMutant(f"stale mutant: {self.name}: its fragment is {found} times in {self.file}")
        return text.replace(self.fragment, self.replacement)


@dataclass(frozen=True)
class Area:
    """Mutants of one subject; `tests` (files) are run first, because they are about it."""

    name: str
    tests: tuple[str, ...]
    mutants: tuple[Mutant, ...]
