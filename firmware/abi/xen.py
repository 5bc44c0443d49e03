"""xen.h: hypercall numbers, virtual interrupts, page-table operations, and what Xen and a guest share.

A name with two leading underscores cannot be written inside a class body (Python would mangle it);
`HYPERCALL_NUMBERS` maps the plain hypercall name to its number.
"""
from __future__ import annotations

from typing import Final

from firmware.abi.arch_x86 import XEN_LEGACY_MAX_VCPUS, arch_shared_info, arch_vcpu_info
from firmware.abi.layout import Layout, array, s8, u8, u32, u64, ulong

__HYPERVISOR_set_trap_table: Final = 0
__HYPERVISOR_mmu_update: Final = 1
__HYPERVISOR_set_gdt: Final = 2
__HYPERVISOR_stack_switch: Final = 3
__HYPERVISOR_set_callbacks: Final = 4
__HYPERVISOR_fpu_taskswitch: Final = 5
__HYPERVISOR_sched_op_compat: Final = 6
__HYPERVISOR_platform_op: Final = 7
__HYPERVISOR_set_debugreg: Final = 8
__HYPERVISOR_get_debugreg: Final = 9
__HYPERVISOR_update_descriptor: Final = 10
__HYPERVISOR_memory_op: Final = 12
__HYPERVISOR_multicall: Final = 13
__HYPERVISOR_update_va_mapping: Final = 14
__HYPERVISOR_set_timer_op: Final = 15
__HYPERVISOR_event_channel_op_compat: Final = 16
__HYPERVISOR_xen_version: Final = 17
__HYPERVISOR_console_io: Final = 18
__HYPERVISOR_physdev_op_compat: Final = 19
__HYPERVISOR_grant_table_op: Final = 20
__HYPERVISOR_vm_assist: Final = 21
__HYPERVISOR_update_va_mapping_otherdomain: Final = 22
__HYPERVISOR_iret: Final = 23
__HYPERVISOR_vcpu_op: Final = 24
__HYPERVISOR_set_segment_base: Final = 25
__HYPERVISOR_mmuext_op: Final = 26
__HYPERVISOR_xsm_op: Final = 27
__HYPERVISOR_nmi_op: Final = 28
__HYPERVISOR_sched_op: Final = 29
__HYPERVISOR_callback_op: Final = 30
__HYPERVISOR_xenoprof_op: Final = 31
__HYPERVISOR_event_channel_op: Final = 32
__HYPERVISOR_physdev_op: Final = 33
__HYPERVISOR_hvm_op: Final = 34
__HYPERVISOR_sysctl: Final = 35
__HYPERVISOR_domctl: Final = 36
__HYPERVISOR_kexec_op: Final = 37
__HYPERVISOR_tmem_op: Final = 38
__HYPERVISOR_argo_op: Final = 39
__HYPERVISOR_xenpmu_op: Final = 40
__HYPERVISOR_dm_op: Final = 41
__HYPERVISOR_hypfs_op: Final = 42
__HYPERVISOR_mca: Final = 48
__HYPERVISOR_arch_0: Final = 48
__HYPERVISOR_arch_1: Final = 49
__HYPERVISOR_arch_2: Final = 50
__HYPERVISOR_arch_3: Final = 51
__HYPERVISOR_arch_4: Final = 52
__HYPERVISOR_arch_5: Final = 53
__HYPERVISOR_arch_6: Final = 54
__HYPERVISOR_arch_7: Final = 55

# Virtual interrupts: TIMER, DEBUG, XENOPROF and XENPMU are per vCPU, the others global.
VIRQ_TIMER: Final = 0
VIRQ_DEBUG: Final = 1
VIRQ_CONSOLE: Final = 2
VIRQ_DOM_EXC: Final = 3
VIRQ_TBUF: Final = 4
VIRQ_DEBUGGER: Final = 6
VIRQ_XENOPROF: Final = 7
VIRQ_CON_RING: Final = 8
VIRQ_PCPU_STATE: Final = 9
VIRQ_MEM_EVENT: Final = 10
VIRQ_ARGO: Final = 11
VIRQ_ENOMEM: Final = 12
VIRQ_XENPMU: Final = 13
VIRQ_ARCH_0: Final = 16
VIRQ_ARCH_1: Final = 17
VIRQ_ARCH_2: Final = 18
VIRQ_ARCH_3: Final = 19
VIRQ_ARCH_4: Final = 20
VIRQ_ARCH_5: Final = 21
VIRQ_ARCH_6: Final = 22
VIRQ_ARCH_7: Final = 23

NR_VIRQS: Final = 24

# The low two bits of mmu_update.ptr.
MMU_NORMAL_PT_UPDATE: Final = 0
MMU_MACHPHYS_UPDATE: Final = 1
MMU_PT_UPDATE_PRESERVE_AD: Final = 2
MMU_PT_UPDATE_NO_TRANSLATE: Final = 3

