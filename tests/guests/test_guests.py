"""Our own guests: deterministic images, and the consoles real Xen gave them."""
from __future__ import annotations

import os

import pytest

import guests
from guests.assembler import ENTRY, AssemblyError, Program
from tools.oracle import End, missing, record
from xenpy.system import Reason, System

NAMES = list(guests.RECORDED)
WITHIN_S = 60.0
"""Virtual seconds: far more than any of them needs."""
WALL_S = 60.0
"""Host seconds after which a guest that waits for ever counts as one that failed."""


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_built_the_same_each_time(name: str) -> None:
    image = guests.build(name)
    assert image.startswith(b"\x7fELF")
    assert int.from_bytes(image[24:32], "little") == ENTRY
    assert guests.build(name) == image


@pytest.mark.parametrize("name", NAMES)
def test_the_expected_console_ends_as_the_registry_says(name: str) -> None:
    lines = record.expected(name).splitlines()
    assert lines[-1] == guests.GUESTS[name].expected
    assert len(lines) == len([line for line in lines if line.isprintable()])


def test_a_source_that_does_not_assemble_names_its_line() -> None:
    with pytest.raises(AssemblyError, match="mov nonsense, 1"):
        Program(text=["nop", "mov nonsense, 1"]).image()


def test_an_unknown_guest_is_refused() -> None:
    with pytest.raises(KeyError):
        guests.build("nothing")


@pytest.mark.parametrize("name", NAMES)
def test_the_console_is_the_one_real_xen_gives(name: str) -> None:
    guest = guests.GUESTS[name]
    with System(cpus=guest.vcpus) as system:
        domain = system.add_domain(f"builtin:{name}", vcpus=guest.vcpus, cmdline=guest.cmdline)
        outcome = system.run(within=WITHIN_S, wall=WALL_S)
        console = domain.console.log.decode()
    assert console.splitlines() == record.expected(name).splitlines()
    assert outcome.reason is Reason.ENDED


@pytest.mark.parametrize(("vcpus", "cpus"), [(1, 1), (2, 1), (3, 2)])
def test_smp_agrees_however_many_vcpus_share_the_cpus(vcpus: int, cpus: int) -> None:
    with System(cpus=cpus) as system:
        domain = system.add_domain("builtin:smp", vcpus=vcpus)
        system.run(within=WITHIN_S, wall=WALL_S)
        lines = domain.console.log.decode().splitlines()
    assert f"counter: {vcpus * 1000}, missing 0" in lines
    assert f"answers: {vcpus - 1}" in lines
    assert lines[-1] == "smp: done"


@pytest.mark.oracle
@pytest.mark.skipif(os.environ.get("XENPY_ORACLE") != "1", reason="runs with XENPY_ORACLE=1")
@pytest.mark.parametrize("name", NAMES)
def test_real_xen_still_gives_that_console(name: str) -> None:
    if reason := missing():
        pytest.skip(reason)
    result = record.run(name)
    assert result.end is End.POWEROFF
    assert record.trusted(result.console.splitlines()) == record.trusted(record.expected(name).splitlines())
