"""traps: takes every exception a 64-bit PV guest can, in kernel and in user mode, and prints what it saw."""
from __future__ import annotations

from typing import Final

from guests.macros import hypercall, line, load
from guests.probes import (
    AC,
    ID,
    IOPL,
    NON_CANONICAL,
    NT,
    READ_ONLY,
    TF,
    UNMAPPED,
    Probe,
    Probing,
)
from guests.runtime import frame

DESCRIPTORS: Final = {
    "data": 0x00CF_F300_0000_FFFF, "absent": 0x00CF_7300_0000_FFFF, "code32": 0x00CF_FB00_0000_FFFF,
    "read_only": 0x00CF_F100_0000_FFFF, "empty": 0,
}
"""Descriptors of the guest's own GDT, from entry 1 on."""


def selector(descriptor: str) -> int:
    """The selector of one of `DESCRIPTORS`, for ring 3."""
    return (list(DESCRIPTORS).index(descriptor) + 1) * 8 + 3


def flags(value: int) -> str:
    """Set these bits of RFLAGS."""
    return f"pushfq\nor qword ptr [rsp], {value}\npopfq"


def msr(index: int) -> str:
    """Put an MSR's index into ecx."""
    return f"mov ecx, {index}"


STATUS: Final = "\n".join((
    hypercall("get_debugreg", 6), line("DR6: {rax:x}"), hypercall("set_debugreg", 6, 0),
))
"""Show and clear the debug status."""
FORCED: Final = '.byte 0x0f, 0x0b, 0x78, 0x65, 0x6e'
"""ud2 and the text `xen`: Xen emulates the CPUID after it."""

EXCEPTIONS: Final = (
    Probe("nothing", "nop"),
    Probe("divide by zero", "xor ecx, ecx\ndiv ecx"),
    Probe("divide overflow", "mov edx, 5\nmov eax, 0\nmov ecx, 2\ndiv ecx"),
    Probe("single step", flags(TF) + "\nnop\nnop", after=STATUS),
    Probe("breakpoint", "int3"),
    Probe("breakpoint, long form", "int 3"),
    Probe("overflow", "int 4"),
    Probe("undefined", "ud2"),
    Probe("undefined after a prefix", ".byte 0xf0, 0x90"),
    Probe("forced, not cpuid", FORCED + "\nnop"),
    Probe("invalid in long mode", ".byte 0x06"),
    Probe("fpu, not switched", "fld1\nfstp st(0)"),
    Probe("fpu, switched", "fld1\nfstp st(0)", before=hypercall("fpu_taskswitch", 1)),
    Probe("fpu, the second time", "fld1\nfstp st(0)"),
    Probe("sse, switched", "xorps xmm0, xmm0", before=hypercall("fpu_taskswitch", 1)),
    Probe("fpu, switched back", "fld1\nfstp st(0)",
          before=hypercall("fpu_taskswitch", 1) + "\n" + hypercall("fpu_taskswitch", 0)),
    Probe("cleared by clts", "clts\nfld1\nfstp st(0)", before=hypercall("fpu_taskswitch", 1)),
)

PROTECTION: Final = (
    Probe("lgdt", "lgdt [rsp]"),
    Probe("lidt", "lidt [rsp]"),
    Probe("lldt", "xor eax, eax\nlldt ax"),
    Probe("ltr", "xor eax, eax\nltr ax"),
    Probe("hlt", "hlt"),
    Probe("cli", "cli"),
    Probe("sti", "sti"),
    Probe("in, user mode", "mov dx, 0x1234\nin al, dx", user=True),
    Probe("rdmsr of nothing", msr(0x1234_5678) + "\nrdmsr"),
    Probe("wrmsr to nothing", msr(0x1234_5678) + "\nwrmsr"),
    Probe("rdmsr of the FS base", msr(0xC000_0100) + "\nrdmsr"),
    Probe("non-canonical read", f"{load('rbx', NON_CANONICAL)}\nmov rax, [rbx]"),
    Probe("non-canonical write", f"{load('rbx', NON_CANONICAL)}\nmov [rbx], rax"),
    Probe("bad selector in ds", "mov eax, 0x1233\nmov ds, ax"),
    Probe("bad selector in fs", "mov eax, 0x1233\nmov fs, ax"),
    Probe("null selector in ds", "xor eax, eax\nmov ds, ax"),
    Probe("null selector in ss, ring 0", "xor eax, eax\nmov ss, ax"),
    Probe("refused int 0x20", "int 0x20"),
    Probe("int 0x21", "int 0x21"),
    Probe("int 0x22", "int 0x22"),
    Probe("int 0x23", "int 0x23"),
    Probe("int 0x80", "int 0x80"),
    Probe("int 14", "int 14"),
)

