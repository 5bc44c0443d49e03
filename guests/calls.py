"""The calls the guest `hypercalls` makes: data, one tuple a hypercall or a kind of hypercalls."""
from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from firmware.abi import arch_x86, callback, event_channel, grant_table, memory, physdev, sched, vcpu, version
from firmware.abi import xen as x

BAD: Final = 0x7000_0000_0000
"""An address nothing maps."""
NON_CANONICAL: Final = 0x8000_0000_0000_0000
XEN_ADDRESS: Final = 0xFFFF_8300_0000_0000
"""An address of Xen's own."""
NOBODY: Final = 0x1234
NO_FRAME: Final = 0xFF_FFFF_FFFF
"""A machine frame number beyond all memory."""
MASK64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its title, number, arguments (numbers, `&label`, or the bytes of a structure to point at).

    `show` names fields to print after it: offset and width (negative: signed) in the structure given.
    """

    title: str
    number: int
    arguments: tuple[int | str | bytes, ...] = ()
    show: tuple[tuple[int, int], ...] = ()


def words(*values: int) -> bytes:
    """64-bit words."""
    return b"".join(struct.pack("<Q", value & MASK64) for value in values)


def group(name: str, number: int, *calls: tuple[Any, ...]) -> Iterator[Call]:
    """Calls of one hypercall: title, arguments..., and a dictionary at the end for what to show."""
    for title, *arguments in calls:
        show: tuple[tuple[int, int], ...] = ()
        if arguments and isinstance(arguments[-1], dict):
            show = tuple(arguments.pop()["show"])
        yield Call(f"{name}: {title}", number, tuple(arguments), show)


def reservation(extents: int, order: int = 0, domid: int = x.DOMID_SELF, start: int = 0) -> bytes:
    """A memory reservation."""
    return memory.xen_memory_reservation.w64.pack(
        extent_start=start, nr_extents=extents, extent_order=order, domid=domid)


def mmuext(command: int, arg1: int = 0, arg2: int = 0) -> bytes:
    """An extended MMU operation."""
    return x.mmuext_op.w64.pack(cmd=command, arg1=arg1, arg2=arg2)


def registration(kind: int, address: int, flags: int = 0) -> bytes:
    """A callback's registration."""
    return callback.callback_register.w64.pack(type=kind, flags=flags, address=address)


STATUS16: Final = -2
_REQUEST: Final = x.mmu_update.w64

VERSION: Final = tuple(group(
    "xen_version", x.__HYPERVISOR_xen_version,
    ("version", version.XENVER_version, 0), ("extraversion", version.XENVER_extraversion, bytes(16)),
    ("extraversion, bad pointer", version.XENVER_extraversion, BAD),
    ("compile info", version.XENVER_compile_info, bytes(160)),
    ("capabilities", version.XENVER_capabilities, bytes(1024)),
    ("capabilities, bad pointer", version.XENVER_capabilities, BAD),
    ("changeset", version.XENVER_changeset, bytes(64)),
    ("platform", version.XENVER_platform_parameters, bytes(8), {"show": [(0, 8)]}),
    ("features 1", version.XENVER_get_features, words(1), {"show": [(4, 4)]}),
    ("features, bad pointer", version.XENVER_get_features, BAD),
    ("page size", version.XENVER_pagesize, 0), ("handle", version.XENVER_guest_handle, bytes(16)),
    ("99", 99, 0), ("-1", MASK64, 0),
))

