"""RTDS: each vCPU has a budget of CPU time in every period, by the period's end (sched/rt.c of Xen 4.17, in
our own way): earliest deadline first, with budgets replenished by a timer, and extra time for who wants it.

Unlike Xen's, this one refuses what it could not keep. A vCPU's time is reserved on one logical CPU
(`reservations.py`); where somebody idles it may run elsewhere before its turn, which takes nothing from
anybody. A vCPU that wakes with more budget than its deadline leaves time for begins a new period, so that
its sleep costs nobody their deadline. Each reservation is `overhead_us` greater than its budget: for the
switches, and for the quantum by which logical CPUs see each other's doings late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from firmware.domain.vcpu import VCpu
from firmware.sched.parameters import Parameter, ParameterError, Value
from firmware.sched.percpu import PerCpu
from firmware.sched.policy import MICROSECOND, Pool, policy
from firmware.sched.reservations import Reservations, density

if TYPE_CHECKING:
    from machine.clock import Event

LEVEL: Final = 64
"""Keys: from this bit up how often the budget was used up in this period, below it the deadline."""
GUEST: Final = 1 << LEVEL - 1
"""Added to the key of who runs where their time is not reserved: after those whose it is."""
LONGEST_US: Final = 1_000_000_000


class Server:
    """What the policy keeps of a vCPU; times in ns. `level`: how often it has used its budget up."""

    __slots__ = ("budget", "deadline", "extra", "left", "level", "missed", "period", "runnable")

    def __init__(self) -> None:
        self.period = self.budget = self.left = self.deadline = self.level = self.missed = 0
        self.extra = self.runnable = False

    def renew(self, deadline: int) -> None:
        """A new period; what the last one overran is owed."""
        self.deadline = deadline
        self.left = self.budget + (min(self.left, 0) if not self.level else 0)
        self.level = 0


@policy
class Rtds(PerCpu):
    """Budgets and periods of each vCPU."""

    name = "rtds"
    PER_VCPU = True
    SETTINGS = (
        Parameter("overhead_us", 200, "what each reservation has beyond its budget, for switches", "us", 0,
                  10_000),
    )
    SHARES = (
        Parameter("period_us", 10_000, "how often the budget is renewed", "us", 10, LONGEST_US),
        Parameter("budget_us", 4_000, "CPU time in each period", "us", 10, LONGEST_US),
        Parameter("extratime", True, "it may run on when its budget is used up and nobody else wants to"),
    )

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        self.servers: dict[VCpu, Server] = {}
        self._reservations = Reservations(pool.cores)
        self._due: list[tuple[int, int, VCpu]] = []
        """A heap of periods' ends of those that run, wait or have used their budgets up."""
        self._entries = 0
        self._timer: Event | None = None
        super().__init__(pool, settings)

    # -- parameters and reservations

    def admit_settings(self, values: Mapping[str, Value]) -> None:
        overhead = int(values["overhead_us"])
        changed = {vcpu: self._density(self.share_of(vcpu), overhead) for vcpu in self.servers}
        if self._reservations.packed(changed) is None:
            raise ParameterError(f"scheduler 'rtds': with {overhead} us of overhead the reservations there "
                                 "are would not fit any more")

    def tuned(self, now: int) -> None:
        changed = {vcpu: self._density(self.share_of(vcpu)) for vcpu in self.servers}
        self._reserve_all(changed, now)

    def admit_share(self, vcpus: Sequence[VCpu], values: Mapping[str, Value]) -> None:
        wanted = self._density(values)
        changed = {vcpu: wanted for vcpu in vcpus if vcpu in self.servers}
        if not self._reservations.stays(changed) and self._reservations.packed(changed) is None:
            raise self._no_room(values)

    def share_changed(self, vcpus: Sequence[VCpu], now: int) -> None:
        there = [vcpu for vcpu in vcpus if vcpu in self.servers]
        self._reserve_all({vcpu: self._density(self.share_of(vcpu)) for vcpu in there}, now)
        for vcpu in there:
            server = self.servers[vcpu]
            self._take_share(vcpu, server)
            server.left = server.level = 0
            server.renew(now + server.period)
            if server.runnable:
                self._expect(vcpu, server)
                if vcpu.scheduled:
                    self.pool.poke(vcpu.core.index, now)
                else:
                    self.unqueue(vcpu)
                    self.enter(vcpu, now)

    def admit_affinity(self, vcpu: VCpu, hard: int) -> None:
        if self._reservations.packed({}, hard={vcpu: hard}) is None:
            raise ParameterError(f"scheduler 'rtds': the time of {vcpu!r} is not free on these CPUs")

    def admit_loss(self, cores: int) -> None:
        """They go one by one, and everybody must fit after each."""
        left = self.pool.mask
        for core in self.pool.cores:
            if cores >> core & 1:
                left &= ~(1 << core)
                if self._reservations.packed({}, left) is None:
                    raise ParameterError("scheduler 'rtds': the reservations do not fit without these CPUs")

    def _density(self, share: Mapping[str, Value], overhead: int | None = None) -> int:
        """What a share takes of a logical CPU. ParameterError for a budget beyond its period."""
        budget, period = int(share["budget_us"]), int(share["period_us"])
        if overhead is None:
            overhead = int(self.settings["overhead_us"])
        if budget > period:
            raise ParameterError(f"scheduler 'rtds': a budget of {budget} us does not fit in a period of "
                                 f"{period} us")
        if budget + overhead > period:
            raise ParameterError(f"scheduler 'rtds': a budget of {budget} us leaves less than overhead_us, "
                                 f"{overhead} us, of its period of {period} us")
        return density(budget + overhead, period)

    def _no_room(self, share: Mapping[str, Value]) -> ParameterError:
        overhead = self.settings["overhead_us"]
        return ParameterError(f"scheduler 'rtds': {share['budget_us']} us in each {share['period_us']} us, "
                              f"with {overhead} us of overhead, are not left on any of its CPUs")

    def _take_share(self, vcpu: VCpu, server: Server) -> None:
        share = self.share_of(vcpu)
        server.period = int(share["period_us"]) * MICROSECOND
        server.budget = int(share["budget_us"]) * MICROSECOND
        server.extra = bool(share["extratime"])

    def _reserve_all(self, changed: Mapping[VCpu, int], now: int) -> None:
        """Reserve anew what has been admitted: in place if that is possible."""
        if self._reservations.stays(changed):
            for vcpu, wanted in changed.items():
                self._reservations.resize(vcpu, wanted)
            return
        places = self._reservations.packed(changed)
        if places is not None:
            self._settle(self._reservations.repack(places, changed), now)

    def _settle(self, moved: Sequence[VCpu], now: int) -> None:
        """The reservations of these are on other logical CPUs now."""
        for vcpu in moved:
            queued = vcpu in self.home and self.unqueue(vcpu)
            self._note_home(vcpu)
            server = self.servers[vcpu]
            if server.runnable and self._dense(server, now):
                server.renew(now + server.period)
                self._expect(vcpu, server)
            if queued:
                self.enter(vcpu, now)

    def _note_home(self, vcpu: VCpu) -> None:
        self.home[vcpu] = self._reservations.core[vcpu]

    # -- vCPUs and logical CPUs

    def insert(self, vcpu: VCpu, now: int) -> int:
        """Where most is left; if that is too little, everybody's reservation may go elsewhere."""
        share = self.share_of(vcpu)
        wanted = self._density(share)
        room = self._reservations.room(vcpu, wanted)
        server = Server()
        if room:
            core = self.pool.placement.initial(vcpu, self._reservations.used, room)
            self._reservations.reserve(vcpu, wanted, core)
            self.servers[vcpu] = server
            self._note_home(vcpu)
        else:
            places = self._reservations.packed({vcpu: wanted})
            if places is None:
                raise self._no_room(share)
            self.servers[vcpu] = server
            self._settle(self._reservations.repack(places, {vcpu: wanted}), now)
        self._take_share(vcpu, server)
        self._note_soft(vcpu)
        return self.home[vcpu]

    def remove(self, vcpu: VCpu, now: int) -> None:
        self._reservations.release(vcpu)
        del self.servers[vcpu], self.home[vcpu]
        self._soft.pop(vcpu, None)

    def gain(self, core: int, now: int) -> None:
        super().gain(core, now)
        self._reservations.used[core] = 0

    def lose(self, core: int, now: int) -> None:
        places = self._reservations.packed({}, self.pool.mask)
        if places is None:
            raise ParameterError(f"scheduler 'rtds': the reservations do not fit without CPU {core}")
        moved = self._reservations.repack(places, {})
        self._settle(moved, now)
        del self._reservations.used[core], self.queues[core], self.placed[core]
        self.waiting &= ~(1 << core)

    def move(self, vcpu: VCpu, home: int) -> None:
        """A vCPU stays at home wherever it runs: its time is reserved there."""

    def affinity_changed(self, vcpu: VCpu, now: int) -> None:
        self._note_soft(vcpu)
        if not vcpu.hard_affinity >> self.home[vcpu] & 1:
            places = self._reservations.packed({})
            if places is None:
                raise ParameterError(f"scheduler 'rtds': there is no time left for {vcpu!r} on its CPUs")
            self._settle(self._reservations.repack(places, {}), now)
        if self.unqueue(vcpu):
            self.enter(vcpu, now)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # -- budgets

    def key(self, vcpu: VCpu) -> int:
        server = self.servers[vcpu]
        return server.level << LEVEL | server.deadline

    def ran(self, vcpu: VCpu, ns: int, now: int) -> None:
        server = self.servers[vcpu]
        late = min(ns, now - server.deadline)
        if late > 0:
            self._charge(server, ns - late)
            self._renew(vcpu, server, now)
            ns = late
        self._charge(server, ns)

    @staticmethod
    def _charge(server: Server, ns: int) -> None:
        server.left -= ns
        if server.left <= 0 and server.extra:
            server.level += 1
            server.left += server.budget

    def _renew(self, vcpu: VCpu, server: Server, now: int) -> None:
        """The period is over. A budget that is not used up by someone who could have is a missed deadline."""
        if server.left > 0 and not server.level:
            server.missed += 1
        server.renew(server.deadline + ((now - server.deadline) // server.period + 1) * server.period)
        self._expect(vcpu, server)

    def _dense(self, server: Server, now: int) -> bool:
        """Whether what is left of the budget is more than the deadline leaves its share of the time for."""
        overhead = int(self.settings["overhead_us"]) * MICROSECOND
        return now >= server.deadline or (
            not server.level and (server.left + overhead) * server.period
            > (server.deadline - now) * (server.budget + overhead)
        )

    def _expect(self, vcpu: VCpu, server: Server) -> None:
        """Have the end of a vCPU's period noticed."""
        self._entries += 1
        heappush(self._due, (server.deadline, self._entries, vcpu))
        self._arm()

    def _arm(self) -> None:
        due, servers = self._due, self.servers
        while due:
            when, _, vcpu = due[0]
            server = servers.get(vcpu)
            if server is not None and server.runnable and server.deadline == when:
                if self._timer is None or self._timer.cancelled or when < self._timer.when:
                    if self._timer is not None:
                        self._timer.cancel()
                    self._timer = self.pool.at(when, self._replenish)
                return
            heappop(due)

    def _replenish(self, _: object) -> None:
        self._timer = None
        now, due = self.pool.now(), self._due
        while due and due[0][0] <= now:
            when, _, vcpu = heappop(due)
            server = self.servers.get(vcpu)
            if server is None or not server.runnable or server.deadline != when:
                continue
            if vcpu.scheduled:
                self.pool.poke(vcpu.core.index, now)
            else:
                self.unqueue(vcpu)
                self._renew(vcpu, server, now)
                self.enter(vcpu, now)
        self._arm()

    # -- running

    def _rank(self, vcpu: VCpu, core: int) -> int:
        return self.key(vcpu) + (0 if self.home[vcpu] == core else GUEST)

    def enter(self, vcpu: VCpu, now: int) -> None:
        """Into the queue at home, if it has budget; to the notice of who should look."""
        server = self.servers[vcpu]
        if server.left <= 0:
            return
        pool, home, key = self.pool, self.home[vcpu], self.key(vcpu)
        self.push(vcpu, key)
        if pool.idle >> home & 1:
            pool.poke(home, now)
            return
        current = pool.running(home)
        if current is not None and current is not vcpu and key < self._rank(current, home):
            pool.poke(home, now)
        elif current is not None or len(self.queues[home]) > 1:
            self._offer(vcpu, home, now)

    def _offer(self, vcpu: VCpu, home: int, now: int) -> None:
        """Have an idle logical CPU look, if there is one for this vCPU, which waits."""
        idle = self.pool.idle
        if idle:
            target = self.pool.placement.idle_for(vcpu, home, idle)
            if target is not None:
                self.pool.poke(target, now)

    def wake(self, vcpu: VCpu, now: int) -> None:
        server = self.servers[vcpu]
        server.runnable = True
        now = max(now, vcpu.last_time)
        if self._dense(server, now):
            server.renew(now + server.period)
        self._expect(vcpu, server)
        self.enter(vcpu, now)

    def sleep(self, vcpu: VCpu, now: int) -> None:
        self.servers[vcpu].runnable = False
        self.unqueue(vcpu)

    def give_way(self, vcpu: VCpu, now: int) -> bool:
        return False

    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        if current is not None:
            server = self.servers[current]
            if now >= server.deadline:
                self._renew(current, server, now)
            head = self.queues[core].first(core) if self.waiting >> core & 1 else None
            if server.left > 0 and current.hard_affinity >> core & 1 and (
                    head is None or head[0] >= self._rank(current, core)):
                if head is not None:
                    self._offer(head[2], core, now)
                return current, server.left
            self.enter(current, now)
        chosen = self.take(core) or self.steal(core)
        return None if chosen is None else (chosen, self.servers[chosen].left)
