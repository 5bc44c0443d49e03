"""The benchmark's own arithmetic and its ways to fail; the measuring itself is `make bench`."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.guests import require_guest
from tools.bench import __main__ as bench
from tools.bench import boot, disk_guest, loops, marks, micro, process, resident
from tools.bench.process import Line
from tools.bench.report import Promise, Report

NAMES = (
    "userspace up", "sha256 begin", "sha256 end", "shloop begin", "shloop end", "forks begin", "forks end",
    "pipes begin", "pipes end", "procsum begin", "procsum end", "all done",
)


def output() -> list[Line]:
    """A workload's console: one mark each half second from 2 s on, the answers in between."""
    lines = [Line("[    0.1] DMA: MARK of the kernel", 0.5)]
    lines += [Line(f"MARK {name} uptime={i}.25", 2.0 + i / 2) for i, name in enumerate(NAMES)]
    return lines + [Line(answer, 3.0) for answer in marks.ANSWERS]


def test_steps() -> None:
    assert marks.steps(output()) == {
        "userspace up": 2.0, "sha256": 0.5, "shell loop": 0.5, "200 forks": 0.5, "pipes": 0.5, "procsum": 0.5,
        "all done": 7.5}


@pytest.mark.parametrize("missing", range(1, len(NAMES) + 1 + len(marks.ANSWERS)))
def test_a_missing_line_is_no_result(missing: int) -> None:
    lines = output()
    del lines[missing]
    with pytest.raises(marks.WorkloadError, match="did not print"):
        marks.steps(lines)


def test_a_wrong_answer_is_no_result() -> None:
    lines = [Line(line.text.replace("46914", "46915"), line.seconds) for line in output()]
    with pytest.raises(marks.WorkloadError, match="shloop s=46914"):
        marks.steps(lines)


def test_the_workload_prints_every_mark() -> None:
    init = (Path(marks.__file__).parents[1] / "workload" / "init").read_text()
    assert [line.removeprefix("m ") for line in init.splitlines() if line.startswith("m ")] == list(NAMES)


def test_lines_out_of_pieces() -> None:
    assert process.split([(b"one\r\ntw", 1.0), (b"o\n", 2.0), (b"\nend", 3.0)]) == [
        Line("one", 1.0), Line("two", 2.0), Line("", 3.0), Line("end", 3.0)]
    assert process.split([]) == []


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_process_is_watched() -> None:
    code = "import os, sys; print(os.environ['A']); sys.stderr.write('oh')"
    done = process.run(python(code), 60, {"A": "b"})
    assert (done.status, done.stdout, done.stderr) == (0, b"b\n", "oh")
    assert [line.text for line in done.lines] == ["b"]
    assert 0 < done.lines[0].seconds <= done.seconds
    assert done.peak_rss > 1 << 20
    assert done.cpu_seconds > 0


def test_a_process_that_fails_says_why() -> None:
    done = process.run(python("import sys; print('out'); sys.exit('bad luck')"), 60)
    assert done.why() == "exit status 1: bad luck"


def test_a_process_that_hangs_is_ended() -> None:
    done = process.run(python("import time; print('here', flush=True); time.sleep(60)"), 0.5)
    assert done.status is None
    assert "did not end" in done.why()
    assert done.seconds < 30


def test_stdout_is_watched_as_it_comes() -> None:
    seen: list[tuple[int, bytes]] = []
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(0.1); print('end')"
    done = process.run(python(code), 60, watch=lambda pid, data: seen.append((pid, data)))
    assert b"".join(data for _, data in seen) == done.stdout
    assert {pid for pid, _ in seen} == {int(done.lines[0].text)}


SMAPS = """\
00400000-00500000 r-xp 00000000 08:01 12 /usr/bin/python3
Size:               1024 kB
Rss:                 100 kB
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Size:             524288 kB
Rss:                2000 kB
7f1000000000-7f1040000000 rwxp 00000000 00:00 0
Rss:               30000 kB
7fff00000000-7fff00100000 rw-p 00000000 00:00 0 [stack]
Rss:                   5 kB
"""


