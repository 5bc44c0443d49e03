"""The kernels people boot: GRUB's PV images and Debian's, recognised and built."""

from __future__ import annotations

import pytest

from firmware.abi import features
from firmware.domain.builder import build
from firmware.domain.image import load_image, parse_image
from guests.registry import GUESTS
from guests.registry import build as assemble
from machine.memory import MachineMemory
from tests.support.guests import require_guest

MIB = 256
"""Frames."""


@pytest.mark.guest
@pytest.mark.parametrize(("name", "width"), [("grub-x86_64-xen.bin", 64), ("grub-i386-xen.bin", 32)])
def test_grub(name: str, width: int) -> None:
    kernel = load_image(require_guest(name))
    assert (kernel.width, kernel.guest_os, kernel.entry, kernel.virt_base) == (width, "GRUB", 0, 0)
    built = build(
        MachineMemory(40 << 20),
        range(256, 256 + 32 * MIB),
        kernel,
        shared_info_mfn=1,
        console_port=2,
        store_port=1,
        cmdline=b"root=hd0",
    )
    assert built.mapped_pages % 1024 == 0
    assert built.p2m_va == built.p2m_pfn << 12


@pytest.mark.guest
@pytest.mark.parametrize("name", ["vmlinuz", "vmlinux"])
def test_debian(name: str) -> None:
    kernel = load_image(require_guest(name))
    assert (kernel.width, kernel.guest_os, kernel.virt_base) == (64, "linux", 0xFFFFFFFF80000000)
    assert kernel.features_required == 1 << features.XENFEAT_writable_page_tables
    assert kernel.init_p2m == 0x8000000000
    assert kernel.mod_start_pfn
    memory = MachineMemory(260 << 20)
    built = build(
        memory,
        range(256, 256 + 256 * MIB),
        kernel,
        shared_info_mfn=1,
        console_port=2,
        store_port=1,
        ramdisk=b"initrd" * 100_000,
    )
    assert built.p2m_va == kernel.init_p2m
    assert built.ramdisk_pfn == built.mapped_pages
    first = kernel.segments[0]
    assert memory.read((256 << 12) + first.paddr, 4096) == bytes(first.data[:4096])


@pytest.mark.parametrize("name", sorted(GUESTS))
def test_builtin_guests(name: str) -> None:
    kernel = parse_image(assemble(name), name)
    memory = MachineMemory(16 << 20)
    built = build(memory, range(256, 256 + 8 * MIB), kernel, shared_info_mfn=1, console_port=2, store_port=1)
    assert kernel.virt_start <= built.entry < kernel.virt_end