DESCRIPTOR_PROBES: Final = (
    Probe("present data", f"mov eax, {selector('data')}\nmov ds, ax\nxor eax, eax\nmov ds, ax"),
    Probe("absent data in ds", f"mov eax, {selector('absent')}\nmov ds, ax"),
    Probe("absent data in ss", f"mov eax, {selector('absent')}\nmov ss, ax"),
    Probe("data in ss", f"mov eax, {selector('data')}\nmov ss, ax\nmov eax, FLAT_KERNEL_SS\nmov ss, ax"),
    Probe("read-only in ss", f"mov eax, {selector('read_only')}\nmov ss, ax"),
    Probe("code in ss", f"mov eax, {selector('code32')}\nmov ss, ax"),
    Probe("empty descriptor", f"mov eax, {selector('empty')}\nmov es, ax"),
    Probe("behind the last descriptor", "mov eax, 0xdff3\nmov es, ax"),
)

PAGE_FAULTS: Final = (
    Probe("read, not present", f"{load('rbx', UNMAPPED)}\nmov rax, [rbx + 8]"),
    Probe("write, not present", f"{load('rbx', UNMAPPED)}\nmov [rbx + 16], rax"),
    Probe("execute, not present", f"{load('rbx', UNMAPPED)}\njmp rbx"),
    Probe("read-modify-write, not present", f"{load('rbx', UNMAPPED)}\nlock inc dword ptr [rbx]"),
    Probe("the null page", "xor ebx, ebx\nmov eax, [rbx]"),
    Probe("read of a read-only page", "mov rax, [rip + page_ro]"),
    Probe("write to a read-only page", "mov [rip + page_ro + 24], rax", near="page_ro"),
    Probe("execute a page that is not to be", "lea rax, [rip + page_nx]\njmp rax", near="page_nx"),
    Probe("read across into a hole", "mov rax, [rip + page_hole - 4]", near="page_hole"),
    Probe("write across into a hole", "mov [rip + page_hole - 1], rax", near="page_hole"),
    Probe("string store into a hole", "lea rdi, [rip + page_hole - 5]\nmov ecx, 9\nrep stosb",
          after=line("string store: {qword ptr [rip + seen_rcx]:d} left"), near="page_hole"),
    Probe("write to the M2P", f"{load('rbx', 0xFFFF_8000_0000_0000)}\nmov [rbx], rax"),
)

STACK: Final = (
    Probe("breakpoint, stack off by 3", "sub rsp, 3\nint3"),
    Probe("breakpoint, stack off by 8", "sub rsp, 8\nint3"),
    Probe("fault, stack off by 8", "sub rsp, 8\nud2"),
    Probe("page fault, stack off by 8", f"sub rsp, 8\n{load('rbx', UNMAPPED)}\nmov rax, [rbx]"),
)

FLAG_PROBES: Final = (
    Probe("nested task", flags(NT) + "\nint3"),
    Probe("alignment check", flags(AC) + "\nint3"),
    Probe("direction", "std\nint3"),
    Probe("identification", flags(ID) + "\nint3"),
    Probe("privilege asked for", flags(IOPL) + "\nint3"),
    Probe("interrupts asked off", "pushfq\nand qword ptr [rsp], -513\npopfq\nint3"),
    Probe("events open", "int3", before="mov byte ptr [rip + shared_page + vcpu_info.evtchn_upcall_mask], 0"),
    Probe("events open, int 0x23", "int 0x23",
          before="mov byte ptr [rip + shared_page + vcpu_info.evtchn_upcall_mask], 0"),
    Probe("cli, allowed", "cli\nsti\nint3",
          before=hypercall("physdev_op", "PHYSDEVOP_set_iopl", "&iopl_one")),
    Probe("cli, forbidden again", "cli",
          before=hypercall("physdev_op", "PHYSDEVOP_set_iopl", "&iopl_zero")),
)

