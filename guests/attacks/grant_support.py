"""What attacks on grants are written with: a mapped grant table, entries, each operation's status in rax."""

from __future__ import annotations

from typing import Final

from guests.attacks.support import expect, label
from guests.macros import hypercall, load, put

FIRST: Final = 8
"""The first reference that is the guest's (GNTTAB_NR_RESERVED_ENTRIES)."""
(
    GENERAL,
    BAD_DOMAIN,
    BAD_REFERENCE,
    BAD_HANDLE,
    BAD_ADDRESS,
    BAD_DEVICE,
    DENIED,
    BAD_PAGE,
    BAD_COPY,
    IN_USE,
) = (-1, -2, -3, -4, -5, -6, -8, -9, -10, -12)
"""GNTST_*: general_error, bad_domain, bad_gntref, bad_handle, bad_virt_addr, bad_dev_addr,
permission_denied, bad_page, bad_copy_arg, eagain."""

SETUP: Final = f"""
    xor ebx, ebx                        # the domain's own number: the one it may let ports wait for
find_number:
    mov [rip + argument + evtchn_alloc_unbound.dom], bx
    mov [rip + argument + evtchn_alloc_unbound.remote_dom], bx
    {hypercall("event_channel_op", "EVTCHNOP_alloc_unbound", "&argument")}
    test rax, rax
    jz number_found
    inc ebx
    cmp ebx, 0x7ff0
    jb find_number
    jmp crash
number_found:
    mov [rip + own_number], rbx
    {put("argument + gnttab_setup_table.dom", "DOMID_SELF", 2)}
    {put("argument + gnttab_setup_table.nr_frames", 1, 4)}
    {put("argument + gnttab_setup_table.frame_list", "&grant_frame")}
    {hypercall("grant_table_op", "GNTTABOP_setup_table", "&argument", 1)}
    test rax, rax
    jnz crash
    mov rsi, [rip + grant_frame]
    shl rsi, 12
    or rsi, 0x63
    {hypercall("update_va_mapping", "&grant_page", "rsi", "UVMF_INVLPG")}
    test rax, rax
    jnz crash
"""

DATA: Final = ".balign 8, 0\nown_number: .quad 0\ngrant_frame: .quad 0\nargument: .zero 64\nhandle: .quad 0"
BSS: Final = ".balign 4096, 0\ngrant_page: .zero 4096"


def _status(command: str, layout: str) -> str:
    return "\n".join(
        (
            hypercall("grant_table_op", f"GNTTABOP_{command}", "&argument", 1),
            "test rax, rax\njnz crash",  # what is thought of the request is in the request
            f"movsx rax, word ptr [rip + argument + {layout}.status]",
        )
    )


def entry(reference: int, flags: str | int, frame: str | int, domain: str = "[rip + own_number]") -> str:
    """Write an entry of version 1: the operand `domain` may use a frame."""
    return "\n".join(
        (
            load("rax", frame),
            "shl rax, 32",
            load("rcx", domain),
            "and ecx, 0xffff\nshl ecx, 16",
            f"or rcx, {flags}",
            f"or rax, rcx\nmov [rip + grant_page + {reference * 8}], rax",
        )
    )


def wide_entry(
    reference: int, flags: str | int, frame: str | int, middle: int = 0, domain: str = "[rip + own_number]"
) -> str:
    """Write an entry of version 2; `middle` is its upper half of the first word."""
    return "\n".join(
        (
            load("rax", frame),
            f"mov [rip + grant_page + {reference * 16 + 8}], rax",
            load("rcx", domain),
            "and ecx, 0xffff\nshl ecx, 16",
            f"or rcx, {flags}\nmov rax, {middle << 32}\nor rcx, rax",
            f"mov [rip + grant_page + {reference * 16}], rcx",
        )
    )


