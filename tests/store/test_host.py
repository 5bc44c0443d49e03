"""The host side: domain 0's own reads, writes, watches and transactions."""

from __future__ import annotations

import pytest

from firmware.store.errors import StoreError
from firmware.store.permissions import NONE, READ, Permission
from firmware.store.store import Store
from tests.store.guest import Guest


def test_the_tree_begins_as_xenstored_makes_it() -> None:
    store = Store()
    assert store.directory("/") == ("tool",)
    assert store.directory("/tool") == ("xenstored",)
    assert store.read("/tool/xenstored") == b""
    assert store.permissions("/") == (Permission(0, NONE),)


def test_read_write_remove() -> None:
    store = Store()
    store.write("/a/b", "text")
    store.write("/a/c", b"\0bytes")
    assert store.read("/a/b") == b"text"
    assert store.directory("/a") == ("b", "c")
    assert store.read("/a") == b""
    store.write("relative", b"1")
    assert store.read("/local/domain/0/relative") == b"1"
    store.rm("/a")
    with pytest.raises(StoreError, match="ENOENT"):
        store.read("/a/b")
    with pytest.raises(StoreError, match="EINVAL"):
        store.rm("/")
    with pytest.raises(StoreError, match="EINVAL"):
        store.write("/bad path", b"")
    with pytest.raises(StoreError, match="ENOENT"):
        store.set_permissions("/tool", (Permission(9, READ),))


def test_no_quota_holds_for_the_host() -> None:
    store = Store()
    for index in range(1500):
        store.write(f"/many/{index}", b"x" * 3000)
    assert len(store.directory("/many")) == 1500


def test_watches_run_after_the_change_and_may_change_more() -> None:
    store = Store()
    heard: list[tuple[str, str]] = []

    def follow(path: str) -> None:
        heard.append(("follow", path))
        if path == "/a/x":
            store.write("/b", store.read("/a/x"))

    first = store.watch("/a", follow)
    store.watch("/b", lambda path: heard.append(("b", path)))
    assert heard == [("follow", "/a"), ("b", "/b")]
    heard.clear()
    store.write("/a/x", b"1")
    assert heard == [("follow", "/a/x"), ("b", "/b")]
    assert store.read("/b") == b"1"
    heard.clear()
    store.unwatch(first)
    store.write("/a/x", b"2")
    assert heard == []
    with pytest.raises(StoreError, match="ENOENT"):
        store.unwatch(first)
    with pytest.raises(StoreError, match="EINVAL"):
        store.watch("/bad path", follow)


def test_a_watch_hears_a_guest() -> None:
    store = Store()
    guest = Guest(store)
    store.mkdir("/local/domain/1")
    store.set_permissions("/local/domain/1", (Permission(1, NONE),))
    seen: list[bytes] = []

    def look(path: str) -> None:
        if path.endswith("state"):
            seen.append(store.read(path))
            store.write("/local/domain/1/seen", b"yes")

    store.watch("/local/domain/1", look)
    guest.watch("seen", "t")
    guest.events()
    before = guest.notified
    guest.write("state", b"3")
    assert seen == [b"3"]
    assert guest.notified > before
    assert guest.events() == [("seen", "t")]


def test_transactions_of_the_host() -> None:
    store = Store()
    heard: list[str] = []
    store.watch("/t", heard.append)
    heard.clear()
    with store.transaction() as transaction:
        store.write("/t/a", b"1", transaction)
        store.mkdir("/t/b", transaction)
        assert store.read("/t/a", transaction) == b"1"
        assert store.directory("/t", transaction) == ("a", "b")
        assert heard == []
        with pytest.raises(StoreError, match="ENOENT"):
            store.read("/t/a")
    assert heard == ["/t/a", "/t/b"]

    def conflict() -> None:
        with store.transaction() as transaction:
            store.rm("/t/a", transaction)
            store.write("/t/a", b"2")

    with pytest.raises(StoreError, match="EAGAIN"):
        conflict()
    assert store.read("/t/a") == b"2"

    def give_up() -> None:
        with store.transaction() as transaction:
            store.rm("/t/a", transaction)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        give_up()
    assert store.read("/t/a") == b"2"


def test_callbacks_that_never_end_are_a_fault() -> None:
    store = Store()

    def again(path: str) -> None:
        store.write("/loop", b"")

    with pytest.raises(RuntimeError, match="keep setting each other off"):
        store.watch("/loop", again)
