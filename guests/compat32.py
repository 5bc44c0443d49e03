"""compat32: every structure that a 32-bit PAE guest lays out in its own way, through the calls that read or
write it.

What Xen does, and why it is expected (nobody recorded it, as Debian's Xen has no 32-bit PV): results are
those of 64-bit guests, and 32-bit structures have 4-byte words and handles and 8-byte numbers aligned to 4
(the public headers compiled for i386). Besides: page-table entries stay 64 bits wide; update_va_mapping and
update_descriptor take two halves of each 64-bit value; the M2P a guest may see is at 0xF5800000 to
0xFFE00000; there is no user base pointer (-EINVAL), no L4 to pin (nothing is done), no m2p_strict (-EINVAL)
and no set_segment_base (-ENOSYS). Slot 3 of an L3 cannot be updated, and Xen's entries in the last L2 cannot
either. Prints no machine frames.
"""
from __future__ import annotations

from typing import Final

from guests.macros32 import get, hypercall, kernel, line, put, say
from guests.probes import READ_ONLY, READ_WRITE

BAD: Final = 0x7000_0000
IN_XEN: Final = 0xF580_0000


def show(title: str, *more: tuple[str, str]) -> str:
    """Print the result of the call just made, and further words."""
    parts = "".join(f" {name} {{dword ptr [{at}]:x}}" for name, at in more)
    return line(title + ": {eax:d}" + parts)


def call(title: str, name: str, *arguments: str | int, more: tuple[tuple[str, str], ...] = ()) -> str:
    """Make a call and print its result."""
    return hypercall(name, *arguments) + "\n" + show(title, *more)


def frame_of(label: str, target: str, bits: int = 0) -> str:
    """Store the machine frame of a page as a frame number, or with `bits` as a 64-bit entry."""
    if not bits:
        return f"lea edi, [{label}]\ncall machine_frame\nmov [{target}], eax"
    return f"""
    lea edi, [{label}]
    call machine_frame
    mov ecx, eax
    shr ecx, 20
    mov [{target} + 4], ecx
    shl eax, 12
    or eax, {bits}
    mov [{target}], eax
    """


def remap(label: str, flags: int) -> str:
    """Map a page with other flags."""
    return f"lea edi, [{label}]\nmov esi, {flags}\nxor eax, eax\ncall remap"


_VERSION: Final = (
    line("-- xen_version"),
    hypercall("xen_version", "XENVER_version", 0), "mov ebx, eax\n" + line("version: {ebx:x}"),
    call("platform", "xen_version", "XENVER_platform_parameters", "&area", more=(("start", "area"),)),
    put("area", 0), call("features", "xen_version", "XENVER_get_features", "&area", more=(("bits",
                                                                                           "area + 4"),)),
    call("page size", "xen_version", "XENVER_pagesize", 0),
    call("into Xen", "xen_version", "XENVER_platform_parameters", IN_XEN),
    line("-- vm_assist"),
    *(call(f"{name}", "vm_assist", "VMASST_CMD_enable", f"VMASST_TYPE_{name}") for name in (
        "4gb_segments", "4gb_segments_notify", "writable_pagetables", "pae_extended_cr3", "m2p_strict")),
    put("area", 0), call("features then", "xen_version", "XENVER_get_features", "&area",
                         more=(("bits", "area + 4"),)),
)

