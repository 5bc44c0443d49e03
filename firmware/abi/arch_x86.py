"""arch-x86/xen.h and arch-x86/xen-x86_64.h: segments, trap tables, register frames and vCPU contexts.

Constants are those of 64-bit guests; `arch_x86_32` has those that differ for 32-bit PAE.
Structures are for both.
"""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, array, chars, u8, u16, u32, u64, ulong, xen_pfn

# The GDT from here on is Xen's.
FIRST_RESERVED_GDT_PAGE: Final = 14
FIRST_RESERVED_GDT_BYTE: Final = 14 * 4096
FIRST_RESERVED_GDT_ENTRY: Final = 7168

# vCPUs that shared_info has room for; the others register their vcpu_info.
XEN_LEGACY_MAX_VCPUS: Final = 32

# vcpu_guest_context.flags
VGCF_i387_valid: Final = 1 << 0
VGCF_in_kernel: Final = 1 << 2
VGCF_failsafe_disables_events: Final = 1 << 3
VGCF_syscall_disables_events: Final = 1 << 4
VGCF_online: Final = 1 << 5

XEN_CPUID_NO_SUBLEAF: Final = 0xffffffff

# Selectors of Xen's own GDT entries, as 64-bit guests may use them.
FLAT_RING3_CS32: Final = 0xe023
FLAT_RING3_CS64: Final = 0xe033
FLAT_RING3_DS32: Final = 0xe02b
FLAT_RING3_DS64: Final = 0x0
FLAT_RING3_SS32: Final = 0xe02b
FLAT_RING3_SS64: Final = 0xe02b
FLAT_KERNEL_DS64: Final = 0
FLAT_KERNEL_DS32: Final = 0xe02b
FLAT_KERNEL_DS: Final = 0
FLAT_KERNEL_CS64: Final = 0xe033
FLAT_KERNEL_CS32: Final = 0xe023
FLAT_KERNEL_CS: Final = 0xe033
FLAT_KERNEL_SS64: Final = 0xe02b
FLAT_KERNEL_SS32: Final = 0xe02b
FLAT_KERNEL_SS: Final = 0xe02b
FLAT_USER_DS64: Final = 0
FLAT_USER_DS32: Final = 0xe02b
FLAT_USER_DS: Final = 0
FLAT_USER_CS64: Final = 0xe033
FLAT_USER_CS32: Final = 0xe023
FLAT_USER_CS: Final = 0xe033
FLAT_USER_SS64: Final = 0xe02b
FLAT_USER_SS32: Final = 0xe02b
FLAT_USER_SS: Final = 0xe02b

# Where Xen lives, and the machine-to-physical table a guest may read (8-byte entries).
HYPERVISOR_VIRT_START: Final = 0xffff800000000000
HYPERVISOR_VIRT_END: Final = 0xffff880000000000
MACH2PHYS_VIRT_START: Final = 0xffff800000000000
MACH2PHYS_VIRT_END: Final = 0xffff804000000000
MACH2PHYS_NR_ENTRIES: Final = 0x800000000

# set_segment_base
SEGBASE_FS: Final = 0
SEGBASE_GS_USER: Final = 1
SEGBASE_GS_KERNEL: Final = 2
SEGBASE_GS_USER_SEL: Final = 3

# vcpu_guest_context.flags and iret_context.flags: return by SYSRET.
VGCF_in_syscall: Final = 1 << 8

# trap_info.flags: the privilege from which `int n` may enter, and whether delivery masks events.
TI_DPL_MASK: Final = 3
TI_IF: Final = 1 << 2

# ud2a; .ascii "xen": the prefix that makes Xen emulate the cpuid that follows.
XEN_EMULATE_PREFIX: Final = b"\x0f\x0bxen"

trap_info: Final = Layout("trap_info", [("vector", u8), ("flags", u8), ("cs", u16), ("address", ulong)])

# What a 64-bit guest leaves on its stack for the iret hypercall, from RSP upwards.
iret_context: Final = Layout("iret_context", [
    ("rax", u64), ("r11", u64), ("rcx", u64), ("flags", u64), ("rip", u64), ("cs", u64), ("rflags", u64),
    ("rsp", u64), ("ss", u64),
])