MMU: Final = (
    *group(
        "mmu_update", x.__HYPERVISOR_mmu_update,
        ("nothing", BAD, 0, 0, x.DOMID_SELF), ("bad pointer", BAD, 1, 0, x.DOMID_SELF),
        ("bad done", words(0, 0), 0, BAD, x.DOMID_SELF), ("nobody", words(0, 0), 1, 0, NOBODY),
        ("no frame", _REQUEST.pack(ptr=NO_FRAME << 12, val=0), 1, 0, x.DOMID_SELF),
        ("no frame, keep AD", _REQUEST.pack(ptr=NO_FRAME << 12 | 2, val=0), 1, 0, x.DOMID_SELF),
        ("m2p of no frame", _REQUEST.pack(ptr=NO_FRAME << 12 | 1, val=0), 1, 0, x.DOMID_SELF),
        *((f"command {command}", words(command, 0), 1, 0, x.DOMID_SELF) for command in (3, 4, 5, 6, 7)),
        ("data page", "&request_data", 1, 0, x.DOMID_SELF),
        ("data page, keep AD", "&request_keep", 1, 0, x.DOMID_SELF),
        ("own m2p", "&request_m2p", 1, 0, x.DOMID_SELF),
        ("twice, then no frame", "&request_list", 3, "&done", x.DOMID_SELF),
        ("root, its own slot of Xen", "&request_xen_slot", 1, 0, x.DOMID_SELF),
    ),
    *group(
        "update_va_mapping", x.__HYPERVISOR_update_va_mapping,
        ("nothing mapped there", BAD, 0, 0), ("Xen's address", XEN_ADDRESS, 0, 0),
        ("non-canonical", NON_CANONICAL, 0, 0), ("unmap", "&spare_page", 0, x.UVMF_INVLPG),
        ("no frame", "&spare_page", NO_FRAME << 12 | 7, 0), ("flags 7", "&spare_page", 0, 7),
        ("bad bitmap", "&spare_page", 0, BAD | x.UVMF_TLB_FLUSH), ("all", "&spare_page", 0, x.UVMF_ALL | 1),
    ),
    *group(
        "update_va_mapping_otherdomain", x.__HYPERVISOR_update_va_mapping_otherdomain,
        ("nobody", "&spare_page", 0, 0, NOBODY), ("self", "&spare_page", 0, 0, x.DOMID_SELF),
    ),
    *group(
        "mmuext_op", x.__HYPERVISOR_mmuext_op,
        ("nothing", BAD, 0, 0, x.DOMID_SELF), ("bad pointer", BAD, 1, 0, x.DOMID_SELF),
        ("nobody", mmuext(x.MMUEXT_TLB_FLUSH_LOCAL), 1, 0, NOBODY),
        *((f"pin level {level + 1}, no frame", mmuext(x.MMUEXT_PIN_L1_TABLE + level, NO_FRAME), 1, 0,
           x.DOMID_SELF) for level in range(4)),
        ("unpin, no frame", mmuext(x.MMUEXT_UNPIN_TABLE, NO_FRAME), 1, 0, x.DOMID_SELF),
        ("unpin a data page", "&op_unpin", 1, 0, x.DOMID_SELF),
        ("pin a writable page", "&op_pin", 1, 0, x.DOMID_SELF),
        ("root, no frame", mmuext(x.MMUEXT_NEW_BASEPTR, NO_FRAME), 1, 0, x.DOMID_SELF),
        ("root, a data page", "&op_root", 1, 0, x.DOMID_SELF),
        ("user root, no frame", mmuext(x.MMUEXT_NEW_USER_BASEPTR, NO_FRAME), 1, 0, x.DOMID_SELF),
        ("user root, none", mmuext(x.MMUEXT_NEW_USER_BASEPTR), 1, 0, x.DOMID_SELF),
        ("flush", mmuext(x.MMUEXT_TLB_FLUSH_LOCAL), 1, 0, x.DOMID_SELF),
        ("flush all", mmuext(x.MMUEXT_TLB_FLUSH_ALL), 1, 0, x.DOMID_SELF),
        ("flush many, bad mask", mmuext(x.MMUEXT_TLB_FLUSH_MULTI, 0, BAD), 1, 0, x.DOMID_SELF),
        ("invalidate", mmuext(x.MMUEXT_INVLPG_LOCAL, BAD), 1, 0, x.DOMID_SELF),
        ("invalidate Xen's", mmuext(x.MMUEXT_INVLPG_LOCAL, XEN_ADDRESS), 1, 0, x.DOMID_SELF),
        ("invalidate everywhere", mmuext(x.MMUEXT_INVLPG_ALL, NON_CANONICAL), 1, 0, x.DOMID_SELF),
        ("invalidate many, bad mask", mmuext(x.MMUEXT_INVLPG_MULTI, 0, BAD), 1, 0, x.DOMID_SELF),
        ("no LDT", mmuext(x.MMUEXT_SET_LDT), 1, 0, x.DOMID_SELF),
        ("LDT off by one", mmuext(x.MMUEXT_SET_LDT, 0x1001, 8), 1, 0, x.DOMID_SELF),
        ("LDT of 8,193", mmuext(x.MMUEXT_SET_LDT, 0x1000, 8193), 1, 0, x.DOMID_SELF),
        ("LDT over Xen", mmuext(x.MMUEXT_SET_LDT, XEN_ADDRESS, 8), 1, 0, x.DOMID_SELF),
        ("clear, no frame", mmuext(x.MMUEXT_CLEAR_PAGE, NO_FRAME), 1, 0, x.DOMID_SELF),
        ("clear", "&op_clear", 1, 0, x.DOMID_SELF),
        ("copy, no source", "&op_copy", 1, 0, x.DOMID_SELF),
        ("mark super", mmuext(x.MMUEXT_MARK_SUPER, 0), 1, 0, x.DOMID_SELF),
        ("unmark super", mmuext(x.MMUEXT_UNMARK_SUPER, 0), 1, 0, x.DOMID_SELF),
        ("99", mmuext(99), 1, 0, x.DOMID_SELF), ("14", mmuext(14), 1, 0, x.DOMID_SELF),
        ("two, the first bad", mmuext(99) + mmuext(x.MMUEXT_TLB_FLUSH_LOCAL), 2, "&done", x.DOMID_SELF),
    ),
)