_MMU: Final = (
    line("-- page tables"),
    frame_of("page_a", "area", READ_ONLY),
    call("map read-only", "update_va_mapping", "&page_b", "[area]", "[area + 4]", "UVMF_INVLPG"),
    put("page_a", 0x1234), get("page_b"), line("seen through it: {eax:x}"),
    "mov eax, [area + 4]\nor eax, 0x100000\nmov [area + 8], eax",
    call("an available bit", "update_va_mapping", "&page_b", "[area]", "[area + 8]", "UVMF_INVLPG"),
    "mov eax, [area + 4]\nor eax, 0x80000000\nmov [area + 8], eax",
    call("not to be executed", "update_va_mapping", "&page_b", "[area]", "[area + 8]", "UVMF_INVLPG"),
    call("of no table", "update_va_mapping", BAD, "[area]", "[area + 4]", 0),
    call("of Xen's", "update_va_mapping", IN_XEN, "[area]", "[area + 4]", 0),
    call("of nobody", "update_va_mapping_otherdomain", "&page_b", "[area]", "[area + 4]", 0, 0x1234),
    call("unmap", "update_va_mapping", "&page_b", 0, 0, "UVMF_INVLPG"),
    # The M2P: our page's entry, by mmu_update, and read where a 32-bit guest reads it.
    frame_of("page_a", "request", 1), put("request + 8", 0x4321), put("request + 12", 0), put("done", 99),
    call("mmu_update of the M2P", "mmu_update", "&request", 1, "&done", "DOMID_SELF", more=(("done",
                                                                                             "done"),)),
    frame_of("page_a", "area"), f"mov eax, [area]\nmov eax, [eax*4 + {IN_XEN}]",
    line("the M2P's word: {eax:x}"),
    "mov dword ptr [request + 8], 0",
    "lea eax, [page_a]\nsub eax, 0xc0000000\nshr eax, 12\nmov [request + 8], eax",
    call("put back", "mmu_update", "&request", 1, 0, "DOMID_SELF"),
    # An L1 and an L2 of our own, pinned.
    remap("table_1", READ_ONLY), remap("table_2", READ_ONLY),
    frame_of("table_1", "op + mmuext_op.arg1"), put("op", "MMUEXT_PIN_L1_TABLE"),
    call("pin L1", "mmuext_op", "&op", 1, "&done", "DOMID_SELF", more=(("done", "done"),)),
    frame_of("table_1", "request", 0x18), frame_of("page_a", "request + 8", READ_WRITE),
    "and dword ptr [request], 0xfffffff8",
    call("an L1 entry", "mmu_update", "&request", 1, 0, "DOMID_SELF"),
    "mov eax, [table_1 + 24]\nand eax, 0xfff", line("its flags: {eax:x}"),
    "mov dword ptr [op], MMUEXT_PIN_L2_TABLE", frame_of("table_2", "op + mmuext_op.arg1"),
    call("pin L2", "mmuext_op", "&op", 1, 0, "DOMID_SELF"),
    frame_of("table_2", "request", 0x8), frame_of("table_1", "request + 8", 0x67),
    call("an L2 entry", "mmu_update", "&request", 1, 0, "DOMID_SELF"),
    "mov eax, [table_2 + 8]\nand eax, 0xfff", line("its flags: {eax:x}"),
    put("request + 8", 0), put("request + 12", 0),
    call("taken out again", "mmu_update", "&request", 1, 0, "DOMID_SELF"),
    ("mov edi, [start_info_address]\nmov edi, [edi + start_info.pt_base]\ncall machine_frame\n"
    "mov [root], eax\nmov ecx, eax\nshr ecx, 20\nmov [request + 4], ecx\nshl eax, 12\nadd eax, 24\n"
    "mov [request], eax"),
    call("slot 3 of the root", "mmu_update", "&request", 1, 0, "DOMID_SELF"),
    ("mov eax, [start_info_address]\nmov eax, [eax + start_info.pt_base]\nmov ecx, [eax + 24]\n"
    "mov edx, [eax + 28]"),
    f"and ecx, 0xfffff000\nadd ecx, {(IN_XEN >> 21 & 511) * 8}\nmov [request], ecx\nmov [request + 4], edx",
    call("Xen's entry of the last L2", "mmu_update", "&request", 1, 0, "DOMID_SELF"),
    *(f"mov dword ptr [op], {command}\n{frame_of('table_1', 'op + mmuext_op.arg1')}\n"
      f"mov dword ptr [op + mmuext_op.arg2], 0\n"
      + call(title, "mmuext_op", "&op", 1, 0, "DOMID_SELF") for title, command in (
          ("pin as L3", "MMUEXT_PIN_L3_TABLE"), ("pin as L4", "MMUEXT_PIN_L4_TABLE"),
          ("as the root", "MMUEXT_NEW_BASEPTR"), ("as the user root", "MMUEXT_NEW_USER_BASEPTR"),
          ("unpin L1", "MMUEXT_UNPIN_TABLE"), ("unpin again", "MMUEXT_UNPIN_TABLE"),
          ("flush here", "MMUEXT_TLB_FLUSH_LOCAL"), ("flush everywhere", "MMUEXT_TLB_FLUSH_ALL"),
          ("set no LDT", "MMUEXT_SET_LDT"), ("command 99", "99"))),
    "mov dword ptr [op], MMUEXT_NEW_BASEPTR\nmov eax, [root]\nmov [op + mmuext_op.arg1], eax",
    call("the same root", "mmuext_op", "&op", 1, 0, "DOMID_SELF"),
    put("op", "MMUEXT_TLB_FLUSH_MULTI"), put("op + mmuext_op.arg2", "&mask"),
    call("flush by a mask of 32 bits", "mmuext_op", "&op", 1, 0, "DOMID_SELF"),
    call("from Xen's memory", "mmuext_op", IN_XEN, 1, 0, "DOMID_SELF"),
    # Direct stores: the table is writable again only through Xen.
    frame_of("table_2", "op + mmuext_op.arg1"), put("op", "MMUEXT_UNPIN_TABLE"),
    call("unpin L2", "mmuext_op", "&op", 1, 0, "DOMID_SELF"),
    put("op", "MMUEXT_PIN_L1_TABLE"), frame_of("table_1", "op + mmuext_op.arg1"),
    call("pin L1 anew", "mmuext_op", "&op", 1, 0, "DOMID_SELF"),
    frame_of("page_a", "area", READ_WRITE),
    ("mov eax, [area + 4]\nmov [table_1 + 44], eax\nmov eax, [area]\nmov [table_1 + 40], eax\n"
    "mov eax, [table_1 + 40]\nsub eax, [area]"), line("stored in two halves: {eax:d}"),
    "mov dword ptr [table_1 + 40], 0\nmov eax, [table_1 + 40]", line("and cleared: {eax:d}"),
)


