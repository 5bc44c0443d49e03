"""Cello: disk scheduling in two levels (Shenoy and Vin, SIGMETRICS 1998).

The upper level knows no classes: each domain has a weight, and in each interval its part of the disk, in time
or in bytes. What one leaves unused goes to those that want it, by their weights. The lower level knows three
classes: real-time requests go by their deadlines (SCAN-EDF; only sets that can be kept are admitted),
interactive ones as soon as no deadline forbids, and throughput fills what is left, in scan order.

Whoever has the largest part of its allocation left goes first. When nobody who waits has any left, a new
interval begins at once: the disk is never idle while something waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from firmware.disk.account import Account
from firmware.disk.client import Client
from firmware.disk.policy import DiskPolicy, disk_policy
from firmware.disk.realtime import GRAIN, KIB, Reservation, density, longest, reservation
from firmware.disk.scan import ScanQueue
from firmware.sched.parameters import Parameter, ParameterError, Value
from machine.disk import SECTOR, Disk, DiskRequest

MILLISECOND: Final = 1_000_000
REALTIME, INTERACTIVE, THROUGHPUT = "realtime", "interactive", "throughput"
CLASSES: Final = (REALTIME, INTERACTIVE, THROUGHPUT)
TIME, BYTES = "time", "bytes"
LEAST_BYTES: Final = 4096
"""What a request is charged at least in bytes: a flush or discard is not free."""
LEAST_CAPACITY: Final = 1 << 16
"""Bytes given out in an interval at least."""
NEVER: Final = 1 << 62


@disk_policy
class Cello(DiskPolicy):
    """Proportional shares above, classes below."""

    name = "cello"
    SETTINGS = (
        Parameter("share", TIME, "what weights divide: the disk's time, or bytes", choices=(TIME, BYTES)),
        Parameter("interval_ms", 500, "how long an allocation is for", "ms", 10, 60_000),
        Parameter("queue", 16, "throughput requests put in scan order at once", lowest=1, highest=1024),
        Parameter("flight", 0, "requests the disk has at once; 0: as many as it works on at once",
                  lowest=0, highest=1024),
        Parameter("chunk_kib", 32, "larger requests go to the disk in parts of this size, so that "
                  "who is in a hurry waits for a part only", "KiB", 4, 65_536),
    )
    SHARES = (
        Parameter("weight", 100, "its part of the disk in proportion to others'", lowest=1, highest=65_535),
        Parameter("class", THROUGHPUT, "how its requests are ordered", choices=CLASSES),
        Parameter("deadline_ms", 100, "realtime: when a request is due after it came", "ms", 2, 600_000),
        Parameter("period_ms", 0, "realtime: at least so far apart are its requests; 0: the deadline", "ms",
                  0, 600_000),
        Parameter("request_kib", 64, "realtime: its requests are at most so large", "KiB", 4, 65_536),
    )

    def __init__(self, disk: Disk, settings: Mapping[str, Value] | None = None) -> None:
        super().__init__(disk, settings)
        self._accounts: dict[int, Account] = {}
        self._waiting: dict[str, dict[int, Account]] = {name: {} for name in CLASSES}
        """By class: accounts with something in `waiting`."""
        self._reserved: dict[int, Reservation] = {}
        self._scan = ScanQueue()
        self._charged: dict[DiskRequest, tuple[Client, int]] = {}
        """Requests on their way, with what they were charged in advance."""
        self._due: dict[DiskRequest, int] = {}
        """Deadlines of real-time requests on their way."""
        self._began = 0
        """When this interval began."""
        self._moved = self._moved_since = 0
        """Bytes, and since when: what the disk can do, measured over intervals at least as long as ours."""
        self._capacity = LEAST_CAPACITY
        """Bytes given out in an interval."""
        self._spare = 1.0
        """What the real-time class leaves of the disk for interactive requests to go first with."""
        self._server = 0
        """Deadline of the last interactive request that went first."""
        self.intervals = 0
        self.tuned(0)

    # -- parameters

    def tuned(self, now: int) -> None:
        self._by_time = self.settings["share"] == TIME
        self._interval = self.number("interval_ms") * MILLISECOND
        self._window = self.number("queue")
        self._chunk = self.number("chunk_kib") * KIB // SECTOR
        for account in self._accounts.values():
            account.left, account.allocation = 0, 1
        self._charged = {request: (client, 0) for request, (client, _) in self._charged.items()}
        self._began = now

    def admit_settings(self, values: Mapping[str, Value]) -> None:
        if self._reserved:
            self._admit(self._reserved, int(values["chunk_kib"]))

    def admit_share(self, domain: int, values: Mapping[str, Value]) -> None:
        wanted = {each: found for each, found in self._reserved.items() if each != domain}
        if values["class"] == REALTIME:
            wanted[domain] = reservation(self.disk.model, values)
            self._admit(wanted, self.number("chunk_kib"))

    def _admit(self, wanted: Mapping[int, Reservation], chunk_kib: int) -> float:
        if not wanted:
            return 0.0
        needed = density(wanted, longest(self.disk.model, chunk_kib * KIB // SECTOR))
        if needed > 1:
            raise ParameterError(
                f"the disk cannot keep these deadlines: its {len(wanted)} real-time domains could need "
                f"{needed:.0%} of it; allow later deadlines, smaller requests or a smaller chunk_kib"
            )
        return needed

    def share_changed(self, domain: int, now: int) -> None:
        share = self.domain_share(domain)
        account = self._account(domain)
        for waiting in self._waiting.values():
            waiting.pop(domain, None)
        if account.waiting:
            self._waiting[str(share["class"])][domain] = account
        before = self._reserved.pop(domain, None)
        account.left = max(account.left, -account.allocation)
        if share["class"] == REALTIME:
            self._reserved[domain] = reservation(self.disk.model, share)
        self._reserve()
        if self._reserved.get(domain) != before:
            self._count_again(account, now)

    def _count_again(self, account: Account, now: int) -> None:
        """What waits while a promise is made, changed or ended counts from now on, at the new rate: it was
        not part of what was admitted, and the deadlines of others hold.
        """
        account.released = now
        waiting = [(client, request) for client, request, _ in account.waiting]
        account.waiting.clear()
        for client, request in waiting:
            account.waiting.append((client, request, self._counts(account, request, now)))

    def _counts(self, account: Account, request: DiskRequest, now: int) -> int:
        """The time from which a request that comes now counts."""
        reserved = self._reserved.get(account.domain)
        if reserved is None:
            return now
        counts = max(now, account.released)
        account.released = counts + reserved.period * reserved.units(request.moved // SECTOR)
        return counts

    def _reserve(self) -> None:
        self._spare = 1.0
        if self._reserved:
            self._spare = 1 - self._admit(self._reserved, self.number("chunk_kib"))

    def forget_domain(self, domain: int) -> None:
        super().forget_domain(domain)
        self._accounts.pop(domain, None)
        self._charged = {request: entry for request, entry in self._charged.items()
                         if entry[0].domain != domain}
        self._reserved.pop(domain, None)
        self._reserve()

    # -- requests that come and go

    def chunk(self, client: Client) -> int:
        reserved = self._reserved.get(client.domain)
        return self._chunk if reserved is None else reserved.sectors

    def may_wait(self, client: Client, other: Client) -> bool:
        mine, theirs = self.domain_share(client.domain), self.domain_share(other.domain)
        return mine["class"] == theirs["class"] == THROUGHPUT and int(mine["weight"]) <= int(theirs["weight"])

    def arrive(self, client: Client, request: DiskRequest, now: int) -> None:
        account = self._account(client.domain)
        if not account.outstanding and now - account.active > self._interval:
            account.active = now
            self._divide(now)
            account.left = max(account.left, account.allocation)
        account.active = now
        account.outstanding += 1
        account.waiting.append((client, request, self._counts(account, request, now)))
        self._waiting[str(self.domain_share(client.domain)["class"])][client.domain] = account

    def withdraw(self, client: Client) -> list[DiskRequest]:
        account = self._account(client.domain)
        gone = [request for owner, request, _ in account.waiting if owner is client]
        account.waiting = type(account.waiting)(entry for entry in account.waiting if entry[0] is not client)
        self._settle_waiting(account)
        for request in [each for each in self._scan if self._charged[each][0] is client]:
            self._scan.withdraw(request)
            account.left += self._charged.pop(request)[1]
            gone.append(request)
        account.outstanding -= len(gone)
        return gone

    def waiting(self) -> list[tuple[Client, DiskRequest]]:
        left = [(self._charged[request][0], request) for request in self._scan]
        for account in self._accounts.values():
            left += [(client, request) for client, request, _ in account.waiting]
        return left

    def finished(self, client: Client, request: DiskRequest, now: int) -> None:
        took = request.finished - request.started
        charged = self._charged.pop(request, None)
        moved = request.moved
        self._moved += moved
        due = self._due.pop(request, NEVER)
        account = self._accounts.get(client.domain)
        if account is None or charged is None:
            # Chosen by the policy before this one, or for a domain that has left and perhaps come again.
            return
        cost = took if self._by_time else max(LEAST_BYTES, moved)
        account.left += charged[1] - cost
        account.used += cost
        account.outstanding -= 1
        account.active = now
        account.learn(took)
        if due != NEVER:
            account.served += now <= due
            account.missed += now > due

    # -- choosing

    def choose(self, now: int, in_flight: int) -> DiskRequest | None:
        if in_flight >= self._limit():
            return None
        if now >= self._began + self._interval:
            self._begin_interval(now)
        while True:
            found = self._realtime(now) or self._interactive() or self._throughput()
            if found is not None:
                self._scan.passed(found)
                return found
            if not any(self._waiting.values()):
                return None
            if all(not waiting for name, waiting in self._waiting.items() if name != REALTIME):
                return self._early()
            self._begin_interval(now, until_used=True)

    def _limit(self) -> int:
        """Where deadlines are promised, nothing may hold the disk but one request."""
        if self._reserved:
            return 1
        return self.number("flight") or self.disk.model.concurrent

    def _realtime(self, now: int) -> DiskRequest | None:
        """The real-time request that is due first, unless an interactive one can go before it."""
        best: Account | None = None
        due = NEVER
        for domain, account in self._waiting[REALTIME].items():
            counts = account.waiting[0][2]
            if counts <= now:
                deadline = self._deadline(domain, counts)
                if deadline < due or (deadline == due and best is not None and self._nearer(account, best)):
                    best, due = account, deadline
        if best is None:
            return None
        before = self._before(now, due)
        return before or self._take(best, due)

    def _deadline(self, domain: int, counts: int) -> int:
        return (counts + self._reserved[domain].deadline) // GRAIN * GRAIN

    def _nearer(self, one: Account, other: Account) -> bool:
        """Whether the arm, on its way round, comes to the request of one before that of the other."""
        position, size = self._scan.position, self.disk.sectors
        ahead = [(account.waiting[0][1].sector - position) % size for account in (one, other)]
        return ahead[0] < ahead[1]

    def _before(self, now: int, due: int) -> DiskRequest | None:
        """An interactive request that may go before a real-time one: its own deadline as a server of total
        bandwidth comes first.
        """
        account = self._next_interactive()
        if account is None or self._spare <= 0:
            return None
        _, request, counts = account.waiting[0]
        cost = longest(self.disk.model, max(1, request.moved // SECTOR))
        deadline = max(counts, self._server) + int(cost / self._spare)
        if deadline >= due:
            return None
        self._server = deadline
        return self._take(account)

    def _next_interactive(self) -> Account | None:
        """Who has the most left of its allocation, if anything."""
        best: Account | None = None
        most = 0.0
        for account in self._waiting[INTERACTIVE].values():
            left = account.left / account.allocation
            if left > most:
                best, most = account, left
        return best

    def _interactive(self) -> DiskRequest | None:
        account = self._next_interactive()
        return None if account is None else self._take(account)

    def _throughput(self) -> DiskRequest | None:
        """From the scan-ordered queue, filled up from those who have something left."""
        scan, waiting = self._scan, self._waiting[THROUGHPUT]
        while len(scan) < self._window:
            best: Account | None = None
            most = 0.0
            for account in waiting.values():
                left = account.left / account.allocation
                if left > most:
                    best, most = account, left
            if best is None:
                break
            scan.add(self._take(best))
        return scan.take() if scan else None

    def _early(self) -> DiskRequest:
        """Only real-time requests beyond the declared rates wait: they may go, since nobody else wants to."""
        account = min(self._waiting[REALTIME].values(), key=lambda each: each.waiting[0][2])
        return self._take(account, self._deadline(account.domain, account.waiting[0][2]))

    def _take(self, account: Account, due: int = NEVER) -> DiskRequest:
        client, request, _ = account.waiting.popleft()
        if not account.waiting:
            self._settle_waiting(account)
        charge = account.estimate if self._by_time else max(LEAST_BYTES, request.moved)
        account.left -= charge
        self._charged[request] = client, charge
        if due != NEVER:
            self._due[request] = due
        return request

    # -- the upper level

    def _begin_interval(self, now: int, *, until_used: bool = False) -> None:
        """Give everyone known its allocation. Who waits keeps up to another one that was left; who has had
        too much starts with less. `until_used`: as many intervals as it takes until somebody who waits
        has something, at once, since the disk does not idle through them.
        """
        self._began = now
        measured = now - self._moved_since
        if measured >= self._interval:
            # Half of what the disk has just shown it can do: an interval that is over early costs nobody
            # anything, one that ends before all is used does.
            self._capacity = max(LEAST_CAPACITY, self._moved * self._interval // measured // 2)
            self._moved_since, self._moved = now, 0
        self._divide(now)
        count = self._needed() if until_used else 1
        self.intervals += count
        for account in self._known(now):
            most = 2 * account.allocation if account.outstanding else account.allocation
            account.left = min(most, account.left + count * account.allocation)

    def _needed(self) -> int:
        """After how many allocations the first of those who wait, and have no deadline, has something."""
        return min(max(1, -account.left // account.allocation + 1)
                   for name, waiting in self._waiting.items() if name != REALTIME
                   for account in waiting.values())

    def _divide(self, now: int) -> None:
        """Work out everyone's allocation. Nobody keeps more than that of what was given out among fewer."""
        capacity = self._interval if self._by_time else self._capacity
        known = self._known(now)
        weights = [int(self.domain_share(account.domain)["weight"]) for account in known]
        total = sum(weights)
        for account, weight in zip(known, weights, strict=True):
            before = account.allocation
            account.allocation = max(1, capacity * weight // total)
            if account.allocation < before:
                account.left = min(account.left, account.allocation)

    def _known(self, now: int) -> list[Account]:
        """Those who wait, or to whom something has happened within an interval."""
        since = now - self._interval
        return [account for account in self._accounts.values()
                if account.outstanding or account.active >= since]

    def _account(self, domain: int) -> Account:
        account = self._accounts.get(domain)
        if account is None:
            account = self._accounts[domain] = Account(domain)
        return account

    def _settle_waiting(self, account: Account) -> None:
        if not account.waiting:
            for waiting in self._waiting.values():
                waiting.pop(account.domain, None)

    @property
    def accounts(self) -> Iterator[Account]:
        """The domains' accounts, in the order in which they first came."""
        return iter(self._accounts.values())
