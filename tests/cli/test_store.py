"""The store's socket: `xenpy store`, and programs that want to do harm."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from firmware.abi import io_xs_wire as xs
from firmware.store.visitor import MOST_WATCHES
from firmware.store.wire import Message, encode
from tests.cli import kernels
from xenpy.errors import BadInputError
from xenpy.store_socket import MOST_VISITORS
from xenpy.store_text import escaped, listing, unescaped
from xenpy.system import Reason, System

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


def connect(path: Path) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.connect(str(path))
    connected.settimeout(1)
    return connected


def serve(system: System, times: int = 3) -> None:
    assert system.store_socket is not None
    for _ in range(times):
        system.store_socket.wait(0)


def answer(system: System, connected: socket.socket) -> tuple[int, bytes]:
    serve(system)
    kind, _, _, length = struct.unpack("<IIII", connected.recv(16))
    return kind, connected.recv(length) if length else b""


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


def test_a_second_socket(system: System, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="its socket already"):
        system.serve_store(tmp_path / "another")


def test_the_machine_goes_on_while_somebody_asks(system: System, path: Path) -> None:
    with connect(path) as visitor:
        visitor.sendall(Message(xs.XS_READ, 1, 0, encode("/local/domain/1/domid")).pack())
        assert system.run(wall=5).reason is Reason.IDLE
        assert answer(system, visitor) == (xs.XS_READ, b"1")


@pytest.mark.parametrize("kind", [xs.XS_INTRODUCE, xs.XS_RELEASE])
def test_domains_cannot_be_taken_away(system: System, path: Path, kind: int) -> None:
    payload = encode("1", "1", "1") if kind == xs.XS_INTRODUCE else encode("1")
    with connect(path) as visitor:
        visitor.sendall(Message(kind, 1, 0, payload).pack())
        assert answer(system, visitor) == (xs.XS_ERROR, b"EACCES\0")
    assert 1 in system.hypervisor.store.clients


def test_too_many_visitors(system: System, path: Path) -> None:
    visitors = []
    for _ in range(MOST_VISITORS + 3):
        visitors.append(connect(path))
        serve(system, 1)
    visitors[0].sendall(Message(xs.XS_READ, 1, 0, encode("/tool")).pack())
    assert answer(system, visitors[0])[0] == xs.XS_READ
    assert visitors[-1].recv(1) == b""
    for visitor in visitors:
        visitor.close()
    serve(system)
    assert len(system.hypervisor.store.clients) == 2


def test_unread_answers_stop_requests_and_unread_events_end_the_visit(system: System, path: Path) -> None:
    store = system.hypervisor.store
    with connect(path) as reader, connect(path) as watcher:
        reader.setblocking(False)
        request = Message(xs.XS_DIRECTORY, 1, 0, encode("/local/domain/1")).pack() * 100
        taken = 0
        for _ in range(10_000):
            try:
                taken += reader.send(request)
            except BlockingIOError:
                break
            serve(system, 1)
        else:
            raise AssertionError("it is taken for ever")
        watcher.sendall(Message(xs.XS_WATCH, 1, 0, encode("/data", "t" * 500)).pack())
        serve(system)
        assert len(store.clients) == 4
        for number in range(6000):
            system.store.write(f"/data/{number // 100}/{number % 100}", "x")
        serve(system)
        assert len(store.clients) == 3
    serve(system)
    assert len(store.clients) == 2


def test_watches_and_transactions_have_their_limits(system: System, path: Path) -> None:
    with connect(path) as visitor:
        for number in range(70):
            visitor.sendall(Message(xs.XS_TRANSACTION_START, number, 0, b"\0").pack())
            kind, _ = answer(system, visitor)
            assert kind == (xs.XS_TRANSACTION_START if number < 64 else xs.XS_ERROR)
        for number in range(MOST_WATCHES):
            visitor.sendall(Message(xs.XS_WATCH, number, 0, encode("/nowhere", str(number))).pack())
            assert [answer(system, visitor)[0] for _ in range(2)] == [xs.XS_WATCH, xs.XS_WATCH_EVENT]
        visitor.sendall(Message(xs.XS_WATCH, 1, 0, encode("/nowhere", "one more")).pack() * 2)
        serve(system)
        assert len(system.hypervisor.store.clients) == 2
    serve(system)
    assert len(system.hypervisor.store.clients) == 2


WORDS = ("/", "/data/x", "1", "T", "@releaseDomain", "n1", "/local/domain/1/name", "\xff", "",
         "/local/domain/0/backend/vbd")


@pytest.mark.parametrize("seed", range(8))
def test_noise(system: System, path: Path, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(40):
        with connect(path) as visitor:
            serve(system, 1)
            for _ in range(chance.randrange(1, 6)):
                kind = chance.choice([*range(24), 0xFFFF, 1 << 31])
                texts = [chance.choice(WORDS) for _ in range(3)]
                payload = encode(*texts[:chance.randrange(4)]) + chance.randbytes(chance.choice([0, 0, 3]))
                message = Message(kind, chance.getrandbits(32), chance.randrange(3), payload).pack()
                if kind == xs.XS_RM and "/" in texts:
                    continue
                if chance.random() < 0.2:
                    message = chance.randbytes(chance.randrange(60))
                with suppress(BrokenPipeError):
                    visitor.sendall(message)
                if chance.random() < 0.5:
                    serve(system, 1)
        serve(system, 2)
    assert len(system.hypervisor.store.clients) == 2
    system.hypervisor.store.namespace.check()
    with connect(path) as visitor:
        visitor.sendall(Message(xs.XS_READ, 1, 0, encode("/tool")).pack())
        assert answer(system, visitor)[0] == xs.XS_READ


def test_escapes() -> None:
    every = bytes(range(256))
    assert unescaped(escaped(every)) == every
    assert escaped(b"\0\x07\x08\x1f\t\r\n\\~\x7f\xff") == "\\000\\007\\x08\\x1f\\t\\r\\n\\\\~\\x7f\\xff"
    assert unescaped("\\q\\1\\x4\\") == b"q\x01\x04"


def test_nodes_as_deep_as_a_guest_makes_them(system: System, path: Path) -> None:
    deep = "/local/domain/1/data" + "/a" * 990
    system.store.write(deep, "the last")
    lines = system.store.ls(full=True).splitlines()
    assert f'{deep} = "the last"' in lines
    system.store.rm("/local/domain/1/data/a")


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


class Racing:
    """Nodes that are gone by the time they are read."""

    def children(self, path: str) -> list[str]:
        if path == "/gone":
            raise KeyError(path)
        return ["a", "gone", "b"] if path == "/" else []

    def read(self, path: str) -> bytes:
        if path == "/gone":
            raise KeyError(path)
        return b"v" * 70

    def permissions(self, path: str) -> list[str]:
        return ["n0"]


def test_a_listing_while_nodes_go() -> None:
    assert list(listing(Racing(), "/", width=40)) == [f'{name} = "{"v" * 31}\\..."' for name in "ab"]
    assert list(listing(Racing(), "/", full=True)) == [f'/{name} = "{"v" * 70}"' for name in "ab"]
    with pytest.raises(KeyError):
        list(listing(Racing(), "/gone"))
