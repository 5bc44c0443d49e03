"""Guests that attack the hypervisor and their neighbours, one a class of historic hole.

They run here and, unchanged, as unprivileged guests of real Xen 4.17, and print the same there.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final, cast

ATTACKS: Final[dict[str, int]] = {
    "linear": 1,
    "entries": 1,
    "descriptors": 1,
    "pins": 1,
    "stores": 1,
    "batches": 1,
    "returns": 1,
    "edges": 1,
    "rings": 1,
    "strangers": 1,
    "grants": 1,
    "versions": 1,
    "channels": 1,
    "xenstore": 1,
    "tables32": 1,
    "descriptors32": 1,
    "returns32": 1,
    "areas": 2,
    "races": 2,
    "hogs": 1,
}
"""Every attack and the vCPUs it is for."""
PAIRS: Final = (("giver", "taker"),)
"""Attacks of two domains, to be created in this order, one right after the other."""
FALLS: Final = ("falls", "falls32")
"""Attacks that end their guest, in as many ways as they have `KINDS`; the command line is a way's letter."""


def build(name: str) -> bytes:
    """The image of an attack, or of `neighbour`. Raises ModuleNotFoundError for an unknown name."""
    return cast(Callable[[], bytes], import_module(f"guests.attacks.{name}").build)()


def ways(name: str) -> str:
    """The letters for the command line of one of FALLS."""
    kinds = import_module(f"guests.attacks.{name}").KINDS
    return "".join(chr(ord("a") + number) for number in range(len(kinds)))
