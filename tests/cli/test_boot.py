"""`xenpy boot` from outside: what goes where, how it ends, what it says about that."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import kernels

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
HELLO = b"Hello from a PV guest\n"


@pytest.fixture
def image(tmp_path: Path) -> Callable[[bytes], Path]:
    """Puts an image into a file."""

    def put(data: bytes) -> Path:
        path = tmp_path / "kernel"
        path.write_bytes(data)
        return path

    return put


Image = Callable[[bytes], Path]


def test_hello(xenpy: Run) -> None:
    result = xenpy("boot", "builtin:hello")
    assert result.returncode == 0, result.stderr
    assert result.stdout == HELLO
    assert re.fullmatch(rb"xenpy: the guest powered off, at \d+\.\d{6} s of virtual time\n", result.stderr)


def test_demo(xenpy: Run) -> None:
    result = xenpy("demo")
    assert result.returncode == 0, result.stderr
    assert HELLO in result.stdout


def test_guests_are_listed_and_boot(xenpy: Run) -> None:
    from guests.registry import GUESTS

    names = [line.split()[0].decode() for line in xenpy("guests").stdout.splitlines()]
    assert names == list(GUESTS)


def test_until_and_within(xenpy: Run, image: Image) -> None:
    kernel = image(kernels.spin_forever())
    result = xenpy("boot", kernel, "--until", "^spin+ing$")
    assert result.returncode == 0, result.stderr
    assert b"--until matched" in result.stderr

    result = xenpy("boot", kernel, "--within", "0.05")
    assert result.returncode == 3
    assert b"--within is over, at 0.05" in result.stderr
    assert result.stdout == b"spinning\n"


def test_wall(xenpy: Run, image: Image) -> None:
    result = xenpy("boot", image(kernels.spin_forever()), "--wall", "0.3")
    assert result.returncode == 3
    assert b"--wall is over" in result.stderr


def test_a_guest_that_sleeps_for_ever(xenpy: Run, image: Image) -> None:
    result = xenpy("boot", image(kernels.sleep_forever()))
    assert result.returncode == 3
    assert b"waits for something that will never come" in result.stderr


@pytest.mark.parametrize(("kernel", "said"), [(kernels.reboot, b"reboot"), (kernels.suspend, b"suspend")])
def test_other_ends(xenpy: Run, image: Image, kernel: Callable[[], bytes], said: bytes) -> None:
    result = xenpy("boot", image(kernel()))
    assert result.returncode == 0, result.stderr
    assert said in result.stderr


def test_a_crash_is_explained(xenpy: Run, image: Image) -> None:
    result = xenpy("boot", image(kernels.wild_jump()), "--name", "victim")
    assert result.returncode == 1, result.stderr
    assert result.stdout == b"jumping\n"
    text = result.stderr.decode()
    assert "guest 'victim' crashed: " in text
    assert "rip 0000123456789000" in text
    assert "xen_version(0x0, 0x0) = 0x40011" in text
    assert "stack at 0x" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("kernel", [kernels.own_crash, kernels.triple_fault])
def test_other_crashes(xenpy: Run, image: Image, kernel: Callable[[], bytes]) -> None:
    result = xenpy("boot", image(kernel()))
    assert result.returncode == 1, result.stderr
    assert b"instruction at 0x" in result.stderr


def test_a_crash_disassembles_the_fault(xenpy: Run, image: Image) -> None:
    result = xenpy("boot", image(kernels.triple_fault()))
    assert re.search(rb"> ffffffff8000\w+  50 +push rax", result.stderr), result.stderr.decode()


def test_input_is_typed(xenpy: Run, image: Image) -> None:
    result = xenpy("boot", image(kernels.echo()), "--input", "one", "--input", r"tw\x6f", "--input", r"q\c")
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == f"echo: type, q ends\none\ntwo\nq\n{kernels.FAREWELL}\n"


def test_the_same_run_twice(xenpy: Run, image: Image, tmp_path: Path) -> None:
    kernel = image(kernels.echo())
    runs = []
    for seed in ("1", "2"):
        stats, log = tmp_path / f"{seed}.json", tmp_path / f"{seed}.log"
        result = xenpy("boot", kernel, "--input", "x", "--input", r"q\c", "--hash", "--cpus", 2,
                       "--stats", stats, "--log", log, env=os.environ | {"PYTHONHASHSEED": seed})
        assert result.returncode == 0, result.stderr
        numbers = json.loads(stats.read_text())
        for name in ("wall_s", "python_share"):
            numbers.pop(name)
        runs.append((result.stdout, result.stderr, numbers, log.read_text()))
    assert runs[0] == runs[1]


def test_stats(xenpy: Run, tmp_path: Path) -> None:
    plain, hashed = tmp_path / "plain.json", tmp_path / "hashed.json"
    assert xenpy("boot", "builtin:hello", "--stats", plain).returncode == 0
    assert xenpy("boot", "builtin:hello", "--stats", hashed, "--hash").returncode == 0
    stats, other = json.loads(plain.read_text()), json.loads(hashed.read_text())
    assert set(stats) == {
        "blocks", "virtual_ns", "wall_s", "python_share", "hypercalls", "traps", "tlb_flushes", "switches",
        "exit", "exit_reason",
    }
    assert stats["exit"] == 0
    assert stats["hypercalls"]["sched_op"] >= 1
    assert stats["blocks"] > 0
    assert 0 < stats["python_share"] <= 1
    assert re.fullmatch("[0-9a-f]{16}", other.pop("block_hash"))
    for name in ("wall_s", "python_share"):
        stats.pop(name)
        other.pop(name)
    assert stats == other


def test_stats_of_a_crash(xenpy: Run, image: Image, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    assert xenpy("boot", image(kernels.wild_jump()), "--stats", stats).returncode == 1
    numbers = json.loads(stats.read_text())
    assert numbers["exit"] == 1
    assert numbers["exit_reason"] == "crashed"


def test_log(xenpy: Run, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    assert xenpy("boot", "builtin:hello", "--log", log).returncode == 0
    lines = log.read_text().splitlines()
    assert re.fullmatch(r"\[ +\d+\.\d{6}\] hello: Hello from a PV guest", lines[0])
    assert re.fullmatch(r"\[ +\d+\.\d{6}\] xenpy: the guest powered off, .*", lines[-1])


@pytest.mark.parametrize("option", ["--log", "--stats"])
def test_outputs_on_a_full_disk(xenpy: Run, option: str) -> None:
    result = xenpy("boot", "builtin:hello", option, "/dev/full")
    assert result.returncode == 2
    assert f"xenpy: {option} /dev/full: No space left on device".encode() in result.stderr
    assert b"Traceback" not in result.stderr


def test_stdout_on_a_full_disk(xenpy: Run) -> None:
    with Path("/dev/full").open("wb") as full:
        result = xenpy("boot", "builtin:hello", stdout=full)
    assert result.returncode == 2
    assert result.stderr == b"xenpy: stdout: No space left on device\n"


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "error", "-m", "xenpy", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_reader_that_goes_away(image: Image) -> None:
    with start("boot", image(kernels.flood())) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"all work and no play makes a dull guest\n"
        process.stdout.close()
        assert process.wait(60) == 2
        assert process.stderr.read() == b"xenpy: stdout: Broken pipe\n"


@pytest.mark.parametrize(("number", "status", "said"), [
    (signal.SIGINT, 130, b"xenpy: interrupted\n"),
    (signal.SIGTERM, 143, b"xenpy: terminated\n"),
])
@pytest.mark.parametrize("kernel", [kernels.spin_forever, kernels.flood])
def test_signals_end_a_run(image: Image, kernel: Callable[[], bytes], number: int, status: int,
                           said: bytes) -> None:
    """Also while the guest floods a pipe that nobody reads."""
    with start("boot", image(kernel())) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(60) == status
        assert process.stderr.read() == said


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3])
def test_ctrl_c_at_any_time(image: Image, delay: float) -> None:
    """From the first call on; before it, only Python itself and a module of no weight are loaded. The child
    says so at the first import of `main`, which is inside its guard.
    """
    code = """
import os, sys
from xenpy.cli import main
class Begun:
    def find_spec(self, name, path=None, target=None):
        sys.meta_path.remove(self)
        os.write(2, b'.')
sys.meta_path.insert(0, Begun())
sys.exit(main())
"""
    command = [sys.executable, "-c", code, "boot", str(image(kernels.spin_forever()))]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.read(1) == b"."
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b"xenpy: interrupted\n"