DESCRIPTORS: Final = (
    *group(
        "set_gdt", x.__HYPERVISOR_set_gdt,
        ("bad pointer", BAD, 1), ("too long", words(0), 7169), ("no frame", words(NO_FRAME), 512),
        ("a writable page", "&gdt_list", 512), ("none", words(0), 0),
    ),
    *group(
        "update_descriptor", x.__HYPERVISOR_update_descriptor,
        ("no frame", NO_FRAME << 12, 0), ("off by one", 0x1001, 0),
        ("call gate", 0x1000, 0x0000_EC00_E008_1000),
        ("ring 0 code", 0x1000, 0x00AF_9B00_0000_FFFF),
    ),
    *group(
        "set_segment_base", x.__HYPERVISOR_set_segment_base,
        ("FS", arch_x86.SEGBASE_FS, 0x1000), ("FS, non-canonical", arch_x86.SEGBASE_FS, NON_CANONICAL),
        ("user's GS", arch_x86.SEGBASE_GS_USER, 0x2000),
        ("user's GS, non-canonical", arch_x86.SEGBASE_GS_USER, NON_CANONICAL),
        ("kernel's GS, non-canonical", arch_x86.SEGBASE_GS_KERNEL, NON_CANONICAL),
        ("user's GS by null selector", arch_x86.SEGBASE_GS_USER_SEL, 0),
        ("user's GS by bad selector", arch_x86.SEGBASE_GS_USER_SEL, 0x1233), ("4", 4, 0),
        ("-1", MASK64, 0),
    ),
    *group(
        "debug registers", x.__HYPERVISOR_set_debugreg,
        ("0", 0, 0x1000), ("0, Xen's address", 0, XEN_ADDRESS), ("0, non-canonical", 0, NON_CANONICAL),
        ("4", 4, 0), ("5", 5, 0), ("6", 6, 0), ("7, I/O", 7, 2 << 16 | 1),
        ("7, general detect", 7, 1 << 13 | 1),
        ("7, high bits", 7, 1 << 32), ("7, none", 7, 0), ("8", 8, 0), ("-1", MASK64, 0),
    ),
    *group(
        "get_debugreg", x.__HYPERVISOR_get_debugreg,
        ("0", 0), ("1", 1), ("4", 4), ("5", 5), ("7", 7), ("8", 8), ("-1", MASK64),
    ),
)

