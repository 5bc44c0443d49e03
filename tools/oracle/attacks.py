"""The attack guests as unprivileged guests of real Xen: what does not fail there is our mistake."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from guests import attacks
from guests.attacks.falls import BEGINS
from guests.attacks.support import DONE
from tools.oracle import domu
from tools.oracle.qemu import End, Result

ENDLESS: Final = frozenset({"hogs"})
"""Those that do not end."""
NARROW: Final = "32"
"""How the names of 32-bit ones end: Debian's Xen does not run them."""
RUNNABLE: Final = (
    *(name for name in attacks.ATTACKS if name not in ENDLESS and not name.endswith(NARROW)),
    *(second for _, second in attacks.PAIRS), *(name for name in attacks.FALLS if not name.endswith(NARROW)),
)
"""Names for `run`; the second of a pair stands for both."""
TIMEOUT_S: Final = 300


def jobs(name: str) -> dict[str, domu.Job]:
    """What to run for an attack: one guest, two at once, or one for each way to fall. KeyError."""
    image = attacks.build(name)
    if name in attacks.FALLS:
        return {f"{name}-{way}": domu.Job(image, way) for way in attacks.ways(name)}
    firsts = {second: first for first, second in attacks.PAIRS}
    if name in firsts:
        return {name: domu.Job(image, companion=attacks.build(firsts[name]))}
    return {name: domu.Job(image, "", attacks.ATTACKS[name])}


def run(names: Iterable[str] = RUNNABLE) -> dict[str, Result]:
    """Run attacks one after the other in one boot of a dom0. Raises OracleError."""
    wanted: dict[str, domu.Job] = {}
    for name in names:
        wanted.update(jobs(name))
    return domu.run(wanted, timeout=TIMEOUT_S)


def surprises(name: str, result: Result) -> list[str]:
    """What an attack of that name should not have printed, and how it should not have ended."""
    lines = result.console.splitlines()
    if name.partition("-")[0] in attacks.FALLS:
        fell = result.end is End.CRASH and lines == [BEGINS]
        return [] if fell else [*lines, f"it did not fall: {result.end.value}"]
    found = [line for line in lines if not line.startswith("PASS") and line != DONE]
    return found if DONE in lines else [*found, f"it did not come to its end: {result.end.value}"]
