"""Runs tests on copies of the sources, each time with one mutant in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tools.mutants.mutant import ROOT, Area, Mutant, StaleMutant

PARTS: Final = ("machine", "firmware", "guests", "xenpy", "tools", "tests", "pyproject.toml")
REST: Final = (
    "tests/memory/test_mmu.py",
    "tests/memory/test_rules.py",
    "tests/memory/test_limits.py",
    "tests/memory/test_flushes.py",
    "tests/memory/test_calls.py",
    "tests/memory/test_grant_rules.py",
    "tests/memory/test_stores.py",
    "tests/memory/test_floor.py",
    "tests/memory/test_m2p.py",
    "tests/memory/test_unfinished.py",
    "tests/memory/test_interrupted.py",
    "tests/memory/test_ldt.py",
    "tests/firmware/test_contexts.py",
    "tests/firmware/test_calls.py",
    "tests/firmware/test_vcpus.py",
    "tests/firmware/test_bounce.py",
    "tests/memory/test_fuzz.py",
)
"""After an area's own tests: what is quick."""
LONG: Final = ("tests/memory/test_integrity.py",)
"""In the end: random operations against the reference model."""
LIMIT: Final = 120
"""Seconds that a mutant has for each group of tests; one that never ends has been noticed."""
NEVER: Final = 0
PASSED, FAILED = 0, 1
"""pytest's exit codes."""
FAILURE: Final = re.compile(r"^(?:FAILED|ERROR) (\S+?::.*?)(?: - (.*))?$", re.MULTILINE)
BROKEN: Final = re.compile(r"^(NameError|UnboundLocalError|SyntaxError|ImportError|ModuleNotFoundError)")
"""Ways to fail that show a mutant which is no program, not a test that noticed something."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: the test that failed, or why it is not killed."""

    area: str
    mutant: Mutant
    killer: str = ""
    problem: str = ""

    @property
    def killed(self) -> bool:
        """Whether a test noticed."""
        return bool(self.killer)


class Copy:
    """A copy of the sources in a directory of its own, and the tests run there."""

    def __init__(self, directory: Path) -> None:
        self.root = directory
        self._sound: set[str] = set()
        directory.mkdir()
        for part in PARTS:
            source, target = ROOT / part, directory / part
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)
        environment = {**os.environ, "PYTHONPATH": str(directory), "COLUMNS": "500"}
        environment.pop("XENPY_SOAK", None)
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tools.mutants.nursery"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def holding(self, mutant: Mutant) -> Iterator[None]:
        """Within, the mutant is in the sources."""
        path = self.root / mutant.file
        text, times = path.read_text(encoding="utf-8"), path.stat()
        try:
            path.write_text(mutant.applied(self.root), encoding="utf-8")
            yield
        finally:
            path.write_text(text, encoding="utf-8")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def prepare(self, tests: tuple[str, ...]) -> None:
        """Make sure that these tests pass here without a mutant. RuntimeError when one does not."""
        new = [test for test in tests if test not in self._sound]
        if new:
            code, output = self._run(new, compiled=True)
            if code != PASSED:
                raise RuntimeError(f"the tests fail without any mutant:\n{output}")
            self._sound.update(new)

    def noticed(self, tests: tuple[str, ...]) -> tuple[str, str]:
        """Run tests until one fails: its name and "", "" and what is wrong with the mutant, or both empty."""
        code, output = self._run(tests, compiled=False)
        if code == -signal.SIGALRM:
            return f"no end after {LIMIT} s", ""
        found = FAILURE.search(output)
        if code == PASSED:
            return "", ""
        if code != FAILED or found is None:
            return "", f"the tests did not run:\n{output}"
        name, reason = found.group(1), found.group(2) or ""
        return ("", f"{name}: {reason}") if BROKEN.match(reason) else (name, "")

    def _run(self, tests: list[str] | tuple[str, ...], *, compiled: bool) -> tuple[int, str]:
        """pytest's exit code and output. Only the unchanged sources leave compiled files behind."""
        arguments = ["-x", "--tb=no", "-rfE", "-p", "no:cacheprovider", *tests]
        request = {"arguments": arguments, "limit": NEVER if compiled else LIMIT, "compiled": compiled}
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(json.dumps(request) + "\n")
        self._nursery.stdin.flush()
        answer = json.loads(self._nursery.stdout.readline())
        return answer["code"], answer["output"]

    def close(self) -> None:
        """End the process that runs the tests."""
        self._nursery.terminate()
        self._nursery.communicate()


def judge(copy: Copy, area: Area, mutant: Mutant, *, long: bool = True) -> Verdict:
    """Try one mutant: the tests about its subject first, then the rest, then the random ones."""
    rest = tuple(test for test in REST if test not in area.tests)
    groups = (area.tests, rest, LONG) if long else (area.tests, rest)
    try:
        for tests in groups:
            copy.prepare(tests)
            with copy.holding(mutant):
                killer, problem = copy.noticed(tests)
            if killer or problem:
                return Verdict(area.name, mutant, killer, problem)
    except StaleMutant as stale:
        return Verdict(area.name, mutant, problem=str(stale))
    return Verdict(area.name, mutant, problem="no test notices")


def run(
    work: list[tuple[Area, Mutant]], directory: Path, jobs: int, *, long: bool = True
) -> Iterator[Verdict]:
    """Judge all of `work`, on `jobs` copies at a time; verdicts in the order of the work."""
    copies: list[Copy] = []
    idle: SimpleQueue[Copy] = SimpleQueue()
    stop = threading.Event()

    def task(item: tuple[Area, Mutant]) -> Verdict:
        if stop.is_set():
            return Verdict(item[0].name, item[1], problem="not tried")
        copy = idle.get()
        try:
            return judge(copy, *item, long=long)
        except BaseException:
            stop.set()
            raise
        finally:
            idle.put(copy)

    try:
        for number in range(jobs):
            copies.append(Copy(directory / str(number)))
            idle.put(copies[-1])
        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(task, work)
    finally:
        for copy in copies:
            copy.close()
