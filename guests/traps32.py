"""traps32: takes every exception a 32-bit PAE guest can, in ring 1 and in ring 3, and prints what it saw.

What Xen does, and why it is expected (nobody recorded it, as Debian's Xen has no 32-bit PV):

- A frame is hardware's: error code, EIP, CS with the upcall mask in bits 16 to 23, EFLAGS with IF as the mask
  says and IOPL 0, and from an outer ring ESP and SS. From ring 1 it lies right below the interrupted stack
  pointer, else below the stack of stack_switch. TF, NT and RF are cleared; AC stays, as it does nothing in
  ring 1.
- A page fault's U bit says whether the guest's user mode caused it: for ring 1 it is clear.
- `int N` goes through the real IDT: 3, 4 and 0x80 are open to all, 0x82 to ring 1. Others trap as #GP with
  8 N + 2, and Xen lets it through if the guest's own entry has a level of at least 1 from ring 1, 3 from
  ring 3.
- `syscall` is undefined in 32-bit code on an Intel processor.
- The iret hypercall reads EAX, EIP, CS, EFLAGS and for an outer ring ESP, SS. One that cannot be loaded
  faults with the context already the new one. Virtual-8086 mode is refused with #GP on the kernel stack.
- Returning to an outer ring nulls data segments that ring may not have, as the processor's IRET does.
- The M2P at 0xF5800000 can be read by ring 1 only and written by nobody.
- Descriptors get a privilege level of 1 at least; those of Xen cannot be loaded.
"""
from __future__ import annotations

from typing import Final

from guests.macros32 import hypercall, line, load
from guests.probes import AC, ID, IOPL, NT, READ_ONLY, TF, Probe
from guests.probes32 import UNMAPPED, Probing

DESCRIPTORS: Final = {
    "data1": 0x00CF_B300_0000_FFFF, "data3": 0x00CF_F300_0000_FFFF, "absent": 0x00CF_3300_0000_FFFF,
    "code1": 0x00CF_BB00_0000_FFFF, "read_only": 0x00CF_B100_0000_FFFF, "empty": 0,
    "ring0": 0x00CF_9300_0000_FFFF, "code3": 0x00CF_FB00_0000_FFFF,
}
"""Descriptors of the guest's own GDT, from entry 1 on. `ring0` is one that Xen raises to ring 1."""
M2P: Final = 0xF580_0000


def selector(descriptor: str, ring: int = 1, table: int = 0) -> int:
    """The selector of one of `DESCRIPTORS`; `table` is 4 for the LDT."""
    return (list(DESCRIPTORS).index(descriptor) + 1) * 8 + ring + table


def flags(value: int) -> str:
    """Set these bits of EFLAGS."""
    return f"pushfd\nor dword ptr [esp], {value}\npopfd"


def data(register: str, value: int) -> str:
    """Load a selector."""
    return f"mov eax, {value}\nmov {register}, ax"



STATUS: Final = "\n".join((
    hypercall("get_debugreg", 6), line("DR6: {eax:x}"), hypercall("set_debugreg", 6, 0),
))
FORCED: Final = ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e"
SYSCALL: Final = ".byte 0x0f, 0x05"
FPU: Final = "fld1\nfstp st(0)"
OPEN: Final = "mov byte ptr [shared_page + vcpu_info.evtchn_upcall_mask], 0"

EXCEPTIONS: Final = (
    Probe("nothing", "nop"),
    Probe("divide by zero", "xor ecx, ecx\ndiv ecx"),
    Probe("single step", flags(TF) + "\nnop\nnop", after=STATUS),
    Probe("breakpoint", "int3"),
    Probe("breakpoint, long form", "int 3"),
    Probe("overflow", "mov eax, 0x7fffffff\ninc eax\n.byte 0xce"),
    Probe("int 4", "int 4"),
    Probe("bounds", "lea ecx, [bounds]\nmov eax, 5\nbound eax, [ecx]"),
    Probe("undefined", "ud2"),
    Probe("undefined after a prefix", ".byte 0xf0, 0x90"),
    Probe("forced, not cpuid", FORCED + "\nnop"),
    Probe("syscall", SYSCALL),
    Probe("fpu, switched", FPU, before=hypercall("fpu_taskswitch", 1)),
    Probe("fpu, the second time", FPU),
    Probe("sse, switched", "xorps xmm0, xmm0", before=hypercall("fpu_taskswitch", 1)),
    Probe("cleared by clts", "clts\n" + FPU, before=hypercall("fpu_taskswitch", 1)),
)