MMUEXT_PIN_L1_TABLE: Final = 0
MMUEXT_PIN_L2_TABLE: Final = 1
MMUEXT_PIN_L3_TABLE: Final = 2
MMUEXT_PIN_L4_TABLE: Final = 3
MMUEXT_UNPIN_TABLE: Final = 4
MMUEXT_NEW_BASEPTR: Final = 5
MMUEXT_TLB_FLUSH_LOCAL: Final = 6
MMUEXT_INVLPG_LOCAL: Final = 7
MMUEXT_TLB_FLUSH_MULTI: Final = 8
MMUEXT_INVLPG_MULTI: Final = 9
MMUEXT_TLB_FLUSH_ALL: Final = 10
MMUEXT_INVLPG_ALL: Final = 11
MMUEXT_FLUSH_CACHE: Final = 12
MMUEXT_SET_LDT: Final = 13
MMUEXT_NEW_USER_BASEPTR: Final = 15
MMUEXT_CLEAR_PAGE: Final = 16
MMUEXT_COPY_PAGE: Final = 17
MMUEXT_FLUSH_CACHE_GLOBAL: Final = 18
MMUEXT_MARK_SUPER: Final = 19
MMUEXT_UNMARK_SUPER: Final = 20

# Flags of update_va_mapping: a kind of flush, and where. A pointer to a vCPU bitmap may be in the upper bits.
UVMF_NONE: Final = 0
UVMF_TLB_FLUSH: Final = 1
UVMF_INVLPG: Final = 2
UVMF_FLUSHTYPE_MASK: Final = 3
UVMF_MULTI: Final = 0
UVMF_LOCAL: Final = 0
UVMF_ALL: Final = 4

CONSOLEIO_write: Final = 0
CONSOLEIO_read: Final = 1

# vm_assist: the commands and the numbers of the assists.
VMASST_CMD_enable: Final = 0
VMASST_CMD_disable: Final = 1
VMASST_TYPE_4gb_segments: Final = 0
VMASST_TYPE_4gb_segments_notify: Final = 1
VMASST_TYPE_writable_pagetables: Final = 2
VMASST_TYPE_pae_extended_cr3: Final = 3
VMASST_TYPE_architectural_iopl: Final = 4
VMASST_TYPE_runstate_update_flag: Final = 5
VMASST_TYPE_m2p_strict: Final = 32

DOMID_FIRST_RESERVED: Final = 0x7ff0
DOMID_SELF: Final = 0x7ff0
DOMID_IO: Final = 0x7ff1
DOMID_XEN: Final = 0x7ff2
DOMID_COW: Final = 0x7ff3
DOMID_INVALID: Final = 0x7ff4
DOMID_IDLE: Final = 0x7fff
DOMID_MASK: Final = 0x7fff

# vcpu_time_info.flags
XEN_PVCLOCK_TSC_STABLE_BIT: Final = 1 << 0
# vcpu_time_info.flags
XEN_PVCLOCK_GUEST_STOPPED: Final = 1 << 1

HYPERCALL_NUMBERS: Final[dict[str, int]] = {
    key.removeprefix("__HYPERVISOR_"): value
    for key, value in list(globals().items())
    if key.startswith("__HYPERVISOR_")
}
"""Hypercall name -> number."""

mmu_update: Final = Layout("mmu_update", [("ptr", u64), ("val", u64)])

# arg1 is the frame (mfn) or linear_addr; arg2 is nr_ents (its low 32 bits), vcpumask or src_mfn, by command.
mmuext_op: Final = Layout("mmuext_op", [("cmd", u32), ("arg1", ulong), ("arg2", ulong)])

multicall_entry: Final = Layout("multicall_entry", [
    ("op", ulong), ("result", ulong), ("args", array(ulong, 6)),
])

vcpu_time_info: Final = Layout("vcpu_time_info", [
    ("version", u32), ("pad0", u32), ("tsc_timestamp", u64), ("system_time", u64),
    ("tsc_to_system_mul", u32), ("tsc_shift", s8), ("flags", u8), ("pad1", array(u8, 2)),
])

vcpu_info: Final = Layout("vcpu_info", [
    ("evtchn_upcall_pending", u8), ("evtchn_upcall_mask", u8), ("evtchn_pending_sel", ulong),
    ("arch", arch_vcpu_info), ("time", vcpu_time_info),
])

shared_info: Final = Layout(
    "shared_info",
    [
        ("vcpu_info", array(vcpu_info, XEN_LEGACY_MAX_VCPUS)), ("evtchn_pending", array(ulong, (64, 32))),
        ("evtchn_mask", array(ulong, (64, 32))), ("wc_version", u32), ("wc_sec", u32), ("wc_nsec", u32),
        ("wc_sec_hi", u32), ("arch", arch_shared_info),
    ],
    [
        ("vcpu_info", array(vcpu_info, XEN_LEGACY_MAX_VCPUS)), ("evtchn_pending", array(ulong, (64, 32))),
        ("evtchn_mask", array(ulong, (64, 32))), ("wc_version", u32), ("wc_sec", u32), ("wc_nsec", u32),
        ("arch", arch_shared_info),
    ],
)
