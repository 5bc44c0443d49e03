"""The attack guests as unprivileged guests of real Xen: what does not fail there is our mistake."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from guests import attacks
from guests.attacks.support import DONE
from tools.oracle import domu
from tools.oracle.qemu import Result

ENDLESS: Final = frozenset({"hogs"})
"""Those that do not end."""
NARROW: Final = "32"
"""How the names of 32-bit ones end: Debian's Xen does not run them."""
RUNNABLE: Final = tuple(
    name for name in attacks.ATTACKS if name not in ENDLESS and not name.endswith(NARROW)
)
TIMEOUT_S: Final = 300


def run(names: Iterable[str] = RUNNABLE) -> dict[str, Result]:
    """Run attacks one after the other in one boot of a dom0. Raises OracleError."""
    jobs = {name: domu.Job(attacks.build(name), "", attacks.ATTACKS[name]) for name in names}
    return domu.run(jobs, timeout=TIMEOUT_S)


def surprises(result: Result) -> list[str]:
    """The lines of a console that are no PASS, and what is missing."""
    lines = result.console.splitlines()
    found = [line for line in lines if not line.startswith("PASS") and line != DONE]
    return found if DONE in lines else [*found, f"it did not come to its end: {result.end.value}"]
