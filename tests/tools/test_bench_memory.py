"""The loops and the trusting hypervisor of the memory benchmark do what they are measured for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.guests import require_guest
from tools.bench import memory, memory_loops
from xenpy.system import Reason, System

ROUNDS = 40


@pytest.mark.parametrize(("image", "call", "calls"), [
    (memory_loops.updates(ROUNDS, 1), "mmu_update", ROUNDS),
    (memory_loops.updates(ROUNDS, memory_loops.BATCH), "mmu_update", ROUNDS),
    (memory_loops.pins(ROUNDS, 5), "mmuext_op", 2 * ROUNDS),
    (memory_loops.pins(ROUNDS, memory_loops.ENTRIES), "mmuext_op", 2 * ROUNDS),
])
def test_the_loops_come_to_their_end(image: bytes, call: str, calls: int) -> None:
    with System(memory=64) as system:
        guest = system.add_domain(image, memory=16)
        assert system.run(within=5).reason is Reason.ENDED
        assert guest.console.text.splitlines() == ["done"]
        assert system.stats().hypercalls[call] == calls


def test_the_tables_of_a_whole_domain_are_accepted() -> None:
    assert memory.pin_domain(16, rounds=2) > 0


@pytest.mark.guest
def test_a_trusted_guest_boots_without_validation() -> None:
    kernel, ramdisk = require_guest("vmlinux"), require_guest("shell.cpio")
    done = subprocess.run(
        [*memory.TRUSTING, "boot", kernel, "--ramdisk", ramdisk, "--memory", "128", "--cmdline",
         "console=hvc0", "--input", "/bin/true && echo al''ive", "--input", "poweroff -f"],
        capture_output=True, timeout=120, check=False, cwd=Path(memory.__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert b"\nalive" in done.stdout
