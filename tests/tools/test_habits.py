"""The project's habits, held for every file it has."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 500
"""Lines of a source file: beyond this a second noun is in it."""

PACKAGES = ("machine", "firmware", "guests", "xenpy", "tools", "tests")
PYTHON = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Built from pieces, or this file would find itself.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
HOME = re.compile(r"(?<![\w.$/}])/(?:root|home/\w+|Users/\w+|tmp/\w+)/")
MACHINE_PATH_ALLOWED = {Path("tests/tools/test_guests_cache.py")}
"""It gives $HOME a made-up value."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tracked() -> list[Path]:
    """Text files of the project: what git tracks, or, without git, the sources."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return PYTHON
    paths = [ROOT / entry for entry in done.stdout.decode().split("\0") if entry]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def test_the_sources_are_found() -> None:
    assert len(PYTHON) > 50
    assert {path.relative_to(ROOT).parts[0] for path in PYTHON} == set(PACKAGES)


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_a_module(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert UNFINISHED.search(text) is None
    if path.relative_to(ROOT).parts[0] != "tests" and text:
        assert ast.get_docstring(ast.parse(text)), "its docstring says what it is"


def test_no_path_of_somebodys_machine() -> None:
    found = []
    for path in tracked():
        if path.relative_to(ROOT) in MACHINE_PATH_ALLOWED or path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if HOME.search(line):
                found.append(f"{name(path)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize("line", ["see /" + "root/x", "'/home/me/y'", "/tmp/mine/bin/python"])
def test_what_such_a_path_is(line: str) -> None:
    assert HOME.search(line)


@pytest.mark.parametrize("line", [
    "a/work/b", "GET /workload", "/tmp/file", "tools/workload", "$HOME/" + "root/",
])
def test_what_such_a_path_is_not(line: str) -> None:
    assert HOME.search(line) is None


@pytest.mark.parametrize("document", [
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SUPPORT.md", "SPECIFICATION.md", "CAVEATS.md", "LICENSE",
    "docs/architecture.md",
])
def test_a_document_is_there(document: str) -> None:
    assert (ROOT / document).read_text(encoding="utf-8").strip()


def test_the_changelog_names_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_decisions_are_numbered_and_have_one_shape() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [path.name[:5] for path in decisions]
    assert all(re.fullmatch(r"\d{4}-", number) for number in numbers)
    assert len(set(numbers)) == len(numbers)
    for path in decisions:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# "), path.name
        for part in ("**Context.**", "**Decision.**", "**Consequence"):
            assert part in text, f"{path.name}: {part}"


def test_links_in_documents_lead_somewhere() -> None:
    broken = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        broken += [f"{name(path)}: {target}" for target in targets if not (path.parent / target).exists()]
    assert broken == []
