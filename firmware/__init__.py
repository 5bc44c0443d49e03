"""The hypervisor: Xen 4.17 for paravirtual guests, modelled over `machine`."""
