from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from xenpy.errors import BadInputError
from xenpy.output import LONGEST_LINE, ConsoleSink, RunLog
from xenpy.stats import Stats


def test_bytes_go_out_as_they_are() -> None:
    reader, writer = os.pipe()
    sink = ConsoleSink(writer, lambda: False)
    data = bytes(range(256)) * 8
    sink.write(data)
    assert os.read(reader, 65536) == data
    os.close(reader)
    sink.write(b"x")
    assert sink.failure is not None
    assert sink.failure.errno == errno.EPIPE
    sink.write(b"y")
    with pytest.raises(BadInputError, match="stdout: Broken pipe"):
        sink.check()
    os.close(writer)


def test_a_reader_that_does_not_read_can_be_given_up() -> None:
    reader, writer = os.pipe()
    looks = iter((False, True))
    sink = ConsoleSink(writer, lambda: next(looks))
    sink.write(bytes(1 << 20))
    assert list(looks) == []
    sink.check()
    os.close(reader)
    os.close(writer)


def log_of(path: Path, *events: tuple[int, str, bytes]) -> list[str]:
    now = [0]
    with RunLog(path, lambda: now[0]) as log:
        for when, guest, data in events:
            now[0] = when
            if guest == "xenpy":
                log.message(data.decode())
            else:
                log.console(guest, data)
    return path.read_text().splitlines()


def test_log_lines(tmp_path: Path) -> None:
    assert log_of(
        tmp_path / "log",
        (1_000_000, "a", b"one\r\ntw"),
        (2_000_000, "b", b"other\n"),
        (3_000_000, "xenpy", b"note\nmore"),
        (1_234_567_890_000, "a", b"o\n\xff\xfe unfinished"),
    ) == [
        "[     0.001000] a: one",
        "[     0.002000] b: other",
        "[     0.003000] xenpy: note",
        "[     0.003000] xenpy: more",
        "[  1234.567890] a: two",
        "[  1234.567890] a: \\xff\\xfe unfinished",
    ]


def test_a_line_without_end_is_logged_in_pieces(tmp_path: Path) -> None:
    lines = log_of(tmp_path / "log", *[(0, "a", b"x" * 1000)] * 20)
    assert len(lines) > 1
    assert max(map(len, lines)) <= LONGEST_LINE + 1000 + 20
    assert sum(line.count("x") for line in lines) == 20_000


def test_stats_as_json() -> None:
    stats = Stats(blocks=7, virtual_ns=70, wall_s=0.1234567, python_share=0.5, tlb_flushes=1, switches=2,
                  hypercalls={"iret": 3}, traps={"page fault": 4})
    assert json.loads(stats.json(3, "--within is over")) == {
        "blocks": 7, "virtual_ns": 70, "wall_s": 0.123457, "python_share": 0.5, "tlb_flushes": 1,
        "switches": 2,
        "hypercalls": {"iret": 3}, "traps": {"page fault": 4}, "exit": 3, "exit_reason": "--within is over",
    }
