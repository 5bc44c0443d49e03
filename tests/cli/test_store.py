"""The store's socket on the command line: `xenpy boot --store-socket` and `xenpy store`."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firmware.abi import io_xs_wire as xs
from firmware.store.wire import Message
from tests.cli import kernels
from xenpy.system import System

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]



@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"



@pytest.fixture
def system(path: Path) -> Iterator[System]:
    """A machine with a guest that sleeps, and its store on a socket."""
    with System() as made:
        made.add_domain(kernels.sleep_forever(), memory=8)
        made.serve_store(path)
        yield made



@pytest.fixture
def machine(path: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`xenpy boot --store-socket` with a guest that sleeps."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(kernels.sleep_forever())
    command = [sys.executable, "-W", "error", "-m", "xenpy", "boot", str(kernel), "--store-socket", str(path)]
    with subprocess.Popen([*command, "--wall", "100"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"sleeping\n"
        yield process
        process.kill()



def test_the_commands(xenpy: Run, machine: subprocess.Popen[bytes], path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def store(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return xenpy("store", "--socket", path, *arguments)

    assert store("read", "/local/domain/1/name").stdout == b"kernel\n"
    assert store("write", "/data/x", "1\\t", "/data/y", "").returncode == 0
    assert store("ls", "/data").stdout == b'x = "1\\t"\ny = ""\n'
    assert store("read", "-R", "/data/x").stdout == b"1\t"
    assert store("exists", "/data/z").returncode == 1
    assert store("chmod", "-r", "/data", "n0", "r1").returncode == 0
    assert b'/data/x = "1\\t"   (n0,r1)\n' in store("ls", "-f", "-p").stdout
    for arguments, said in (
        (("read", "/data/z"), "/data/z: there is no such node"),
        (("write", "/data/x"), "give a value"),
        (("write", "/a//b", "1"), "/a//b: that is no path"),
        (("chmod", "/data/x", "q1"), "q1: that is no path, or no value"),
        (("write", "/data/x", "x" * 5000), "more than one message"),
        (("ls", "/nothing"), "/nothing"),
        (("read",), "Missing argument"),
        (("frob",), "frob"),
    ):
        result = store(*arguments)
        assert result.returncode == 2, arguments
        assert said in result.stderr.decode()
        assert result.stderr.count(b"\n") == 1
    watch = [sys.executable, "-m", "xenpy", "store", "-S", str(path), "watch", "/data"]
    with subprocess.Popen([*watch, "-n", "2"], stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"/data\n"
        assert store("rm", "-t", "/data/x", "/data/y").returncode == 0
        assert watching.stdout.readline() == b"/data/x\n"
        assert watching.wait(60) == 0
    with subprocess.Popen(watch, stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"/data\n"
        machine.terminate()
        assert machine.wait(60) == 143
        assert watching.wait(60) == 0
    assert not path.exists()
    result = store("ls")
    assert result.returncode == 2
    assert b"is a machine running" in result.stderr
    result = xenpy("store", "ls", env={key: value for key, value in os.environ.items() if "XEN" not in key})
    assert result.returncode == 2
    assert b"which machine?" in result.stderr



def test_what_is_there_is_not_overwritten(xenpy: Run, system: System, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, path, "/nowhere/socket", tmp_path / ("x" * 120)):
        result = xenpy("boot", "builtin:hello", "--store-socket", place)
        assert result.returncode == 2
        assert b"--store-socket" in result.stderr
        assert result.stderr.count(b"\n") == 1
    assert file.read_text() == "mine"
    assert system.store.read("/local/domain/1/domid") == b"1"



def test_a_socket_left_over_is_replaced(xenpy: Run, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert xenpy("boot", "builtin:hello", "--store-socket", path).returncode == 0
    assert not path.exists()



@pytest.mark.parametrize("reply", [
    b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", Message(xs.XS_ERROR, 1, 0, b"").pack(),
    Message(xs.XS_TRANSACTION_START, 1, 0, b"x\0").pack(), Message(xs.XS_WATCH_EVENT, 0, 0, b"").pack(),
    Message(xs.XS_READ, 1, 0, b"").pack()[:7],
])
def test_what_answers_is_no_store(xenpy: Run, path: Path, reply: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        ask = [sys.executable, "-W", "error", "-m", "xenpy", "store", "-S", str(path), "read", "/"]
        with subprocess.Popen(ask,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asking:
            connected, _ = listener.accept()
            with connected:
                connected.recv(64)
                connected.sendall(reply)
                connected.shutdown(socket.SHUT_WR)
                said, why = asking.communicate(timeout=60)
    assert (asking.returncode, said) == (2, b"")
    assert why.count(b"\n") == 1
    assert b"no store" in why or b"has ended" in why

