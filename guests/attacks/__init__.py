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
    "areas": 2,
    "races": 2,
    "hogs": 1,
}
"""Every attack and the vCPUs it is for."""


def build(name: str) -> bytes:
    """The image of an attack, or of `neighbour`. Raises ModuleNotFoundError for an unknown name."""
    return cast(Callable[[], bytes], import_module(f"guests.attacks.{name}").build)()