PROTECTION: Final = (
    Probe("lgdt", "lgdt [esp]"), Probe("lidt", "lidt [esp]"),
    Probe("lldt", "xor eax, eax\nlldt ax"), Probe("ltr", "xor eax, eax\nltr ax"),
    Probe("hlt", "hlt"), Probe("cli", "cli"), Probe("sti", "sti"),
    Probe("rdmsr of nothing", "mov ecx, 0x12345678\nrdmsr"),
    Probe("wrmsr of the FS base", "mov ecx, 0xc0000100\nxor eax, eax\nxor edx, edx\nwrmsr"),
    Probe("bad selector in ds", data("ds", 0x1231)),
    Probe("bad selector of no LDT", data("es", 0x1235)),
    Probe("Xen's data in ds", data("ds", 0xE010)),
    Probe("Xen's code in es", data("es", 0xE008)),
    Probe("null selector in fs", data("fs", 0)),
    Probe("null selector in ss", data("ss", 0)),
    Probe("null selector in ss, ring 1", data("ss", 1)),
    Probe("user data in ds", data("ds", 0xE033)),
    Probe("user data in ss", data("ss", 0xE033)),
    Probe("user code in ss", data("ss", 0xE02B)),
    Probe("kernel code in gs", data("gs", 0xE019)),
    Probe("far jump to Xen's code", ".byte 0xea\n.long far_here\n.short 0xe008\nfar_here: nop"),
    Probe("far jump to user code", ".byte 0xea\n.long far_there\n.short 0xe02b\nfar_there: nop"),
    Probe("far jump to kernel code", ".byte 0xea\n.long far_home\n.short 0xe019\nfar_home: nop"),
    Probe("refused int 0x20", "int 0x20"),
    Probe("int 0x21", "int 0x21"), Probe("int 0x22", "int 0x22"), Probe("int 0x23", "int 0x23"),
    Probe("int 0x25", "int 0x25"), Probe("int 0x80", "int 0x80"), Probe("int 14", "int 14"),
)

PAGE_FAULTS: Final = (
    Probe("read, not present", f"{load('ebx', UNMAPPED)}\nmov eax, [ebx + 8]"),
    Probe("write, not present", f"{load('ebx', UNMAPPED)}\nmov [ebx + 16], eax"),
    Probe("execute, not present", f"{load('ebx', UNMAPPED)}\njmp ebx"),
    Probe("the null page", "xor ebx, ebx\nmov eax, [ebx]"),
    Probe("read of a read-only page", "mov eax, [page_ro]"),
    Probe("write to a read-only page", "mov [page_ro + 24], eax", near="page_ro"),
    Probe("write to a page of the kernel", "mov [page_kernel + 24], eax"),
    Probe("execute a page that is not to be", "lea eax, [page_nx]\njmp eax", near="page_nx"),
    Probe("write across into a hole", "mov [page_hole - 1], eax", near="page_hole"),
    Probe("read of the M2P", f"mov eax, [{M2P}]"),
    Probe("write to the M2P", f"mov dword ptr [{M2P}], 0"),
    Probe("behind the M2P", "mov eax, [0xffe00000]"),
)

STACK: Final = (
    Probe("breakpoint, stack off by 3", "sub esp, 3\nint3"),
    Probe("page fault, stack off by 8", f"sub esp, 8\n{load('ebx', UNMAPPED)}\nmov eax, [ebx]"),
)

FLAG_PROBES: Final = (
    Probe("nested task", flags(NT) + "\nint3"),
    Probe("alignment check", flags(AC) + "\nint3"),
    Probe("direction", "std\nint3"),
    Probe("identification", flags(ID) + "\nint3"),
    Probe("privilege asked for", flags(IOPL) + "\nint3"),
    Probe("interrupts asked off", "pushfd\nand dword ptr [esp], -513\npopfd\nint3"),
    Probe("events open", "int3", before=OPEN),
    Probe("events open, int 0x23", "int 0x23", before=OPEN),
    Probe("cli, allowed", "cli\nsti\nint3",
          before=hypercall("physdev_op", "PHYSDEVOP_set_iopl", "&iopl_one")),
    Probe("cli, forbidden again", "cli",
          before=hypercall("physdev_op", "PHYSDEVOP_set_iopl", "&iopl_zero")),
)