def test_resident_memory_is_told_apart() -> None:
    assert resident.split(SMAPS.splitlines(), 512 << 20) == resident.Resident(2000 << 10, 30105 << 10)
    assert resident.split(SMAPS.splitlines(), 1 << 30) == resident.Resident(0, 32105 << 10)
    here = resident.look(os.getpid(), 1 << 40)
    assert here is None or (here.guest == 0 and here.rest > 1 << 20)


def test_bounces_are_without_their_iret() -> None:
    assert micro.bounces({"hypercall": 3.0, "iret": 2.0, "syscall": 7.0, "page fault": 8.0}) == {
        "hypercall round trip": 3.0, "iret": 2.0, "syscall bounce": 5.0, "page fault bounce": 6.0}


def test_medians() -> None:
    contender = boot.Contender("a", [])
    assert contender.median() == {}
    contender.runs = [{"up": 3.0}, {"up": 1.0}, {"up": 2.0}]
    assert contender.median() == {"up": 2.0}


def test_loops_assemble_and_differ_by_their_count() -> None:
    for build in loops.LOOPS.values():
        once, again, twice = build(1000), build(1000), build(2000)
        assert once.startswith(b"\x7fELF")
        assert once == again != twice


def test_a_report(tmp_path: Path) -> None:
    report = Report(load=1.25)
    report.promise("within", 2, 1.5, "us")
    before = report.good
    report.steps = {"xenpy": {"up": 1.0, "done": 3.0}, "other": {"up": 2.0, "done": 4.0}}
    report.promise("beyond", 2, 2.5, "us")
    assert (before, report.good) == (True, False)
    report.write(tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert [promise["kept"] for promise in content["promises"]] == [True, False]
    assert content["steps"] == report.steps
    out = io.StringIO()
    report.failures.append("hello: [red]gone")
    report.notes.append("by [the] way")
    report.print(Console(width=100, file=out))
    text = out.getvalue()
    rows = [line.split("│") for line in text.splitlines() if "│" in line]
    assert [cell.strip() for cell in rows[0][1:-1]] == ["up", "1.00", "2.00", "0.50"]
    assert [cell.strip() for cell in rows[1][1:-1]] == ["done", "3.00", "4.00", "0.75"]
    assert [cell.strip() for cell in rows[-1][1:-1]] == ["beyond", "2.50 us", "<= 2 us", "broken"]
    assert "load 1.2 at the start" in text
    assert content["host"]["load"] == 1.25
    assert "not measured: hello: [red]gone" in text
    assert "by [the] way" in text


def test_a_promise_holds_at_its_limit() -> None:
    assert Promise("", 1.0, 1.0, "").kept
    assert not Promise("", 1.0, 1.01, "").kept


def test_without_guests_the_command_says_so(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XENPY_GUESTS", str(tmp_path))
    out = tmp_path / "out.json"
    assert bench.main(["--only", "boot", "--only", "sameness", "--output", str(out)]) == 1
    assert "make fetch" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["failures"]) == 2


@pytest.mark.guest
def test_contenders_run_the_same_kernel(tmp_path: Path) -> None:
    kernel, ramdisk = str(require_guest("vmlinux")), str(require_guest("workload.cpio"))
    for contender in boot.contenders(tmp_path / "stats.json"):
        command = " ".join(contender.command)
        assert ramdisk in command
        assert kernel in command or contender.name == boot.BARE
        assert f" {boot.MEMORY_MIB} " in command


def test_rates_out_of_processor_seconds() -> None:
    ends = {"begin": 1.0, "end": 3.0}
    times = {f"{step} {end}": at for step in disk_guest.STEPS for end, at in ends.items()}
    assert disk_guest.rates(times) == dict.fromkeys(disk_guest.STEPS, 192 * 1.048576 / 2)
    del times["direct end"]
    with pytest.raises(marks.WorkloadError, match="did not say 'direct end'"):
        disk_guest.rates(times)


def test_processor_seconds_of_a_process() -> None:
    before = disk_guest.cpu_seconds(os.getpid())
    assert before == pytest.approx(sum(os.times()[:2]), abs=0.5)
    sum(range(1 << 22))
    assert disk_guest.cpu_seconds(os.getpid()) > before
