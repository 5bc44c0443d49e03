"""The store's protocol: types, transactions, watches, paths, lengths and quotas that are not the guest's.

Sends requests of unknown types, those of a privileged domain's, transactions it has not begun, more of them
and more watches than it may have, nodes until its share is full, values and paths too long, paths that climb
out, payloads without an end; says a message is longer than any, and at last writes ring indices that are
further apart than the ring is long. A broken store lets a guest write a neighbour's nodes or its own
permissions (XSA-115, XSA-322), grows until the host has no memory left (XSA-326, XSA-419), or dies and
takes every domain's devices along (XSA-324, XSA-330). A correct one answers errors, and serves this guest no
more when its ring makes no sense.
"""

from __future__ import annotations

from struct import pack
from typing import Final

from firmware.abi import io_xs_wire as xs
from guests.assembler import VIRT_BASE
from guests.attacks.support import attack, expect, label
from guests.macros import hypercall

RING: Final = xs.xenstore_domain_interface.w64.offset
SIZE: Final = xs.XENSTORE_RING_SIZE
HEADER: Final = 16
PATIENCE: Final = 100_000
"""Yields after which no answer comes any more."""
SILENCE: Final = 3_000
ERROR: Final = xs.XS_ERROR
NODES, WATCHES, TRANSACTIONS = 1200, 200, 20
"""More than a domain may have (quotas of xenstored: 1000, 128, 10)."""
UNKNOWN: Final = 0x1234
"""A transaction nobody began."""

ROUTINES: Final = f"""
store_ask:                              # rsi -> request, ecx = its bytes -> rax = the reply's type, or -1
    call store_send
store_answer:                           # what comes next and is no watch's event
    lea rdi, [rip + reply]
    mov ecx, {HEADER}
    call store_take
    test rax, rax
    js store_over
    mov ecx, [rip + reply + 12]
    cmp ecx, {xs.XENSTORE_PAYLOAD_MAX}
    ja crash
    lea rdi, [rip + reply + {HEADER}]
    call store_take
    test rax, rax
    js store_over
    mov eax, [rip + reply]
    cmp eax, {xs.XS_WATCH_EVENT}
    je store_answer
store_over:
    ret

store_send:                             # a byte at a time, as long as there is room
    mov r8, [rip + store_ring]
    mov r9d, {PATIENCE}
send_byte:
    test ecx, ecx
    jz store_kick
    mov eax, [r8 + {RING["req_prod"]}]
    mov edx, eax
    sub edx, [r8 + {RING["req_cons"]}]
    cmp edx, {SIZE}
    jae send_wait
    mov edx, eax
    and edx, {SIZE - 1}
    mov r10b, [rsi]
    mov [r8 + rdx + {RING["req"]}], r10b
    inc rsi
    inc eax
    mov [r8 + {RING["req_prod"]}], eax
    dec ecx
    jmp send_byte
send_wait:
    dec r9d
    jz store_kick
    call store_kick
    call yield
    jmp send_byte

store_kick:
    push rcx
    push rsi
    push r8
    push r9
    {hypercall("event_channel_op", "EVTCHNOP_send", "&store_port")}
    pop r9
    pop r8
    pop rsi
    pop rcx
    ret

store_take:                             # rdi -> room for ecx bytes of the replies -> rax = 0, or -1
    mov r8, [rip + store_ring]
    mov r9d, [rip + patience]
take_byte:
    xor eax, eax
    test ecx, ecx
    jz taken
    mov edx, [r8 + {RING["rsp_cons"]}]
    cmp edx, [r8 + {RING["rsp_prod"]}]
    je take_wait
    mov eax, edx
    and eax, {SIZE - 1}
    mov al, [r8 + rax + {RING["rsp"]}]
    mov [rdi], al
    inc rdi
    inc edx
    mov [r8 + {RING["rsp_cons"]}], edx
    dec ecx
    jmp take_byte
take_wait:
    call store_kick_now
    call yield
    dec r9d
    jnz take_byte
    mov rax, -1
taken:
    ret
store_kick_now:
    push rdi
    call store_kick
    pop rdi
    ret
"""

_messages: list[str] = []


def message(kind: int, payload: bytes, transaction: int = 0, length: int | None = None) -> str:
    """Ask the store something; `length` is what the header says when that is not true."""
    name = label("message")
    raw = pack("<4I", kind, 0, transaction, len(payload) if length is None else length) + payload
    _messages.append(f"{name}: .byte " + ", ".join(map(str, raw)))
    return f"lea rsi, [rip + {name}]\nmov ecx, {len(raw)}\ncall store_ask"


