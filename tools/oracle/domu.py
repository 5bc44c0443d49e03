"""A PV kernel as a true unprivileged guest: a Debian dom0 starts it with `xl create` and shows its console.

One boot of dom0 (about ten seconds) runs any number of guests, one after the other.
"""
from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware.domain.unpack import kernel_of
from tools import cpio, initramfs
from tools.oracle import packages
from tools.oracle.dom0 import XEN_LINE
from tools.oracle.qemu import CPU, End, OracleError, Result, Setup, serial

DOM0_MEMORY: Final = 512
XEN_MEMORY: Final = 384
START_S: Final = 120
"""Host seconds dom0 may take to come up."""

_INIT: Final = """#!/bin/sh
export PATH=/bin LD_LIBRARY_PATH=/lib/x86_64-linux-gnu
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
for module in {modules}; do insmod /modules/$module.ko; done
mount -t xenfs xenfs /proc/xen
xenstored --pid-file /var/run/xenstored.pid
xen-init-dom0
xenconsoled --log=guest --timestamp=none --pid-file=/var/run/xenconsoled.pid
for name in {names}; do
    first=$name{first}
    [ -f /guests/$first ] && xl create /guests/$first.cfg
    timeout {timeout} xl create -F /guests/$name.cfg > /tmp/xl.log 2>&1 || xl destroy $name
    echo; echo "@@begin $name"
    cat /var/log/xen/console/guest-$name.log
    echo; echo "@@end $name"
    cat /tmp/xl.log
    echo "@@after $name"
    [ -f /guests/$first ] || continue
    sleep 2
    echo; echo "@@begin $first"
    cat /var/log/xen/console/guest-$first.log
    echo; echo "@@end $first"
    cat /var/log/xen/xl-$first.log
    echo "@@after $first"
    xl destroy $first
done
echo "@@done"
poweroff -f
"""

_FOLDERS: Final = (
    "bin", "dev", "etc", "etc/xen", "guests", "lib", "lib/x86_64-linux-gnu", "lib64", "modules", "proc",
    "run", "sys", "tmp", "var", "var/lib", "var/lib/xen", "var/lib/xenstored", "var/lock", "var/log",
    "var/log/xen", "var/log/xen/console", "var/run", "var/run/xen", "var/run/xenstored",
)
_OVER: Final = re.compile(r"^@@done|Panic on CPU|Kernel panic", re.MULTILINE)
_REASON: Final = re.compile(r"has shut down, reason code (\d+)")
_ENDS: Final = {0: End.POWEROFF, 1: End.REBOOT}
"""Shutdown reasons (SHUTDOWN_poweroff, SHUTDOWN_reboot); every other one is a crash."""


FIRST: Final = "-first"
"""What the name of a guest's companion ends with."""


@dataclass(frozen=True, slots=True)
class Job:
    """One guest to run. Memory in MiB. A companion is a guest created right before it."""

    image: bytes
    cmdline: str = ""
    vcpus: int = 1
    memory: int = 64
    companion: bytes | None = None

    def config(self, name: str) -> bytes:
        """Its configuration for xl (xl.cfg(5))."""
        return (
            f'name = "{name}"\nkernel = "/guests/{name}"\nmemory = {self.memory}\nvcpus = {self.vcpus}\n'
            f'extra = "{self.cmdline}"\n'
            'on_poweroff = "destroy"\non_reboot = "destroy"\non_crash = "destroy"\n'
        ).encode()


def run(jobs: Mapping[str, Job], *, cpus: int = 1, timeout: int = 60, cpu: str = CPU) -> dict[str, Result]:
    """Run guests, each for at most `timeout` seconds of the guest's clock. Raises OracleError.

    A companion's result has its guest's name with FIRST.
    """
    with tempfile.TemporaryDirectory(prefix="oracle-") as scratch:
        kernel, ramdisk = Path(scratch) / "kernel", Path(scratch) / "ramdisk"
        kernel.write_bytes(kernel_of(packages.one("boot/vmlinuz-*").read_bytes()))
        ramdisk.write_bytes(_ramdisk(jobs, timeout))
        memory = DOM0_MEMORY + XEN_MEMORY + max(
            job.memory * (2 if job.companion else 1) for job in jobs.values())
        setup = Setup(f"dom0_mem={DOM0_MEMORY}M,max:{DOM0_MEMORY}M",
                      ((kernel, "console=hvc0 quiet"), (ramdisk, "")), memory, cpus, cpu)
        log = serial(setup, _OVER, START_S + timeout * len(jobs))
    companions = [name + FIRST for name, job in jobs.items() if job.companion]
    return {name: _result(name, log) for name in (*jobs, *companions)}


def _ramdisk(jobs: Mapping[str, Job], timeout: int) -> bytes:
    busybox = packages.one("**/bin/busybox").read_bytes()
    tools = {name: packages.tool(name) for name in packages.TOOLS}
    libraries = packages.libraries(tools.values())
    loader = libraries.pop(packages.LOADER)
    entries = [cpio.directory(name) for name in _FOLDERS]
    entries.append(cpio.file("bin/busybox", busybox, 0o755))
    entries += [cpio.symlink(f"bin/{name}", "busybox")
                for name in initramfs.applets(busybox) if name != "busybox"]
    entries += [cpio.character_device(*device) for device in initramfs.DEVICES]
    entries += [cpio.file(f"bin/{name}", path.read_bytes(), 0o755) for name, path in tools.items()]
    entries.append(cpio.file(f"lib64/{packages.LOADER}", loader.read_bytes(), 0o755))
    entries += [cpio.file(f"lib/x86_64-linux-gnu/{name}", path.read_bytes(), 0o755)
                for name, path in sorted(libraries.items())]
    entries += [cpio.file(f"modules/{name}.ko", packages.one(f"lib/modules/**/{name}.ko").read_bytes())
                for name in packages.MODULES]
    entries.append(cpio.file("etc/xen/xl.conf", b"autoballoon=0\n"))
    for name, job in jobs.items():
        entries.append(cpio.file(f"guests/{name}", job.image))
        entries.append(cpio.file(f"guests/{name}.cfg", job.config(name)))
        if job.companion:
            entries.append(cpio.file(f"guests/{name}{FIRST}", job.companion))
            entries.append(cpio.file(f"guests/{name}{FIRST}.cfg", job.config(name + FIRST)))
    init = _INIT.format(modules=" ".join(packages.MODULES), names=" ".join(jobs), timeout=timeout,
                        first=FIRST)
    entries.append(cpio.file("init", init.encode(), 0o755))
    return cpio.archive(entries)


def _result(name: str, log: str) -> Result:
    match = re.search(rf"^@@begin {name}\n(.*?)\n?^@@end {name}\n(.*?)^@@after {name}\n", log,
                      re.MULTILINE | re.DOTALL)
    if match is None:
        raise OracleError(f"dom0 did not get to {name}; its log ends: {log[-500:]}")
    reason = _REASON.search(match[2])
    end = _ENDS.get(int(reason[1]), End.CRASH) if reason else End.TIMEOUT
    return Result(XEN_LINE.sub("", match[1]), end, log)