DEBUG: Final = (
    Probe("execution breakpoint", "nop\nbreak_here: nop",
          before=hypercall("set_debugreg", 0, "&break_here") + "\n" + hypercall("set_debugreg", 7, 1),
          after=STATUS),
    Probe("no breakpoint", "nop\nbreak_there: nop",
          before=hypercall("set_debugreg", 0, "&break_there") + "\n" + hypercall("set_debugreg", 7, 0)),
)

USER_MODE: Final = (
    Probe("system call", "syscall", user=True),
    Probe("divide by zero", "xor ecx, ecx\ndiv ecx", user=True),
    Probe("single step", flags(TF) + "\nnop\nnop", user=True),
    Probe("breakpoint", "int3", user=True),
    Probe("overflow", "int 4", user=True),
    Probe("undefined", "ud2", user=True),
    Probe("refused int 0x20", "int 0x20", user=True),
    Probe("refused int 0x21", "int 0x21", user=True),
    Probe("int 0x22", "int 0x22", user=True),
    Probe("int 0x23", "int 0x23", user=True),
    Probe("int 0x80", "int 0x80", user=True),
    Probe("int 14", "int 14", user=True),
    Probe("hlt", "hlt", user=True),
    Probe("cli", "cli", user=True),
    Probe("clts", "clts", user=True),
    Probe("mov from cr0", "mov rax, cr0", user=True),
    Probe("mov to dr7", "xor eax, eax\nmov dr7, rax", user=True),
    Probe("rdmsr", msr(0xC000_0100) + "\nrdmsr", user=True),
    Probe("rdtsc", "rdtsc\nud2", user=True),
    Probe("fpu, switched", "fld1\nfstp st(0)", before=hypercall("fpu_taskswitch", 1), user=True),
    Probe("non-canonical read", f"{load('rbx', NON_CANONICAL)}\nmov rax, [rbx]", user=True),
    Probe("bad selector in ds", "mov eax, 0x1233\nmov ds, ax", user=True),
    Probe("read, not present", f"{load('rbx', UNMAPPED)}\nmov rax, [rbx]", user=True),
    Probe("write, not present", f"{load('rbx', UNMAPPED)}\nmov [rbx], rax", user=True),
    Probe("execute, not present", f"{load('rbx', UNMAPPED)}\njmp rbx", user=True),
    Probe("write to a read-only page", "mov [rip + page_ro], rax", near="page_ro", user=True),
    Probe("execute a page that is not to be", "lea rax, [rip + page_nx]\njmp rax", near="page_nx", user=True),
    Probe("direction", "std\nint3", user=True),
    Probe("alignment check", flags(AC) + "\nint3", user=True),
)

def iret(cs: str | int, ss: str | int, rflags: int = 0x202) -> str:
    """The iret hypercall to address 0x1000 with selectors of the caller's choice."""
    return "\n".join((
        *(f"{load('rax', word)}\npush rax" for word in (ss, "&user_stack_top", rflags, cs, 0x1000, 0)),
        "push rcx\npush r11\npush rax\nmov eax, __HYPERVISOR_iret\nsyscall",
    ))


SEND_NMI: Final = """
    mov edi, VCPUOP_send_nmi
    xor esi, esi
    xor edx, edx
    mov eax, __HYPERVISOR_vcpu_op
    syscall
"""

CALLBACKS: Final = (
    Probe("nmi", SEND_NMI, before=hypercall("callback_op", "CALLBACKOP_register", "&register_nmi")),
    Probe("another nmi", SEND_NMI),
    Probe("nmi, events open", SEND_NMI,
          before="mov byte ptr [rip + shared_page + vcpu_info.evtchn_upcall_mask], 0"),
    Probe("system call that masks events", "syscall", user=True,
          before=hypercall("callback_op", "CALLBACKOP_register", "&register_masking")),
    Probe("system call that does not", "syscall", user=True,
          before=hypercall("callback_op", "CALLBACKOP_register", "&register_open")),
    Probe("iret to a bad code selector", iret(0x1233, "FLAT_USER_SS")),
    Probe("iret to a bad stack selector", iret("FLAT_USER_CS", 0x1233)),
    Probe("iret to a null code selector", iret(3, "FLAT_USER_SS")),
    Probe("iret to the kernel, bad code selector", iret(0x1230, "FLAT_KERNEL_SS", 2)),
    Probe("iret to the kernel, bad stack selector", iret(0xE030, 0x1230, 2)),
    Probe("iret to the kernel", iret(0xE030, "FLAT_KERNEL_SS", 2)),
    Probe("iret with privilege and NT", iret("FLAT_USER_CS", "FLAT_USER_SS", 0x7202)),
    Probe("iret with events masked", iret("FLAT_USER_CS", "FLAT_USER_SS", 2)),
)

