"""The consoles real Xen gave, kept as data: one file a guest, with a header that says where it comes from."""
from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final

import guests
from tools.oracle import End, OracleError, Result, dom0, domu
from tools.oracle.qemu import CPU, QEMU

PLACE: Final = Path(__file__).parents[2] / "tests" / "guests" / "expected"
HEADER_END: Final = "#\n"
"""The header's last line; what follows is the console, byte for byte."""
FIRST_RIGHT: Final = (10, 0, 0)
SOFTWARE_INTERRUPT: Final = re.compile(r"\bint (0x)?\d")
"""Lines about refused `int N`: older QEMUs push vector * 16 + 2 for vector * 8 + 2 in long mode."""
VERSION: Final = re.compile(r"^\(XEN\) Xen version \S+ \((Debian \S+)\)", re.MULTILINE)


def path(name: str) -> Path:
    """Where a guest's console is kept."""
    return PLACE / f"{name}.txt"


def expected(name: str) -> str:
    """The console real Xen gave a guest."""
    return path(name).read_text(encoding="utf-8").partition(HEADER_END)[2]


def trusted(lines: list[str]) -> list[str]:
    """The lines of a console that the QEMU at hand can be believed."""
    if qemu_version() >= FIRST_RIGHT:
        return lines
    return [line for line in lines if not SOFTWARE_INTERRUPT.search(line)]


def run(name: str) -> Result:
    """Run a guest of ours as dom0, or as what it is for, with its vCPUs. Raises OracleError."""
    guest = guests.GUESTS[name]
    if guest.unprivileged:
        return domu.run({name: domu.Job(guest.build(), guest.cmdline, guest.vcpus)})[name]
    return dom0.run(guest.build(), vcpus=guest.vcpus, cmdline=guest.cmdline)


def record(name: str) -> Path:
    """Run a guest on real Xen and keep its console. Raises OracleError unless it ran to its end."""
    result = run(name)
    if result.end is not End.POWEROFF or not result.console.endswith(guests.GUESTS[name].expected + "\n"):
        raise OracleError(f"{name} did not run to its end: {result.end.value}")
    path(name).write_text(_header(name, result) + result.console, encoding="utf-8")
    return path(name)


def _header(name: str, result: Result) -> str:
    xen = VERSION.search(result.log)
    qemu = ".".join(map(str, qemu_version()))
    place = "a domU" if guests.GUESTS[name].unprivileged else "dom0"
    lines = (
        f"# What the guest `{name}` prints on real Xen 4.17 ({xen[1] if xen else 'unknown'}),",
        f"# as {place} with {guests.GUESTS[name].vcpus} vCPUs under QEMU {qemu}, -accel tcg -cpu {CPU}.",
        f"# Made by `python -m tools.oracle record {name}`; not to be edited.",
    )
    return "\n".join(lines) + "\n" + HEADER_END


def qemu_version() -> tuple[int, int, int]:
    """QEMU's version."""
    said = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", said)
    if match is None:
        raise OracleError(f"{QEMU} does not say its version")
    return int(match[1]), int(match[2]), int(match[3])