DEBUG: Final = (
    Probe("execution breakpoint", "nop\nbreak_here: nop",
          before=hypercall("set_debugreg", 0, "&break_here") + "\n" + hypercall("set_debugreg", 7, 1),
          after=STATUS + "\n" + hypercall("set_debugreg", 7, 0)),
)

USER_MODE: Final = (
    Probe("divide by zero", "xor ecx, ecx\ndiv ecx", user=True),
    Probe("single step", flags(TF) + "\nnop\nnop", user=True),
    Probe("breakpoint", "int3", user=True),
    Probe("overflow", "int 4", user=True),
    Probe("undefined", "ud2", user=True),
    Probe("system call", "int 0x24", user=True),
    Probe("syscall", SYSCALL, user=True),
    Probe("hypercall", "xor eax, eax\nint 0x82", user=True),
    Probe("hypercall page", "call 0xc0000220", user=True),
    Probe("refused int 0x20", "int 0x20", user=True), Probe("refused int 0x21", "int 0x21", user=True),
    Probe("int 0x22", "int 0x22", user=True), Probe("int 0x23", "int 0x23", user=True),
    Probe("refused int 0x25", "int 0x25", user=True), Probe("int 0x80", "int 0x80", user=True),
    Probe("int 14", "int 14", user=True),
    Probe("hlt", "hlt", user=True), Probe("cli", "cli", user=True), Probe("clts", "clts", user=True),
    Probe("mov from cr0", "mov eax, cr0", user=True),
    Probe("mov to dr7", "xor eax, eax\nmov dr7, eax", user=True),
    Probe("rdmsr", "mov ecx, 0xc0000100\nrdmsr", user=True),
    Probe("in", "mov dx, 0x1234\nin al, dx", user=True),
    Probe("fpu, switched", FPU, before=hypercall("fpu_taskswitch", 1), user=True),
    Probe("bad selector in ds", data("ds", 0x1233), user=True),
    Probe("kernel data in ds", data("ds", 0xE021), user=True),
    Probe("kernel data in ss", data("ss", 0xE021), user=True),
    Probe("read, not present", f"{load('ebx', UNMAPPED)}\nmov eax, [ebx]", user=True),
    Probe("write, not present", f"{load('ebx', UNMAPPED)}\nmov [ebx], eax", user=True),
    Probe("execute, not present", f"{load('ebx', UNMAPPED)}\njmp ebx", user=True),
    Probe("write to a read-only page", "mov [page_ro], eax", near="page_ro", user=True),
    Probe("read of a page of the kernel", "mov eax, [page_kernel]", near="page_kernel", user=True),
    Probe("execute a page that is not to be", "lea eax, [page_nx]\njmp eax", near="page_nx", user=True),
    Probe("read of the M2P", f"mov eax, [{M2P}]", user=True),
    Probe("direction", "std\nint3", user=True),
    Probe("alignment check", flags(AC) + "\nint3", user=True),
    Probe("events open", "int3", before=OPEN, user=True),
)

DATA_SEGMENTS: Final = (
    Probe("kernel data taken to ring 3", "lea eax, [outside]\njmp enter_outside",
          after=line("ds there: {dword ptr [seen_eax]:x}")),
    Probe("native iret to ring 3, then a hypercall",
          "push FLAT_USER_SS\nlea ecx, [user_stack_top]\npush ecx\npush 0x202\npush FLAT_USER_CS\n"
          "lea ecx, [calling]\npush ecx\niretd"),
    Probe("far return to ring 3, then a page fault",
          "push FLAT_USER_SS\nlea ecx, [user_stack_top]\npush ecx\npush FLAT_USER_CS\nlea ecx, [faulting]\n"
          "push ecx\n.byte 0xcb"),
)
_OUTSIDE: Final = f"""
outside:
    xor eax, eax
    mov ax, ds
    int 0x24
calling:
    xor eax, eax
    int 0x82
    int 0x24
faulting:
    mov eax, FLAT_USER_DS
    mov ds, ax
    mov eax, [{UNMAPPED}]
    int 0x24
"""


def iret(cs: str | int, ss: str | int = 0, eflags: int = 0x202, eip: int = 0x1000) -> str:
    """The iret hypercall with a context of the caller's choice."""
    words = (ss, "&user_stack_top", eflags, cs, eip, 0)
    return "\n".join((*(f"{load('eax', word)}\npush eax" for word in words),
                      "mov eax, __HYPERVISOR_iret\nint 0x82"))


