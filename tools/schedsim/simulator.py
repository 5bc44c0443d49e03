"""The simulator: the firmware's scheduling mechanism and its policies on a machine without processors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final, cast

from firmware.domain.domain import Domain, DomainState
from firmware.domain.vcpu import ANY_CPU, VCpu
from firmware.memory.shootdown import Shootdown
from firmware.sched import policies
from firmware.sched.parameters import Value
from firmware.sched.policy import Policy
from firmware.sched.scheduler import Scheduler, SwitchCosts
from firmware.trace import Trace
from machine.machine import DEFAULT_QUANTUM_NS, Machine
from machine.topology import Topology
from tools.schedsim.commands import Command, Done
from tools.schedsim.core import SimCore
from tools.schedsim.machine import PARTS, SMT_FACTOR, SimMachine
from tools.schedsim.result import Idled, Log, Ran, Waited
from tools.schedsim.task import Task, Workload

POLICIES: Final = tuple(policies.__all__)
HASH_FACTOR: Final = 0x9E37_79B9_7F4A_7C15
HASH_MASK: Final = (1 << 64) - 1


class NoTlbs:
    """The shootdown of a machine that has no TLBs."""

    def enter(self, core: object, owner: object) -> None:
        """Nothing is cached."""

    def leave(self, core: object) -> None:
        """Nothing was."""


class Simulator:
    """`scheduler`, `clock`, `machine`, `tasks` (by vCPU) and, with `log`, who ran where and when.

    `hash`: of every change of who runs where and when. `bare`: neither switches nor migrations cost anything.
    """

    def __init__(self, topology: Topology | str = "1x1x1", policy: str = "rrobin",
                 settings: Mapping[str, Value] | None = None, *, seed: int = 0, log: bool = False,
                 bare: bool = False, costs: SwitchCosts | None = None, trace: Trace | None = None,
                 quantum_ns: int = DEFAULT_QUANTUM_NS, smt_factor: float = SMT_FACTOR) -> None:
        self.seed = seed
        self.topology = topology if isinstance(topology, Topology) else Topology.parse(topology)
        self.machine = SimMachine(self.topology, quantum_ns, smt_factor)
        self.clock = self.machine.clock
        if bare:
            costs = SwitchCosts(0, (0, 0, 0, 0))
        self.scheduler = Scheduler(cast(Machine, self.machine), cast(Shootdown, NoTlbs()), policy, settings,
                                   costs=costs, trace=trace)
        self.scheduler.resume = lambda vcpu, core: None
        self.scheduler.ticking = lambda vcpu: None
        self.tasks: dict[VCpu, Task] = {}
        self.domains: dict[int, Domain] = {}
        self.hash = 0
        self.log = Log([], [], []) if log else None
        self._idle_from: dict[int, tuple[int, tuple[VCpu, ...]]] = {}
        self.machine.dispatch = self._dispatch
        self.machine.execute = self._execute

    @property
    def policy(self) -> Policy:
        """The policy of pool 0."""
        return self.scheduler.pools[0].policy

    def domain(self, workloads: Sequence[Workload], share: Mapping[str, Value] | None = None, *,
               pool: int = 0, hard: int = ANY_CPU, soft: int = ANY_CPU, start: bool = True) -> list[Task]:
        """A domain with a vCPU for each workload, all of them up at once. ParameterError when its share or
        its vCPUs cannot be had; nothing of it is there then.
        """
        number = len(self.domains) + 1
        domain = Domain(number, f"d{number}", pv32=False, handle=bytes(16), image=cast(Any, None))
        domain.memory = cast(Any, SimpleNamespace(cores=[]))
        domain.state = DomainState.RUNNING
        policy = self.scheduler.pools[pool].policy
        if share:
            policy.set_share(domain, share, self.scheduler.now())
        made: list[Task] = []
        try:
            for index, workload in enumerate(workloads):
                vcpu = VCpu(domain, index)
                vcpu.period_ns = 0
                vcpu.hard_affinity, vcpu.soft_affinity = hard, soft
                domain.vcpus.append(vcpu)
                self.scheduler.add(vcpu, pool)
                made.append(Task(self, vcpu, workload))
        except Exception:
            for task in made:
                self.scheduler.remove(task.vcpu)
            policy.forget_domain(number)
            raise
        self.domains[number] = domain
        for task in made:
            self.tasks[task.vcpu] = task
        if start:
            for task in made:
                self.start(task)
        return made

    def start(self, task: Task) -> None:
        """Bring a vCPU up."""
        task.waiting = self.scheduler.now()
        self.scheduler.bring_up(task.vcpu)

    def at(self, when: int, what: Callable[[], None]) -> None:
        """Have something done at a time."""
        self.clock.at(when, lambda _: what())

    def run(self, ns: int, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass. False: nothing can ever happen any more."""
        alive = self.machine.run(self.clock.now + ns, until)
        self._close_log()
        return alive

    def times(self, task: Task) -> list[int]:
        """Ns in each run state so far."""
        return self.scheduler.runstate_info(task.vcpu)[2]

    # -- what the loop asks

    def _dispatch(self, core: SimCore) -> int | None:
        before = core.time
        granted = self.scheduler.dispatch(cast(Any, core))
        now_runs = None if granted is None else core.current
        if now_runs is not core.ran:
            self._note(core, before, cast("VCpu | None", now_runs))
        elif now_runs is None and core.index not in self._idle_from:
            self._fell_idle(core, before)
        return granted

    def _note(self, core: SimCore, before: int, vcpu: VCpu | None) -> None:
        index, now, log = core.index, core.time, self.log
        was = cast("VCpu | None", core.ran)
        if was is not None:
            if log is not None:
                log.runs.append(Ran(was, index, core.ran_since, before))
            if not was.pause_flags and not was.scheduled:
                self.tasks[was].waiting = before
        elif index in self._idle_from:
            since, waiting = self._idle_from.pop(index)
            if log is not None and now > since:
                log.idles.append(Idled(index, since, now, waiting))
        core.ran, core.ran_since = vcpu, now
        if vcpu is None:
            self._fell_idle(core, before)
            key = 0
        else:
            task = self.tasks[vcpu]
            if log is not None and task.waiting is not None:
                log.waits.append(Waited(vcpu, index, task.waiting, now))
            task.waiting = None
            if task.woken is not None:
                task.latencies.append(now - task.woken)
                task.woken = None
            key = vcpu.domain.id << 16 | vcpu.id + 1
        self.hash = ((self.hash ^ now ^ key << 20 ^ index << 52) * HASH_FACTOR + key) & HASH_MASK

    def _fell_idle(self, core: SimCore, since: int) -> None:
        waiting: tuple[VCpu, ...] = ()
        if self.log is not None:
            pool = self.scheduler.pool_of(core.index)
            waiting = tuple(
                vcpu for vcpu in (pool.vcpus if pool else ())
                if not vcpu.pause_flags and not vcpu.scheduled and vcpu.hard_affinity >> core.index & 1
            )
        self._idle_from[core.index] = since, waiting

    def _close_log(self) -> None:
        """Close what is open, so that the log covers all time up to now."""
        log = self.log
        if log is None:
            return
        for core in self.machine.cores:
            if isinstance(core.ran, VCpu):
                if core.time > core.ran_since:
                    log.runs.append(Ran(core.ran, core.index, core.ran_since, core.time))
                    core.ran_since = core.time
            elif core.index in self._idle_from:
                since, waiting = self._idle_from[core.index]
                if self.clock.now > since:
                    log.idles.append(Idled(core.index, since, self.clock.now, waiting))
                    self._idle_from[core.index] = self.clock.now, waiting

    def _execute(self, core: SimCore) -> None:
        task = self.tasks[cast(VCpu, core.current)]
        machine = self.machine
        speed = PARTS
        for sibling in core.siblings:
            if sibling.busy:
                speed = machine.shared_speed
                break
        if task.woken is not None:
            task.latencies.append(core.time - task.woken)
            task.woken = task.waiting = None
        while core.time < core.deadline:
            if task.left:
                room = core.deadline - core.time
                needed = task.left if speed == PARTS else -(-task.left * PARTS // speed)
                if needed <= room:
                    core.time += needed
                    task.work += task.left
                    task.left = 0
                else:
                    done = room * speed // PARTS
                    core.time += room
                    task.work += done
                    task.left -= done
            elif task.spin is not None:
                if not self._spin(task, core):
                    return
            elif not self._step(task, core):
                return

    def _spin(self, task: Task, core: SimCore) -> bool:
        """Whether there is more to do in this slice."""
        assert task.spin is not None
        if task.spin():
            task.spin = None
            core.spinning = False
            return True
        core.spinning = True
        end = self.machine.spin_until(core)
        if end > core.time:
            task.spun += end - core.time
            core.time = end
        return False

    def _step(self, task: Task, core: SimCore) -> bool:
        """The workload's next command. False: others must get as far as we are first."""
        command = task.ahead
        if command is None:
            command = next(task.steps, None) or DONE
        if command.ordered:
            behind = self.machine.behind
            if behind is not None and behind < core.time:
                task.ahead = command
                return False
            task.ahead = None
        command.begin(task, core)
        return True


DONE: Final[Command] = Done()
