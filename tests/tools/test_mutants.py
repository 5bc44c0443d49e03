"""The list of mutants: each fits the sources as they are, and is a program."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tools.mutants.areas import AREAS
from tools.mutants.mutant import ROOT, Area, Mutant, StaleMutant
from tools.mutants.runner import LONG, REST

LEAST = 40
ALL = [(area, mutant) for area in AREAS for mutant in area.mutants]


def test_there_are_enough_and_each_once() -> None:
    assert len(ALL) >= LEAST
    assert [
        name for name, times in Counter((area.name, mutant.name) for area, mutant in ALL).items() if times > 1
    ] == []
    assert [
        key
        for key, times in Counter((m.file, m.fragment, m.replacement) for _, m in ALL).items()
        if times > 1
    ] == []


@pytest.mark.parametrize(("area", "mutant"), ALL, ids=lambda part: part.name)
def test_a_mutant_fits(area: Area, mutant: Mutant) -> None:
    """Its text is in its file exactly once; what it makes of it is another text and, in Python, a program."""
    changed = mutant.applied()
    assert changed != (ROOT / mutant.file).read_text(encoding="utf-8")
    if mutant.file.endswith(".py"):
        ast.parse(changed)


@pytest.mark.parametrize("test", sorted({test for area in AREAS for test in area.tests} | {*REST, *LONG}))
def test_its_tests_are_there(test: str) -> None:
    assert (ROOT / test).is_file()


@pytest.mark.parametrize("text", ["", "x = 1\n", "check()\ncheck()\n"])
def test_a_stale_mutant_is_noticed(tmp_path: Path, text: str) -> None:
    (tmp_path / "part.py").write_text(text, encoding="utf-8")
    with pytest.raises(StaleMutant, match="stale mutant: a check"):
        Mutant("a check", "part.py", "check()", "pass").applied(tmp_path)
