"""A real Linux guest gives memory back and gets it again, as its toolstack asks."""

from __future__ import annotations

import re

import pytest

from firmware.memory.frames import ALLOCATED, DIRTY
from firmware.memory.owner import MemoryOwner
from tests.support.guests import require_guest
from xenpy.guest import Guest
from xenpy.system import Reason, System

MEMORY_MIB = 256
MACHINE_MIB = 320
LINE = "console=hvc0 xen_scrub_pages=0 init_on_alloc=0"
"""Linux clears nothing it gives back: only the hypervisor does."""
PROMPT = "/ # "
STRANGER = 99
"""A domain id nobody has."""
SLACK_KIB = 4096
"""What a shell and its kernel may use or free between two looks."""


def frames(system: System) -> tuple[int, int]:
    """The frames of domains, Xen and nobody, by the counts that are kept; and by the frame table."""
    memory = system.hypervisor.memory
    owned = sum(domain.memory.pages for domain in system.hypervisor.lifecycle.domains.values())
    allocated = int((memory.frames.count_array & ALLOCATED != 0).sum())
    return memory.heap.free + memory.heap.xen + owned, memory.heap.free + allocated


def memory_kib(guest: Guest) -> tuple[int, int]:
    """MemTotal and MemFree as the guest sees them."""
    guest.console.send("head -2 /proc/meminfo; echo loo''ked\n")
    guest.console.expect("^looked$")
    total, free = re.findall(r"Mem(?:Total|Free): +(\d+) kB", guest.console.text)[-2:]
    return int(total), int(free)


def resize(system: System, guest: Guest, mib: int) -> None:
    guest.set_memory_target(mib)
    outcome = system.run(until=lambda: guest.memory_mib == mib, within=30)
    assert outcome.reason is Reason.CONDITION, f"{guest.memory_mib} MiB: {outcome}"
    system.run(within=1)
    assert guest.memory_mib == mib
    shared = system.hypervisor.lifecycle.domains[guest.id].memory.xen_pages
    assert len(guest.frames) == mib * 256 + shared


def given_back_clean(system: System, gone: list[int]) -> None:
    """A domain that takes all free frames finds nothing in those the guest gave back."""
    memory, words = system.hypervisor.memory, system.machine.memory.words
    assert all(memory.frames.counts[mfn] == DIRTY for mfn in gone)
    assert any(words[mfn << 9 : mfn + 1 << 9].any() for mfn in gone)
    stranger = MemoryOwner(STRANGER, maximum=memory.heap.free)
    memory.types.add_owner(stranger)
    taken = memory.heap.allocate(stranger, memory.heap.free)
    assert set(gone) <= set(taken)
    assert not any(words[mfn << 9 : mfn + 1 << 9].any() for mfn in gone)
    for mfn in taken:
        memory.types.drop_own_reference(mfn)
    memory.types.remove_owner(stranger)


@pytest.mark.guest
def test_debian_balloons_down_and_up() -> None:
    kernel, ramdisk = require_guest("vmlinux"), require_guest("shell.cpio")
    with System(memory=MACHINE_MIB) as system:
        guest = system.add_domain(kernel, ramdisk=ramdisk, memory=MEMORY_MIB, cmdline=LINE)
        guest.console.expect(PROMPT)
        guest.console.send("yes secret | head -c 16M > /file; rm /file\n")
        machine = frames(system)
        assert machine == (MACHINE_MIB * 256, MACHINE_MIB * 256)
        total, free = memory_kib(guest)
        before = {frame.mfn for frame in guest.frames}
        for target in (96, MEMORY_MIB, 160):
            resize(system, guest, target)
            change = (target - MEMORY_MIB) * 1024
            now_total, now_free = memory_kib(guest)
            assert now_total == total + change
            assert abs(now_free - free - change) < SLACK_KIB
            assert frames(system) == machine
            if target == 96:
                given_back_clean(system, sorted(before - {frame.mfn for frame in guest.frames}))
                assert frames(system) == machine
        guest.console.send("echo sti''ll here\n")
        guest.console.expect("^still here$")


def test_targets_outside_the_guest_are_refused() -> None:
    with System() as system:
        guest = system.add_domain("builtin:hello", memory=16)
        for target in (0, -1, 17):
            with pytest.raises(ValueError, match="1 to 16 MiB"):
                guest.set_memory_target(target)
        guest.set_memory_target(16)
        assert system.hypervisor.store.read(f"/local/domain/{guest.id}/memory/target") == b"16384"
        assert guest.memory_mib == 16
