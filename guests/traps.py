"""traps: takes every exception a 64-bit PV guest can, in kernel and in user mode, and prints what it saw.

Each probe runs a few instructions and expects at most one trap, after which the next probe goes on. Its
line says: vector and error code (-1: none), RIP from the probe's start, selectors, whether events were masked
before and in the handler, RFLAGS likewise as far as a probe can know them, how far below the interrupted
stack pointer the frame lies (kernel mode only: the user's stack is another one), CR2 for a page fault, and
how many traps there were when it was not one. Nothing depends on machine frames, addresses or time.

Vectors from 256 on stand for the system call, failsafe and NMI entries.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from guests.macros import hypercall, kernel, line, load, say, text
from guests.runtime import frame

TF, IF, DF, IOPL, NT, AC, ID = 0x100, 0x200, 0x400, 0x3000, 0x4000, 0x40000, 0x200000
KNOWN_FLAGS: Final = TF | IF | DF | IOPL | NT | AC | ID
"""What a probe's line shows of RFLAGS; the arithmetic flags are undefined after some faults."""
PRESENT, WRITABLE, USER, ACCESSED, DIRTY = 1, 2, 4, 0x20, 0x40
READ_WRITE: Final = PRESENT | WRITABLE | USER | ACCESSED | DIRTY
READ_ONLY: Final = PRESENT | USER | ACCESSED | DIRTY
NO_EXECUTE: Final = 1 << 63
UNMAPPED: Final = 0x7000_0000_0000
"""An address of the lower half that nothing maps."""
NON_CANONICAL: Final = 0x8000_0000_0000_0000
SYSTEM_CALL, FAILSAFE, NMI = 256, 257, 258

SOFTWARE: Final = {0x20: 0, 0x21: 1, 0x22: 3, 0x23: 3 | 4, 0x80: 3}
"""Software interrupts: privilege level, and 4 where the handler starts with events masked."""

DESCRIPTORS: Final = {
    "data": 0x00CF_F300_0000_FFFF, "absent": 0x00CF_7300_0000_FFFF, "code32": 0x00CF_FB00_0000_FFFF,
    "read_only": 0x00CF_F100_0000_FFFF, "empty": 0,
}
"""Descriptors of the guest's own GDT, from entry 1 on."""


def selector(descriptor: str) -> int:
    """The selector of one of `DESCRIPTORS`, for ring 3."""
    return (list(DESCRIPTORS).index(descriptor) + 1) * 8 + 3


@dataclass(frozen=True, slots=True)
class Probe:
    """Instructions to trap in; `before` and `after` run outside. CR2 is told from the label `near`."""

    name: str
    code: str
    before: str = ""
    after: str = ""
    near: str = ""
    user: bool = False


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

SEEN: Final = ("count", "vector", "error", "rip", "cs", "rflags", "rsp", "ss", "rcx", "frame", "cr2",
               "handler_flags", "mask")
"""What the hook notes of a probe's last trap."""

_HOOK: Final = """
probe_hook:                             # rdi -> frame: note it, then go on after the probe, in kernel mode
    pushfq
    pop rax
    mov [rip + seen_handler_flags], rax
""" + "\n".join(
    f"mov rax, [rdi + {frame(word)}]\nmov [rip + seen_{word}], rax"
    for word in ("vector", "error", "rip", "cs", "rflags", "rsp", "ss", "rcx")
) + f"""
    lea rax, [rdi + {frame("rip")}]
    mov [rip + seen_frame], rax
    lea rsi, [rip + shared_page]
    movzx eax, byte ptr [rsi + vcpu_info.evtchn_upcall_mask]
    mov [rip + seen_mask], rax
    mov rax, [rsi + vcpu_info.arch.cr2]
    mov [rip + seen_cr2], rax
    inc qword ptr [rip + seen_count]
    mov rax, [rip + probe_resume]
    mov [rdi + {frame("rip")}], rax
    mov rax, [rip + probe_stack]
    mov [rdi + {frame("rsp")}], rax
    mov qword ptr [rdi + {frame("rflags")}], 2
    mov qword ptr [rdi + {frame("cs")}], {0xE030}
    mov qword ptr [rdi + {frame("ss")}], FLAT_KERNEL_SS
    ret

system_call:                            # a user's system call, as a trap of its own vector
    pop rcx
    pop r11
    push -1
    push {SYSTEM_CALL}
    jmp trap_common

failsafe:                               # a return to the guest failed: the data selectors are on the stack
    pop rcx
    pop r11
    add rsp, 32
    push -1
    push {FAILSAFE}
    jmp trap_common

nmi:
    pop rcx
    pop r11
    push -1
    push {NMI}
    jmp trap_common

enter_user:                             # rax = where; does not return: the probe's trap goes on elsewhere
    push FLAT_USER_SS
    lea rcx, [rip + user_stack_top]
    push rcx
    push 0x202
    push FLAT_USER_CS
    push rax
    push 0
    push rcx
    push r11
    push rax
    mov eax, __HYPERVISOR_iret
    syscall
"""