SCHEDULING: Final = (
    *group(
        "sched_op", x.__HYPERVISOR_sched_op,
        ("yield", sched.SCHEDOP_yield, 0), ("shut down, bad pointer", sched.SCHEDOP_shutdown, BAD),
        ("shutdown code, bad pointer", sched.SCHEDOP_shutdown_code, BAD),
        ("poll, bad pointer", sched.SCHEDOP_poll, BAD),
        ("shut nobody down", sched.SCHEDOP_remote_shutdown,
         sched.sched_remote_shutdown.w64.pack(domain_id=NOBODY, reason=0)),
        ("watchdog 5", sched.SCHEDOP_watchdog, sched.sched_watchdog.w64.pack(id=5, timeout=9)),
        ("watchdog 1, off", sched.SCHEDOP_watchdog, sched.sched_watchdog.w64.pack(id=1, timeout=0)),
        ("watchdog 1, on", sched.SCHEDOP_watchdog, sched.sched_watchdog.w64.pack(id=1, timeout=600)),
        ("watchdog, new", sched.SCHEDOP_watchdog, sched.sched_watchdog.w64.pack(id=0, timeout=600)),
        ("watchdog, second", sched.SCHEDOP_watchdog, sched.sched_watchdog.w64.pack(id=0, timeout=600)),
        ("watchdog, third", sched.SCHEDOP_watchdog, sched.sched_watchdog.w64.pack(id=0, timeout=600)),
        ("watchdog 1, again", sched.SCHEDOP_watchdog, sched.sched_watchdog.w64.pack(id=1, timeout=600)),
        ("watchdog 1, off", sched.SCHEDOP_watchdog, sched.sched_watchdog.w64.pack(id=1, timeout=0)),
        ("watchdog 2, off", sched.SCHEDOP_watchdog, sched.sched_watchdog.w64.pack(id=2, timeout=0)),
        ("watchdog, bad pointer", sched.SCHEDOP_watchdog, BAD), ("8", 8, 0), ("99", 99, 0),
    ),
    *group("sched_op_compat", x.__HYPERVISOR_sched_op_compat, ("yield", 0, 0), ("99", 99, 0)),
    *group("set_timer_op", x.__HYPERVISOR_set_timer_op, ("off", 0), ("never", (1 << 63) - 1), ("off", 0)),
    *group(
        "vcpu_op", x.__HYPERVISOR_vcpu_op,
        ("up, absent", vcpu.VCPUOP_is_up, 77, 0), ("up, -1", vcpu.VCPUOP_is_up, MASK64, 0),
        ("run state, bad pointer", vcpu.VCPUOP_get_runstate_info, 0, BAD),
        ("run state area, bad pointer", vcpu.VCPUOP_register_runstate_memory_area, 0, BAD),
        ("run state area at Xen's", vcpu.VCPUOP_register_runstate_memory_area, 0, words(XEN_ADDRESS)),
        ("run state area", vcpu.VCPUOP_register_runstate_memory_area, 0, "&area_pointer"),
        ("time area", vcpu.VCPUOP_register_vcpu_time_memory_area, 0, "&area_pointer"),
        ("time area, bad pointer", vcpu.VCPUOP_register_vcpu_time_memory_area, 0, BAD),
        ("info, no frame", vcpu.VCPUOP_register_vcpu_info, 0,
         vcpu.vcpu_register_vcpu_info.w64.pack(mfn=NO_FRAME, offset=0)),
        ("info, off the page", vcpu.VCPUOP_register_vcpu_info, 0,
         vcpu.vcpu_register_vcpu_info.w64.pack(mfn=0, offset=4080)),
        ("info, unaligned", vcpu.VCPUOP_register_vcpu_info, 0,
         vcpu.vcpu_register_vcpu_info.w64.pack(mfn=0, offset=3)),
        ("info, bad pointer", vcpu.VCPUOP_register_vcpu_info, 0, BAD),
        ("nmi with an argument", vcpu.VCPUOP_send_nmi, 0, words(0)),
        ("initialise", vcpu.VCPUOP_initialise, 0, BAD),
        ("14", 14, 0, 0), ("99", 99, 0, 0), ("99, absent", 99, 77, 0),
    ),
)