def reservation(title: str, command: str, count: int, order: int = 0, start: str = "frames") -> str:
    """A memory_op on `memory`, a reservation."""
    return "\n".join((
        put("memory + xen_memory_reservation.extent_start", f"&{start}"),
        put("memory + xen_memory_reservation.nr_extents", count),
        put("memory + xen_memory_reservation.extent_order", order),
        put("memory + xen_memory_reservation.mem_flags", 0),
        put("memory + xen_memory_reservation.domid", "DOMID_SELF", 2),
        call(title, "memory_op", command, "&memory"),
    ))


_MEMORY: Final = (
    line("-- memory_op"),
    call("M2P", "memory_op", "XENMEM_machphys_mapping", "&area",
         more=(("from", "area"), ("to", "area + 4"), ("last", "area + 8"))),
    put("area + xen_memory_map.nr_entries", 4), put("area + xen_memory_map.buffer", "&map"),
    call("memory map", "memory_op", "XENMEM_memory_map", "&area",
         more=(("entries", "area"), ("at", "map"), ("type", "map + 16"))),
    call("map into Xen", "memory_op", "XENMEM_memory_map", IN_XEN),
    put("area", "DOMID_SELF", 2), hypercall("memory_op", "XENMEM_current_reservation", "&area"),
    "mov [pages], eax\ntest eax, eax\nsetg al\nmovzx eax, al", line("some pages: {eax:d}"),
    call("unmap a page", "update_va_mapping", "&page_c", 0, 0, "UVMF_INVLPG"),
    frame_of("page_c", "frames"), reservation("decrease", "XENMEM_decrease_reservation", 1),
    put("area", "DOMID_SELF", 2), hypercall("memory_op", "XENMEM_current_reservation", "&area"),
    "sub eax, [pages]", line("pages more: {eax:d}"),
    "lea eax, [page_c]\nsub eax, 0xc0000000\nshr eax, 12\nmov [frames], eax",
    reservation("populate", "XENMEM_populate_physmap", 1),
    (f"mov eax, [frames]\nmov eax, [eax*4 + {IN_XEN}]\nlea ecx, [page_c]\nsub ecx, 0xc0000000\nshr ecx, 12\n"
    "sub eax, ecx"), line("the new frame's M2P word: {eax:d}"),
    # Exchange it: its number comes back changed or not, but always ours.
    ("mov eax, [frames]\nmov [exchange_in], eax\nlea ecx, [page_c]\nsub ecx, 0xc0000000\nshr ecx, 12\n"
    "mov [exchange_out], ecx"),
    call("exchange", "memory_op", "XENMEM_exchange", "&exchange",
         more=(("exchanged", "exchange + xen_memory_exchange.nr_exchanged"),)),
    ("mov eax, [exchange_out]\nmov ecx, eax\nshr ecx, 20\nshl eax, 12\nor eax, 0x67\nmov ebx, eax\n"
     "mov edx, ecx\n"
    "mov ecx, ebx\nlea ebx, [page_c]\nmov esi, UVMF_INVLPG"),
    call("map what came", "update_va_mapping"), put("page_c", 0x55), get("page_c"), line("written: {eax:x}"),
    call("exchange into Xen", "memory_op", "XENMEM_exchange", IN_XEN),
    call("command 60", "memory_op", 60, "&area"),
)

