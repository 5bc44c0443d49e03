"""The table of guests. Sources live in one module each, imported when the guest is built."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Final, cast


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest: what it does, how many vCPUs it is for, its last line on the console when all is well."""

    name: str
    description: str
    vcpus: int
    expected: str
    cmdline: str = ""
    """What the command line is when its console is compared with real Xen's."""
    unprivileged: bool = False
    """Whether that is the console of a true domU: in dom0's place it would be answered differently."""
    width: int = 64
    """32: a PAE guest, which Debian's Xen cannot run. What it prints is held by the documented interface."""
    recorded: bool = True
    """Whether real Xen prints the same: no times, and no interface of our own."""

    def build(self) -> bytes:
        """The image, an ELF file."""
        module = import_module(f"guests.{self.name}")
        return cast(Callable[[], bytes], module.build)()


_ROWS: Final = (
    Guest("hello", "prints a line and powers off", 1, "Hello from a PV guest"),
    Guest("spin", "runs a busy loop: `rounds=N` on the command line, 1,000 by default", 1, "spin: done",
          "rounds=20"),
    Guest("traps", "takes every exception it can and prints what it saw", 1, "traps: done"),
    Guest("compat", "runs 32-bit code in user mode", 1, "compat: done"),
    Guest("events", "performs every event-channel operation and prints its results", 1, "events: done"),
    Guest("timer", "clocks, timers, blocking and polling", 1, "timer: done"),
    Guest("smp", "starts, locks, interrupts and stops every vCPU", 4, "smp: done"),
    Guest("hypercalls", "tries every hypercall with odd arguments", 1, "hypercalls: done"),
    Guest("mmufuzz", "random operations on page tables and grants: `seed=N ops=N` on the command line", 2,
          "mmufuzz: done", "seed=1000 ops=100", unprivileged=True),
    Guest("hog", "computes on every vCPU: `rounds=N` of 10 ms, by default for ever", 1, "hog: done",
          "rounds=2", recorded=False),
    Guest("sleeper", "wakes now and then and says how late: `period=us busy=blocks wakes=N`", 1,
          "sleeper: done", recorded=False),
    Guest("locks", "vCPUs share a ticket lock: `rounds=N work=blocks held=blocks`", 4, "locks: done",
          recorded=False),
    Guest("barriers", "vCPUs compute and wait for each other: `rounds=N work=blocks apart=1`", 4,
          "barriers: done", recorded=False),
    Guest("yields", "every vCPU yields: `rounds=N`", 4, "yields: done", recorded=False),
    Guest("echo", "says back each line that is typed; `q` ends", 1, "echo: bye", recorded=False),
    Guest("blockcache", "maps block 0 of xvda once others have read it; needs the block cache's hypercall", 1,
          "blockcache: done", recorded=False),
    Guest("traps32", "32-bit: takes every exception it can in ring 1 and ring 3", 1, "traps32: done",
          width=32),
    Guest("smp32", "32-bit: starts, locks, interrupts and stops every vCPU", 4, "smp32: done", width=32),
    Guest("timer32", "32-bit: events, timers, polling and upcalls", 1, "timer32: done", width=32),
    Guest("compat32", "32-bit: every structure that differs", 1, "compat32: done", width=32),
)

GUESTS: Final[dict[str, Guest]] = {guest.name: guest for guest in _ROWS}
RECORDED: Final = tuple(guest.name for guest in _ROWS if guest.width == 64 and guest.recorded)
"""Those that run on Debian's Xen too."""


def build(name: str) -> bytes:
    """The image of a guest. Raises KeyError for an unknown name."""
    return GUESTS[name].build()