def refused(title: str, kind: int, payload: bytes, transaction: int = 0) -> str:
    """PASS when the answer is an error."""
    return message(kind, payload, transaction) + "\n" + expect(title, ERROR)


def done(title: str, kind: int, payload: bytes, transaction: int = 0) -> str:
    """PASS when it is done."""
    return message(kind, payload, transaction) + "\n" + expect(title, kind)


def until_refused(title: str, most: int, kind: int, payload: bytes, place: int | None) -> str:
    """Ask again and again, with the count in four digits at `place`, until it is refused; PASS when it is."""
    name, again, over = label("flood"), label("again"), label("over")
    raw = pack("<4I", kind, 0, 0, len(payload)) + payload
    _messages.append(f"{name}: .byte " + ", ".join(map(str, raw)))
    digits = []
    if place is not None:
        digits = ["mov eax, r12d\nmov ecx, 10"]
        for at in range(HEADER + place + 3, HEADER + place - 1, -1):
            digits.append(f"xor edx, edx\ndiv ecx\nadd dl, 48\nmov [rip + {name} + {at}], dl")
    return "\n".join(
        (
            f"xor r12d, r12d\n{again}:",
            *digits,
            f"lea rsi, [rip + {name}]\nmov ecx, {len(raw)}\ncall store_ask",
            f"cmp rax, {kind}\njne {over}\ninc r12d\ncmp r12d, {most}\njb {again}\n{over}:",
            expect(title, ERROR),
        )
    )


def requests() -> str:
    """What is refused one by one."""
    parts = [done("a node of its own", xs.XS_WRITE, b"data/attack\0one")]
    parts += [
        refused(f"type {kind:#x}", kind, b"data/attack\0")
        for kind in (20, xs.XS_TYPE_COUNT, 100, 0x7FFF_FFFF, 0xFFFF_FFFF, xs.XS_WATCH_EVENT, xs.XS_ERROR)
    ]
    parts += [
        refused(f"{name}", kind, payload)
        for name, kind, payload in (
            ("a control command", xs.XS_CONTROL, b"check\0"),
            ("introducing a domain", xs.XS_INTRODUCE, b"1\0001\0001\0"),
            ("releasing a domain", xs.XS_RELEASE, b"1\0"),
            ("resuming a domain", xs.XS_RESUME, b"1\0"),
            ("a target", xs.XS_SET_TARGET, b"1\0002\0"),
            ("a neighbour's nodes", xs.XS_WRITE, b"/local/domain/0/attack\0one"),
            ("removing a neighbour", xs.XS_RM, b"/local/domain/0\0"),
            ("removing all", xs.XS_RM, b"/\0"),
            ("a node in the root", xs.XS_MKDIR, b"/attack\0"),
            ("its own home", xs.XS_RM, b"/local/domain\0"),
            ("permissions of the root", xs.XS_SET_PERMS, b"/\0b1\0"),
            ("another as owner", xs.XS_SET_PERMS, b"data/attack\0n0\0"),
            ("permissions that are none", xs.XS_SET_PERMS, b"data/attack\0x1\0"),
            ("permissions without a domain", xs.XS_SET_PERMS, b"data/attack\0b\0"),
            ("no permissions", xs.XS_SET_PERMS, b"data/attack\0"),
            ("a path without an end", xs.XS_READ, b"data/attack"),
            ("no path", xs.XS_READ, b""),
            ("an empty path", xs.XS_READ, b"\0"),
            ("two slashes", xs.XS_READ, b"data//attack\0"),
            ("a slash at the end", xs.XS_READ, b"data/attack/\0"),
            ("a node above", xs.XS_READ, b"../0/name\0"),
            ("a path that is no text", xs.XS_READ, b"data/\xff\x01\0"),
            ("a path too long", xs.XS_MKDIR, b"data/" + b"a" * 2100 + b"\0"),
            ("a path much too long", xs.XS_MKDIR, b"/" + b"a/" * 1600 + b"a\0"),
            ("a value too long", xs.XS_WRITE, b"data/attack\0" + b"v" * 3000),
            ("a write without a value", xs.XS_WRITE, b"data/attack"),
            ("a watch without a token", xs.XS_WATCH, b"data\0"),
            ("a watch of nothing", xs.XS_WATCH, b"\0token\0"),
            ("a watch it has not", xs.XS_UNWATCH, b"data\0token\0"),
            ("part of a directory without a place", xs.XS_DIRECTORY_PART, b"data\0"),
            ("the path of no number", xs.XS_GET_DOMAIN_PATH, b"\0\0"),
        )
    ]
    parts += [
        refused("a read in a transaction nobody began", xs.XS_READ, b"data/attack\0", UNKNOWN),
        refused("a write in it", xs.XS_WRITE, b"data/attack\0two", UNKNOWN),
        refused("its end", xs.XS_TRANSACTION_END, b"T\0", UNKNOWN),
        refused("the end of none", xs.XS_TRANSACTION_END, b"T\0"),
        refused("a transaction in it", xs.XS_TRANSACTION_START, b"\0", UNKNOWN),
        *(
            refused(f"transaction {number}", xs.XS_TRANSACTION_END, b"T\0", number)
            for number in (1, 2, 0xFFFF_FFFF)
        ),
        done("its node is there", xs.XS_READ, b"data/attack\0"),
        "mov ax, [rip + reply + 16]\nmov cl, [rip + reply + 18]\nmovzx eax, ax\nmovzx ecx, cl\nshl ecx, 16",
        "or eax, ecx",
        expect("and is as it was", int.from_bytes(b"one", "little")),
    ]
    return "\n".join(parts)