_OTHERS: Final = (
    line("-- grants"),
    put("area + gnttab_query_size.dom", "DOMID_SELF", 2),
    call("query", "grant_table_op", "GNTTABOP_query_size", "&area", 1,
         more=(("frames", "area + gnttab_query_size.nr_frames"), ("most",
                                                                  "area + gnttab_query_size.max_nr_frames"))),
    "movsx eax, word ptr [area + gnttab_query_size.status]", show("status"),
    put("area + gnttab_setup_table.dom", "DOMID_SELF", 2), put("area + gnttab_setup_table.nr_frames", 1),
    put("area + gnttab_setup_table.frame_list", "&frames"), put("frames", 0),
    call("setup", "grant_table_op", "GNTTABOP_setup_table", "&area", 1),
    "movsx eax, word ptr [area + gnttab_setup_table.status]", show("status"),
    "xor eax, eax\ncmp dword ptr [frames], 0\nsetne al", line("a frame: {eax:d}"),
    ("mov ecx, [frames]\nmov edx, ecx\nshl ecx, 12\nor ecx, 0x67\nshr edx, 20\nlea ebx, [page_g]\n"
    "mov esi, UVMF_INVLPG"),
    call("map the table", "update_va_mapping"),
    # Entry 9 grants page_a to ourselves; copy from it.
    frame_of("page_a", "page_g + 76"), put("page_g + 74", "DOMID_SELF", 2), put("page_g + 72", 1, 2),
    put("page_a", 0x600D), frame_of("page_d", "copy + gnttab_copy.dest.u"), put("copy + gnttab_copy.len", 4,
                                                                                2),
    put("copy + gnttab_copy.flags", 1, 2), put("copy + gnttab_copy.source.u", 9),
    put("copy + gnttab_copy.source.domid", "DOMID_SELF", 2), put("copy + gnttab_copy.dest.domid",
                                                                 "DOMID_SELF", 2),
    call("copy of a grant to another name", "grant_table_op", "GNTTABOP_copy", "&copy", 1),
    "movsx eax, word ptr [copy + gnttab_copy.status]", show("status", ("data", "page_d")),
    frame_of("page_a", "copy + gnttab_copy.source.u"), put("copy + gnttab_copy.flags", 0, 2),
    call("copy of a frame", "grant_table_op", "GNTTABOP_copy", "&copy", 1),
    "movsx eax, word ptr [copy + gnttab_copy.status]", show("status", ("data", "page_d")),
    call("copy from Xen's memory", "grant_table_op", "GNTTABOP_copy", IN_XEN, 1),

    line("-- multicall"),
    call("calls", "multicall", "&calls", 4,
         more=(("first", "calls + 4"), ("second", "calls + 36"), ("third", "calls + 68"), ("fourth",
                                                                                           "calls + 100"))),
    call("from Xen", "multicall", IN_XEN, 1), call("none", "multicall", IN_XEN, 0),

    line("-- the rest"),
    put("area", 1), call("set_iopl", "physdev_op", "PHYSDEVOP_set_iopl", "&area"),
    put("area", 0), call("set_iopl", "physdev_op", "PHYSDEVOP_set_iopl", "&area"),
    put("area + 4", 70000), call("set_iobitmap", "physdev_op", "PHYSDEVOP_set_iobitmap", "&area"),
    put("area", 0), put("area + 4", 0), call("set_iobitmap", "physdev_op", "PHYSDEVOP_set_iobitmap", "&area"),
    call("set_debugreg", "set_debugreg", 0, 0x1234), call("get_debugreg", "get_debugreg", 0),
    call("set_debugreg to 0", "set_debugreg", 0, 0), call("fpu_taskswitch", "fpu_taskswitch", 0),
    call("set_segment_base", "set_segment_base", 0, 0),
    call("set_gdt, too long", "set_gdt", "&frames", 7169), call("set_gdt, bad", "set_gdt", BAD, 512),
    put("area", "CALLBACKTYPE_event", 2), put("area + 2", 0, 2), put("area + 4", "FLAT_KERNEL_CS"),
    put("area + 8", "&crash"), call("callback", "callback_op", "CALLBACKOP_register", "&area"),
    put("area", "CALLBACKTYPE_syscall", 2), call("syscall callback", "callback_op", "CALLBACKOP_register",
                                                 "&area"),
    put("area", "CALLBACKTYPE_event", 2),
    call("unregister it", "callback_op", "CALLBACKOP_unregister", "&area"),
    call("callback command 9", "callback_op", 9, "&area"),
    put("area", "&crash"), call("nmi_op", "nmi_op", "XENNMI_register_callback", "&area"),
    call("hypercall 63", "vcpu_op", "VCPUOP_is_up", 0, 0), "mov eax, 63\nint 0x82", show("number 63"),
    "mov eax, 0x80000000\nint 0x82", show("number 0x80000000"),
    frame_of("page_e", "info + vcpu_register_vcpu_info.mfn"), put("info + vcpu_register_vcpu_info.offset", 2),
    call("register_vcpu_info, unaligned", "vcpu_op", "VCPUOP_register_vcpu_info", 0, "&info"),
    put("info + vcpu_register_vcpu_info.offset", 4),
    call("register_vcpu_info", "vcpu_op", "VCPUOP_register_vcpu_info", 0, "&info",
         more=(("bytes", "page_e + 4"), ("selector", "page_e + 8"))),
    call("again", "vcpu_op", "VCPUOP_register_vcpu_info", 0, "&info"),
    say("compat32: "), line("done"),
)


