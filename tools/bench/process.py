"""One program run to its end: when each line came, what it used."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
KIB: Final = 1024
CHUNK: Final = 65536


@dataclass(frozen=True)
class Line:
    """A line of stdout without its end, and the host seconds from the process's start to its last byte."""

    text: str
    seconds: float


@dataclass
class Run:
    """A finished process. `seconds` by the clock, `cpu_seconds` of its own work, `peak_rss` in bytes.

    `status` is None when it was killed at its time limit.
    """

    lines: list[Line] = field(default_factory=list)
    stdout: bytes = b""
    stderr: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss: int = 0
    status: int | None = None

    def why(self) -> str:
        """One sentence for a run that did not end well."""
        if self.status is None:
            return f"did not end within {self.seconds:.0f} s"
        last = self.stderr.strip().splitlines()[-1:] or self.stdout.decode(errors="replace").splitlines()[-1:]
        return f"exit status {self.status}: {''.join(last)}"


def run(command: list[str], limit: float, environment: dict[str, str] | None = None,
        watch: Callable[[int, bytes], None] | None = None) -> Run:
    """Run a command without a stdin from the project's folder, for at most `limit` seconds of host time.

    `watch` gets the process id and each piece of stdout as it comes.
    """
    result = Run()
    chunks: list[tuple[bytes, float]] = []
    errors = bytearray()
    killed = False
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | (environment or {}), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stderr, selectors.EVENT_READ)
            while selector.get_map():
                left = start + limit - time.perf_counter()
                ready = selector.select(left) if left > 0 else []
                if not ready:
                    killed = True
                    process.kill()
                    break
                for key, _ in ready:
                    data = os.read(key.fd, CHUNK)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        chunks.append((data, time.perf_counter() - start))
                        if watch is not None:
                            watch(process.pid, data)
                    else:
                        errors += data
        # wait4 alone tells what this one child used; Popen is told the outcome and does not wait again.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    result.seconds = time.perf_counter() - start
    result.cpu_seconds = usage.ru_utime + usage.ru_stime
    result.status = None if killed else process.returncode
    result.peak_rss = usage.ru_maxrss * (1 if sys.platform == "darwin" else KIB)
    result.stdout = b"".join(data for data, _ in chunks)
    result.stderr = errors.decode(errors="replace")
    result.lines = split(chunks)
    return result


def split(chunks: list[tuple[bytes, float]]) -> list[Line]:
    """Lines out of pieces as they were read; a line's time is that of the piece which ended it."""
    lines = []
    rest = b""
    seconds = 0.0
    for data, seconds in chunks:
        *whole, rest = (rest + data).split(b"\n")
        lines += [Line(text.rstrip(b"\r").decode(errors="replace"), seconds) for text in whole]
    if rest:
        lines.append(Line(rest.rstrip(b"\r").decode(errors="replace"), seconds))
    return lines


def xenpy(*arguments: str) -> list[str]:
    """The command line of this project's xenpy."""
    return [sys.executable, "-m", "xenpy", *arguments]
