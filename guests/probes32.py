"""Probes of 32-bit guests: a few instructions in ring 1 or ring 3 that take a trap, and what its handler saw.

A line says: vector and error code (-1: none), EIP from the probe's start, CS, whether events were masked
before and in the handler, EFLAGS likewise as far as a probe can know them, in ring 1 how far below the
interrupted stack pointer the frame lies, from an outer ring its SS and where its stack pointer was, CR2 for a
page fault, and how many traps there were when it was not one.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from guests.assembler import NARROW_BASE
from guests.macros32 import hypercall, kernel, line, load, say, text
from guests.probes import KNOWN_FLAGS, READ_ONLY, READ_WRITE, SOFTWARE, Probe
from guests.runtime32 import frame

NMI, FAILSAFE = 258, 257
"""Vectors that stand for callbacks."""
UNMAPPED: Final = 0x7000_0000
SUPERVISOR: Final = READ_WRITE & ~4
"""Flags of a page that ring 3 may not touch."""
NO_EXECUTE_HIGH: Final = 0x8000_0000
SEEN: Final = ("count", "vector", "error", "eip", "cs", "eflags", "esp", "ss", "eax", "frame", "cr2",
               "handler_flags", "mask")

_HOOK: Final = """
probe_hook:                             # edi -> frame: note it, then go on after the probe, in ring 1
    pushfd
    pop eax
    mov [seen_handler_flags], eax
""" + "\n".join(
    f"mov eax, [edi + {frame(word)}]\nmov [seen_{word}], eax"
    for word in ("vector", "error", "eip", "cs", "eflags", "esp", "ss", "eax")
) + f"""
    lea eax, [edi + {frame("eip")}]
    cmp dword ptr [seen_error], -1
    je no_error_code
    sub eax, 4
no_error_code:
    mov [seen_frame], eax
    movzx eax, byte ptr [shared_page + vcpu_info.evtchn_upcall_mask]
    mov [seen_mask], eax
    mov eax, [shared_page + vcpu_info.arch.cr2]
    mov [seen_cr2], eax
    inc dword ptr [seen_count]
probe_return:
    mov eax, FLAT_KERNEL_DS
    mov fs, ax
    mov gs, ax
    mov ss, ax
    mov esp, [probe_stack]
    push 2
    push FLAT_KERNEL_CS
    push [probe_resume]
    push eax
    mov eax, __HYPERVISOR_iret
    int 0x82

nmi:
    push -1
    push {NMI}
    jmp trap_common

failsafe:                               # the data selectors are on the stack
    add esp, 16
    push -1
    push {FAILSAFE}
    jmp trap_common

open_pages:                             # edi, ecx = from and to: ring 3 may use these pages
    mov esi, {READ_WRITE}
    xor eax, eax
    call remap
    test eax, eax
    jnz crash
    add edi, 4096
    cmp edi, ecx
    jb open_pages
    ret

enter_user:                             # eax = where; does not return: the probe's trap goes on elsewhere
    mov ecx, FLAT_USER_DS
    mov ds, cx
    mov es, cx
enter_outside:
    push FLAT_USER_SS
    lea ecx, [user_stack_top]
    push ecx
    push 0x202
    push FLAT_USER_CS
    push eax
    push eax
    mov eax, __HYPERVISOR_iret
    int 0x82
"""

_REPORT: Final = f"""
probe_report:                           # esi = name, edi = start, edx = what CR2 is told from
    {say("{esi:s}: ")}
    cmp dword ptr [seen_count], 0
    jne report_trap
    {line("no trap")}
    ret
report_trap:
    mov eax, [seen_eip]
    cmp eax, {UNMAPPED}
    jbe report_eip
    sub eax, edi
report_eip:
    movzx ebx, word ptr [seen_cs]
    movzx ecx, byte ptr [seen_cs + 2]
    {say("vector {dword ptr [seen_vector]:d} error {dword ptr [seen_error]:d} eip {eax:x} cs {ebx:x}")}
    {say(" masked {ecx:d} then {dword ptr [seen_mask]:d}")}
    mov ebx, [seen_eflags]
    and ebx, {KNOWN_FLAGS}
    mov ecx, [seen_handler_flags]
    and ecx, {KNOWN_FLAGS}
    {say(" flags {ebx:x} then {ecx:x}")}
    test byte ptr [seen_cs], 2
    jnz report_outer
    mov eax, [probe_stack]
    sub eax, [seen_frame]
    {say(" frame {eax:d}")}
    jmp report_count
report_outer:
    lea eax, [user_stack_top]
    sub eax, [seen_esp]
    lea ebx, [trap_stack_top]
    sub ebx, [seen_frame]
    {say(" ss {dword ptr [seen_ss]:x} frame {ebx:d}")}
report_count:
    cmp dword ptr [seen_count], 1
    je report_cr2
    {say(" traps {dword ptr [seen_count]:d}")}
report_cr2:
    cmp dword ptr [seen_vector], 14
    jne report_done
    mov eax, [seen_cr2]
    sub eax, edx
    {say(" cr2 {eax:x}")}
report_done:
    {line("")}
    ret
"""

_SETUP: Final = f"""
    lea edi, [{NARROW_BASE}]            # ring 3 runs the same text, on the same data
    lea ecx, [bss_start]
    call open_pages
    lea edi, [page_ro]
    lea ecx, [user_stack_top]
    call open_pages
""" + "".join(f"""
    lea edi, [{page}]
    mov esi, {low}
    {load("eax", high)}
    call remap
""" for page, low, high in (("page_ro", READ_ONLY, 0), ("page_nx", READ_WRITE, NO_EXECUTE_HIGH),
                            ("page_kernel", SUPERVISOR, 0))) + f"""
    {hypercall("update_va_mapping", "&page_hole", 0, 0, "UVMF_INVLPG")}
    {load("eax", "&probe_hook")}
    mov [trap_hook], eax
    {hypercall("set_callbacks", "FLAT_KERNEL_CS", "&crash", "FLAT_KERNEL_CS", "&failsafe")}
    {hypercall("stack_switch", "FLAT_KERNEL_SS", "&trap_stack_top")}
    {line("stack switch: {eax:d}")}
"""

BSS: Final = (
    ".balign 4096, 0\npage_ro: .zero 4096\npage_nx: .zero 4096\npage_kernel: .zero 4096",
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
            f"lea eax, [{tag}_end]\nmov [probe_resume], eax\nmov [probe_stack], esp",
            "mov dword ptr [seen_count], 0",
            f"lea eax, [{tag}_start]\njmp enter_user" if probe.user else "",
            f"{tag}_start:", probe.code, "int 0x24" if probe.user else "",
            f"{tag}_end:",
            probe.after, load("esi", f"&{tag}_name"), load("edi", f"&{tag}_start"),
            load("edx", f"&{probe.near}" if probe.near else 0), "call probe_report",
        ))

    def image(self, *routines: str, data: Iterable[str] = (), bss: Iterable[str] = ()) -> bytes:
        """The guest's image. `routines` are linked behind its main code, `data` ends on whole pages."""
        words = (*(f"seen_{word}: .long 0" for word in SEEN), "probe_resume: .long 0\nprobe_stack: .long 0")
        return kernel(
            *self.main, "ret", _HOOK, _REPORT, *routines, data=(*self._names, *words, *data),
            bss=(*BSS, *bss), traps=True, pages=True, trap_flags={3: 3, 4: 3, 0x24: 3, 0x25: 1, **SOFTWARE},
        )
