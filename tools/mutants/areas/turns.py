"""Turns by virtual time, by deadline and by gang: BVT, Atropos, the three forms of gangs."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

BVT: Final = "firmware/sched/bvt.py"
ATROPOS: Final = "firmware/sched/atropos.py"
STRICT: Final = "firmware/sched/strict.py"
RELAXED: Final = "firmware/sched/relaxed.py"
GANG: Final = "firmware/sched/gang.py"
BALANCE: Final = "firmware/sched/balance.py"
MATRIX: Final = "firmware/sched/matrix.py"

AREA: Final = Area(
    "turns",
    (
        "tests/sched/test_bvt.py",
        "tests/sched/test_atropos.py",
        "tests/sched/test_gang.py",
        "tests/sched/test_operator.py",
        "tests/sched/test_idling.py",
        "tests/sched/test_replacing.py",
    ),
    (
        Mutant(
            "sleep saves nothing up",
            BVT,
            "if account.avt < self._svt[home]:",
            "if account.avt < 0:",
        ),
        Mutant(
            "warp has a limit",
            BVT,
            "        if account.unwarp:\n            account.warped = False\n",
            "        if False:\n            account.warped = False\n",
        ),
        Mutant(
            "an instant of sleep does not renew the limit",
            BVT,
            "spared = max(0, now - account.left) * account.limit // account.unwarp",
            "spared = account.limit if now > account.left else 0",
        ),
        Mutant(
            "who moves keeps its lead on the SVT, and no more",
            BVT,
            "account.avt = self._svt[home] + max(0, account.avt - self._svt[old])",
            "pass",
        ),
        Mutant(
            "a vCPU that may not stay leaves (BVT)",
            BVT,
            "if not current.hard_affinity >> core & 1:",
            "if False:",
        ),
        Mutant(
            "no more than the capacity is reserved",
            ATROPOS,
            "if taken + part <= self._capacity:",
            "if taken + part <= 2 * self._capacity:",
        ),
        Mutant(
            "a changed share is admitted",
            ATROPOS,
            "if core == NOWHERE or load[core] + part > self._capacity or not",
            "if core == NOWHERE or not",
        ),
        Mutant(
            "who wakes with too little time left begins anew",
            ATROPOS,
            "elif account.remain * account.full_period > left * account.full_slice:",
            "elif False:",
        ),
        Mutant(
            "a slice is a cap without extra time",
            ATROPOS,
            "return not account.depleted or account.xtra or account.reserved == NOWHERE",
            "return True",
        ),
        Mutant(
            "extra time before the period began is not charged to it",
            ATROPOS,
            "account.spared = max(0, now - account.since)",
            "account.spared = 0",
        ),
        Mutant(
            "a guarantee holds only where it was given",
            ATROPOS,
            "return account.deadline if not account.depleted and account.reserved == core else EXTRA",
            "return EXTRA if account.depleted or account.reserved == core else account.deadline",
        ),
        Mutant(
            "a timer of one asleep is stopped",
            ATROPOS,
            "        account.awake = False\n        self._stop_timer(account)\n",
            "        account.awake = False\n",
        ),
        Mutant(
            "a plan to come is not put off",
            STRICT,
            "start = plans.pop().start  #",
            "plans.pop()  #",
        ),
        Mutant(
            "a seat's affinity is looked at again",
            STRICT,
            "and bool(vcpu.hard_affinity >> core & 1))",
            ")",
        ),
        Mutant(
            "who is late from the last seat is waited for",
            STRICT,
            "(vcpu is current or not vcpu.scheduled)",
            "True",
        ),
        Mutant(
            "an affinity is a seat's too",
            MATRIX,
            "allowed = [column for column in columns if vcpu.hard_affinity >> column & 1]",
            "allowed = list(columns)",
        ),
        Mutant(
            "who leads too far stops",
            RELAXED,
            "self.lead(vcpu, now) < self._progress[vcpu].threshold",
            "True",
        ),
        Mutant(
            "turns end before the lead is too large",
            RELAXED,
            "return min(TICK, max(LOOK, self._progress[vcpu].threshold - self.lead(vcpu, now)))",
            "return TICK",
        ),
        Mutant(
            "who wakes is level with the slowest",
            RELAXED,
            "progress.waited = max(progress.waited, self._most(vcpu, now))",
            "pass",
        ),
        Mutant(
            "siblings that can run have homes of their own",
            BALANCE,
            "if other is not vcpu and not other.pause_flags and other in home:",
            "if False:",
        ),
        Mutant(
            "the first plan begins at once",
            STRICT,
            "if not any(plan.rows for plan in plans) or self._all_idle():",
            "if not plans or self.pool.idle == self.pool.mask:",
        ),
        Mutant("another form hears of those that run", GANG, "made.tuned(now)", "pass"),
        Mutant("a form that ends looks no more", RELAXED, "event.cancel()", "pass"),
    ),
)