cpu_user_regs: Final = Layout(
    "cpu_user_regs",
    [
        ("r15", u64), ("r14", u64), ("r13", u64), ("r12", u64), ("rbp", u64), ("rbx", u64), ("r11", u64),
        ("r10", u64), ("r9", u64), ("r8", u64), ("rax", u64), ("rcx", u64), ("rdx", u64), ("rsi", u64),
        ("rdi", u64), ("error_code", u32), ("entry_vector", u32), ("rip", u64), ("cs", u16), ("pad0", u16),
        ("saved_upcall_mask", u8), ("pad1", array(u8, 3)), ("rflags", u64), ("rsp", u64), ("ss", u16),
        ("pad2", array(u16, 3)), ("es", u16), ("pad3", array(u16, 3)), ("ds", u16), ("pad4", array(u16, 3)),
        ("fs", u16), ("pad5", array(u16, 3)), ("gs", u16), ("pad6", array(u16, 3)),
    ],
    [
        ("ebx", u32), ("ecx", u32), ("edx", u32), ("esi", u32), ("edi", u32), ("ebp", u32), ("eax", u32),
        ("error_code", u16), ("entry_vector", u16), ("eip", u32), ("cs", u16), ("saved_upcall_mask", u8),
        ("pad0", u8), ("eflags", u32), ("esp", u32), ("ss", u16), ("pad1", u16), ("es", u16), ("pad2", u16),
        ("ds", u16), ("pad3", u16), ("fs", u16), ("pad4", u16), ("gs", u16), ("pad5", u16),
    ],
)

vcpu_guest_context: Final = Layout(
    "vcpu_guest_context",
    [
        ("fpu_ctxt", chars(512)), ("flags", ulong), ("user_regs", cpu_user_regs),
        ("trap_ctxt", array(trap_info, 256)), ("ldt_base", ulong), ("ldt_ents", ulong),
        ("gdt_frames", array(ulong, 16)), ("gdt_ents", ulong), ("kernel_ss", ulong), ("kernel_sp", ulong),
        ("ctrlreg", array(ulong, 8)), ("debugreg", array(ulong, 8)), ("event_callback_eip", ulong),
        ("failsafe_callback_eip", ulong), ("syscall_callback_eip", ulong), ("vm_assist", ulong),
        ("fs_base", u64), ("gs_base_kernel", u64), ("gs_base_user", u64),
    ],
    [
        ("fpu_ctxt", chars(512)), ("flags", ulong), ("user_regs", cpu_user_regs),
        ("trap_ctxt", array(trap_info, 256)), ("ldt_base", ulong), ("ldt_ents", ulong),
        ("gdt_frames", array(ulong, 16)), ("gdt_ents", ulong), ("kernel_ss", ulong), ("kernel_sp", ulong),
        ("ctrlreg", array(ulong, 8)), ("debugreg", array(ulong, 8)), ("event_callback_cs", ulong),
        ("event_callback_eip", ulong), ("failsafe_callback_cs", ulong), ("failsafe_callback_eip", ulong),
        ("vm_assist", ulong),
    ],
)

arch_vcpu_info: Final = Layout("arch_vcpu_info", [("cr2", ulong), ("pad", array(ulong, (1, 5)))])

arch_shared_info: Final = Layout(
    "arch_shared_info",
    [
        ("max_pfn", ulong), ("pfn_to_mfn_frame_list_list", xen_pfn), ("nmi_reason", ulong),
        ("p2m_cr3", ulong), ("p2m_vaddr", ulong), ("p2m_generation", ulong),
    ],
    [
        ("max_pfn", ulong), ("pfn_to_mfn_frame_list_list", xen_pfn), ("nmi_reason", ulong),
        ("p2m_cr3", ulong), ("p2m_vaddr", ulong), ("p2m_generation", ulong), ("wc_sec_hi", u32),
    ],
)

# Leaf and MSR lists.
xen_cpuid_leaf: Final = Layout("xen_cpuid_leaf", [
    ("leaf", u32), ("subleaf", u32), ("a", u32), ("b", u32), ("c", u32), ("d", u32),
])

xen_msr_entry: Final = Layout("xen_msr_entry", [("idx", u32), ("flags", u32), ("val", u64)])

def xen_pfn_to_cr3(pfn: int) -> int:
    """CR3 of a 64-bit guest for the root in this frame."""
    return pfn << 12

def xen_cr3_to_pfn(cr3: int) -> int:
    """The frame a 64-bit guest's CR3 names."""
    return cr3 >> 12
