"""What a scheduling policy is: it decides who runs where and for how long, and nothing else.

The mechanism (`scheduler.py`) blocks, wakes, switches, accounts and traces; a pool (`pool.py`) is the set of
logical CPUs that one policy has. A policy keeps what it knows of a vCPU in tables of its own. Times are
virtual ns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from firmware.domain.vcpu import VCpu
from firmware.sched.parameters import ParameterError, Value, checked
from firmware.sched.tunable import Registry, Tunable

if TYPE_CHECKING:
    from firmware.domain.domain import Domain
    from firmware.sched.placement import Placement
    from machine.clock import Event

MICROSECOND: Final = 1_000
MILLISECOND: Final = 1_000_000


class Pool(Protocol):
    """What a policy sees of the machine: the logical CPUs it has, and who runs on them."""

    cores: list[int]
    """Indices of the pool's logical CPUs, ascending. Changes only between `gain` and `lose` of the policy."""
    mask: int
    """The same as a bit mask."""
    placement: Placement
    """Where the machine's logical CPUs lie: siblings, sockets, and the order in which to look for work."""
    @property
    def idle(self) -> int:
        """The pool's logical CPUs on which nobody runs, as a bit mask."""

    vcpus: list[VCpu]
    """Every vCPU of the pool, runnable or not, in the order in which they came."""

    def now(self) -> int:
        """System time where we are."""

    def running(self, core: int) -> VCpu | None:
        """Who has that logical CPU; None while it idles."""

    def poke(self, core: int, when: int) -> None:
        """That logical CPU is to decide again at `when` (now, or later); an idle one wakes for it."""

    def at(self, when: int, callback: Callable[[Any], None], argument: Any = None) -> Event:
        """A timer of the policy. One that repeats must end when nothing is runnable: it keeps time going."""


class Policy(Tunable, ABC):
    """One scheduling policy on one pool.

    Who runs is not queued: `pick` takes a vCPU off the policy's queues, and hands the one that ran back as
    `current`. `settings` are the policy's own parameters, `share_of` those of a domain or vCPU.
    """

    PER_VCPU: ClassVar[bool] = False
    """Whether single vCPUs can have shares that differ from their domain's (as `xl sched-rtds -v`)."""

    def __init__(self, pool: Pool, settings: Mapping[str, Value] | None = None) -> None:
        super().__init__(settings)
        self.pool = pool

    # -- parameters

    def share_of(self, vcpu: VCpu) -> dict[str, Value]:
        """The parameters that hold for a vCPU: its own, its domain's, or the defaults."""
        shares = self.shares
        domain = vcpu.domain.id
        return (shares.get((domain, vcpu.id)) if self.PER_VCPU else None) or self.domain_share(domain)

    def set_share(self, domain: Domain, values: Mapping[str, Value], now: int,
                  vcpu: VCpu | None = None) -> None:
        """Change parameters of a domain, or of one vCPU, while it runs. ParameterError as in `tune`."""
        if vcpu is not None and not self.PER_VCPU:
            raise ParameterError(f"scheduler {self.name!r} has no parameters of single vCPUs: name a domain")
        old = self.domain_share(domain.id) if vcpu is None else self.share_of(vcpu)
        new = {**old, **checked(self.name, self.SHARES, values)}
        whom = domain.vcpus if vcpu is None else [vcpu]
        self.admit_share(whom, new)
        if vcpu is None:
            for each in domain.vcpus:
                self.shares.pop((domain.id, each.id), None)
        self.shares[domain.id, None if vcpu is None else vcpu.id] = new
        self.share_changed(whom, now)

    def admit_share(self, vcpus: Sequence[VCpu], values: Mapping[str, Value]) -> None:
        """Raise ParameterError when these vCPUs cannot have this share (a reservation beyond the pool's
        capacity).
        """

    def admit_affinity(self, vcpu: VCpu, hard: int) -> None:
        """Raise ParameterError when this vCPU cannot have this hard affinity (because of its reservation)."""

    def admit_loss(self, cores: int) -> None:
        """Raise ParameterError when the pool cannot do without these logical CPUs, a bit mask (reservations;
        that everybody still has somewhere to run has been seen to).
        """

    def share_changed(self, vcpus: Sequence[VCpu], now: int) -> None:
        """The shares of these vCPUs have changed; those not inserted yet may be among them."""

    # -- vCPUs and logical CPUs that come and go

    @abstractmethod
    def insert(self, vcpu: VCpu, now: int) -> int:
        """A new vCPU, not runnable yet; the index of the logical CPU it is placed on.
        ParameterError when there is no room for it (a reservation beyond capacity).
        """

    @abstractmethod
    def remove(self, vcpu: VCpu, now: int) -> None:
        """The vCPU leaves the pool; it neither runs nor is queued (`sleep` came before)."""

    def gain(self, core: int, now: int) -> None:
        """The pool has got this logical CPU (it is in `pool.cores`); idle so far."""

    def lose(self, core: int, now: int) -> None:
        """The pool has lost it (it is no longer in `pool.cores`). Nobody runs there; whoever is queued there
        must be queued elsewhere.
        """

    def close(self) -> None:
        """Another policy takes over: cancel every timer."""

    # -- running

    @abstractmethod
    def wake(self, vcpu: VCpu, now: int) -> None:
        """The vCPU became runnable: queue it, and poke the logical CPU that should look."""

    @abstractmethod
    def sleep(self, vcpu: VCpu, now: int) -> None:
        """A queued or running vCPU is not runnable any more: it is out of every queue from here on."""

    @abstractmethod
    def give_way(self, vcpu: VCpu, now: int) -> bool:
        """The running vCPU yields: the next `pick` there prefers others. False: nobody could take its place,
        and nothing need happen.
        """

    @abstractmethod
    def pick(self, core: int, now: int, current: VCpu | None) -> tuple[VCpu, int] | None:
        """Who runs on that logical CPU next and for how many ns (at least 1); None leaves it idle.

        `current`: who ran there and still could; it is not queued, and unless it is the answer (or has found
        another place) the policy queues it. What it ran has been told by `ran`.
        """

    def ran(self, vcpu: VCpu, ns: int, now: int) -> None:
        """The vCPU has run that long since the last time this was told."""

    def affinity_changed(self, vcpu: VCpu, now: int) -> None:
        """`vcpu.hard_affinity` or `vcpu.soft_affinity` is new. A queued vCPU must go where it may run; where
        a running one may not stay, the mechanism pokes its logical CPU, and `pick` must place it.
        """


POLICIES: Final[Registry[Policy]] = Registry("scheduler")
policy = POLICIES.enter
policy_by_name = POLICIES.find
