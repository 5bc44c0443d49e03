"""PV guests that do one thing `count` times and power off. They run on real Xen too.

Source: Xen's public headers (arch-x86/xen-x86_64.h: bounce frames, struct iret_context, the call `iret`).
Register r15 counts down; the user half runs on the kernel's own page tables, given as user tables as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from guests.assembler import HYPERCALL_PAGE, HYPERCALL_SLOT, VIRT_BASE
from guests.macros import hypercall, kernel, line, number

UNMAPPED: Final = 0x1000
"""An address no table of a fresh guest maps."""

DONE: Final = line("done")

_IRET: Final = f"jmp {HYPERCALL_PAGE + HYPERCALL_SLOT * number('iret')}"
"""The slot pushes rcx, r11 and rax; flags and the processor's five words must lie below them."""

# Frame words in push order: ss, rsp, rflags (2: nothing set, events stay masked), cs, rip, flags.
_IRET_TO_SELF: Final = f"""
    mov rax, rsp
    push FLAT_KERNEL_SS64
    push rax
    push 2
    push FLAT_KERNEL_CS64 & 0xfffc      # no privilege level: back to the kernel
    lea rcx, [rip + iret_back]
    push rcx
    push 0
    {_IRET}
iret_back:
"""

_ENTER_USER: Final = f"""
    lea rax, [rip + user_stack_top]
    push FLAT_RING3_SS64
    push rax
    push 2
    push FLAT_RING3_CS64
    lea rcx, [rip + user_top]
    push rcx
    push 0
    {_IRET}
"""

# The root's machine frame: its page's place in the frame list start_info names.
_USER_TABLES: Final = f"""
    mov rdi, [rip + start_info_address]
    mov rax, [rdi + start_info.pt_base]
    sub rax, {VIRT_BASE - (1 << 64)}
    shr rax, 12
    mov rdx, [rdi + start_info.mfn_list]
    mov rax, [rdx + rax*8]
    mov [rip + user_root_mfn], rax
    {hypercall("mmuext_op", "&user_root", 1, 0, "DOMID_SELF")}
    {hypercall("stack_switch", "FLAT_KERNEL_SS64", "&kernel_stack_top")}
"""

_USER_DATA: Final = (
    ".balign 8\nuser_root: .long MMUEXT_NEW_USER_BASEPTR, 0", "user_root_mfn: .quad 0, 0",
)
_USER_BSS: Final = (
    # Whole pages, as kernels have them: a frame lies in one page.
    ".balign 4096\n.zero 4096\nkernel_stack_top: .zero 4096\nuser_stack_top:", "finish_stack: .quad 0",
)

_FINISH: Final = """
finish:
    mov rsp, [rip + finish_stack]
    jmp measured
"""


def _repeat(count: int, body: str) -> str:
    return f"mov r15, {count}\nagain:\n{body}\ndec r15\njnz again"


def hypercalls(count: int) -> bytes:
    """xen_version(XENVER_version): the shortest call there is."""
    return kernel(_repeat(count, hypercall("xen_version", 0, 0)), DONE)


def irets(count: int) -> bytes:
    """The hypercall iret, from the kernel to the kernel."""
    return kernel(_repeat(count, _IRET_TO_SELF), DONE)


def syscalls(count: int) -> bytes:
    """A user program's syscall that bounces to the kernel, which returns with iret."""
    body = f"""
    mov [rip + finish_stack], rsp
    {hypercall("set_callbacks", "&crash", "&crash", "&on_syscall")}
    {_USER_TABLES}
    mov r15, {count}
    {_ENTER_USER}
user_top:
    syscall
    dec r15
    jnz user_top
    ud2                                 # never reached: the handler leaves at the last one
on_syscall:                             # frame: rcx, r11, rip, cs, rflags, rsp, ss
    cmp r15, 1
    je finish
    pop rcx
    pop r11
    push 0
    {_IRET}
{_FINISH}
measured:
"""
    return kernel(body, DONE, data=_USER_DATA, bss=_USER_BSS)


def page_faults(count: int) -> bytes:
    """A user program's load from an unmapped page that bounces to the kernel, which skips it with iret."""
    body = f"""
    mov [rip + finish_stack], rsp
    {hypercall("set_trap_table", "&fault_table")}
    {_USER_TABLES}
    mov r14, {UNMAPPED}
    mov r15, {count}
    {_ENTER_USER}
user_top:
    mov rax, [r14]                      # three bytes
    dec r15
    jmp user_top
on_fault:                               # frame: rcx, r11, error code, rip, cs, rflags, rsp, ss
    cmp r15, 1
    je finish
    pop rcx
    pop r11
    add rsp, 8
    add qword ptr [rsp], 3
    push 0
    {_IRET}
{_FINISH}
measured:
"""
    # struct trap_info: vector, flags (3: user code may raise it), cs, address; an empty one ends the table.
    table = (".balign 8\nfault_table: .byte 14, 3", ".word FLAT_KERNEL_CS64", ".long 0", ".quad on_fault",
             ".zero 16")
    return kernel(body, DONE, data=(*_USER_DATA, *table), bss=_USER_BSS)


LOOPS: Final[dict[str, Callable[[int], bytes]]] = {
    "hypercall": hypercalls,
    "iret": irets,
    "syscall": syscalls,
    "page fault": page_faults,
}
"""What is measured, by name. The last two hold an iret each."""