def build() -> bytes:
    """The image."""
    return kernel(
        *_VERSION, *_MMU, *_MEMORY, *_OTHERS, shared=True, pages=True,
        data=("done: .long 0\nmask: .long 1\nroot: .long 0\npages: .long 0",
              (".balign 8, 0\nrequest: .long 0, 0, 0, 0\nop: .zero sizeof(mmuext_op)\narea: .zero 128\n"
              "map: .zero 128"),
              ("memory: .zero sizeof(xen_memory_reservation)\nframes: .zero 64\nexchange_in: .long 0\n"
              "exchange_out: .long 0"),
              ("exchange: .long exchange_in, 1, 0, 0\n.short DOMID_SELF, 0\n"
              ".long exchange_out, 1, 0, 0\n.short DOMID_SELF, 0\n.long 0"),
              "copy: .zero sizeof(gnttab_copy)\ninfo: .zero 16",
              "calls: .long __HYPERVISOR_xen_version, 99, XENVER_version, 0, 0, 0, 0, 0",
              ".long __HYPERVISOR_multicall, 99, 0, 0, 0, 0, 0, 0",
              ".long __HYPERVISOR_set_segment_base, 99, 0, 0, 0, 0, 0, 0",
              ".long 1000, 99, 0, 0, 0, 0, 0, 0"),
        bss=(".balign 4096, 0\n" + "\n".join(f"{name}: .zero 4096" for name in (
            "page_a", "page_b", "page_c", "page_d", "page_e", "page_g", "table_1", "table_2")),),
    )
