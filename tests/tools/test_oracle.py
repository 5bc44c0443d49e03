"""What the oracle makes of a serial log; the runs themselves are tests/guests/test_guests.py's."""
from __future__ import annotations

from pathlib import Path

import pytest

from guests import attacks as guests_attacks
from tools.oracle import End, Result, attacks, dom0, domu, packages, record
from tools.oracle.domu import FIRST, Job

LOG = """\
(XEN) Xen version 4.17.7 (Debian 4.17.7-1) (someone) (gcc) debug=n
(XEN) Scrubbing Free RAM in background
(XEN) Freed 656kB init memory
one
(XEN) d0v0 a message of Xen's
two

(XEN) Hardware Dom0 %s
"""


def test_a_console_is_what_xen_did_not_say() -> None:
    assert dom0.console(LOG % "halted: halting machine") == "one\ntwo\n\n"


def test_a_log_that_never_reached_dom0_has_no_console() -> None:
    assert dom0.console("(XEN) Xen version 4.17.7\nnoise\n") == ""


@pytest.mark.parametrize(("said", "end"), [
    ("halted: halting machine", End.POWEROFF),
    ("crashed: 'noreboot' set - not rebooting.", End.CRASH),
    ("shutdown: rebooting machine", End.REBOOT),
    ("shutdown: watchdog rebooting machine", End.CRASH),
    ("goes on", End.TIMEOUT),
])
def test_the_last_line_tells_the_end(said: str, end: End) -> None:
    assert dom0.ending(LOG % said) is end


def test_an_older_qemu_is_not_believed_about_refused_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["breakpoint: vector 3", "refused int 0x20: vector 13 error 514", "int 14: vector 13", "hint 7"]
    monkeypatch.setattr(record, "qemu_version", lambda: (7, 2, 22))
    assert record.trusted(lines) == ["breakpoint: vector 3", "hint 7"]
    monkeypatch.setattr(record, "qemu_version", lambda: (10, 0, 2))
    assert record.trusted(lines) == lines


def test_a_job_is_written_as_xl_reads_it() -> None:
    config = Job(b"", cmdline="rounds=20", vcpus=2, memory=96).config("spin").decode().splitlines()
    assert config[:5] == [
        'name = "spin"', 'kernel = "/guests/spin"', "memory = 96", "vcpus = 2", 'extra = "rounds=20"',
    ]


def test_a_companion_has_a_result_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "\n".join((
        "@@begin pair", "one", "@@end pair", "Domain 2 has shut down, reason code 0", "@@after pair",
        f"@@begin pair{FIRST}", "two", f"@@end pair{FIRST}", "Domain 1 has shut down, reason code 3",
        f"@@after pair{FIRST}", "@@done", "",
    ))
    files: list[str] = []

    def ramdisk(jobs: dict[str, Job], _: int) -> bytes:
        files.extend(jobs)
        return b""

    monkeypatch.setattr(domu, "_ramdisk", ramdisk)
    monkeypatch.setattr(domu, "kernel_of", lambda _: b"")
    monkeypatch.setattr(packages, "one", lambda _: Path(__file__))
    monkeypatch.setattr(domu, "serial", lambda *_: said)
    results = domu.run({"pair": Job(b"", companion=b"first")})
    assert {name: (result.console, result.end) for name, result in results.items()} == {
        "pair": ("one", End.POWEROFF), f"pair{FIRST}": ("two", End.CRASH),
    }


def test_every_attack_that_real_xen_runs_has_its_jobs() -> None:
    jobs = [job for name in attacks.RUNNABLE for job in attacks.jobs(name)]
    assert "hogs" not in jobs
    assert not any("32" in name for name in jobs)
    assert [name for name in jobs if name.startswith("falls-")] == [
        f"falls-{way}" for way in guests_attacks.ways("falls")
    ]
    assert attacks.jobs("taker")["taker"].companion == guests_attacks.build("giver")


@pytest.mark.parametrize(("name", "console", "end", "surprises"), [
    ("linear", "PASS one\nattack: done\n", End.POWEROFF, []),
    ("linear", "PASS one\nFAIL two: 0\nattack: done\n", End.POWEROFF, ["FAIL two: 0"]),
    ("linear", "PASS one\n", End.CRASH, ["it did not come to its end: crashed"]),
    ("falls-a", "falls\n", End.CRASH, []),
    ("falls-a", "falls\nFAIL it goes on\n", End.POWEROFF,
     ["falls", "FAIL it goes on", "it did not fall: powered off"]),
])
def test_what_an_attack_should_not_print(name: str, console: str, end: End, surprises: list[str]) -> None:
    assert attacks.surprises(name, Result(console, end, "")) == surprises
