"""platform.h: operations of the control domain on the machine. Unprivileged guests may only probe: -EPERM."""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, chars, u32, u64, union

XENPF_INTERFACE_VERSION: Final = 0x3000001
XENPF_settime32: Final = 17
XENPF_settime64: Final = 62
XENPF_settime: Final = 62
XENPF_add_memtype: Final = 31
XENPF_del_memtype: Final = 32
XENPF_read_memtype: Final = 33
XENPF_microcode_update: Final = 35
XENPF_platform_quirk: Final = 39
XENPF_efi_runtime_call: Final = 49
XENPF_firmware_info: Final = 50
XENPF_enter_acpi_sleep: Final = 51
XENPF_change_freq: Final = 52
XENPF_getidletime: Final = 53
XENPF_set_processor_pminfo: Final = 54
XENPF_get_cpuinfo: Final = 55

XEN_PCPU_FLAGS_ONLINE: Final = 1
XEN_PCPU_FLAGS_INVALID: Final = 2

XENPF_get_cpu_version: Final = 48
XENPF_cpu_online: Final = 56
XENPF_cpu_offline: Final = 57
XENPF_cpu_hotadd: Final = 58
XENPF_mem_hotadd: Final = 59
XENPF_core_parking: Final = 60
XENPF_resource_op: Final = 61
XENPF_get_symbol: Final = 63

xenpf_settime32: Final = Layout("xenpf_settime32", [("secs", u32), ("nsecs", u32), ("system_time", u64)])

xenpf_settime64: Final = Layout("xenpf_settime64", [
    ("secs", u64), ("nsecs", u32), ("mbz", u32), ("system_time", u64),
])

xenpf_pcpuinfo: Final = Layout("xenpf_pcpuinfo", [
    ("xen_cpuid", u32), ("max_present", u32), ("flags", u32), ("apic_id", u32), ("acpi_id", u32),
])

xenpf_pcpu_version: Final = Layout("xenpf_pcpu_version", [
    ("xen_cpuid", u32), ("max_present", u32), ("vendor_id", chars(12)), ("family", u32), ("model", u32),
    ("stepping", u32),
])

xen_platform_op: Final = Layout("xen_platform_op", [
    ("cmd", u32), ("interface_version", u32),
    ("u", union(
        settime32=xenpf_settime32, settime64=xenpf_settime64, pcpu_info=xenpf_pcpuinfo,
        pcpu_version=xenpf_pcpu_version, pad=chars(128),
    )),
])
