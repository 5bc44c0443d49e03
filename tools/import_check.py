"""Holds the import directions of docs/architecture.md: `python -m tools.import_check [ROOT]`.

Rules, each a function below that yields complaints: storeys point one way, floors inside `firmware` point
down, `guests` sees only `firmware.abi`, only `machine.engine` knows Unicorn, nobody takes another module's
private names.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

STOREYS: Final[dict[str, frozenset[str]]] = {
    "machine": frozenset({"machine"}),
    "firmware": frozenset({"firmware", "machine"}),
    "guests": frozenset({"guests", "firmware"}),
    "xenpy": frozenset({"xenpy", "firmware", "machine", "guests"}),
    "tools": frozenset({"tools", "xenpy", "firmware", "machine", "guests"}),
    "tests": frozenset({"tests", "tools", "xenpy", "firmware", "machine", "guests"}),
}
"""Which of the project's packages each may import."""

FLOORS: Final[tuple[frozenset[str], ...]] = (
    frozenset({"abi"}),
    frozenset({"hypercalls", "trace"}),
    frozenset({"memory"}),
    frozenset({"domain"}),
    frozenset({"sched", "traps", "events", "multicall", "platform", "version"}),
    frozenset({"timers", "console", "store"}),
    frozenset({"vcpus", "disk"}),
    frozenset({"hypervisor"}),
    frozenset({"control"}),
)
"""The floors of `firmware`, from the ground. A part may import itself and the floors below its own."""

HEIGHT: Final[dict[str, int]] = {name: height for height, floor in enumerate(FLOORS) for name in floor}


@dataclass(frozen=True)
class Reference:
    """One mention of another module: an import, or a private name read through an imported module."""

    line: int
    module: str
    """Dotted name of what is imported; for `from a import b` it is `a.b`, be `b` a module or a name."""
    private: bool = False
    """The last part is a private name of the module before it."""


@dataclass
class Source:
    """A parsed file: its dotted name and what it refers to."""

    name: str
    path: Path
    package: bool
    references: list[Reference] = field(default_factory=list)


def is_private(name: str) -> bool:
    """A leading underscore, and not a magic name."""
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def module_name(root: Path, path: Path) -> tuple[str, bool]:
    """Dotted name of a file below `root`, and whether it is a package's `__init__`."""
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[-1] == "__init__":
        return ".".join(parts[:-1]), True
    return ".".join(parts), False


def parse(name: str, path: Path, package: bool) -> Source:
    """Read one file; raises SyntaxError as Python does."""
    source = Source(name, path, package)
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                source.references.append(Reference(node.lineno, alias.name))
                modules[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(source, node)
            for alias in node.names:
                target = f"{base}.{alias.name}" if alias.name != "*" else base
                source.references.append(Reference(node.lineno, target, is_private(alias.name)))
                modules[alias.asname or alias.name] = target
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = _dotted(node.value, modules)
            if owner is not None:
                source.references.append(Reference(node.lineno, f"{owner}.{node.attr}", True))
    return source


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = source.name.split(".")
    drop = node.level - (1 if source.package else 0)
    base = parts[: len(parts) - drop] if drop else parts
    return ".".join([*base, node.module] if node.module else base)


def _dotted(node: ast.expr, modules: dict[str, str]) -> str | None:
    """The module an expression such as `a.b` names, when it starts at a name that was imported as one."""
    if isinstance(node, ast.Name):
        target = modules.get(node.id)
        # A class or a constant is no module: its private attributes are a matter between the two of them.
        return target if target is not None and target.rpartition(".")[2].islower() else None
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value, modules)
        return f"{owner}.{node.attr}" if owner is not None else None
    return None


def storeys(source: Source) -> Iterator[tuple[int, str]]:
    """xenpy -> firmware -> machine; guests -> firmware.abi; nobody imports tools or tests."""
    top = source.name.partition(".")[0]
    allowed = STOREYS.get(top)
    if allowed is None:
        return
    for reference in source.references:
        target = reference.module.partition(".")[0]
        if target in STOREYS and target not in allowed:
            yield reference.line, f"{top} must not import {reference.module}"


def guests(source: Source) -> Iterator[tuple[int, str]]:
    """`guests` runs on real Xen as well: it sees the public interface only."""
    if source.name.partition(".")[0] != "guests":
        return
    for reference in source.references:
        part = _part(reference.module + ".")
        if part is not None and part != "abi":
            yield reference.line, f"guests may use only firmware.abi, not {reference.module}"


def unicorn(source: Source) -> Iterator[tuple[int, str]]:
    """Everything that knows Unicorn lives in `machine.engine`, and in the tests of the machine."""
    if (source.name + ".").startswith(("machine.engine.", "tests.machine.")):
        return
    for reference in source.references:
        if reference.module.partition(".")[0] == "unicorn":
            yield reference.line, "only machine.engine imports unicorn"


def floors(source: Source) -> Iterator[tuple[int, str]]:
    """Inside `firmware` imports point to lower floors."""
    part = _part(source.name)
    if part is None:
        return
    if part not in HEIGHT:
        yield 1, f"firmware.{part} is on no floor: give it one in FLOORS and in docs/architecture.md"
        return
    for reference in source.references:
        target = _part(reference.module)
        if target is None or target == part:
            continue
        if target not in HEIGHT:
            yield reference.line, f"{reference.module} is on no floor"
        elif HEIGHT[target] >= HEIGHT[part]:
            yield reference.line, f"firmware.{part} must not import firmware.{target}: it is not below it"


def _part(name: str) -> str | None:
    """The part of `firmware` that a dotted name is in; None for other packages and for `firmware` itself."""
    top, _, rest = name.partition(".")
    return rest.partition(".")[0] if top == "firmware" and rest else None


def privacy(source: Source) -> Iterator[tuple[int, str]]:
    """A private name is its own module's; a private module is its own package's."""
    package = source.name if source.package else source.name.rpartition(".")[0]
    for reference in source.references:
        parts = reference.module.split(".")
        if parts[0] not in STOREYS:
            continue
        for index, part in enumerate(parts):
            owner = ".".join(parts[:index])
            # Two underscores in firmware.abi are not ours: that is how the public headers spell a name.
            if not is_private(part) or (part.startswith("__") and owner.startswith("firmware.abi.")):
                continue
            # For the last part of a name we cannot tell a module from a variable: a file decides.
            inside = (package + ".").startswith(owner + ".") and _is_module(source, parts[: index + 1])
            if not inside and owner != source.name:
                yield reference.line, f"{reference.module} is private to {owner}"
                break


def _is_module(source: Source, parts: list[str]) -> bool:
    root = source.path.parents[source.name.count(".") + (1 if source.package else 0)]
    place = root.joinpath(*parts)
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


RULES: Final = (storeys, guests, unicorn, floors, privacy)


def check(root: Path) -> list[str]:
    """Every complaint about the project at `root`, as `path:line: text`, in order."""
    complaints = []
    for top in STOREYS:
        for path in sorted((root / top).rglob("*.py")):
            source = parse(*_named(root, path))
            for rule in RULES:
                complaints += [f"{path.relative_to(root)}:{line}: {text}" for line, text in rule(source)]
    return complaints


def _named(root: Path, path: Path) -> tuple[str, Path, bool]:
    name, package = module_name(root, path)
    return name, path, package


def main(arguments: list[str]) -> int:
    """Print the complaints; exit status 1 when there are any."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    complaints = check(root)
    for complaint in complaints:
        sys.stdout.write(complaint + "\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