SEND_NMI: Final = hypercall("vcpu_op", "VCPUOP_send_nmi", 0, 0)

CALLBACKS: Final = (
    Probe("nmi", SEND_NMI, before=hypercall("callback_op", "CALLBACKOP_register", "&register_nmi")),
    Probe("another nmi", SEND_NMI),
    Probe("nmi, events open", SEND_NMI, before=OPEN),
    Probe("iret to a bad code selector", iret(0x1233, "FLAT_USER_SS")),
    Probe("iret to a bad stack selector", iret("FLAT_USER_CS", 0x1233)),
    Probe("iret to a null code selector", iret(3, "FLAT_USER_SS")),
    Probe("iret to ring 1, bad code selector", iret(0x1231)),
    Probe("iret to the kernel's stack in ring 3", iret("FLAT_USER_CS", "FLAT_KERNEL_SS")),
    Probe("iret to ring 3", iret("FLAT_USER_CS", "FLAT_USER_SS")),
    Probe("iret to ring 1", iret("FLAT_KERNEL_CS", 0, 2)),
    Probe("iret with privilege and NT", iret("FLAT_USER_CS", "FLAT_USER_SS", 0x7202)),
    Probe("iret with events masked", iret("FLAT_USER_CS", "FLAT_USER_SS", 2)),
    Probe("iret to virtual-8086 mode", "mov esp, [vm86_stack]\n" + iret(0x1000, 0x1000, 0x20202)),
)

_TABLES: Final = f"""
    lea edi, [gdt_page]
    mov esi, {READ_ONLY}
    xor eax, eax
    call remap
    call machine_frame
    mov [gdt_frame], eax
    {hypercall("set_gdt", "&gdt_frame", 512)}
    {line("set_gdt: {eax:d}")}
    mov eax, [gdt_page + {8 * (list(DESCRIPTORS).index("ring0") + 1) + 4}]
    {line("the ring-0 descriptor's second word: {eax:x}")}
    lea edi, [ldt_page]
    mov esi, {READ_ONLY}
    xor eax, eax
    call remap
    {hypercall("mmuext_op", "&set_ldt", 1, 0, "DOMID_SELF")}
    {line("set_ldt: {eax:d}")}
"""


def update(title: str, page: str, entry: int, descriptor: str) -> str:
    """update_descriptor of an entry, whose words are at labels `descriptor` and + 4."""
    return f"""
    lea edi, [{page}]
    call machine_frame
    mov ecx, eax
    shr ecx, 20
    shl eax, 12
    add eax, {entry * 8}
    mov ebx, eax
    mov edx, [{descriptor}]
    mov esi, [{descriptor} + 4]
    {hypercall("update_descriptor")}
    {line(title + ": {eax:d}")}
"""


_THREAD: Final = "\n".join((
    """
    lea eax, [thread_area]              # a data segment of ring 3 whose base is thread_area
    mov ecx, eax
    shl ecx, 16
    or ecx, 0xffff
    mov [thread_descriptor], ecx
    mov ecx, eax
    shr ecx, 16
    and ecx, 0xff
    and eax, 0xff000000
    or eax, ecx
    or eax, 0x00cff300
    mov [thread_descriptor + 4], eax
    """,
    update("thread segment", "gdt_page", 20, "thread_descriptor"),
    "mov eax, 20*8+3\nmov gs, ax\nmov eax, dword ptr gs:[4]\n", line("through gs: {eax:x}"),
    update("thread segment in the LDT", "ldt_page", 20, "thread_descriptor"),
    "mov eax, 20*8+7\nmov fs, ax\nmov eax, dword ptr fs:[8]\n", line("through fs, LDT: {eax:x}"),
    update("a descriptor of 64-bit code", "gdt_page", 21, "long_code"),
    update("an interrupt gate", "gdt_page", 21, "interrupt_gate"),
    update("a task state segment", "gdt_page", 21, "task_state"),
    update("a descriptor on an ordinary page", "page_before", 21, "thread_descriptor"),
    "mov eax, [page_before + 21*8 + 4]\nand eax, 0xff00\n", line("which holds {eax:x}"),
    "xor eax, eax\nmov fs, ax\nmov gs, ax\n",
))