EVENTS: Final = (
    *group(
        "event_channel_op", x.__HYPERVISOR_event_channel_op,
        *((f"{command}, bad pointer", command, BAD) for command in (0, 1, 3, 4, 5, 6, 7, 8, 9, 10)),
        ("virq 99", event_channel.EVTCHNOP_bind_virq, event_channel.evtchn_bind_virq.w64.pack(virq=99)),
        ("ipi, absent", event_channel.EVTCHNOP_bind_ipi, event_channel.evtchn_bind_ipi.w64.pack(vcpu=77)),
        ("99", 99, 0),
    ),
    *group(
        "event_channel_op_compat", x.__HYPERVISOR_event_channel_op_compat,
        ("bad pointer", BAD), ("99", words(99)),
    ),
    *group(
        "callback_op", x.__HYPERVISOR_callback_op,
        ("event", callback.CALLBACKOP_register, "&event_registration"),
        ("event, non-canonical", callback.CALLBACKOP_register, registration(0, NON_CANONICAL)),
        ("failsafe, non-canonical", callback.CALLBACKOP_register, registration(1, NON_CANONICAL)),
        ("system call, non-canonical", callback.CALLBACKOP_register, registration(2, NON_CANONICAL)),
        ("3", callback.CALLBACKOP_register, registration(3, 0)),
        ("sysenter", callback.CALLBACKOP_register, registration(5, 0)),
        ("6", callback.CALLBACKOP_register, registration(6, 0)),
        ("system call of 32 bits", callback.CALLBACKOP_register, registration(7, 0)),
        ("99", callback.CALLBACKOP_register, registration(99, 0)),
        ("bad pointer", callback.CALLBACKOP_register, BAD),
        *((f"take {kind} back", callback.CALLBACKOP_unregister,
           callback.callback_unregister.w64.pack(type=kind)) for kind in (0, 1, 2, 4, 5, 7, 99)),
        ("operation 2", 2, BAD),
    ),
    *group(
        "set_callbacks", x.__HYPERVISOR_set_callbacks,
        ("non-canonical", NON_CANONICAL, NON_CANONICAL, NON_CANONICAL),
        ("good", "&crash", "&crash", "&crash"),
    ),
    *group("nmi_op", x.__HYPERVISOR_nmi_op, ("take back", 1, 0), ("bad pointer", 0, BAD), ("99", 99, 0)),
    *group(
        "set_trap_table", x.__HYPERVISOR_set_trap_table,
        ("bad pointer", BAD), ("non-canonical", arch_x86.trap_info.w64.pack(
            vector=200, cs=arch_x86.FLAT_KERNEL_CS, address=NON_CANONICAL) + bytes(16)),
        ("kernel's selector", arch_x86.trap_info.w64.pack(vector=200, cs=8, address=0x1000) + bytes(16)),
        ("empty", bytes(16)),
    ),
    *group("stack_switch", x.__HYPERVISOR_stack_switch, ("null", 0, 0), ("non-canonical", 8, NON_CANONICAL)),
    *group("fpu_taskswitch", x.__HYPERVISOR_fpu_taskswitch, ("5", 5), ("0", 0)),
)

