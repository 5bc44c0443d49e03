"""What the oracle makes of a serial log; the runs themselves are tests/guests/test_guests.py's."""
from __future__ import annotations

import pytest

from tools.oracle import End, dom0, record
from tools.oracle.domu import Job

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
