"""What is known of a guest at the moment it crashed, as plain data for a report."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RecentCall:
    """One hypercall made shortly before: number, its first two arguments, and its result (signed), None for
    the one that ended the guest.
    """

    number: int
    first: int
    second: int
    result: int | None


@dataclass(frozen=True)
class CrashInfo:
    """A crashed vCPU: why, its registers (64-bit values by lower-case name), the bytes at RIP and words at
    RSP that its page tables let one read, its last hypercalls (oldest first), and the virtual time in ns.
    """

    reason: str
    vcpu: int
    virtual_ns: int
    in_kernel: bool
    registers: dict[str, int]
    code: bytes
    stack: tuple[int, ...]
    recent_calls: tuple[RecentCall, ...] = field(default=())
    long_mode: bool = True
