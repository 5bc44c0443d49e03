"""The trace events of scheduling, under Xen's numbers and with its fields (trace.h, xentrace's formats)."""

from __future__ import annotations

from typing import Final

from firmware.abi import trace as abi
from firmware.trace import event

RUNSTATE_CHANGE: Final = event(abi.TRC_SCHED_RUNSTATE_CHANGE, "SCHED_RUNSTATE_CHANGE", "dom", "vcpu", "old",
                               "new")
DOM_ADD: Final = event(abi.TRC_SCHED_DOM_ADD, "SCHED_DOM_ADD", "dom", "vcpu")
DOM_REM: Final = event(abi.TRC_SCHED_DOM_REM, "SCHED_DOM_REM", "dom", "vcpu")
SLEEP: Final = event(abi.TRC_SCHED_SLEEP, "SCHED_SLEEP", "dom", "vcpu")
WAKE: Final = event(abi.TRC_SCHED_WAKE, "SCHED_WAKE", "dom", "vcpu")
YIELD: Final = event(abi.TRC_SCHED_YIELD, "SCHED_YIELD", "dom", "vcpu")
BLOCK: Final = event(abi.TRC_SCHED_BLOCK, "SCHED_BLOCK", "dom", "vcpu")
ADJDOM: Final = event(abi.TRC_SCHED_ADJDOM, "SCHED_ADJDOM", "dom")
SWITCH: Final = event(abi.TRC_SCHED_SWITCH, "SCHED_SWITCH", "old_dom", "old_vcpu", "new_dom", "new_vcpu")
SWITCH_INFPREV: Final = event(abi.TRC_SCHED_SWITCH_INFPREV, "SCHED_SWITCH_INFPREV", "dom", "vcpu", "runtime")
SWITCH_INFNEXT: Final = event(abi.TRC_SCHED_SWITCH_INFNEXT, "SCHED_SWITCH_INFNEXT", "dom", "vcpu", "waited",
                              "slice")
SWITCH_INFCONT: Final = event(abi.TRC_SCHED_SWITCH_INFCONT, "SCHED_SWITCH_INFCONT", "dom", "vcpu", "runtime",
                              "slice")
IDLE: Final = 0x7FFF
"""DOMID_IDLE: who "runs" where nobody does."""
