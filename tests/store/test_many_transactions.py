"""10,000 transactions of four domains, at random and in each other's way, against a store that is one plain
dictionary and knows no transactions; and the quotas under the same treatment.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from firmware.abi import io_xs_wire as xs
from firmware.store.permissions import READ, WRITE, Permission
from firmware.store.quota import Quota
from firmware.store.store import Store
from firmware.store.wire import encode
from tests.store.guest import Guest
from tests.store.plain import PlainStore

OK = b"OK\0"
TRANSACTIONS = 10_000
DOMAINS = 4
SHARED = "/shared"
PLACES = ("a", "a/x", "a/x/p", "a/y", "b", "b/x", "c", "d", "d/x", "d/x/p", "e", "f")
PATHS = tuple(f"{SHARED}/{place}" for place in PLACES)


@dataclass
class Running:
    """A transaction under way: its number, what it asked and was told, how much had been changed when it
    began.
    """

    number: int
    begun: int
    log: list[tuple[str, str, bytes, object]] = field(default_factory=list)


def ask(guest: Guest, name: str, path: str, value: bytes, transaction: int) -> object:
    match name:
        case "read":
            return guest.read(path, transaction)
        case "directory":
            return guest.directory(path, transaction)
        case "write":
            return guest.write(path, value, transaction)
        case "mkdir":
            return guest.ask(xs.XS_MKDIR, encode(path), transaction)
        case "rm":
            return guest.remove(path, transaction)
        case _:
            return guest.ask(xs.XS_GET_PERMS, encode(path), transaction)


def everything(store: Store, path: str = SHARED) -> dict[str, tuple[bytes, tuple[str, ...]]]:
    found = {path: (store.read(path), store.directory(path))}
    for name in store.directory(path):
        found |= everything(store, f"{path}/{name}")
    return found


def many(quota: Quota | None = None) -> list[Guest]:
    """Guests that all may change what is below SHARED."""
    store = Store(quota)
    guests = [Guest(store, domid) for domid in range(1, DOMAINS + 1)]
    store.mkdir(SHARED)
    store.set_permissions(SHARED, (Permission(0, READ | WRITE),))
    return guests


@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_transactions_are_serial(seed: int) -> None:
    chance = random.Random(seed)
    guests, model = many(), PlainStore(SHARED)
    store = guests[0].store
    running: dict[tuple[int, int], Running] = {}
    begun = committed = refused = aborted = changes = 0
    while committed + refused + aborted < TRANSACTIONS // 2:
        guest = chance.randrange(DOMAINS)
        key = guest, chance.randrange(3)
        mine = running.get(key)
        what = chance.random()
        if mine is None and what < 0.3:
            running[key] = Running(guests[guest].start(), changes)
            begun += 1
        elif mine is not None and what < 0.25:
            del running[key]
            commits = chance.random() < 0.9
            answer = guests[guest].end(mine.number, commit=commits)
            if not commits:
                assert answer == OK
                aborted += 1
            elif answer == OK:
                # As if all of it had happened now, at once.
                for name, path, value, expected in mine.log:
                    assert model.run(name, path, value, guest + 1) == expected
                changes += any(entry[0] in ("write", "mkdir", "rm") for entry in mine.log)
                committed += 1
            else:
                assert answer == "EAGAIN"
                assert changes > mine.begun
                refused += 1
        else:
            name = chance.choices(("read", "directory", "write", "mkdir", "rm", "permissions"),
                                  (5, 3, 4, 1, 1, 1))[0]
            path, value = chance.choice(PATHS), chance.randbytes(chance.randrange(3))
            if mine is not None:
                mine.log.append((name, path, value, ask(guests[guest], name, path, value, mine.number)))
            elif what > 0.93:
                assert ask(guests[guest], name, path, value, 0) == model.run(name, path, value, guest + 1)
                changes += name in ("write", "mkdir", "rm")
    assert committed > TRANSACTIONS // 10
    assert refused > TRANSACTIONS // 20
    assert aborted > 100
    assert everything(store) == model.nodes()
    store.namespace.check()
    for key, left in running.items():
        assert guests[key[0]].end(left.number, commit=False) == OK
    for number, guest_ in enumerate(guests, 1):
        assert guest_.connection.account.nodes == model.owned(number)
        assert guest_.connection.account.outstanding == 0
    before = [each.connection.account.memory for each in guests]
    assert min(before) >= 0
    for each in guests:
        for path in PATHS:
            each.remove(path)
    assert [each.connection.account.nodes for each in guests] == [0] * DOMAINS
    assert [each.connection.account.memory for each in guests] == [0] * DOMAINS


def test_quotas_hold_whatever_is_tried() -> None:
    quota = Quota(nodes=40, watches=6, transactions=4, node_bytes=256, memory=6000, transaction_nodes=16)
    chance = random.Random(3)
    guests = many(quota)
    neighbour = guests[1]
    neighbour.write(f"{SHARED}/mine", b"x")
    kinds = [xs.XS_WRITE, xs.XS_MKDIR, xs.XS_RM, xs.XS_WATCH, xs.XS_UNWATCH, xs.XS_TRANSACTION_START,
             xs.XS_TRANSACTION_END, xs.XS_SET_PERMS, xs.XS_READ]
    open_numbers: set[int] = set()
    refusals: set[object] = set()
    for _ in range(6000):
        account = guests[0].connection.account
        kind = chance.choice(kinds)
        path = f"{SHARED}/{chance.choice('pqr')}/{chance.randrange(30)}"
        payload = {
            xs.XS_WRITE: encode(path) + bytes(chance.choice((1, 50, 200, 400))),
            xs.XS_WATCH: encode(path, str(chance.randrange(3))),
            xs.XS_UNWATCH: encode(path, str(chance.randrange(3))),
            xs.XS_TRANSACTION_START: b"\0",
            xs.XS_TRANSACTION_END: encode(chance.choice("TF")),
            xs.XS_SET_PERMS: encode(path, *["n1"] * chance.randrange(1, 8)),
        }.get(kind, encode(path))
        if kind == xs.XS_RM and chance.random() < 0.5:
            payload = encode(f"{SHARED}/{chance.choice('pqr')}")
        number = 0
        if open_numbers and kind not in (xs.XS_TRANSACTION_START, xs.XS_WATCH, xs.XS_UNWATCH):
            number = chance.choice([0, *sorted(open_numbers)])
        answer = guests[0].ask(kind, payload, number)
        if kind == xs.XS_TRANSACTION_START and isinstance(answer, bytes):
            open_numbers.add(int(answer[:-1]))
        elif kind == xs.XS_TRANSACTION_END:
            open_numbers.discard(number)
        if isinstance(answer, str):
            refusals.add((kind, answer))
        assert account.nodes <= quota.nodes
        assert account.watches <= quota.watches + 1
        assert 0 <= account.memory < quota.memory + 200
        assert len(guests[0].connection.transactions) <= quota.transactions + 1
        assert neighbour.read(f"{SHARED}/mine") == b"x"
    assert {(xs.XS_WRITE, "ENOSPC"), (xs.XS_WATCH, "E2BIG"), (xs.XS_TRANSACTION_START, "ENOSPC"),
            (xs.XS_TRANSACTION_END, "EAGAIN"), (xs.XS_TRANSACTION_END, "ENOMEM"),
            (xs.XS_SET_PERMS, "ENOSPC")} <= refusals
    guests[0].store.namespace.check()
    guests[0].ask(xs.XS_RESET_WATCHES, b"\0")
    for place in "pqr":
        guests[0].remove(f"{SHARED}/{place}")
    account = guests[0].connection.account
    assert (account.nodes, account.watches, account.memory) == (0, 0, 0)
