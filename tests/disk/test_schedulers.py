"""Disk scheduling policies on the emulated disk: shares, deadlines, latency, and what all of them promise."""

from __future__ import annotations

import random
import sys
from itertools import groupby
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.disk.cello import CLASSES, Cello
from firmware.disk.client import Client
from firmware.disk.parts import Parts, cut
from firmware.disk.policy import DISK_POLICIES, DiskPolicy
from firmware.sched.parameters import ParameterError, Value
from machine.disk import DiskRequest, Flash, Model, Operation
from tools.disksim.rig import Rig
from tools.disksim.workloads import Backlog, Periodic, Stream, Transactions, Workload

MS = 1_000_000
INTERVALS_20 = 20 * 500 * MS
POLICIES = sorted(DISK_POLICIES)


def percentile(workload: Workload, part: float) -> int:
    """The latency that this part of the requests did not exceed."""
    return sorted(workload.latencies)[int(len(workload.latencies) * part)]


class TestShares:
    WEIGHTS = (1, 2, 4, 8)

    @pytest.mark.parametrize("share", ["time", "bytes"])
    @pytest.mark.parametrize("kind", ["random", "mixed sizes", "streams"])
    def test_backlogged_domains_get_their_weights(self, share: str, kind: str) -> None:
        rig = Rig("cello", {"share": share})
        clients = [rig.client({"weight": weight}) for weight in self.WEIGHTS]
        for number, client in enumerate(clients):
            if kind == "streams":
                Stream(rig, client, first=number * 1_900_000, span=1_000_000)
            else:
                sizes = (16,) if kind == "random" else (8,) if number % 2 else (64, 128)
                Backlog(rig, client, number, sectors=sizes, writes=0.2)
        rig.run(500 * MS)
        before = [(client.time, client.bytes) for client in clients]
        rig.run(INTERVALS_20)
        had = [client.time - time if share == "time" else client.bytes - moved
               for client, (time, moved) in zip(clients, before, strict=True)]
        for weight, one in zip(self.WEIGHTS, had, strict=True):
            assert one / sum(had) == pytest.approx(weight / sum(self.WEIGHTS), rel=0.05)
        assert rig.disk.busy_ns == rig.clock.now

    def oltp(self, policy: str) -> list[float]:
        """Parts of what eight domains of weights 1 to 8 had, transactions beside a streaming hog."""
        rig = Rig(policy)
        cello = policy == "cello"
        clients = [rig.client({"weight": 100 * weight, "class": "interactive"} if cello else None)
                   for weight in range(1, 9)]
        for number, client in enumerate(clients):
            Transactions(rig, client, number)
        Stream(rig, rig.client({"weight": 100} if cello else None))
        rig.run(30_000 * MS)
        total = sum(client.time for client in clients)
        return [client.time / total * 36 for client in clients]

    def test_transactions_beside_a_hog_follow_their_weights(self) -> None:
        for weight, had in enumerate(self.oltp("cello"), start=1):
            assert had == pytest.approx(weight, rel=0.05)

    def test_under_batch_round_robin_they_do_not(self) -> None:
        for had in self.oltp("batch"):
            assert had == pytest.approx(4.5, rel=0.1), "everyone has the same, whatever the weight"

    def test_what_one_leaves_goes_to_the_others_by_weight(self) -> None:
        rig = Rig("cello")
        clients = [rig.client({"weight": weight}) for weight in (10, 1, 3)]
        Transactions(rig, clients[0], 0, think=200 * MS)
        for client in clients[1:]:
            Backlog(rig, client, client.domain)
        rig.run(INTERVALS_20)
        assert clients[2].time / clients[1].time == pytest.approx(3, rel=0.05)
        assert rig.disk.busy_ns == rig.clock.now

    def test_a_new_weight_holds_from_then_on(self) -> None:
        rig = Rig("cello")
        clients = [rig.client({"weight": 100}) for _ in range(2)]
        for client in clients:
            Backlog(rig, client, client.domain)
        rig.run(INTERVALS_20 // 2)
        before = [client.time for client in clients]
        rig.scheduler.set_share(2, {"weight": 300})
        rig.run(INTERVALS_20)
        first, second = (client.time - time for client, time in zip(clients, before, strict=True))
        assert second / first == pytest.approx(3, rel=0.05)

    def test_who_comes_late_gets_no_more_than_its_share_and_no_less(self) -> None:
        rig = Rig("cello")
        early, late = rig.client({"weight": 100}), rig.client({"weight": 100})
        Backlog(rig, early, 1)
        rig.run(INTERVALS_20)
        before = early.time
        Backlog(rig, late, 2)
        rig.run(INTERVALS_20)
        assert late.time / (early.time - before) == pytest.approx(1, rel=0.05)


class TestLatency:
    def alone(self) -> int:
        rig = Rig("cello")
        workload = Transactions(rig, rig.client({"class": "interactive", "weight": 400}), 1, think=20 * MS)
        rig.run(30_000 * MS)
        return percentile(workload, 0.99)

    @pytest.mark.parametrize("hogs", [1, 3])
    def test_a_hog_at_most_doubles_an_interactive_domains_99th_percentile(self, hogs: int) -> None:
        rig = Rig("cello")
        workload = Transactions(rig, rig.client({"class": "interactive", "weight": 400}), 1, think=20 * MS)
        for _ in range(hogs):
            Stream(rig, rig.client({"weight": 100}))
        rig.run(30_000 * MS)
        assert percentile(workload, 0.99) <= 2 * self.alone()

    def test_under_fifo_it_is_much_more(self) -> None:
        rig = Rig("fifo")
        workload = Transactions(rig, rig.client(), 1, think=20 * MS)
        Stream(rig, rig.client())
        rig.run(30_000 * MS)
        assert percentile(workload, 0.99) > 4 * self.alone()


class TestDeadlines:
    @pytest.mark.parametrize("seed", range(12))
    def test_no_admitted_set_misses_one(self, seed: int) -> None:
        chance = random.Random(seed)
        model: Model | None = Flash() if seed % 3 == 2 else None
        rig = Rig("cello", {"chunk_kib": chance.choice((16, 32, 64))}, model=model)
        tasks = []
        for _ in range(chance.randrange(2, 7)):
            deadline = chance.choice((10, 40, 60, 100, 200, 400, 1000))
            kib, period = chance.choice((4, 16, 64)), deadline * chance.choice((1, 1, 2))
            client = rig.client()
            try:
                rig.scheduler.set_share(client.domain, {
                    "class": "realtime", "deadline_ms": deadline, "period_ms": period, "request_kib": kib})
            except ParameterError:
                continue
            tasks.append(Periodic(rig, client, chance.randrange(1 << 30), period=period * MS,
                                  deadline=deadline * MS, sectors=2 * kib, jitter=chance.choice((0, 5 * MS)),
                                  writes=0.5))
        Transactions(rig, rig.client({"class": "interactive"}), 7, think=0)
        Stream(rig, rig.client())
        Backlog(rig, rig.client(), 3, sectors=(128, 8), writes=0.5)
        rig.run(8_000 * MS)
        assert [task.missed for task in tasks] == [0] * len(tasks)
        policy = rig.scheduler.policy
        assert isinstance(policy, Cello)
        assert sum(account.missed for account in policy.accounts) == 0
        served = sum(account.served for account in policy.accounts)
        assert served == sum(len(task.latencies) for task in tasks)
        assert rig.disk.busy_ns == rig.clock.now

    def test_beyond_capacity_is_refused_and_changes_nothing(self) -> None:
        rig = Rig("cello")
        share: dict[str, Value] = {"class": "realtime", "deadline_ms": 150}

        def fill() -> None:
            for _ in range(100):
                rig.scheduler.set_share(rig.client().domain, share)

        with pytest.raises(ParameterError, match="cannot keep these deadlines"):
            fill()
        client = rig.clients[-1]
        assert client.domain > 3
        assert rig.scheduler.policy.domain_share(client.domain)["class"] == "throughput"
        rig.scheduler.set_share(1, {"class": "throughput"})
        rig.scheduler.set_share(client.domain, share)
        with pytest.raises(ParameterError, match="cannot keep"):
            rig.scheduler.tune({"chunk_kib": 8192})

    def test_a_flood_of_real_time_requests_gets_what_was_admitted_and_no_more(self) -> None:
        rig = Rig("cello")
        flood = rig.client({"class": "realtime", "deadline_ms": 100, "weight": 1})
        Backlog(rig, flood, 1, depth=32, sectors=(128,))
        other = Backlog(rig, rig.client({"weight": 100}), 2)
        rig.run(10_000 * MS)
        assert flood.requests <= 10_000 // 100 + 2
        assert len(other.latencies) > 500

    def test_who_becomes_real_time_with_much_waiting_is_given_its_rate_from_then_on(self) -> None:
        rig = Rig("cello")
        task = Periodic(rig, rig.client({"class": "realtime", "deadline_ms": 200}), 1,
                        period=200 * MS, deadline=200 * MS, sectors=128)
        hog = rig.client({"class": "interactive"})
        Backlog(rig, hog, 2, depth=64, sectors=(64,))
        shares: tuple[dict[str, Value], ...] = (
            {"class": "realtime", "deadline_ms": 150}, {"deadline_ms": 120}, {"class": "interactive"},
            {"class": "realtime"})
        for share in shares:
            rig.run(1_000 * MS)
            rig.scheduler.set_share(hog.domain, share)
        rig.run(1_000 * MS)
        assert task.latencies
        assert task.missed == 0
        policy = rig.scheduler.policy
        assert isinstance(policy, Cello)
        assert [account.missed for account in policy.accounts] == [0, 0]


def test_a_domain_far_below_its_share_of_many_small_intervals_costs_no_more_for_it() -> None:
    rig = Rig("cello", {"interval_ms": 10})
    rich, poor = rig.client({"weight": 65_535}), rig.client({"weight": 1})
    Transactions(rig, rich, 1)
    Backlog(rig, poor, 2)
    policy = rig.scheduler.policy
    assert isinstance(policy, Cello)
    calls = 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(profile)
    try:
        rig.run(100 * MS)
    finally:
        sys.setprofile(None)
    assert policy.intervals > 50_000
    assert calls < 1000 * (rich.requests + poor.requests)


ACTION = st.tuples(
    st.sampled_from(("submit", "submit", "submit", "run", "share", "policy", "remove", "tune")),
    st.integers(0, 3), st.integers(0, 7_999_000), st.sampled_from((1, 8, 64, 700)),
    st.sampled_from(list(Operation)),
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(start=st.sampled_from(POLICIES), actions=st.lists(ACTION, max_size=60), flash=st.booleans())
def test_every_request_is_done_once_and_the_disk_never_idles(
    start: str, actions: list[tuple[str, int, int, int, Operation]], flash: bool,
) -> None:
    rig = Rig(start, model=Flash() if flash else None)
    clients: dict[int, Client] = {number: rig.client(domain=number) for number in range(4)}
    expected: dict[DiskRequest, Client] = {}
    done: list[DiskRequest] = []
    for kind, number, sector, sectors, operation in actions:
        client = clients[number]
        if kind == "submit":
            where = (0, 0) if operation == Operation.FLUSH else (sector, sectors)
            request = rig.submit(client, operation, *where, done.append)
            expected[request] = client
        elif kind == "run":
            rig.run(sector * 10)
        elif kind == "policy":
            rig.scheduler.set_policy(POLICIES[sector % len(POLICIES)])
        elif kind == "remove":
            rig.scheduler.remove(client)
            expected = {request: owner for request, owner in expected.items()
                        if owner is not client or request in done}
            clients[number] = rig.client(domain=number)
        elif rig.scheduler.policy.name == "cello":
            if kind == "tune":
                rig.scheduler.tune({"share": ("time", "bytes")[sector % 2], "queue": 1 + sectors})
            else:
                rig.scheduler.set_share(number, {
                    "weight": 1 + sectors, "class": CLASSES[sector % 3], "deadline_ms": 1000})
        waiting = rig.scheduler.policy.waiting()
        assert not waiting or rig.disk.in_flight, "the disk idles with work queued"
    rig.run(3_600_000 * MS)
    assert sorted(map(id, done)) == sorted(map(id, expected))
    policy = rig.scheduler.policy
    assert not policy.waiting()
    if isinstance(policy, Cello):
        assert all(account.outstanding == 0 for account in policy.accounts)
    assert all(request.finished >= request.started and not request.error for request in done)


@pytest.mark.parametrize("share", ["time", "bytes"])
def test_a_discard_of_a_whole_disk_is_one_small_request(share: str) -> None:
    """A frontend may name every sector of a disk; nothing may grow with that."""
    rig = Rig("cello", {"share": share}, sectors=1 << 22)
    greedy, other = rig.client(), rig.client()
    done: list[DiskRequest] = []
    for _ in range(3):
        rig.submit(greedy, Operation.DISCARD, 0, 1 << 22, done.append)
    rig.submit(other, Operation.WRITE, 8, 2048, done.append)
    rig.run(10_000 * MS)
    assert len(done) == 4
    assert rig.disk.counters.discards == 3
    assert rig.disk.counters.writes > 1
    assert (greedy.bytes, other.bytes) == (0, 2048 * 512)
    policy = rig.scheduler.policy
    assert isinstance(policy, Cello)
    mine, theirs = policy.accounts
    assert mine.used < theirs.used


class TestParts:
    @given(st.lists(st.integers(1, 8), min_size=1, max_size=8), st.integers(1, 20))
    def test_the_parts_are_the_whole(self, sizes: list[int], chunk: int) -> None:
        pieces = tuple((index << 16, size * 512) for index, size in enumerate(sizes))
        done: list[DiskRequest] = []
        whole = DiskRequest(Operation.READ, 100, sum(sizes), pieces, done.append, "owner")
        parts = Parts(whole, chunk).requests
        flat = [address + at for address, size in pieces for at in range(0, size, 512)]
        moved = [piece for part in parts for piece in part.pieces]
        assert [address + at for address, size in moved for at in range(0, size, 512)] == flat
        sectors = [sector for part in parts for sector in range(part.sector, part.sector + part.sectors)]
        assert sectors == list(range(100, 100 + sum(sizes)))
        for number, part in enumerate(parts):
            assert not done
            part.error = 5 if number == 1 else 0
            part.done(part)
        assert done == [whole]
        assert whole.error == (5 if len(parts) > 1 else 0)

    def test_cutting(self) -> None:
        assert cut(((0, 1024), (4096, 512)), 512, 1024) == ((512, 512), (4096, 512))


@pytest.mark.parametrize(("policy", "kind", "values", "said"), [
    ("cello", "share", {"weight": 0}, "weight is 1 to 65535, not 0"),
    ("cello", "share", {"weight": -3}, "not -3"),
    ("cello", "share", {"class": "fast"}, "one of realtime, interactive, throughput"),
    ("cello", "share", {"class": "realtime", "deadline_ms": 5}, "takes Seagate .* up to .* ms"),
    ("cello", "share", {"nice": 1}, "no parameter 'nice'"),
    ("cello", "tune", {"interval_ms": 0}, "interval_ms is 10 to 60000 ms"),
    ("cello", "tune", {"share": "luck"}, "one of time, bytes"),
    ("batch", "share", {"weight": 1}, "no parameter 'weight'"),
    ("batch", "tune", {"again": 65}, "again .65. is at most most"),
    ("batch", "tune", {"batch": 0}, "batch is 1"),
    ("fifo", "tune", {"batch": 1}, "it has none"),
])
def test_bad_parameters_are_refused(policy: str, kind: str, values: dict[str, Value], said: str) -> None:
    rig = Rig(policy)
    client = rig.client()
    before: DiskPolicy = rig.scheduler.policy
    settings_before = dict(before.settings)
    with pytest.raises(ParameterError, match=said):
        rig.scheduler.tune(values) if kind == "tune" else rig.scheduler.set_share(client.domain, values)
    assert before.settings == settings_before


def test_an_unknown_policy_is_refused_and_the_old_one_goes_on() -> None:
    rig = Rig("fifo")
    before = rig.scheduler.policy
    for name, values in (("elevator", {}), ("cello", {"queue": 0})):
        with pytest.raises(ParameterError):
            rig.scheduler.set_policy(name, values)
    assert rig.scheduler.policy is before


def test_batch_round_robin_takes_sixteen_a_turn_and_begins_again_below_thirty_two() -> None:
    rig = Rig("batch")
    clients = [rig.client() for _ in range(3)]
    order: list[int] = []
    for client in clients:
        for _ in range(40):
            rig.submit(client, Operation.READ, client.domain, 8, lambda request: order.append(request.sector))
    assert rig.disk.in_flight == 64
    for left in range(63, 31, -1):
        rig.clock.advance(rig.clock.next() or 0)
        assert rig.disk.in_flight == left
    rig.clock.advance(rig.clock.next() or 0)
    assert rig.disk.in_flight == 64
    rig.run(10_000 * MS)
    assert [(domain, len(list(run))) for domain, run in groupby(order)] == [(1, 40), (2, 40), (3, 40)]


def test_batch_round_robin_takes_turns() -> None:
    rig = Rig("batch")
    first = rig.client()
    order: list[int] = []
    for _ in range(64):
        rig.submit(first, Operation.READ, 0, 8, lambda request: order.append(request.sector))
    for _ in range(2):
        client = rig.client()
        for _ in range(40):
            rig.submit(client, Operation.READ, client.domain, 8, lambda request: order.append(request.sector))
    rig.run(10_000 * MS)
    runs = [(domain, len(list(run))) for domain, run in groupby(order)]
    assert runs == [(0, 64), (2, 16), (3, 16), (2, 16), (3, 16), (2, 8), (3, 8)]
