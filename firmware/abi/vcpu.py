"""vcpu.h: bring-up, run states, timers and shared areas of vCPUs."""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, array, ptr, s32, u32, u64

VCPUOP_initialise: Final = 0
VCPUOP_up: Final = 1
VCPUOP_down: Final = 2
VCPUOP_is_up: Final = 3
VCPUOP_get_runstate_info: Final = 4

# Set in state_entry_time while Xen updates the guest's copy.
XEN_RUNSTATE_UPDATE: Final = 1 << 63

RUNSTATE_running: Final = 0
RUNSTATE_runnable: Final = 1
RUNSTATE_blocked: Final = 2
RUNSTATE_offline: Final = 3

VCPUOP_register_runstate_memory_area: Final = 5
VCPUOP_set_periodic_timer: Final = 6
VCPUOP_stop_periodic_timer: Final = 7
VCPUOP_set_singleshot_timer: Final = 8
VCPUOP_stop_singleshot_timer: Final = 9

VCPU_SSHOTTMR_future: Final = 1 << 0

VCPUOP_register_vcpu_info: Final = 10
VCPUOP_send_nmi: Final = 11
VCPUOP_get_physid: Final = 12
VCPUOP_register_vcpu_time_memory_area: Final = 13

vcpu_runstate_info: Final = Layout("vcpu_runstate_info", [
    ("state", s32), ("state_entry_time", u64), ("time", array(u64, 4)),
])

# addr as the header's handle h; the union is 8 bytes for every guest.
vcpu_register_runstate_memory_area: Final = Layout(
    "vcpu_register_runstate_memory_area",
    [
        ("addr", ptr),
    ],
    [
        ("addr", ptr), ("pad", u32),
    ],
)

vcpu_set_periodic_timer: Final = Layout("vcpu_set_periodic_timer", [("period_ns", u64)])

vcpu_set_singleshot_timer: Final = Layout("vcpu_set_singleshot_timer", [
    ("timeout_abs_ns", u64), ("flags", u32),
])

vcpu_register_vcpu_info: Final = Layout("vcpu_register_vcpu_info", [
    ("mfn", u64), ("offset", u32), ("rsvd", u32),
])

vcpu_get_physid: Final = Layout("vcpu_get_physid", [("phys_id", u64)])

vcpu_register_time_memory_area: Final = Layout(
    "vcpu_register_time_memory_area",
    [
        ("addr", ptr),
    ],
    [
        ("addr", ptr), ("pad", u32),
    ],
)