_REPORT: Final = f"""
probe_report:                           # rsi = name, rdi = start, rdx = what CR2 is told from
    {say("{rsi:s}: ")}
    cmp qword ptr [rip + seen_count], 0
    jne report_trap
    {line("no trap")}
    ret
report_trap:
    mov rax, [rip + seen_rip]
    sub rax, rdi
    mov rcx, [rip + seen_rflags]
    and ecx, {KNOWN_FLAGS}
    mov r8, [rip + seen_handler_flags]
    and r8d, {KNOWN_FLAGS}
    movzx r9d, word ptr [rip + seen_cs]
    movzx r10d, byte ptr [rip + seen_cs + 4]
    mov r11, [rip + seen_rip]
    shr r11, 32
    cmp r11d, -1
    je report_rip
    mov rax, [rip + seen_rip]
report_rip:
    {say("vector {qword ptr [rip + seen_vector]:d} error {qword ptr [rip + seen_error]:d} rip {rax:x}")}
    {say(" cs {r9:x} ss {qword ptr [rip + seen_ss]:x} masked {r10:d} then {qword ptr [rip + seen_mask]:d}")}
    {say(" flags {rcx:x} then {r8:x}")}
    movzx eax, byte ptr [rip + seen_cs]
    test al, 3
    jnz report_count
    mov rax, [rip + seen_rsp]
    sub rax, [rip + seen_frame]
    {say(" frame {rax:d}")}
report_count:
    cmp qword ptr [rip + seen_count], 1
    je report_cr2
    {say(" traps {qword ptr [rip + seen_count]:d}")}
report_cr2:
    cmp qword ptr [rip + seen_vector], 14
    jne report_done
    mov rax, [rip + seen_cr2]
    sub rax, rdx
    {say(" cr2 {rax:x}")}
report_done:
    {line("")}
    ret
"""

_SETUP: Final = f"""
    lea rdi, [rip + page_ro]
    mov esi, {READ_ONLY}
    call remap
    lea rdi, [rip + page_nx]
    mov rsi, {READ_WRITE | NO_EXECUTE}
    call remap
    lea rdi, [rip + page_hole]
    xor esi, esi
    {hypercall("update_va_mapping", "rdi", "rsi", "UVMF_INVLPG")}
    lea rax, [rip + probe_hook]
    mov [rip + trap_hook], rax
    {hypercall("set_callbacks", "&crash", "&failsafe", "&system_call")}
    {hypercall("stack_switch", "FLAT_KERNEL_SS", "&trap_stack_top")}
    mov rdi, [rip + start_info_address]
    mov rdi, [rdi + start_info.pt_base]
    call machine_frame
    mov [rip + user_base + mmuext_op.arg1], rax
    {hypercall("mmuext_op", "&user_base", 1, 0, "DOMID_SELF")}
    {line("user page tables: {rax:d}")}
"""

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


def _emit(group: str, probes: tuple[Probe, ...], names: list[str]) -> Iterator[str]:
    """The code of a group of probes; their names go to the data section."""
    yield line(f"-- {group}")
    for probe in probes:
        tag = f"probe{len(names)}"
        names.append(f"{tag}_name:\n{text(probe.name)}")
        yield "\n".join((
            probe.before,
            f"lea rax, [rip + {tag}_end]", "mov [rip + probe_resume], rax", "mov [rip + probe_stack], rsp",
            "mov qword ptr [rip + seen_count], 0",
            f"lea rax, [rip + {tag}_start]\njmp enter_user" if probe.user else "",
            f"{tag}_start:", probe.code, "syscall" if probe.user else "",
            f"{tag}_end:",
            probe.after, load("rsi", f"&{tag}_name"), load("rdi", f"&{tag}_start"),
            load("rdx", f"&{probe.near}" if probe.near else 0), "call probe_report",
        ))


def build() -> bytes:
    """The image."""
    names: list[str] = []
    main = [
        _SETUP,
        *_emit("exceptions", EXCEPTIONS, names),
        *_emit("protection", PROTECTION, names),
        *_emit("page faults", PAGE_FAULTS, names),
        *_emit("stack", STACK, names),
        *_emit("flags", FLAG_PROBES, names),
        *_emit("debug registers", DEBUG, names),
        *_emit("user mode", USER_MODE, names),
        *_emit("callbacks", CALLBACKS, names),
        _GDT,
        *_emit("descriptors", DESCRIPTOR_PROBES, names),
        line("-- results"),
        _RESULTS,
        _NESTED,
        line("traps: done"),
        "ret",
        _HOOK, _REPORT, _NESTED_HOOK,
    ]
    data = [
        *names, *(f"seen_{word}: .quad 0" for word in SEEN),
        "probe_resume: .quad 0\nprobe_stack: .quad 0\nnested_depth: .quad 0\ngdt_frame: .quad 0",
        "user_base: .quad MMUEXT_NEW_USER_BASEPTR, 0, 0",
        "iopl_zero: .quad 0\niopl_one: .quad 1",
        "register_nmi: .short CALLBACKTYPE_nmi, 0, 0, 0\n.quad nmi",
        "register_masking: .short CALLBACKTYPE_syscall, CALLBACKF_mask_events, 0, 0\n.quad system_call",
        "register_open: .short CALLBACKTYPE_syscall, 0, 0, 0\n.quad system_call",
        ".balign 4096, 0\ngdt_page: .quad 0",
        *(f".quad {descriptor}" for descriptor in DESCRIPTORS.values()), ".balign 4096, 0",
    ]
    bss = [
        ".balign 4096, 0\npage_ro: .zero 4096\npage_nx: .zero 4096",
        "page_before: .zero 4096\npage_hole: .zero 4096",
        "trap_stack: .zero 8192\ntrap_stack_top:\nuser_stack: .zero 4096\nuser_stack_top:",
    ]
    return kernel(*main, data=data, bss=bss, traps=True, pages=True, trap_flags={3: 3, 4: 3, **SOFTWARE})
