"""Transactions: examples, then any interleaving against a slow model that is one plain dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.abi import io_xs_wire as xs
from firmware.store.permissions import NONE, Permission
from firmware.store.store import Store
from firmware.store.wire import encode
from tests.store.guest import Guest

OK = b"OK\0"
HOME = "/local/domain/1"


@pytest.fixture
def guest() -> Guest:
    return make()


def make() -> Guest:
    store = Store()
    store.add_domain(1)
    store.mkdir(HOME)
    store.set_permissions(HOME, (Permission(1, NONE),))
    return Guest(store)


def test_isolation_and_commit(guest: Guest) -> None:
    guest.write("a", b"1")
    guest.watch("a", "t")
    guest.events()
    transaction = guest.start()
    assert guest.write("a", b"2", transaction) == OK
    assert guest.write("b/c", b"3", transaction) == OK
    assert guest.read("a") == b"1"
    assert guest.read("b/c") == "ENOENT"
    assert guest.read("a", transaction) == b"2"
    assert guest.directory("", 0) == "EINVAL"
    assert guest.directory(HOME, transaction) == ["a", "b"]
    assert guest.events() == []
    assert guest.end(transaction) == OK
    assert guest.events() == [("a", "t")]
    assert guest.read("b/c") == b"3"
    assert guest.read("a", transaction) == "ENOENT"
    guest.store.namespace.check()


def test_discard(guest: Guest) -> None:
    guest.write("a", b"1")
    transaction = guest.start()
    guest.remove("a", transaction)
    guest.write("b", b"", transaction)
    assert guest.directory(HOME, transaction) == ["b"]
    assert guest.end(transaction, commit=False) == OK
    assert guest.directory(HOME) == ["a"]
    assert guest.connection.account.nodes == 2


def test_a_conflict_changes_nothing(guest: Guest) -> None:
    guest.write("a", b"1")
    transaction = guest.start()
    assert guest.read("a", transaction) == b"1"
    guest.write("a", b"2")
    assert guest.read("a", transaction) == b"1"
    guest.write("b", b"", transaction)
    assert guest.end(transaction) == "EAGAIN"
    assert guest.read("b") == "ENOENT"
    assert guest.end(transaction) == "ENOENT"


def test_reads_of_other_nodes_do_not_conflict(guest: Guest) -> None:
    guest.write("a", b"1")
    guest.write("b", b"1")
    transaction = guest.start()
    guest.read("a", transaction)
    guest.write("b", b"2")
    assert guest.end(transaction) == OK


def test_the_numbers_of_transactions(guest: Guest) -> None:
    first = guest.start()
    assert first == 1
    assert guest.start() == 2
    assert guest.ask(xs.XS_TRANSACTION_START, b"\0", first) == "EBUSY"
    assert guest.ask(xs.XS_TRANSACTION_START, b"\0", 99) == "ENOENT"
    assert guest.read("a", 99) == "ENOENT"
    assert guest.end(99) == "ENOENT"
    assert guest.end(0) == "ENOENT"
    assert guest.ask(xs.XS_TRANSACTION_END, b"X\0", first) == "EINVAL"
    assert guest.ask(xs.XS_TRANSACTION_END, b"T", first) == "EINVAL"
    assert guest.end(first) == OK


def test_how_many(guest: Guest) -> None:
    numbers = [guest.start() for _ in range(11)]
    assert guest.ask(xs.XS_TRANSACTION_START, b"\0") == "ENOSPC"
    guest.end(numbers[0], commit=False)
    assert guest.start() == 12
    assert guest.ask(xs.XS_RESET_WATCHES, b"\0") == OK
    assert guest.end(numbers[1]) == "ENOENT"


def test_a_refused_change_spoils_the_transaction(guest: Guest) -> None:
    transaction = guest.start()
    assert guest.write("a", b"x" * 3000, transaction) == "ENOSPC"
    assert guest.end(transaction) == "ENOMEM"
    memory = guest.connection.account.memory
    transaction = guest.start()
    answers = [guest.read(f"n{index}", transaction) for index in range(1030)]
    assert answers[:1020] == ["ENOENT"] * 1020
    assert answers[-1] == "ENOSPC"
    assert guest.end(transaction) == "ENOMEM"
    assert guest.connection.account.memory == memory


def test_nodes_are_counted_at_the_commit(guest: Guest) -> None:
    transactions = [guest.start() for _ in range(3)]
    for which, transaction in enumerate(transactions):
        for index in range(400):
            assert guest.write(f"d{which}-{index // 20}/{index}", b"", transaction) == OK
    assert guest.end(transactions[0]) == OK
    assert guest.end(transactions[1]) == "EAGAIN"
    for which in (1, 2):
        transaction = guest.start()
        for index in range(400):
            guest.write(f"e{which}-{index // 20}/{index}", b"", transaction)
        assert guest.end(transaction) == (OK if which == 1 else "ENOSPC")
    guest.store.namespace.check()


def test_memory_is_given_back(guest: Guest) -> None:
    guest.write("a", b"1" * 1000)
    before = guest.connection.account.memory
    for commit in (False, True):
        transaction = guest.start()
        for value in (b"2" * 1000, b"3" * 500, b"4" * 1000):
            guest.write("a", value, transaction)
        guest.write("b", b"", transaction)
        guest.remove("b", transaction)
        assert guest.connection.account.memory > before
        assert guest.end(transaction, commit=commit) == OK
        assert guest.connection.account.memory == before


def test_events_of_a_removal_in_a_transaction(guest: Guest) -> None:
    guest.write("a/b", b"")
    guest.watch("a/b", "part")
    guest.watch("a", "whole")
    guest.events()
    transaction = guest.start()
    guest.remove("a", transaction)
    guest.write("c", b"", transaction)
    guest.end(transaction)
    assert guest.events() == [("a", "whole"), ("a/b", "part")]


class Model:
    """Nodes as one dictionary: path to (value, children). What each request answers, in the plainest way."""

    def __init__(self) -> None:
        self.nodes: dict[str, tuple[bytes, list[str]]] = {"": (b"", [])}

    def run(self, name: str, path: str, value: bytes) -> object:
        if name == "read":
            return self.nodes[path][0] if path in self.nodes else "ENOENT"
        if name == "directory":
            return list(self.nodes[path][1]) if path in self.nodes else "ENOENT"
        above, _, leaf = path.rpartition("/")
        if name == "write":
            if path not in self.nodes:
                if above not in self.nodes:
                    self.run("write", above, b"")
                self.nodes[above][1].append(leaf)
                self.nodes[path] = (b"", [])
            self.nodes[path] = (value, self.nodes[path][1])
            return OK
        if path not in self.nodes:
            return OK if above in self.nodes else "ENOENT"
        for gone in [other for other in self.nodes if other == path or other.startswith(f"{path}/")]:
            del self.nodes[gone]
        self.nodes[above][1].remove(leaf)
        return OK


PATHS = ["/a", "/b", "/a/x", "/a/x/p"]
STEP = st.tuples(st.sampled_from(["read", "directory", "write", "remove", "start", "commit", "abort"]),
                 st.integers(0, 2), st.sampled_from(PATHS), st.binary(max_size=2))


def perform(guest: Guest, name: str, path: str, value: bytes, transaction: int) -> object:
    full = HOME + path
    match name:
        case "read":
            return guest.read(full, transaction)
        case "directory":
            return guest.directory(full, transaction)
        case "write":
            return guest.write(full, value, transaction)
        case _:
            return guest.remove(full, transaction)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, min_size=8, max_size=40))
def test_any_interleaving_is_a_serial_one(steps: list[tuple[str, int, str, bytes]]) -> None:
    """A commit that succeeds is as if the whole transaction had run at its end; one that fails changed
    nothing and somebody else had changed something since the transaction began."""
    guest, model = make(), Model()
    running: dict[int, tuple[int, int]] = {}
    logs: dict[int, list[tuple[str, str, bytes, object]]] = {}
    changes = 0
    begin = [("start", slot, "", b"") for slot in (1, 2)]
    for name, slot, path, value in begin + steps:
        if name == "start":
            if slot and slot not in running:
                running[slot] = (guest.start(), changes)
                logs[slot] = []
        elif name in ("commit", "abort"):
            if slot not in running:
                continue
            number, begun = running.pop(slot)
            log = logs.pop(slot)
            answer = guest.end(number, commit=name == "commit")
            if name == "abort":
                assert answer == OK
            elif answer == OK:
                for request, target, data, expected in log:
                    assert model.run(request, target, data) == expected
                changes += any(entry[0] in ("write", "remove") for entry in log)
            else:
                assert answer == "EAGAIN"
                assert changes > begun
        elif slot in running:
            seen = perform(guest, name, path, value, running[slot][0])
            logs[slot].append((name, path, value, seen))
        else:
            assert perform(guest, name, path, value, 0) == model.run(name, path, value)
            changes += name in ("write", "remove")
    assert snapshot(guest, HOME) == {HOME + path: content for path, content in model.nodes.items()}
    guest.store.namespace.check()
    assert guest.connection.account.nodes == len(model.nodes)


def snapshot(guest: Guest, path: str) -> dict[str, tuple[bytes, list[str]]]:
    names, value = guest.directory(path), guest.read(path)
    assert isinstance(names, list)
    assert isinstance(value, bytes)
    found = {path: (value, names)}
    for name in names:
        found |= snapshot(guest, f"{path}/{name}")
    return found


def test_permissions_in_a_transaction(guest: Guest) -> None:
    guest.write("a", b"")
    transaction = guest.start()
    assert guest.ask(xs.XS_SET_PERMS, encode("a", "r1"), transaction) == OK
    assert guest.ask(xs.XS_GET_PERMS, encode("a")) == encode("n1")
    assert guest.end(transaction) == OK
    assert guest.ask(xs.XS_GET_PERMS, encode("a")) == encode("r1")
