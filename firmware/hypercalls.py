"""The one hypercall table: what every number means, who handles it, and what an absent one answers.

Numbers and names are those of Xen 4.17 (`xen.h`, `hypercall-defs.c` for the availability per guest kind); one
is our own, and absent unless a domain is made for it. A subsystem registers its handlers by name; a name
without a handler answers -ENOSYS, in one place, and says so once in the hypervisor's log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from firmware.abi import errno

Handler = Callable[..., int]

CONTINUE: Final = -0x7FFF_FFFF
"""A handler's result: its argument registers were moved on; run the same call again (Xen's continuation)."""


class HypercallError(Exception):
    """Leaves a handler on an error path; `errno` is the positive error number the guest gets negated."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.name(number))
        self.errno = number


class GuestFault(HypercallError):
    """A guest pointer that its own page tables do not allow: -EFAULT."""

    def __init__(self, address: int = 0) -> None:
        super().__init__(errno.EFAULT)
        self.address = address


@dataclass(frozen=True)
class Hypercall:
    """One row: number, name, argument names in register order, and whether an unprivileged guest of each kind
    has it.
    """

    number: int
    name: str
    arguments: tuple[str, ...]
    pv64: bool = True
    pv32: bool = True
    privileged: bool = False
    compat: tuple[str, ...] = ()

    @property
    def compat_arguments(self) -> tuple[str, ...]:
        """The argument names of a 32-bit guest, which passes 64-bit values in two halves."""
        return self.compat or self.arguments


def _row(number: int, name: str, *arguments: str, pv64: bool = True, pv32: bool = True,
         privileged: bool = False, compat: str = "") -> Hypercall:
    return Hypercall(number, name, arguments, pv64, pv32, privileged, tuple(compat.split()))


ROWS: Final[tuple[Hypercall, ...]] = (
    _row(0, "set_trap_table", "traps"),
    _row(1, "mmu_update", "ureqs", "count", "pdone", "foreigndom"),
    _row(2, "set_gdt", "frame_list", "entries"),
    _row(3, "stack_switch", "ss", "esp"),
    _row(4, "set_callbacks", "event", "failsafe", "syscall",
         compat="event_selector event_address failsafe_selector failsafe_address"),
    _row(5, "fpu_taskswitch", "set"),
    _row(6, "sched_op_compat", "cmd", "arg"),
    _row(7, "platform_op", "op", privileged=True),
    _row(8, "set_debugreg", "reg", "value"),
    _row(9, "get_debugreg", "reg"),
    _row(10, "update_descriptor", "gaddr", "desc", compat="gaddr_low gaddr_high desc_low desc_high"),
    _row(12, "memory_op", "cmd", "arg"),
    _row(13, "multicall", "call_list", "nr_calls"),
    _row(14, "update_va_mapping", "va", "val", "flags", compat="va val_low val_high flags"),
    _row(15, "set_timer_op", "timeout", compat="timeout_low timeout_high"),
    _row(16, "event_channel_op_compat", "op"),
    _row(17, "xen_version", "cmd", "arg"),
    _row(18, "console_io", "cmd", "count", "buffer"),
    _row(19, "physdev_op_compat", "op"),
    _row(20, "grant_table_op", "cmd", "uop", "count"),
    _row(21, "vm_assist", "cmd", "type"),
    _row(22, "update_va_mapping_otherdomain", "va", "val", "flags", "domid",
         compat="va val_low val_high flags domid"),
    _row(23, "iret", pv64=True, pv32=True),
    _row(24, "vcpu_op", "cmd", "vcpuid", "arg"),
    _row(25, "set_segment_base", "which", "base", pv32=False),
    _row(26, "mmuext_op", "uops", "count", "pdone", "foreigndom"),
    _row(27, "xsm_op", "op"),
    _row(28, "nmi_op", "cmd", "arg"),
    _row(29, "sched_op", "cmd", "arg"),
    _row(30, "callback_op", "cmd", "arg"),
    _row(31, "xenoprof_op", "op", "arg"),
    _row(32, "event_channel_op", "cmd", "arg"),
    _row(33, "physdev_op", "cmd", "arg"),
    _row(34, "hvm_op", "op", "arg"),
    _row(35, "sysctl", "u_sysctl", privileged=True),
    _row(36, "domctl", "u_domctl", privileged=True),
    _row(37, "kexec_op", "op", "uarg", privileged=True),
    _row(38, "tmem_op", "uops"),
    _row(39, "argo_op", "cmd", "arg1", "arg2", "arg3", "arg4"),
    _row(40, "xenpmu_op", "op", "arg"),
    _row(41, "dm_op", "domid", "nr_bufs", "bufs", privileged=True),
    _row(42, "hypfs_op", "cmd", "arg1", "arg2", "arg3", "arg4", privileged=True),
    _row(48, "mca", "u_xen_mc", privileged=True),
    _row(49, "paging_domctl_cont", "u_domctl", privileged=True),
    _row(54, "block_cache_op", "cmd", "arg"),
)

LIMIT: Final = 64
"""Numbers at and above this are not hypercalls (Xen: NR_hypercalls)."""


class HypercallTable:
    """The registry: rows by number, handlers by number, counts by number."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self.rows: list[Hypercall | None] = [None] * LIMIT
        by_name: dict[str, Hypercall] = {}
        for row in ROWS:
            self.rows[row.number] = row
            by_name[row.name] = row
        self._by_name = by_name
        self.handlers: list[Handler | None] = [None] * LIMIT
        self.counts: list[int] = [0] * LIMIT
        self.native: dict[str, Callable[[], int]] = {}
        """How often a call was carried out natively, without coming here."""
        self._reported: set[int] = set()

    def register(self, name: str, handler: Handler) -> None:
        """Give the row `name` its handler; ValueError when it has one already or does not exist."""
        row = self._by_name.get(name)
        if row is None:
            raise ValueError(f"no hypercall is named {name!r}")
        if self.handlers[row.number] is not None:
            raise ValueError(f"hypercall {name!r} has a handler already")
        self.handlers[row.number] = handler

    def call(self, vcpu: Any, number: int, arguments: tuple[int, ...]) -> int:
        """Run one hypercall with as many of `arguments` as its row names; its result or negative errno."""
        if number < LIMIT:
            row = self.rows[number]
            handler = self.handlers[number]
            self.counts[number] += 1
            if handler is not None and row is not None:
                try:
                    names = row.compat_arguments if vcpu.domain.pv32 else row.arguments
                    return handler(vcpu, *arguments[: len(names)])
                except HypercallError as error:
                    return -error.errno
        return self.absent(number)

    def absent(self, number: int) -> int:
        """-ENOSYS, and one line in the log the first time."""
        if number not in self._reported and len(self._reported) < LIMIT:
            self._reported.add(number)
            row = self.rows[number] if number < LIMIT else None
            self._log(f"hypercall {number} ({row.name if row else 'unknown'}) is not there: -ENOSYS")
        return -errno.ENOSYS

    def named_counts(self) -> dict[str, int]:
        """How often each hypercall was made, by name, in number order; only those that were."""
        counts = {row.name: self.counts[row.number] for row in ROWS}
        for name, native in self.native.items():
            counts[name] += native()
        return {name: count for name, count in counts.items() if count}
