"""Programs on the store's socket, and those that want to do harm; what is printed of the store."""

from __future__ import annotations

import random
import socket
import stat
import struct
from collections.abc import Iterator
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



def test_only_its_owner_may_open_it(system: System, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


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

