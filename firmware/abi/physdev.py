"""physdev.h: operations on physical devices. Unprivileged guests may set their I/O privilege level."""
from __future__ import annotations

from typing import Final

from firmware.abi.layout import Layout, ptr, s32, u8, u16, u32, u64, ulong, union, xen_pfn

PHYSDEVOP_eoi: Final = 12
PHYSDEVOP_pirq_eoi_gmfn_v1: Final = 17
PHYSDEVOP_pirq_eoi_gmfn_v2: Final = 28
PHYSDEVOP_irq_status_query: Final = 5

XENIRQSTAT_needs_eoi: Final = 1 << 0
XENIRQSTAT_shared: Final = 1 << 1

PHYSDEVOP_set_iopl: Final = 6
PHYSDEVOP_set_iobitmap: Final = 7
PHYSDEVOP_apic_read: Final = 8
PHYSDEVOP_apic_write: Final = 9
PHYSDEVOP_alloc_irq_vector: Final = 10
PHYSDEVOP_free_irq_vector: Final = 11

MAP_PIRQ_TYPE_MSI: Final = 0x0
MAP_PIRQ_TYPE_GSI: Final = 0x1
MAP_PIRQ_TYPE_UNKNOWN: Final = 0x2
MAP_PIRQ_TYPE_MSI_SEG: Final = 0x3
MAP_PIRQ_TYPE_MULTI_MSI: Final = 0x4

PHYSDEVOP_map_pirq: Final = 13
PHYSDEVOP_unmap_pirq: Final = 14
PHYSDEVOP_manage_pci_add: Final = 15
PHYSDEVOP_manage_pci_remove: Final = 16
PHYSDEVOP_restore_msi: Final = 19
PHYSDEVOP_manage_pci_add_ext: Final = 20
PHYSDEVOP_setup_gsi: Final = 21
PHYSDEVOP_get_free_pirq: Final = 23

XEN_PCI_MMCFG_RESERVED: Final = 0x1

PHYSDEVOP_pci_mmcfg_reserved: Final = 24

XEN_PCI_DEV_EXTFN: Final = 0x1
XEN_PCI_DEV_VIRTFN: Final = 0x2
XEN_PCI_DEV_PXM: Final = 0x4

PHYSDEVOP_pci_device_add: Final = 25
PHYSDEVOP_pci_device_remove: Final = 26
PHYSDEVOP_restore_msi_ext: Final = 27
PHYSDEVOP_prepare_msix: Final = 30
PHYSDEVOP_release_msix: Final = 31
PHYSDEVOP_DBGP_RESET_PREPARE: Final = 1
PHYSDEVOP_DBGP_RESET_DONE: Final = 2
PHYSDEVOP_DBGP_BUS_UNKNOWN: Final = 0
PHYSDEVOP_DBGP_BUS_PCI: Final = 1
PHYSDEVOP_dbgp_op: Final = 29
PHYSDEVOP_IRQ_UNMASK_NOTIFY: Final = 4
PHYSDEVOP_pirq_eoi_gmfn: Final = 28

physdev_eoi: Final = Layout("physdev_eoi", [("irq", u32)])

physdev_pirq_eoi_gmfn: Final = Layout("physdev_pirq_eoi_gmfn", [("gmfn", xen_pfn)])

physdev_irq_status_query: Final = Layout("physdev_irq_status_query", [("irq", u32), ("flags", u32)])

physdev_set_iopl: Final = Layout("physdev_set_iopl", [("iopl", u32)])

physdev_set_iobitmap: Final = Layout("physdev_set_iobitmap", [("bitmap", ptr), ("nr_ports", u32)])

physdev_apic: Final = Layout("physdev_apic", [("apic_physbase", ulong), ("reg", u32), ("value", u32)])

physdev_irq: Final = Layout("physdev_irq", [("irq", u32), ("vector", u32)])

physdev_map_pirq: Final = Layout("physdev_map_pirq", [
    ("domid", u16), ("type", s32), ("index", s32), ("pirq", s32), ("bus", s32), ("devfn", s32),
    ("entry_nr", s32), ("table_base", u64),
])

physdev_unmap_pirq: Final = Layout("physdev_unmap_pirq", [("domid", u16), ("pirq", s32)])

physdev_manage_pci: Final = Layout("physdev_manage_pci", [("bus", u8), ("devfn", u8)])

physdev_restore_msi: Final = Layout("physdev_restore_msi", [("bus", u8), ("devfn", u8)])

physdev_manage_pci_ext: Final = Layout("physdev_manage_pci_ext", [
    ("bus", u8), ("devfn", u8), ("is_extfn", u32), ("is_virtfn", u32), ("physfn", physdev_manage_pci),
])

physdev_setup_gsi: Final = Layout("physdev_setup_gsi", [("gsi", s32), ("triggering", u8), ("polarity", u8)])

physdev_get_free_pirq: Final = Layout("physdev_get_free_pirq", [("type", s32), ("pirq", u32)])

physdev_pci_mmcfg_reserved: Final = Layout("physdev_pci_mmcfg_reserved", [
    ("address", u64), ("segment", u16), ("start_bus", u8), ("end_bus", u8), ("flags", u32),
])

physdev_pci_device_add: Final = Layout("physdev_pci_device_add", [
    ("seg", u16), ("bus", u8), ("devfn", u8), ("flags", u32), ("physfn", physdev_manage_pci),
])

physdev_pci_device: Final = Layout("physdev_pci_device", [("seg", u16), ("bus", u8), ("devfn", u8)])

physdev_dbgp_op: Final = Layout("physdev_dbgp_op", [("op", u8), ("bus", u8), ("u", physdev_pci_device)])

# The argument of physdev_op_compat: a command and its structure.
physdev_op: Final = Layout("physdev_op", [
    ("cmd", u32),
    ("u", union(
        irq_status_query=physdev_irq_status_query, set_iopl=physdev_set_iopl,
        set_iobitmap=physdev_set_iobitmap, apic_op=physdev_apic, irq_op=physdev_irq,
    )),
])
