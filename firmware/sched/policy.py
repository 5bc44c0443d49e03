"""What a scheduling policy is: it decides who runs where and for how long, and nothing else.

The mechanism (`scheduler.py`) blocks, wakes, switches and accounts. A policy sees vCPUs only through these
calls and keeps whatever it likes about them in its own tables. Times are virtual ns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from firmware.domain.vcpu import VCpu


class Policy(Protocol):
    """One scheduling policy for the logical CPUs 0 to cores - 1."""

    name: str

    def add(self, vcpu: VCpu) -> int:
        """A new vCPU, not runnable yet; the index of the logical CPU it is placed on."""

    def remove(self, vcpu: VCpu) -> None:
        """The vCPU is gone for good."""

    def wake(self, vcpu: VCpu, now: int) -> int:
        """The vCPU became runnable; the index of the logical CPU that should look at its queue."""

    def sleep(self, vcpu: VCpu, now: int) -> None:
        """The vCPU is not runnable any more."""

    def give_way(self, vcpu: VCpu, now: int) -> bool:
        """The running vCPU yields; whether anyone takes its place."""

    def pick(self, core: int, now: int) -> tuple[VCpu, int] | None:
        """Who runs on that logical CPU next and for how many ns at most; None leaves it idle."""


POLICIES: dict[str, Callable[[int], Policy]] = {}
"""The registry: a policy by its name, made for a number of logical CPUs."""


def policy(name: str) -> Callable[[Callable[[int], Policy]], Callable[[int], Policy]]:
    """Register a policy class under a name."""
    def enter(make: Callable[[int], Policy]) -> Callable[[int], Policy]:
        POLICIES[name] = make
        return make
    return enter
