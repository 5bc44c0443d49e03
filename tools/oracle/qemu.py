"""One run of QEMU with Xen in it: from process start to a line that says it is over.

Sources: qemu-system-x86_64(1); Xen's docs/misc/xen-command-line. Xen is a multiboot kernel: QEMU loads it
with `-kernel`, and dom0's kernel and ramdisk as its modules with `-initrd "KERNEL arguments,RAMDISK"`.
"""
from __future__ import annotations

import enum
import gzip
import os
import re
import selectors
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools import debian, guests_cache

QEMU: Final = os.environ.get("XENPY_QEMU", "qemu-system-x86_64")
"""The program. QEMU 10 or newer is the better judge: see `record.FIRST_RIGHT`."""
XEN_PACKAGE: Final = "xen-hypervisor-4.17-amd64"
XEN_FILE: Final = r"boot/xen-4\.17-amd64\.gz"

CPU: Final = "qemu64"
"""A plain model: no SMAP, no XSAVE, nothing whose emulation is in doubt."""
XEN_ARGUMENTS: Final = "console=com1 com1=115200,8n1 noreboot"

STARTS: Final = 4
START_S: Final = 30
"""Xen's start takes about a second; after so long it hangs."""
HANDOVER: Final = re.compile(r"^\(XEN\) Freed \d+kB init memory\n", re.MULTILINE)
"""Xen's last line before dom0 runs."""


class End(enum.Enum):
    """How a run ended."""

    POWEROFF = "powered off"
    REBOOT = "asked for a reboot"
    CRASH = "crashed"
    TIMEOUT = "timeout"
    HOST = "the hypervisor or QEMU ended by itself"


@dataclass(frozen=True, slots=True)
class Result:
    """What a guest's console said, lines ended by LF; how it ended; everything the serial line carried."""

    console: str
    end: End
    log: str


class OracleError(Exception):
    """Real Xen cannot run here; the text is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One machine for QEMU. Memory in MiB; `modules` are multiboot modules with their arguments."""

    xen_arguments: str
    modules: tuple[tuple[Path, str], ...]
    memory: int
    cpus: int
    cpu: str = CPU


def missing() -> str | None:
    """Why real Xen cannot run here, or None. Looks only at what is installed or cached."""
    if shutil.which(QEMU) is None:
        return f"there is no {QEMU} here: apt-get install qemu-system-x86"
    if shutil.which("apt-get") is None and _cached_xen() is None:
        return "there is no Xen in the cache and no apt-get to fetch it with"
    return None


def _cached_xen() -> Path | None:
    path = guests_cache.folder() / "oracle" / "xen"
    return path if path.is_file() else guests_cache.guest_path("xen")


def hypervisor() -> Path:
    """Xen's multiboot image, fetched into the cache when it is not there. Raises OracleError."""
    if cached := _cached_xen():
        return cached
    place = guests_cache.folder() / "oracle"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix=".fetch-") as scratch:
        try:
            debian.prepare()
            package = debian.download(XEN_PACKAGE, Path(scratch))
            packed = debian.members(package.path, [XEN_FILE])[XEN_FILE]
        except debian.PackageError as error:
            raise OracleError(f"Xen cannot be fetched: {error}") from error
    guests_cache.write(place / "xen", gzip.decompress(packed))
    return place / "xen"


def command(setup: Setup) -> list[str]:
    """QEMU's command line."""
    # In a module's arguments QEMU takes a comma for the end unless it is doubled.
    modules = ",".join(f"{path} {arguments.replace(',', ',,')}".rstrip() for path, arguments in setup.modules)
    return [
        QEMU, "-accel", "tcg", "-m", str(setup.memory), "-smp", str(setup.cpus), "-cpu", setup.cpu,
        "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", str(hypervisor()),
        "-append", f"{XEN_ARGUMENTS} {setup.xen_arguments}", "-initrd", modules,
    ]


def serial(setup: Setup, over: re.Pattern[str], timeout: float) -> str:
    """Run until a line of the serial console matches `over`, QEMU ends, or `timeout` seconds passed.

    Now and then Xen's start hangs under emulation (it waits for a timer): then it is started again.
    """
    if reason := missing():
        raise OracleError(reason)
    log = ""
    for _ in range(STARTS):
        log = _once(setup, over, timeout)
        if HANDOVER.search(log):
            break
    return log


def _once(setup: Setup, over: re.Pattern[str], timeout: float) -> str:
    log = bytearray()
    began = time.monotonic()
    deadline, started = began + min(timeout, START_S), False
    with subprocess.Popen(command(setup), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process, selectors.DefaultSelector() as selector:
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        searched = 0
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            data = process.stdout.read1(65536)  # type: ignore[attr-defined]
            if not data:
                break
            log += data
            if not started and HANDOVER.search(log.decode(errors="replace").replace("\r", "")):
                deadline, started = began + timeout, True
            end = log.rfind(b"\n") + 1
            if over.search(log[searched:end].decode(errors="replace")):
                break
            searched = max(searched, end)
        process.kill()
    return log.decode(errors="replace").replace("\r", "")
