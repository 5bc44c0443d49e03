"""Messages over the ring: split anywhere, wrapped, refused, or hostile."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.abi import io_xs_wire as xs
from firmware.store.errors import StoreError
from firmware.store.permissions import NONE, Permission
from firmware.store.store import Store
from firmware.store.wire import Framer, Message, ProtocolError, encode, number, strings
from tests.store.guest import OFFSET, PAGE, Guest

OK = b"OK\0"
INDICES = ["req_cons", "req_prod", "rsp_cons", "rsp_prod", "connection", "error"]
PAYLOADS = [b"", b"\0", b"data\0", b"data\0t\0", b"T\0", b"data\0n1\0"]
WRITE = Message(xs.XS_WRITE, 7, 0, b"data/x\0value").pack()


def make() -> tuple[Store, Guest]:
    store = Store()
    store.add_domain(1)
    store.mkdir("/local/domain/1")
    store.set_permissions("/local/domain/1", (Permission(1, NONE),))
    return store, Guest(store)


def test_the_server_says_what_it_can() -> None:
    _, guest = make()
    assert guest.get("server_features") == 3
    assert guest.get("connection") == xs.XENSTORE_CONNECTED
    assert guest.get("error") == xs.XENSTORE_ERROR_NONE


@pytest.mark.parametrize("first", range(1, len(WRITE)))
def test_a_request_in_two_pieces(first: int) -> None:
    _, guest = make()
    guest.push(WRITE[:first])
    assert guest.connection.service()
    assert guest.notified == 1
    assert guest.pull() == b""
    guest.push(WRITE[first:])
    assert guest.connection.service()
    assert guest.notified == 2
    assert guest.pull() == Message(xs.XS_WRITE, 7, 0, OK).pack()
    assert not guest.connection.service()
    assert guest.notified == 2


def test_a_request_byte_by_byte_and_many_at_once() -> None:
    _, guest = make()
    for byte in WRITE[:-1]:
        guest.push(bytes([byte]))
        assert guest.connection.service()
    guest.push(WRITE[-1:] + WRITE * 3)
    assert guest.connection.service()
    assert guest.pull() == Message(xs.XS_WRITE, 7, 0, OK).pack() * 4


@pytest.mark.parametrize("start", [0, 1000, 1023, 2**32 - 500, 2**32 - 1])
def test_indices_wrap(start: int) -> None:
    _, guest = make()
    for name in ("req_cons", "req_prod", "rsp_cons", "rsp_prod"):
        guest.set(name, start)
    for round_number in range(20):
        value = bytes([round_number]) * 300
        assert guest.write("data", value) == OK
        assert guest.read("data") == value


def test_a_reply_larger_than_the_ring_comes_in_parts() -> None:
    store, guest = make()
    value = bytes(range(256)) * 16
    store.write("/local/domain/1/big", value)
    assert guest.read("big") == value
    assert guest.read("big") == value
    store.write("/local/domain/1/big", value + b"!")
    assert guest.read("big") == "E2BIG"


def test_an_absurd_length_ends_the_connection_until_it_reconnects() -> None:
    store, guest = make()
    guest.watch("data", "t")
    guest.start()
    header = Message(xs.XS_READ, 1, 0, b"").pack()
    guest.push(header[:-4] + (xs.XENSTORE_PAYLOAD_MAX + 1).to_bytes(4, "little"))
    assert guest.connection.service()
    assert guest.get("error") == xs.XENSTORE_ERROR_PROTO
    guest.push(WRITE)
    assert not guest.connection.service()
    store.write("/local/domain/1/data", b"")
    assert guest.get("rsp_prod") == guest.get("rsp_cons") or guest.events() == []
    account = guest.connection.account
    assert (account.watches, account.outstanding) == (0, 0)

    guest.set("connection", xs.XENSTORE_RECONNECT)
    assert guest.connection.service()
    assert guest.get("connection") == xs.XENSTORE_CONNECTED
    assert guest.get("error") == xs.XENSTORE_ERROR_NONE
    assert guest.get("req_prod") == guest.get("rsp_prod") == 0
    guest.framer.clear()
    assert guest.read("data") == b""


def test_the_longest_request() -> None:
    _, guest = make()
    assert guest.ask(xs.XS_GET_DOMAIN_PATH, b"1" * (xs.XENSTORE_PAYLOAD_MAX - 1) + b"\0") is not None


@pytest.mark.parametrize("name", ["req_prod", "rsp_prod"])
@pytest.mark.parametrize("beyond", [1025, 2**31, 2**32 - 1])
def test_impossible_indices(name: str, beyond: int) -> None:
    _, guest = make()
    other = name.replace("prod", "cons")
    if name == "rsp_prod":
        guest.push(WRITE)
    guest.set(name, guest.get(other) + beyond)
    assert guest.connection.service()
    assert guest.get("error") == xs.XENSTORE_ERROR_RINGIDX
    assert not guest.connection.service()


def test_a_guest_that_never_reads_is_not_served_for_ever() -> None:
    _, guest = make()
    sent = 0
    for _ in range(2000):
        used = (guest.get("req_prod") - guest.get("req_cons")) & 0xFFFF_FFFF
        if used + len(WRITE) <= xs.XENSTORE_RING_SIZE:
            sent += guest.push(WRITE)
        guest.connection.service()
    account = guest.connection.account
    assert account.outstanding == 20
    assert account.memory < 10_000
    assert sent < 5_000
    guest.collect()
    assert guest.write("data", b"again") == OK


def test_events_for_a_guest_that_never_reads_are_bounded() -> None:
    store, guest = make()
    for index in range(100):
        guest.watch("data", f"{index}" + "t" * 900)
    guest.events()
    for index in range(200):
        store.write(f"/local/domain/1/data/{index}", b"")
    account = guest.connection.account
    limit = guest.connection.ledger.quota.memory
    assert limit - 5000 < account.memory < limit + 20_000
    assert len(guest.events()) > 2000
    assert account.memory < 200_000


def test_introducing_again_starts_afresh() -> None:
    store, guest = make()
    guest.watch("data", "t")
    guest.push(WRITE[:5])
    guest.connection.service()
    old = guest.connection.ring
    guest.connection = store.introduce(1, old, guest.notify)
    guest.events()
    assert guest.write("data", b"") == OK
    assert guest.events() == []
    with pytest.raises(StoreError, match="EINVAL"):
        store.introduce(0, old, guest.notify)
    store.release(1)
    with pytest.raises(StoreError, match="ENOENT"):
        store.release(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_random_bytes_and_indices(seed: int) -> None:
    """Whatever a guest does to its page, the store survives, uses bounded memory and serves others."""
    chance = random.Random(seed)
    store, guest = make()
    good = Guest(store, 2)
    size = len(guest.memory.raw)
    for _ in range(60):
        for _ in range(chance.randrange(1, 6)):
            match chance.randrange(6):
                case 0:
                    name = chance.choice(INDICES)
                    guest.set(name, chance.choice([chance.getrandbits(32), chance.randrange(2048), 0, -1]))
                case 1:
                    guest.set("req_prod", guest.get("req_cons") + chance.randrange(1025))
                case 2:
                    guest.set("rsp_cons", guest.get("rsp_prod") - chance.randrange(1025))
                case 3:
                    at = PAGE + chance.randrange(PAGE)
                    guest.memory.write(at, chance.randbytes(min(chance.randrange(64), size - at)))
                case 4:
                    payload = chance.choice([*PAYLOADS, chance.randbytes(20)])
                    kind, transaction = chance.randrange(24), chance.randrange(3)
                    guest.push(Message(kind, chance.getrandbits(32), transaction, payload).pack())
                case _:
                    guest.set("connection", chance.choice([0, 1, 1, 5]))
        guest.connection.service()
    account = guest.connection.account
    assert account.memory < guest.connection.ledger.quota.memory
    assert account.outstanding <= 20
    assert good.read("/tool") == "EACCES"
    store.namespace.check()
    guest.set("connection", xs.XENSTORE_RECONNECT)
    guest.connection.service()
    guest.framer.clear()
    guest.messages.clear()
    assert guest.write("data", b"fine") == OK
    assert guest.read("data") == b"fine"


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_framer_finds_what_was_packed(payloads: list[bytes], chance: random.Random) -> None:
    sent = [Message(index, index * 3, index * 5, payload) for index, payload in enumerate(payloads)]
    stream = b"".join(message.pack() for message in sent)
    framer, received = Framer(), []
    while stream:
        count = chance.randint(1, framer.wanted)
        message = framer.feed(stream[:count])
        stream = stream[count:]
        if message is not None:
            received.append(message)
    assert received == sent


def test_the_framer_refuses_too_much() -> None:
    framer = Framer()
    with pytest.raises(ProtocolError):
        framer.feed(b"\0" * 12 + (4097).to_bytes(4, "little"))


def test_texts_and_numbers() -> None:
    assert strings(b"a\0\0b\0c") == ["a", "", "b"]
    assert encode("a", "é") == b"a\0\xe9\0"
    texts = ("12x", " 7", "-1", "", "x", "4294967297")
    assert [number(text) for text in texts] == [12, 7, 2**32 - 1, 0, 0, 1]
    assert OFFSET["error"] == 2048 + 24