def map_grant(
    reference: int | str, flags: str | int, address: str | int, domain: str | int = "[rip + own_number]"
) -> str:
    """Map a grant; the handle goes to `handle` when it works."""
    return "\n".join(
        (
            put("argument + gnttab_map_grant_ref.host_addr", address),
            put("argument + gnttab_map_grant_ref.flags", flags, 4),
            put("argument + gnttab_map_grant_ref.ref", reference, 4),
            put("argument + gnttab_map_grant_ref.dom", domain, 2),
            put("argument + gnttab_map_grant_ref.handle", 0xFFFF_FFFF, 4),
            _status("map_grant_ref", "gnttab_map_grant_ref"),
            "mov ecx, [rip + argument + gnttab_map_grant_ref.handle]\nmov [rip + handle], rcx",
        )
    )


def unmap_grant(address: str | int, device: str | int = 0, handle: str | int = "[rip + handle]") -> str:
    """Unmap what `handle` stands for: at an address, at a device's address (machine bytes), or both."""
    return "\n".join(
        (
            put("argument + gnttab_unmap_grant_ref.host_addr", address),
            put("argument + gnttab_unmap_grant_ref.dev_bus_addr", device),
            put("argument + gnttab_unmap_grant_ref.handle", handle, 4),
            _status("unmap_grant_ref", "gnttab_unmap_grant_ref"),
        )
    )


def replace_grant(address: str | int, new: str | int, handle: str | int = "[rip + handle]") -> str:
    """Unmap, with the entry of another address moved in."""
    return "\n".join(
        (
            put("argument + gnttab_unmap_and_replace.host_addr", address),
            put("argument + gnttab_unmap_and_replace.new_addr", new),
            put("argument + gnttab_unmap_and_replace.handle", handle, 4),
            _status("unmap_and_replace", "gnttab_unmap_and_replace"),
        )
    )


def copy_grant(
    source: tuple[str | int, str | int, int], dest: tuple[str | int, str | int, int], length: int, flags: int
) -> str:
    """Copy: each end is (frame or reference, domain, offset)."""
    parts = []
    for end, (what, domain, offset) in (("source", source), ("dest", dest)):
        parts += [
            put(f"argument + gnttab_copy.{end}", what),
            put(f"argument + gnttab_copy.{end} + gnttab_copy_ptr.domid", domain, 2),
            put(f"argument + gnttab_copy.{end} + gnttab_copy_ptr.offset", offset, 2),
        ]
    parts += [
        put("argument + gnttab_copy.len", length, 2),
        put("argument + gnttab_copy.flags", flags, 2),
        _status("copy", "gnttab_copy"),
    ]
    return "\n".join(parts)


def transfer(frame: str | int, reference: int, domain: str | int = "[rip + own_number]") -> str:
    """Give a frame away."""
    return "\n".join(
        (
            put("argument + gnttab_transfer.mfn", frame),
            put("argument + gnttab_transfer.domid", domain, 2),
            put("argument + gnttab_transfer.ref", reference, 4),
            _status("transfer", "gnttab_transfer"),
        )
    )


def set_version(version: int) -> str:
    """The call's own result."""
    return "\n".join(
        (
            put("argument + gnttab_set_version.version", version, 4),
            hypercall("grant_table_op", "GNTTABOP_set_version", "&argument", 1),
        )
    )


def status_frames(count: int) -> str:
    """The frames of the status table, to `status_frame`. A call that fails itself answers so."""
    over = label("over")
    return "\n".join(
        (
            put("argument + gnttab_get_status_frames.nr_frames", count, 4),
            put("argument + gnttab_get_status_frames.dom", "DOMID_SELF", 2),
            put("argument + gnttab_get_status_frames.frame_list", "&status_frame"),
            hypercall("grant_table_op", "GNTTABOP_get_status_frames", "&argument", 1),
            f"test rax, rax\njnz {over}",
            "movsx rax, word ptr [rip + argument + gnttab_get_status_frames.status]",
            f"{over}:",
        )
    )


def refused(title: str, code: str, *statuses: int) -> str:
    """PASS when an operation answers one of these statuses (general_error by default)."""
    return code + "\n" + expect(title, *(statuses or (GENERAL,)))


def works(title: str, code: str) -> str:
    """PASS when it does."""
    return code + "\n" + expect(title, 0)
