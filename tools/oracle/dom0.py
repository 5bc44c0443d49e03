"""A PV kernel in dom0's place: about a second and a half from start to a small guest's result."""
from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Final

from tools.oracle.qemu import CPU, HANDOVER, End, Result, Setup, serial

XEN_LINE: Final = re.compile(r"^\(XEN\) .*\n?", re.MULTILINE)
ENDS: Final = (
    ("Hardware Dom0 halted", End.POWEROFF),
    ("Hardware Dom0 crashed", End.CRASH),
    ("Hardware Dom0 shutdown: watchdog", End.CRASH),
    ("Hardware Dom0 shutdown", End.REBOOT),
    ("Panic on CPU", End.HOST),
)
OVER: Final = re.compile("|".join(text for text, _ in ENDS))


def run(image: bytes, cmdline: str = "", *, vcpus: int = 1, memory: int = 128, timeout: float = 60,
        cpu: str = CPU) -> Result:
    """Run a kernel image as dom0 with `memory` MiB. Raises OracleError where real Xen cannot run."""
    with tempfile.TemporaryDirectory(prefix="oracle-") as scratch:
        kernel = Path(scratch) / "kernel"
        kernel.write_bytes(image)
        setup = Setup(f"dom0_mem={memory}M,max:{memory}M dom0_max_vcpus={vcpus}", ((kernel, cmdline),),
                      memory + 384, vcpus, cpu)
        log = serial(setup, OVER, timeout)
    return Result(console(log), ending(log), log)


def console(log: str) -> str:
    """The guest's own lines of a serial log."""
    start = HANDOVER.search(log)
    return XEN_LINE.sub("", log[start.end():]) if start else ""


def ending(log: str) -> End:
    """How the run of a serial log ended."""
    return next((end for text, end in ENDS if text in log), End.TIMEOUT)