def floods() -> str:
    """What there is no end of."""
    return "\n".join(
        (
            until_refused("transactions", TRANSACTIONS, xs.XS_TRANSACTION_START, b"\0", None),
            until_refused("watches", WATCHES, xs.XS_WATCH, b"data\x000000\0", 5),
            until_refused("nodes", NODES, xs.XS_WRITE, b"data/node0000\0v", 9),
            refused("and none after", xs.XS_MKDIR, b"data/more\0"),
            done("what is there can be written", xs.XS_WRITE, b"data/attack\0three"),
            done("and removed", xs.XS_RM, b"data/node0000\0"),
            done("then there is room", xs.XS_MKDIR, b"data/more\0"),
            done("its watches go", xs.XS_RESET_WATCHES, b"\0"),
            done("its path is known", xs.XS_GET_DOMAIN_PATH, b"0\0"),
        )
    )


def build() -> bytes:
    """The image."""
    _messages.clear()
    asked = "\n".join(
        (
            requests(),
            floods(),
            f"mov dword ptr [rip + patience], {SILENCE}",
            message(xs.XS_READ, b"data\0", length=0xFFFF_FFFF),
            expect("a message of 4 GiB is not answered", -1),
            f"mov r8, [rip + store_ring]\nmov eax, [r8 + {RING['req_cons']}]\nadd eax, {SIZE + 1}",
            f"mov [r8 + {RING['req_prod']}], eax\nmov eax, [r8 + {RING['rsp_prod']}]\nadd eax, 0x7fffffff",
            f"mov [r8 + {RING['rsp_cons']}], eax\ncall store_kick",
            f"mov r8, [rip + store_ring]\nmov eax, [r8 + {RING['rsp_prod']}]\nmov [rip + answered], eax",
            "mov r12d, 100\nmany_yields:\ncall yield\ndec r12d\njnz many_yields",
            f"mov r8, [rip + store_ring]\nmov eax, [r8 + {RING['rsp_prod']}]\nsub eax, [rip + answered]",
            expect("nor are wild indices", 0),
        )
    )
    return attack(
        "mov rax, [rip + start_info_address]\nmov rcx, [rax + start_info.store_mfn]",
        "mov rdx, MACH2PHYS_VIRT_START\nmov rcx, [rdx + rcx*8]\nshl rcx, 12",
        f"mov rdx, {VIRT_BASE}\nadd rcx, rdx\nmov [rip + store_ring], rcx",
        "mov eax, [rax + start_info.store_evtchn]\nmov [rip + store_port], eax",
        asked,
        hypercall("sched_op", "SCHEDOP_yield", 0),
        expect("all is well", 0),
        text=(ROUTINES,),
        data=(
            ".balign 8, 0\nstore_ring: .quad 0\nstore_port: .quad 0\nanswered: .quad 0",
            f"patience: .quad {PATIENCE}",
            *_messages,
        ),
        bss=(f".balign 8, 0\nreply: .zero {HEADER + xs.XENSTORE_PAYLOAD_MAX}",),
    )
