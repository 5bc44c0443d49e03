"""The main job: GRUB and Debian's stock kernel, unmodified, through the command."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.support.guests import require_guest

pytestmark = pytest.mark.guest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.mark.parametrize("image", ["grub-x86_64-xen.bin", "grub-i386-xen.bin"])
def test_grub_reaches_its_prompt(xenpy: Run, image: str) -> None:
    result = xenpy("boot", require_guest(image), "--memory", 64, "--until", "grub> $", "--wall", 100)
    assert result.returncode == 0, result.stderr
    assert b"GNU GRUB" in result.stdout


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_debian_to_a_shell_and_to_power_off(xenpy: Run, vcpus: int) -> None:
    result = xenpy(
        "boot", require_guest("vmlinuz"), "--ramdisk", require_guest("shell.cpio"), "--memory", 256,
        "--vcpus", vcpus, "--cmdline", "console=hvc0", "--within", 120,
        "--input", "echo cpus=$(grep -c processor /proc/cpuinfo)", "--input", "cat /sys/hypervisor/type",
        "--input", "poweroff -f")
    assert result.returncode == 0, (result.stdout[-2000:], result.stderr)
    lines = result.stdout.decode().splitlines()
    assert f"cpus={vcpus}" in lines
    assert "xen" in lines
    assert "reboot: System halted" in lines[-1]
