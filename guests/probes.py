"""Probes: a few instructions that take a trap, and a line about what its handler saw.

A probe expects at most one trap, after which the next one goes on. Its line says: vector and error code (-1:
none), RIP from the probe's start, selectors, whether events were masked before and in the handler, RFLAGS
likewise as far as a probe can know them, how far below the interrupted stack pointer the frame lies (kernel
mode only: the user's stack is another one), CR2 for a page fault, and how many traps there were when it was
not one. Nothing depends on machine frames, addresses or time.

Vectors from 256 on stand for the system call, failsafe and NMI entries.
"""
from __future__ import annotations

from collections.abc import Iterable
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

@dataclass(frozen=True, slots=True)
class Probe:
    """Instructions to trap in; `before` and `after` run outside. CR2 is told from the label `near`."""

    name: str
    code: str
    before: str = ""
    after: str = ""
    near: str = ""
    user: bool = False
    low: int = 0
    """Where its code of 32 bits is; then `code` is empty."""


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

enter_low:                              # rax = where, in 32-bit user mode; does not return
    push FLAT_RING3_SS32
    push {0x401000}
    push 0x202
    push FLAT_RING3_CS32
    push rax
    push 0
    push rcx
    push r11
    push rax
    mov eax, __HYPERVISOR_iret
    syscall

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


BSS: Final = (
    ".balign 4096, 0\npage_ro: .zero 4096\npage_nx: .zero 4096",
    "page_before: .zero 4096\npage_hole: .zero 4096",
    "trap_stack: .zero 8192\ntrap_stack_top:\nuser_stack: .zero 4096\nuser_stack_top:",
)


class Probing:
    """Collects the code of a guest that is made of probes, and links it."""

    def __init__(self) -> None:
        self.main: list[str] = [_SETUP]
        self._names: list[str] = []

    def group(self, title: str, probes: Iterable[Probe]) -> None:
        """Run the probes, under a title."""
        self.main.append(line(f"-- {title}"))
        self.main.extend(self._code(probe) for probe in probes)

    def _code(self, probe: Probe) -> str:
        tag = f"probe{len(self._names)}"
        self._names.append(f"{tag}_name:\n{text(probe.name)}")
        return "\n".join((
            probe.before,
            f"lea rax, [rip + {tag}_end]", "mov [rip + probe_resume], rax", "mov [rip + probe_stack], rsp",
            "mov qword ptr [rip + seen_count], 0",
            f"lea rax, [rip + {tag}_start]\njmp enter_user" if probe.user else "",
            f"mov eax, {probe.low}\njmp enter_low" if probe.low else "",
            f"{tag}_start:", probe.code, "syscall" if probe.user else "",
            f"{tag}_end:",
            probe.after, load("rsi", f"&{tag}_name"), load("rdi", f"&{tag}_start"),
            load("rdx", f"&{probe.near}" if probe.near else 0), "call probe_report",
        ))

    def image(self, *routines: str, data: Iterable[str] = (), bss: Iterable[str] = ()) -> bytes:
        """The guest's image. `routines` are linked behind its main code, `data` ends on whole pages."""
        words = (*(f"seen_{word}: .quad 0" for word in SEEN), "probe_resume: .quad 0\nprobe_stack: .quad 0",
                 "user_base: .quad MMUEXT_NEW_USER_BASEPTR, 0, 0")
        return kernel(
            *self.main, "ret", _HOOK, _REPORT, *routines, data=(*self._names, *words, *data),
            bss=(*BSS, *bss), traps=True, pages=True, trap_flags={3: 3, 4: 3, **SOFTWARE},
        )
