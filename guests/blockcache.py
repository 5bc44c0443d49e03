"""blockcache: maps blocks of its disk xvda out of the buffer cache instead of reading them.

It waits for others to read block 0, maps it, and looks at it until it goes; then the same once more. After
that it gives a mapping back by itself. What a block holds is printed as its first eight bytes.
"""
from __future__ import annotations

from typing import Final

from guests import runtime
from guests.macros import get, hypercall, kernel, line, load, put

VDEV: Final = 51712
"""xvda (vbd-interface(7))."""
PAGE_FAULT: Final = 14

_FAULTS: Final = f"""
faulted:                                # rdi -> frame: go on at `resume`, which is for one page fault
    cmp qword ptr [rdi + {runtime.frame("vector")}], {PAGE_FAULT}
    jne trap_unexpected
    mov rax, [rip + resume]
    test rax, rax
    jz trap_unexpected
    mov [rdi + {runtime.frame("rip")}], rax
    mov rax, [rdi + {runtime.frame("error")}]
    mov [rip + fault_error], rax
    mov qword ptr [rip + resume], 0
    ret

gone_event:                             # rdi = port: the cache took a mapping away
    inc qword ptr [rip + events_seen]
    ret

look:                                   # rax = what the window shows; rbx = 1, or 0 when it shows nothing
    lea rax, [rip + look_nothing]
    mov [rip + resume], rax
    mov rax, [rip + window]
    mov ebx, 1
    mov qword ptr [rip + resume], 0
    ret
look_nothing:
    xor eax, eax
    xor ebx, ebx
    ret

scribble:                               # rbx = 1 when the window could be written
    lea rax, [rip + scribble_refused]
    mov [rip + resume], rax
    mov qword ptr [rip + window], 1
    mov ebx, 1
    mov qword ptr [rip + resume], 0
    ret
scribble_refused:
    xor ebx, ebx
    ret
"""


def operation(title: str, command: str, target: str = "argument") -> str:
    """One operation of the cache and its result."""
    return hypercall("block_cache_op", command, f"&{target}") + "\n" + line(title + ": {rax:d}")


def wait_until_cached(name: str) -> str:
    """Ask, and let others run, until block 0 is cached."""
    return "\n".join((
        put("query + blkcache_query.vdev", VDEV, 4), f"{name}_ask:", "call yield",
        hypercall("block_cache_op", "BLKCACHEOP_query", "&query"), "test rax, rax", "jnz crash",
        get("query + blkcache_query.state", 4), "cmp eax, BLKCACHE_cached", f"jne {name}_ask",
    ))


def watch(name: str) -> str:
    """Map block 0, try to write it, look at it until it is gone."""
    return "\n".join((
        wait_until_cached(name),
        put("argument + blkcache_map.vdev", VDEV, 4), put("argument + blkcache_map.flags", 0, 4),
        put("argument + blkcache_map.block", 0), put("argument + blkcache_map.host_addr", "&window"),
        operation("map", "BLKCACHEOP_map"), "call look", line("block 0: {rax:x}"),
        "call scribble", get("fault_error"), line("written: {rbx:d} error {rax:x}"),
        line("watching"), f"{name}_look:", "call yield", "call look", "test ebx, ebx", f"jnz {name}_look",
        put("shared_page + vcpu_info.evtchn_upcall_mask", 0, 1),
        hypercall("xen_version", 0, 0),
        put("shared_page + vcpu_info.evtchn_upcall_mask", 1, 1),
        line("gone: events {qword ptr [rip + events_seen]:d}"),
    ))


_MAIN: Final = (
    put("event_hook", "&gone_event"), put("trap_hook", "&faulted"),
    put("bind + evtchn_bind_virq.virq", "VIRQ_BLKCACHE", 4), put("bind + evtchn_bind_virq.vcpu", 0, 4),
    hypercall("event_channel_op", "EVTCHNOP_bind_virq", "&bind"), line("virq: {rax:d}"),
    operation("info", "BLKCACHEOP_info", "info"),
    get("info + blkcache_info.block_size", 4), line("blocks of {rax:d} bytes"),
    watch("first"), watch("second"),
    wait_until_cached("third"), operation("map", "BLKCACHEOP_map"), "call look", line("block 0: {rax:x}"),
    put("argument + blkcache_unmap.flags", 0, 4), put("argument + blkcache_unmap.pad", 0, 4),
    put("argument + blkcache_unmap.host_addr", "&window"),
    operation("unmap", "BLKCACHEOP_unmap"), "call look", line("shown: {rbx:d}"),
    operation("unmap again", "BLKCACHEOP_unmap"),
    load("rax", 0), line("blockcache: done"),
)


def build() -> bytes:
    """The image."""
    return kernel(
        *_MAIN, "ret", _FAULTS, events=True,
        data=(
            "resume: .quad 0\nfault_error: .quad 0\nevents_seen: .quad 0",
            "bind: .quad 0, 0\ninfo: .quad 0, 0\nquery: .quad 0, 0\nargument: .quad 0, 0, 0",
        ),
        bss=(".balign 4096, 0\nwindow: .zero 4096",),
    )
