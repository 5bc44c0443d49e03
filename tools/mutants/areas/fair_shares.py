"""Fair shares and deadlines: placement, stealing, credit, caps, reservations."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

PLACEMENT: Final = "firmware/sched/placement.py"
PERCPU: Final = "firmware/sched/percpu.py"
QUEUE: Final = "firmware/sched/runqueue.py"
CREDIT: Final = "firmware/sched/credit.py"
CREDIT2: Final = "firmware/sched/credit2.py"
GROUPS: Final = "firmware/sched/groups.py"
CAPS: Final = "firmware/sched/caps.py"
RTDS: Final = "firmware/sched/rtds.py"
RESERVATIONS: Final = "firmware/sched/reservations.py"
CONTROL: Final = "firmware/sched/control.py"
SCHEDULER: Final = "firmware/sched/scheduler.py"

AREA: Final = Area(
    "fair shares",
    (
        "tests/sched/test_runqueue.py",
        "tests/sched/test_shares.py",
        "tests/sched/test_rtds.py",
        "tests/sched/test_placement.py",
        "tests/sched/test_liveness.py",
        "tests/sched/test_replacing.py",
        "tests/sched/test_costs.py",
    ),
    (
        Mutant(
            "an idle CPU must be allowed",
            PLACEMENT,
            "allowed = idle & vcpu.hard_affinity\n        if not allowed:\n"
            "            return None\n        preferred = allowed & vcpu.soft_affinity\n"
            "        if preferred:",
            "allowed = idle\n        if not allowed:\n            return None\n"
            "        preferred = allowed & vcpu.soft_affinity\n        if preferred:",
        ),
        Mutant(
            "siblings' queues come first",
            PLACEMENT,
            "return siblings & ~(1 << cpu), socket & ~siblings,",
            "return socket & ~siblings, siblings & ~(1 << cpu),",
        ),
        Mutant(
            "a first place is allowed", PLACEMENT, "allowed = cpus & vcpu.hard_affinity", "allowed = cpus"
        ),
        Mutant(
            "soft affinity calls back",
            PLACEMENT,
            "if not vcpu.soft_affinity >> core & 1:\n            if preferred:",
            "if not vcpu.soft_affinity >> core & 1:\n            if False:",
        ),
        Mutant(
            "a queue gives only whom a CPU may run",
            QUEUE,
            "(lane.hard & lane.soft if soft else lane.hard) >> cpu & 1",
            "True",
        ),
        Mutant(
            "equals go in the order they came",
            QUEUE,
            "-self._queued if front else self._queued",
            "-self._queued",
        ),
        Mutant(
            "whoever left is not found",
            QUEUE,
            "if entries.get(head[2]) is head:\n                return head",
            "return head",
        ),
        Mutant(
            "an idle CPU is poked",
            PERCPU,
            "self.push(vcpu, self.key(vcpu))\n                pool.poke(target, now)",
            "self.push(vcpu, self.key(vcpu))",
        ),
        Mutant(
            "credit steals only above its own",
            PERCPU,
            "found[0] >= self._limit or not self.may",
            "not self.may",
        ),
        Mutant(
            "somebody leaves a busy sibling",
            PERCPU,
            "target = pool.placement.better(current, core, idle)",
            "target = None",
        ),
        Mutant(
            "somebody leaves to those who cannot",
            PERCPU,
            "if target is None and self.waiting >> core & 1:",
            "if False:",
        ),
        Mutant("a hot vCPU stays", CREDIT, "return not self._hot or", "return True or"),
        Mutant(
            "credit goes by weight",
            CREDIT,
            "part = rest * account.weight // weights",
            "part = rest // max(1, len(left))",
        ),
        Mutant(
            "who has used their credit up is behind",
            CREDIT,
            "if account.credit <= 0:\n            account.priority = OVER",
            "if False:\n            pass",
        ),
        Mutant("a boost ends", CREDIT, "if account.boosted >= self._tick:", "if False:"),
        Mutant("whoever wakes takes part", CREDIT, "if not account.active:", "if False:"),
        Mutant("debts are bounded", CREDIT, "credit if credit > debt else debt", "credit"),
        Mutant("a rate limit holds", CREDIT, "if not yields and now - since < self._limit_ns:", "if False:"),
        Mutant(
            "nobody is charged less for being light",
            CREDIT2,
            "unit.spent + ns * group.heaviest // unit.weight",
            "unit.spent + ns",
        ),
        Mutant("run queues are balanced", CREDIT2, "if len(self._groups) > 1:", "if False:"),
        Mutant("who is sent is run there", CREDIT2, "if target in self._meant:", "if True:"),
        Mutant("credit is taken along", CREDIT2, "unit.spent = group.given - credit", "unit.spent = 0"),
        Mutant(
            "loads are for each CPU",
            GROUPS,
            "self.heaviest = max(self.weights)\n        self.total += unit.weight",
            "self.heaviest = max(self.weights)",
        ),
        Mutant("a cap is used up", CAPS, "budget.left += reserved - ns\n            if", "if"),
        Mutant(
            "a used-up cap parks",
            CAPS,
            "if budget is None or budget.left > budget.nothing:",
            "if True:",
        ),
        Mutant(
            "overruns are owed",
            CAPS,
            "budget.left = min(budget.left + periods * budget.total,",
            "budget.left = min(budget.total,",
        ),
        Mutant("unused caps are gone", CAPS, "budget.total + budget.nothing)", "1 << 62)"),
        Mutant(
            "a reservation is refused when nothing is left",
            RESERVATIONS,
            "else:\n                return None",
            "else:\n                places[vcpu] = next(iter(free))",
        ),
        Mutant(
            "densities are rounded up", RESERVATIONS, "-(-need * WHOLE // period)", "need * WHOLE // period"
        ),
        Mutant(
            "the overhead is reserved",
            RTDS,
            "return density(budget + overhead, period)",
            "return density(budget, period)",
        ),
        Mutant(
            "the earliest deadline first",
            RTDS,
            "return server.level << LEVEL | server.deadline",
            "return server.level << LEVEL",
        ),
        Mutant(
            "a late wake begins a new period",
            RTDS,
            "if self._dense(server, now):\n            server.renew(now + server.period)\n"
            "        self._expect(vcpu, server)\n        self.enter",
            "if now >= server.deadline:\n"
            "            server.renew(now + server.period)\n"
            "        self._expect(vcpu, server)\n        self.enter",
        ),
        Mutant("budgets are used up", RTDS, "server.left -= ns\n", "pass\n"),
        Mutant("guests go before extra time only", RTDS, "0 if self.home[vcpu] == core else GUEST", "0"),
        Mutant(
            "time after the deadline is the next period's",
            RTDS,
            "self._charge(server, ns - late)",
            "self._charge(server, ns)",
        ),
        Mutant(
            "an affinity can be refused", CONTROL, "pool.policy.admit_affinity(vcpu, new_hard)\n", "pass\n"
        ),
        Mutant("the loss of a CPU can be refused", CONTROL, "pool.policy.admit_loss(going)", "pass"),
        Mutant(
            "a turn that did not come to be gives back what it reserved",
            CAPS,
            "budget.left += self._reserved.pop(vcpu, 0)",
            "pass",
        ),
        Mutant(
            "only what has a meaning is carried on",
            CONTROL,
            "if alike or (name in CARRIED and name in own)",
            "if name in own",
        ),
        Mutant("who yields pays", SCHEDULER, "core.charge(self.costs.switch)", "pass"),
        Mutant("nobody pays twice", SCHEDULER, "cost = 0 if self._paid >> core.index & 1 else ", "cost = "),
        Mutant("single vCPUs keep their shares", CONTROL, "if single is not None:", "if False:"),
    ),
)