_GDT: Final = f"""
    lea rdi, [rip + gdt_page]
    mov esi, {READ_ONLY}
    call remap
    call machine_frame
    mov [rip + gdt_frame], rax
    {hypercall("set_gdt", "&gdt_frame", 512)}
    {line("set_gdt: {rax:d}")}
"""

_RESULTS: Final = f"""
    mov eax, 0x40000000
    xor ecx, ecx
    {FORCED}
    cpuid
    {line("forced cpuid: {rbx:x} {rcx:x} {rdx:x}")}
    mov eax, 0x40000001
    xor ecx, ecx
    {FORCED}
    cpuid
    {line("version: {rax:x}")}
    {hypercall("fpu_taskswitch", 1)}
    mov rax, cr0
    and eax, 8
    {line("task switched: {rax:d}")}
    clts
    mov rax, cr0
    and eax, 8
    {line("after clts: {rax:d}")}
    mov eax, 0x12345000
    xor edx, edx
    mov ecx, 0xc0000100
    wrmsr
    xor eax, eax
    rdmsr
    {line("FS base: {rax:x} {rdx:x}")}
    {hypercall("set_segment_base", 0, 0)}
    {hypercall("set_debugreg", 7, 0)}
    {hypercall("get_debugreg", 7)}
    {line("DR7: {rax:x}")}
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov rbx, rax
    rdtsc
    shl rdx, 32
    or rax, rdx
    cmp rbx, rax
    setb al
    movzx eax, al
    {line("time passes: {rax:d}")}
"""

_NESTED: Final = f"""
    mov qword ptr [rip + nested_depth], 0
    lea rax, [rip + nested_hook]
    mov [rip + trap_hook], rax
    int3
nested_back:
    {line("nested: depth {qword ptr [rip + nested_depth]:d}")}
"""

_NESTED_HOOK: Final = f"""
nested_hook:                            # each handler takes a trap of its own, four deep
    inc qword ptr [rip + nested_depth]
    {line(f"nested: vector {{qword ptr [rdi + {frame('vector')}]:d}}")}
    cmp qword ptr [rip + nested_depth], 4
    jae nested_unwind
    push rdi
    ud2
    pop rdi
nested_unwind:
    cmp qword ptr [rdi + {frame("vector")}], 6
    jne nested_done
    add qword ptr [rdi + {frame("rip")}], 2
nested_done:
    ret
"""


def build() -> bytes:
    """The image."""
    probing = Probing()
    probing.group("exceptions", EXCEPTIONS)
    probing.group("protection", PROTECTION)
    probing.group("page faults", PAGE_FAULTS)
    probing.group("stack", STACK)
    probing.group("flags", FLAG_PROBES)
    probing.group("debug registers", DEBUG)
    probing.group("user mode", USER_MODE)
    probing.group("callbacks", CALLBACKS)
    probing.main.append(_GDT)
    probing.group("descriptors", DESCRIPTOR_PROBES)
    probing.main.extend((line("-- results"), _RESULTS, _NESTED, line("traps: done")))
    return probing.image(_NESTED_HOOK, data=(
        "nested_depth: .quad 0\ngdt_frame: .quad 0\niopl_zero: .quad 0\niopl_one: .quad 1",
        "register_nmi: .short CALLBACKTYPE_nmi, 0, 0, 0\n.quad nmi",
        "register_masking: .short CALLBACKTYPE_syscall, CALLBACKF_mask_events, 0, 0\n.quad system_call",
        "register_open: .short CALLBACKTYPE_syscall, 0, 0, 0\n.quad system_call",
        ".balign 4096, 0\ngdt_page: .quad 0",
        *(f".quad {descriptor}" for descriptor in DESCRIPTORS.values()), ".balign 4096, 0",
    ))