TABLE_PROBES: Final = (
    Probe("data of ring 1", data("ds", selector("data1"))),
    Probe("data of ring 3", data("ds", selector("data3", 3))),
    Probe("raised from ring 0", data("ds", selector("ring0"))),
    Probe("asked for as ring 0", data("ds", selector("ring0", 0))),
    Probe("absent in ds", data("ds", selector("absent"))),
    Probe("absent in ss", data("ss", selector("absent"))),
    Probe("read-only in ds", data("ds", selector("read_only"))),
    Probe("read-only in ss", data("ss", selector("read_only"))),
    Probe("code in ss", data("ss", selector("code1"))),
    Probe("empty in es", data("es", selector("empty"))),
    Probe("behind the last", data("es", 0xDFF1)),
    Probe("own code", f".byte 0xea\n.long own_code\n.short {selector('code1')}\nown_code: int3"),
    Probe("own data in ss", data("ss", selector("data1")) + "\nint3"),
    Probe("data of the LDT", data("ds", selector("data1", 1, 4))),
    Probe("absent in the LDT", data("ds", selector("absent", 1, 4))),
    Probe("empty in the LDT", data("es", selector("empty", 1, 4))),
    Probe("own code of ring 3", iret(selector("code3", 3), selector("data3", 3))),
    Probe("code of the LDT", iret(selector("code3", 3, 4), selector("data3", 3, 4))),
    Probe("ring 3 code at ring 1", iret(selector("code3", 1))),
    Probe("absent stack in ring 3", iret("FLAT_USER_CS", selector("absent", 3))),
    Probe("user: ring 1's data", data("ds", selector("data1", 3)), user=True),
    Probe("user: behind the LDT", data("ds", 0xFFF7), user=True),
)

_RESULTS: Final = f"""
    mov eax, 0x40000001
    xor ecx, ecx
    {FORCED}
    cpuid
    {line("version: {eax:x}")}
    mov eax, 0x80000001
    cpuid
    and edx, 0x20100800
    {line("long mode, NX, SYSCALL: {edx:x}")}
    {hypercall("fpu_taskswitch", 1)}
    mov eax, cr0
    and eax, 8
    {line("task switched: {eax:d}")}
    clts
    mov eax, cr0
    and eax, 8
    {line("after clts: {eax:d}")}
    mov ecx, cr3
    mov eax, ecx
    shr eax, 12
    shl ecx, 20
    or ecx, eax
    mov edi, [start_info_address]
    mov edi, [edi + start_info.pt_base]
    call machine_frame
    sub eax, ecx
    {line("CR3 against pt_base: {eax:d}")}
    mov ecx, cr3
    mov cr3, ecx
    {hypercall("get_debugreg", 7)}
    {line("DR7: {eax:x}")}
    {hypercall("set_segment_base", 0, 0)}
    {line("set_segment_base: {eax:d}")}
"""


def build() -> bytes:
    """The image."""
    probing = Probing()
    for title, group in (
        ("exceptions", EXCEPTIONS), ("protection", PROTECTION), ("page faults", PAGE_FAULTS), ("stack",
                                                                                               STACK),
        ("flags", FLAG_PROBES), ("debug registers", DEBUG), ("user mode", USER_MODE),
        ("ways to ring 3", DATA_SEGMENTS), ("callbacks", CALLBACKS),
    ):
        probing.group(title, group)
    probing.main.append(_TABLES)
    probing.group("descriptors", TABLE_PROBES)
    probing.main.extend((_THREAD, line("-- results"), _RESULTS, line("traps32: done")))
    words = "\n".join(f".quad {value}" for value in DESCRIPTORS.values())
    return probing.image(_OUTSIDE, data=(
        "gdt_frame: .long 0\niopl_zero: .long 0\niopl_one: .long 1\nbounds: .long 1, 3",
        "vm86_stack: .long trap_stack_top - 256",
        "register_nmi: .short CALLBACKTYPE_nmi, 0\n.long FLAT_KERNEL_CS, nmi",
        f"set_ldt: .long MMUEXT_SET_LDT, ldt_page, {len(DESCRIPTORS) + 20}",
        "thread_area: .long 0x11, 0x22, 0x33\n.balign 8, 0\nthread_descriptor: .long 0, 0",
        f"long_code: .quad {0x00AF_FB00_0000_FFFF}\ninterrupt_gate: .quad {0x0000_EE00_0019_1000}",
        f"task_state: .quad {0x0000_8900_0000_0067}",
        (f".balign 4096, 0\ngdt_page: .quad 0\n{words}\n.balign 4096, 0\nldt_page: .quad 0\n{words}\n"
        ".balign 4096, 0"),
    ))