MEMORY: Final = (
    *group(
        "memory_op", x.__HYPERVISOR_memory_op,
        *((f"{name}, bad pointer", number, BAD) for name, number in (
            ("increase", 0), ("decrease", 1), ("current", 3), ("maximum", 4), ("populate", 6), ("add", 7),
            ("exchange", 11), ("machphys", 12), ("gpfn", 14), ("remove", 15), ("machphys list", 5))),
        *((f"{name} nothing", number, reservation(0)) for name, number in (
            ("increase", 0), ("decrease", 1), ("populate", 6))),
        *((f"{name} of nobody", number, reservation(0, domid=NOBODY)) for name, number in (
            ("increase", 0), ("decrease", 1), ("populate", 6))),
        ("decrease, bad list", 1, reservation(1, start=BAD)),
        ("populate, bad list", 6, reservation(1, start=BAD)),
        ("decrease no frame", 1, "&no_frame_reservation"),
        ("decrease, too large", 1, reservation(1, order=60)),
        ("populate, too large", 6, reservation(1, order=60)),
        ("too many", 1, reservation(1 << 40, order=30)),
        ("current of nobody", 3, words(NOBODY)), ("maximum of nobody", 4, words(NOBODY)),
        ("gpfn of nobody", 14, words(NOBODY)),
        ("add, nobody", 7, memory.xen_add_to_physmap.w64.pack(domid=NOBODY)),
        ("remove, nobody", 15, memory.xen_remove_from_physmap.w64.pack(domid=NOBODY)),
        ("machphys", 12, bytes(24), {"show": [(0, 8), (8, 8)]}),
        ("paging", 20, BAD), ("29", 29, 0), ("63", 63, 0),
    ),
    *group(
        "grant_table_op", x.__HYPERVISOR_grant_table_op,
        ("map nothing", 0, BAD, 0), ("unmap nothing", 1, BAD, 0),
        *((f"{command}, bad pointer", command, BAD, 1) for command in (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11)),
        ("too many", 0, BAD, 1 << 31),
        ("map from nobody", 0, grant_table.gnttab_map_grant_ref.w64.pack(dom=NOBODY, flags=2), 1,
         {"show": [(grant_table.gnttab_map_grant_ref.w64.offset["status"], STATUS16)]}),
        ("unmap what is not", 1, grant_table.gnttab_unmap_grant_ref.w64.pack(handle=12345), 1,
         {"show": [(grant_table.gnttab_unmap_grant_ref.w64.offset["status"], STATUS16)]}),
        ("table of nobody", 2, grant_table.gnttab_setup_table.w64.pack(dom=NOBODY, nr_frames=1), 1,
         {"show": [(grant_table.gnttab_setup_table.w64.offset["status"], STATUS16)]}),
        ("two tables", 2, grant_table.gnttab_setup_table.w64.pack(dom=x.DOMID_SELF, nr_frames=1), 2),
        ("too large a table", 2, grant_table.gnttab_setup_table.w64.pack(
            dom=x.DOMID_SELF, nr_frames=100000), 1,
         {"show": [(grant_table.gnttab_setup_table.w64.offset["status"], STATUS16)]}),
        ("size of nobody", 6, grant_table.gnttab_query_size.w64.pack(dom=NOBODY), 1,
         {"show": [(grant_table.gnttab_query_size.w64.offset["status"], STATUS16)]}),
        ("version", 10, grant_table.gnttab_get_version.w64.pack(dom=x.DOMID_SELF), 1,
         {"show": [(grant_table.gnttab_get_version.w64.offset["version"], 4)]}),
        ("version of nobody", 10, grant_table.gnttab_get_version.w64.pack(dom=NOBODY), 1),
        ("version 3", 8, words(3), 1), ("version 0", 8, words(0), 1),
        ("status of nobody", 9, grant_table.gnttab_get_status_frames.w64.pack(dom=NOBODY), 1,
         {"show": [(grant_table.gnttab_get_status_frames.w64.offset["status"], STATUS16)]}),
        ("swap beyond the end", 11, grant_table.gnttab_swap_grant_ref.w64.pack(ref_a=1 << 30, ref_b=0), 1,
         {"show": [(grant_table.gnttab_swap_grant_ref.w64.offset["status"], STATUS16)]}),
        ("copy nowhere", 5, grant_table.gnttab_copy.w64.pack(len=5000), 1,
         {"show": [(grant_table.gnttab_copy.w64.offset["status"], STATUS16)]}),
        ("99", 99, words(0), 1), ("99 of nothing", 99, words(0), 0),
    ),
    *group(
        "vm_assist", x.__HYPERVISOR_vm_assist,
        *((f"{'off' if command else 'on'}, {kind}", command, kind)
          for kind in (0, 1, 2, 3, 4, 5, 6, 31, 32, 63) for command in (0, 1)),
        ("2", 2, 0), ("type 64", 0, 64), ("type -1", 0, MASK64),
    ),
)

REST: Final = (
    *group(
        "physdev_op", x.__HYPERVISOR_physdev_op,
        ("iopl 4", physdev.PHYSDEVOP_set_iopl, words(4)),
        ("iopl, bad pointer", physdev.PHYSDEVOP_set_iopl, BAD),
        ("bitmap too long", physdev.PHYSDEVOP_set_iobitmap, words(0, 65537)), ("99", 99, BAD),
    ),
    *group("xsm_op", x.__HYPERVISOR_xsm_op, ("0", 0), ("bad pointer", BAD)),
    *group("hvm_op", x.__HYPERVISOR_hvm_op, ("99", 99, BAD), ("parameter, bad pointer", 1, BAD)),
    *group("tmem_op", x.__HYPERVISOR_tmem_op, ("0", 0)),
    *group("xenpmu_op", x.__HYPERVISOR_xenpmu_op, ("0", 0, BAD)),
    *(Call(f"number {number:#x}", number) for number in (
        11, 43, 44, 47, 50, 51, 52, 53, 54, 55, 56, 63, 64, 100, 1000, 0x8000_0000, 0xFFFF_FFFF, MASK64)),
    *group(
        "multicall", x.__HYPERVISOR_multicall,
        ("nothing", BAD, 0), ("bad pointer", BAD, 1), ("three", "&calls", 3),
    ),
)

GROUPS: Final = (VERSION, MMU, DESCRIPTORS, SCHEDULING, EVENTS, MEMORY, REST)
