"""arch-x86/cpuid.h: Xen's own CPUID leaves.

XEN_CPUID_FIRST_LEAF + 0: largest leaf and signature; + 1: version; + 2: hypercall pages and features;
+ 3: time; + 4: HVM only; + 5: PV parameters.
"""
from __future__ import annotations

from typing import Final

XEN_CPUID_FIRST_LEAF: Final = 0x40000000
XEN_CPUID_SIGNATURE_EBX: Final = 0x566e6558
XEN_CPUID_SIGNATURE_ECX: Final = 0x65584d4d
XEN_CPUID_SIGNATURE_EDX: Final = 0x4d4d566e
XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD: Final = 1 << 0
XEN_HVM_CPUID_APIC_ACCESS_VIRT: Final = 1 << 0
XEN_HVM_CPUID_X2APIC_VIRT: Final = 1 << 1
XEN_HVM_CPUID_IOMMU_MAPPINGS: Final = 1 << 2
XEN_HVM_CPUID_VCPU_ID_PRESENT: Final = 1 << 3
XEN_HVM_CPUID_DOMID_PRESENT: Final = 1 << 4
XEN_HVM_CPUID_EXT_DEST_ID: Final = 1 << 5
XEN_HVM_CPUID_UPCALL_VECTOR: Final = 1 << 6
XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK: Final = 0xff
XEN_CPUID_MAX_NUM_LEAVES: Final = 5
