"""sched.h: yield, block, poll, shutdown and the domain watchdog."""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, ptr, s32, u16, u32, u64

SCHEDOP_yield: Final = 0
SCHEDOP_block: Final = 1
SCHEDOP_shutdown: Final = 2
SCHEDOP_poll: Final = 3
SCHEDOP_remote_shutdown: Final = 4
SCHEDOP_shutdown_code: Final = 5
SCHEDOP_watchdog: Final = 6
SCHEDOP_pin_override: Final = 7

SHUTDOWN_poweroff: Final = 0
SHUTDOWN_reboot: Final = 1
SHUTDOWN_suspend: Final = 2
SHUTDOWN_crash: Final = 3
SHUTDOWN_watchdog: Final = 4
SHUTDOWN_soft_reset: Final = 5
SHUTDOWN_MAX: Final = 5

sched_shutdown: Final = Layout("sched_shutdown", [("reason", u32)])

sched_poll: Final = Layout("sched_poll", [("ports", ptr), ("nr_ports", u32), ("timeout", u64)])

sched_remote_shutdown: Final = Layout("sched_remote_shutdown", [("domain_id", u16), ("reason", u32)])

sched_watchdog: Final = Layout("sched_watchdog", [("id", u32), ("timeout", u32)])

sched_pin_override: Final = Layout("sched_pin_override", [("pcpu", s32)])
